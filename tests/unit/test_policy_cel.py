"""Conditions: their bounds, their variables, their errors."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

from contracts.domain import load_domain
from contracts.errors import PolicyRefused
from udfs.policy import cel_subset
from udfs.policy.cel import EVERY_DOMAIN, Condition, Evaluation, bind, check, eval_condition, outcome
from udfs.policy.cel_subset import pattern_parts, pattern_problem

TYPES = {"amount": "double", "count": "int", "country": "string", "is_new": "bool"}


class Answering:
    """A program that gives what it was told to."""

    def __init__(self, given: object) -> None:
        self.given = given

    def execute(self, _: object) -> object:
        if isinstance(self.given, BaseException):
            raise self.given
        return self.given


class PanicException(BaseException):
    """What pyo3 raises when Rust panics."""


PanicException.__module__ = "pyo3_runtime"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (True, True), (False, False), (1, None), ("true", None), (None, None), ([], None),
        (ValueError("no"), None), (PanicException("index out of bounds"), None),
    ],
)  # fmt: skip
def test_only_a_bool_counts_when_the_engine_answers(given: object, value: bool | None) -> None:
    program: Any = Answering(given)
    got = outcome(program, {})
    assert got.value is value
    assert (got.error is None) == (value is not None)


def test_an_interrupt_is_passed_on_when_it_comes_during_evaluation() -> None:
    program: Any = Answering(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        outcome(program, {})


@pytest.mark.parametrize(
    ("declared", "value", "given"),
    [
        ("double", 1.5, 1.5),
        ("double", 1, 1.0),
        ("double", 2**53 + 2, "wrong"),
        ("double", "1", "wrong"),
        ("double", True, "wrong"),
        ("int", 1, 1),
        ("int", 1.0, "wrong"),
        ("int", 2**63, "wrong"),
        ("int", True, "wrong"),
        ("bool", 1, "wrong"),
        ("string", "a" * 4096, "a" * 4096),
        ("string", "a" * 4097, "wrong"),
        ("string", "a\x00b", "wrong"),
        ("int", None, "missing"),
        ("null_type", None, None),
        ("list(int)", [1, 2], [1, 2]),
        ("list(int)", [], []),
        ("list(int)", [1, "a"], "wrong"),
        ("list(dyn)", [1, "a"], [1, "a"]),
        ("list(dyn)", [0] * 256, [0] * 256),
        ("list(dyn)", [0] * 257, "wrong"),
        ("map(string, int)", {"a": 1}, {"a": 1}),
        ("map(string, int)", {1: 1}, "wrong"),
    ],
)
def test_a_value_reaches_the_engine_when_it_has_the_declared_type(
    declared: str, value: object, given: object
) -> None:
    bindings = bind({"x": value}, {"x": declared})
    if given == "wrong":
        assert declared in bindings.wrong["x"] and "x" not in bindings.given
    elif given == "missing":
        assert bindings.given == {} and bindings.wrong == {}
    else:
        assert bindings.given == {"x": given} and type(bindings.given["x"]) is type(given)


def test_an_int_divides_as_a_double_when_the_variable_is_declared_double() -> None:
    condition = Condition.compile("a / b == 0.5", {"a": "double", "b": "double"})
    assert condition.evaluate({"a": 1, "b": 2}) == Evaluation(True)


def test_only_the_variables_in_the_text_are_read_when_more_are_declared() -> None:
    assert dict(Condition.compile("count > 2", TYPES).variables) == {"count": "int"}


@pytest.mark.parametrize(
    ("expression", "line", "column", "expected", "got"),
    [
        ("amount <= 2", 1, 8, "operands that '<=' takes", "(double, int)"),
        ("is_new &&\n  cuontry == 'GB'", 2, 3, "like 'country'", "'cuontry'"),
        ("amount", 1, 1, "a condition (bool)", "double"),
        ("is_new &&", 1, 10, "valid CEL", "mismatched input"),
        (
            "'é🐱' == country && size(country) > 1",
            1,
            24,
            "counts the bytes",
            "size(string)",
        ),
        ("country.matches('(')", 1, 17, "both engines read alike", "unterminated"),
        ("", 1, 1, "valid CEL", "mismatched input"),
    ],
)
def test_the_place_and_cause_are_named_when_a_condition_is_refused(
    expression: str, line: int, column: int, expected: str, got: str
) -> None:
    with pytest.raises(PolicyRefused) as refused:
        check(expression, TYPES)
    error = refused.value
    assert (error.line, error.column) == (line, column)
    assert expected in error.expected
    assert got in error.got


def test_every_problem_is_named_when_a_condition_has_several() -> None:
    with pytest.raises(PolicyRefused) as refused:
        check("size(country) > 1 && -count > 2", TYPES)
    assert [problem.column for problem in refused.value.problems] == [5, 22]


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 21 + "true" + ")" * 21,
        "true" + " && true" * 400,
        "country == '" + "a" * 4096 + "'",
        "[1].exists(a, [1].exists(b, [1].exists(c, a == b)))",
        "l.exists(a, l.exists(b, a == b))",
        "country" + " + country" * 20 + " == ''",
        "l.map(a, country + country) == []",
        "country.matches('a{101}')",
        "country.matches('" + "a" * 201 + "')",
        "country.matches('(?:" + "." * 35 + "){100}')",
        " || ".join(["country.matches('.{100}')"] * 3),
        "[1, 2, 3].exists(a, country.matches('.{100}'))",
        "(country" + " + country" * 16 + ").matches('.{15}')",
        "[country" + " + country" * 16 + "].exists(a, l.exists(b, a.contains('x')))",
        "l.exists(a, country.contains('x') || country.contains('y'))",
    ],
)
def test_a_condition_is_refused_when_its_time_or_depth_has_no_bound(
    expression: str,
) -> None:
    with pytest.raises(PolicyRefused):
        check(expression, {**TYPES, "l": "list(int)"})


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 20 + "true" + ")" * 20,
        "!(" * 20 + "true" + ")" * 20,
        "(1+" * 20 + "1" + ")" * 20 + "+1" * 200 + " == 1",
        "x" + ".a" * 290 + " == 1",
        "[" * 20 + "]" * 20 + " == []",
        "true" + "||true" * 290,
    ],
)
def test_the_parser_survives_a_small_stack_when_a_condition_is_within_the_bounds(
    expression: str,
) -> None:
    program = (
        "import sys, threading\n"
        "from udfs.policy.cel import Condition\n"
        "condition = []\n"
        "def run():\n"
        f"    condition.append(Condition.compile({expression!r}, {{}}))\n"
        "    condition[0].evaluate({})\n"
        "threading.stack_size(256 * 1024)\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()\n"
        "sys.exit(0 if condition else 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()


def test_deep_nesting_is_refused_when_it_comes_straight_to_the_operator() -> None:
    with pytest.raises(PolicyRefused, match="4096 characters"):
        Condition.compile("(" * 100_000, {})
    with pytest.raises(PolicyRefused, match="nested brackets"):
        Condition.compile("(" * 2000 + ")" * 2000, {})


def test_a_condition_answers_alike_when_threads_share_it() -> None:
    condition = Condition.compile("count > 2 && country == 'GB'", TYPES)
    wrong: list[object] = []

    def read(count: int) -> None:
        for _ in range(500):
            got = condition.evaluate({"count": count, "country": "GB"})
            if got.value is not (count > 2):
                wrong.append(got)

    threads = [threading.Thread(target=read, args=(count,)) for count in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def assert_evaluated(got: dict[str, bool | str], expect: dict[str, bool] | str) -> None:
    """`expect`: the value, or a part of the error."""
    if isinstance(expect, str):
        assert expect in str(got["error"])
    else:
        assert got == expect


@pytest.mark.parametrize(
    ("expression", "variables", "expect"),
    [
        ("x > 2 && s == 'a'", {"x": 3, "s": "a"}, {"value": True}),
        ("x > 2.5", {"x": 2.0}, {"value": False}),
        ("m.a.b == 1", {"m": {"a": {"b": 1}}}, {"value": True}),
        ("l.exists(v, v == 'b')", {"l": ["a", "b"]}, {"value": True}),
        ("n == null", {"n": None}, {"value": True}),
        ("x", {"x": True}, {"value": True}),
        ("x + 1", {"x": 1}, "a condition (bool)"),
        ("x > 2.5", {"x": 2}, "(int, double)"),
        ("y", {}, "a declared variable"),
        ("x > 1", {"x": 2**63}, "64 bits"),
        ("x > 1.0", {"x": float("nan")}, "nan"),
        ("x == 'a'", {"x": "\ud800"}, "Unicode"),
        ("x > 1", {"x": object()}, "object"),
        ("true", {"x.y": 1}, "a variable named"),
        ("x[0] == 1", {"x": []}, "IndexError"),
        ("x / 0 == 1", {"x": 1}, "division by zero"),
        ("m.b", {"m": {"b": 1, "c": True}}, "expected bool, got int"),
    ],
)
def test_eval_prints_a_value_or_an_error_when_a_condition_is_tried(
    expression: str, variables: dict[str, object], expect: dict[str, bool] | str
) -> None:
    assert_evaluated(eval_condition(expression, variables), expect)


@pytest.mark.parametrize(
    ("expression", "variables", "expect"),
    [
        ("confidence >= 0.8", {"confidence": 1}, {"value": True}),
        ("confidence > 0.8 && age_s < 2.5", {"confidence": 1, "age_s": 2}, {"value": True}),
        ("confidence >= 1", {"confidence": 1}, "(double, int)"),
        ("confidence > 0.8", {"confidence": "high"}, "expected double, got string"),
        ("confidence > 0.8", {"confidence": 2**60}, "expected double, got int"),
        ("confidence > 0.8", {}, "Undefined variable"),
        ("confidence > 0.8", {"confidence": None}, "Undefined variable"),
        ("confidence > 0.8 || true", {}, {"value": True}),
        ("hops > 1 && allowed_1h == 0", {"hops": 2, "allowed_1h": 0}, {"value": True}),
        ("hops > 1.0", {"hops": 2}, "(int, double)"),
        ("hops > 1", {"hops": 2.0}, "expected int, got double"),
        ("agent == 'a'", {"agent": 1}, "expected string, got int"),
        ("feature_x > 1", {"feature_x": 2}, {"value": True}),
        ("feature_x > 1.0", {"feature_x": 2}, "(int, double)"),
        ("m.confidence == 1", {"m": {"confidence": 1}}, {"value": True}),
        ("[1].exists(confidence, confidence == 1)", {}, {"value": True}),
    ],
)
def test_a_variable_that_all_policies_may_read_has_its_declared_type_when_it_is_tried(
    expression: str, variables: dict[str, object], expect: dict[str, bool] | str
) -> None:
    assert_evaluated(eval_condition(expression, variables), expect)


def test_a_variable_of_a_domain_has_its_declared_type_when_the_domain_is_named() -> None:
    declared = load_domain("machines").policy_variables()
    assert eval_condition("feature_temperature > 2.5", {"feature_temperature": 3}, declared) == {"value": True}
    assert EVERY_DOMAIN.items() <= declared.items()


@pytest.mark.parametrize(
    ("pattern", "is_admitted"),
    [
        ("", True), ("^abc$", True), ("[a-z0-9_]+", True), ("[^a-z]{2,3}?", True),
        (r"\.csv$", True), ("(GB|FR){1,2}", True), ("(?:a|b)*", True), (r"[a\-z\]]", True),
        ("é+🐱", True), ("[é-ü]", True), ("a||b", True), ("(|a)", True),
        (r"\d", False), (r"\w", False), (r"\b", False), (r"\pL", False), ("(?i)a", False),
        ("(?P<n>a)", False), ("[[:alpha:]]", False), ("[a&&b]", False), ("[a[b]]", False),
        ("[--a]", False), ("a**", False), ("a{2}{3}", False), ("a{,2}", False), ("{", False),
        ("*a", False), ("a|*", False), (r"\Qa\E", False), ("a{101}", False), ("(a", False), ("a)", False),
        ("^[A-Za-zÀ-ÿ' \\-]{1,64}$", True), ("(?:ab){66}", True), ("(?:ab){67}", False), ("(){100}", True),
        ("((|)){67}", False), ("[abcdefghijklmnopqrstuvwxyz0123456789]{60}", True), (")", False), ("a){2}", False),
    ],
)  # fmt: skip
def test_a_regular_expression_is_admitted_when_both_dialects_read_it_alike(
    pattern: str, is_admitted: bool
) -> None:
    assert (pattern_problem(pattern) == "") is is_admitted


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("", 0), ("^ab$", 4), ("[a-z]", 1), ("a{3}", 3), ("a{3,7}b", 8), ("a{0}", 1), ("a*", 2), ("a{2,3}?", 4),
        ("(?:ab)", 3), ("(ab){5}", 15), ("(a(b{2}c){3}){4}", 56), ("a|b", 3), (r"\.{9}", 9),
        ("[abcdefghijklmnopqrstuvwxyz]{10}", 20), ("[abcdefghijklmnopqrstuvwxyz0123456789]{10}", 30),
    ],
)  # fmt: skip
def test_the_parts_of_a_regular_expression_are_counted_with_every_repetition_written_out(pattern: str, parts: int) -> None:
    assert pattern_problem(pattern) == ""
    assert pattern_parts(pattern) == parts


def test_the_operator_never_loads_the_checker_when_it_compiles_and_evaluates() -> None:
    program = (
        "import sys\n"
        "from udfs.policy.cel import Condition\n"
        "from udfs.policy.policy_set import PolicySet\n"
        "PolicySet.compile([])\n"
        "assert Condition.compile('1 < 2', {}).evaluate({}).value\n"
        "assert not any(name.startswith('cel_expr_python') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()


def test_each_exclusion_has_a_reason_and_is_not_admitted_when_listed() -> None:
    assert all(cel_subset.REFUSED.values())
    assert not cel_subset.ADMITTED & cel_subset.REFUSED.keys()
