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
    """Every reading, set against the machine's own recent past. Lane: log order.

    `level_shift`, `jump` and `deviation` are in standard deviations of the machine's own past;
    the peaks are their largest sizes so far, slowly fading (sql/machines/10_reading_scored.sql).
    """

    event_type: ClassVar[str] = "machines.reading_scored"

    temperature: float
    readings_seen: int
    level_shift: float
    level_peak: float
    jump: float
    jump_peak: float
    deviation: float
    baseline_mean: float


class CoolingFailed(SituationData):
    """An `activate_cooling` command came back as failed. Lane: log order."""

    event_type: ClassVar[str] = "machines.cooling_failed"

    command_id: str
    detail: str


class TemperatureClimbing(SituationData):
    """Four hot readings in a row, each higher than the one before. Lane: log order (pattern)."""

    event_type: ClassVar[str] = "machines.temperature_climbing"

    first_temperature: float
    last_temperature: float
    climbing_s: int


class HourlyProfile(SituationData):
    """A machine's temperature over one hour. Lane: event time; `event_time` is the hour's end."""

    event_type: ClassVar[str] = "machines.hourly_profile"

    readings: int
    mean_temperature: float
    min_temperature: float
    max_temperature: float


SITUATIONS = (ReadingScored, CoolingFailed, TemperatureClimbing, HourlyProfile)


class ActivateCooling(ActionParameters):
    """Cool the machine for a while."""

    action: ClassVar[str] = "activate_cooling"

    duration_s: int = Field(ge=1, le=86_400)


class ScheduleMaintenance(ActionParameters):
    """Send somebody to look at the machine."""

    action: ClassVar[str] = "schedule_maintenance"

    priority: Literal["normal", "urgent"]


ACTIONS = (ActivateCooling, ScheduleMaintenance)
