"""Files and worlds into the facts topic: reading, refusing, pacing, publishing."""

from __future__ import annotations

import csv
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import orjson
from kafka import KafkaProducer
from kafka.errors import KafkaError

from contracts.dead_letter import Cause
from contracts.domain import DomainContract
from contracts.envelope import derive_id, parse_time_ms, schema_urn
from contracts.errors import BadInput, SetupFailed
from contracts.fact import ClockTicked
from contracts.topics import MAX_FACT_BYTES, topic
from ops.csv_time import parse_loose_time_ms
from ops.world import NewFact, World
from udfs.serde import dead_letter, write_event

STAGE = "emit"


@dataclass(frozen=True)
class RefusedLine:
    """A line of a file that is no fact; it goes to dead letters with the file's name and its line."""

    line: int
    raw: bytes
    error: BadInput


@dataclass(frozen=True)
class RawEvent:
    """A line that is published as it stands: `context` judges it like any producer's record.

    `event_ms`: its time; 0 where it tells none that `context` would take.
    """

    line: int
    key: bytes | None
    value: bytes
    event_ms: int = 0


class RowReader(Protocol):
    """What a CSV row means: a World, or a part of it."""

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact: ...


Item = NewFact | RefusedLine | RawEvent
Line = tuple[int, bytes, Item]  # a line's number, its bytes and what was read from it


def read_file(
    path: Path | None, world: World, *, subject: str | None, max_ahead_ms: int
) -> Iterator[Item]:
    """The facts of a CSV, bare JSONL or CloudEvents JSONL file; None reads standard input.

    Rows that are no facts come out as RefusedLine, in place. A row that leaps ahead of both its
    neighbours by more than `max_ahead_ms` is refused: one wild timestamp must not move the clock.
    Where the world's files stand in no order of time (`plays_by_time`), the file is read whole and its
    facts come in the order of event time, equal times as written, behind what is refused; then no
    row leaps. Raises SetupFailed when the file cannot be read.
    """
    name = subject or (path.stem if path else None)
    try:
        stream: IO[bytes] = sys.stdin.buffer if path is None else path.open("rb")
    except OSError as error:
        raise SetupFailed(f"cannot read {str(path)!r}: {error.strerror}") from None
    with stream:
        lines = iter(stream)
        first = next(lines, b"")
        if first.lstrip()[:1] in (b"{", b"["):
            found = _read_jsonl(_chain(first, lines), world, name, int(time.time() * 1000) + max_ahead_ms)
        else:
            found = _read_csv(first, lines, world, name)
        if getattr(world, "plays_by_time", False):
            yield from _by_time(found)
        else:
            yield from _refuse_leaps(found, max_ahead_ms)


def with_references(
    items: Iterator[Item], path: Path | None, world: World, *, subject: str | None
) -> Iterator[Item]:
    """The items behind the reference facts of the CSV file `path`, which get the first fact's subject and time.

    Its rows that are no facts come out as RefusedLine, in place. None: the items alone. Raises SetupFailed when
    the file cannot be read or the world knows no reference facts.
    """
    if path is None:
        yield from items
        return
    read_row = getattr(world, "reference_row_to_fact", None)
    if read_row is None:
        raise SetupFailed("expected a domain whose world reads reference facts; this one has none")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SetupFailed(f"cannot read {str(path)!r}: {error.strerror}") from None
    before: list[Item] = []
    for item in items:
        before.append(item)
        if isinstance(item, NewFact):
            reader = _References(read_row, item.event_ms)
            name = subject or item.subject
            yield from (found for _, _, found in _read_csv(lines[0] if lines else b"", iter(lines[1:]), reader, name))
            break
    yield from before
    yield from items


@dataclass(frozen=True)
class _References:
    """Reads the rows of a second file; `event_ms` is when they begin to hold."""

    read_row: Callable[[Mapping[str, str], str | None, int], NewFact]
    event_ms: int

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        return self.read_row(row, subject, self.event_ms)


def _by_time(lines: Iterator[Line]) -> Iterator[Item]:
    """What is no fact at once, in place; then the facts by event time."""
    facts: list[NewFact] = []
    for _, _, item in lines:
        if isinstance(item, NewFact):
            facts.append(item)
        else:
            yield item
    yield from sorted(facts, key=lambda fact: fact.event_ms)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _read_csv(
    header: bytes, lines: Iterator[bytes], world: RowReader, subject: str | None
) -> Iterator[Line]:
    try:
        columns = next(csv.reader([header.decode("utf-8-sig")]), [])
    except (UnicodeDecodeError, csv.Error):
        columns = []
    if not columns:
        raise SetupFailed(
            "expected a CSV file with a header line, or one JSON object a line; came"
            f" {header[:60]!r}"
        )
    columns = [column.strip() for column in columns]
    for number, raw in enumerate(lines, start=2):
        if raw.strip():
            yield number, raw, _csv_item(number, raw, columns, world, subject)


