"""People and `govern` on the real cluster: answers on the topic, deadlines on the wall clock, forgeries."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from contracts.envelope import parse_time_ms
from contracts.policy import Policy
from ops import approvals
from tests.loop import Loop, proposal

START_MS = parse_time_ms("2014-07-01T00:00:00Z")
DAY_MS = 86_400_000


@contextmanager
def asking(loop: Loop, subject: str, *, limits: list[dict[str, Any]] | None = None, **approval: Any) -> Iterator[None]:
    """Every proposal about `subject` needs approval; in force when entered."""
    probe = f"{subject}-probe"
    policy = Policy.model_validate_json(
        orjson.dumps(
            {
                "policy_id": f"ask-{subject}", "version": 1, "status": "active",
                "when": f'subject == "{subject}" || subject == "{probe}"', "verdict": "require_approval",
                "reason": "a test", "variables": {"subject": "string"}, "limits": limits or [],
                "approval": {"roles": ["approver"], "within_s": 3600, **approval},
            }
        )
    )  # fmt: skip

    def put(status: str) -> None:
        data = policy.model_copy(update={"status": status}).model_dump(mode="json")
        loop.publish("policies", Policy.event_type, f"{policy.policy_id}/1", data)

    days = itertools.count()

    def is_in_force() -> bool:
        proposal_id, event = proposal(probe, event_ms=START_MS + next(days) * 2 * DAY_MS)
        loop.send("proposals", (probe, event))
        return bool(loop.decision_of(proposal_id, probe)["data"]["verdict"] == "hold")

    put("active")
    try:
        loop.wait_for(f"policy {policy.policy_id} in force", is_in_force)
        yield
    finally:
        put("retired")


def held(loop: Loop, subject: str, day: int = 0) -> approvals.Request:
    """A proposal about `subject`, held."""
    proposal_id, event = proposal(subject, event_ms=START_MS + day * DAY_MS)
    loop.send("proposals", (subject, event))
    decision = loop.decision_of(proposal_id, subject)
    assert decision["data"]["reason"] == "approval_required"
    return approvals.Request(decision, decision["data"]["approval"]["requires"])


def say(loop: Loop, request: approvals.Request, person: str, answer: str = "approve") -> list[dict[str, Any]]:
    """What `govern` made of a person's answer."""
    signer = approvals.Signer.of(loop.home, loop.domain, person, None)
    now_ms = int(time.time() * 1000)
    found = approvals.answer(loop.bootstrap, loop.domain, request, signer, answer, now_ms=now_ms)
    return [entry["data"] for entry in found]


def test_a_held_action_is_commanded_when_two_people_approve_it_on_the_command_line(
    machines: Loop, flyball: Callable[..., Any]
) -> None:
    with asking(machines, "asked-1", approvers=2):
        request = held(machines, "asked-1")
        listed = orjson.loads(flyball("approvals", "list", "machines", "--json").out)
        assert [row["state"] for row in listed if row["id"] == request.id] == ["waiting"]
        assert flyball("approve", "machines", request.id, "--as", "ada").out.startswith("counted")
        again = flyball("approve", "machines", request.id, "--as", "ada")
        assert again.code == 1 and "ada has approved it already" in again.out
        said = flyball("approve", "machines", request.id, "--as", "grace", "--reason", "it is hot")
        assert said.code == 0 and said.out.startswith("allow approved_by_people"), said
        (command,) = machines.wait_for("the command", lambda: machines.events("commands", "asked-1", agent="test-agent"))
        assert command["data"]["proposal_id"] == request.event["data"]["proposal_id"]
        tree = flyball("trace", request.id).out
        assert "grace: approve it is hot" in tree and str(command["id"])[:12] in tree


def test_ten_holds_released_together_do_not_pass_a_limit_of_one(machines: Loop) -> None:
    with asking(machines, "asked-10", limits=[{"max_count": 1, "within_s": 86_400}]):
        requests = [held(machines, "asked-10") if n == 0 else _same_day(machines, n) for n in range(10)]
        ends = [say(machines, request, "ada")[-1] for request in requests]
    assert [end["reason"] for end in ends].count("approved_by_people") == 1
    assert [end["reason"] for end in ends].count("rate_limit") == 9
    assert len(machines.events("commands", "asked-10")) == 1


def _same_day(loop: Loop, number: int) -> approvals.Request:
    proposal_id, event = proposal("asked-10", event_ms=START_MS + number, name=str(number))
    loop.send("proposals", ("asked-10", event))
    decision = loop.decision_of(proposal_id, "asked-10")
    return approvals.Request(decision, decision["data"]["approval"]["requires"])


def test_a_hold_expires_to_deny_on_the_wall_clock_when_nobody_answers(machines: Loop) -> None:
    escalate = [{"roles": ["director"], "within_s": 1}]
    with asking(machines, "asked-2", within_s=1, escalate=escalate):
        request = held(machines, "asked-2")
        (noted,) = machines.wait_for(
            "the escalation", lambda: machines.events("decisions", "asked-2", what="escalated")
        )
        assert noted["data"]["requires"][0]["roles"] == ["director"]
        (end,) = machines.wait_for(
            "the end", lambda: machines.events("decisions", "asked-2", reason="approval_expired")
        )
        assert (end["data"]["verdict"], end["causationid"]) == ("deny", request.id)
        (late,) = say(machines, request, "edsger")
        assert (late["what"], late["explanation"]) == ("refused", f"{request.id} ended already: approval_expired")


def test_a_forged_or_copied_answer_counts_for_nothing(machines: Loop) -> None:
    with asking(machines, "asked-3", approvers=2):
        request = held(machines, "asked-3")
        assert say(machines, request, "ada")[0]["what"] == "counted"
        (copy,) = [r.value for r in machines.records("approvals", "asked-3")] or machines.wait_for(
            "the answer", lambda: [r.value for r in machines.records("approvals", "asked-3")]
        )
        assert copy is not None
        forged = copy.replace(b'"person":"ada"', b'"person":"grace"')
        (place,) = machines.send("approvals", ("asked-3", forged))
        assert machines.dead_letter(place)["data"]["cause"] == "signature_invalid"
        machines.send("approvals", ("asked-3", copy))
        (noted,) = machines.wait_for(
            "what came of the copy", lambda: machines.events("decisions", "asked-3", what="refused")
        )
        assert noted["data"]["explanation"] == "ada has approved it already"
        assert machines.events("commands", "asked-3") == []


def test_a_person_commands_directly_and_it_stands_out_in_the_audit(
    machines: Loop, flyball: Callable[..., Any]
) -> None:
    first_id, first = proposal("asked-4", event_ms=START_MS, confidence=0.1)  # its clock is not the wall's
    machines.send("proposals", ("asked-4", first))
    machines.decision_of(first_id, "asked-4")
    told = ("override", "machines", "asked-4", "activate_cooling", "--set", "duration_s=30", "--reason", "smoke")
    refused = flyball(*told, "--as", "ada")
    assert refused.code == 1 and refused.out.startswith("deny override_not_permitted"), refused
    done = flyball(*told, "--as", "grace")
    assert done.code == 0 and done.out.startswith("allow override"), done
    (command,) = machines.wait_for("the command", lambda: machines.events("commands", "asked-4", agent="person"))
    assert (command["data"]["agent"], command["data"]["parameters"]) == ("person", {"duration_s": 30})
    story = flyball("audit", "export", "machines", "--subject", "asked-4").out
    assert "OVERRIDE by grace: smoke" in story
