"""Prompt: what a language model is told, as a versioned event."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import Data, Digest, Slug


class Prompt(Data):
    """From now on agents that name `prompt_id` ask with this text.

    `reply_schema` names what the reply must be: `proposal` (one declared action with its parameters, confidence,
    reason and evidence, or to abstain).
    """

    event_type: ClassVar[str] = "flyball.prompt"

    prompt_id: Slug
    version: int = Field(ge=1)
    status: Literal["active", "retired"] = "active"
    model: str = Field(min_length=1, max_length=200, description="the model it was written for")
    reply_schema: Literal["proposal"] = "proposal"
    text: str = Field(min_length=1, max_length=100_000)
    sha256: Digest = Field(description="of the text")
