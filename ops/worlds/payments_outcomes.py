"""What the world says of a payment days later: charged back, confirmed genuine, or nothing.

| truth | decision | what comes | share | days after the payment |
|---|---|---|---|---|
| fraud | blocked | nothing | | |
| fraud | any other | `payment.charged_back` | all | 2 to 7 |
| genuine | reviewed | `payment.confirmed_genuine` | all | 1 to 2 |
| genuine | blocked | `payment.confirmed_genuine` | 70 % | 1 to 4 |
| genuine | allowed | `payment.confirmed_genuine` | 5 % | 3 to 10 |

Delays are uniform and, like the shares, drawn from a hash of the transaction id: they depend on
nothing else that was played.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

from contracts.payments import ChargedBack, ConfirmedGenuine
from ops.answers import with_answers
from ops.world import Decided, DecisionOf, NewFact
from ops.worlds.payments_generator import DAY_MS, LabelledPayment

CHARGEBACK_DAYS = (2.0, 7.0)
REVIEWED_DAYS = (1.0, 2.0)
BLOCKED_DAYS = (1.0, 4.0)
ALLOWED_DAYS = (3.0, 10.0)
BLOCKED_SHARE = 0.7
ALLOWED_SHARE = 0.05
SHORTEST_MS = DAY_MS  # no outcome comes sooner, so no decision is asked for sooner


def with_late_outcomes(
    facts: Iterable[NewFact | None], decision_of: DecisionOf, *, until_ms: float = math.inf
) -> Iterator[NewFact | None]:
    """The facts with late outcomes in between (ops/answers.py), one decision a labelled payment.

    It is asked for a day of event time after the payment. Of several payments with one transaction
    id the first counts.
    """
    known: set[str] = set()

    def awaits(fact: NewFact) -> tuple[int, str] | None:
        if not isinstance(fact, LabelledPayment) or fact.is_fraud is None:
            return None
        transaction_id = str(fact.data["transaction_id"])
        if transaction_id in known:
            return None
        known.add(transaction_id)
        return fact.event_ms + SHORTEST_MS, transaction_id

    def follows(fact: NewFact, decided: Decided | None) -> list[NewFact]:
        assert isinstance(fact, LabelledPayment)
        outcome = late_outcome(fact, decided)
        return [] if outcome is None else [outcome]

    return with_answers(facts, decision_of, awaits, follows, until_ms=until_ms)


def late_outcome(payment: LabelledPayment, decided: Decided | None) -> NewFact | None:
    """The outcome of one payment, given verdict and action of its decision (None: never decided)."""
    action = decided[1] if decided is not None and decided[0] == "allow" else "allow_payment"
    luck, wait = _draws(str(payment.data["transaction_id"]))
    kind = ConfirmedGenuine.event_type
    match action:
        case "block_payment" if payment.is_fraud:
            return None
        case _ if payment.is_fraud:
            kind, share, days = ChargedBack.event_type, 1.0, CHARGEBACK_DAYS
        case "review_payment":
            share, days = 1.0, REVIEWED_DAYS
        case "block_payment":
            share, days = BLOCKED_SHARE, BLOCKED_DAYS
        case _:
            share, days = ALLOWED_SHARE, ALLOWED_DAYS
    if luck >= share:
        return None
    event_ms = payment.event_ms + int((days[0] + wait * (days[1] - days[0])) * DAY_MS)
    repeated = ("transaction_id", "terminal_id", "amount_minor", "currency")
    data = {name: payment.data[name] for name in repeated if name in payment.data}
    data["payment_ms"] = payment.event_ms
    return NewFact(kind, payment.subject, event_ms, data, str(data["transaction_id"]))


def _draws(transaction_id: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on the transaction alone."""
    digest = hashlib.sha256(transaction_id.encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48, int.from_bytes(digest[6:12]) / 2**48
