"""Late fact: a fact that came after its event-time window had closed."""

from __future__ import annotations

from typing import ClassVar

from contracts.data import Data, Identifier, Instant


class LateFact(Data):
    """Where the fact is and how late it was. The fast lane used it; the windows did not."""

    event_type: ClassVar[str] = "flyball.late_fact"

    event_time: Instant
    fact_id: Identifier
    fact_type: Identifier
    topic: Identifier
    partition: int
    offset: int
    watermark: str
