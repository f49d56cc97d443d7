"""A command as an actuator reads it, and the outcome event it comes to: pure."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from pydantic import ValidationError

from contracts.command import Command
from contracts.data import current
from contracts.dead_letter import Cause
from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput
from contracts.outcome import Outcome
from ops.world import Done, Order
from udfs.serde import write_event

STAGE = "actuator"


@dataclass(frozen=True)
class Commanded:
    """A command as read from its topic."""

    order: Order
    event_id: str
    correlation_id: str
    traceparent: str | None
    hops: int
    due_ms: int
    expiry: str | None

    @classmethod
    def read(cls, value: bytes | None) -> Commanded:
        """Raises BadInput with a dead-letter cause."""
        if not value:
            raise BadInput(Cause.EMPTY, "expected a command, came an empty record")
        try:
            event = orjson.loads(value)
            data, subject = event["data"], str(event["subject"])
            data["command_id"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise BadInput(Cause.NOT_JSON, f"expected a command as JSON: {error!r}") from None
        try:
            command = Command.model_validate(current(Command, event))
            expiry = event.get("expirytime")
            if isinstance(expiry, str):
                parse_time_ms(expiry)
            due_ms = parse_time_ms(command.event_time)
            format_time_ms(due_ms)  # its outcome must bear a time
            return cls(
                Order(
                    command.command_id, command.action, subject, command.parameters, command.event_time,
                    command.obligations,
                ),
                event_id=str(event["id"]),
                correlation_id=str(event.get("correlationid") or event["id"]),
                traceparent=str(event["traceparent"]) if "traceparent" in event else None,
                hops=int(str(event["hops"])),
                due_ms=due_ms,
                expiry=expiry if isinstance(expiry, str) else None,
            )  # fmt: skip
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadInput(Cause.DATA_INVALID, f"data.{first['loc']}: {first['msg']}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadInput(Cause.ENVELOPE_INVALID, f"expected a command: {error!r}") from None

    def without_handler(self, waited_s: float) -> Done | None:
        """What comes of it without its handler; None when that is to be called.

        `waited_s` is how long the command lay in its topic (wall time): one that expires n seconds of
        event time after its cause may wait n seconds (docs/decisions/0010).
        """
        if self.expiry is not None and self.due_ms + int(waited_s * 1000) > parse_time_ms(self.expiry):
            return Done("failed", f"expired: {waited_s:.1f} s in the queue, valid until {self.expiry}")
        if self.order.obligations.get("dry_run") is True:
            return Done("succeeded", "dry run: nothing was done")
        return None

    def outcome(self, done: Done, domain: str) -> bytes:
        """The outcome event; the same arguments give the same bytes."""
        event_ms = self.due_ms + int(done.took_s * 1000)
        return write_event(
            event_id=derive_id(self.order.command_id, STAGE, self.order.action),
            source=f"/flyball/{domain}/{STAGE}",
            event_type=Outcome.event_type,
            subject=self.order.subject,
            time_ms=event_ms,
            dataschema=schema_urn(domain, Outcome.event_type, Outcome.schema_version),
            correlation_id=self.correlation_id,
            causation_id=self.event_id,
            traceparent=self.traceparent,
            hops=self.hops + 1,
            data={
                "event_time": format_time_ms(event_ms),
                "command_id": self.order.command_id,
                "action": self.order.action,
                "status": done.status,
                "cost": done.cost,
                "detail": done.detail[:1000],
            },
        )