def _csv_item(
    number: int, raw: bytes, columns: list[str], world: RowReader, subject: str | None
) -> Item:
    try:
        values = next(csv.reader([raw.decode("utf-8").rstrip("\r\n")]))
        if len(values) != len(columns):
            raise BadInput(
                Cause.ROW_INVALID, f"expected {len(columns)} columns {columns}, came {len(values)}"
            )
        return world.row_to_fact(dict(zip(columns, values, strict=True)), subject)
    except UnicodeDecodeError as error:
        return RefusedLine(number, raw, BadInput(Cause.NOT_UTF8, f"expected UTF-8: {error}"))
    except csv.Error as error:
        return RefusedLine(number, raw, BadInput(Cause.ROW_INVALID, f"expected CSV: {error}"))
    except BadInput as error:
        return RefusedLine(number, raw, error)


def _read_jsonl(lines: Iterator[bytes], world: World, subject: str | None, latest_ms: int) -> Iterator[Line]:
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip(b"\r\n")
        if line.strip():
            yield number, line, _json_item(number, line, world, subject, latest_ms)


def _json_item(number: int, line: bytes, world: World, subject: str | None, latest_ms: int) -> Item:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return RawEvent(number, None, line)
    if not isinstance(found, dict) or "specversion" in found:
        told = found if isinstance(found, dict) else {}
        key, event_ms = told.get("subject"), 0
        with suppress(ValueError, TypeError):
            event_ms = parse_time_ms(told.get("time"))  # type: ignore[arg-type]
        event_ms = event_ms if 0 < event_ms <= latest_ms else 0
        return RawEvent(number, key.encode() if isinstance(key, str) else None, line, event_ms)
    try:
        return _bare_fact(found, world, subject)
    except BadInput as error:
        return RefusedLine(number, line, error)
    except orjson.JSONEncodeError as error:  # nested too deeply
        return RefusedLine(number, line, BadInput(Cause.ROW_INVALID, f"expected a fact: {error}"))


def _bare_fact(found: dict[str, object], world: World, subject: str | None) -> NewFact:
    """A bare JSON object: either {type, subject, time, data}, or the columns of a CSV row."""
    if {"type", "data"} <= set(found):
        kind, about, data = found["type"], found.get("subject", subject), found["data"]
        if not isinstance(kind, str) or not isinstance(about, str) or not isinstance(data, dict):
            raise BadInput(
                Cause.ROW_INVALID, "expected type and subject as strings and data as an object"
            )
        event_ms = parse_loose_time_ms(found.get("time"))
        canonical = orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()
        return NewFact(kind, about, event_ms, data, canonical)
    row = {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in found.items()
    }
    return world.row_to_fact(row, subject)


def _refuse_leaps(lines: Iterator[Line], max_ahead_ms: int) -> Iterator[Item]:
    """One fact of look-ahead: one ahead of its neighbours on both sides by too much is refused."""
    before: int | None = None
    held: tuple[int, bytes, NewFact] | None = None
    behind: list[Item] = []  # lines without a time of their own, between the held fact and the next
    for number, raw, item in lines:
        if not isinstance(item, NewFact):
            if held is None:
                yield item
            else:
                behind.append(item)
            continue
        if held is not None:
            held_number, held_raw, fact = held
            limit = item.event_ms if before is None else max(before, item.event_ms)
            if fact.event_ms > limit + max_ahead_ms:
                told = (
                    f"leaps {(fact.event_ms - limit) / 1000:.0f} s ahead of both its neighbours,"
                    f" at most {max_ahead_ms // 1000} s"
                )
                yield RefusedLine(held_number, held_raw, BadInput(Cause.TIME_AHEAD, told))
            else:
                yield fact
                before = fact.event_ms
        yield from behind
        behind = []
        held = number, raw, item
    if held is not None:
        yield held[2]
    yield from behind


@dataclass
class Emitted:
    """What was published, for reports."""

    facts: int = 0
    refused: int = 0
    oversized: list[str] = field(default_factory=list)
    last_event_ms: int = 0
    started_at: float = 0.0
    ended_at: float = 0.0


