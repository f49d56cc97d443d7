"""Watching a domain's topics: counts, reasons, latencies, the latest decisions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
from kafka import TopicPartition

from contracts.access import principal
from contracts.command import Command
from contracts.dead_letter import DeadLetter
from contracts.decision import Decision
from contracts.envelope import parse_time_ms
from contracts.fact import ClockTicked
from contracts.outcome import Outcome
from contracts.topics import topic
from ops import kafka
from ops.world import Decided, DecisionOf

_WATCHED = ("facts", "decisions", "commands", "outcomes", "dead-letters")
_COUNTED = ("situations", "proposals")
# Facts whose append time is remembered for latencies; older ones are forgotten first.
_REMEMBERED_FACTS = 1_000_000


@dataclass
class Seen:
    """What was seen so far. Latencies are wall-clock milliseconds: from the fact's append to the log
    to the append of what it caused (at least once), or to its arrival at a read_committed reader
    (exactly once), and count only first-round events (hops 0)."""

    facts: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    situations: int = 0
    proposals: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    decision_ms: list[int] = field(default_factory=list)
    command_ms: list[int] = field(default_factory=list)
    first_decision_at: float | None = None
    last_change_at: float = 0.0
    first_fact_ms: int | None = None
    last_decision_ms: int | None = None
    open_commands: set[str] = field(default_factory=set)
    # Outcomes seen before their command: topics are read side by side, in no order between them.
    early_outcomes: set[str] = field(default_factory=set)
    latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=8))
    # Proposals decided about that a language model made, and that somebody else made in the place of one.
    reasoned: set[str] = field(default_factory=set)
    fell_back: set[str] = field(default_factory=set)
    # The command whose chain says most (most often round the loop, then the last): (hops, id).
    telling: tuple[int, str] | None = None


class Watch(threading.Thread):
    """Reads a domain's topics in the background until `stop`. `seen` may be read at any time.

    With `spool` (a folder), decisions.jsonl and commands.jsonl are written there as they arrive, one
    CloudEvent a line as read from its topic. What others write into the topics is left out, and never ends it.
    """

    def __init__(
        self, bootstrap_servers: str, domain: str, *, is_committed: bool, from_beginning: bool,
        decision_key: Any = None, spool: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name=f"watch-{domain}", daemon=True)
        self._domain = domain
        self._is_committed = is_committed
        self._decision_key = decision_key
        self._keyed: dict[str, list[Decided]] = {}
        self._done: dict[str, tuple[str, int]] = {}  # command id: its outcome's status and event time
        self._fact_ms: dict[str, int] = {}
        self._stopping = threading.Event()
        self._lines: dict[str, IO[bytes]] = {}
        if spool is not None:
            spool.mkdir(parents=True, exist_ok=True)
            self._lines = {
                name: (spool / f"{name}.jsonl").open("wb") for name in ("decisions", "commands")
            }
        self._arrived = threading.Condition()
        self.error: BaseException | None = None
        self.seen = Seen()
        self._reader = kafka.consumer(bootstrap_servers, principal=principal(domain, "reader"))
        self._short = {topic(name).of(domain): name for name in (*_WATCHED, *_COUNTED)}
        places = kafka.partitions(self._reader, [topic(n).of(domain) for n in _WATCHED])
        self._counted = kafka.partitions(self._reader, [topic(n).of(domain) for n in _COUNTED])
        self._reader.assign(places)
        if from_beginning:
            self._reader.seek_to_beginning(*places)
            self._base = {}
        else:
            self._reader.seek_to_end(*places)
            self._base = kafka.end_offsets(self._reader, self._counted)
        for place in places:
            self._reader.position(place)

    def run(self) -> None:
        try:
            next_count = 0.0
            while not self._stopping.is_set():
                taken = 0
                for record in kafka.poll(self._reader, timeout_ms=50):
                    self._take(record)
                    taken += 1
                if taken:
                    self.seen.last_change_at = time.monotonic()
                    with self._arrived:
                        self._arrived.notify_all()
                if time.monotonic() > next_count:
                    self._count()
                    next_count = time.monotonic() + 0.5
        except BaseException as error:
            self.error = error
        finally:
            self._reader.close()
            for file in self._lines.values():
                file.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)

    def decision_of(self, timeout_s: float = 60.0) -> DecisionOf:
        """A function that waits until the proposal about a key is decided (ops/world.py DecisionOf).

        It gives None after `timeout_s` without a decision (the world then goes on as if it was allowed), and
        raises what ended this thread, if something did.
        """

        usual_s = timeout_s

        def wait(
            key: str, /, *, nth: int | None = None, is_done: bool = False, timeout_s: float | None = None
        ) -> Decided | None:
            deadline = time.monotonic() + (usual_s if timeout_s is None else timeout_s)
            with self._arrived:
                while (found := self._decided(key, nth, is_done)) is None:
                    if self.error is not None:
                        raise self.error
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return None
                    self._arrived.wait(min(left, 0.5))
                return found

        return wait

    def _decided(self, key: str, nth: int | None, is_done: bool) -> Decided | None:
        made = self._keyed.get(key, [])
        if not made or (nth is not None and nth >= len(made)):
            return None
        decided = made[-1 if nth is None else nth]
        done = self._done.get(decided.command_id or "")
        if done is None:
            return None if is_done and decided.command_id is not None else decided
        return decided._replace(done=done[0], done_ms=done[1])

    def _count(self) -> None:
        ends: dict[TopicPartition, int] = kafka.end_offsets(self._reader, self._counted)
        totals: Counter[str] = Counter()
        for place, end in ends.items():
            totals[self._short[place.topic]] += end - self._base.get(place, 0)
        self.seen.situations, self.seen.proposals = totals["situations"], totals["proposals"]

    def _take(self, record: kafka.Record) -> None:
        kind, seen = self._short[record.topic], self.seen
        try:
            event = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            seen.facts += kind == "facts"
            return
        data = event["data"] if isinstance(event.get("data"), dict) else {}
        written = _text(event, "type")
        if written == ClockTicked.event_type:
            return
        if kind == "facts":
            self._take_fact(record, _text(event, "id"))
        elif kind == "dead-letters" and written == DeadLetter.event_type:
            seen.dead_letters += 1
            seen.causes[_text(data, "cause") or "unknown"] += 1
        elif (kind, written) == ("outcomes", Outcome.event_type):
            self._take_outcome(data)
        elif (kind, written) == ("decisions", Decision.event_type):
            self._take_decision(record, event, data)
        elif (kind, written) == ("commands", Command.event_type):
            self._take_command(record, event, data)

    def _take_fact(self, record: kafka.Record, fact_id: str) -> None:
        seen = self.seen
        seen.facts += 1
        if seen.first_fact_ms is None:
            seen.first_fact_ms = record.appended_ms
        if fact_id in self._fact_ms:
            seen.duplicates += 1
        elif fact_id:
            if len(self._fact_ms) >= _REMEMBERED_FACTS:
                del self._fact_ms[next(iter(self._fact_ms))]
            self._fact_ms[fact_id] = record.appended_ms

    def _take_outcome(self, data: dict[str, Any]) -> None:
        seen, status, command_id = self.seen, _text(data, "status"), _text(data, "command_id")
        seen.outcomes[status] += 1
        if self._decision_key is not None:
            with contextlib.suppress(ValueError):
                self._done[command_id] = status, parse_time_ms(_text(data, "event_time"))
        if command_id in seen.open_commands:
            seen.open_commands.discard(command_id)
        else:
            seen.early_outcomes.add(command_id)

    def _take_decision(self, record: kafka.Record, event: dict[str, Any], data: dict[str, Any]) -> None:
        seen = self.seen
        try:
            orjson.dumps(event)  # refuses what is nested too deeply to be shown
        except TypeError:
            return
        if not (verdict := _text(data, "verdict")):
            return
        self._spool("decisions", record)
        if seen.first_decision_at is None:
            seen.first_decision_at = time.monotonic()
        seen.verdicts[verdict] += 1
        seen.reasons[_text(data, "reason")] += 1
        if data.get("fallback"):  # also by a cheaper model
            seen.fell_back.add(_text(event, "causationid"))
        elif data.get("reasoned"):
            seen.reasoned.add(_text(event, "causationid"))
        seen.last_decision_ms = record.appended_ms
        seen.latest.append(event)
        latency = self._latency_ms(record, event)
        if latency is not None:
            seen.decision_ms.append(latency)
        if (key := self._key_of(event, data)) is not None:
            parameters = data["parameters"] if isinstance(data.get("parameters"), dict) else {}
            decided = Decided(verdict, _text(data, "action"), parameters, _text(data, "command_id") or None)
            self._keyed.setdefault(key, []).append(decided)

    def _key_of(self, event: dict[str, Any], data: dict[str, Any]) -> str | None:
        """What a world waits for; worlds know what `govern` writes, not what somebody else may."""
        if self._decision_key is None:
            return None
        try:
            key = self._decision_key({**data, "subject": event.get("subject")})
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            return None
        return key if isinstance(key, str) else None

    def _take_command(self, record: kafka.Record, event: dict[str, Any], data: dict[str, Any]) -> None:
        seen = self.seen
        self._spool("commands", record)
        seen.commands += 1
        seen.actions[_text(data, "action")] += 1
        hops = event["hops"] if isinstance(event.get("hops"), int) else 0
        if (command := _text(event, "id")) and (seen.telling is None or hops >= seen.telling[0]):
            seen.telling = (hops, command)
        command_id = _text(data, "command_id")
        if command_id in seen.early_outcomes:
            seen.early_outcomes.discard(command_id)
        else:
            seen.open_commands.add(command_id)
        latency = self._latency_ms(record, event)
        if latency is not None:
            seen.command_ms.append(latency)

    def _spool(self, name: str, record: kafka.Record) -> None:
        if name in self._lines:
            self._lines[name].write((record.value or b"") + b"\n")

    def _latency_ms(self, record: kafka.Record, event: dict[str, Any]) -> int | None:
        since = self._fact_ms.get(_text(event, "correlationid"))
        if since is None or event.get("hops"):
            return None
        until = int(time.time() * 1000) if self._is_committed else record.appended_ms
        return max(0, until - since)


def _text(of: dict[str, Any], name: str) -> str:
    """The text under a name; "" where there is none, or something else."""
    return found if isinstance(found := of.get(name), str) else ""


def percentiles(values: list[int]) -> dict[str, float | None]:
    """p50, p95 and p99 by nearest rank; None when nothing was measured."""
    if not values:
        return {"p50": None, "p95": None, "p99": None}
    ordered = sorted(values)
    return {
        f"p{p}": float(ordered[max(0, -(-len(ordered) * p // 100) - 1)]) for p in (50, 95, 99)
    }
