"""What operators keep in Flink's state: a version of each kind of value, and how values of older ones are read.

The only place that knows versions. A value is stored as JSON behind its version ("v1:[...]"); values of version 0
are from before there were versions and bear none. A value of an older version is lifted when it is read, step by step, and
stored as the newest when it is written next; one of a newer version (this code is older than the state) is refused, never
guessed. A changed shape of a value means: append a pure function to its lifts; keep a value of the version
before in tests/data/state; `./flyball state --write` (docs/decisions/0025). Where a value holds an event's data
and the contract's version of it changes, that is a change of the value too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from contracts.errors import StateRefused

Lift = Callable[[Any], Any]


class StateSchema:
    """The values of one state. `lifts[n]` makes a value of version n + 1 out of one of version n."""

    def __init__(self, name: str, *lifts: Lift) -> None:
        self.name = name
        self.version = len(lifts)
        self._lifts = lifts
        self._mark = f"v{self.version}:"

    def dump(self, value: object) -> str:
        """A value as it is stored. What orjson takes, dataclasses too."""
        return self._mark + orjson.dumps(value).decode()

    def mark(self, text: str) -> str:
        """A value as it is stored, that is JSON text already."""
        return self._mark + text

    def load(self, stored: str) -> Any:
        """The value, as of this version. Raises StateRefused for one of a newer version."""
        if stored.startswith(self._mark):
            return orjson.loads(stored[len(self._mark) :])
        version, _, text = stored[1:].partition(":") if stored.startswith("v") else ("0", "", stored)
        return self._lifted(int(version), orjson.loads(text))

    def text(self, stored: str) -> str:
        """As `load`, as JSON text."""
        if stored.startswith(self._mark):
            return stored[len(self._mark) :]
        return orjson.dumps(self.load(stored)).decode()

    def pack(self, record: Sequence[Any]) -> tuple[Any, ...]:
        """A record as it is kept in a list: its version first. (One of version 0 begins with its key.)"""
        return (self.version, *record)

    def unpack(self, packed: Sequence[Any]) -> tuple[Any, ...]:
        """The record, as of this version. Raises StateRefused as `load`."""
        if type(packed[0]) is int:
            return tuple(self._lifted(packed[0], packed[1:]))
        return tuple(self._lifted(0, packed))

    def _lifted(self, version: int, value: Any) -> Any:
        if version > self.version:
            raise StateRefused(
                f"state {self.name!r}: expected a value of version 0 to {self.version}, came version {version}: it was written by"
                " newer code. Run that code, or start from a savepoint made before it ran"
            )
        for lift in self._lifts[version:]:
            value = lift(value)
        return value


def unchanged(value: Any) -> Any:
    """From version 0, without a version, to 1, with one."""
    return value


def _subject_1(value: list[Any]) -> list[Any]:
    """Every command in flight tells what it is done to; fields that came one by one are all there."""
    empty: list[Any] = [0, {}, {}, {}, [], 0, None, -1, {}, {}, {}, "", 0, 0, {}, [], {}]
    whole = [*value, *empty[len(value) :]]
    whole[2] = {name: flight if len(flight) > 3 else [*flight, flight[0]] for name, flight in whole[2].items()}
    return whole


def _subject_2(value: list[Any]) -> list[Any]:
    """Ids of proposals lie in maps that take turns; those decided before count for two turns more."""
    return [*value, False, 2]


def _subject_3(value: list[Any]) -> list[Any]:
    """Outcomes are kept whose commands are not known. Approvals tell their key and roles; those of before have none."""

    def keyed(requirement: dict[str, Any]) -> dict[str, Any]:
        approvers = [{"person": name, "public_key": None, "roles": []} for name in requirement["approved_by"]]
        return {**requirement, "approved_by": approvers}

    holds = {name: {**hold, "requires": [keyed(each) for each in hold["requires"]]} for name, hold in value[8].items()}
    return [*value[:8], holds, *value[9:], {}]


SUBJECT: Final = StateSchema("govern/subject", _subject_1, _subject_2, _subject_3)
POLICIES: Final = StateSchema("govern/policies", unchanged)
LIMITS: Final = StateSchema("govern/limits", unchanged)
LIMIT_CLAIMS: Final = StateSchema("govern/limit_claims", unchanged)
GOVERN_WAITING: Final = StateSchema("govern/waiting", unchanged)
MODELS: Final = StateSchema("propose/models", unchanged)
PROPOSE_WAITING: Final = StateSchema("propose/waiting", unchanged)
CALLS: Final = StateSchema("reason/calls", unchanged)
BOOKS: Final = StateSchema("reason/books", unchanged)
CONTROL: Final = StateSchema("reason/control", unchanged)
REASON_WAITING: Final = StateSchema("reason/waiting", unchanged)

SCHEMAS: Final = {
    schema.name: schema
    for schema in (
        SUBJECT, POLICIES, LIMITS, LIMIT_CLAIMS, GOVERN_WAITING, MODELS, PROPOSE_WAITING, CALLS, BOOKS, CONTROL,
        REASON_WAITING,
    )
}  # fmt: skip
