"""The two CEL engines: alike on all that is admitted; where they differ, refused at publish."""

from __future__ import annotations

import itertools
import random

import pytest

from contracts.errors import PolicyRefused
from udfs.policy.cel import CheckedCondition, bind, check

EDGES: dict[str, tuple[object, ...]] = {
    "int": (0, 1, -1, 2, 7, 2**63 - 1, -(2**63), 2**53 + 1),
    "double": (
        0.0,
        -0.0,
        1.0,
        0.5,
        -1e308,
        5e-324,
        9223372036854775807.0,
        2.0**53,
        1e19,
    ),
    "string": (
        "",
        "a",
        "ab",
        "é",
        "🐱",
        "\uffff",
        "10",
        "-1",
        "1.5",
        "NaN",
        "+1",
        " 1",
        "0x1",
    ),
    "bool": (True, False),
    "list(int)": ([], [1], [1, 2], [2**63 - 1]),
    "list(dyn)": ([1, 1.0, "a"], [None], [[1]], [{"a": 1}]),
    "map(string, int)": ({}, {"a": 1}, {"é": 2, "a": 1}),
    "null_type": (None,),
}
OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "&&", "||", "in")
ARITHMETIC = ("+", "-", "*", "/", "%")


def admitted(expression: str, variables: dict[str, str]) -> CheckedCondition | None:
    try:
        return check(expression, variables)
    except PolicyRefused:
        return None


@pytest.mark.parametrize("left", EDGES)
def test_engines_agree_when_any_two_values_at_the_limits_meet(left: str) -> None:
    """`evaluate` asks both engines and raises PolicyRefused when they differ."""
    count = 0
    for right, others in EDGES.items():
        types = {"x": left, "y": right}
        expressions = [f"x {op} y" for op in OPERATORS]
        expressions += [f"dyn(x) {op} dyn(y)" for op in OPERATORS]
        expressions += [f"x {op} y == x" for op in ARITHMETIC]
        expressions += [f"x {op} y > y" for op in ARITHMETIC]
        expressions += [f"x.{name}(y)" for name in ("contains", "startsWith", "endsWith")]
        expressions += [
            "x[y] == x[y]",
            "has(x.a)",
            "x.a == y",
            "[x, y] == [y, x]",
            "{'k': x} == y",
        ]
        for expression in expressions:
            condition = admitted(expression, types)
            if condition is None:
                continue
            for x, y in itertools.product(EDGES[left], others):
                condition.evaluate({"x": x, "y": y})
                count += 1
    assert count > 50


@pytest.mark.parametrize("kind", EDGES)
def test_engines_agree_when_a_value_at_the_limits_is_converted(kind: str) -> None:
    for expression in (
        "int(x) == 1", "uint(x) > 1u", "double(x) < 1.5", "string(x) == '1'", "bytes(x) < b'b'",
        "size(x) == 1", "-x < x", "!x", "x ? true : false", "double(int(x)) == 1.0",
        "x.matches('^[a-z]+$')", "x.all(v, v > 0)", "x.exists(v, v == 1)", "x.map(v, v) == x",
        "x.exists_one(v, v == 1)", "x.filter(v, v == 1) == x", "x.size() > 0",
    ):  # fmt: skip
        condition = admitted(expression, {"x": kind})
        for value in EDGES[kind] if condition else ():
            assert condition is not None
            condition.evaluate({"x": value})


def test_engines_agree_when_conditions_are_generated() -> None:
    chance = random.Random(20)
    types = {
        "i": "int",
        "j": "int",
        "d": "double",
        "s": "string",
        "b": "bool",
        "l": "list(int)",
    }
    pools = {
        "i": "int",
        "j": "int",
        "d": "double",
        "s": "string",
        "b": "bool",
        "l": "list(int)",
    }

    def term(kind: str, depth: int) -> str:
        leaves = [name for name, of in types.items() if of == kind]
        if depth == 0:
            return chance.choice(leaves)
        inner = depth - 1
        match kind:
            case "int" | "double":
                sign = chance.choice("+-*/" if kind == "double" else "+-*/%")
                return f"({term(kind, inner)} {sign} {term(kind, inner)})"
            case "string":
                return f"({term('string', inner)} + {term('string', inner)})"
            case "list(int)":
                return f"l.{chance.choice(('map', 'filter'))}(v, {term('bool', 0)} || v > i)"
            case _:
                of = chance.choice(("int", "double", "string", "bool"))
                sign = chance.choice(("==", "!=", "<", ">="))
                return chance.choice(
                    (
                        f"({term(of, inner)} {sign} {term(of, inner)})",
                        f"({term('bool', inner)} && {term('bool', inner)})",
                        f"({term('bool', inner)} || {term('bool', inner)})",
                        f"!({term('bool', inner)})",
                        f"({term('bool', inner)} ? {term('bool', inner)} : {term('bool', inner)})",
                        f"l.{chance.choice(('all', 'exists', 'exists_one'))}(v, v / i > j)",
                        f"({term('int', inner)} in l)",
                    )
                )

    answered = 0
    for _ in range(300):
        condition = admitted(term("bool", chance.randrange(1, 4)), types)
        for _ in range(8 if condition else 0):
            assert condition is not None
            values = {
                n: chance.choice(EDGES[k]) for n, k in pools.items() if chance.random() > 0.03
            }
            answered += condition.evaluate(values).value is not None
    assert answered > 800


