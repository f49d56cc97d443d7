"""Domain `payments`: card payments of accounts at terminals, and what is known of them days later."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from contracts.data import ActionParameters, FactData, Identifier, SituationData

AmountMinor = Annotated[int, Field(ge=0, le=10**15, description="minor units of the currency")]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="ISO 4217")]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$", description="ISO 3166-1 alpha-2")]
PaymentMs = Annotated[
    int, Field(ge=0, le=4_102_444_800_000, description="event time of the payment, ms since 1970 UTC")
]


class AuthorisationRequested(FactData):
    """Somebody wants to pay with the account (the subject). Null: the source does not tell."""

    event_type: ClassVar[str] = "payment.authorisation_requested"

    transaction_id: Identifier
    terminal_id: Identifier
    amount_minor: AmountMinor
    currency: Currency | None = None
    country: Country | None = None
    device_id: Identifier | None = None


class ProfileChanged(FactData):
    """Reference data of the account: its home country and currency, its usual device.

    Holds from its place in the log on; null leaves what was known.
    """

    event_type: ClassVar[str] = "customer.profile_changed"

    country: Country | None = None
    currency: Currency | None = None
    device_id: Identifier | None = None


class ChargedBack(FactData):
    """The payment was fraud, told days later. It repeats what is needed of the payment."""

    event_type: ClassVar[str] = "payment.charged_back"

    transaction_id: Identifier
    terminal_id: Identifier
    amount_minor: AmountMinor
    currency: Currency | None = None
    payment_ms: PaymentMs


class ConfirmedGenuine(FactData):
    """The customer confirmed the payment, days later. It repeats what is needed of the payment."""

    event_type: ClassVar[str] = "payment.confirmed_genuine"

    transaction_id: Identifier
    terminal_id: Identifier
    amount_minor: AmountMinor
    currency: Currency | None = None
    payment_ms: PaymentMs


FACTS = (AuthorisationRequested, ProfileChanged, ChargedBack, ConfirmedGenuine)


Fading = Annotated[float, Field(ge=0, description="a count that fades with 14 days of event time")]
Seconds = Annotated[float, Field(ge=0)]
Days = Annotated[float, Field(description="event time; negative when the log is out of order")]


class PaymentAssessed(SituationData):
    """Everything known of a payment when it is asked for. Lane: log order. Null: unknown or never.

    `terminal_*` and `band_*` are features over another key than the topic's: they hold what this run
    had seen by then, and computed again may differ by how accounts interleave.
    """

    event_type: ClassVar[str] = "payments.payment_assessed"

    transaction_id: str
    terminal_id: str
    amount_minor: int
    payments_seen: int = Field(ge=1, description="payments of the account, this one included")
    amount_ratio_log: float | None = Field(description="ln of the amount over the account's habit")
    amount_deviation: float | None = Field(description="the same in its own deviations")
    gap_1_s: Seconds | None = Field(description="since the account's last fact")
    gap_2_s: Seconds | None = Field(description="since the one before it")
    gap_4_s: Seconds | None
    gap_8_s: Seconds | None
    tempo_4: float | None = Field(description="gap_4_s over what is usual for the account")
    tempo_8: float | None
    is_new_device: bool | None
    is_foreign: bool | None
    account_far_chargebacks: Fading = Field(description="of amounts far over the habit")
    account_near_chargebacks: Fading
    account_fraud_days: Days | None = Field(description="since the last payment known as fraud")
    account_cleared_days: Days | None = Field(description="last known genuine less last known fraud")
    terminal_chargebacks: Fading = Field(description="unexplained by the account")
    terminal_confirmations: Fading
    terminal_recoveries: int = Field(description="confirmations since its last fraud")
    terminal_share: float = Field(description="chargebacks over payments here")
    terminal_intensity: float | None = Field(description="chargebacks over those of a fraud-only terminal")
    terminal_fraud_days: Days | None
    terminal_mean_fraud_days: Days | None
    terminal_first_fraud_days: Days | None = Field(description="since its episode of fraud began")
    terminal_cleared_days: Days | None
    terminal_news_days: Days | None = Field(description="since the last outcome told here")
    band_share: float = Field(description="chargebacks over payments of about this amount")
    band_judged_share: float = Field(description="chargebacks over outcomes of about this amount")
    is_terminal_suspected: bool


class ProbeThenPurchase(SituationData):
    """A small payment, then within the hour one twenty times as large. Lane: log order (pattern)."""

    event_type: ClassVar[str] = "payments.probe_then_purchase"

    probe_transaction_id: str
    transaction_id: str
    probe_amount_minor: int
    amount_minor: int
    apart_s: int


class DailySpend(SituationData):
    """What an account asked to pay on one day. Lane: event time; `event_time` is the day's end."""

    event_type: ClassVar[str] = "payments.daily_spend"

    payments: int
    spent_minor: int
    highest_minor: int


SITUATIONS = (PaymentAssessed, ProbeThenPurchase, DailySpend)


class AllowPayment(ActionParameters):
    """Let the payment pass: decided and recorded, nothing to command."""

    action: ClassVar[str] = "allow_payment"
    is_commanded: ClassVar[bool] = False

    transaction_id: Identifier


class ReviewPayment(ActionParameters):
    """Let the payment pass and ask the customer; its outcome will be known."""

    action: ClassVar[str] = "review_payment"

    transaction_id: Identifier
    terminal_id: Identifier
    amount_minor: AmountMinor


class BlockPayment(ActionParameters):
    """Stop the payment. If it was fraud, nothing more is ever heard of it."""

    action: ClassVar[str] = "block_payment"

    transaction_id: Identifier
    terminal_id: Identifier
    amount_minor: AmountMinor


ACTIONS = (AllowPayment, ReviewPayment, BlockPayment)
