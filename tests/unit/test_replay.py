"""Recorded decisions made again from themselves, outcomes and policies: no byte may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from ruamel.yaml import YAML

from ops.coverage import branches
from tests.unit.test_govern_truth_table import DEFAULTS, contract_of, policies_of
from udfs.policy import cases
from udfs.policy.audit import Bad, Line, entries
from udfs.policy.govern import MAX_HOLDS, Governor
from udfs.policy.policy_set import PolicySet
from udfs.policy.replay import Remade, replay
from udfs.policy.subject import SubjectState

TABLE: list[dict[str, Any]] = YAML(typ="safe").load(
    (Path(__file__).parent.parent / "data" / "govern_truth_table.yaml").read_text()
)


def remade(case: dict[str, Any], policies: PolicySet) -> list[Remade]:
    played = cases.play(contract_of(case), policies_of(case), case, DEFAULTS, max_hops=6)
    lines = [Line(0, n, b"m-1", d.decision) for n, d in enumerate(played.decided)]
    bad: list[Bad] = []
    governor = Governor(contract_of(case), max_hops=6, max_holds=case.get("max_holds", MAX_HOLDS))
    chain = entries(lines, bad)
    again = list(replay(governor, chain, lines, played.outcomes, played.answers, {-1: policies}))
    assert (bad, len(again)) == ([], len(lines)), "the entries of a case form a chain"
    return again


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case["case"])
def test_every_case_of_the_truth_table_comes_out_the_same_when_replayed(case: dict[str, Any]) -> None:
    assert all(again.is_same for again in remade(case, policies_of(case)))


CONTENDING: dict[str, Any] = {
    "policies": [
        {"id": "may", "scope": {"actions": ["activate_cooling"]}, "arbitration": {"conflicts_with": ["activate_cooling"], "window_s": 10}},
        {"id": "plan", "scope": {"actions": ["schedule_maintenance"]}},
    ]
}  # fmt: skip
PLAN = {"action": "schedule_maintenance", "parameters": {"priority": "normal"}}


def test_contests_are_made_again_from_the_decisions_about_their_members() -> None:
    case = {**CONTENDING, "given": [{}, {"at": 1, "confidence": 0.95}, {**PLAN, "at": 2}, {**PLAN, "at": 60}]}
    again = remade(case, policies_of(case))
    notes = [each.recorded["data"].get("what") for each in again]
    assert notes == ["contends", "contends", None, None, None, None]
    assert all(each.is_same and each.is_replayable for each in again)


def test_only_notes_of_a_contest_that_is_still_open_are_not_replayable_and_nothing_after_them_differs() -> None:
    case = {**CONTENDING, "given": [{}, {"wall": 10}, {"at": 100}, {"at": 101}, {**PLAN, "at": 102}]}
    again = remade(case, policies_of(case))
    assert [each.is_replayable for each in again] == [True, True, False, False, True]
    assert all(each.is_same for each in again)


SAID_BESIDE = {
    "reasoned": {
        "prompt_id": "advise", "prompt_version": 1, "prompt_sha256": "0" * 64, "reply_sha256": "1" * 64,
        "model": "scripted", "exchange_id": "call/1", "asked": 1, "tokens_in": 10, "tokens_out": 5, "cost": 0.25,
        "latency_ms": 900,
    },
    "fallback": "its budget was spent",
    "suspects": ["a", "b"],
    "evidence": ["fact-1"],
}  # fmt: skip


@pytest.mark.parametrize("said", [[name] for name in SAID_BESIDE] + [list(SAID_BESIDE)], ids="+".join)
def test_a_decision_about_what_a_language_model_proposed_comes_out_the_same(said: list[str]) -> None:
    case = {"policies": [{"id": "may"}]}
    governor = Governor(contract_of(case), max_hops=6)
    event = orjson.loads(cases.proposal("machines", "m-1", DEFAULTS, 0))
    event["data"] |= {name: SAID_BESIDE[name] for name in said}
    proposal = governor.read.proposal(b"m-1", orjson.dumps(event))
    decided = governor.decide(SubjectState(), proposal, policies_of(case))
    lines = [Line(0, n, b"m-1", each.decision) for n, each in enumerate(decided)]
    (again,) = replay(governor, entries(lines, []), lines, [], {}, {-1: policies_of(case)})
    assert again.is_same
    assert {name: again.recorded["data"][name] for name in said} == {name: SAID_BESIDE[name] for name in said}


def test_a_stricter_policy_shows_in_the_decisions_it_changes() -> None:
    case = {"policies": [{"id": "may"}], "given": [{"confidence": 0.9}, {"confidence": 0.99}]}
    stricter = policies_of({"policies": [{"id": "may", "when": "confidence > 0.95"}]})
    first, second = remade(case, stricter)
    assert not first.is_same
    assert first.remade["data"]["verdict"] == "deny"
    assert second.remade["data"]["verdict"] == second.recorded["data"]["verdict"] == "allow"


@pytest.mark.parametrize(
    ("when", "parts"),
    [
        ("confidence > 0.5", ["confidence > 0.5"]),
        ("a || b && c", ["a", "b && c"]),
        ("(a || b) && c", ["(a || b) && c"]),
        ('a == "x || y" || [1, 2].exists(i, i == 1 || i == 2)', ['a == "x || y"', "[1, 2].exists(i, i == 1 || i == 2)"]),
        ("a ? b : c || d", ["a ? b : c || d"]),
    ],
)  # fmt: skip
def test_a_condition_is_split_at_its_outermost_or(when: str, parts: list[str]) -> None:
    assert branches(when) == parts


def test_a_decision_names_its_inputs() -> None:
    case = {"policies": [{"id": "may"}], "given": [{}, {"outcome_of": 0, "at": 1}, {"at": 2}]}
    _, second = remade(case, policies_of(case))
    inputs = second.recorded["data"]["inputs"]
    assert (inputs["proposal_offset"], inputs["outcomes_offset"]) == (2, 1)
    assert orjson.dumps(second.recorded) == orjson.dumps(second.remade)
