"""Bytes to typed facts and back: the edge where everything from outside is validated.

`FactReader.read` is the only way in. It promises a flat row whose types fit the contract, or
BadInput with a cause code; it never raises anything else for any bytes.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from contracts.data import FactData, current
from contracts.dead_letter import Attempt, Cause, DeadLetter
from contracts.domain import DomainContract, columns
from contracts.envelope import (
    MAX_HOPS,
    check_cloud_event,
    derive_id,
    format_time_ms,
    parse_json,
    parse_time_ms,
    schema_urn,
)
from contracts.errors import BadInput, named
from contracts.fact import ClockTicked
from contracts.rfc_syntax import is_uri_reference
from contracts.topics import MAX_FACT_BYTES, topic
from udfs.signed_facts import SignatureCheck

_log = logging.getLogger(__name__)
# What of a record a dead letter keeps: with base64 around it, it still fits MAX_RECORD_BYTES. Only a
# record over MAX_FACT_BYTES is ever cut, and only where its producer compressed it past the broker.
MAX_KEPT_BYTES = 2_900_000
MAX_KEPT_KEY_BYTES = 65_536
EARLIEST_MS = parse_time_ms("1970-01-01T00:00:00Z")
_SPACED_KEY = re.compile(rb'"\s+:')
# What CloudEvents allows in a string: no control characters, no Unicode non-characters.
_PLAIN = (
    r"^[^\x00-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(rf"\x{{{plane * 0x10000 + 0xFFFE:x}}}\x{{{plane * 0x10000 + 0xFFFF:x}}}" for plane in range(17))
    + "]+$"
)
# A domain has few sources, each in a great many facts.
_is_source = lru_cache(maxsize=1024)(is_uri_reference)


class Fact(NamedTuple):
    """A validated fact: envelope fields Flyball uses, and the data as a mapping."""

    fact_id: str
    type: str
    subject: str
    event_ms: int
    correlation_id: str
    hops: int
    traceparent: str | None
    data: FactData


def _event_model(contract: DomainContract, fact: type[FactData]) -> type[BaseModel]:
    """The whole event of one fact type as one strict model, so one pass over the bytes validates it."""
    plain = Annotated[str, Field(min_length=1, max_length=256, pattern=_PLAIN)]
    fields: dict[str, Any] = {
        "specversion": (Literal["1.0"], ...),
        "id": (plain, ...),
        "source": (Annotated[str, Field(min_length=1, max_length=1024)], ...),
        "type": (Literal[fact.event_type], ...),
        "subject": (plain, ...),
        "time": (str, ...),
        "datacontenttype": (Literal["application/json"] | None, None),
        "dataschema": (Literal[schema_urn(contract.name, fact.event_type, fact.schema_version)] | None, None),
        "correlationid": (plain | None, None),
        "causationid": (plain | None, None),
        "traceparent": (plain | None, None),
        "expirytime": (plain | None, None),
        "hops": (Annotated[int, Field(ge=0, le=MAX_HOPS)] | None, None),
        "data": (fact, ...),
    }
    config = ConfigDict(
        frozen=True, extra="allow", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )
    return create_model(f"{fact.__name__}Event", __config__=config, **fields)


class FactReader:
    """Validates the raw records of one domain's facts and outcomes. Build once, use for each record.

    `signatures`: who judges those of producers; None takes any fact as if it bore none.
    `outcomes_since_ms`: what the broker appended to the outcomes topic before is only a tick. Outcomes are kept for ever:
    a `context` without state would have them decided again that `govern` has forgotten.
    """

    def __init__(
        self, contract: DomainContract, *, max_ahead_ms: int, signatures: SignatureCheck | None = None,
        outcomes_since_ms: int = 0,
    ) -> None:  # fmt: skip
        self._outcomes = topic("outcomes").of(contract.name)
        self._outcomes_since_ms = outcomes_since_ms
        self._contract = contract
        self._max_ahead_ms = max_ahead_ms
        self._signatures = signatures
        models = tuple(_event_model(contract, fact) for fact in contract.facts.values())
        union: Any = Union[models]  # noqa: UP007  # made at run time from the contract
        self._adapter: TypeAdapter[Any] = TypeAdapter(
            Annotated[union, Field(discriminator="type")]
        )

    def read(self, key: bytes | None, value: bytes | None, now_ms: int, topic: str = "") -> Fact:
        """The fact in the record (`key`, `value`), appended to `topic` at wall time `now_ms`.

        Raises BadInput with a code of contracts.dead_letter.Cause.
        """
        if value is None:
            raise BadInput(Cause.TOMBSTONE, "expected a fact, came a tombstone (null value)")
        refuse_large(value)
        try:
            event = self._adapter.validate_json(value)
        except ValidationError as error:
            event = self._of_older(value, error)
        except ValueError as error:
            raise BadInput(Cause.NOT_JSON, f"expected JSON: {error}") from None
        if not _is_source(event.source):
            raise BadInput(
                Cause.ENVELOPE_INVALID,
                f"attribute 'source': expected a URI-reference, came {event.source[:64]!r}",
            )
        whole: dict[str, Any] | None = None
        if event.model_extra:
            whole = check_cloud_event(parse_json(value))
        else:
            self._refuse_repeated_keys(value, event)
        event_ms = self._event_ms(event.time, now_ms)
        if key is None or key != event.subject.encode():
            shown = None if key is None else key[:64]
            raise BadInput(
                Cause.KEY_MISMATCH,
                f"expected the record key to be the subject {event.subject[:64]!r}, came {shown!r}",
            )
        if self._signatures is not None:
            self._signatures.check(whole, kind=event.type, subject=event.subject, topic=topic, now_ms=now_ms)
        is_past = now_ms < self._outcomes_since_ms and topic == self._outcomes
        return Fact(
            event.id,
            ClockTicked.event_type if is_past else event.type,
            event.subject,
            event_ms,
            event.correlationid or event.id,
            event.hops or 0,
            event.traceparent,
            ClockTicked() if is_past else event.data,
        )

    def _event_ms(self, text: str, now_ms: int) -> int:
        try:
            event_ms = parse_time_ms(text)
        except ValueError as error:
            raise BadInput(Cause.ENVELOPE_INVALID, f"attribute 'time': {error}") from None
        if event_ms < EARLIEST_MS:
            raise BadInput(
                Cause.TIME_ABSURD, f"expected a time after 1970, came {text[:40]!r}"
            )
        if event_ms > now_ms + self._max_ahead_ms:
            raise BadInput(
                Cause.TIME_AHEAD,
                f"expected a time at most {self._max_ahead_ms // 1000} s ahead of"
                f" {format_time_ms(now_ms)}, came {text[:40]!r}",
            )
        return event_ms

    @staticmethod
    def _refuse_repeated_keys(value: bytes, event: Any) -> None:
        """JSON parsers keep the last of two equal keys in silence; we refuse the record.

        Cheap proof first: with no backslash in the text and no blank before a colon, `":` occurs
        exactly once per key, so as many occurrences as distinct keys means no key stands twice.
        """
        distinct = len(event.model_fields_set) + len(event.data.model_fields_set)
        if (
            b"\\" not in value
            and value.count(b'":') == distinct
            and not _SPACED_KEY.search(value)
        ):
            return
        parse_json(value)

    def _of_older(self, value: bytes, error: ValidationError) -> Any:
        """A fact of an older version of its contract, as one of now; otherwise raises why `value` is none."""
        try:
            parsed = check_cloud_event(parse_json(value))
        except BadInput as refused:
            raise refused from None
        kind, named = self._contract.facts.get(parsed["type"]), parsed.get("dataschema") or ""
        expected = "" if kind is None else schema_urn(self._contract.name, kind.event_type, kind.schema_version)
        if kind is None or named == expected or "data" not in parsed or named.rpartition(":")[0] != expected.rpartition(":")[0]:
            raise self._explain(value, error)
        try:
            lifted = orjson.dumps({**parsed, "dataschema": expected, "data": current(kind, parsed)})
        except TypeError:  # a number or text that orjson does not write
            raise self._explain(value, error) from None
        try:
            return self._adapter.validate_json(lifted)
        except ValidationError as still:
            raise self._explain(lifted, still) from None

    def _explain(self, value: bytes, error: ValidationError) -> BadInput:
        """Which rule was broken first, from the outside in: bytes, JSON, envelope, type, version, data."""
        try:
            parsed = check_cloud_event(parse_json(value))
        except BadInput as refused:
            return refused
        kind = parsed["type"]
        fact = self._contract.facts.get(kind)
        if fact is None:
            known = ", ".join(sorted(self._contract.facts))
            return BadInput(Cause.UNKNOWN_TYPE, f"expected a type of {known}; came {kind[:64]!r}")
        expected = schema_urn(self._contract.name, kind, fact.schema_version)
        if parsed.get("dataschema") not in (None, expected):
            return BadInput(
                Cause.WRONG_VERSION,
                f"expected dataschema {expected!r}, came {str(parsed['dataschema'])[:128]!r}",
            )
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != kind)
        wanted = f"expected {sorted(columns(fact))}" if first["type"] == "extra_forbidden" else ""
        cause = Cause.DATA_INVALID if place.split(".")[0] == "data" else Cause.ENVELOPE_INVALID
        return BadInput(cause, f"{place}: {first['msg']} {wanted}".strip()[:1000])


def refuse_large(value: bytes) -> None:
    """Raises BadInput for a record over MAX_FACT_BYTES: what comes of it would not fit MAX_RECORD_BYTES."""
    if len(value) > MAX_FACT_BYTES:
        raise BadInput(Cause.TOO_LARGE, f"expected at most {MAX_FACT_BYTES} bytes, came {len(value)}")


def write_event(
    *,
    event_id: str,
    source: str,
    event_type: str,
    subject: str,
    time_ms: int,
    dataschema: str,
    data: object,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    hops: int = 0,
    traceparent: str | None = None,
    expiry: str | None = None,
) -> bytes:
    """One structured CloudEvent as compact JSON bytes; absent attributes are left out."""
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": event_type,
        "subject": subject,
        "time": format_time_ms(time_ms),
        "datacontenttype": "application/json",
        "dataschema": dataschema,
    }
    if correlation_id is not None:
        event["correlationid"] = correlation_id
    if causation_id is not None:
        event["causationid"] = causation_id
    if traceparent is not None:
        event["traceparent"] = traceparent
    if expiry is not None:
        event["expirytime"] = expiry
    event["hops"] = hops
    event["data"] = data
    return orjson.dumps(event)


def internal(error: Exception) -> BadInput:
    """The refusal of a record over which our own pure code failed: a bug, but the job's other records go on.

    Nothing came of the record. Redriven once the bug is gone, it is taken as if it were new. Not for errors of Flink,
    Kafka or its own state: those fail the job.
    """
    if isinstance(error, MemoryError):
        raise error
    _log.error("a record made our own code fail: %s", named(error))
    return BadInput(Cause.INTERNAL, f"our own code failed: {named(error)}; correct it, then redrive the record")


def dead_letter(
    *,
    domain: str,
    stage: str,
    cause: str,
    message: str,
    topic: str,
    partition: int,
    offset: int,
    key: bytes | None,
    value: bytes | None,
    now_ms: int,
    attempts: Sequence[Attempt] = (),
) -> tuple[str, bytes]:
    """Key and value of the dead letter for one record. The id is derived from the record's place."""
    place = f"{topic}/{partition}/{offset}"
    for name, raw, limit in (("key", key, MAX_KEPT_KEY_BYTES), ("value", value, MAX_KEPT_BYTES)):
        if raw is not None and len(raw) > limit:
            message = f"(the first {limit} of {len(raw)} bytes of the {name} are kept) {message}"
    letter = DeadLetter(
        cause=Cause(cause),
        message=message[:2000],
        stage=stage,
        topic=topic,
        partition=partition,
        offset=offset,
        key_base64=None if key is None else base64.b64encode(key[:MAX_KEPT_KEY_BYTES]).decode(),
        value_base64=None if value is None else base64.b64encode(value[:MAX_KEPT_BYTES]).decode(),
        attempts=tuple(attempts),
    )
    event = write_event(
        event_id=derive_id(place, stage, "dead-letter"),
        source=f"/flyball/{domain}/{stage}",
        event_type=DeadLetter.event_type,
        subject=place,
        time_ms=now_ms,
        dataschema=schema_urn(domain, DeadLetter.event_type, DeadLetter.schema_version),
        data=letter.model_dump(),
    )
    return place, event
