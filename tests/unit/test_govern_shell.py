"""The Flink shell of `govern` over states that are dictionaries: what waits, in which order, and what fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pytest
from pyflink.common import Row

from contracts.approval import Override, Person
from contracts.envelope import derive_id
from contracts.policy import Policy
from tests.loop import proposal
from udfs.policy import cases, flink
from udfs.policy.flink import Govern
from udfs.policy.signing import public_text, sign, to_sign
from udfs.policy.subject import SubjectState
from udfs.policy.writing import STAGE
from udfs.serde import write_event
from udfs.state import SUBJECT

WIDE = {"per": [], "max_count": 5, "within_s": 60}
MAY: dict[str, Any] = {
    "policy_id": "may", "version": 1, "status": "active", "when": "true", "verdict": "allow", "reason": "r",
}  # fmt: skip


class Keyed:
    """One state of one key at a time, kept in `all` by key."""

    def __init__(self, runtime: Runtime, empty: Any) -> None:
        self.runtime, self.empty, self.all = runtime, empty, dict[str, Any]()

    @property
    def mine(self) -> Any:
        return self.all.setdefault(self.runtime.key, self.empty())

    def value(self) -> Any:
        return self.all.get(self.runtime.key)

    def update(self, value: Any) -> None:
        self.all[self.runtime.key] = value

    def get(self, *name: Any) -> Any:
        return self.mine.get(*name) if name else list(self.mine)

    def add(self, value: Any) -> None:
        self.mine.append(value)

    def clear(self) -> None:
        self.all.pop(self.runtime.key, None)

    def contains(self, name: str) -> bool:
        return name in self.mine

    def put(self, name: str, value: Any) -> None:
        self.mine[name] = value

    def remove(self, name: str) -> None:
        del self.mine[name]

    def items(self) -> Any:
        return list(self.mine.items())

    def values(self) -> Any:
        return list(self.mine.values())


class Counting:
    """A counter of Flink's metrics."""

    def __init__(self) -> None:
        self.count = 0

    def inc(self, by: int = 1) -> None:
        self.count += by


class Runtime:
    """What Flink gives: states by key, timers, broadcast state, counters. A runtime context and a context in one."""

    def __init__(self) -> None:
        self.key, self.now, self.timers = "", 0, set[tuple[int, str]]()
        self.states: dict[str, Keyed] = {}
        self.broadcast: dict[str, str] = {}
        self.counters: dict[str, Counting] = {}

    def get_metrics_group(self) -> Any:
        return self

    def counter(self, name: str) -> Counting:
        return self.counters.setdefault(name, Counting())

    def get_state(self, descriptor: Any, empty: Any = lambda: None) -> Keyed:
        return self.states.setdefault(descriptor.name, Keyed(self, empty))

    def get_map_state(self, descriptor: Any) -> Keyed:
        return self.get_state(descriptor, dict)

    def get_list_state(self, descriptor: Any) -> Keyed:
        return self.get_state(descriptor, list)

    def get_broadcast_state(self, _: Any) -> Any:
        return self

    def get(self, name: str) -> str | None:
        return self.broadcast.get(name)

    def put(self, name: str, value: str) -> None:
        self.broadcast[name] = value

    def timer_service(self) -> Any:
        return self

    def get_current_key(self) -> str:
        return self.key

    def current_processing_time(self) -> int:
        return self.now

    def register_processing_time_timer(self, at: int) -> None:
        self.timers.add((at, self.key))


