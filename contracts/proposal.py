"""Proposal: an agent would do this, this sure, for this reason."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from contracts.data import Data, Digest, Identifier, Instant, Scalar, Slug


class ModelUsed(Data):
    """Which model spoke: the alias it was asked by and the artefact that answered."""

    name: Slug
    version: int = Field(ge=1)
    sha256: Digest


class Proposal(Data):
    """Written by `propose` only; nothing happens until `govern` decides."""

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
