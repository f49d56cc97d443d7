"""Signed heads over a log: what shows, and how it is named, when log or heads are not what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contracts.audit_head import AuditHead
from udfs.policy.audit import Bad, Line, audit, read
from udfs.policy.heads import Anchor, Sealed, Seals, check, resume, seal
from udfs.policy.signing import is_signed, public_text, sign, to_sign

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
PUBLIC = public_text(KEY)
SUBJECTS = ("m-1", "m-2")
START_MS = 1_700_000_000_000


def entry(subject: str, number: int, previous: str | None, offset: int, note: str = "", partition: int = 0) -> Line:
    value = orjson.dumps(
        {"subject": subject, "note": note, "data": {"entry": {"number": number, "previous": previous}}}
    )
    return Line(partition, offset, subject.encode(), value)


def digest(line: Line) -> str:
    return hashlib.sha256(line.value or b"").hexdigest()


def a_chain(subject: str, offsets: Iterable[int], *, note: str = "", partition: int = 0) -> list[Line]:
    lines: list[Line] = []
    for number, offset in enumerate(offsets, start=1):
        previous = digest(lines[-1]) if lines else None
        lines.append(entry(subject, number, previous, offset, note, partition))
    return lines


def in_order(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (line.partition, line.offset))


def a_log() -> list[Line]:
    """Two subjects take turns in partition 0; a third has partition 1 for itself."""
    return in_order(
        [*a_chain("m-1", range(0, 12, 2)), *a_chain("m-2", range(1, 12, 2)), *a_chain("m-3", range(3), partition=1)]
    )


def sealed_by(log: list[Line], *ends: int, key: Ed25519PrivateKey = KEY) -> list[Line]:
    """Heads of a sealer that looked when so many records were there; partition 1 it saw at the first look."""
    sealed, heads, seen = Sealed(), [], 0
    for number, end in enumerate(ends):
        seen_now = [x for x in log if seen <= x.offset < end and x.partition == 0]
        seen_now += [x for x in log if x.partition == 1 and number == 0]
        name, value = seal(
            sealed, [read(x) for x in seen_now], domain="machines", key=key, now_ms=START_MS + number * 60_000
        )
        heads.append(Line(0, number, name.encode(), value))
        seen = end
    return heads


def checked(log: list[Line], heads: list[Line], *, allows_repeats: bool = False, anchor: Anchor | None = None) -> Seals:
    """As `audit verify` does it: chains, then heads; all that is bad in one list."""
    found = audit(log, allows_repeats=allows_repeats)
    seals = check(
        heads, found.records, domain="machines", public_key=PUBLIC,
        broken={bad.subject for bad in found.bad}, anchor=anchor,
    )  # fmt: skip
    seals.bad = [*found.bad, *seals.bad]
    return seals


def data_of(head: Line) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(head.value or b"")["data"]
    return found


def test_an_untouched_log_is_what_its_heads_sealed() -> None:
    log = a_log()
    heads = sealed_by(log, 4, 7, 10)
    found = checked(log, heads)
    assert (found.bad, found.heads, found.unsealed) == ([], 3, 2)
    assert found.last is not None
    assert (found.last.data.number, found.last.data.subjects, found.last.data.entries) == (3, 3, 13)
    assert found.last.data.ends == {"0": 10, "1": 3}
    assert [end["subject"] for end in data_of(heads[1])["changed"]] == ["m-1", "m-2"]
    for head in heads:
        AuditHead.model_validate_json(orjson.dumps(data_of(head)))


def test_no_head_is_no_error() -> None:
    found = checked(a_log(), [])
    assert (found.bad, found.heads, found.unsealed, found.last) == ([], 0, 15, None)


def test_a_head_is_the_same_bytes_when_made_again() -> None:
    assert sealed_by(a_log(), 4, 7) == sealed_by(a_log(), 4, 7)


def test_a_sealer_that_starts_again_goes_on_as_if_it_had_not_stopped() -> None:
    log = a_log()
    heads = sealed_by(log, 4, 7, 10)
    sealed, strange = resume(heads[:2], domain="machines", public_key=PUBLIC)
    assert (sealed.number, sealed.ends, strange) == (2, {0: 7, 1: 3}, 0)
    new = [read(x) for x in log if x.partition == 0 and 7 <= x.offset < 10]
    assert seal(sealed, new, domain="machines", key=KEY, now_ms=START_MS + 120_000)[1] == heads[2].value


def test_a_sealer_that_starts_again_does_not_believe_a_changed_log() -> None:
    """It reads no old records, so what it seals next still proves the old ones."""
    log = a_log()
    heads = sealed_by(log, 4, 7)
    forged = in_order([*a_chain("m-1", range(0, 12, 2), note="forged"), *[x for x in log if x.key != b"m-1"]])
    sealed, _ = resume(heads, domain="machines", public_key=PUBLIC)
    new = [read(x) for x in forged if x.partition == 0 and x.offset >= 7]
    name, value = seal(sealed, new, domain="machines", key=KEY, now_ms=START_MS + 120_000)
    found = checked(forged, [*heads, Line(0, 2, name.encode(), value)])
    assert [(bad.subject, bad.offset, bad.entry) for bad in found.bad] == [("m-1", 2, 2)]


@pytest.mark.parametrize("subject", ["m-1", 'a "quoted" \\ / \u00e9 \u20ac \U0001f600', "\u0085\u2028\ufeff"])
def test_a_head_is_signed_over_canonical_json_and_its_leaves_are(subject: str) -> None:
    """RFC 8785 by the library whose bytes anybody else would make, for names of all kinds."""
    (line,) = a_chain(subject, [0])
    (head,) = sealed_by([line], 1)
    data = data_of(head)
    assert is_signed(PUBLIC, data["signature"], to_sign("machines", "1", AuditHead.event_type, data))
    leaf = rfc8785.dumps({"subject": subject, "number": 1, "sha256": digest(line)})
    assert data["root"] == hashlib.sha256(b"\x00" + leaf).hexdigest()


# --- a touched log -------------------------------------------------------------------------------


def _change(log: list[Line]) -> list[Line]:
    return [
        x._replace(value=(x.value or b"").replace(b'"note":""', b'"note":"forged"')) if x.offset == 4 else x for x in log
    ]


def _change_newest(log: list[Line]) -> list[Line]:
    """The newest sealed entry of m-2, so that no later entry shows it."""
    cut = [x for x in log if x.key != b"m-2" or x.offset <= 5]
    return [x._replace(value=(x.value or b"").replace(b'""', b'"forged"')) if x.offset == 5 else x for x in cut]


def _remove_middle(log: list[Line]) -> list[Line]:
    return [x for x in log if x.offset != 4]


def _remove_end(log: list[Line]) -> list[Line]:
    """Entries 4 to 6 of m-1: what is left of the chain is whole."""
    return [x for x in log if x.key != b"m-1" or x.offset < 6]


def _remove_subject(log: list[Line]) -> list[Line]:
    return [x for x in log if x.key != b"m-3"]


def _cut_partition(log: list[Line]) -> list[Line]:
    return [x for x in log if x.offset < 9]


def _reorder(log: list[Line]) -> list[Line]:
    places = {4: log[6], 6: log[4]}
    return [places[x.offset]._replace(offset=x.offset) if x.offset in places else x for x in log]


def _insert(log: list[Line]) -> list[Line]:
    forged = entry("m-1", 4, digest(log[4]), 5, note="forged")
    return [x._replace(offset=x.offset + (x.offset >= 5)) for x in log[:5]] + [
        forged, *[x._replace(offset=x.offset + 1) if x.partition == 0 else x for x in log[5:]],
    ]  # fmt: skip


def _insert_subject(log: list[Line]) -> list[Line]:
    """A subject that never was, in the place of a record of partition 0 that only moves up by offset."""
    return in_order([*log, entry("m-9", 1, None, 0, partition=2)])


def _insert_subject_sealed(log: list[Line]) -> list[Line]:
    return in_order([x._replace(offset=2) if (x.partition, x.offset) == (1, 1) else x for x in log if x[:2] != (1, 2)]
                    + [entry("m-9", 1, None, 1, partition=1)])  # fmt: skip


def _rewrite(log: list[Line]) -> list[Line]:
    """m-1 from its first entry on, every hash right."""
    return in_order([*a_chain("m-1", range(0, 12, 2), note="forged"), *[x for x in log if x.key != b"m-1"]])


def _rewrite_late(log: list[Line]) -> list[Line]:
    """m-1 from its third entry on: the second was sealed by head 1 and stays."""
    kept = [x for x in log if x.key == b"m-1" and x.offset < 4]
    for number, offset in ((3, 4), (4, 6), (5, 8), (6, 10)):
        kept.append(entry("m-1", number, digest(kept[-1]), offset, note="forged"))
    return in_order([*kept, *[x for x in log if x.key != b"m-1"]])


# what was done -> how; subject, partition, offset and entry of the first bad record; what is said of it
TAMPERED: dict[str, tuple[Callable[[list[Line]], list[Line]], tuple[str, int, int, int], str]] = {
    "a changed record": (_change, ("m-1", 0, 4, 3), "changed: the next entry was made after other bytes"),
    "a changed newest record": (_change_newest, ("m-2", 0, 5, 3), "changed: head 2 sealed other bytes"),
    "a removed record": (_remove_middle, ("m-1", 0, 6, 4), "removed or reordered: expected entry 3"),
    "a removed end": (_remove_end, ("m-1", 0, 6, 4), "removed: head 2 sealed entry 4 here, it is not there"),
    "a removed subject": (_remove_subject, ("m-3", 1, 2, 1), "removed: head 1 sealed entry 3 here, entries 1 to 3 are"),
    "a cut partition": (_cut_partition, ("m-2", 0, 9, 5), "removed: head 3 sealed entry 5 here"),
    "two records in each other's place": (_reorder, ("m-1", 0, 4, 4), "removed or reordered: expected entry 3"),
    "an inserted record": (_insert, ("m-1", 0, 7, 4), "inserted or reordered: entry 5 was expected"),
    "an inserted subject": (_insert_subject_sealed, ("m-9", 1, 1, 1), "inserted: head 1 covers its place"),
    "a rewritten chain": (_rewrite, ("m-1", 0, 2, 2), "changed: head 1 sealed other bytes; the first changed one is among"),
    "a chain rewritten from its third entry on": (_rewrite_late, ("m-1", 0, 6, 4), "head 2 sealed other bytes; the first changed one is among entries 3 to 4"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_the_first_bad_record_is_named_when_the_log_was_touched(what: str) -> None:
    tamper, place, told = TAMPERED[what]
    log = a_log()
    found = checked(tamper(log), sealed_by(log, 4, 7, 10))
    named: dict[tuple[str, int, int, int], Bad] = {(b.subject, b.partition, b.offset, b.entry): b for b in found.bad}
    assert place in named, found.bad
    assert told in named[place].what
    assert len({bad.subject for bad in found.bad}) == len(found.bad), "each subject is told once"


def test_a_rewritten_chain_is_whole_without_heads() -> None:
    """Why there are heads."""
    assert checked(_rewrite(a_log()), []).bad == []
    assert checked(_remove_end(a_log()), []).bad == []


def test_records_that_no_head_covers_are_counted_and_not_proven() -> None:
    log = a_log()
    found = checked(_insert_subject(log), sealed_by(log, 12))
    assert (found.bad, found.unsealed) == ([], 1)


def test_the_rest_of_the_subjects_stays_proven_when_one_is_bad() -> None:
    log = a_log()
    found = checked(_rewrite(_remove_subject(log)), sealed_by(log, 4, 7, 10))
    assert {bad.subject for bad in found.bad} == {"m-1", "m-3"}


# --- at least once -------------------------------------------------------------------------------


def repeated_log() -> list[Line]:
    """m-1's entry 2 comes again after a restart, with other bytes, and the chain goes on behind it."""
    log = a_log()
    again = entry("m-1", 2, digest(log[0]), 12, note="after a restart")
    return in_order([*log, again, entry("m-1", 3, digest(again), 13)])


