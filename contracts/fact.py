"""Facts every domain has."""

from __future__ import annotations

from typing import ClassVar

from contracts.data import FactData


class ClockTicked(FactData):
    """Nothing but time passed: advances the watermark of the partition it is written to.

    Windows and absence fire only when time passes; a live domain gets ticks on every partition and
    a played input ends with one. It makes no situation of its own and moves no subject's clock.
    """

    event_type: ClassVar[str] = "flyball.clock_ticked"
