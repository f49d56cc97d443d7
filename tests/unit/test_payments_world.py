"""The world of payments: rows, generated accounts, late outcomes, the simulated bank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest

from contracts.domain import load_domain
from contracts.errors import BadInput
from contracts.payments import ChargedBack, ConfirmedGenuine
from ops.answers import PATIENCE
from ops.world import NewFact, Order
from ops.worlds.payments import WORLD, minor_units
from ops.worlds.payments_generator import DAY_MS, LabelledPayment

ROW = {
    "ts": "2018-04-01 00:00:31", "transaction_id": "0007", "customer_id": "596", "terminal_id": "3156",
    "amount": "57.16",
}  # fmt: skip
START_MS = 1_522_540_831_000

Decide = Callable[[str], tuple[str, str] | None]


def payment(transaction_id: str, at_ms: int, is_fraud: bool | None) -> LabelledPayment:
    fact = WORLD.row_to_fact({**ROW, "transaction_id": transaction_id}, None)
    return LabelledPayment(fact.type, fact.subject, at_ms, fact.data, fact.identity, is_fraud)


def played(facts: Iterable[NewFact], decide: Decide) -> list[NewFact]:
    return [fact for fact in WORLD.played(iter(facts), decide) if fact is not None]


def test_a_row_becomes_a_payment_with_its_ids_as_given() -> None:
    fact = WORLD.row_to_fact(ROW, "some-file")
    assert (fact.type, fact.subject, fact.event_ms) == ("payment.authorisation_requested", "596", START_MS)
    assert fact.data == {"transaction_id": "0007", "terminal_id": "3156", "amount_minor": 5716}


def test_the_label_stands_beside_the_fact_and_never_in_it() -> None:
    labelled = WORLD.row_to_fact({**ROW, "is_fraud": "1"}, None)
    plain = WORLD.row_to_fact(ROW, None)
    assert isinstance(labelled, LabelledPayment) and isinstance(plain, LabelledPayment)
    assert (labelled.is_fraud, plain.is_fraud) == (True, None)
    assert (labelled.data, labelled.identity) == (plain.data, plain.identity)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("1.005", 101), ("12.344999", 1234), ("4.35", 435), (" 7 ", 700)]
)
def test_amounts_become_minor_units_exactly(text: str, expected: int) -> None:
    assert minor_units(text) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "-1"}, {"amount": "nan"}, {"amount": "1e400"}, {"amount": "much"}, {"amount": ""},
        {"ts": "yesterday"}, {"ts": "1969-12-31 23:59:59"}, {"transaction_id": ""},
        {"transaction_id": "x" * 300}, {"terminal_id": "a\x00b"}, {"customer_id": " "},
        {"customer_id": "c" * 300}, {"is_fraud": "maybe"},
    ],
)  # fmt: skip
def test_a_row_is_refused_when_a_value_is_no_payment(change: dict[str, str]) -> None:
    with pytest.raises(BadInput) as refused:
        WORLD.row_to_fact({**ROW, **change}, None)
    assert refused.value.code == "row_invalid"


def test_a_row_is_refused_when_a_column_is_missing() -> None:
    with pytest.raises(BadInput, match="terminal_id"):
        WORLD.row_to_fact({k: v for k, v in ROW.items() if k != "terminal_id"}, None)


def test_a_generated_world_repeats_itself_when_its_seed_does() -> None:
    first, again, other = (list(WORLD.generate(seed=seed, count=2_000)) for seed in (3, 3, 4))
    assert first == again != other
    assert len(first) == 2_000
    assert all(a.event_ms <= b.event_ms for a, b in pairwise(first))


def test_generated_facts_fit_the_contract_and_hold_no_label() -> None:
    contract = load_domain("payments")
    facts = list(WORLD.generate(seed=1, count=5_000))
    labels = {fact.is_fraud for fact in facts if isinstance(fact, LabelledPayment)}
    assert labels == {True, False}
    for fact in facts:
        contract.facts[fact.type].model_validate(fact.data)


@pytest.mark.parametrize(
    ("is_fraud", "action", "kind", "soonest_d", "latest_d"),
    [
        (True, "allow_payment", ChargedBack.event_type, 2, 7),
        (True, "review_payment", ChargedBack.event_type, 2, 7),
        (True, "block_payment", None, 0, 0),
        (False, "review_payment", ConfirmedGenuine.event_type, 1, 2),
        (None, "review_payment", None, 0, 0),
    ],
)
def test_what_is_known_later_depends_on_truth_and_decision(
    is_fraud: bool | None, action: str, kind: str | None, soonest_d: int, latest_d: int
) -> None:
    given = payment("t1", START_MS, is_fraud)
    later = played([given], lambda _: ("allow", action))[1:]
    assert [fact.type for fact in later] == ([] if kind is None else [kind])
    for fact in later:
        assert fact.subject == given.subject
        assert soonest_d * DAY_MS <= fact.event_ms - START_MS <= latest_d * DAY_MS
        data: dict[str, Any] = {**given.data, "payment_ms": START_MS}
        assert load_domain("payments").facts[fact.type].model_validate(fact.data).model_dump(
            exclude_none=True
        ) == data


def test_a_block_that_was_denied_is_a_payment_that_passed() -> None:
    later = played([payment("t1", START_MS, True)], lambda _: ("deny", "block_payment"))[1:]
    assert [fact.type for fact in later] == [ChargedBack.event_type]


def test_late_outcomes_stand_at_their_event_time_between_the_payments() -> None:
    facts = [payment(f"t{n}", START_MS + n * DAY_MS // 4, n % 3 == 0) for n in range(80)]
    all_facts = played(facts, lambda _: ("allow", "review_payment"))
    assert len(all_facts) == 160
    assert all(a.event_ms <= b.event_ms for a, b in pairwise(all_facts))


def test_a_decision_is_asked_for_once_and_late_and_after_a_flush() -> None:
    facts = [payment(f"t{n}", START_MS + n * DAY_MS // 4, False) for n in range(40)]
    now_ms, asked, is_flushed = 0, dict[str, int](), False

    def decide(transaction_id: str) -> tuple[str, str]:
        assert is_flushed and transaction_id not in asked
        asked[transaction_id] = now_ms
        return "allow", "allow_payment"

    for fact in WORLD.played(iter(facts), decide):
        is_flushed = fact is None
        if isinstance(fact, LabelledPayment):
            now_ms = fact.event_ms
    assert len(asked) == 40
    for n, fact in enumerate(facts[:30]):
        assert asked[f"t{n}"] >= fact.event_ms + DAY_MS // 4


def test_outcomes_are_not_told_when_they_are_due_later_than_wall_time() -> None:
    now_ms = int(time.time() * 1000)
    facts = [payment(f"t{n}", now_ms - 10 * DAY_MS + n * DAY_MS, True) for n in range(9)]
    told = [fact for fact in played(facts, lambda _: ("allow", "allow_payment")) if fact not in facts]
    assert {f"t{n}" for n in range(3)} <= {str(fact.data["transaction_id"]) for fact in told}
    assert len(told) < len(facts)
    assert all(fact.event_ms <= now_ms + 60_000 for fact in told)


def test_one_transaction_has_one_outcome_when_it_stands_twice_in_a_file() -> None:
    twice = [payment("t1", START_MS, True), payment("t1", START_MS + 1000, True)]
    assert len(played(twice, lambda _: None)) == 3


def test_the_world_stops_waiting_when_nobody_decides() -> None:
    asked: list[str] = []
    facts = [payment(f"t{n}", START_MS + n * DAY_MS, True) for n in range(50)]
    later = played(facts, lambda key: asked.append(key))
    assert len(asked) == PATIENCE
    assert len(later) == 100, "what nobody decided has passed"


def test_a_decision_answers_for_its_transaction() -> None:
    assert WORLD.decision_key({"parameters": {"transaction_id": "t1"}}) == "t1"
    assert WORLD.decision_key({"parameters": {}}) is None


def test_the_bank_answers_the_same_when_a_command_comes_twice() -> None:
    orders = [Order(f"c{n}", "block_payment", "a", {}, "2018-04-01T00:00:00Z") for n in range(2_000)]
    block = WORLD.handlers(1)["block_payment"]
    answers = [block(order).status for order in orders]
    assert answers == [block(order).status for order in orders]
    assert 0 < answers.count("failed") < 60
