"""Dead letters as they are read: what was refused and why, what was put back (ops/redrive.py), and how that ended.

Where a record was put says how it ended: a dead letter about that place continues the history, and readers that are
past it without one have accepted it. Nothing here writes.

Every job, producer and actuator may write letters: what no stage can have written is left out, and what a letter says of
its record is a claim. So is a `flyball.redriven` event: it counts only if the record it tells of stands where it says,
as `redrive` puts it there (`is_put_back`). A record that has left the log cannot be looked at: then the event counts,
as nothing is put back twice, unless the log shows that the record would still have to be there (`judged`). Who may
write the topic of a record can still claim that it was corrected, with a record of its own in that topic that says so.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import orjson
from kafka import KafkaConsumer, TopicPartition
from pydantic import ValidationError

from contracts.access import principal
from contracts.dead_letter import PUT_BACK, Cause, DeadLetter, Redriven
from contracts.envelope import parse_time_ms
from contracts.errors import BrokerUnavailable, SetupFailed
from contracts.topics import TOPICS, topic
from ops import kafka

# As contracts/envelope.py `derive_id` makes them; they name files, too.
_ID = re.compile(r"[0-9a-f]{32}")
# What the record that was put back carries: the letter it comes from, and how often it was put back by then.
LETTER_HEADER, ATTEMPT_HEADER = "flyball-dead-letter", "flyball-attempt"
_MAX_ATTEMPTS = 1_000_000
# A record and its event are taken by the broker within one transaction (seconds); more than brokers' clocks differ, too.
_TOGETHER_MS = 5 * 60_000
_PATIENCE_S = 30.0
State = Literal["dead", "redriven", "accepted", "dead_again"]
Mark = tuple[str, str]
# What the log says to a claim that a record was put back: it is there, it cannot be looked at, it never was there.
Standing = Literal["there", "unknown", "forged"]


@dataclass(frozen=True)
class Letter:
    """A dead letter as read. `at` is when it was written."""

    id: str
    at: str
    data: DeadLetter

    @property
    def place(self) -> str:
        return f"{self.data.topic}/{self.data.partition}/{self.data.offset}"

    @cached_property
    def key(self) -> bytes | None:
        return None if self.data.key_base64 is None else base64.b64decode(self.data.key_base64, validate=True)

    @cached_property
    def value(self) -> bytes | None:
        return None if self.data.value_base64 is None else base64.b64decode(self.data.value_base64, validate=True)

    @property
    def mark(self) -> Mark:
        """What is put back once: the record at its place. (A file's line may have had other bytes before.)"""
        return self.place, sha256(self.value)


@dataclass(frozen=True)
class Claim:
    """A `flyball.redriven` event as read: `put` tells where the letter's record is now. `taken_ms`: when the broker took it."""

    letter: Letter
    put: Redriven
    at: str
    taken_ms: int


@dataclass(frozen=True)
class History:
    """A letter, where its record was put, and the letters before and after it about the same record.

    `is_seen`: the record was looked at where it was put; otherwise it has left the log, or a transaction hides it still.
    """

    letter: Letter
    attempt: int = 0
    before: str | None = None
    redriven: Redriven | None = None
    redriven_at: str | None = None
    is_seen: bool = False
    after: str | None = None

    def state(self, passed: Callable[[Redriven], bool]) -> State:
        if self.redriven is None:
            return "dead"
        if self.after is not None:
            return "dead_again"
        return "accepted" if passed(self.redriven) else "redriven"


def sha256(value: bytes | None) -> str:
    return hashlib.sha256(value or b"").hexdigest()


# -------------------------------------------------------------------------------------- reading


def histories(
    domain: str, records: Iterable[kafka.Record], standing: Callable[[Claim], Standing], *, of: Collection[Mark] | None = None
) -> list[History]:
    """The letters of a dead-letters topic in its order, each once, with what became of them. Others are left out.

    `standing` is asked about each claim that can be true, in the order of the places, and about those of `of` alone (None: all).
    """
    letters: dict[tuple[str, Mark], Letter] = {}
    claims: list[Claim] = []
    for record in records:
        try:
            event = orjson.loads(record.value or b"")
            kind, at, data = event["type"], event["time"], orjson.dumps(event["data"])
            if kind == Redriven.event_type:
                put = Redriven.model_validate_json(data)
                letter = letters.get((event["causationid"], (event["subject"], put.refused_sha256)))
                parse_time_ms(at)
                if letter is not None and (of is None or letter.mark in of) and may_be(domain, letter, put):
                    claims.append(Claim(letter, put, at, record.appended_ms))
            elif kind == DeadLetter.event_type and _ID.fullmatch(event["id"]):
                letter = Letter(event["id"], at, DeadLetter.model_validate_json(data))
                parse_time_ms(at), letter.key  # both as they must be
                letters.setdefault((letter.id, letter.mark), letter)
        except (ValidationError, KeyError, TypeError, ValueError):  # whoever may write letters may write nonsense
            continue
    asked = sorted(range(len(claims)), key=lambda number: _where(claims[number].put))
    said = {number: standing(claims[number]) for number in asked}
    marks: dict[Mark, tuple[Claim, bool]] = {}
    for is_seen, wanted in ((True, "there"), (False, "unknown")):  # what was seen first, whoever came before
        for number, claim in enumerate(claims):
            if said[number] == wanted:
                marks.setdefault(claim.letter.mark, (claim, is_seen))
    put_at = {place_of(claim.put): (claim.letter.id, claim.put.attempt) for claim, _ in marks.values()}
    died_at: dict[str, str] = {}
    for letter in letters.values():
        died_at.setdefault(letter.place, letter.id)
    found = []
    for letter in letters.values():
        before, attempt = put_at.get(letter.place, (None, 0))
        history = History(letter, attempt, before)
        if letter.mark in marks:
            claim, is_seen = marks[letter.mark]
            after = died_at.get(place_of(claim.put))
            history = replace(history, redriven=claim.put, redriven_at=claim.at, is_seen=is_seen, after=after)
        found.append(history)
    return found


def _where(put: Redriven) -> tuple[str, int, int]:
    return put.topic, put.partition, put.offset


def place_of(put: Redriven) -> str:
    return f"{put.topic}/{put.partition}/{put.offset}"


def is_line(domain: str, letter: Letter) -> bool:
    """Whether it is about a line of a file, and no record of the domain."""
    return letter.data.topic not in {row.of(domain) for row in TOPICS}


def home_of(domain: str, letter: Letter) -> str:
    """The topic its record goes back to, without the domain: the one it was in; a line of a file becomes a fact."""
    return "facts" if is_line(domain, letter) else letter.data.topic.removeprefix(f"{domain}.")


def may_be(domain: str, letter: Letter, put: Redriven) -> bool:
    """Whether `redrive` can have put the letter's record there: as it was only behind it in its own partition."""
    home = home_of(domain, letter)
    if home not in PUT_BACK or put.topic != topic(home).of(domain) or put.attempt > _MAX_ATTEMPTS or min(put.partition, put.offset) < 0:
        return False
    if put.is_edited:
        return True
    same = (put.topic, put.partition, put.sha256) == (letter.data.topic, letter.data.partition, put.refused_sha256)
    return same and put.offset > letter.data.offset


def is_put_back(claim: Claim, record: kafka.Record) -> bool:
    """Whether the record is the one claimed: its bytes, and the headers that `redrive` gives it."""
    wanted = {(LETTER_HEADER, claim.letter.id.encode()), (ATTEMPT_HEADER, str(claim.put.attempt).encode())}
    return sha256(record.value) == claim.put.sha256 and wanted <= set(record.headers)


def judged(claim: Claim, record: kafka.Record | None, oldest: kafka.Record | None, stable: int, end: int) -> Standing:
    """A claim by what the log holds: `record` at its place, and the `oldest` of that partition (None: nothing).

    Offsets before `stable` are of transactions that have ended, before `end` of those that were begun. A log is in order
    of time: where its oldest record was taken well before the claim, one put back with the claim has not left it.
    """
    at = claim.put.offset
    if record is not None:
        return "there" if is_put_back(claim, record) else "forged"
    if at >= end:
        return "forged"
    if at >= stable or oldest is None:
        return "unknown"
    return "forged" if at >= oldest.offset or oldest.appended_ms < claim.taken_ms - _TOGETHER_MS else "unknown"


class Places:
    """Says how claims about one domain stand, by its log as it is now; quick for those asked in the order of the log."""

    def __init__(self, bootstrap_servers: str, domain: str) -> None:
        self._bootstrap_servers, self._principal = bootstrap_servers, principal(domain, "reader")
        self._bounds: dict[TopicPartition, tuple[kafka.Record | None, int, int]] = {}
        self._ahead: dict[tuple[str, int, int], kafka.Record] = {}
        self._open: list[KafkaConsumer] = []

    @cached_property
    def _committed(self) -> KafkaConsumer:
        return self._opened(is_committed=True)

    @cached_property
    def _every(self) -> KafkaConsumer:
        return self._opened(is_committed=False)

    def _opened(self, *, is_committed: bool) -> KafkaConsumer:
        self._open.append(found := kafka.consumer(self._bootstrap_servers, principal=self._principal, is_committed=is_committed))
        return found

    def standing(self, claim: Claim) -> Standing:
        """`judged`. Raises BrokerUnavailable."""
        where, at = _where(claim.put), claim.put.offset
        partition = TopicPartition(*where[:2])
        if partition not in self._bounds:  # before the record: what is committed meanwhile is no forgery
            self._bounds[partition] = self._bounds_of(partition)
        oldest, stable, end = self._bounds[partition]
        if where not in self._ahead and at < stable:
            self._committed.assign([partition])
            self._committed.seek(partition, at)
            self._ahead = {(r.topic, r.partition, r.offset): r for r in self._batch(partition, at + 1)}
        return judged(claim, self._ahead.get(where), oldest, stable, end)

    def _bounds_of(self, partition: TopicPartition) -> tuple[kafka.Record | None, int, int]:
        """The oldest committed record, and where the committed ones and all end; nothing where there is no such partition."""
        if partition not in kafka.partitions(self._committed, [partition.topic]):
            return None, 0, 0
        stable, end = (kafka.end_offsets(reader, [partition])[partition] for reader in (self._committed, self._every))
        self._committed.assign([partition])
        self._committed.seek_to_beginning(partition)
        return next(iter(self._batch(partition, stable)), None), stable, end

    def _batch(self, partition: TopicPartition, behind: int) -> list[kafka.Record]:
        """The next committed records; none when there are none before `behind`."""
        until = time.monotonic() + _PATIENCE_S
        while self._committed.position(partition) < behind:
            if found := list(kafka.poll(self._committed, timeout_ms=200)):
                return found
            if time.monotonic() > until:
                raise BrokerUnavailable(f"{partition.topic}/{partition.partition} at {self._bootstrap_servers}: nothing came for {_PATIENCE_S:.0f} s")
        return []

    def close(self) -> None:
        for each in self._open:
            each.close()


def read(bootstrap_servers: str, domain: str, *, of: Collection[Mark] | None = None) -> list[History]:
    """Every dead letter of the domain (committed records); with what was put back of all, or of `of` alone."""
    places = Places(bootstrap_servers, domain)
    try:
        records = kafka.read_all(bootstrap_servers, [topic("dead-letters").of(domain)])
        return histories(domain, records, places.standing, of=of)
    finally:
        places.close()


def passed(bootstrap_servers: str, domain: str, jobs: Collection[str]) -> Callable[[Redriven], bool]:
    """Whether every reader of a topic (of `jobs`, and the actuator) has committed past a record put there."""
    found: dict[str, dict[Any, int]] = {}

    def is_past(put: Redriven) -> bool:
        name = put.topic.removeprefix(f"{domain}.")
        readers = [reader for reader, topics in kafka.READERS.items() if name in topics and reader in {*jobs, "actuator"}]
        for reader in readers:
            if reader not in found:
                found[reader] = kafka.committed(bootstrap_servers, f"{domain}-{reader}", principal=principal(domain, "reader"))
            if found[reader].get((put.topic, put.partition), 0) <= put.offset:
                return False
        return True

    return is_past


def told(history: History, is_past: Callable[[Redriven], bool], *, with_value: bool = False) -> dict[str, Any]:
    """One letter for people and programs; `with_value`: with the original record too."""
    letter, data, redriven = history.letter, history.letter.data, history.redriven
    row: dict[str, Any] = {
        "id": letter.id,
        "at": letter.at,
        "cause": data.cause.value,
        "message": data.message,
        "stage": data.stage,
        "topic": data.topic,
        "partition": data.partition,
        "offset": data.offset,
        "place": letter.place,
        "bytes": None if letter.value is None else len(letter.value),
        "state": history.state(is_past),
        "attempt": history.attempt,
        "before": history.before,
        "after": history.after,
        "redriven": None
        if redriven is None
        else {
            "at": history.redriven_at,
            "place": place_of(redriven),
            "is_seen": history.is_seen,
            "attempt": redriven.attempt,
            "is_edited": redriven.is_edited,
        },
    }
    if with_value:
        row["attempts"] = [attempt.model_dump() for attempt in data.attempts]
        row["value"] = None if letter.value is None else letter.value.decode("utf-8", errors="replace")
        row["value_base64"] = data.value_base64
        row["key_base64"] = data.key_base64
    return row


# ------------------------------------------------------------------------------------- choosing


def choose(
    found: Sequence[History], *, ids: Collection[str] = (), cause: str | None = None, since: str | None = None
) -> list[History]:
    """The letters meant: by id or place, cause, and when they were written (RFC 3339, included); none: all.

    Raises SetupFailed for an id that is none.
    """
    if cause is not None and cause not in list(Cause):
        raise SetupFailed(f"--cause: expected one of {', '.join(Cause)}; came {cause!r}")
    known = {name for history in found for name in (history.letter.id, history.letter.place)}
    if unknown := [name for name in ids if name not in known]:
        raise SetupFailed(f"no dead letter {unknown[0]!r}: './flyball dead-letters list' tells them")
    try:
        since_ms = None if since is None else parse_time_ms(since)
    except ValueError as error:
        raise SetupFailed(f"--since: {error}") from None
    return [
        history
        for history in found
        if (not ids or history.letter.id in ids or history.letter.place in ids)
        and (cause is None or history.letter.data.cause == cause)
        and (since_ms is None or parse_time_ms(history.letter.at) >= since_ms)
    ]


def chain(found: Sequence[History], history: History) -> list[History]:
    """Every letter about the same record, the first to the last."""
    by_id = {each.letter.id: each for each in found}
    ahead: dict[str, list[History]] = defaultdict(list)
    for each in found:
        if each.before is not None:
            ahead[each.before].append(each)
    first, seen = history, {history.letter.id}
    while first.before in by_id and first.before not in seen:  # letters somebody forged may go round
        seen.add(first.before)
        first = by_id[first.before]
    line, listed = [first], {_key(first)}
    for each in line:
        for after in ahead[each.letter.id]:
            if _key(after) not in listed:
                listed.add(_key(after))
                line.append(after)
    return line


def _key(history: History) -> tuple[str, Mark]:
    return history.letter.id, history.letter.mark
