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
    STALE_FALLBACK = "stale_fallback"
    HOP_LIMIT = "hop_limit"
    CAUSE_REPEATED = "cause_repeated"
    IN_FLIGHT = "in_flight"
    COOLING_DOWN = "cooling_down"
    NO_POLICY_MATCHED = "no_policy_matched"
    FORBIDDEN = "forbidden_by_policy"
    POLICY_ERROR = "policy_error"
    HELD = "held_by_policy"
    RATE_LIMIT = "rate_limit"
    BUDGET_LIMIT = "budget_limit"
    IN_FLIGHT_LIMIT = "in_flight_limit"
    ALLOWED = "allowed_by_policy"


class PolicyMatch(Data):
    """A policy that spoke for this proposal."""

    policy_id: Slug
    version: int = Field(ge=1)
    verdict: Verdict


class Candidate(Data):
    """What would have been decided if shadow and canary policies were active."""

    verdict: Verdict
    reason: Reason
    policies: tuple[PolicyMatch, ...] = ()


class Proposed(Data):
    """The action a fallback took the place of."""

    action: Slug
    parameters: dict[str, Scalar]


class Inputs(Data):
    """Where in the log `govern` stood: which outcomes and policies it knew.

    Offsets are those of the last record that was applied; -1: none yet.
    """

    proposal_partition: int = Field(ge=0)
    proposal_offset: int = Field(ge=0)
    proposal_sha256: Digest = Field(description="of the proposal's bytes")
    outcomes_offset: int = Field(ge=-1, description="of this subject's partition")
    policies_offset: int = Field(ge=-1)


class Entry(Data):
    """Place in the subject's chain: the `number`-th decision, `previous` the SHA-256 of the bytes before it."""

    number: int = Field(ge=1)
    previous: Digest | None = None


class Decision(Data):
    """Everything needed to make the decision again is in it, or in earlier decisions and outcomes."""

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
    proposed: Proposed | None = Field(default=None, description="when a fallback took its place")
    proposal_reason: str = Field(max_length=1000)
    expires_at: Instant | None = None
    confidence: float = Field(ge=0.0, le=1.0)
    situation_type: Identifier
    features: dict[str, Scalar]
    features_at: Instant
    model: ModelUsed | None = None
    policy_set_digest: Digest
    policies: tuple[PolicyMatch, ...] = ()
    counters: dict[str, int | float] = {}
    obligations: dict[str, Scalar] = {}
    candidate: Candidate | None = Field(default=None, description="only where shadow or canary policies speak")
    command_id: Identifier | None = None
    inputs: Inputs
    entry: Entry
