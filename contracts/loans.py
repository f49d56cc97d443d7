"""Domain `loans`: applications for loans, told by an event log; analysis, offers, approvals, declines.

The subject is the case: one application from its receipt to its end. Amounts are in whole units of
the one currency the log is kept in. Resources are people (a name or a number) as the log writes them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from contracts.data import ActionParameters, FactData, Identifier, SituationData, Upcast, unchanged

Amount = Annotated[float, Field(ge=0, le=1e12, description="whole units of the log's currency")]
Rating = Annotated[str, Field(description="A (best) to D, as the analysis gave it; empty: none yet")]


class ActivityRecorded(FactData):
    """One row of a loan desk's event log: something was done in a case, or began, or was planned.

    `activity` may be any name. Known are A_* (the application's own steps), O_* (offers) and W_*
    (work items); the others are kept, and counted as work when somebody did them. Null: the log does
    not tell. A null `lifecycle` is read as COMPLETE, a null `resource` as the system, and a null
    `amount` leaves the last one of the case standing.
    """

    event_type: ClassVar[str] = "loan.activity_recorded"

    activity: Identifier
    lifecycle: Identifier | None = Field(default=None, description="SCHEDULE, START, COMPLETE, ...; any case")
    resource: Identifier | None = None
    amount: Amount | None = Field(default=None, description="requested; on O_* rows the offered one")


FACTS = (ActivityRecorded,)


def _with_handlers(data: dict[str, Any]) -> dict[str, Any]:
    """Older events tell who handled the case first and last, and nobody in between."""
    told = (data.get("first_handled_by"), data.get("handled_by"))
    return {**data, "handled_by_all": "\n".join(dict.fromkeys(name for name in told if name)) or None}


class CaseSituation(SituationData):
    """What every situation about a case tells: its standing when the row was read, that row included.

    Since version 2 (of OfferAccepted 3) there is `handled_by_all`.
    """

    schema_version: ClassVar[int] = 2
    upcasts: ClassVar[tuple[Upcast, ...]] = (_with_handlers,)

    amount: float = Field(description="requested, the last one told")
    rating: Rating
    first_handled_by: str | None = Field(default=None, description="who worked on it first; null: nobody yet")
    handled_by: str | None = Field(default=None, description="who worked on it last; null: nobody yet")
    handled_by_all: str | None = Field(
        default=None, description="everybody who worked on it, each once, one a line; null: nobody yet"
    )
    touches: int = Field(ge=0, description="activities somebody began or completed")
    hand_overs: int = Field(ge=0, description="how often another person went on with the case")
    hours_so_far: float = Field(description="event time since the case's first fact")
    submissions: int = Field(ge=0, description="how often the application was handed in")
    amount_changes: int = Field(ge=0, description="how often another amount was requested")
    amount_deviation: float | None = Field(
        default=None, description="ln of the amount over the usual one, in deviations; null: under 20 cases seen"
    )
    is_suspicious: bool
    is_cancelled: bool = Field(description="the customer withdrew")


class ApplicationReceived(CaseSituation):
    """An application is there and its amount is known: it can be analysed. Once a case. Lane: log order.

    Like all that has CaseSituation, `amount_deviation` is a feature over another key than the topic's
    (all cases): it holds what this run had seen by then.
    """

    event_type: ClassVar[str] = "loans.application_received"


class FraudSuspected(CaseSituation):
    """The analysis came back and the case looks odd: somebody has to check it. Lane: log order."""

    event_type: ClassVar[str] = "loans.fraud_suspected"

    suspicion: str = Field(description="amount_far_over_usual or resubmitted")


class ApplicationAnalysed(CaseSituation):
    """The analysis, and the fraud check where one was needed, are in: a decision is due. Lane: log order."""

    event_type: ClassVar[str] = "loans.application_analysed"

    offer_amount: float = Field(description="what could be offered where the request is too high")
    decline_reason: str = Field(description="why it would be declined; empty: the analysis gives no reason")
    is_fraud_confirmed: bool


class OfferAccepted(CaseSituation):
    """The customer took an offer, whatever analysis and fraud check say or said of the case. Lane: log order."""

    event_type: ClassVar[str] = "loans.offer_accepted"
    schema_version: ClassVar[int] = 3  # since 2 there is `is_fraud_confirmed`
    upcasts: ClassVar[tuple[Upcast, ...]] = (unchanged, _with_handlers)

    offered_amount: float = Field(description="the last offer's; the requested one where the log tells none")
    is_fraud_confirmed: bool | None = Field(default=None, description="null: version 1 did not tell")


class Bouncing(SituationData):
    """A case went to and fro between two people, A B A B, within 14 days. Lane: log order (pattern)."""

    event_type: ClassVar[str] = "loans.bouncing"

    one_resource: str
    other_resource: str
    bouncing_hours: float = Field(description="event time from the first turn to the fourth")


class OfferUnanswered(SituationData):
    """An offer was sent and ten days passed without an answer. Lane: event time (absence).

    `event_time` is when the ten days were over.
    """

    event_type: ClassVar[str] = "loans.offer_unanswered"

    waited_days: int


SITUATIONS = (ApplicationReceived, FraudSuspected, ApplicationAnalysed, OfferAccepted, Bouncing, OfferUnanswered)


class AnalyseApplication(ActionParameters):
    """Rate the application: can the customer pay it back?"""

    action: ClassVar[str] = "analyse_application"

    amount: Amount


class CheckFraud(ActionParameters):
    """Have the papers checked."""

    action: ClassVar[str] = "check_fraud"

    suspicion: str = Field(max_length=64)


class MakeOffer(ActionParameters):
    """Offer another amount than the one asked for."""

    action: ClassVar[str] = "make_offer"

    amount: Amount


class ApproveApplication(ActionParameters):
    """Grant the loan."""

    action: ClassVar[str] = "approve_application"

    amount: Amount


class DeclineApplication(ActionParameters):
    """Refuse the loan. The reason goes into the letter; policies forbid an empty one."""

    action: ClassVar[str] = "decline_application"

    amount: Amount
    decline_reason: str = Field(max_length=64, pattern=r"^[a-z_]*$")


class ReassignCase(ActionParameters):
    """Take the case from both people and give it to one desk."""

    action: ClassVar[str] = "reassign_case"

    one_resource: str = Field(max_length=256)
    other_resource: str = Field(max_length=256)


class RemindCustomer(ActionParameters):
    """Ask the customer for an answer to the offer."""

    action: ClassVar[str] = "remind_customer"

    channel: Literal["letter", "call"]


ACTIONS = (
    AnalyseApplication, CheckFraud, MakeOffer, ApproveApplication, DeclineApplication, ReassignCase,
    RemindCustomer,
)  # fmt: skip
