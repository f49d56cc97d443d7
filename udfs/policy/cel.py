"""CEL conditions: checked once at publish, evaluated for every proposal.

Two engines. `check` (publish, `policy check`, `policy eval`) uses `cel-expr-python`, which knows
types, and imports it only when called: that library must never run on the thread of a Flink
operator, and the operator never asks for it. `Condition` uses `common-expression-language` (Rust),
which knows no types: so it enforces on every reading the types the condition was checked with.
What may be written is in `cel_subset`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

import cel as rust

from contracts.domain import DomainContract
from contracts.errors import PolicyProblem, PolicyRefused
from udfs.policy import cel_subset

if TYPE_CHECKING:
    from cel_expr_python import cel as checker  # type: ignore[import-untyped]  # no py.typed

MAX_ERROR_CHARACTERS: Final = 300
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_EXACT_IN_DOUBLE: Final = 2**53
# What policies of every domain may read: a domain adds its features and parameters.
EVERY_DOMAIN: Final = MappingProxyType(DomainContract("", {}, {}, {}).policy_variables())
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one reading of a condition gave: a bool, or the error that kept it from one."""

    value: bool | None
    error: str | None = None


_TRUE, _FALSE = Evaluation(True), Evaluation(False)
_BY_VALUE = {True: _TRUE, False: _FALSE}


def outcome(program: rust.Program, given: dict[str, object] | rust.Context) -> Evaluation:
    """Runs `program`; only a real bool counts, anything else is an error. Never raises for it."""
    try:
        value = program.execute(given)
    except Exception as error:  # whatever the engine raises is a hold
        return Evaluation(None, _short(f"{type(error).__name__}: {error}"))
    except BaseException as panic:
        # A panic in Rust derives from BaseException; it must hold one proposal, not end the job.
        if type(panic).__module__ != "pyo3_runtime":
            raise
        return Evaluation(None, _short(f"the CEL engine panicked: {panic}"))
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    return _not_bool(value)


def _not_bool(value: object) -> Evaluation:
    return Evaluation(None, f"expected bool, got {type(value).__name__}")


def outcomes(programs: Sequence[rust.Program], given: rust.Context) -> list[Evaluation]:
    """`outcome` of each program, over the same variables; fast where none has an error."""
    try:
        values = [program.execute(given) for program in programs]
        return [_BY_VALUE[value] if value is True or value is False else _not_bool(value) for value in values]
    except BaseException:  # one has an error: each for itself
        return [outcome(program, given) for program in programs]


def _short(text: str) -> str:
    return " ".join(text.split())[:MAX_ERROR_CHARACTERS]


# ------------------------------------------------------------------------------------- variables


@dataclass(frozen=True, slots=True)
class Bindings:
    """Variables ready for the engine, and those whose value does not have the declared type."""

    given: dict[str, object]
    wrong: dict[str, str]


def bind(values: Mapping[str, object], types: Mapping[str, str]) -> Bindings:
    """The part of `values` that `types` names, each value of its declared type.

    A variable that is missing or null is left out: reading it is an evaluation error. An int given
    for a double becomes one (JSON writes 1 for 1.0); any other mismatch lands in `wrong`.
    """
    given: dict[str, object] = {}
    wrong: dict[str, str] = {}
    for name, declared in types.items():
        value = values.get(name)
        if value is None:
            if declared in ("null_type", "dyn") and name in values:
                given[name] = None
        elif type(value) is float and declared == "double":  # noqa: SIM114  # a type a branch
            given[name] = value
        elif type(value) is str and declared == "string" and _is_text(value):  # noqa: SIM114
            given[name] = value
        elif type(value) is int and declared == "int" and _INT_MIN <= value <= _INT_MAX:  # noqa: SIM114
            given[name] = value
        elif type(value) is bool and declared == "bool":
            given[name] = value
        elif type(value) is int and declared == "double" and abs(value) <= _EXACT_IN_DOUBLE:
            given[name] = float(value)
        else:
            try:
                given[name] = _container(value, declared)
            except ValueError as error:
                wrong[name] = _short(f"variable {name!r}: expected {declared}, got {error}")
    return Bindings(given, wrong)


