"""Domain `machines`: temperature readings of machines, cooling and maintenance."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import ActionParameters, FactData, SituationData


class TemperatureMeasured(FactData):
    """One reading of one machine's sensor, in the sensor's own unit; the subject is the machine."""

    event_type: ClassVar[str] = "machine.temperature_measured"

    temperature: float = Field(ge=-1e12, le=1e12)


FACTS = (TemperatureMeasured,)


class ReadingScored(SituationData):
    """Every reading, set against the machine's own recent past. Lane: log order."""

    event_type: ClassVar[str] = "machines.reading_scored"

    temperature: float
    readings_seen: int
    mean_recent: float
    deviation_recent: float
    level_score: float


class CoolingFailed(SituationData):
    """An `activate_cooling` command came back as failed. Lane: log order."""

    event_type: ClassVar[str] = "machines.cooling_failed"

    command_id: str
    detail: str


SITUATIONS = (ReadingScored, CoolingFailed)


class ActivateCooling(ActionParameters):
    """Cool the machine for a while."""

    action: ClassVar[str] = "activate_cooling"

    duration_s: int = Field(ge=1, le=86_400)


class ScheduleMaintenance(ActionParameters):
    """Send somebody to look at the machine."""

    action: ClassVar[str] = "schedule_maintenance"

    priority: Literal["normal", "urgent"]


ACTIONS = (ActivateCooling, ScheduleMaintenance)
