"""Consume commands in a program of your own: each is done once, and its outcome is reported.

Reads `<domain>.commands` (read committed), keeps what was done in SQLite, writes `<domain>.outcomes`. For each
command, in this order, so that a crash anywhere repeats nothing that was finished:

    1. known in SQLite?        -> its outcome is reported if it was not yet, and nothing is done again
    2. an earlier command about
       its subject waits?      -> it waits behind that one; other subjects go on
    3. expired?                -> outcome `failed`, detail `expired`, handler not called
    4. handler(order)          -> called again only if a crash came between here and 5; handlers get
                                  `command_id` to be idempotent by
       raises what passes      -> the command waits (`Patience`) and is tried again; after the last
                                  attempt: outcome `failed`, and a dead letter with every attempt
       raises anything else    -> outcome `failed`
    5. SQLite: outcome stored, then reported, then marked as reported, then offset committed

What waits is not committed: the committed offset stays before it, and the commit's metadata name what waits behind
that offset, so that whoever takes the partition up, here or on another machine, tries again what was not
finished (docs/decisions/0022). The README has an example; ops/actuator.py is another.
"""

from __future__ import annotations

import signal
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CommitFailedError, KafkaTimeoutError, RebalanceInProgressError
from kafka.structs import OffsetAndMetadata
from pydantic import ValidationError

from contracts.access import principal
from contracts.command import Command
from contracts.data import current
from contracts.dead_letter import Attempt, Cause
from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput, Retryable
from contracts.outcome import Outcome
from contracts.topics import topic
from ops import kafka
from ops.world import Done, Handler, Order
from udfs.serde import dead_letter, write_event

STAGE = "actuator"
# What a handler raises when the same call may succeed later. Raise `Retryable` for what your client calls otherwise.
PASSING: tuple[type[Exception], ...] = (Retryable, ConnectionError, TimeoutError)
# Commands of a partition that may wait before its reading stops: their offsets must fit Kafka's 4 KB of metadata.
MAX_WAITING = 200
_LONGEST_WAIT_S = 3600.0
# The client tries a commit again for so long; while partitions are dealt out anew only a poll lets it succeed.
_COMMIT_MS = 1000
# It throws a join away that a poll did not wait for to its end, and begins another.
_JOIN_MS = 2000
Report = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Patience:
    """How often a command is tried, and how long after: `retry_s`, doubled with each attempt, at most an hour."""

    attempts: int = 5
    retry_s: float = 1.0

    def wait_ms(self, failed: int) -> int:
        """From the `failed`-th attempt (from 1) to the next, in milliseconds of wall time."""
        return int(min(self.retry_s * 2.0 ** (failed - 1), _LONGEST_WAIT_S) * 1000)


