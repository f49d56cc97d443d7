"""Exchange: one call of a model, or of a tool for it, as it was: kept apart, so that replay needs no model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from contracts.data import Data, Digest, Identifier, Instant, Slug


class Exchange(Data):
    """Recorded by `reason` before the reply is used. Once it is here, the call is never made again.

    `call_id` is the idempotency key: derived from the situation and the agent; `turn` counts the
    questions of a call (asked again because a reply did not fit, or with a tool's answer).
    """

    event_type: ClassVar[str] = "flyball.exchange"

    call_id: Identifier
    turn: int = Field(ge=0)
    kind: Literal["model", "tool"]
    agent: Slug
    agent_version: int = Field(ge=1)
    situation_id: Identifier
    name: str = Field(max_length=200, description="the model as the server named it, or the tool")
    prompt_id: Slug | None = None
    prompt_version: int | None = None
    request: str = Field(max_length=2_000_000, description="canonical JSON: the messages as sent, or a tool's arguments")
    request_sha256: Digest
    reply: str = Field(max_length=2_000_000, description="the reply's text, as it came")
    reply_sha256: Digest
    finish_reason: str = Field(default="", max_length=64)
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    cost: float = Field(default=0.0, ge=0)
    retries: int = Field(default=0, ge=0)
    started_at: Instant = Field(description="wall time")
    latency_ms: int = Field(ge=0, description="wall time")


class Concluded(Data):
    """What came of asking an agent about a situation; recorded before anything else is written.

    proposed: the reply of the exchange `turn` became a proposal. fell_back: the rule agent `by` was asked
    in its place. abstained: nobody proposes. `why` tells what stood in the way of the agent's own model: of a proposal
    too, where a cheaper model made it.
    """

    event_type: ClassVar[str] = "flyball.concluded"

    call_id: Identifier
    agent: Slug
    agent_version: int = Field(ge=1)
    situation_id: Identifier
    how: Literal["proposed", "fell_back", "abstained"]
    why: Literal["", "abstained", "budget", "circuit_open", "deadline", "failed", "malformed", "expired", "no_prompt"] = ""
    explanation: str = Field(default="", max_length=1000)
    by: str = Field(default="", max_length=200, description="the model that answered, or the rule agent that did instead")
    turn: int | None = Field(default=None, ge=0, description="of the reply that counted, or of the last that did not fit")
    asked: int = Field(default=0, ge=0, description="replies read, all levels of fallback together")
    tokens_in: int = Field(default=0, ge=0)
    tokens_out: int = Field(default=0, ge=0)
    cost: float = Field(default=0.0, ge=0)
    latency_ms: int = Field(default=0, ge=0, description="wall time from the situation's arrival")
    starts: int = Field(default=0, ge=0, description="over 1: a call in flight was lost and made again, perhaps paid twice")
