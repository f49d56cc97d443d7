"""Dead letters as they are read: what was refused and why, what was put back (ops/redrive.py), and how that ended.

Where a record was put says how it ended: a dead letter about that place continues the history, and readers that are
past it without one have accepted it. Every job, producer and actuator may write letters: what no stage can have
written is left out, and what a letter says of its record is a claim. Nothing here writes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from contracts.access import principal
from contracts.dead_letter import Cause, DeadLetter, Redriven
from contracts.envelope import parse_time_ms
from contracts.errors import SetupFailed
from contracts.topics import topic
from ops import kafka

# As contracts/envelope.py `derive_id` makes them; they name files, too.
_ID = re.compile(r"[0-9a-f]{32}")
State = Literal["dead", "redriven", "accepted", "dead_again"]
Mark = tuple[str, str]


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
class History:
    """A letter, where its record was put, and the letters before and after it about the same record."""

    letter: Letter
    attempt: int = 0
    before: str | None = None
    redriven: Redriven | None = None
    redriven_at: str | None = None
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


def histories(values: Iterable[bytes | None]) -> list[History]:
    """The letters of a dead-letters topic in its order, each once, with what became of them. Others are left out."""
    letters: dict[tuple[str, Mark], Letter] = {}
    marks: dict[Mark, tuple[Redriven, str, str]] = {}
    for value in values:
        try:
            event = orjson.loads(value or b"")
            data = orjson.dumps(event["data"])
            if event["type"] == Redriven.event_type:
                redriven = Redriven.model_validate_json(data)
                marks[(event["subject"], redriven.refused_sha256)] = redriven, event["time"], event["causationid"]
            elif event["type"] == DeadLetter.event_type and _ID.fullmatch(event["id"]):
                letter = Letter(event["id"], event["time"], DeadLetter.model_validate_json(data))
                parse_time_ms(letter.at), letter.key  # both as they must be
                letters.setdefault((letter.id, letter.mark), letter)
        except (ValidationError, KeyError, TypeError, ValueError):  # whoever may write letters may write nonsense
            continue
    put_at = {f"{put.topic}/{put.partition}/{put.offset}": (cause, put.attempt) for put, _, cause in marks.values()}
    died_at: dict[str, str] = {}
    for letter in letters.values():
        died_at.setdefault(letter.place, letter.id)
    found = []
    for letter in letters.values():
        before, attempt = put_at.get(letter.place, (None, 0))
        history = History(letter, attempt, before)
        if letter.mark in marks:
            redriven, at, _ = marks[letter.mark]
            after = died_at.get(f"{redriven.topic}/{redriven.partition}/{redriven.offset}")
            history = replace(history, redriven=redriven, redriven_at=at, after=after)
        found.append(history)
    return found


def read(bootstrap_servers: str, domain: str) -> list[History]:
    """Every dead letter of the domain (committed records)."""
    records = kafka.read_all(bootstrap_servers, [topic("dead-letters").of(domain)])
    return histories(record.value for record in records)


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
            "place": f"{redriven.topic}/{redriven.partition}/{redriven.offset}",
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
    line = [first]
    for each in line:
        line.extend(after for after in ahead[each.letter.id] if after not in line)
    return line
