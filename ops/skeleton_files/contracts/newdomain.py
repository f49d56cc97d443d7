"""Domain `newdomain`: fill levels of tanks, refills and inspections.

This file is the language of the domain. Topics, SQL columns, JSON Schemas and the variables that
policies may read are made from it. Fields are str, int, float or bool; give them bounds.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from contracts.data import ActionParameters, FactData, SituationData


class LevelMeasured(FactData):
    """How full a tank is; the subject is the tank. SQL sees it as `newdomain_level_measured`."""

    event_type: ClassVar[str] = "newdomain.level_measured"

    level_percent: float = Field(ge=0, le=100)


FACTS = (LevelMeasured,)


class LevelProfiled(SituationData):
    """Every reading with what agents decide by. Lane: log order."""

    event_type: ClassVar[str] = "newdomain.level_profiled"

    level_percent: float
    change_percent: float
    recent_mean_percent: float
    missing_percent: float
    readings_seen: int


class RefillFailed(SituationData):
    """A `refill` command came back as failed. Lane: log order."""

    event_type: ClassVar[str] = "newdomain.refill_failed"

    command_id: str
    detail: str


class LevelFalling(SituationData):
    """Three steep falls in a row. Lane: log order (pattern)."""

    event_type: ClassVar[str] = "newdomain.level_falling"

    first_percent: float
    last_percent: float


class HourlyLevels(SituationData):
    """A tank over one hour. Lane: event time; `event_time` is the hour's end."""

    event_type: ClassVar[str] = "newdomain.hourly_levels"

    readings: int
    mean_percent: float
    min_percent: float


# `newdomain.level_profiled` is filled from the view `level_profiled` of sql/newdomain/, and so on.
SITUATIONS = (LevelProfiled, RefillFailed, LevelFalling, HourlyLevels)


class Refill(ActionParameters):
    """Fill the tank up."""

    action: ClassVar[str] = "refill"

    amount_percent: float = Field(gt=0, le=100)


class Inspect(ActionParameters):
    """Send somebody to look at the tank."""

    action: ClassVar[str] = "inspect"

    cause: str = Field(max_length=1000)


# Nothing else can be proposed, allowed or commanded.
ACTIONS = (Refill, Inspect)
