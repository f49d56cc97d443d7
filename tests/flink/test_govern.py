"""Job `govern` on the real cluster: policies and switches while it runs, repeated proposals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from contracts.command import Command
from contracts.decision import Decision
from contracts.envelope import derive_id, parse_time_ms
from contracts.policy import Policy, PolicySwitch
from tests.loop import Loop, proposal

START_MS = parse_time_ms("2014-05-01T00:00:00Z")
DAY_MS = 86_400_000


def a_policy(policy_id: str, subject: str, **changes: object) -> Policy:
    """A policy about one subject only, so that no other test meets it."""
    fields: dict[str, Any] = {
        "policy_id": policy_id, "version": 1, "status": "active", "when": f'subject == "{subject}"',
        "verdict": "deny", "reason": "a test", "variables": {"subject": "string"},
    }  # fmt: skip
    return Policy.model_validate(fields | changes)


class Asking:
    """Proposals about one subject, a day apart so that no limit of the shipped policies is reached."""

    def __init__(self, loop: Loop, subject: str, **fields: Any) -> None:
        self._loop, self.subject, self._fields = loop, subject, fields
        self._days = itertools.count()

    def decision(self) -> dict[str, Any]:
        """The data of the decision about one more proposal."""
        proposal_id, event = proposal(
            self.subject, event_ms=START_MS + next(self._days) * 2 * DAY_MS, **self._fields
        )
        self._loop.send("proposals", (self.subject, event))
        return dict(self._loop.decision_of(proposal_id, self.subject)["data"])

    def until(self, **wanted: object) -> dict[str, Any]:
        """Proposes again and again until a decision is as wanted: events take effect when they arrive."""

        def probe() -> dict[str, Any] | None:
            found = self.decision()
            return found if wanted.items() <= found.items() else None

        found = self._loop.wait_for(f"a decision with {wanted} about {self.subject}", probe)
        assert found is not None
        return found


@contextmanager
def published(loop: Loop, policy: Policy) -> Iterator[None]:
    """The policy in the topic; retired at the end."""

    def put(status: str) -> None:
        data = policy.model_copy(update={"status": status}).model_dump(mode="json")
        loop.publish("policies", Policy.event_type, f"{policy.policy_id}/{policy.version}", data)

    put(policy.status)
    try:
        yield
    finally:
        put("retired")


def switch(loop: Loop, paused: bool, **scope: str) -> None:
    data: Mapping[str, object] = PolicySwitch(paused=paused, author="test", **scope).model_dump(mode="json")  # type: ignore[arg-type]
    loop.publish("policies", PolicySwitch.event_type, "switch/test", data)


def test_one_decision_and_one_command_come_out_when_a_proposal_is_allowed(machines: Loop) -> None:
    proposal_id, event = proposal("allowed-1", event_ms=START_MS, expires_after_s=3600)
    machines.send("proposals", ("allowed-1", event))
    decision = machines.decision_of(proposal_id, "allowed-1")
    data = Decision.model_validate(decision["data"], strict=False)
    assert (data.verdict, data.reason) == ("allow", "allowed_by_policy")
    assert [(p.policy_id, p.version, p.verdict) for p in data.policies] == [("cooling", 1, "allow")]
    assert decision["id"] == derive_id(proposal_id, "govern", "decision")
    assert decision["causationid"] == proposal_id
    (command,) = machines.wait_for("the command", lambda: machines.events("commands", "allowed-1", agent="test-agent"))
    assert Command.model_validate(command["data"])
    assert command["id"] == command["data"]["command_id"] == data.command_id
    assert command["causationid"] == decision["id"]
    assert command["expirytime"] == "2014-05-01T01:00:00Z"
    (outcome,) = machines.wait_for("the outcome", lambda: machines.events("outcomes", "allowed-1", action="activate_cooling"))
    assert outcome["data"]["command_id"] == data.command_id
    assert outcome["hops"] == 1
    assert outcome["correlationid"] == proposal_id


def test_nothing_is_decided_twice_when_the_same_proposals_come_again(machines: Loop) -> None:
    log = [proposal("again-1", event_ms=START_MS + n * DAY_MS * 2) for n in range(5)]
    last_id, last = proposal("again-1", event_ms=START_MS + 40 * DAY_MS, name="behind them")
    machines.send("proposals", *(("again-1", event) for _, event in [*log, *log, log[0]]), ("again-1", last))
    machines.decision_of(last_id, "again-1")
    decided = [d["data"]["proposal_id"] for d in machines.events("decisions", "again-1", agent="test-agent")]
    assert decided == [proposal_id for proposal_id, _ in log] + [last_id]
    commands = machines.wait_for(
        "a command each", lambda: len(c := machines.events("commands", "again-1", agent="test-agent")) >= 6 and c
    )
    assert len(commands) == len({c["data"]["command_id"] for c in commands}) == 6


def test_an_id_is_forgotten_when_its_subject_is_twice_as_much_older_as_ids_are_remembered(machines: Loop) -> None:
    """By Flink's own states, of which a whole one is emptied. 90 days are remembered."""
    first_id, first = proposal("forgets-1", event_ms=START_MS)
    later = [proposal("forgets-1", event_ms=START_MS + days * DAY_MS) for days in (89, 178, 267)]
    machines.send("proposals", *(("forgets-1", event) for event in (first, later[0][1], first, *(e for _, e in later[1:]), first)))
    decided = machines.wait_for(
        "the first proposal's second decision",
        lambda: len(found := machines.events("decisions", "forgets-1", agent="test-agent")) >= 5 and found,
    )
    assert [d["data"]["proposal_id"] for d in decided] == [first_id, *(proposal_id for proposal_id, _ in later), first_id]