def _is_text(value: str) -> bool:
    """NUL is left out: the checker's engine ends a string there."""
    return len(value) <= cel_subset.MAX_CHARACTERS and "\x00" not in value


def _container(value: object, declared: str) -> object:
    """`value` if it is a list or map as declared. Raises ValueError saying what came instead."""
    inferred = infer_type(value)
    if not _fits(value, declared):
        raise ValueError(inferred)
    return value


def _fits(value: object, declared: str) -> bool:
    if declared.startswith("list(") and isinstance(value, list | tuple):
        return all(_fits(element, declared[5:-1]) for element in value)
    if declared.startswith("map(string, ") and isinstance(value, dict):
        return all(_fits(element, declared[12:-1]) for element in value.values())
    return declared == "dyn" or infer_type(value) == declared


def infer_type(value: object) -> str:
    """The CEL type of a JSON value: bool, int, double, string, null_type, list(T), map(string, T).

    T is `dyn` where elements differ. Raises ValueError for what no condition may read: ints past
    64 bits, NaN and infinities, text past the limit or not Unicode, keys that are not strings.
    """
    remaining = cel_subset.MAX_ELEMENTS

    def infer(part: object) -> str:
        nonlocal remaining
        remaining -= 1
        if remaining < -1:
            raise ValueError(f"more than {cel_subset.MAX_ELEMENTS} elements")
        match part:
            case None:
                return "null_type"
            case bool():
                return "bool"
            case int():
                if not _INT_MIN <= part <= _INT_MAX:
                    raise ValueError("an int past 64 bits")
                return "int"
            case float():
                if not math.isfinite(part):
                    raise ValueError(f"{part}")
                return "double"
            case str():
                _check_text(part)
                return "string"
            case list() | tuple():
                return f"list({_common({infer(element) for element in part})})"
            case dict():
                for key in part:
                    _check_text(key)
                return f"map(string, {_common({infer(element) for element in part.values()})})"
            case _:
                raise ValueError(type(part).__name__)

    try:
        return infer(value)
    except RecursionError:
        raise ValueError("deeper nesting than any condition may read") from None


def _common(kinds: set[str]) -> str:
    return kinds.pop() if len(kinds) == 1 else "dyn"


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"a key of type {type(text).__name__}")  # bad input
    if not _is_text(text):
        limit = cel_subset.MAX_CHARACTERS
        raise ValueError(f"a string with a NUL or of more than {limit} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a string that is not Unicode (lone surrogate)") from None


# ---------------------------------------------------------------------------- the operator's side


class Condition:
    """A condition the operator runs: thread-safe, about 4 us for six terms. Does not pickle.

    `variables` are the variables it reads with the types it was checked with.
    """

    __slots__ = ("expression", "program", "variables")

    def __init__(
        self, expression: str, program: rust.Program, variables: Mapping[str, str]
    ) -> None:
        self.expression = expression
        self.program = program
        self.variables = variables

    @classmethod
    def compile(cls, expression: str, variables: Mapping[str, str]) -> Self:
        """Parses `expression`, which `check` has admitted; `variables` may name more than it reads.

        Raises PolicyRefused when it is past the bounds or does not parse. Bounds come first: the
        parser would overflow the stack on deep nesting.
        """
        scanned = cel_subset.scan(expression)
        if scanned.problems:
            raise PolicyRefused.of(scanned.problems)
        program = _parse(expression)
        names = scanned.names()
        used = {name: kind for name, kind in sorted(variables.items()) if name in names}
        return cls(expression, program, MappingProxyType(used))

    def evaluate(self, values: Mapping[str, object]) -> Evaluation:
        """What the condition says of `values`. Never raises: an error means hold.

        A missing variable, or one that is null, is an error where the condition reads it.
        """
        bindings = bind(values, self.variables)
        if bindings.wrong:
            return Evaluation(None, next(iter(bindings.wrong.values())))
        return outcome(self.program, bindings.given)


