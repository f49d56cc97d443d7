"""The simulated back office: what analysis, fraud desk and letters answer to a command.

Pure and seeded: the same case and seed get the same answer, whichever command asks. Durations are
event time. What an analysis found comes back in the outcome's `detail`, an offer's amount in `cost`.

| action | says | takes |
|---|---|---|
| `analyse_application` | rating A (30 %), B (30 %), C (25 %), D (10 %), or none (5 %) | 2 h |
| `check_fraud` | fraud confirmed (60 %), or nothing found | 20 h |
| `make_offer`, `approve_application`, `decline_application` | done | 1 h |
| `reassign_case` | done (10 %: the desk is full) | 1 h |
| `remind_customer` | done (10 %: not reached) | 1 h |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ops.world import Done, Handler, Order

HOUR_S = 3600.0
RATINGS = ((0.30, "A"), (0.60, "B"), (0.85, "C"), (0.95, "D"))
FRAUD_CONFIRMED = 0.60
REASSIGNING_FAILS = 0.10
REMINDING_FAILS = 0.10


def draw(seed: int, about: str, case: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}|{about}|{case}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def office(seed: int) -> Mapping[str, Handler]:
    """One handler an action of the contract."""

    def analyse(order: Order) -> Done:
        drawn = draw(seed, "rating", order.subject)
        for bound, rating in RATINGS:
            if drawn < bound:
                return Done("succeeded", f"rating {rating}: {_MEANS[rating]}", 2 * HOUR_S)
        return Done("succeeded", "no rating: the statements contradict each other", 2 * HOUR_S)

    def check_fraud(order: Order) -> Done:
        if draw(seed, "fraud", order.subject) < FRAUD_CONFIRMED:
            return Done("succeeded", "fraud confirmed: the pay slip is forged", 20 * HOUR_S)
        return Done("succeeded", "nothing found", 20 * HOUR_S)

    def write(detail: str) -> Handler:
        def handle(order: Order) -> Done:
            return Done("succeeded", detail, HOUR_S)

        return handle

    def offer(order: Order) -> Done:
        return Done("succeeded", "offer sent", HOUR_S, float(order.parameters["amount"]))

    def reassign(order: Order) -> Done:
        if draw(seed, "desk", order.command_id) < REASSIGNING_FAILS:
            return Done("failed", "the desk for stuck cases is full", HOUR_S)
        return Done("succeeded", "given to the desk for stuck cases", HOUR_S)

    def remind(order: Order) -> Done:
        if draw(seed, "reach", order.command_id) < REMINDING_FAILS:
            return Done("failed", "customer not reached", HOUR_S)
        return Done("succeeded", "", HOUR_S)

    return {
        "analyse_application": analyse,
        "check_fraud": check_fraud,
        "make_offer": offer,
        "approve_application": write("contract sent"),
        "decline_application": write("letter sent"),
        "reassign_case": reassign,
        "remind_customer": remind,
    }


_MEANS = {
    "A": "income covers the instalments three times",
    "B": "income covers the instalments twice",
    "C": "income covers a smaller loan",
    "D": "income does not cover the instalments",
}
