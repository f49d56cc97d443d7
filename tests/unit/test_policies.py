"""Policies of a domain as it is set up: what they name must be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import PolicyRefused
from ops.policies import check_files

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