def _parse(expression: str) -> rust.Program:
    try:
        return rust.compile(expression)
    except Exception as error:  # whatever the parser raises refuses
        raise PolicyRefused.of([_parse_problem(str(error))]) from None
    except BaseException as panic:
        if type(panic).__module__ != "pyo3_runtime":
            raise
        problem = PolicyProblem("an expression the evaluator parses", _short(f"a panic: {panic}"))
        raise PolicyRefused.of([problem]) from None


_PLACE: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*?)(?=\s*\n\s*\||\Z)", re.DOTALL)


def _parse_problem(message: str) -> PolicyProblem:
    found = _PLACE.search(message)
    line, column, text = (int(found[1]), int(found[2]), found[3]) if found else (1, 1, message)
    return PolicyProblem("an expression the evaluator parses", _short(text), line, column)


# ----------------------------------------------------------------------------- the publisher's side


@dataclass(frozen=True, slots=True)
class CheckedCondition:
    """A condition that may be published: `condition` runs it, `cost` is its worst case in steps."""

    condition: Condition
    cost: int
    _expression: checker.Expression

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables it reads, with their types."""
        return self.condition.variables

    def evaluate(self, values: Mapping[str, object]) -> Evaluation:
        """What the operator would get; both engines are asked.

        Raises PolicyRefused when one gives a bool the other does not give. An error in the Rust
        engine alone is a hold, and no disagreement.
        """
        bindings = bind(values, self.variables)
        got = self.condition.evaluate(values)
        if bindings.wrong or got.value is None:
            return got
        reference = _reference(self._expression, bindings.given)
        if reference.value is not got.value:
            raise PolicyRefused(
                f"the engines disagree: the evaluator gives {got.value}, the checker"
                f" {reference.error if reference.value is None else reference.value};"
                " please report the expression",
                expected=str(reference.error if reference.value is None else reference.value),
                got=str(got.value),
            )
        return got


def _reference(expression: checker.Expression, given: dict[str, object]) -> Evaluation:
    """The CEL team's engine. A runtime error comes back as a value there, and a truthy one."""
    from cel_expr_python import cel as checker

    try:
        result = expression.eval(data=given)
        if result.type() == checker.Type.BOOL and isinstance(result.value(), bool):
            return Evaluation(bool(result.value()))
        return Evaluation(None, _short(str(result.value())))
    except Exception as error:  # whatever the engine raises is its error
        return Evaluation(None, _short(str(error)))


def check(expression: str, variables: Mapping[str, str]) -> CheckedCondition:
    """Admits `expression` over the declared `variables` (name -> CEL type), or says why not.

    Not for the thread of a Flink operator. Raises PolicyRefused with every problem found, each
    with line, column, what was expected and what came.
    """
    scanned = cel_subset.scan(expression)
    if scanned.problems:
        raise PolicyRefused.of(scanned.problems)
    environment = _environment(tuple(sorted(variables.items())))
    try:
        compiled = environment.compile(expression)
    except Exception as error:  # whatever the checker raises refuses
        raise PolicyRefused.of(_type_problems(str(error), variables)) from None
    tree = cel_subset.decode(compiled.serialize())
    problems, cost = cel_subset.violations(expression, tree, variables)
    if problems:
        raise PolicyRefused.of(problems)
    for literal in sorted(scanned.literals()):
        if not _is_read_alike(literal):
            where = cel_subset.place(expression, expression.find(literal.lstrip("-")))
            raise PolicyRefused.of(
                [PolicyProblem("a literal both engines read alike", literal, *where)]
            )
    return CheckedCondition(Condition.compile(expression, variables), cost, compiled)


