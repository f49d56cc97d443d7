"""Policies that move between a proposal and what comes of it: contests that are open, and costs of what was allowed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.test_govern_truth_table import CONTRACT, DEFAULTS, START_MS, policies_of
from udfs.policy import cases
from udfs.policy.audit import Line, entries
from udfs.policy.govern import Governor
from udfs.policy.replay import replay
from udfs.policy.subject import SubjectState
from udfs.policy.writing import Place

GOVERNOR = Governor(CONTRACT, max_hops=6)
COOL: dict[str, Any] = {"action": "activate_cooling"}
PLAN: dict[str, Any] = {"action": "schedule_maintenance", "parameters": {"priority": "normal"}}


def of(action: str, *conflicts_with: str, window_s: int = 10, **terms: Any) -> dict[str, Any]:
    """A policy about one action, that names what it conflicts with."""
    arbitration = {"arbitration": {"conflicts_with": conflicts_with, "window_s": window_s, **terms}} if conflicts_with else {}
    return {"id": action.replace("_", "-"), "scope": {"actions": [action]}, **arbitration}


def closed(before: list[dict[str, Any]], after: list[dict[str, Any]], *given: dict[str, Any]) -> list[str]:
    """The reasons of what waited under the policies `before` when its windows end under those of `after`."""
    state, noted, done = SubjectState(), [], []
    policies = {0: policies_of({"policies": before}), 1: policies_of({"policies": after})}
    for number, one in enumerate(given):
        proposal = GOVERNOR.read.proposal(b"m-1", cases.proposal("machines", "m-1", {**DEFAULTS, **one}, number))
        noted += GOVERNOR.decide(state, proposal, policies[0], Place(0, number, 0, wall_ms=START_MS))
        state = SubjectState.from_json(state.to_json())
    for second in (10, 20, 30):
        place = Place(policies_offset=1, trigger="clock", wall_ms=START_MS + second * 1000)
        done += GOVERNOR.tick(state, policies[1], place)
        state = SubjectState.from_json(state.to_json())
    assert state.contests == []
    lines = [Line(0, number, b"m-1", each.decision) for number, each in enumerate([*noted, *done])]
    assert all(each.is_same for each in replay(GOVERNOR, entries(lines, []), lines, [], {}, policies))
    return [orjson.loads(each.decision)["data"]["reason"] for each in done]


MOVES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]], list[str]]] = {
    "what did not conflict in one contest does now": (
        [of("activate_cooling", "activate_cooling", "schedule_maintenance", resource="parameter_duration_s", priority=5), of("schedule_maintenance")],
        [of("activate_cooling", "activate_cooling", "schedule_maintenance", priority=5), of("schedule_maintenance")],
        [{"parameters": {"duration_s": 1}}, {"parameters": {"duration_s": 2}}, PLAN],
        ["allowed_by_policy", "lost_arbitration", "lost_arbitration"],
    ),
    "what waited apart conflicts now": (
        [of("activate_cooling", "activate_cooling"), of("schedule_maintenance", "schedule_maintenance")],
        [of("activate_cooling", "schedule_maintenance"), of("schedule_maintenance", "schedule_maintenance")],
        [COOL, PLAN],
        ["allowed_by_policy", "lost_arbitration"],
    ),
    "what waited apart and longer conflicts now": (
        [of("activate_cooling", "activate_cooling"), of("schedule_maintenance", "schedule_maintenance", window_s=30)],
        [of("activate_cooling", "schedule_maintenance"), of("schedule_maintenance")],
        [COOL, PLAN],
        ["allowed_by_policy", "lost_arbitration"],
    ),
    "what conflicted does not now": (
        [of("activate_cooling", "schedule_maintenance"), of("schedule_maintenance")],
        [of("activate_cooling", "activate_cooling"), of("schedule_maintenance", "schedule_maintenance")],
        [COOL, PLAN],
        ["allowed_by_policy", "allowed_by_policy"],
    ),
    "what conflicted still does where policies say nothing of it now": (
        [of("activate_cooling", "schedule_maintenance"), of("schedule_maintenance")],
        [of("activate_cooling"), of("schedule_maintenance")],
        [COOL, PLAN],
        ["allowed_by_policy", "lost_arbitration"],
    ),
    "what waited apart still does": (
        [of("activate_cooling", "activate_cooling"), of("schedule_maintenance", "schedule_maintenance", window_s=30)],
        [of("activate_cooling", "activate_cooling"), of("schedule_maintenance", "schedule_maintenance", window_s=30)],
        [COOL, PLAN],
        ["allowed_by_policy", "allowed_by_policy"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_contest_is_decided_by_what_conflicts_when_it_closes(name: str) -> None:
    before, after, given, reasons = MOVES[name]
    assert closed(before, after, *given) == reasons


# What is remembered of one that was allowed, its outcome's cost included -> what a budget of 100 has left for the next.
REMEMBERED: dict[str, tuple[dict[str, Any], float | None, int]] = {
    "no cost came": ({"parameter_duration_s": 60}, None, 40),
    "of the amount that is budgeted": ({"parameter_duration_s": 60}, 10.0, 90),
    "of another amount, before any budget of this": ({"feature_jump": 1.0}, 70.0, 100),
    "of nothing that was budgeted": ({}, 70.0, 100),
    "marked as of another": ({"feature_jump": 1.0, "parameter_duration_s": 60, "cost_of": "feature_jump"}, 10.0, 40),
    "marked as of none": ({"parameter_duration_s": 60, "cost_of": ""}, 10.0, 40),
    "marked as of this": ({"feature_jump": 1.0, "parameter_duration_s": 60, "cost_of": "parameter_duration_s"}, 10.0, 90),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEMBERED)
def test_a_budget_published_later_takes_a_cost_only_when_it_is_of_its_amount(name: str) -> None:
    values, cost, left = REMEMBERED[name]
    policies = policies_of(
        {"policies": [{"id": "may", "limits": [{"max_total": 100, "amount": "parameter_duration_s", "within_s": 1000}]}]}
    )
    reasons = []
    for asked in (left, left + 1):
        state = SubjectState(clock_ms=START_MS - 1000)
        state.allowed["activate_cooling"] = [[START_MS - 1000, "a", values, "a-command", cost]]
        event = cases.proposal("machines", "m-1", {**DEFAULTS, "parameters": {"duration_s": asked}}, 0)
        (decided,) = GOVERNOR.decide(state, GOVERNOR.read.proposal(b"m-1", event), policies)
        reasons.append(orjson.loads(decided.decision)["data"]["reason"])
    assert reasons == ["allowed_by_policy", "budget_limit"]


def test_a_cost_is_of_what_was_budgeted_when_a_budget_of_something_else_is_published_later() -> None:
    first = {"id": "may", "limits": [{"max_total": 100, "amount": "parameter_duration_s", "within_s": 1000}]}
    later = {"id": "jump", "limits": [{"max_total": 5, "amount": "feature_jump", "within_s": 1000}]}
    state, reasons = SubjectState(), []
    for number, policies in enumerate(([first], [first, later], [first, later])):
        given = {**DEFAULTS, "features": {"jump": 2.0}, "parameters": {"duration_s": 40}, "at": number}
        proposal = GOVERNOR.read.proposal(b"m-1", cases.proposal("machines", "m-1", given, number))
        (decided,) = GOVERNOR.decide(state, proposal, policies_of({"policies": policies}))
        data = orjson.loads(decided.decision)["data"]
        reasons.append(data["reason"])
        if data["command_id"]:
            state.settle(data["command_id"], False, START_MS, 30)
    # 30 of it took the first; the second, of both, keeps its 40: 70 + 40 is too much, 0 + 2 + 2 would not be.
    assert reasons == ["allowed_by_policy", "allowed_by_policy", "budget_limit"]