class Shell:
    """`govern` with what it wrote; claims stay where they are until `grant`."""

    def __init__(self, *, policies_until: int = 0) -> None:
        self.runtime, self.offset, self.wrote = Runtime(), 0, list[Row]()
        self.govern = Govern("machines", 6, 90 * 86_400, policies_until)
        self.govern.open(self.runtime)  # type: ignore[arg-type]

    def _keep(self, rows: Iterator[Any]) -> list[dict[str, Any]]:
        came = list(rows)
        self.wrote += came
        return [orjson.loads(row[2]) for row in came]

    def publish(self, *events: tuple[str, Mapping[str, Any]]) -> None:
        for kind, data in events:
            text = orjson.dumps({"type": kind, "data": data})
            row = Row(b"", text, "machines.policies", 0, self.offset)
            assert list(self.govern.process_broadcast_element(row, self.runtime)) == []
            self.offset += 1

    def read(self, topic: str, key: bytes | None, value: bytes) -> list[dict[str, Any]]:
        self.runtime.key, self.offset = (key or b"").decode(), self.offset + 1
        row = Row(key, value, f"machines.{topic}", 0, self.offset)
        return self._keep(self.govern.process_element(row, self.runtime))

    def grant(self) -> list[dict[str, Any]]:
        """The limits topic read by all, from its beginning."""
        came, read = list[dict[str, Any]](), 0
        while (rows := [row for row in self.wrote if row[0] == "limits"])[read:]:
            came += self.read("limits", rows[read][1].encode(), rows[read][2].encode())
            read += 1
        return came

    def fire(self, until: int) -> list[dict[str, Any]]:
        came = list[dict[str, Any]]()
        while due := sorted(timer for timer in self.runtime.timers if timer[0] <= until):
            self.runtime.timers.discard(due[0])
            self.runtime.now, self.runtime.key = due[0]
            came += self._keep(self.govern.on_timer(due[0][0], self.runtime))
        return came

    def state(self, key: str) -> list[Any]:
        found: list[Any] = SUBJECT.load(self.govern._subject.all[key])  # type: ignore[attr-defined]
        return found


@pytest.fixture(autouse=True)
def wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flink, "_wall_ms", lambda: 1000)


def proposed(shell: Shell, subject: str, at: int, **more: Any) -> list[dict[str, Any]]:
    _, value = proposal(subject, event_ms=cases.START_MS + at, **more)
    return shell.read("proposals", subject.encode(), value)


def policy(**more: Any) -> tuple[str, Mapping[str, Any]]:
    return Policy.event_type, {**MAY, **more}


def person(name: str, key_of: str) -> tuple[str, Mapping[str, Any]]:
    key = public_text(cases.key_of(key_of))
    return Person.event_type, {"person": name, "roles": ["approver"], "may": ["override"], "public_key": key}


def override(by: str) -> bytes:
    data: dict[str, Any] = {
        "person": by, "signed_at": "2014-01-01T00:00:00Z", "action": "activate_cooling",
        "parameters": {"duration_s": 60}, "reason": "smoke",
    }  # fmt: skip
    data["signature"] = sign(cases.key_of(by), to_sign("machines", "m-1", Override.event_type, data))
    return write_event(
        event_id="o", source="/a", event_type=Override.event_type, subject="m-1", time_ms=0, dataschema="urn:x", data=data
    )


def test_records_keep_their_order_when_the_policies_come_before_the_timer() -> None:
    shell = Shell(policies_until=1)
    assert proposed(shell, "m-1", 0, confidence=0.9) == proposed(shell, "m-1", 1, confidence=0.91) == []
    shell.publish(policy())
    decided = proposed(shell, "m-1", 2, confidence=0.92)
    assert [each["data"]["confidence"] for each in decided if each["type"] == "flyball.decision"] == [0.9, 0.91, 0.92]
    assert shell.fire(10_000) == []


def test_an_override_stays_done_when_ids_of_old_proposals_are_forgotten() -> None:
    shell = Shell()
    shell.publish(policy(), person("ann", "ann"))
    said = override("ann")
    assert len(shell.read("approvals", b"m-1", said)) == 2
    day_ms = 86_400_000
    assert proposed(shell, "m-1", 0) and not proposed(shell, "m-1", 0)
    assert proposed(shell, "m-1", 89 * day_ms) and not proposed(shell, "m-1", 0)
    assert proposed(shell, "m-1", 300 * day_ms) and proposed(shell, "m-1", 0)
    assert shell.read("approvals", b"m-1", said) == []


