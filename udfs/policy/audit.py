"""The audit chain: each decision of a subject names the SHA-256 of the bytes of the one before.

Pure: records in, a report out. What a chain alone cannot show (its newest end cut off, all of it
rewritten) the signed heads show (udfs/policy/heads.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Literal, NamedTuple

import orjson

from contracts.envelope import parse_time_ms

# What an audit head can name: as contracts/data.py `Identifier`, and integers RFC 8785 knows.
_SUBJECT = re.compile(r"[^\x00-\x1f\x7f]{1,256}\Z")
_MAX_NUMBER = 2**53 - 1


class Line(NamedTuple):
    """A record of the decisions topic, or of the audit heads."""

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
    topic: str = "decisions"

    def told(self) -> str:
        named = f"entry {self.entry} of {self.subject}" if self.topic == "decisions" else f"head {self.entry}"
        return f"{named} at {self.topic}/{self.partition}/{self.offset}: {self.what}"


class Read(NamedTuple):
    """What one record says of its place in a chain. `problem`: why it is no entry of any."""

    partition: int
    offset: int
    subject: str
    number: int
    previous: str | None
    sha256: str
    event_time: str | None
    problem: str | None = None


@dataclass
class Chain:
    """One subject's entries in force: `hashes[n - 1]` is the SHA-256 of entry n's bytes.

    `lines` are without key and value where only places are kept.
    """

    lines: list[Line] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)


@dataclass
class Audit:
    """What the records of a decisions topic say of themselves.

    `entries`, `superseded` and `subjects` count the period asked for; everything else is of all records.
    """

    entries: int = 0
    superseded: int = 0
    subjects: set[str] = field(default_factory=set)
    records: list[Read] = field(default_factory=list)
    chains: dict[str, Chain] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)


@dataclass(frozen=True)
class Period:
    """Event time: `from_ms` included, `to_ms` not. Without both, always."""

    from_ms: int | None = None
    to_ms: int | None = None

    def covers(self, event_time: str | None) -> bool:
        """What has no readable time belongs to every period."""
        if self.from_ms is None and self.to_ms is None:
            return True
        try:
            at_ms = parse_time_ms(event_time or "")
        except ValueError:
            return True
        is_begun = self.from_ms is None or at_ms >= self.from_ms
        return is_begun and (self.to_ms is None or at_ms < self.to_ms)


ALWAYS = Period()
# What an audit keeps of the entries: where they lie (some hundred bytes each), or their bytes too.
Keeps = Literal["places", "lines"]


def audit(
    lines: Iterable[Line], *, allows_repeats: bool, period: Period = ALWAYS, keeps: Keeps = "lines"
) -> Audit:
    """Check every chain. `lines`: partition by partition, in the order of offsets.

    Under at_least_once (`allows_repeats`) a repeated entry supersedes its predecessor and all after
    it; it is counted, and is bad only when it does not follow the entry before. A subject's chain
    is checked up to its first bad record: what follows one proves nothing. Chains are checked from their
    beginning whatever the `period`, and bad records of any time are told: what comes later rests on them.
    """
    found = Audit()
    broken: set[str] = set()
    for line in lines:
        record = read(line)
        found.records.append(record)
        is_counted = period.covers(record.event_time)
        if is_counted:
            found.entries += 1
            found.subjects.add(record.subject)
        subject, number = record.subject, record.number
        if subject in broken:
            continue
        problem = None if record.problem is None else ("here", record.problem)
        if problem is None:
            chain = found.chains.setdefault(subject, Chain())
            problem = _follows(chain, number, record.previous, allows_repeats=allows_repeats)
        if problem is not None:
            broken.add(subject)
            place, what = problem
            at = found.chains[subject].lines[-1] if place == "before" else line
            entry = number - 1 if place == "before" else number
            found.bad.append(Bad(at.partition, at.offset, subject, entry, what))
            continue
        if number <= len(chain.hashes):
            if is_counted:
                found.superseded += len(chain.hashes) - number + 1
            del chain.lines[number - 1 :], chain.hashes[number - 1 :]
        chain.lines.append(Line(line.partition, line.offset, None, None) if keeps == "places" else line)
        chain.hashes.append(record.sha256)
    found.bad.sort(key=lambda bad: (bad.partition, bad.offset))
    return found


def entries(lines: Iterable[Line], bad: list[Bad]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """One subject's lines as entries, parsed, as far as they form a chain; then what is bad goes to `bad`.

    What `audit` says where there are no repeats, one line at a time: each is parsed once and forgotten.
    """
    chain = Chain()
    for line in lines:
        record, event = _parse(line)
        problem = None if record.problem is None else ("here", record.problem)
        if problem is None:
            problem = _follows(chain, record.number, record.previous, allows_repeats=False)
        if problem is not None or event is None:
            place, what = problem or ("here", "")
            at = chain.lines[-1] if place == "before" else line
            bad.append(Bad(at.partition, at.offset, record.subject, record.number - (place == "before"), what))
            return
        chain.lines.append(line)
        chain.hashes.append(record.sha256)
        yield line, event


def read(line: Line) -> Read:
    """The record's place in its chain, by its own words. Never raises."""
    return _parse(line)[0]


def _parse(line: Line) -> tuple[Read, dict[str, Any] | None]:
    """The same, and the whole of it, parsed once; None for what is no entry."""
    key = (line.key or b"").decode(errors="replace")
    value = line.value or b""
    sha256 = intern(hashlib.sha256(value).hexdigest())  # the next entry names it: one text for both

    def is_none(what: str, number: int = 0) -> tuple[Read, None]:
        told = f"inserted or changed: {what}"
        return Read(line.partition, line.offset, key, number, None, sha256, None, told), None

    try:
        event = orjson.loads(value)
        subject, data = event["subject"], event["data"]
        number, previous = data["entry"]["number"], data["entry"]["previous"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return is_none("it is no decision")
    if type(number) is not int or not 1 <= number <= _MAX_NUMBER:
        return is_none(f"its number is {number!r:.40}")
    if subject != key or not _SUBJECT.match(key):
        return is_none(f"its key is {key!r:.300}, its subject {subject!r:.300}", number)
    time = data.get("event_time")
    record = Read(
        line.partition, line.offset, intern(key), number, intern(previous) if type(previous) is str else previous,
        sha256, intern(time) if type(time) is str else None,
    )  # fmt: skip
    return record, event


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