class Memory:
    """Which commands were done, what came of it, and what was tried: one SQLite file.

    Programs on one machine may share a file; on another machine a program knows only what its group committed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS done (command_id TEXT PRIMARY KEY, subject TEXT NOT NULL,"
            " outcome BLOB NOT NULL, is_published INTEGER NOT NULL DEFAULT 0)"
        )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS attempts"
            " (command_id TEXT NOT NULL, failed_at_ms INTEGER NOT NULL, error TEXT NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS attempts_of ON attempts (command_id)")

    def outcome_of(self, command_id: str) -> tuple[bytes, bool] | None:
        """The stored outcome and whether it was reported; None for a command not done."""
        row = self._db.execute(
            "SELECT outcome, is_published FROM done WHERE command_id = ?", (command_id,)
        ).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def store(self, command_id: str, subject: str, outcome: bytes) -> None:
        self._db.execute(
            "INSERT INTO done (command_id, subject, outcome) VALUES (?, ?, ?)",
            (command_id, subject, outcome),
        )

    def mark_published(self, command_ids: Sequence[str]) -> None:
        """Their outcomes were reported; what was tried for them is forgotten."""
        with self._transaction():
            for name in command_ids:
                self._db.execute("UPDATE done SET is_published = 1 WHERE command_id = ?", (name,))
                self._db.execute("DELETE FROM attempts WHERE command_id = ?", (name,))

    def note_attempt(self, command_id: str, failed_at_ms: int, error: str) -> None:
        self._db.execute("INSERT INTO attempts VALUES (?, ?, ?)", (command_id, failed_at_ms, error))

    def attempts_of(self, command_id: str) -> list[tuple[int, str]]:
        """When (wall time, ms) and how each attempt failed so far, in order."""
        return self._db.execute(
            "SELECT failed_at_ms, error FROM attempts WHERE command_id = ? ORDER BY rowid", (command_id,)
        ).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


@dataclass(frozen=True)
class Commanded:
    """A command as read from its topic."""

    order: Order
    event_id: str
    correlation_id: str
    traceparent: str | None
    hops: int
    due_ms: int
    expiry: str | None

    @classmethod
    def read(cls, value: bytes | None) -> Commanded:
        """Raises BadInput with a dead-letter cause."""
        if not value:
            raise BadInput(Cause.EMPTY, "expected a command, came an empty record")
        try:
            event = orjson.loads(value)
            data, subject = event["data"], str(event["subject"])
            data["command_id"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise BadInput(Cause.NOT_JSON, f"expected a command as JSON: {error!r}") from None
        try:
            command = Command.model_validate(current(Command, event))
            expiry = event.get("expirytime")
            if isinstance(expiry, str):
                parse_time_ms(expiry)
            due_ms = parse_time_ms(command.event_time)
            format_time_ms(due_ms)  # its outcome must bear a time
            return cls(
                Order(
                    command.command_id, command.action, subject, command.parameters, command.event_time,
                    command.obligations,
                ),
                event_id=str(event["id"]),
                correlation_id=str(event.get("correlationid") or event["id"]),
                traceparent=str(event["traceparent"]) if "traceparent" in event else None,
                hops=int(str(event["hops"])),
                due_ms=due_ms,
                expiry=expiry if isinstance(expiry, str) else None,
            )  # fmt: skip
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadInput(Cause.DATA_INVALID, f"data.{first['loc']}: {first['msg']}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadInput(Cause.ENVELOPE_INVALID, f"expected a command: {error!r}") from None

    def without_handler(self, waited_s: float) -> Done | None:
        """What comes of it without its handler; None when that is to be called.

        `waited_s` is how long the command lay in its topic (wall time): one that expires n seconds of
        event time after its cause may wait n seconds (docs/decisions/0010).
        """
        if self.expiry is not None and self.due_ms + int(waited_s * 1000) > parse_time_ms(self.expiry):
            return Done("failed", f"expired: {waited_s:.1f} s in the queue, valid until {self.expiry}")
        if self.order.obligations.get("dry_run") is True:
            return Done("succeeded", "dry run: nothing was done")
        return None

    def outcome(self, done: Done, domain: str) -> bytes:
        """The outcome event; the same arguments give the same bytes."""
        event_ms = self.due_ms + int(done.took_s * 1000)
        return write_event(
            event_id=derive_id(self.order.command_id, STAGE, self.order.action),
            source=f"/flyball/{domain}/{STAGE}",
            event_type=Outcome.event_type,
            subject=self.order.subject,
            time_ms=event_ms,
            dataschema=schema_urn(domain, Outcome.event_type, Outcome.schema_version),
            correlation_id=self.correlation_id,
            causation_id=self.event_id,
            traceparent=self.traceparent,
            hops=self.hops + 1,
            data={
                "event_time": format_time_ms(event_ms),
                "command_id": self.order.command_id,
                "action": self.order.action,
                "status": done.status,
                "cost": done.cost,
                "detail": done.detail[:1000],
            },
        )


@dataclass
class _Line:
    """Commands about one subject that wait: the first until `due_ms` (wall time), the others for it."""

    records: deque[kafka.Record]
    due_ms: int


@dataclass
class _Partition:
    """What is known of a partition beside its position.

    `finished_until`, `unfinished`: from the commit this began with: all before that offset is finished, but these.
    """

    finished_until: int = 0
    unfinished: frozenset[int] = frozenset()
    lines: dict[bytes | None, _Line] = field(default_factory=dict)

    @classmethod
    def committed(cls, metadata: str) -> _Partition:
        """From a commit's metadata ("until:offset,offset"); another program's metadata say nothing."""
        until, _, waiting = metadata.partition(":")
        try:
            return cls(int(until), frozenset(int(offset) for offset in waiting.split(",")))
        except ValueError:
            return cls()

    def to_commit(self, position: int) -> tuple[int, str]:
        """The offset to commit when the reader stands at `position`, and the metadata."""
        until = max(position, self.finished_until)
        ahead = {offset for offset in self.unfinished if offset >= position}
        waiting = sorted(ahead | {r.offset for line in self.lines.values() for r in line.records})
        if not waiting:
            return until, ""
        return waiting[0], f"{until}:{','.join(map(str, waiting))}"

    def is_finished(self, offset: int) -> bool:
        return offset < self.finished_until and offset not in self.unfinished

    def is_full(self) -> bool:
        return sum(len(line.records) for line in self.lines.values()) >= MAX_WAITING


class _Membership(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes that partitions were dealt out anew. It runs on the client's own thread, so it does nothing else.

    Nothing is lost by that: whatever is finished was committed before the poll in which partitions go. Between their
    going and coming nothing is ours, so nothing is handled and committed.
    """

    def __init__(self) -> None:
        self.is_settled = False
        self.changes = 0

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.is_settled = False
        self.changes += 1

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.changes += 1
        self.is_settled = True