def test_a_policy_takes_effect_without_restart_when_it_is_published_while_the_job_runs(
    machines: Loop,
) -> None:
    asking = Asking(machines, "ruled-1")
    before = asking.decision()
    assert before["verdict"] == "allow"
    started = machines.restarts()
    with published(machines, a_policy("live-deny", "ruled-1")):
        denied = asking.until(reason="forbidden_by_policy")
        assert {"policy_id": "live-deny", "version": 1, "verdict": "deny"} in denied["policies"]
        assert denied["policy_set_digest"] != before["policy_set_digest"]
        assert denied["command_id"] is None
    allowed = asking.until(verdict="allow")
    assert allowed["policy_set_digest"] == before["policy_set_digest"], "retired: the set is as it was"
    assert machines.restarts() == started


def test_the_policies_before_stay_in_force_when_a_bad_one_is_published(machines: Loop) -> None:
    asking = Asking(machines, "ruled-2")
    policy = a_policy("live-bad", "ruled-2")
    with published(machines, policy):
        before = asking.until(reason="forbidden_by_policy")
        bad = policy.model_dump(mode="json") | {"when": "subject ==", "status": "active"}
        place = machines.publish("policies", Policy.event_type, "live-bad/1", bad)
        letter = machines.dead_letter(place)["data"]
        assert (letter["cause"], letter["stage"]) == ("policy_refused", "govern")
        assert asking.decision()["policy_set_digest"] == before["policy_set_digest"]
        assert asking.decision()["reason"] == "forbidden_by_policy"


def test_a_policy_holds_when_it_cannot_be_evaluated(machines: Loop) -> None:
    asking = Asking(machines, "ruled-3")
    when = 'subject == "ruled-3" && feature_command_id == "x"'
    types = {"subject": "string", "feature_command_id": "string"}
    with published(machines, a_policy("live-error", "ruled-3", when=when, variables=types, verdict="allow")):
        held = asking.until(reason="policy_error")
        assert held["verdict"] == "hold"
        assert held["command_id"] is None
        assert "live-error" in held["explanation"]


@pytest.mark.parametrize(
    "scope", [{"agent": "pausable"}, {"agent": "pausable", "action": "activate_cooling"}]
)
def test_proposals_are_denied_when_their_agent_is_paused_and_allowed_when_it_is_resumed(
    machines: Loop, scope: dict[str, str]
) -> None:
    asking = Asking(machines, f"paused-{len(scope)}", agent="pausable")
    assert asking.decision()["verdict"] == "allow"
    switch(machines, True, **scope)
    try:
        assert asking.until(reason="paused")["verdict"] == "deny"
        other = Asking(machines, f"not-paused-{len(scope)}", agent="other-agent")
        assert other.decision()["verdict"] == "allow"
    finally:
        switch(machines, False, **scope)
    assert asking.until(verdict="allow")["reason"] == "allowed_by_policy"


def test_the_limit_counts_only_what_was_allowed_when_proposals_are_many(machines: Loop) -> None:
    hours = [0, 1, 23, 24, 25, 47]
    log = [proposal("limited-1", event_ms=START_MS + h * 3_600_000) for h in hours]
    weak_id, weak = proposal("limited-1", event_ms=START_MS + 49 * 3_600_000, confidence=0.1)
    machines.send("proposals", *(("limited-1", event) for _, event in log), ("limited-1", weak))
    machines.decision_of(weak_id, "limited-1")
    reasons = [d["data"]["reason"] for d in machines.events("decisions", "limited-1", agent="test-agent")]
    limit, allowed = "rate_limit", "allowed_by_policy"
    assert reasons == [allowed, limit, limit, allowed, limit, limit, "no_policy_matched"]
