"""Command: do this, once. Only `govern` writes it."""

from __future__ import annotations

from typing import ClassVar

from contracts.data import Data, Identifier, Instant, Scalar, Slug


class Command(Data):
    """`command_id` is the idempotency key: an actuator does a command once however often it comes."""

    event_type: ClassVar[str] = "flyball.command"

    event_time: Instant
    command_id: Identifier
    action: Slug
    parameters: dict[str, Scalar]
    agent: Slug
    decision_id: Identifier
    proposal_id: Identifier
    reason: str
    obligations: dict[str, Scalar] = {}
