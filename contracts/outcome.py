"""Outcome: what a command did. Comes back to `context` as a fact."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import FactData, Identifier, Instant, Slug


class Outcome(FactData):
    """Written by actuators. `status` is `failed` when the handler said so or raised."""

    event_type: ClassVar[str] = "flyball.outcome"

    event_time: Instant
    command_id: Identifier
    action: Slug
    status: Literal["succeeded", "failed"]
    cost: float | None = Field(
        default=None, ge=0, le=1e15, description="what it took of a budget; none: what was reserved"
    )
    detail: str = Field(default="", max_length=1000)