@lru_cache(maxsize=16)
def _environment(variables: tuple[tuple[str, str], ...]) -> checker.Env:
    from cel_expr_python import cel as checker

    for name, _ in variables:
        if not _NAME.match(name):
            raise PolicyRefused.of([PolicyProblem("a variable named like feature_x", repr(name))])
    return checker.NewEnv(variables={name: _type(kind) for name, kind in variables})


def _type(name: str) -> checker.Type:
    """The checker's type for a CEL type name that variables may have."""
    from cel_expr_python import cel as checker

    plain = {
        "bool": checker.Type.BOOL, "int": checker.Type.INT, "double": checker.Type.DOUBLE,
        "string": checker.Type.STRING, "null_type": checker.Type.NULL, "dyn": checker.Type.DYN,
    }  # fmt: skip
    if name in plain:
        return plain[name]
    if name.startswith("list(") and name.endswith(")"):
        return checker.Type.List(_type(name[5:-1]))
    if name.startswith("map(string, ") and name.endswith(")"):
        return checker.Type.Map(checker.Type.STRING, _type(name[12:-1]))
    problem = PolicyProblem("a variable of type bool, int, double, string, list or map", repr(name))
    raise PolicyRefused.of([problem])


_OVERLOAD: Final = re.compile(r"found no matching overload for '(.+)' applied to '(.*)'")
_UNKNOWN_NAME: Final = re.compile(r"undeclared reference to '(.+?)'")


def _type_problems(message: str, variables: Mapping[str, str]) -> list[PolicyProblem]:
    """What the checker's message says, one problem an error."""
    problems = []
    for line, column, text in _PLACE.findall(message):
        if found := _OVERLOAD.search(text):
            operation = found[1].strip("_").replace("_", " ").strip() or found[1]
            expected = f"operands that {operation!r} takes (it converts no types)"
            got = found[2]
        elif found := _UNKNOWN_NAME.search(text):
            near = difflib.get_close_matches(found[1], variables, n=1)
            expected = "a declared variable" + (f" (like {near[0]!r})" if near else "")
            got = repr(found[1])
        else:
            expected, got = "valid CEL", _short(text)
        problems.append(PolicyProblem(expected, got, int(line), int(column)))
    return problems or [PolicyProblem("valid CEL", _short(message), 1, 1)]


@lru_cache(maxsize=1024)
def _is_read_alike(literal: str) -> bool:
    """Whether both engines take the same value, of the same type, from a literal."""
    from cel_expr_python import cel as checker

    try:
        here: Any = _parse(literal).execute({})
        there: Any = checker.NewEnv().compile(literal).eval().value()
    except Exception:  # not read by one of them is not read alike
        return False
    there = bytes(there) if isinstance(there, bytearray) else there
    return type(here) is type(there) and (here == there) and str(here) == str(there)


def eval_condition(
    expression: str, variables: Mapping[str, object], declared: Mapping[str, str] = EVERY_DOMAIN
) -> dict[str, bool | str]:
    """One condition exactly as `govern` would read it: {"value": bool} or {"error": text}.

    A variable of `declared` (name -> CEL type) has that type, as in a policy: a whole number given for a double is one.
    The others have the type of their JSON value. Never raises for a bad expression or bad values.
    """
    try:
        names = cel_subset.scan(expression).names()
        types = {name: kind for name, kind in declared.items() if name in names}
        for name, value in variables.items():
            if not isinstance(name, str) or not _NAME.match(name):
                return {"error": f"expected a variable named like feature_x, got {name!r}"[:300]}
            if name in names:
                try:
                    types.setdefault(name, infer_type(value))
                except ValueError as error:
                    expected = "expected a value a condition may read"
                    return {"error": f"variable {name!r}: {expected}, got {error}"}
        result = check(expression, types).evaluate(variables)
    except PolicyRefused as refused:
        return {"error": str(refused)}
    if result.value is None:
        return {"error": result.error or "no value"}
    return {"value": result.value}
