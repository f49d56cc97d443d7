"""Proposal: an agent would do this, this sure, for this reason."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from contracts.data import Data, Digest, Identifier, Identifiers, Instant, Scalar, Slug


class ModelUsed(Data):
    """Which model spoke: the alias it was asked by and the artefact that answered."""

    name: Slug
    version: int = Field(ge=1)
    sha256: Digest


class Reasoned(Data):
    """How a language model came to a proposal. The exchange itself is in `<domain>.exchanges`."""

    prompt_id: Slug
    prompt_version: int = Field(ge=1)
    prompt_sha256: Digest = Field(description="of the messages as they were sent, masked")
    reply_sha256: Digest = Field(description="of the reply's text")
    model: str = Field(max_length=200, description="as the server named the model that answered")
    exchange_id: Identifier
    asked: int = Field(ge=1, description="how often the model was asked until its reply fitted")
    tokens_in: int = Field(ge=0)
    tokens_out: int = Field(ge=0)
    cost: float = Field(ge=0, description="in the agent's currency, by its own prices")
    latency_ms: int = Field(ge=0, description="wall time")


class Proposal(Data):
    """Written by `propose` and `reason` only; nothing happens until `govern` decides.

    `fallback`: why somebody else answered in the agent's place (its budget was spent, say).
    """

    event_type: ClassVar[str] = "flyball.proposal"

    event_time: Instant
    agent: Slug
    agent_version: int = Field(ge=1)
    action: Slug
    parameters: dict[str, Scalar]
    confidence: float = Field(ge=0.0, le=1.0, description="0 unsure .. 1 certain")
    reason: str = Field(max_length=1000)
    situation_type: Identifier
    features: dict[str, Scalar]
    features_at: Instant = Field(description="event time the features describe")
    model: ModelUsed | None = None
    reasoned: Reasoned | None = None
    fallback: str = Field(default="", max_length=300)
    suspects: Identifiers = Field(default=(), description="likeliest first")
    evidence: Identifiers = Field(default=(), description="ids of events")
