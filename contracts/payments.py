"""Domain `payments`: card payments of accounts at terminals, and what is known of them days later."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from contracts.data import FactData, Identifier

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
SITUATIONS = ()
ACTIONS = ()
