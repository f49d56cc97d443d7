"""Domain `drill`: numbered amounts, settled one by one and summed up by the ten minutes.

It exists to be broken: `./flyball torture` plays it while processes are killed, and knows from the facts alone what must
come out (ops/torture/checker.py). So what is decided rests on state in every stage, and on nothing else: a running
count and sum in `context`, limits in `govern`, a window of event time.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from contracts.data import ActionParameters, FactData, SituationData


class Counted(FactData):
    """The number-th amount of a subject."""

    event_type: ClassVar[str] = "drill.counted"

    number: int = Field(ge=1)
    amount: int = Field(ge=0, le=100)


FACTS = (Counted,)


class Tallied(SituationData):
    """Every amount with the count and the sum of those that arrived up to it. Lane: log order."""

    event_type: ClassVar[str] = "drill.tallied"

    number: int
    amount: int
    seen: int
    total: int


class Summed(SituationData):
    """A subject's ten minutes, about the subject `<subject>-sums`. Lane: event time; `event_time` is their end."""

    event_type: ClassVar[str] = "drill.summed"

    facts: int
    amounts: int


SITUATIONS = (Tallied, Summed)


class Settle(ActionParameters):
    """Settle one amount; each is a thing of its own (`resource`), so no outcome is waited for."""

    action: ClassVar[str] = "settle"
    resource: ClassVar[str | None] = "number"

    number: int = Field(ge=1)
    amount: int = Field(ge=0, le=100)
    seen: int = Field(ge=1)
    total: int = Field(ge=0)


class NoteSum(ActionParameters):
    """Note what ten minutes came to; nothing is commanded."""

    action: ClassVar[str] = "note_sum"
    is_commanded: ClassVar[bool] = False

    facts: int = Field(ge=1)
    amounts: int = Field(ge=0)


class Advise(ActionParameters):
    """Say something about an amount; nothing is commanded. Only the slow agent does."""

    action: ClassVar[str] = "advise"
    is_commanded: ClassVar[bool] = False

    number: int = Field(ge=1)


ACTIONS = (Settle, NoteSum, Advise)
