"""Claims on limits wider than a subject: asked and answered through the log, so that their order is in it.

`govern` writes a claim under the key `limits`, one place counts it, and the grant comes back under the
subject's key. Grants depend on nothing but the claims and settlements before them.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from contracts.data import Data, Identifier, Instant, Slug
from contracts.policy import Circuit

# The record key under which claims and settlements are counted, all in one place.
LIMITS_KEY: Final = "limits"


class ClaimedLimit(Data):
    """One limit of one policy. What has the same `scope` is counted together."""

    policy: str = Field(max_length=128, description="id@version")
    scope: str = Field(max_length=4096)
    max_count: int | None = None
    max_total: float | None = None
    max_in_flight: int | None = None
    within_s: int | None = None
    asked: float | None = Field(default=None, ge=0, description="of a budget; none: it cannot be told")


class Claim(Data):
    """Everything of one decision that wider limits must allow: all of it is granted, or nothing."""

    event_type: ClassVar[str] = "flyball.claim"

    claim_id: Identifier
    command_id: Identifier | None
    subject: Identifier
    agent: Slug
    action: Slug
    at: Instant = Field(description="event time of the subject")
    limits: tuple[ClaimedLimit, ...]
    circuit: Circuit | None = None
    outcome_within_s: int | None = None


class Settlement(Data):
    """What became of a granted claim: its command's outcome, or nothing was done with it."""

    event_type: ClassVar[str] = "flyball.settlement"

    claim_id: Identifier
    what: Literal["succeeded", "failed", "unused"]
    at: Instant
    cost: float | None = Field(default=None, ge=0, description="takes the place of what was asked")


class CircuitMoved(Data):
    """A circuit breaker opened, let a probe through, or closed."""

    event_type: ClassVar[str] = "flyball.circuit_moved"

    agent: Slug
    action: Slug
    before: Literal["closed", "open", "half_open"]
    after: Literal["closed", "open", "half_open"]
    because: str = Field(max_length=300)
    claim_id: Identifier
    at: Instant