@pytest.mark.parametrize("ends", [(4, 7, 14), (14,), (12, 13, 14), (4, 13, 14)])
def test_a_repeated_entry_is_no_error_when_it_supersedes_before_or_after_a_head(ends: tuple[int, ...]) -> None:
    log = repeated_log()
    found = checked(log, sealed_by(log, *ends), allows_repeats=True)
    assert (found.bad, found.unsealed) == ([], 0)
    assert audit(log, allows_repeats=True).superseded == 5


def test_a_superseded_record_shows_when_it_is_removed() -> None:
    """Nothing follows from it any more, but the head counted it."""
    log = repeated_log()
    found = checked([x for x in log if x[:2] != (0, 10)], sealed_by(log, 4, 14), allows_repeats=True)
    assert [(bad.topic, bad.entry) for bad in found.bad] == [("audit-heads", 2)]
    assert "covers 10 records since head 1, the decisions topic has 9" in found.bad[0].what


# --- touched heads -------------------------------------------------------------------------------


def resigned(head: Line, key: Ed25519PrivateKey, **changes: object) -> Line:
    event = orjson.loads(head.value or b"")
    event["data"] |= {**changes, "key": public_text(key)}
    message = to_sign("machines", event["subject"], event["type"], event["data"])
    event["data"]["signature"] = sign(key, message)
    return head._replace(value=orjson.dumps(event))


