"""Policies of a domain as it is set up: what they name must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.errors import PolicyRefused
from contracts.policy import Policy
from ops import versions
from ops.policies import check_files, publish

POLICY = """\
policy_id: cooling
version: 7
status: draft
scope: {actions: [activate_cooling]}
when: confidence >= 0.5
verdict: %s
reason: a test
examples: [{given: {confidence: 0.9}, expect: true}, {given: {confidence: 0.1}, expect: false}]
"""


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ("{roles: [caretaker], within_s: 60}", "at least 1 with a role of caretaker"),
        ("{roles: [director], approvers: 2, within_s: 60}", "at least 2 with a role of director"),
        ("{roles: [approver], within_s: 60, escalate: [{roles: [caretaker], within_s: 60}]}", "a role of caretaker"),
    ],
)
def test_a_policy_is_refused_when_too_few_have_the_role_it_asks(tmp_path: Path, terms: str, told: str) -> None:
    file = tmp_path / "cooling.yaml"
    file.write_text(POLICY % f"require_approval\napproval: {terms}")
    with pytest.raises(PolicyRefused, match=told) as refused:
        check_files("machines", [file])
    assert "people.yaml" in str(refused.value)


def test_one_person_may_be_asked_when_fewer_approved_in_time(tmp_path: Path) -> None:
    file = tmp_path / "cooling.yaml"
    terms = "{roles: [approver], approvers: 2, within_s: 60, escalate: [{roles: [director], within_s: 60}]}"
    file.write_text(POLICY % f"require_approval\napproval: {terms}")
    assert [policy.policy_id for policy in check_files("machines", [file])] == ["cooling"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"moved_because": "x" * 301}, "moved_because of no@1 .* at most 300 characters"),
        ({"author": "x" * 129}, "author of no@1 .* at most 128 characters"),
        ({"canary_percent": 0.0}, "canary_percent of no@1 .* greater than 0"),
        ({"current_by": "age_s"}, "no@1 .* current_by: expected feature_"),
    ],
)
def test_nothing_is_published_when_govern_would_refuse_one_of_it(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], told: str
) -> None:
    written: list[object] = []
    monkeypatch.setattr(versions, "events", lambda *_: iter(()))
    monkeypatch.setattr(versions, "write", lambda *given, **_: written.extend(given[-1]))
    good = Policy(policy_id="no", version=1, status="active", when="true", verdict="deny", reason="r")
    with pytest.raises(PolicyRefused, match=told):
        publish("nowhere:1", "machines", [good.model_copy(update={"policy_id": "so"}), good.model_copy(update=changed)], now_ms=0)
    assert written == []
    assert publish("nowhere:1", "machines", [good.model_copy(update={"author": "ada"})], now_ms=0) == ["no@1"]
    assert len(written) == 1
