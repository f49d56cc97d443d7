"""Signed audit heads: made from the records of the decisions topic, and held against them later.

Pure: records in, heads or findings out; time and key are arguments. A head seals, for every subject, the
last entry that lies before its `ends`; under at_least_once that is the one in force. Heads name the
entries that changed since the head before, so both sides need only heads and new records: the sealer
goes on from its own heads and never trusts old records again, and what differs later has a name.

Not shown by heads: what was changed before it was sealed, and newest records cut off together with the
newest heads. Against the latter keep the last head's number and SHA-256 elsewhere (`Anchor`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from contracts.audit_head import AuditHead
from contracts.envelope import derive_id, format_time_ms, schema_urn
from udfs.policy.audit import Bad, Line, Read
from udfs.policy.merkle import Tree
from udfs.policy.signing import is_signed, public_text, sign
from udfs.serde import write_event

STAGE = "sealer"
_TOPIC = "audit-heads"


class BadHead(Exception):
    """A record that is no head of this domain signed with the key expected; says why."""


@dataclass(frozen=True)
class Head:
    """A head as it stands in its topic."""

    data: AuditHead
    sha256: str


@dataclass
class Sealed:
    """What the heads so far have sealed: one hash and number a subject, and how far they reach."""

    number: int = 0
    sha256: str | None = None
    sealed_at: str | None = None
    entries: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    tree: Tree = field(default_factory=Tree)

    def put(self, changed: Mapping[str, tuple[int, str]]) -> None:
        """Subject -> number and SHA-256 of its last entry, for those that have a new one."""
        self.tree.put({name: _leaf(name, number, sha256) for name, (number, sha256) in changed.items()})
        self.numbers |= {name: number for name, (number, _) in changed.items()}

    def advance(self, head: Head) -> None:
        """Go on behind this head."""
        data = head.data
        self.put({end.subject: (end.number, end.sha256) for end in data.changed})
        self.ends = {int(partition): end for partition, end in data.ends.items()}
        self.number, self.sha256, self.sealed_at, self.entries = (
            data.number, head.sha256, data.sealed_at, data.entries,
        )  # fmt: skip


def _leaf(subject: str, number: int, sha256: str) -> bytes:
    return _canonical({"subject": subject, "number": number, "sha256": sha256})


def _message(domain: str, subject: str, data: Mapping[str, Any]) -> bytes:
    """What a head's signature covers: the bytes of udfs/policy/signing.py `to_sign`."""
    signed = {name: value for name, value in data.items() if name != "signature"}
    return _canonical({"domain": domain, "subject": subject, "type": AuditHead.event_type, "data": signed})