def _altered(heads: list[Line]) -> list[Line]:
    changed = (heads[1].value or b"").replace(b'"entries":', b'"entries":1')
    return [heads[0], heads[1]._replace(value=changed), heads[2]]


def _altered_envelope(heads: list[Line]) -> list[Line]:
    """Outside what is signed; the next head's `previous` shows it."""
    changed = (heads[1].value or b"").replace(b'"hops":0', b'"hops":1')
    return [heads[0], heads[1]._replace(value=changed), heads[2]]


def _unkeyed(heads: list[Line]) -> list[Line]:
    return [heads[0]._replace(key=b"7"), *heads[1:]]


def _junk(heads: list[Line]) -> list[Line]:
    return [heads[0], Line(0, 1, b"2", b"junk"), *[x._replace(offset=x.offset + 1) for x in heads[1:]]]


# what was done -> how; offset and number of the head named; what is said of it
TOUCHED: dict[str, tuple[Callable[[list[Line]], list[Line]], int, int, str]] = {
    "an altered head": (_altered, 1, 2, "changed: its signature is not that of its content"),
    "an altered envelope": (_altered_envelope, 2, 3, "it was made after another head 2"),
    "a head under another key": (_unkeyed, 0, 1, "type, subject or key are not those of head 1"),
    "a removed head": (lambda h: [h[0], h[2]], 2, 3, "removed or reordered: head 2 was expected here"),
    "a removed first head": (lambda h: h[1:], 1, 2, "removed or reordered: head 1 was expected here"),
    "a repeated head": (lambda h: [h[0], h[1], h[1], h[2]], 1, 2, "head 3 was expected here"),
    "an inserted record": (_junk, 1, 2, "it is no audit head"),
    "a head forged with another key": (
        lambda h: [h[0], resigned(h[1], OTHER_KEY), h[2]], 1, 2, "forged: signed with the key",
    ),
    "a head of another root": (lambda h: [*h[:2], resigned(h[2], KEY, root="0" * 64)], 2, 3, "its root is not that"),
    "a head of another count": (lambda h: [*h[:2], resigned(h[2], KEY, entries=99)], 2, 3, "covers 89 records"),
}  # fmt: skip