class Emitter:
    """Publishes facts of one domain at a rate; ids are derived, so a file played twice repeats itself.

    `sign`: puts a producer's signature to an event for a topic, as BadInput refuses where it cannot.
    """

    def __init__(
        self, contract: DomainContract, writer: KafkaProducer, *, file_name: str,
        sign: Callable[[bytes, str], bytes] | None = None,
    ) -> None:  # fmt: skip
        self._contract = contract
        self._writer = writer
        self._file_name = file_name
        self._sign = sign
        self._facts = topic("facts").of(contract.name)
        self._dead_letters = topic("dead-letters").of(contract.name)
        self._occurrences: Counter[str] = Counter()
        self._not_taken: list[Exception] = []
        self.emitted = Emitted()

    def encode(self, fact: NewFact) -> bytes:
        """The fact's event. Equal facts of one input get different ids by their occurrence number."""
        identity = f"{fact.type}|{fact.subject}|{fact.identity}"
        occurrence = self._occurrences[identity]
        self._occurrences[identity] += 1
        model = self._contract.facts.get(fact.type)
        version = model.schema_version if model else 1
        return write_event(
            event_id=derive_id(identity, STAGE, self._contract.name, occurrence),
            source=f"/flyball/{self._contract.name}/{STAGE}",
            event_type=fact.type,
            subject=fact.subject,
            time_ms=fact.event_ms,
            dataschema=schema_urn(self._contract.name, fact.type, version),
            data=fact.data,
        )

    def emit(
        self,
        items: Iterable[Item | None],
        *,
        rate: float | None,
        on_progress: Callable[[Emitted], None] | None = None,
    ) -> Emitted:
        """Publish everything, `rate` facts a second (None: as fast as it goes); returns when Kafka has all of it.

        `None` among the items means "nothing yet": what was sent is flushed and the loop goes on.
        A record over 2 MiB is not sent; it is told in `oversized`. Raises SetupFailed with the cause as soon as it is
        known that Kafka did not take a record.
        """
        done = self.emitted
        done.started_at = time.monotonic()
        due = done.started_at
        for item in items:
            if item is None:
                self._flush(self._writer)
                continue
            if rate is not None and isinstance(item, NewFact):
                due += 1 / rate
                if (ahead := due - time.monotonic()) > 0.002:
                    time.sleep(ahead)
            self._send(item)
            if on_progress is not None and (done.facts + done.refused) % 200 == 0:
                on_progress(done)
        self._flush(self._writer)
        done.ended_at = time.monotonic()
        if on_progress is not None:
            on_progress(done)
        return done

    def _send(self, item: Item) -> None:
        done = self.emitted
        if isinstance(item, RefusedLine):
            key, letter = dead_letter(
                domain=self._contract.name, stage=STAGE, cause=item.error.code,
                message=str(item.error), topic=self._file_name, partition=0,
                offset=item.line, key=None, value=item.raw,
                now_ms=int(time.time() * 1000),
            )  # fmt: skip
            self._put(self._writer, self._dead_letters, key.encode(), letter)
            done.refused += 1
            return
        if isinstance(item, RawEvent):
            key_bytes, value = item.key, item.value
        else:
            key_bytes, value = item.subject.encode(), self.encode(item)
        done.last_event_ms = max(done.last_event_ms, item.event_ms)
        if self._sign is not None:
            with suppress(BadInput):  # `context` says what is wrong with it
                value = self._sign(value, self._facts)
        if len(value) > MAX_FACT_BYTES:
            done.oversized.append(
                f"expected at most {MAX_FACT_BYTES} bytes a record, came {len(value)}"
                + (f" (line {item.line})" if isinstance(item, RawEvent) else "")
            )
            return
        self._put(self._writer, self._facts, key_bytes, value)
        done.facts += 1

    def _put(self, writer: KafkaProducer, name: str, key: bytes | None, value: bytes, partition: int | None = None) -> None:
        try:
            writer.send(name, key=key, value=value, partition=partition).add_errback(self._not_taken.append)
        except KafkaError as error:
            self._not_taken.append(error)
        self._raise_not_taken()

    def _flush(self, writer: KafkaProducer) -> None:
        writer.flush()
        self._raise_not_taken()

    def _raise_not_taken(self) -> None:
        if self._not_taken:
            raise SetupFailed(
                f"after {self.emitted.facts} facts, {len(self._not_taken)} records that Kafka did not take:"
                f" {self._not_taken[0]}. Publish the same input again: what is there already is known by its id"
            )

    def tick(self, event_ms: int, *, outcomes: KafkaProducer | None = None) -> None:
        """One tick on every partition `context` reads: event time has passed `event_ms` everywhere.

        `outcomes` writes those on the outcomes, where the producer of facts may not.
        """
        for row in (topic("facts"), topic("outcomes")):
            for partition in range(row.partitions):
                fact = NewFact(ClockTicked.event_type, f"clock-{partition}", event_ms, {}, f"{row.name} {event_ms}")
                writer = outcomes if outcomes is not None and row.name == "outcomes" else self._writer
                name, value = row.of(self._contract.name), self.encode(fact)
                if self._sign is not None:
                    value = self._sign(value, name)
                self._put(writer, name, fact.subject.encode(), value, partition)
        self._flush(self._writer)
        if outcomes is not None:
            self._flush(outcomes)