DISAGREEMENTS = {
    "size of a string counts bytes": ("size(s) == 1", "counts the bytes"),
    "size as a method too": ("s.size() == 1", "counts the bytes"),
    "unary minus wraps": ("-i == i", "wraps at the smallest int"),
    "unary minus of dyn": ("-dyn(b) == b", "wraps at the smallest int"),
    "pairs of minus are dropped unseen": ("- -b == b", "one minus"),
    "pairs of not are dropped unseen": ("!!i == i", "one '!'"),
    "double to string": ("string(d) == ''", "in another form"),
    "bytes to string": ("string(b'\\xff') == ''", "invalid UTF-8"),
    "map with uint key": ("dyn({1: 1}) == {1u: 1}", "as key"),
    "map with repeated key": ("{1: 1, 1: 2}[1] == 2", "each map key once"),
    "map with keys made later": ("{s: 1, 'a': 2}['a'] == 2", "as key"),
    "map key looked up by another type": ("dyn(1u) in {1: 1}", "a key of type"),
    "order of a map": ("m.map(k, k) == ['a', 'b']", "a list"),
    "error before or after the answer": ("m.exists(k, m[k] / i == 1)", "a list"),
    "timestamp made at run time": (
        "timestamp(s) > timestamp('2020-01-01T00:00:00Z')",
        "literal",
    ),
    "timestamp with offset": (
        "timestamp('2020-01-01T00:00:00+01:00').getHours() == 0",
        "literal",
    ),
    "timestamp with a space": (
        "timestamp('2020-01-01 00:00:00Z').getHours() == 0",
        "literal",
    ),
    "duration past its range": (
        "duration('320000000000s') > duration('1s')",
        "literal",
    ),
    "duration with exponent": ("duration('1e3s') > duration('1s')", "literal"),
    "duration arithmetic": (
        "dyn(duration('1s')) + dyn(duration('1s')) == d",
        "admitted operation",
    ),
    "timestamps centuries apart": (
        "timestamp('9999-01-01T00:00:00Z') - timestamp('0001-01-01T00:00:00Z') > duration('1s')",
        "range of a duration",
    ),
    "timestamp to string": ("string(timestamp('2020-01-01T00:00:00Z')) == s", "+00:00"),
    "milliseconds of a duration": ("duration('1s').getMilliseconds() == 0", "disagree"),
    "Unicode digits": (r"s.matches('\\d')", "both engines read alike"),
    "Unicode words": (r"s.matches(r'\w')", "both engines read alike"),
    "intersection of classes": ("s.matches('[a&&b]')", "both engines read alike"),
    "class within a class": ("s.matches('[a[b]]')", "both engines read alike"),
    "repetition of repetition": ("s.matches('a{2}{3}')", "both engines read alike"),
    "repetition past the limit": ("s.matches('(a{100}){100}')", "repetitions in all"),
    "flags": ("s.matches('(?i)k')", "both engines read alike"),
    "pattern made at run time": ("s.matches(s)", "a literal regular expression"),
    "types as values": ("type(i) == int", "type"),
    "a list and a map joined": ("dyn(l) + dyn(m) == l", "admitted operation"),
    "messages": (
        "google.protobuf.Duration{seconds: 1} == duration('1s')",
        "plain values",
    ),
    "enums": ("google.protobuf.NullValue.NULL_VALUE == 0", "plain values"),
    "names from the root": (".i == i", "a name before the dot"),
    "quoted names": ("m.`a` == 1", "a CEL literal, name or operator"),
    "a NUL in the text": ("true //\x00\n&& false", "without NUL"),
}


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_a_condition_is_refused_when_the_engines_would_differ(name: str) -> None:
    expression, cause = DISAGREEMENTS[name]
    types = {
        "s": "string", "i": "int", "d": "double", "b": "bool", "l": "list(int)",
        "m": "map(string, int)",
    }  # fmt: skip
    with pytest.raises(PolicyRefused) as refused:
        check(expression, types)
    assert cause in str(refused.value)
    assert refused.value.line is not None and refused.value.column is not None


HELD: dict[str, tuple[str, dict[str, object]]] = {
    "division by zero": ("i / j == 1", {"i": 1, "j": 0}),
    "overflow": ("i + 1 > 0", {"i": 2**63 - 1}),
    "comparison with NaN": ("d / d < 1.0", {"d": 0.0}),
    "a missing variable": ("i == 1", {}),
    "an error before the answer in all()": (
        "l.all(v, 6 / (2 - v) == 6)",
        {"l": [1, 2, 3]},
    ),
    "a key that is not there": ("m.a == 1", {"m": {}}),
}


@pytest.mark.parametrize("name", HELD)
def test_a_condition_gives_an_error_when_it_cannot_be_evaluated(name: str) -> None:
    expression, values = HELD[name]
    types = {
        "i": "int",
        "j": "int",
        "d": "double",
        "l": "list(int)",
        "m": "map(string, int)",
    }
    got = check(expression, types).evaluate(values)
    assert got.value is None
    assert got.error


def test_an_error_beside_the_answer_is_passed_over_when_the_other_side_decides() -> None:
    condition = check("i / 0 == 1 || b", {"i": "int", "b": "bool"})
    assert condition.evaluate({"i": 1, "b": True}).value is True
    assert condition.evaluate({"i": 1, "b": False}).value is None
    assert bind({"i": 1, "b": True}, condition.variables).wrong == {}