def waiting_override(shell: Shell) -> None:
    """An answer of ann's that waits for a grant, a proposal behind it, and then ann has another key."""
    shell.publish(policy(verdict="hold", limits=[WIDE]), person("ann", "ann"))
    held = next(each for each in proposed(shell, "m-1", 0) if each["type"] == "flyball.decision")
    data: dict[str, Any] = {
        "person": "ann", "signed_at": "2014-01-01T00:00:00Z", "approval_id": held["id"], "answer": "approve",
        "action_digest": held["data"]["approval"]["action_digest"],
    }  # fmt: skip
    data["signature"] = sign(cases.key_of("ann"), to_sign("machines", "m-1", "flyball.answer", data))
    event = write_event(
        event_id="a", source="/a", event_type="flyball.answer", subject="m-1", time_ms=0, dataschema="urn:x", data=data
    )
    assert [each["type"] for each in shell.read("approvals", b"m-1", event)] == ["flyball.claim"]
    assert proposed(shell, "m-1", 1) == []
    shell.publish(person("ann", "another"))


def test_an_answer_becomes_a_dead_letter_when_its_key_is_changed_while_it_waits_for_a_grant() -> None:
    shell = Shell()
    waiting_override(shell)
    came = shell.grant()
    letters = [each["data"] for each in came if each["type"] == "flyball.dead_letter"]
    assert [(letter["cause"], letter["topic"]) for letter in letters] == [("signature_invalid", "machines.approvals")]
    assert [each["data"]["verdict"] for each in came if each["type"] == "flyball.decision"] == ["hold"]


def test_the_job_goes_on_when_an_answer_that_is_asked_for_again_is_refused() -> None:
    shell = Shell()
    waiting_override(shell)
    came = shell.fire(31_000)
    assert [each["data"]["cause"] for each in came if each["type"] == "flyball.dead_letter"] == ["signature_invalid"]
    assert [each["data"]["verdict"] for each in came if each["type"] == "flyball.decision"] == ["hold"]


def test_a_window_that_waits_for_a_grant_stays_its_subjects_when_a_record_without_a_key_was_read() -> None:
    shell = Shell()
    shell.publish(policy(limits=[WIDE], arbitration={"conflicts_with": ["activate_cooling"], "window_s": 5}))
    shell.read("proposals", None, b"{}")
    proposed(shell, "m-1", 0)
    assert [each["type"] for each in shell.fire(6_000)] == ["flyball.claim"]
    before = shell.state("m-1")
    shell.runtime.timers.add((7_000, "m-1"))
    shell.fire(7_000)
    assert shell.state("m-1") == before
    assert [each["data"]["verdict"] for each in shell.grant() if each["type"] == "flyball.decision"] == ["allow"]


# --------------------------------------------------------------------------- what nobody foresaw


def broken_once(monkeypatch: pytest.MonkeyPatch, shell: Shell, name: str) -> None:
    """The core's `name` changes the subject's state and fails, the next time it is called."""
    works = getattr(shell.govern._governor, name)

    def fails(state: SubjectState, *_: Any) -> None:
        monkeypatch.setattr(shell.govern._governor, name, works)
        state.clock_ms, state.decisions = 1, 77
        raise ZeroDivisionError("what only the record knows")

    monkeypatch.setattr(shell.govern._governor, name, fails)


def test_a_record_is_a_dead_letter_and_nothing_is_decided_when_the_core_fails_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shell, other = Shell(), Shell()
    for each in (shell, other):
        each.publish(policy())
        proposed(each, "m-1", 0)
    broken_once(monkeypatch, shell, "decide")
    (letter,) = proposed(shell, "m-1", 1)
    assert (letter["type"], letter["data"]["cause"], letter["data"]["topic"]) == ("flyball.dead_letter", "internal", "machines.proposals")
    assert "ZeroDivisionError in test_govern_shell.py" in letter["data"]["message"]
    assert "record knows" not in letter["data"]["message"]
    # What was changed on the way is gone, and once the bug is gone the same proposal is taken as new.
    assert shell.state("m-1") == other.state("m-1")
    again, at_once = (proposed(each, "m-1", 1) for each in (shell, other))
    assert again[0]["data"]["verdict"] == at_once[0]["data"]["verdict"]
    assert again[0]["id"] == at_once[0]["id"]


