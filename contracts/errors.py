"""Every error Flyball raises on purpose.

FlyballError
├── Retryable              the same call may succeed later
│   └── BrokerUnavailable
├── Terminal               the input or the set-up is at fault; say what to change
│   ├── SetupFailed        Java, jars, ports, processes
│   ├── JobFailed          a Flink job failed; carries its root cause
│   ├── BadInput           a record, file or event that does not fit its contract (has a code)
│   ├── ModelRefused       a model artefact that does not match its digest or does not load
│   ├── PolicyRefused      a policy that does not parse, type-check or meet its examples
│   ├── StateRefused       state that this code must not start from, or cannot read
│   ├── ReplyRefused       a language model's reply that breaks a rule (has a code)
│   └── ToolRefused        a look-up that may not be made, or that gave nothing (has a code)
└── Programming            a bug in Flyball: fails the job

What pure code raises and nobody foresaw, over one record, makes that record a dead letter `internal` (udfs/serde.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class FlyballError(Exception):
    """Root of the tree."""


class Retryable(FlyballError):
    """The same call may succeed later."""


class BrokerUnavailable(Retryable):
    """No Kafka broker answered at the configured address."""


class Terminal(FlyballError):
    """Trying again without changing something will fail again."""


class SetupFailed(Terminal):
    """Something outside Flyball's code (Java, a jar, a port, a process) is not as needed."""


class JobFailed(Terminal):
    """A Flink job failed for good; the message holds the root cause from Flink's REST API."""


class BadInput(Terminal):
    """A record that does not fit its contract.

    `code` is one of contracts.dead_letter.Cause; the message says what was expected and what came.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelRefused(Terminal):
    """A model artefact that does not match its digest, does not load or gives a wrong shape."""


class StateRefused(Terminal):
    """State of an operator that would be lost or misread by this version of the code."""


class ReplyRefused(Terminal):
    """A language model's reply that may not become a proposal.

    `code`: too_long, not_json, wrong_schema, undeclared_action, wrong_parameters, not_of_situation or
    unknown_evidence. The message may be told to the model; it holds nothing but what the model itself wrote, and the rule.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ToolRefused(Terminal):
    """A look-up that may not be made (undeclared_tool, not_json, wrong_arguments, wrong_tool) or that gave
    nothing (tool_failed, tool_timeout). The message may be told to the model; it holds no argument's value.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One thing wrong with a policy. `line` and `column` are 1-based; 0 where not known."""

    expected: str
    got: str
    line: int = 0
    column: int = 0
    file: str = ""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return f"{place}{': ' if place else ''}expected {self.expected}, got {self.got}"


class PolicyRefused(Terminal):
    """A policy that may not be published, or a condition that does not compile.

    `problems` holds everything found, in the order of the text; `line`, `column` (1-based, None
    where not known), `expected` and `got` are those of the first.
    """

    def __init__(
        self,
        message: str,
        *,
        line: int | None = None,
        column: int | None = None,
        expected: str = "",
        got: str = "",
        problems: Sequence[PolicyProblem] = (),
    ) -> None:
        place = f"{line}:{column}: " if line is not None else ""
        super().__init__(place + message)
        self.message = message
        self.line = line
        self.column = column
        self.expected = expected
        self.got = got
        self.problems = tuple(problems)

    @classmethod
    def of(cls, problems: Sequence[PolicyProblem]) -> PolicyRefused:
        """The error for one or more problems; its text has one line for each."""
        first = problems[0]
        refused = cls(
            f"expected {first.expected}, got {first.got}",
            line=first.line or None,
            column=first.column or None,
            expected=first.expected,
            got=first.got,
            problems=problems,
        )
        refused.args = ("\n".join(str(problem) for problem in problems),)
        return refused


class Programming(FlyballError):
    """A broken invariant inside Flyball."""


def named(error: BaseException) -> str:
    """Kind and place of an error nobody foresaw, without its message: that may hold a record's data."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" in {Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}"
    return f"{type(error).__name__}{place}"
