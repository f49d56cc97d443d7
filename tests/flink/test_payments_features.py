"""sql/payments on the real cluster gives what training computed in plain Python."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from contracts.payments import PaymentAssessed
from contracts.topics import topic
from ops.world import NewFact
from ops.worlds.payments_features import FEATURES, Features
from ops.worlds.payments_generator import WorldSettings, generate
from ops.worlds.payments_outcomes import with_late_outcomes
from tests.loop import Loop

YEAR_MS = 365 * 86_400_000
ACTIONS = ("allow_payment", "allow_payment", "review_payment", "block_payment")


def unordered_log(count: int) -> list[NewFact]:
    """A world's facts of its own accounts, terminals and currency, some swapped, less complete or with a wrong date."""
    settings = replace(
        WorldSettings(), accounts=12, terminals=6, days=40, compromises_per_day=0.1, bursts_per_day=0.3
    )
    facts = [
        own(fact)
        for fact in with_late_outcomes(
            generate(settings, 5, count), lambda key: ("allow", ACTIONS[int(key[-1]) % 4])
        )
        if fact is not None
    ]
    chance = random.Random(5)
    for _ in range(len(facts) // 20):
        i = chance.randrange(len(facts) - 30)
        j = i + chance.randrange(1, 30)
        facts[i], facts[j] = facts[j], facts[i]
    for i in range(0, len(facts), 7):
        optional = {"country"} if i % 2 else {"country", "device_id"}
        known = {name: value for name, value in facts[i].data.items() if name not in optional}
        facts[i] = replace(facts[i], data=known | ({"amount_minor": 0} if i % 91 == 0 and "amount_minor" in known else {}))
    told = [i for i, fact in enumerate(facts) if "payment_ms" in fact.data]
    for i in told[::5]:
        facts[i] = replace(facts[i], data=facts[i].data | {"payment_ms": facts[i].event_ms + YEAR_MS})
    return facts


def own(fact: NewFact) -> NewFact:
    data = {**fact.data}
    if "terminal_id" in data:
        data["terminal_id"] = f"parity-{data['terminal_id']}"
    if data.get("currency") is not None:
        data["currency"] = "XTS"
    return replace(fact, subject=f"parity-{fact.subject}", data=data)


def is_same(wanted: float, got: Any) -> bool:
    if math.isnan(wanted) or got is None:
        return math.isnan(wanted) and got is None
    return math.isclose(wanted, float(got), rel_tol=1e-6, abs_tol=1e-6)


def test_the_features_are_those_of_training_when_facts_are_late_repeated_incomplete_or_misdated(payments: Loop) -> None:
    facts = unordered_log(1_200)
    reference = Features()
    wanted = {
        str(fact.data["transaction_id"]): features
        for fact in facts
        if (features := reference.of(fact)) is not None
    }
    # One partition, so that terminals and amounts see the accounts in one order.
    events = payments.encode(*facts)
    for n, (fact, event) in enumerate(zip(facts, events, strict=True)):
        for _ in range(2 if n % 25 == 0 else 1):
            payments._writer.send(
                topic("facts").of("payments"), key=fact.subject.encode(), value=event, partition=0
            )
    payments._writer.flush()

    def assessed() -> dict[str, dict[str, Any]]:
        found = payments.events("situations", type_=PaymentAssessed.event_type)
        return {e["data"]["transaction_id"]: e["data"] for e in found if e["subject"].startswith("parity-")}

    got = payments.wait_for("every payment", lambda: (a := assessed()) and len(a) == len(wanted) and a)
    different = {
        (transaction_id, name, value, got[transaction_id].get(name))
        for transaction_id, features in wanted.items()
        for name, value in zip(FEATURES, features, strict=True)
        if not is_same(value, got[transaction_id].get(name))
    }
    assert different == set()
    shown = {name for name in FEATURES if any(got[t].get(name) for t in got)}
    assert shown == set(FEATURES), "every feature should be put to the test"
