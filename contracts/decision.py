"""Decision: allow, deny or hold, by which policies, why."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import Data, Digest, Identifier, Identifiers, Instant, Scalar, Slug
from contracts.proposal import ModelUsed, Reasoned

Verdict = Literal["allow", "deny", "hold"]
# What a policy says: `hold` asks on the default terms, `require_approval` on its own.
PolicyVerdict = Literal["allow", "deny", "hold", "require_approval"]
Trigger = Literal["proposal", "answer", "event_time", "clock"]


class Reason(StrEnum):
    """Every reason code `govern` gives, in the order of its truth table."""

    PAUSED = "paused"
    STALE_EXPIRED = "stale_expired"
    STALE_FEATURES = "stale_features"
    STALE_VERSION = "stale_version"
    STALE_FALLBACK = "stale_fallback"
    HOP_LIMIT = "hop_limit"
    CAUSE_REPEATED = "cause_repeated"
    IN_FLIGHT = "in_flight"
    COOLING_DOWN = "cooling_down"
    NO_POLICY_MATCHED = "no_policy_matched"
    FORBIDDEN = "forbidden_by_policy"
    POLICY_ERROR = "policy_error"
    HELD = "held_by_policy"
    APPROVAL_REQUIRED = "approval_required"
    RATE_LIMIT = "rate_limit"
    BUDGET_LIMIT = "budget_limit"
    IN_FLIGHT_LIMIT = "in_flight_limit"
    CIRCUIT_OPEN = "circuit_open"
    LOST = "lost_arbitration"
    HOLD_LIMIT = "hold_limit"
    REFUSED = "refused_by_person"
    EDITED = "edited_by_person"
    EXPIRED = "approval_expired"
    NOT_PERMITTED = "override_not_permitted"
    ALLOWED = "allowed_by_policy"
    APPROVED = "approved_by_people"
    OVERRIDE = "override"


class PolicyMatch(Data):
    """A policy that spoke for this proposal."""

    policy_id: Slug
    version: int = Field(ge=1)
    verdict: PolicyVerdict


class Candidate(Data):
    """What other versions would have decided, by their own staleness, conditions and limits of the subject.

    With shadow and canary policies as if they were active; where a canary is in force for the subject and in scope, so
    that it decided: with the active versions alone.
    """

    verdict: Verdict
    reason: Reason
    policies: tuple[PolicyMatch, ...] = ()


class Proposed(Data):
    """The action that a fallback or a person's edit took the place of."""

    action: Slug
    parameters: dict[str, Scalar]
    by: str = Field(default="", description="the people, one after the other; empty: a policy's fallback")


class Inputs(Data):
    """Where in the log `govern` stood: what made it decide, which outcomes and policies it knew.

    Offsets are those of the last record that was applied; -1: none yet. An override has no proposal:
    its own record takes that place.
    """

    trigger: Trigger = Field(
        description="what was read; event_time, clock: a window or a deadline of people passed"
    )

    proposal_partition: int = Field(ge=0)
    proposal_offset: int = Field(ge=0)
    proposal_sha256: Digest = Field(description="of the proposal's bytes")
    outcomes_offset: int = Field(ge=-1, description="of this subject's partition")
    policies_offset: int = Field(ge=-1)
    answer_offset: int | None = Field(default=None, description="of the answer, in the subject's partition")
    wall_time: Instant | None = Field(default=None, description="where people are waited for, or a window or a deadline passed")
    versions: dict[str, float] = Field(default={}, description="highest seen of what policies tell versions by")


class Entry(Data):
    """Place in the subject's chain: the `number`-th decision, `previous` the SHA-256 of the bytes before it."""

    number: int = Field(ge=1)
    previous: Digest | None = None


class Requirement(Data):
    """What one policy asks of people: so many of these roles by then; `later` are asked after that."""

    policy_id: Slug
    version: int = Field(ge=1)
    roles: tuple[Slug, ...]
    approvers: int
    not_by: tuple[str, ...] = Field(default=(), description="people who may not")
    deadline: Instant = Field(description="wall time")


class Answered(Data):
    """An answer that counted."""

    person: str
    answer: Literal["approve", "refuse", "edit"]
    answer_id: Identifier
    signed_at: Instant
    reason: str = ""


class Asked(Data):
    """The approval request that a hold makes, and what became of it.

    `approval_id` is the id of the hold's own decision; `action_digest` the SHA-256 over the canonical
    JSON (RFC 8785) of operation, agent, subject and parameters.
    """

    approval_id: Identifier
    action_digest: Digest
    asked_at: Instant = Field(description="wall time")
    instead_of: Identifier | None = Field(
        default=None, description="the request it replaces: edited, or policies changed"
    )
    requires: tuple[Requirement, ...]
    answers: tuple[Answered, ...] = ()


class Overridden(Data):
    """A person commanded this; `against` names the forbids that the broken glass set aside."""

    person: str
    reason: str
    break_glass: bool
    against: tuple[str, ...] = ()


class Grant(Data):
    """What limits wider than the subject, and the circuit breaker, said to a claim."""

    event_type: ClassVar[str] = "flyball.grant"

    claim_id: Identifier
    is_granted: bool
    reason: Reason | None = Field(default=None, description="why not")
    explanation: str = Field(default="", max_length=2000)
    counters: dict[str, int | float] = {}


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
    proposed: Proposed | None = Field(default=None, description="what a fallback or an edit replaced")
    proposal_reason: str = Field(max_length=1000)
    expires_at: Instant | None = None
    confidence: float = Field(ge=0.0, le=1.0)
    situation_type: Identifier
    features: dict[str, Scalar]
    features_at: Instant
    model: ModelUsed | None = None
    reasoned: Reasoned | None = None
    fallback: str = Field(default="", max_length=300)
    suspects: Identifiers = ()
    evidence: Identifiers = ()
    policy_set_digest: Digest
    policies: tuple[PolicyMatch, ...] = ()
    counters: dict[str, int | float] = {}
    obligations: dict[str, Scalar] = {}
    candidate: Candidate | None = Field(
        default=None, description="only where shadow or canary policies speak, and nothing is paused"
    )
    approval: Asked | None = Field(default=None, description="where people were asked")
    lost_to: Identifier | None = Field(default=None, description="the proposal that won the arbitration")
    override: Overridden | None = None
    grant: Grant | None = Field(default=None, description="where limits wider than the subject were asked")
    command_id: Identifier | None = None
    inputs: Inputs
    entry: Entry


class Noted(Data):
    """What happened without deciding anything: an entry of the subject's chain.

    contends: a proposal that passed waits for others that conflict. Of approval requests, counted: an
    answer, more are needed; refused: an answer that does not count, and why; escalated: a deadline
    passed, others are asked now.
    """

    event_type: ClassVar[str] = "flyball.noted"

    event_time: Instant
    what: Literal["contends", "counted", "refused", "escalated"]
    explanation: str = Field(max_length=2000)
    about: Identifier = Field(description="the proposal that contends, or the approval request")
    answer: Answered | None = None
    requires: tuple[Requirement, ...] = Field(default=(), description="as it is now")
    inputs: Inputs
    entry: Entry
