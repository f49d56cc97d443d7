"""What is fed to parsers: good inputs with things done to them, random bytes, and inputs made to hurt."""

from __future__ import annotations

import json
import math
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from contracts.errors import FlyballError
from tests.fuzz.parsers import Parser

MAX_S = 1.0
# Of wall time, in which a busy machine may do little.
MAX_WALL_S = 20.0
MAX_MIB = 192

PIECES = (
    b"", b'"', b"\\", b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"1e999999", b"-1e400", b"9" * 30, b"9" * 5000, b"1e-999999",
    b"0x" + b"f" * 200, b"[", b"{", b"]", b"}", b"[" * 300, b'{"a":' * 300, b"(" * 400, b"null", b"true", b"NaN", b"Infinity", b"-0.0", b".inf",
    b"\n", b"\r\n", b"\r", b"\t", b",", b":", b"- ", b"'", b"#", b"---\n", b"*a", b"&a ", b"<<: ", b"!!set {a}", b"!!binary AA=", b"!!bool x",
    b"!!python/object/apply:os.system [ls]", b"%YAML 9.9\n", b"../../../etc/passwd", b"'; DROP TABLE x; --", b"$(touch x)", b"`id`", b"{{7*7}}",
    b"%s%n", b"[/red]", b"\x1b[2J", b"\xe2\x80\xae", b"\xf0\x9f\x98\x80", b"\xf4\x8f\xbf\xbf", b"\xef\xbb\xbf", b"A" * 70_000, b"=", b"=inf", b"=nan",
    b"9999-12-31T23:59:60Z", b"0000-01-01T00:00:00Z", b"9999-12-31T23:59:59+23:59", b"2014-02-30T00:00:00Z", b"1e15", b"size(", b"matches('(a+)+b')",
    b"[1,2,3].map(x, [1,2,3].map(y, x))", b" || confidence", b"9223372036854775808", b"-9223372036854775809", b"\xd9\xa3",
)  # fmt: skip

_deep: list[Any] = []
for _ in range(300):
    _deep = [_deep]
