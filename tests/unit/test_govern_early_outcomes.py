"""After a crash an outcome may be read before its proposal is decided again: it counts once its command is known."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from contracts.decision import Grant
from contracts.envelope import derive_id
from contracts.limit_claim import Settlement
from tests.unit.test_govern_truth_table import CONTRACT, DEFAULTS, START_MS, policies_of
from udfs.policy import cases
from udfs.policy.audit import Line, entries
from udfs.policy.govern import Governor, NeedsGrant
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Incoming, Reported
from udfs.policy.replay import replay
from udfs.policy.subject import MAX_EARLY, SubjectState
from udfs.policy.writing import STAGE, Decided, Place

GOVERNOR = Governor(CONTRACT, max_hops=6)
WAITS = {"id": "may", "outcome_within_s": 100, "cooldown_s": 60}


def proposed(ordinal: int, **given: Any) -> Incoming:
    return GOVERNOR.read.proposal(b"m-1", cases.proposal("machines", "m-1", {**DEFAULTS, **given}, ordinal))


def outcome_of(proposal: Incoming, *, has_failed: bool = False, at: float = 0, cost: float | None = None) -> Reported:
    """The outcome of the command that is going to be written for `proposal`."""
    command_id = derive_id(derive_id(proposal.id, STAGE, "decision"), STAGE, "command")
    return Reported("m-1", command_id, has_failed, START_MS + int(at * 1000), cost)


def decided(state: SubjectState, policies: PolicySet, *proposals: Incoming) -> list[Decided]:
    """What comes of the proposals; the state passes through its JSON first."""
    state = SubjectState.from_json(state.to_json())
    return [each for number, one in enumerate(proposals) for each in GOVERNOR.decide(state, one, policies, Place(0, number))]


def reasons(found: list[Decided]) -> list[str]:
    return [orjson.loads(each.decision)["data"]["reason"] for each in found]


@pytest.mark.parametrize(
    ("policy", "outcome", "reason"),
    [
        (WAITS, {}, "allowed_by_policy"),
        (WAITS, {"has_failed": True, "at": 5}, "cooling_down"),
        ({"id": "may", "limits": [{"max_total": 100, "amount": "parameter_duration_s", "within_s": 600}]}, {"cost": 10}, "allowed_by_policy"),
        ({"id": "may", "limits": [{"max_total": 100, "amount": "parameter_duration_s", "within_s": 600}]}, {"cost": 50}, "budget_limit"),
    ],
    ids=["it flies no more", "it cools down", "it cost little", "it cost much"],
)  # fmt: skip
def test_the_next_proposal_is_decided_as_after_the_outcome_when_that_came_before_its_command(
    policy: dict[str, Any], outcome: dict[str, Any], reason: str
) -> None:
    first, second = proposed(0), proposed(1, at=10)
    state = SubjectState()
    state.report(outcome_of(first, **outcome), 0)
    found = decided(state, policies_of({"policies": [policy]}), first, second)
    assert reasons(found) == ["allowed_by_policy", reason]


def test_every_byte_comes_out_the_same_when_such_a_log_is_replayed() -> None:
    policies = policies_of({"policies": [WAITS]})
    first, second, third = proposed(0), proposed(1, at=10), proposed(2, at=65)
    reported = outcome_of(first, has_failed=True, at=5)
    state = SubjectState()
    state.report(reported, 7)
    found = decided(state, policies, first, second, third)
    assert reasons(found) == ["allowed_by_policy", "cooling_down", "allowed_by_policy"]
    lines = [Line(0, n, b"m-1", each.decision) for n, each in enumerate(found)]
    again = list(replay(GOVERNOR, entries(lines, []), lines, [(7, reported)], {}, {-1: policies}))
    assert [each.is_same for each in again] == [True] * 3


def test_the_claim_is_settled_with_the_command_when_its_outcome_came_before() -> None:
    policies = policies_of({"policies": [{**WAITS, "circuit": {"failures": 1, "within_s": 60, "open_s": 60}}]})
    state, first = SubjectState(), proposed(0)
    state.report(outcome_of(first, has_failed=True, at=5, cost=2), 0)
    with pytest.raises(NeedsGrant) as needed:
        decided(state, policies, first)
    claim_id = needed.value.claim.claim_id
    place = Place(grants={claim_id: Grant(claim_id=claim_id, is_granted=True)})
    (one,) = GOVERNOR.decide(state, first, policies, place)
    assert one.settlement == Settlement(claim_id=claim_id, what="failed", at="2014-01-01T00:00:05Z", cost=2)
    assert (state.claims, state.in_flight, state.early) == ({}, {}, {})


def test_only_the_last_are_kept_when_many_outcomes_have_no_command() -> None:
    state = SubjectState()
    for number in range(MAX_EARLY + 2):
        state.report(outcome_of(proposed(number)), number)
    assert len(SubjectState.from_json(state.to_json()).early) == MAX_EARLY
    again = decided(state, policies_of({"policies": [WAITS]}), proposed(0), proposed(MAX_EARLY + 2, at=10))
    assert reasons(again) == ["allowed_by_policy", "in_flight"], "the oldest is forgotten"


def test_state_without_early_outcomes_is_read_when_it_is_of_this_version() -> None:
    before = '[60000,{},{},{},[],1,null,-1,{},{},{},"",0,0,{},[],{},false,2]'
    assert SubjectState.from_json(f"v2:{before}").early == {}
