"""Decision: allow, deny or hold, by which policies, why."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import Data, Digest, Identifier, Instant, Scalar, Slug
from contracts.proposal import ModelUsed

Verdict = Literal["allow", "deny", "hold"]


class Reason(StrEnum):
    """Every reason code `govern` gives, in the order of its truth table."""

    PAUSED = "paused"
    STALE_EXPIRED = "stale_expired"
    STALE_FEATURES = "stale_features"
    HOP_LIMIT = "hop_limit"
    NO_POLICY_MATCHED = "no_policy_matched"
    FORBIDDEN = "forbidden_by_policy"
    POLICY_ERROR = "policy_error"
    HELD = "held_by_policy"
    RATE_LIMIT = "rate_limit"
    ALLOWED = "allowed_by_policy"


class PolicyMatch(Data):
    """A policy that spoke for this proposal."""

    policy_id: Slug
    version: int = Field(ge=1)
    verdict: Verdict


class Decision(Data):
    """Everything needed to make the decision again is in it."""

    event_type: ClassVar[str] = "flyball.decision"

    event_time: Instant
    decided_at_event_time: Instant = Field(description="the subject's clock when it was decided")
    verdict: Verdict
    reason: Reason
    explanation: str = Field(max_length=2000)
    proposal_id: Identifier
    agent: Slug
    agent_version: int = Field(ge=1)
    action: Slug
    parameters: dict[str, Scalar]
    confidence: float = Field(ge=0.0, le=1.0)
    situation_type: Identifier
    features: dict[str, Scalar]
    model: ModelUsed | None = None
    policy_set_digest: Digest
    policies: tuple[PolicyMatch, ...] = ()
    counters: dict[str, int | float] = {}
    command_id: Identifier | None = None
