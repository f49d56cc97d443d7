"""A domain's world: where its facts come from and what its commands do.

`ops/worlds/<domain>.py` defines `WORLD`, an object that fits `World`. It is the only code that knows
what a CSV column or an action means; nothing in here or in the jobs does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from contracts.errors import SetupFailed


@dataclass(frozen=True)
class NewFact:
    """A fact about to be published. Its id is derived from `identity`, which must be stable.

    `event_ms` is event time in milliseconds since 1970-01-01 UTC.
    """

    type: str
    subject: str
    event_ms: int
    data: Mapping[str, object]
    identity: str


@dataclass(frozen=True)
class Order:
    """A command as a handler gets it; `command_id` is the key to be idempotent by."""

    command_id: str
    action: str
    subject: str
    parameters: Mapping[str, Any]
    event_time: str
    obligations: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a handler says: how it went, how long it took in event time (seconds), and what it cost.

    `cost` takes the place of what the policies' budgets had reserved; None leaves that as it is.
    """

    status: Literal["succeeded", "failed"]
    detail: str = ""
    took_s: float = 0.0
    cost: float | None = None


Handler = Callable[[Order], Done]


class Decided(NamedTuple):
    """What a world learns of a decision: what was decided about what, and what its command did, if asked.

    `done` is the outcome's status, `done_ms` its event time; both are None while there is none.
    """

    verdict: str
    action: str
    parameters: Mapping[str, Any] = {}
    command_id: str | None = None
    done: str | None = None
    done_ms: int | None = None


class DecisionOf(Protocol):
    def __call__(
        self, key: str, /, *, nth: int | None = None, is_done: bool = False, timeout_s: float | None = None
    ) -> Decided | None:
        """The last decision about `key` (a payment id, say), or the nth (from 0); waits until there is one.

        `is_done` waits for its command's outcome too, where it has a command. None: not within `timeout_s`
        (wall time; None: as long as the loop is usually given).
        """


class World(Protocol):
    """What `ops/worlds/<domain>.py` gives as WORLD.

    A world whose files stand in no order of time says so with `plays_by_time = True`. One that takes a second
    file of reference facts has `reference_row_to_fact(row, subject, event_ms)`, which is like `row_to_fact`.
    """

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        """One CSV row (or bare JSON object of the same columns) as a fact.

        `subject` is --subject, or the file's name where rows do not name one. Raises BadInput with
        code `row_invalid` and what was expected.
        """

    def played(self, facts: Iterable[NewFact | None], decision_of: DecisionOf) -> Iterator[NewFact | None]:
        """The facts of an input in playing order, with what the world answers later put in between."""

    def generate(self, *, seed: int, count: int) -> Iterable[NewFact]:
        """A seeded input for a domain that ships none; goes to `played` as it is."""

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        """Which key of `decision_of` a decision answers; None when the world does not wait.

        `decision` is its data, with the `subject` it is about.
        """

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        """One handler an action: the simulated actuators of the embedded default."""

    def train(self, folder: Path) -> Mapping[str, Any]:
        """Fit the domain's models on shipped or generated data; see ops/models.py."""


def load_world(domain: str) -> World:
    """The world of `domain`. Raises SetupFailed when there is none."""
    try:
        module = importlib.import_module(f"ops.worlds.{domain}")
    except ModuleNotFoundError as error:
        if error.name != f"ops.worlds.{domain}":
            raise
        raise SetupFailed(
            f"no world for domain {domain!r}: ops/worlds/{domain}.py with WORLD is needed;"
            f" './flyball new {domain}' lays one out"
        ) from None
    world: World = module.WORLD
    return world
