"""The audit chain: each decision of a subject names the SHA-256 of the bytes of the one before.

Pure: records in, a report out. What a chain alone cannot show (its newest end cut off or rewritten)
the signed heads show (`Seals`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson


class Line(NamedTuple):
    """A record of the decisions topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Bad:
    """A record that cannot be where it is, as it is."""

    partition: int
    offset: int
    subject: str
    entry: int
    what: str

    def told(self) -> str:
        return f"entry {self.entry} of {self.subject} at {self.partition}/{self.offset}: {self.what}"


@dataclass
class Chain:
    """One subject's entries in force: `hashes[n - 1]` is the SHA-256 of entry n's bytes."""

    lines: list[Line] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)


@dataclass
class Audit:
    """What the records of a decisions topic say of themselves."""

    entries: int = 0
    superseded: int = 0
    chains: dict[str, Chain] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)


def audit(lines: Iterable[Line], *, allows_repeats: bool) -> Audit:
    """Check every chain. `lines`: partition by partition, in the order of offsets.

    Under at_least_once (`allows_repeats`) a repeated entry supersedes its predecessor and all after
    it; it is counted, and is bad only when it does not follow the entry before. A subject's chain
    is checked up to its first bad record: what follows one proves nothing.
    """
    found = Audit()
    broken: set[str] = set()
    for line in lines:
        found.entries += 1
        subject, number, previous, problem = _read(line)
        if subject in broken:
            continue
        if problem is None:
            chain = found.chains.setdefault(subject, Chain())
            problem = _follows(chain, number, previous, allows_repeats=allows_repeats)
        if problem is not None:
            broken.add(subject)
            place, what = problem
            at = found.chains[subject].lines[-1] if place == "before" else line
            entry = number - 1 if place == "before" else number
            found.bad.append(Bad(at.partition, at.offset, subject, entry, what))
            continue
        if number <= len(chain.hashes):
            found.superseded += len(chain.hashes) - number + 1
            del chain.lines[number - 1 :], chain.hashes[number - 1 :]
        chain.lines.append(line)
        chain.hashes.append(hashlib.sha256(line.value or b"").hexdigest())
    found.bad.sort(key=lambda bad: (bad.partition, bad.offset))
    return found


def _read(line: Line) -> tuple[str, int, str | None, tuple[str, str] | None]:
    """Subject, entry number, hash of the entry before; and what is wrong with the record itself."""
    key = (line.key or b"").decode(errors="replace")
    try:
        event = orjson.loads(line.value or b"")
        subject, entry = event["subject"], event["data"]["entry"]
        number, previous = entry["number"], entry["previous"]
        if subject != key:
            return key, number, None, ("here", f"inserted or changed: its key is {key!r}, its subject {subject!r}")
        if type(number) is not int or number < 1:
            return key, 0, None, ("here", f"inserted or changed: its number is {number!r}")
        return subject, number, previous, None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return key, 0, None, ("here", "inserted or changed: it is no decision")


def _follows(
    chain: Chain, number: int, previous: str | None, *, allows_repeats: bool
) -> tuple[str, str] | None:
    """None when the entry may stand here, otherwise which record is bad and why."""
    length = len(chain.hashes)
    if number > length + 1:
        return "here", f"removed or reordered: expected entry {length + 1} of the subject"
    wanted = chain.hashes[number - 2] if number > 1 else None
    if number <= length and not allows_repeats:
        return "here", f"inserted or reordered: entry {length + 1} was expected, this number stood before"
    if previous == wanted:
        return None
    if number == length + 1 and number > 1:
        return "before", "changed: the next entry was made after other bytes than these"
    return "here", "inserted or changed: it does not follow the entry before it"
