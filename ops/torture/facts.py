"""What goes in: numbered amounts of some subjects as CloudEvents, and the ways a producer may spoil them.

Written without Flyball's own code for events and ids, as any producer would.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

STEP_MS = 10_000
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Fact:
    """One amount; `event_ms` is event time, ms since 1970."""

    subject: str
    number: int
    amount: int
    event_ms: int

    @property
    def id(self) -> str:
        return hashlib.sha256(f"torture {self.subject} {self.number}".encode()).hexdigest()[:24]

    def to_record(self) -> tuple[bytes, bytes]:
        """Key and value of its Kafka record."""
        event = {
            "specversion": "1.0",
            "id": self.id,
            "source": "/torture",
            "type": "drill.counted",
            "subject": self.subject,
            "time": datetime.fromtimestamp(self.event_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "datacontenttype": "application/json",
            "dataschema": "urn:flyball:drill:drill.counted:1",
            "data": {"number": self.number, "amount": self.amount},
        }
        return self.subject.encode(), json.dumps(event).encode()


@dataclass(frozen=True)
class Poison:
    """A record that is no fact: it must end in dead letters, and disturb nothing."""

    key: bytes | None
    value: bytes | None

    def to_record(self) -> tuple[bytes | None, bytes | None]:
        return self.key, self.value


Item = Fact | Poison


def rounds(name: str, *, subjects: int, base_ms: int, seed: int) -> Iterator[list[Item]]:
    """Without end: one amount of each subject a round, ten seconds of event time after the round before."""
    draw = random.Random(f"{name} {seed}")
    names = [f"{name}-{n}" for n in range(subjects)]
    number = 0
    while True:
        number += 1
        yield [Fact(subject, number, draw.randint(0, 100), base_ms + number * STEP_MS) for subject in names]


def shuffled(source: Iterator[list[Item]], *, over: int, seed: int) -> Iterator[list[Item]]:
    """The same items, in any order within each `over` rounds."""
    draw = random.Random(f"shuffle {seed}")
    while True:
        some = [next(source) for _ in range(over)]
        flat = [item for each in some for item in each]
        draw.shuffle(flat)
        size = len(some[0])
        yield from (flat[n : n + size] for n in range(0, len(flat), size))


def stepped(source: Iterator[list[Item]], *, every: int, by_ms: int = MINUTE_MS) -> Iterator[list[Item]]:
    """As stamped by a producer whose clock is set forward by a minute, and back, every so many rounds."""
    for n, each in enumerate(source):
        ahead_ms = by_ms if n // every % 2 else 0
        yield [
            Fact(item.subject, item.number, item.amount, item.event_ms + ahead_ms) if isinstance(item, Fact) else item
            for item in each
        ]


def poisoned(source: Iterator[list[Item]], *, every: int) -> Iterator[list[Item]]:
    """With a record nobody can use behind every so many items."""
    sent = made = 0
    for each in source:
        out: list[Item] = []
        for item in each:
            out.append(item)
            sent += 1
            if sent % every == 0 and isinstance(item, Fact):
                out.append(poison(item, made))
                made += 1
        yield out


def poison(fact: Fact, number: int) -> Poison:
    """The number-th way to spoil a fact."""
    key, value = fact.to_record()
    spoiled = Fact(fact.subject, fact.number + 1_000_000, fact.amount, fact.event_ms)
    _, other = spoiled.to_record()
    ways: Sequence[Poison] = (
        Poison(key, b"\xff\xfe no text at all"),
        Poison(key, value[: len(value) // 2]),
        Poison(key, b""),
        Poison(b"somebody-else", other),
        Poison(key, other.replace(b'"amount": ', b'"amount": -')) if fact.amount else Poison(key, b"[]"),
        Poison(key, other.replace(b"drill.counted", b"drill.unheard")),
        Poison(key, b'{"specversion": "1.0", "id": "' + b"9" * 300 + b'"}'),
        Poison(key, other.replace(b'"data": {', b'"data": {"more": 1, ')),
    )
    return ways[number % len(ways)]
