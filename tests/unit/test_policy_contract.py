"""The shape of policies and switches."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from contracts.policy import Policy, PolicySwitch


def a_policy(**changes: object) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "policy_id": "cool-when-hot",
        "version": 1,
        "status": "active",
        "when": "true",
        "verdict": "allow",
        "reason": "hot",
    }
    return fields | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_id": "Cool When Hot"},
        {"policy_id": "a" * 65},
        {"version": 0},
        {"version": "1"},
        {"version": 2**31},
        {"status": "on"},
        {"verdict": "maybe"},
        {"when": ""},
        {"when": "x" * 4097},
        {"reason": ""},
        {"effective_from": "yesterday"},
        {"freshness_s": 0},
        {"freshness_s": -1.0},
        {"scope": {"action": ["a"]}},
        {"scope": {"actions": ["A B"]}},
        {"limits": [{"max_count": 0, "within_s": 60}]},
        {"limits": [{"max_count": 1, "within_s": 0}]},
        {"limits": [{"max_count": 1, "within_s": 60, "per": ["subject", "galaxy"]}]},
        {"limits": [{"max_count": 1, "within_s": 60, "per": ["hops"]}]},
        {"limits": [{"max_count": 1}]},
        {"limits": [{"max_count": 1, "max_total": 5.0, "within_s": 60}]},
        {"limits": [{"max_total": 5.0, "within_s": 60}]},
        {"limits": [{"max_in_flight": 1, "within_s": 60}], "outcome_within_s": 60},
        {"limits": [{"max_in_flight": 1}]},
        {"limits": [{"max_in_flight": 1, "per": ["subject", "agent"]}], "outcome_within_s": 60},
        {"cooldown_s": 5},
        {"cooldown_s": 5, "outcome_within_s": 5, "verdict": "deny"},
        {"obligations": {"dry_run": True}, "verdict": "deny"},
        {"verdict": "allow", "approval": {"roles": ["approver"], "within_s": 60}},
        {"verdict": "hold", "approval": {"roles": ["approver"]}},
        {"verdict": "hold", "approval": {"roles": [], "within_s": 60}},
        {"verdict": "hold", "approval": {"roles": ["approver"], "within_s": 60, "within_working_days": 1}},
        {"verdict": "hold", "approval": {"roles": ["approver"], "within_s": 60, "not_by": ["agent"]}},
        {"canary_percent": 0.0},
        {"canary_percent": 101.0},
        {"limits": [{"max_count": 1, "within_s": 60}], "verdict": "deny"},
        {"examples": [{"given": {}, "expect": "perhaps"}]},
        {"examples": [{"given": {"x y": 1}, "expect": True}]},
        {"examples": [{"given": {"x": [1]}, "expect": True}]},
        {"variables": {"x": "int; drop"}},
        {"priority": 1},
    ],
    ids=str,
)
def test_a_policy_is_refused_when_a_field_is_out_of_bounds(
    changes: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate_json(json.dumps(a_policy(**changes)))


def test_a_policy_comes_back_equal_when_written_and_read() -> None:
    policy = Policy.model_validate_json(
        json.dumps(
            a_policy(
                effective_from="2013-12-02T00:00:00Z",
                scope={
                    "actions": ["activate_cooling"],
                    "situations": ["machines.reading_scored"],
                },
                limits=[{"max_count": 2, "within_s": 3600}],
                freshness_s=600,
                examples=[{"given": {"x": 1, "y": None}, "expect": "error"}],
                variables={"x": "int", "m": "map(string, list(dyn))"},
            )
        )
    )
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


def test_a_policy_cannot_change_when_it_is_made() -> None:
    policy = Policy.model_validate_json(json.dumps(a_policy()))
    with pytest.raises(ValidationError):
        setattr(policy, "version", 2)  # noqa: B010  # mypy knows it is frozen; this asks the model


def test_a_switch_covers_the_domain_when_it_names_nobody() -> None:
    switch = PolicySwitch(paused=True, reason="drill", author="kim")
    assert (switch.agent, switch.action) == (None, None)