class Commands:
    """The commands of a domain, handled one after another in this process.

    `handlers`: one an action; it gives what it did, or raises. Commands of other actions are another program's and
    passed by, unless `otherwise` handles them. `report(subject, outcome)` gets each outcome event instead of
    `<domain>.outcomes`, at least once; when it raises, the command counts as done and not yet reported. What is no
    command, and what was given up, goes to `<domain>.dead-letters`. `is_alone`: whoever starts it sees to it that there is
    one at a time; it takes every partition itself, and after a kill goes on without waiting for a group.
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
        self._now_ms = now_ms
        self._outcomes = topic("outcomes").of(domain)
        self._dead_letters = topic("dead-letters").of(domain)
        self._membership = _Membership()
        self._seen_changes = 0
        self._had: set[TopicPartition] = set()  # partitions at work when they were last dealt out anew
        self._parts: dict[TopicPartition, _Partition] = {}
        self._committed: dict[TopicPartition, tuple[int, str]] = {}
        self._sent: list[Any] = []
        self._reported: list[str] = []
        self._is_stopping = False
        commands = topic("commands").of(domain)
        if is_alone:
            reader.assign(kafka.partitions(reader, [commands]))
            self._membership.on_partitions_assigned(())
        else:
            reader.subscribe([commands], listener=self._membership)

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
            domain, handlers, reader=kafka.member(bootstrap_servers, group, principal=who),
            writer=kafka.producer(bootstrap_servers, principal=who, linger_ms=0), memory=Memory(Path(memory)), **options,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        """Handle commands until `stop` is called or one of `signals` comes (main thread only; () for none).

        The command in hand is finished, reported and committed first; what waits, waits for the next start.
        """
        before = {each: signal.signal(each, lambda *_: self.stop()) for each in signals}
        try:
            while not self._is_stopping:
                self.step()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def stop(self) -> None:
        """`run` ends after the step it is in. From any thread or signal handler."""
        self._is_stopping = True

    def close(self) -> None:
        """Leave the group; whoever is left takes over at once."""
        self._reader.close()
        self._writer.close()
        self._memory.close()

    def step(self) -> int:
        """Handle what the next poll brings and what has waited long enough; the number of records read.

        When it raises (the broker does not acknowledge, `report` raised), the next one begins where was committed.
        """
        found: dict[TopicPartition, list[kafka.Record]] = {}
        for record in kafka.poll(self._reader, timeout_ms=50 if self._membership.is_settled else _JOIN_MS):
            found.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        try:
            self._follow_assignment(found)
            if not self._membership.is_settled:
                return 0
            for place, records in found.items():
                self._take_all(place, records)
            for place, part in self._parts.items():
                self._try_again(part)
                if place in self._reader.paused() and not part.is_full():
                    self._reader.resume(place)
            self._settle()
        except BaseException:
            self._rewind(found)
            raise
        return sum(map(len, found.values()))

    def _follow_assignment(self, found: dict[TopicPartition, list[kafka.Record]]) -> None:
        """After each change begin anew, where and with what the last commits of the partitions say.

        In a partition that it keeps the client goes on where it stands, past what waited here: there it goes back, and
        what was `found` beyond is left out.
        """
        if self._membership.changes == self._seen_changes:
            return
        had = set(self._parts) if self._seen_changes >= 0 else set()  # -1: gone back already
        self._seen_changes = self._membership.changes
        self._parts.clear()
        self._committed.clear()
        if not self._membership.is_settled:
            self._had |= had
            return
        had, self._had = had | self._had, set()
        for place in self._reader.assignment():
            committed = self._reader.committed(place, metadata=True)
            self._parts[place] = _Partition.committed(committed.metadata if committed else "")
            stands_at = found[place][0].offset if place in found else self._reader.position(place)
            if committed:
                self._committed[place] = committed.offset, committed.metadata
                if stands_at != committed.offset:
                    self._reader.seek(place, committed.offset)
                    found.pop(place, None)
            elif place in had:
                self._reader.seek_to_beginning(place)
                found.pop(place, None)

    def _rewind(self, found: Mapping[TopicPartition, Sequence[kafka.Record]]) -> None:
        """To where was committed, and to what came just now of partitions whose commits are not known yet."""
        self._sent, self._reported = [], []
        for place in self._reader.assignment():
            if place in self._committed:
                self._reader.seek(place, self._committed[place][0])
            elif place in self._parts:
                self._reader.seek_to_beginning(place)
            elif place in found:
                self._reader.seek(place, found[place][0].offset)
        self._seen_changes = -1

    def _take_all(self, place: TopicPartition, records: list[kafka.Record]) -> None:
        part = self._parts[place]
        for record in records:
            if self._is_stopping or part.is_full():
                self._reader.seek(place, record.offset)
                if not self._is_stopping:  # what is behind the handlers is gone: read on when some of it is back
                    self._reader.pause(place)
                return
            if part.is_finished(record.offset):
                continue
            line = part.lines.get(record.key)
            if line is not None:
                line.records.append(record)
            elif (due_ms := self._handle(record)) is not None:
                part.lines[record.key] = _Line(deque([record]), due_ms)

    def _try_again(self, part: _Partition) -> None:
        """The first of each line whose time has come, and those behind it as long as they succeed."""
        for key, line in list(part.lines.items()):
            while line.records and line.due_ms <= self._now_ms() and not self._is_stopping:
                due_ms = self._handle(line.records[0])
                if due_ms is None:
                    line.records.popleft()
                else:
                    line.due_ms = due_ms
            if not line.records:
                del part.lines[key]

    def _handle(self, record: kafka.Record) -> int | None:
        """One command; None when it is finished, else when to come again (wall time, ms)."""
        try:
            command = Commanded.read(record.value)
        except BadInput as refused:
            self._bury(record, refused, record.appended_ms)
            return None
        order = command.order
        known = self._memory.outcome_of(order.command_id)
        if known is not None:
            outcome, is_reported = known
            if not is_reported and order.command_id not in self._reported:
                self._finish(record, order, outcome)
            return None
        handler = self._handlers.get(order.action, self._otherwise)
        if handler is None:
            return None
        waits_until = self._waits_until(order.command_id)
        if waits_until is not None and waits_until > self._now_ms():
            return waits_until
        done = command.without_handler(max(0.0, (self._now_ms() - record.appended_ms) / 1000))
        if done is None:
            done = self._attempt(handler, order)
        if done is None:
            return self._waits_until(order.command_id)
        outcome = command.outcome(done, self._domain)
        self._memory.store(order.command_id, order.subject, outcome)
        self._finish(record, order, outcome)
        return None

    def _attempt(self, handler: Handler, order: Order) -> Done | None:
        """What the handler did; None when it failed for a passing reason and is to be tried again."""
        try:
            return handler(order)
        except self._passing as error:
            told = f"{type(error).__name__}: {error}"[:500]
            self._memory.note_attempt(order.command_id, self._now_ms(), told)
            failed = len(self._memory.attempts_of(order.command_id))
            return Done("failed", f"{told} (attempt {failed}, the last)") if failed >= self._patience.attempts else None
        except Exception as error:  # a broken handler is an outcome, not a reason to stop acting
            return Done("failed", f"{type(error).__name__}: {error}"[:500])

    def _waits_until(self, command_id: str) -> int | None:
        """When a command that failed before is to be tried again; None for one that did not."""
        failed = self._memory.attempts_of(command_id)
        return failed[-1][0] + self._patience.wait_ms(len(failed)) if failed else None

    def _finish(self, record: kafka.Record, order: Order, outcome: bytes) -> None:
        """Report; with a dead letter when it was given up. Made again from SQLite after a crash."""
        failed = self._memory.attempts_of(order.command_id)
        if len(failed) >= self._patience.attempts:
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
        self._sent.append(self._writer.send(self._dead_letters, key=key.encode(), value=letter))

    def _publish(self, subject: str, outcome: bytes) -> None:
        self._sent.append(self._writer.send(self._outcomes, key=subject.encode(), value=outcome))

    def _settle(self) -> None:
        """What was sent is acknowledged, then marked, then committed. Raises KafkaError when it is not."""
        sent, self._sent = self._sent, []
        if sent:
            self._writer.flush()
            for future in sent:
                future.get(timeout=30)
        reported, self._reported = self._reported, []
        if reported:
            self._memory.mark_published(reported)
        self._commit()

    def _commit(self) -> None:
        """Commit how far was read: past the last record and past transaction markers behind it."""
        reached = {place: part.to_commit(self._reader.position(place)) for place, part in self._parts.items()}
        changed = {place: at for place, at in reached.items() if self._committed.get(place) != at}
        if not changed:
            return
        try:
            offsets = {place: OffsetAndMetadata(*at, -1) for place, at in changed.items()}
            self._reader.commit(offsets, timeout_ms=_COMMIT_MS)
        except (CommitFailedError, KafkaTimeoutError, RebalanceInProgressError):
            return  # another member has the partitions, they are dealt out anew, or the broker is slow: the next poll tells
        self._committed |= changed