def _canonical(value: object) -> bytes:
    """RFC 8785 of what a head holds, twenty times as fast as `rfc8785.dumps`.

    The same bytes because keys are ASCII, integers are below 2^53, there is no float, and no string has a
    control character (contracts/audit_head.py, udfs/policy/audit.py `read`): a test compares the two.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def resume(heads: Iterable[Line], *, domain: str, public_key: str) -> tuple[Sealed, int]:
    """What this key has sealed, and how many records of the topic are no heads of it or out of their order.

    The sealer goes on behind the last good head; `check` says what is wrong with the others.
    """
    sealed, strange = Sealed(), 0
    for line in heads:
        try:
            head = read_head(line, domain=domain, public_key=public_key)
        except BadHead:
            strange += 1
            continue
        if head.data.number <= sealed.number:
            strange += 1
            continue
        sealed.advance(head)
    return sealed, strange


def seal(
    sealed: Sealed, records: Sequence[Read], *, domain: str, key: Ed25519PrivateKey, now_ms: int
) -> tuple[str, bytes]:
    """Key and value of the head over `records`, the next ones of the decisions topic; advances `sealed`.

    `records`: at least one; in the order of offsets in each partition. Equal arguments give equal bytes.
    """
    ends = dict(sealed.ends)
    last: dict[str, Read] = {}
    for record in records:
        ends[record.partition] = max(ends.get(record.partition, 0), record.offset + 1)
        if record.problem is None:
            last[record.subject] = record
    before = sealed.sha256
    number, name = sealed.number + 1, str(sealed.number + 1)
    sealed.put({subject: (end.number, end.sha256) for subject, end in last.items()})
    data: dict[str, Any] = {
        "number": number,
        "sealed_from": sealed.sealed_at,
        "sealed_at": format_time_ms(now_ms),
        "ends": {str(partition): end for partition, end in sorted(ends.items())},
        "entries": sealed.entries + len(records),
        "subjects": len(sealed.tree),
        "changed": [
            {
                "subject": subject, "number": end.number, "sha256": end.sha256,
                "partition": end.partition, "offset": end.offset,
            }
            for subject, end in sorted(last.items())
        ],
        "root": sealed.tree.root(),
        "previous": before,
        "key": public_text(key),
    }  # fmt: skip
    data["signature"] = sign(key, _message(domain, name, data))
    value = write_event(
        event_id=derive_id(f"{domain}/{before or ''}", STAGE, "audit-head", number),
        source=f"/flyball/{domain}/{STAGE}",
        event_type=AuditHead.event_type,
        subject=name,
        time_ms=now_ms,
        dataschema=schema_urn(domain, AuditHead.event_type, AuditHead.schema_version),
        data=data,
    )
    sealed.ends, sealed.number, sealed.entries = ends, number, sealed.entries + len(records)
    sealed.sha256, sealed.sealed_at = hashlib.sha256(value).hexdigest(), data["sealed_at"]
    return name, value


def read_head(line: Line, *, domain: str, public_key: str) -> Head:
    """The head in a record. Raises BadHead saying what it is instead."""
    value = line.value or b""
    try:
        event = orjson.loads(value)
        kind, subject, raw = event["type"], event["subject"], event["data"]
        data = AuditHead.model_validate_json(orjson.dumps(raw))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError):
        raise BadHead("inserted or changed: it is no audit head") from None
    if kind != AuditHead.event_type or subject != str(data.number) or line.key != subject.encode():
        raise BadHead(f"inserted or changed: its type, subject or key are not those of head {data.number}")
    if data.key != public_key:
        raise BadHead(f"forged: signed with the key {data.key}, expected {public_key}")
    if not is_signed(public_key, data.signature, _message(domain, subject, raw)):
        raise BadHead("changed: its signature is not that of its content")
    return Head(data, hashlib.sha256(value).hexdigest())


@dataclass(frozen=True)
class Anchor:
    """A head that was noted elsewhere: it must still be there, with these bytes."""

    number: int
    sha256: str


@dataclass
class Seals:
    """What the heads say. `unsealed`: records no head covers yet; `last`: the newest good head."""

    heads: int = 0
    unsealed: int = 0
    last: Head | None = None
    bad: list[Bad] = field(default_factory=list)


def check(
    heads: Sequence[Line],
    records: Sequence[Read],
    *,
    domain: str,
    public_key: str,
    broken: Iterable[str] = (),
    anchor: Anchor | None = None,
) -> Seals:
    """Hold every head against the one before, and the decisions topic against every head.

    `heads` in the order of offsets, `records` in that of partition and offset. `broken`: subjects whose
    chain is known to be bad already; they are not told again. Each subject is told once, where it first
    differs. After a head that is missing or unusable the records themselves say what it sealed, so that
    the heads behind it still prove something.
    """
    found, sealed = Seals(heads=len(heads)), Sealed()
    log = _Log(records)
    told = set(broken)
    unusable = 0
    is_root_known = True
    is_anchored = anchor is None
    for line in heads:
        try:
            head = read_head(line, domain=domain, public_key=public_key)
        except BadHead as error:
            unusable += 1
            found.bad.append(_bad_head(line, sealed.number + unusable, str(error)))
            continue
        data = head.data
        is_anchored = is_anchored or Anchor(data.number, head.sha256) == anchor
        expected = sealed.number + 1
        if data.number < expected:
            what = f"repeated, inserted or reordered: head {expected} was expected here"
            found.bad.append(_bad_head(line, data.number, what))
            continue
        is_gap = data.number > expected
        if data.number > expected + unusable:
            what = f"removed or reordered: head {expected + unusable} was expected here"
            found.bad.append(_bad_head(line, data.number, what))
        elif not is_gap and data.previous != sealed.sha256:
            found.bad.append(_bad_head(line, data.number, f"it was made after another head {data.number - 1}"))
        unusable = 0
        window = log.between(sealed.ends, {int(p): end for p, end in data.ends.items()})
        found.bad += _compare(head, window, sealed, told, is_gap=is_gap)
        if data.entries - sealed.entries != len(window) and not told:
            what = (
                f"it covers {data.entries - sealed.entries} records since head {sealed.number},"
                f" the decisions topic has {len(window)} there: some were removed or inserted"
            )
            found.bad.append(_bad_head(line, data.number, what))
        if is_gap:
            sealed.put({r.subject: (r.number, r.sha256) for r in window if r.problem is None})
        sealed.advance(head)
        if is_root_known and (data.root, data.subjects) != (sealed.tree.root(), len(sealed.tree)):
            is_root_known = False
            missing = " and of those that the missing heads sealed" if is_gap else ""
            what = f"its root is not that of the entries sealed up to here{missing}"
            found.bad.append(_bad_head(line, data.number, what))
        found.last = head
    if anchor is not None and not is_anchored:
        what = f"removed or changed: expected a head with the SHA-256 {anchor.sha256}"
        after = heads[-1].offset + 1 if heads else 0
        found.bad.append(Bad(0, after, str(anchor.number), anchor.number, what, _TOPIC))
    found.unsealed = len(records) - log.count_before(sealed.ends)
    return found


def _bad_head(line: Line, number: int, what: str) -> Bad:
    return Bad(line.partition, line.offset, str(number), number, what, _TOPIC)


class _Log:
    """The records of the decisions topic, by partition."""

    def __init__(self, records: Iterable[Read]) -> None:
        self._records: dict[int, list[Read]] = defaultdict(list)
        for record in records:
            self._records[record.partition].append(record)
        self._offsets = {p: [record.offset for record in found] for p, found in self._records.items()}

    def between(self, begins: Mapping[int, int], ends: Mapping[int, int]) -> list[Read]:
        """By partition and offset, from `begins` (else the beginning) to before `ends`."""
        found: list[Read] = []
        for partition in sorted(ends.keys() & self._offsets.keys()):
            offsets = self._offsets[partition]
            first = bisect_left(offsets, begins.get(partition, 0))
            found += self._records[partition][first : bisect_left(offsets, ends[partition])]
        return found

    def count_before(self, ends: Mapping[int, int]) -> int:
        return sum(bisect_left(self._offsets[p], ends[p]) for p in ends.keys() & self._offsets.keys())


def _compare(head: Head, window: list[Read], sealed: Sealed, told: set[str], *, is_gap: bool) -> list[Bad]:
    """Which subjects' records in `window` are not those that this head sealed; adds them to `told`."""
    last = {record.subject: record for record in window if record.problem is None}
    found: list[Bad] = []
    name = head.data.number
    for end in head.data.changed:
        there = last.pop(end.subject, None)
        if end.subject in told or (there is not None and (there.number, there.sha256) == (end.number, end.sha256)):
            continue
        told.add(end.subject)
        have = there.number if there is not None else sealed.numbers.get(end.subject, 0)
        if there is None or have < end.number:
            missing = have + 1 if have < end.number else end.number
            gone = f"entries {missing} to {end.number} are" if missing < end.number else "it is"
            what = f"removed: head {name} sealed entry {end.number} here, {gone} not there any more"
            found.append(Bad(end.partition, end.offset, end.subject, missing, what))
        elif have > end.number:
            what = f"inserted: head {name} sealed entry {end.number} as the last one here"
            found.append(Bad(there.partition, there.offset, end.subject, there.number, what))
        else:
            since = sealed.numbers.get(end.subject, 0) + 1
            among = f"; the first changed one is among entries {since} to {end.number}" if since < end.number else ""
            what = f"changed: head {name} sealed other bytes{among}"
            found.append(Bad(there.partition, there.offset, end.subject, end.number, what))
    unknown = set() if is_gap else last.keys() - told  # what a missing head sealed is not known
    told |= unknown
    for record in window if unknown else ():
        if record.subject in unknown and record.problem is None:
            unknown.remove(record.subject)
            what = f"inserted: head {name} covers its place, and sealed no entry of this subject"
            found.append(Bad(record.partition, record.offset, record.subject, record.number, what))
    return found
