"""The chain of a subject's decisions: what shows when a record of the topic is not what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import orjson
import pytest

from udfs.policy.audit import Line, audit

SUBJECTS = ("m-1", "m-2")


def a_log(entries: int = 5) -> list[Line]:
    """A partition in which two subjects take turns."""
    lines: list[Line] = []
    heads: dict[str, str | None] = dict.fromkeys(SUBJECTS)
    for number in range(1, entries + 1):
        for subject in SUBJECTS:
            lines.append(entry(subject, number, heads[subject], len(lines)))
            heads[subject] = hashlib.sha256(lines[-1].value or b"").hexdigest()
    return lines


def entry(subject: str, number: int, previous: str | None, offset: int, note: str = "") -> Line:
    value = orjson.dumps(
        {"subject": subject, "note": note, "data": {"entry": {"number": number, "previous": previous}}}
    )
    return Line(0, offset, subject.encode(), value)


def changed(line: Line) -> Line:
    return line._replace(value=(line.value or b"").replace(b'"note":""', b'"note":"forged"'))


def test_an_untouched_log_is_whole() -> None:
    found = audit(a_log(), allows_repeats=False)
    assert (found.bad, found.entries, set(found.chains), found.superseded) == ([], 10, set(SUBJECTS), 0)


def _change(log: list[Line]) -> list[Line]:
    return [changed(line) if line.offset == 4 else line for line in log]


def _remove(log: list[Line]) -> list[Line]:
    return [line for line in log if line.offset != 4]


def _reorder(log: list[Line]) -> list[Line]:
    places = {4: log[6], 6: log[4]}
    return [places.get(line.offset, line) for line in log]


def _insert(log: list[Line]) -> list[Line]:
    forged = entry("m-1", 3, hashlib.sha256(log[2].value or b"").hexdigest(), 4, note="forged")
    return [*log[:4], forged, *log[4:]]


def _insert_foreign(log: list[Line]) -> list[Line]:
    return [*log[:4], Line(0, 4, b"m-1", b'{"subject":"m-9"}'), *log[4:]]


# what was done -> how, offset and entry of the first bad record, what is said of it
TAMPERED: dict[str, tuple[Callable[[list[Line]], list[Line]], int, int, str]] = {
    "a changed record": (_change, 4, 3, "changed"),
    "a removed record": (_remove, 6, 4, "removed or reordered: expected entry 3"),
    "two records in each other's place": (_reorder, 6, 4, "removed or reordered: expected entry 3"),
    "an inserted record": (_insert, 4, 3, "inserted or reordered"),
    "a record that is no decision": (_insert_foreign, 4, 0, "inserted or changed: it is no decision"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_the_first_bad_record_is_named_when_the_log_was_touched(what: str) -> None:
    tamper, offset, number, told = TAMPERED[what]
    found = audit(tamper(a_log()), allows_repeats=False)
    first = found.bad[0]
    assert (first.subject, first.offset, first.entry) == ("m-1", offset, number)
    assert told in first.what
    assert len(found.chains["m-2"].lines) == 5, "the other subject's chain is whole"


def test_a_repeated_entry_supersedes_its_predecessor_when_repeats_are_allowed() -> None:
    log = a_log()
    after_first = hashlib.sha256(log[0].value or b"").hexdigest()
    again = entry("m-1", 2, after_first, 10, note="after a restart")
    found = audit([*log, again], allows_repeats=True)
    assert found.bad == []
    assert found.superseded == 4, "entries 2 to 5"
    assert [line.offset for line in found.chains["m-1"].lines] == [0, 10]
    assert audit([*log, again], allows_repeats=False).bad[0].offset == 10


def test_a_repeated_entry_is_bad_when_it_does_not_follow_the_one_before() -> None:
    forged = entry("m-1", 2, "0" * 64, 10)
    assert "does not follow" in audit([*a_log(), forged], allows_repeats=True).bad[0].what