def test_what_is_held_goes_on_waiting_when_the_core_fails_over_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell()
    shell.publish(policy(verdict="hold"))
    proposed(shell, "m-1", 0)
    broken_once(monkeypatch, shell, "tick")
    (letter,) = shell.fire(86_401_000)
    assert (letter["data"]["cause"], letter["data"]["topic"]) == ("internal", "clock")
    proposed(shell, "m-1", 1)  # the next record sets the timer again
    assert [each["data"]["reason"] for each in shell.fire(86_401_000)] == ["approval_expired"] * 2


def test_the_job_fails_when_its_state_does(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell()
    shell.publish(policy())

    def gone(*_: object) -> bool:
        raise RuntimeError("the state backend is gone")

    monkeypatch.setattr(shell.govern._seen, "has", gone)
    with pytest.raises(RuntimeError, match="state backend"):
        proposed(shell, "m-1", 0)


# ----------------------------------------------------------------------------------- arbitration


def test_the_next_best_wins_when_the_best_is_denied_by_a_grant_that_came_later() -> None:
    shell, conflicts = Shell(), {"conflicts_with": ["activate_cooling", "schedule_maintenance"], "window_s": 5}
    once = {"per": [], "max_count": 1, "within_s": 60}
    shell.publish(
        policy(policy_id="plan", limits=[once], arbitration={**conflicts, "priority": 5}, scope={"actions": ["schedule_maintenance"]}),
        policy(policy_id="cool", limits=[WIDE], arbitration=conflicts, scope={"actions": ["activate_cooling"]}),
    )
    for subject in ("m-1", "m-2"):
        proposed(shell, subject, 0, action="schedule_maintenance", parameters={"priority": "normal"})
    proposed(shell, "m-2", 1)
    assert [each["type"] for each in shell.fire(6_000)] == ["flyball.claim"] * 2
    decided = [each for each in shell.grant() if each["type"] == "flyball.decision"]
    assert [(each["subject"], each["data"]["action"], each["data"]["reason"]) for each in decided] == [
        ("m-1", "schedule_maintenance", "allowed_by_policy"),
        ("m-2", "schedule_maintenance", "rate_limit"),
        ("m-2", "activate_cooling", "allowed_by_policy"),
    ]
    assert [row[1] for row in shell.wrote if row[0] == "commands"] == ["m-1", "m-2"]


# ---------------------------------------------------------------------------------- after a crash


def test_an_outcome_settles_its_claim_when_it_is_read_before_its_proposal() -> None:
    shell = Shell()
    one_flies = {"per": [], "max_in_flight": 1}
    shell.publish(policy(limits=[one_flies], outcome_within_s=60))
    _, value = proposal("m-1", event_ms=cases.START_MS)
    command_id = derive_id(derive_id(orjson.loads(value)["id"], STAGE, "decision"), STAGE, "command")
    data = {"event_time": "2014-01-01T00:00:05Z", "command_id": command_id, "action": "activate_cooling", "status": "succeeded"}
    outcome = {"type": "flyball.outcome", "subject": "m-1", "data": data}
    assert shell.read("outcomes", b"m-1", orjson.dumps(outcome)) == []
    shell.read("proposals", b"m-1", value)
    assert [each["type"] for each in shell.grant()] == ["flyball.grant", "flyball.decision", "flyball.command", "flyball.settlement"]
    proposed(shell, "m-2", 1)
    assert [each["data"]["reason"] for each in shell.grant() if each["type"] == "flyball.decision" and each["subject"] == "m-2"] == ["allowed_by_policy"]
