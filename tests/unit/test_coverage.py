"""`policy diff` and `policy coverage`, of what cases of the truth table decided."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from contracts.policy import Policy
from ops import coverage, kafka, policies
from ops.policies import PublishedPolicy
from tests.kafka_stand_in import StandInBroker, StandInBulkReader
from tests.unit.test_govern_truth_table import CONTRACT, DEFAULTS, policies_of
from udfs.policy import cases
from udfs.policy.audit import Line


def recorded(monkeypatch: pytest.MonkeyPatch, case: dict[str, Any], *, times: int = 1) -> None:
    """The case's decisions are on the topic, so many times over, with an empty record; its policies are published."""
    in_force = policies_of(case)
    decided = cases.play(CONTRACT, in_force, case, DEFAULTS, max_hops=6).decided
    lines = [Line(0, number, b"m-1", each.decision) for number, each in enumerate(decided * times)]
    lines.append(Line(0, len(lines), b"m-1", None))
    known = {f"{p.policy_id}@{p.version}": PublishedPolicy(p, 0, "") for p in in_force._policies}
    monkeypatch.setattr(coverage, "lines", lambda *_: iter(lines))
    monkeypatch.setattr(coverage, "_policies_at", lambda *_: {-1: in_force})
    monkeypatch.setattr(policies, "published", lambda *_: known)


def diff() -> dict[str, Any]:
    return coverage.diff("a broker", "machines")


def changes() -> list[tuple[str, str, str, int]]:
    return [(each["before"], each["after"], each["policies"], each["count"]) for each in diff()["changes"]]


CONTEND = {"arbitration": {"conflicts_with": ["activate_cooling"], "window_s": 10}}
THREE = [{"confidence": 0.7}, {"at": 1, "confidence": 0.8}, {"wall": 10}, {"at": 60, "wall": 10}, {"wall": 70}]
ASKS = {"id": "wait", "verdict": "require_approval"}


@pytest.mark.parametrize("ends", [{"wall": 10}, {"at": 20, "hops": 7}], ids=["the clock", "event time"])
def test_what_was_decided_when_a_contest_ended_is_counted_once(monkeypatch: pytest.MonkeyPatch, ends: dict[str, Any]) -> None:
    case = {"policies": [{"id": "may", **CONTEND}], "given": [{}, {"at": 1}, ends]}
    recorded(monkeypatch, case, times=2)
    told = coverage.coverage("a broker", "machines")
    assert told["policies"][0]["true"] == told["decisions"] == 2 + ("at" in ends)


def test_what_people_and_overrides_led_to_is_no_decision_about_another_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        {}, {"answer_to": 0, "answer": "approve", "by": "ada"},
        {"override": "activate_cooling", "by": "alan", "parameters": {"duration_s": 60}, "reason": "smoke"},
    ]  # fmt: skip
    recorded(monkeypatch, {"policies": [{**ASKS, "approval": {"roles": ["approver"], "within_s": 60}}], "given": given})
    assert coverage.coverage("a broker", "machines")["decisions"] == 1


# what it is -> policies, proposals, what diff tells (before, after, by, how many)
DIFFS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, str, str, int]]]] = {
    "a shadow would have changed it": (
        [{"id": "may"}, {"id": "may", "version": 2, "status": "shadow", "when": "confidence > 0.95"}],
        [{}, {"confidence": 0.99}],
        [("allow allowed_by_policy", "deny no_policy_matched", "none matched", 1)],
    ),
    "a canary has changed it": (
        [{"id": "may"}, {"id": "never", "verdict": "deny", "status": "canary", "canary_percent": 100, "when": "confidence < 0.95"}],
        [{}, {"confidence": 0.99}],
        [("allow allowed_by_policy", "deny forbidden_by_policy", "may@1, never@1", 1)],
    ),
    "a shadow asks more people of other roles": (
        [
            {**ASKS, "approval": {"roles": ["approver"], "within_s": 60}},
            {**ASKS, "version": 2, "status": "shadow", "approval": {"roles": ["underwriter", "head"], "approvers": 2, "within_s": 60}},
        ],
        [{}],
        [("hold approval_required: 1 of approver", "hold approval_required: 2 of head, underwriter", "wait@2", 1)],
    ),
    "a shadow asks the same people in another way": (
        [{"id": "wait", "verdict": "hold"}, {"id": "wait", "version": 2, "status": "shadow", "verdict": "hold", "when": "confidence > 0.5"}],
        [{}],
        [],
    ),
    "a shadow would have denied what lost its contest, and let the rest contend": (
        [{"id": "may", **CONTEND}, {"id": "never", "verdict": "deny", "status": "shadow", "when": "confidence < 0.75"}],
        THREE,
        [("deny lost_arbitration", "deny forbidden_by_policy", "may@1, never@1", 1)],
    ),
    "a shadow says the same of what lost its contest": (
        [{"id": "may", **CONTEND}, {"id": "never", "verdict": "deny", "status": "shadow", "when": "confidence < 0.1"}],
        THREE,
        [],
    ),
    "a shadow says the same of what limits over all subjects denied": (
        [
            {"id": "may", "limits": [{"per": [], "max_count": 1, "within_s": 60}]},
            {"id": "never", "verdict": "deny", "status": "shadow", "when": "confidence < 0.1"},
        ],
        [{}, {}],
        [],
    ),
    "a shadow would have done what was stale": (
        [{"id": "may", "freshness_s": 60}, {"id": "may", "version": 2, "status": "shadow"}],
        [{"at": 100, "features_at": 0}],
        [("deny stale_features", "allow allowed_by_policy", "may@2", 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFS)
def test_diff_tells_what_other_versions_change_from_active_to_candidate(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    in_force, given, expected = DIFFS[name]
    recorded(monkeypatch, {"policies": in_force, "given": given})
    assert changes() == expected


def test_diff_tells_apart_what_a_canary_decided_and_what_a_shadow_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    decided = []
    for status, name in (("canary", "canary has"), ("shadow", "shadow would have")):
        in_force, given, _ = DIFFS[f"a {name} changed it"]
        recorded(monkeypatch, {"policies": in_force, "given": given})
        (change,) = diff()["changes"]
        decided.append((status, change["is_decided"]))
    assert decided == [("canary", True), ("shadow", False)]


def test_the_policies_in_force_at_a_decision_are_those_read_up_to_then(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = StandInBroker()
    monkeypatch.setattr(kafka, "BulkReader", lambda _servers, **_options: StandInBulkReader(broker))
    (may,) = policies_of({"policies": [{"id": "may"}]})._policies
    for status in ("shadow", "canary"):
        data = may.model_copy(update={"status": status, "canary_percent": 100.0}).model_dump(mode="json")
        broker.put("machines.policies", b"may/1", orjson.dumps({"type": Policy.event_type, "data": data}))
    case = {"policies": [{"id": "may"}], "given": [{}]}
    (decided,) = cases.play(CONTRACT, policies_of(case), case, DEFAULTS, max_hops=6).decided
    decision, policies_at = orjson.loads(decided.decision), coverage._policies_at("a broker", "machines")
    told = []
    for offset in (-1, 0, 1):
        decision["data"]["inputs"]["policies_offset"] = offset
        told.append(coverage._canary_decided(decision, policies_at))
    assert told == [False, False, True]