# As JSON, so that each use has a value of its own.
VALUES = tuple(json.dumps(value) for value in (
    None, True, False, 0, -1, 1.5, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, 1e308, -0.0, math.inf, math.nan, "", " ", "\x00", "\ud800", "\u202e", "\uffff",
    "a" * 300, "a" * 70_000, "9" * 5000, "1e999999", "2014-02-30T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "../../x", "a/b", "\x1b[2J",
    "[/red]", [], {}, [[]], [None], {"": 0}, {"a": {"a": {}}}, _deep, list(range(2000)), {"__class__": "x"}, {"\ud800": 1}, "flyball.switch", "A" * 43,
))  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, seed: bytes) -> bytes:
    """The bytes of `seed` with up to four pieces put in its place."""
    value = seed
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(value)))
        cut = draw(st.sampled_from((0, 0, 1, 2, 8, 40)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=6))
        value = value[:at] + piece + value[at + cut :]
    return value


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value, from the outside in, not deeper than there is anything of a seed."""
    yield path
    if len(path) > 6:
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*path, name))


@st.composite
def changed(draw: st.DrawFn, seed: bytes) -> bytes:
    """The JSON of `seed` with up to three values replaced, added or taken away."""
    holder = [json.loads(seed)]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(holder) if path]))
        *way, last = path
        at: Any = holder
        for step in way:
            at = at[step]
        match draw(st.sampled_from(("replace", "replace", "remove", "add"))):
            case "remove" if way:
                del at[last]
            case "add" if isinstance(at, dict):
                at[draw(st.sampled_from(("x", "jws", "data", "type", "$ref", "", "\x00")))] = _value(draw)
            case _:
                at[last] = _value(draw)
    return b"" if not holder else json.dumps(holder[0]).encode()


def _value(draw: st.DrawFn) -> Any:
    return json.loads(draw(st.sampled_from(VALUES)))


def examples(parser: Parser) -> st.SearchStrategy[bytes]:
    found: list[st.SearchStrategy[bytes]] = [edited(seed) for seed in parser.seeds]
    if parser.is_json:
        found += [changed(seed) for seed in parser.seeds if seed[:1] == b"{"] * 2
    return st.one_of(*found, st.binary(max_size=200))


class TookTooLong(BaseException):
    """No Exception, so that no parser takes it for its own."""


@contextmanager
def ended_after(wall_s: float) -> Iterator[None]:
    """Raises TookTooLong in what is inside when it is not done by then; in the main thread only."""

    def end(*_: object) -> None:
        raise TookTooLong(f"not done after {wall_s} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(parser: Parser, value: bytes) -> None:
    """One input: used or refused on purpose, in the time and memory allowed; anything else is raised.

    Time is this process's own CPU time, so a busy machine changes nothing; what waits or never ends is ended. Memory is
    what this input took, however much was taken before.
    """
    mib, began = _peak_mib(is_reset=True), time.process_time()
    try:
        with ended_after(MAX_WALL_S):
            parser.read(value)
    except FlyballError as refused:
        str(refused).encode()  # so that it can be written down
    took_s, grew_mib = time.process_time() - began, _peak_mib() - mib
    assert took_s <= MAX_S, f"expected {parser.name} to answer within {MAX_S} s, took {took_s:.2f} s"
    assert grew_mib <= MAX_MIB, f"expected {parser.name} to take at most {MAX_MIB} MiB, took {grew_mib:.0f} MiB"


def _peak_mib(*, is_reset: bool = False) -> float:
    """The most memory this process had; on Linux since the last reset (proc(5), clear_refs), elsewhere since it began."""
    try:
        if is_reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# What is made to hurt: a parser that expands, recurses, backtracks or counts too far.
_N = 40
BOMBS: dict[str, bytes] = {
    "brackets": b"[" * 200_000,
    "brackets, closed": b"[" * 3000 + b"]" * 3000,
    "objects": b'{"a":' * 50_000,
    "objects, closed": b'{"data":' * 400 + b"1" + b"}" * 400,
    "digits": b"9" * 1_000_000,
    "exponent": b"1e999999999",
    "an exponent in an object": b'{"data": 1e999999999, "type": 1e-999999999}',
    "backslashes": b'"' + b"\\" * 500_000,
    "quotes": b'"' * 200_000,
    "escapes": b'"' + b"\\ud83d\\ude00" * 50_000 + b'"',
    "NULs": b"\x00" * 200_000,
    "spaces": b" " * 1_000_000,
    "lines": b"\n" * 200_000,
    "commas": b"," * 300_000,
    "colons": b": " * 100_000,
    "dashes": b"- " * 5_000,
    "dashes in lines": b"- a\n" * 40_000,
    "indents": b"\n".join(b" " * n + b"a:" for n in range(1_500)),
    "keys": b"{" + b",".join(b'"k%d":1' % n for n in range(40_000)) + b"}",
    "the same key": b"{" + b",".join(b'"k":1' for _ in range(40_000)) + b"}",
    "aliases": b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, _N)),
    "aliases where agents stand": b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, _N)) + b"agents: *a39\n",
    "merges": b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (n, n, n - 1, n - 1) for n in range(1, _N)),
    "an alias that holds itself": b"agents: &a [*a]\nkeys: *a\npeople: *a\n",
    "a merge of itself": b"agents: &a {<<: *a}\n",
    "hexadecimal": b"max_hops: 0x" + b"f" * 200_000,
    "sexagesimal": b"max_hops: 1" + b":59" * 20_000,
    "a folded text": b"when: >\n" + b"  a ||\n" * 20_000,
    "a condition of ors": b"when: " + b" || ".join([b"confidence > 0.5"] * 5_000) + b"\n{}",
    "nested conditions": b"(" * 20_000 + b"true" + b")" * 20_000 + b"\n{}",
    "nested lists in a condition": b"[" * 500 + b"]" * 500 + b" == []\n{}",
    "nested loops": b"[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, [1,2,3,4,5,6,7,8,9].all(d, a+b+c+d > 0))))\n{}",
    "a loop over a variable": b"x.all(a, x.all(b, x.all(c, a + b + c >= 0)))\n" + json.dumps({"x": list(range(900))}).encode(),
    "a pattern": b'x.matches("(a*)*(a*)*(a*)*b")\n{"x": "' + b"a" * 900 + b'"}',
    "a text that doubles": b'"aaaaaaaa"' + b' + "aaaaaaaa"' * 3_000 + b' == ""\n{}',
    "many variables": b"x0 > 1\n" + json.dumps({f"x{n}": n for n in range(20_000)}).encode(),
    "a long line of CSV": b"timestamp,value\n" + b"1," * 300_000,
    "an open quote of CSV": b'timestamp,value\n"' + b"a\n" * 30_000,
    "columns": b",".join(b"c%d" % n for n in range(30_000)) + b"\n" + b"1," * 30_000,
    "UTF-16": "timestamp,value\n1,2\n".encode("utf-16"),
    "front matter": b"---\n" + b"a: b\n" * 20_000 + b"---\ntext",
    "many delimiters": b"---\n" * 50_000,
    "a dotted signature": b'{"specversion":"1.0","id":"e","source":"/t","type":"machine.temperature_measured","subject":"m1","time":"2014-04-01T00:00:00Z","data":{"temperature":1},"jws":"' + b"A." * 50_000 + b'"}',
}  # fmt: skip
