"""What the watcher counts, and how long it says things took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from ops import watch as module
from ops.watch import Seen, Watch, percentiles
from ops.world import Decided
from tests.kafka_stand_in import StandInBroker, StandInConsumer


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StandInBroker:
    broker = StandInBroker()
    monkeypatch.setattr(module.kafka, "consumer", lambda _, **_options: StandInConsumer(broker))
    return broker


def event(kind: str, **fields: Any) -> bytes:
    data = fields.pop("data", {})
    return orjson.dumps({"type": kind, "id": fields.pop("id", "e"), "hops": 0, **fields, "data": data})


def watched(broker: StandInBroker, **options: Any) -> Seen:
    """What was seen once everything in the broker was read."""
    watch = Watch("nowhere:1", "machines", **{"is_committed": False, "from_beginning": True, **options})
    watch.start()
    total = sum(len(log) for name, log in broker.topics.items() if name.split(".")[1] in module._WATCHED)
    for _ in range(200):
        if sum(watch._reader._positions.values()) >= total and watch.seen.last_change_at:
            break
        watch.join(0.02)
    watch.stop()
    assert watch.error is None
    return watch.seen


def test_facts_are_counted_apart_from_repeats_and_ticks(broker: StandInBroker) -> None:
    for fact_id in ("a", "b", "a"):
        broker.put("machines.facts", b"m", event("machine.temperature_measured", id=fact_id), timestamp=5)
    broker.put("machines.facts", b"c", event("flyball.clock_ticked", id="t"))
    broker.put("machines.facts", b"m", b"not json")
    seen = watched(broker)
    assert (seen.facts, seen.duplicates, seen.first_fact_ms) == (4, 1, 5)


def test_what_a_language_model_proposed_is_counted_once_however_often_it_is_decided_about(broker: StandInBroker) -> None:
    for proposal, told in (("p", {"reasoned": {"model": "m"}}), ("p", {"reasoned": {"model": "m"}}), ("q", {"fallback": "triage: budget"}), ("r", {})):
        data = {"verdict": "hold", "reason": "approval_required", **told}
        broker.put("machines.decisions", b"m", event("flyball.decision", causationid=proposal, data=data))
    seen = watched(broker)
    assert (seen.reasoned, seen.fell_back) == ({"p"}, {"q"})


def test_latency_counts_from_the_fact_when_what_came_of_it_is_of_the_first_round(broker: StandInBroker) -> None:
    broker.put("machines.facts", b"m", event("machine.temperature_measured", id="f"), timestamp=1000)
    decided = {"verdict": "allow", "reason": "allowed_by_policy"}
    broker.put("machines.decisions", b"m", event("flyball.decision", correlationid="f", data=decided), timestamp=1042)
    broker.put("machines.decisions", b"m", event("flyball.decision", correlationid="f", hops=1, data=decided), timestamp=9000)
    broker.put("machines.decisions", b"m", event("flyball.decision", correlationid="?", data=decided), timestamp=9000)
    broker.put("machines.commands", b"m", event("flyball.command", correlationid="f", data={"command_id": "c", "action": "cool"}), timestamp=1050)
    seen = watched(broker)
    assert (seen.decision_ms, seen.command_ms) == ([42], [50])
    assert seen.verdicts == {"allow": 3}
    assert seen.last_decision_ms == 9000


def test_a_command_is_open_until_its_outcome_comes(broker: StandInBroker) -> None:
    for command_id in ("c-1", "c-2"):
        data = {"command_id": command_id, "action": "cool"}
        broker.put("machines.commands", b"m", event("flyball.command", data=data))
    broker.put("machines.outcomes", b"m", event("flyball.outcome", data={"command_id": "c-1", "status": "failed"}))
    seen = watched(broker)
    assert seen.open_commands == {"c-2"}
    assert (seen.commands, seen.actions, seen.outcomes) == (2, {"cool": 2}, {"failed": 1})


def test_dead_letters_are_counted_by_cause(broker: StandInBroker) -> None:
    for cause in ("not_json", "not_json", "empty"):
        broker.put("machines.dead-letters", b"p", event("flyball.dead_letter", data={"cause": cause}))
    broker.put("machines.dead-letters", b"p", event("flyball.redriven", data={"attempt": 1}))
    seen = watched(broker)
    assert (seen.dead_letters, seen.causes) == (3, {"not_json": 2, "empty": 1})


def test_lines_are_written_as_read_when_a_folder_is_given(broker: StandInBroker, tmp_path: Path) -> None:
    lines = [event("flyball.decision", id=name, data={"verdict": "deny", "reason": "paused"}) for name in "ab"]
    for line in lines:
        broker.put("machines.decisions", b"m", line)
    watched(broker, spool=tmp_path)
    assert (tmp_path / "decisions.jsonl").read_bytes() == b"".join(line + b"\n" for line in lines)
    assert (tmp_path / "commands.jsonl").read_bytes() == b""


def test_only_decisions_are_written_when_other_events_stand_among_them(broker: StandInBroker, tmp_path: Path) -> None:
    decision, command = event("flyball.decision", data={"verdict": "deny", "reason": "paused"}), event("flyball.command", data={"command_id": "c"})
    for name, values in (
        ("decisions", [event("flyball.noted", data={"what": "counted"}), decision, event("flyball.decision", data={}), b"not json", command]),
        ("commands", [event("other"), command, b"[]"]),
    ):
        for value in values:
            broker.put(f"machines.{name}", b"m", value)
    watched(broker, spool=tmp_path)
    assert (tmp_path / "decisions.jsonl").read_bytes() == decision + b"\n"
    assert (tmp_path / "commands.jsonl").read_bytes() == command + b"\n"


NONSENSE = (
    None, b"", b"7", b"[]", b"{}", b'{"id": []}', b'{"id": {}, "type": []}', b'{"data": [1]}', event("flyball.dead_letter", data=[1]),
    event("flyball.dead_letter", data={"cause": [[]]}), event("flyball.outcome", data={"status": {}, "command_id": []}), event("flyball.outcome", data=7),
    event("flyball.decision", data=[1]), event("flyball.decision", correlationid=[], data={"verdict": "allow", "parameters": [1], "command_id": {}}),
    event("flyball.command", hops="many", data={"command_id": ["c"], "action": {}}), b'{"type":"flyball.decision","data":{"verdict":"allow","x":' + b"[" * 900 + b"]" * 900 + b"}}",
)  # fmt: skip


def test_what_is_no_event_of_ours_never_ends_the_watcher(broker: StandInBroker, tmp_path: Path) -> None:
    for name in module._WATCHED:
        for value in NONSENSE:
            broker.put(f"machines.{name}", b"m", value)
        broker.put(f"machines.{name}", b"m", event("flyball.dead_letter", id="last", data={"cause": "empty"}))
    seen = watched(broker, spool=tmp_path, decision_key=lambda decision: decision["parameters"]["transaction_id"])
    assert (seen.facts, seen.dead_letters, seen.causes) == (len(NONSENSE) + 1, 3, {"unknown": 2, "empty": 1})


def test_a_waiting_world_gets_the_decision_about_its_key(broker: StandInBroker) -> None:
    data = {"verdict": "deny", "reason": "paused", "action": "block", "parameters": {"transaction_id": "t"}}
    watch = Watch(
        "nowhere:1", "machines", is_committed=False, from_beginning=True,
        decision_key=lambda decision: decision["parameters"]["transaction_id"],
    )  # fmt: skip
    watch.start()
    broker.put("machines.decisions", b"m", event("flyball.decision", data=data))
    assert watch.decision_of()("t") == Decided("deny", "block", {"transaction_id": "t"})
    assert watch.decision_of(timeout_s=0.01)("other") is None
    watch.stop()


def test_a_waiting_world_gets_each_decision_and_what_its_command_did(broker: StandInBroker) -> None:
    watch = Watch(
        "nowhere:1", "machines", is_committed=False, from_beginning=True, decision_key=lambda _: "k"
    )
    watch.start()
    for command_id in (None, "c-1"):
        data = {"verdict": "allow", "action": "cool", "command_id": command_id}
        broker.put("machines.decisions", b"m", event("flyball.decision", data=data))
    decision_of = watch.decision_of()
    assert decision_of("k", nth=0, is_done=True) == Decided("allow", "cool"), "without a command there is no outcome"
    assert decision_of("k", nth=1) == Decided("allow", "cool", {}, "c-1")
    assert decision_of("k", nth=1, is_done=True, timeout_s=0.01) is None
    data = {"command_id": "c-1", "status": "failed", "event_time": "1970-01-01T00:01:00Z"}
    broker.put("machines.outcomes", b"m", event("flyball.outcome", data=data))
    assert decision_of("k", nth=1, is_done=True) == Decided("allow", "cool", {}, "c-1", "failed", 60_000)
    assert decision_of("k", nth=2, timeout_s=0) is None
    watch.stop()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], {"p50": None, "p95": None, "p99": None}),
        ([7], {"p50": 7.0, "p95": 7.0, "p99": 7.0}),
        (list(range(100, 0, -1)), {"p50": 50.0, "p95": 95.0, "p99": 99.0}),
        ([1, 2], {"p50": 1.0, "p95": 2.0, "p99": 2.0}),
    ],
)
def test_percentiles_are_by_nearest_rank(values: list[int], wanted: dict[str, float | None]) -> None:
    assert percentiles(values) == wanted
