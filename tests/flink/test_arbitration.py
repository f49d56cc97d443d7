"""Proposals that conflict, on the real cluster: they wait for each other, the wall clock ends the wait."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest

from contracts.envelope import parse_time_ms
from contracts.policy import Policy
from tests.loop import Loop, proposal

START_MS = parse_time_ms("2014-08-01T00:00:00Z")
DAY_MS = 86_400_000


@pytest.fixture
def contested(machines: Loop) -> Iterator[str]:
    """A subject whose cooling and maintenance exclude each other, maintenance first."""
    subject = "contested-1"
    policy = Policy.model_validate_json(
        orjson.dumps(
            {
                "policy_id": "contested", "version": 1, "status": "active", "when": f'subject == "{subject}"',
                "verdict": "allow", "reason": "a test", "variables": {"subject": "string"},
                "arbitration": {
                    "conflicts_with": ["activate_cooling", "schedule_maintenance"], "window_s": 1.5, "priority": 1,
                },
            }
        )
    )  # fmt: skip

    def put(status: str) -> None:
        data = policy.model_copy(update={"status": status}).model_dump(mode="json")
        machines.publish("policies", Policy.event_type, "contested/1", data)

    put("active")
    yield subject
    put("retired")


def test_one_of_two_that_conflict_wins_and_the_other_names_it(machines: Loop, contested: str) -> None:
    days = iter(range(0, 10_000, 2))

    def waits() -> str:
        proposal_id, event = proposal(contested, event_ms=START_MS + next(days) * DAY_MS, confidence=0.95)
        machines.send("proposals", (contested, event))
        said = machines.wait_for(
            "a note or a decision", lambda: machines.events("decisions", contested, about=proposal_id)
            or machines.events("decisions", contested, proposal_id=proposal_id),
        )  # fmt: skip
        return proposal_id if said[0]["data"].get("what") else ""

    alone = machines.wait_for("the policy in force", waits)
    assert machines.decision_of(alone, contested)["data"]["verdict"] == "allow", "it contended with nobody"
    at_ms = START_MS + next(days) * DAY_MS
    weak_id, weak = proposal(contested, event_ms=at_ms, confidence=0.91)
    strong_id, strong = proposal(
        contested, event_ms=at_ms + 500, confidence=0.97, agent="other-agent", action="schedule_maintenance",
        parameters={"priority": "normal"},
    )  # fmt: skip
    machines.send("proposals", (contested, weak), (contested, strong))
    won = machines.decision_of(strong_id, contested)["data"]
    lost = machines.decision_of(weak_id, contested)["data"]
    assert (won["verdict"], won["inputs"]["trigger"]) == ("allow", "clock")
    assert (lost["verdict"], lost["reason"], lost["lost_to"]) == ("deny", "lost_arbitration", strong_id)
