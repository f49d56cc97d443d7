"""Consume commands in a program of your own: each is done once, and its outcome is reported.

Reads `<domain>.commands` (read committed), keeps what was done in SQLite (ops/memory.py), writes `<domain>.outcomes`.
For each command, in this order, so that a crash anywhere repeats nothing that was finished:

    1. an earlier command about
       its subject waits?      -> it waits behind that one; other subjects go on
    2. known in SQLite?        -> its outcome is reported if it was not yet, and nothing is done again
    3. expired?                -> outcome `failed`, detail `expired`, handler not called
    4. handler(order)          -> called again only if a crash came between here and 5; handlers get
                                  `command_id` to be idempotent by
       raises what passes      -> the command waits (`Patience`) and is tried again; after the last
                                  attempt: outcome `failed`, and a dead letter with every attempt
       raises anything else    -> outcome `failed`
       gives what no outcome
       can say (None, NaN)     -> outcome `failed`: it has acted, so it is not called again
    5. SQLite: outcome stored, then reported, then marked as reported, then offset committed

What waits is not committed: the committed offset stays before it, and the commit's metadata name what is not finished
behind that offset, so that whoever takes the partition up, here or on another machine, does just that
(docs/decisions/0022). The README has an example; ops/actuator.py is another.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CommitFailedError, KafkaTimeoutError, RebalanceInProgressError
from kafka.structs import ConsumerGroupMetadata, MemberState, OffsetAndMetadata

from contracts.access import principal
from contracts.dead_letter import Attempt, Cause
from contracts.envelope import format_time_ms
from contracts.errors import BadInput, Retryable
from contracts.topics import topic
from ops import kafka
from ops.commanded import STAGE, Commanded
from ops.memory import Memory
from ops.world import Done, Handler, Order
from udfs.serde import dead_letter

# What a handler raises when the same call may succeed later. Raise `Retryable` for what your client calls otherwise.
PASSING: tuple[type[Exception], ...] = (Retryable, ConnectionError, TimeoutError)
# Unfinished commands of a partition that were read: their offsets must fit Kafka's 4 KB of metadata.
MAX_WAITING = 200
_BATCH = 50
# Handlers are called for so long, and then the group is asked whether partitions are to move.
_TURN_MS = 1000
_LONGEST_WAIT_S = 3600.0
_HIGHEST_COST = 1e15  # as contracts/outcome.py has it
Report = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Patience:
    """How often a command is tried, and how long after: `retry_s`, doubled with each attempt, at most an hour."""

    attempts: int = 5
    retry_s: float = 1.0

    def next_ms(self, failed: Sequence[tuple[int, str]]) -> int:
        """When (wall time, ms) what `failed` at these times is to be tried again; 0 for what did not."""
        if not failed:
            return 0
        return failed[-1][0] + int(min(self.retry_s * 2.0 ** (len(failed) - 1), _LONGEST_WAIT_S) * 1000)


@dataclass
class Unfinished:
    """The commands of a partition that are to be done: all before `until` are finished, but these.

    `records`: by offset, ascending; None for one a commit names that was not read again yet. `due_ms`: by subject,
    before when (wall time) none about it is handled.
    """

    until: int = 0
    records: dict[int, kafka.Record | None] = field(default_factory=dict)
    due_ms: dict[bytes | None, int] = field(default_factory=dict)

    @classmethod
    def committed(cls, metadata: str) -> Unfinished:
        """From a commit's metadata ("until:offset,offset"); another program's metadata say nothing."""
        until, _, offsets = metadata.partition(":")
        try:
            return cls(int(until), dict.fromkeys(sorted(int(offset) for offset in offsets.split(","))))
        except ValueError:
            return cls()

    def to_commit(self, position: int) -> tuple[int, str]:
        """The offset to commit when the reader stands at `position`, and the metadata."""
        until = max(position, self.until)
        offsets = [offset for offset, record in self.records.items() if record or offset >= position]
        return (offsets[0], f"{until}:{','.join(map(str, offsets))}") if offsets else (until, "")

    def add(self, record: kafka.Record) -> None:
        """As read, in the order of offsets; what was finished before is left out."""
        if record.offset >= self.until or record.offset in self.records:
            self.records[record.offset] = record

    def next(self, now_ms: int) -> kafka.Record | None:
        """The first whose subject does not wait."""
        return next((r for r in self.records.values() if r and self.due_ms.get(r.key, 0) <= now_ms), None)

    def finish(self, record: kafka.Record) -> None:
        del self.records[record.offset]
        self.due_ms.pop(record.key, None)

    def is_full(self) -> bool:
        """Whether with another batch more might wait than a commit can name; what was not read again yet does not count."""
        return sum(record is not None for record in self.records.values()) + _BATCH > MAX_WAITING


class Commands:
    """The commands of a domain, handled one after another in this process.

    `handlers`: one an action; it gives what it did, or raises, within five minutes: after these the group takes the
    program for dead. Commands of other actions are another program's and passed by, unless `otherwise` handles them.
    `report(subject, outcome)` gets each outcome event instead of `<domain>.outcomes`, at least once; when it raises, the
    command counts as done and not yet reported. What is no command, and what was given up, goes to
    `<domain>.dead-letters`. `is_alone`: whoever starts it sees to it that there is one at a time; it takes every
    partition itself, and after a kill goes on without waiting for a group.
    """

    def __init__(
        self, domain: str, handlers: Mapping[str, Handler], *,
        reader: KafkaConsumer, writer: KafkaProducer, memory: Memory, report: Report | None = None,
        otherwise: Handler | None = None, patience: Patience = Patience(),
        passing: tuple[type[Exception], ...] = PASSING, is_alone: bool = False,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:  # fmt: skip
        self._domain = domain
        self._handlers = handlers
        self._reader = reader
        self._writer = writer
        self._memory = memory
        self._report = report or self._publish
        self._otherwise = otherwise
        self._patience = patience
        self._passing = passing
        self._is_alone = is_alone
        self._now_ms = now_ms
        self._member: ConsumerGroupMetadata | None = None  # as which the partitions below are ours
        self._parts: dict[TopicPartition, Unfinished] = {}
        self._committed: dict[TopicPartition, tuple[int, str]] = {}
        self._sent: list[Any] = []
        self._reported: list[str] = []
        self._is_stopping = False
        commands = topic("commands").of(domain)
        if is_alone:
            reader.assign(kafka.partitions(reader, [commands]))
        else:
            reader.subscribe([commands])

    @classmethod
    def open(
        cls, domain: str, handlers: Mapping[str, Handler], *, bootstrap_servers: str, group: str,
        memory: Path | str, name: str = "", **options: Any,
    ) -> Self:  # fmt: skip
        """With a reader in the consumer group `group` and a file for what was done; `options` as above.

        A group that is new begins with the oldest command there is; expired ones are refused. On a secure broker
        (FLYBALL_SECRETS) it logs in as `<domain>.actuator`, or as the one that was added under `name`, and the group's
        name must begin with `<domain>-actuator`. Raises BrokerUnavailable.
        """
        who = principal(domain, "actuator", name)
        return cls(
            domain, handlers, reader=kafka.member(bootstrap_servers, group, principal=who, max_poll=_BATCH),
            writer=kafka.producer(bootstrap_servers, principal=who, linger_ms=0), memory=Memory(Path(memory)), **options,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        """Handle commands until `stop` is called or one of `signals` comes (main thread only; () for none).

        The command in hand is finished, reported and committed first; the others wait for the next start.
        """
        before = {each: signal.signal(each, lambda *_: self.stop()) for each in signals}
        try:
            while not self._is_stopping:
                self.step()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def stop(self) -> None:
        """`run` ends within a second, but not before the command in hand is finished. From any thread or signal handler."""
        self._is_stopping = True

    def close(self) -> None:
        """Leave the group; whoever is left takes over at once."""
        self._reader.close()
        self._writer.close()
        self._memory.close()

    def step(self) -> int:
        """Read what has come and handle what may be handled, for about a second; the number of records read.

        When it raises (the broker does not acknowledge, `report` raised), the next one begins where was committed.
        """
        found = self._poll()
        while (member := self._reader.group_metadata()) != self._member:  # partitions are dealt out anew
            self._begin(member)
            found = self._poll()
        try:
            for record in found:
                self._parts[TopicPartition(record.topic, record.partition)].add(record)
            until_ms = self._now_ms() + _TURN_MS
            while not self._is_stopping and self._now_ms() < until_ms and (chosen := self._choose()):
                self._handle(*chosen)
            self._settle()
        except BaseException:
            self._member = None
            raise
        return len(found)

    def _poll(self) -> list[kafka.Record]:
        # Long while the group deals out partitions: kafka-python 3.0.12 begins a join anew that ended between two polls.
        return list(kafka.poll(self._reader, timeout_ms=100 if self._parts or self._is_alone else 1000))

    def _begin(self, member: ConsumerGroupMetadata) -> None:
        """Take up the partitions that are ours as `member`, where and with what was committed last.

        Nothing is lost by that: partitions move only within a poll, and what was finished was committed before. What the
        poll found is read again, for in a partition it keeps the client goes on past what waited. Until all members
        have joined nothing is ours.
        """
        self._parts, self._committed, self._sent, self._reported = {}, {}, [], []
        for place in self._reader.assignment() if self._is_alone or member.state == MemberState.STABLE else ():
            committed = self._reader.committed(place, metadata=True)
            if committed is None:
                self._reader.seek_to_beginning(place)
            else:
                self._reader.seek(place, committed.offset)
                self._committed[place] = committed.offset, committed.metadata
            self._parts[place] = Unfinished.committed(committed.metadata if committed else "")
        self._member = member

    def _choose(self) -> tuple[Unfinished, kafka.Record] | None:
        """Of what may be handled now the command that came first."""
        now_ms = self._now_ms()
        found = [(part, record) for part in self._parts.values() if (record := part.next(now_ms))]
        return min(found, key=lambda each: each[1].appended_ms, default=None)

    def _handle(self, part: Unfinished, record: kafka.Record) -> None:
        """Finish one command, or note when to try again."""
        try:
            command = Commanded.read(record.value)
        except BadInput as refused:
            self._bury(record, refused, record.appended_ms)
            part.finish(record)
            return
        order = command.order
        handler = self._handlers.get(order.action, self._otherwise)
        known = self._memory.outcome_of(order.command_id)
        if known is not None:
            outcome, is_reported = known
            if not is_reported and order.command_id not in self._reported:
                self._finish(record, order, outcome)
        elif handler is not None:
            done = self._try(handler, command, record)
            if done is None:
                part.due_ms[record.key] = self._patience.next_ms(self._memory.attempts_of(order.command_id))
                return
            outcome = command.outcome(done, self._domain)
            self._memory.store(order.command_id, order.subject, outcome)
            self._finish(record, order, outcome)
        part.finish(record)

    def _try(self, handler: Handler, command: Commanded, record: kafka.Record) -> Done | None:
        """What came of it; None when it is to be tried again, or its time to has not come."""
        command_id, now_ms = command.order.command_id, self._now_ms()
        failed = self._memory.attempts_of(command_id)
        if failed and len(failed) >= self._patience.attempts:  # a crash came behind the last one, or fewer are wanted now
            return _given_up(failed)
        if self._patience.next_ms(failed) > now_ms:
            return None
        refused = command.without_handler(max(0.0, (now_ms - record.appended_ms) / 1000))
        if refused is not None:
            return refused
        try:
            given = handler(command.order)
        except self._passing as error:
            self._memory.note_attempt(command_id, self._now_ms(), _told(error))
            failed = self._memory.attempts_of(command_id)
            return _given_up(failed) if len(failed) >= self._patience.attempts else None
        except Exception as error:  # a broken handler is an outcome, not a reason to stop acting
            return Done("failed", _told(error))
        return self._checked(given, command)

    def _checked(self, given: object, command: Commanded) -> Done:
        """What a handler gave, or `failed` when no outcome can say it: whatever raised from here on, it would act again."""
        try:
            match given:
                case Done("succeeded" | "failed", str(), int() | float() as took_s, int() | float() | None as cost) if (
                    took_s >= 0 and (cost is None or 0 <= cost <= _HIGHEST_COST)
                ):
                    command.outcome(given, self._domain)
                    return given
        except (OverflowError, TypeError, ValueError):
            pass  # it ends past the year 9999, or JSON has no such text or number
        return Done("failed", f"the handler returned {given!a}, which no outcome can say"[:500])

    def _finish(self, record: kafka.Record, order: Order, outcome: bytes) -> None:
        """Report; with a dead letter when it was given up. Made again from SQLite after a crash."""
        failed = self._memory.attempts_of(order.command_id)
        said = orjson.loads(outcome)["data"]
        if failed and Done(said["status"], said["detail"]) == _given_up(failed):
            attempts = [Attempt(failed_at=format_time_ms(at_ms), error=error) for at_ms, error in failed]
            given_up = BadInput(Cause.HANDLER_FAILED, f"{order.action}: {len(failed)} attempts failed; {failed[-1][1]}")
            self._bury(record, given_up, failed[-1][0], attempts)
        self._report(order.subject, outcome)
        self._reported.append(order.command_id)

    def _bury(
        self, record: kafka.Record, cause: BadInput, now_ms: int, attempts: Sequence[Attempt] = ()
    ) -> None:
        key, letter = dead_letter(
            domain=self._domain, stage=STAGE, cause=cause.code, message=str(cause), topic=record.topic,
            partition=record.partition, offset=record.offset, key=record.key, value=record.value,
            now_ms=now_ms, attempts=attempts,
        )  # fmt: skip
        self._sent.append(self._writer.send(topic("dead-letters").of(self._domain), key=key.encode(), value=letter))

    def _publish(self, subject: str, outcome: bytes) -> None:
        self._sent.append(self._writer.send(topic("outcomes").of(self._domain), key=subject.encode(), value=outcome))

    def _settle(self) -> None:
        """What was sent is acknowledged, then marked, then committed. Raises KafkaError when it is not acknowledged."""
        for future in self._sent:
            future.get(timeout=30)
        if self._reported:
            self._memory.mark_published(self._reported)
        self._sent, self._reported = [], []
        self._commit()
        for place, part in self._parts.items():
            (self._reader.pause if part.is_full() else self._reader.resume)(place)

    def _commit(self) -> None:
        """Commit how far was read: past the last record and past transaction markers behind it."""
        reached = {place: part.to_commit(self._reader.position(place)) for place, part in self._parts.items()}
        changed = {place: at for place, at in reached.items() if self._committed.get(place) != at}
        if not changed:
            return
        try:
            self._reader.commit({place: OffsetAndMetadata(*at, -1) for place, at in changed.items()})
        except (CommitFailedError, KafkaTimeoutError, RebalanceInProgressError):
            return  # another member has the partitions, or the broker is slow: the next poll tells
        self._committed |= changed


def _told(error: Exception) -> str:
    """What a handler raised, in text that SQLite and JSON take."""
    return f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()[:500]


def _given_up(failed: Sequence[tuple[int, str]]) -> Done:
    """What comes of a command when the last of its attempts `failed` too."""
    return Done("failed", f"{failed[-1][1]} (attempt {len(failed)}, the last)")
