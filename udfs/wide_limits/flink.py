"""The PyFlink shell of core.py: its state under one key, entry by entry, and its events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import ValidationError
from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

from contracts.data import Data, current
from contracts.dead_letter import Cause
from contracts.decision import Grant
from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput
from contracts.limit_claim import LIMITS_KEY, CircuitMoved, Claim, Settlement
from udfs.policy.writing import STAGE
from udfs.serde import write_event
from udfs.state import LIMIT_CLAIMS
from udfs.wide_limits.core import Outcome, WideLimits, as_grant

LIMITS_STATE = ValueStateDescriptor("limits", Types.STRING())
LIMIT_CLAIMS_STATE = MapStateDescriptor("limit_claims", Types.STRING(), Types.STRING())
_OWN = {kind.event_type: kind for kind in (Claim, Settlement, CircuitMoved)}


class WideCounter:
    """Counts claims of the whole domain: all of them come under the key `limits`, to one subtask.

    State: one entry a claim, and the clock with the breakers; read once after a start or restart.
    """

    def __init__(self, domain: str, runtime_context: RuntimeContext) -> None:
        self._domain = domain
        self._head = runtime_context.get_state(LIMITS_STATE)
        self._entries = runtime_context.get_map_state(LIMIT_CLAIMS_STATE)
        self._limits: WideLimits | None = None

    def take(self, event: Data) -> Iterator[Row]:
        """Count a claim or settlement; the grant and the breakers' moves out."""
        if self._limits is None:
            self._limits = WideLimits.restore(self._head.value(), list(self._entries.values()))
        match event:
            case Claim():
                done = self._limits.claim(event)
            case Settlement():
                done = self._limits.settle(event)
            case _:
                return
        self._keep(done, self._limits)
        if done.grant is not None and isinstance(event, Claim):
            grant = done.grant.model_dump(mode="json")
            yield limits_row(
                self._domain, event.subject, Grant, grant, event_id=derive_id(event.claim_id, STAGE, "grant"),
                cause_id=event.claim_id, at=event.at,
            )  # fmt: skip
        for move in done.moves:
            yield limits_row(
                self._domain, LIMITS_KEY, CircuitMoved, move.model_dump(mode="json"),
                event_id=derive_id(move.claim_id, STAGE, f"{move.before}-{move.after}"), cause_id=move.claim_id,
                at=move.at,
            )  # fmt: skip

    def _keep(self, done: Outcome, limits: WideLimits) -> None:
        for entry in done.changed:
            self._entries.put(entry.claim_id, LIMIT_CLAIMS.dump(entry))
        for name in done.forgotten:
            self._entries.remove(name)
        if done.changed or done.moves:
            self._head.update(limits.head_to_json())


def limits_row(
    domain: str, key: str, kind: type[Data], data: dict[str, Any], *, event_id: str, cause_id: str | None, at: str
) -> Row:
    """A record of the limits topic, as the jobs write theirs: topic, key, value."""
    event = write_event(
        event_id=event_id, source=f"/flyball/{domain}/{STAGE}/limits", event_type=kind.event_type, subject=key,
        time_ms=parse_time_ms(at), dataschema=schema_urn(domain, kind.event_type, kind.schema_version), data=data, causation_id=cause_id,
    )  # fmt: skip
    return Row("limits", key, event.decode())


def read_limits_event(key: bytes | None, value: bytes | None) -> Data:
    """A claim, a settlement, a move or a grant; raises BadInput for what is none."""
    try:
        event = orjson.loads(value or b"")
        kind = event["type"]
        if key != event["subject"].encode():
            raise BadInput(Cause.KEY_MISMATCH, f"expected the key to be the subject {event['subject']!r}")
        if kind == Grant.event_type:
            return as_grant(current(Grant, event))
        if kind not in _OWN or key != LIMITS_KEY.encode():
            raise BadInput(
                Cause.UNKNOWN_TYPE, f"expected one of {sorted(_OWN)} under {LIMITS_KEY!r}, or a grant, came {kind!r}"
            )
        data = current(_OWN[kind], event)
        read = _OWN[kind].model_validate_json(orjson.dumps(data))
        format_time_ms(parse_time_ms(data["at"]))
        return read
    except (ValidationError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(Cause.DATA_INVALID, f"expected a record of limits: {str(error)[:500]}") from None