@pytest.mark.parametrize("what", TOUCHED)
def test_the_first_bad_head_is_named_when_heads_were_touched(what: str) -> None:
    tamper, offset, number, told = TOUCHED[what]
    log = a_log()
    found = checked(log, tamper(sealed_by(log, 4, 7, 10)))
    assert [(bad.topic, bad.offset, bad.entry) for bad in found.bad] == [("audit-heads", offset, number)]
    assert told in found.bad[0].what


def test_heads_all_made_with_another_key_are_all_bad() -> None:
    log = a_log()
    found = checked(_rewrite(log), sealed_by(_rewrite(log), 4, 7, key=OTHER_KEY))
    assert [bad.entry for bad in found.bad] == [1, 2]
    assert found.last is None


@pytest.mark.parametrize("what", ["a removed head", "an altered head"])
def test_heads_behind_a_missing_one_still_prove_when_the_log_was_touched_too(what: str) -> None:
    log = a_log()
    found = checked(_rewrite_late(log), TOUCHED[what][0](sealed_by(log, 4, 7, 10)))
    assert {bad.subject for bad in found.bad if bad.topic == "decisions"} == {"m-1"}


def test_a_sealer_goes_on_behind_its_last_good_head_when_somebody_wrote_others() -> None:
    heads = sealed_by(a_log(), 4, 7)
    strangers = [Line(0, 2, b"3", b"junk"), resigned(heads[1], OTHER_KEY)]
    sealed, strange = resume([*heads, *strangers], domain="machines", public_key=PUBLIC)
    assert (sealed.number, strange) == (2, 2)


def test_newest_records_cut_off_with_their_heads_show_when_the_last_head_was_noted_elsewhere() -> None:
    log = a_log()
    heads = sealed_by(log, 4, 7, 10)
    noted = Anchor(3, digest(heads[2]))
    assert checked(log, heads, anchor=noted).bad == []
    cut = [x for x in log if x.partition == 1 or x.offset < 7]
    assert checked(cut, heads[:2]).bad == [], "alone they cannot know"
    (bad,) = checked(cut, heads[:2], anchor=noted).bad
    assert (bad.topic, bad.entry, bad.offset) == ("audit-heads", 3, 2)
