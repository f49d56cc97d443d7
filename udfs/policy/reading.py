"""What `govern` reads, checked against the contract: proposals, outcomes, people's signed words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from contracts.approval import Answer, Override, Person, Signed
from contracts.data import current
from contracts.dead_letter import Cause
from contracts.domain import DomainContract
from contracts.envelope import MAX_HOPS, parse_time_ms
from contracts.errors import BadInput
from contracts.outcome import Outcome
from contracts.proposal import Proposal
from contracts.topics import MAX_FACT_BYTES
from udfs.policy.signing import is_signed, to_sign
from udfs.serde import refuse_large


class Incoming(NamedTuple):
    """A proposal as read from its topic, envelope and data, checked against the contract."""

    id: str
    subject: str
    event_ms: int
    features_ms: int
    expiry_ms: int | None
    correlation_id: str
    hops: int
    traceparent: str | None
    data: Proposal
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return self._asdict() | {"data": self.data.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Incoming:
        return cls(**{**raw, "data": Proposal.model_validate_json(orjson.dumps(raw["data"]))})


@dataclass(frozen=True)
class Reported:
    """An outcome as `govern` uses it."""

    subject: str
    command_id: str
    has_failed: bool
    event_ms: int
    cost: float | None


@dataclass(frozen=True)
class Word:
    """What a person said, their signature verified: an answer or an override."""

    id: str
    subject: str
    person: Person
    data: Answer | Override
    signed_sha256: str
    correlation_id: str
    causation_id: str | None


# As contracts/data.py `Identifier`: everything written about a subject carries it.
_IDENTIFIER = re.compile(r"[^\x00-\x1f\x7f]{1,256}\Z")
# What can be written as a time again: RFC 3339 and leap seconds reach a little further.
_FIRST_MS = parse_time_ms("0001-01-02T00:00:00Z")
_LAST_MS = parse_time_ms("9999-12-30T00:00:00Z")
_SIGNED: dict[str, type[Signed]] = {kind.event_type: kind for kind in (Answer, Override)}


class Reader:
    """Reads the records of one domain. What it lets pass is safe to decide about.

    Only actions, situations and parameters of the contract pass: whatever an agent or a person says,
    they cannot name anything else. Nothing over MAX_FACT_BYTES passes, nor a proposal that is more when it is written again.
    """

    def __init__(self, contract: DomainContract) -> None:
        self._contract = contract

    def proposal(self, key: bytes | None, value: bytes | None) -> Incoming:
        """The proposal in a record; raises BadInput with a dead-letter cause."""
        if not value:
            raise BadInput(Cause.EMPTY, "expected a proposal, came an empty record")
        try:
            refuse_large(value)
            event = orjson.loads(value)
            if len(value) > MAX_FACT_BYTES // 4:  # a number like 1e15 takes up to four times as much when it is written again
                refuse_large(orjson.dumps(event))
            if event["type"] != Proposal.event_type:
                raise BadInput(
                    Cause.UNKNOWN_TYPE, f"expected {Proposal.event_type!r}, came {event['type']!r}"
                )
            data = Proposal.model_validate(current(Proposal, event))
            self._check_action(data.action, data.parameters)
            if data.situation_type not in self._contract.situations:
                raise BadInput(Cause.DATA_INVALID, f"no situation {data.situation_type!r} in the contract")
            expiry = event.get("expirytime")
            subject, hops = event["subject"], event["hops"]
            if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
                raise ValueError(f"hops must be an integer of 0..{MAX_HOPS}")
            _check_key(key, subject)
            return Incoming(
                id=_identifier(event["id"]),
                subject=subject,
                event_ms=_time_ms(data.event_time),
                features_ms=_time_ms(data.features_at),
                expiry_ms=None if expiry is None else _time_ms(expiry),
                correlation_id=_identifier(event.get("correlationid") or event["id"]),
                hops=hops,
                traceparent=event.get("traceparent"),
                data=data,
                sha256=hashlib.sha256(value).hexdigest(),
            )
        except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _bad(error, "a proposal") from None

    def outcome(self, key: bytes | None, value: bytes | None) -> Reported | None:
        """The outcome in a record; None for what is none (`context` keeps those as dead letters)."""
        try:
            refuse_large(value or b"")
            event = orjson.loads(value or b"")
            if event["type"] != Outcome.event_type or key != event["subject"].encode():
                return None
            data = Outcome.model_validate(current(Outcome, event))
            return Reported(
                subject=event["subject"],
                command_id=data.command_id,
                has_failed=data.status == "failed",
                event_ms=_time_ms(data.event_time),
                cost=data.cost,
            )
        except (orjson.JSONDecodeError, ValidationError, BadInput, KeyError, TypeError, ValueError, AttributeError):
            return None

    def situation(self, key: bytes | None, value: bytes | None) -> dict[str, Any] | None:
        """The features of a situation about the subject that is the key; None for what is none."""
        try:
            refuse_large(value or b"")
            event = orjson.loads(value or b"")
            kind = self._contract.situations.get(event["type"])
            if kind is None or key != event["subject"].encode():
                return None
            data = current(kind, event)
        except (orjson.JSONDecodeError, BadInput, KeyError, TypeError, AttributeError):
            return None
        return data if isinstance(data, dict) else None

    def word(self, key: bytes | None, value: bytes | None, people: Mapping[str, Person]) -> Word:
        """The answer or override in a record; raises BadInput, also for a signature that is not theirs."""
        if not value:
            raise BadInput(Cause.EMPTY, "expected an answer or an override, came an empty record")
        try:
            refuse_large(value)
            event = orjson.loads(value)
            kind, subject = event["type"], event["subject"]
            if kind not in _SIGNED:
                raise BadInput(
                    Cause.UNKNOWN_TYPE, f"expected one of {sorted(_SIGNED)}, came {str(kind)[:64]!r}"
                )
            data = _SIGNED[kind].model_validate_json(orjson.dumps(current(_SIGNED[kind], event)))
            assert isinstance(data, (Answer, Override))
            _check_key(key, subject)
            _time_ms(data.signed_at)
            if isinstance(data, Override):
                self._check_action(data.action, data.parameters)
            message = to_sign(self._contract.name, subject, kind, event["data"])
            person = people.get(data.person)
            if person is None:
                raise BadInput(Cause.SIGNATURE_INVALID, f"nobody called {data.person!r} is known here")
            if not is_signed(person.public_key, data.signature, message):
                raise BadInput(
                    Cause.SIGNATURE_INVALID,
                    f"the signature is not that of {data.person!r} over this {kind} about {subject!r}",
                )
            causation_id = event.get("causationid")
            return Word(
                id=_identifier(event["id"]),
                subject=subject,
                person=person,
                data=data,
                signed_sha256=hashlib.sha256(message).hexdigest(),
                correlation_id=_identifier(event.get("correlationid") or event["id"]),
                causation_id=None if causation_id is None else _identifier(causation_id),
            )
        except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _bad(error, "an answer or an override") from None

    def _check_action(self, name: str, parameters: Mapping[str, Any]) -> None:
        action = self._contract.actions.get(name)
        if action is None:
            raise BadInput(Cause.DATA_INVALID, f"no action {name!r} in the contract")
        action.model_validate(parameters)


def _check_key(key: bytes | None, subject: str) -> None:
    if key is None or key != subject.encode():
        raise BadInput(Cause.KEY_MISMATCH, f"expected the key to be the subject {subject!r}")
    _identifier(subject)


def _identifier(value: object) -> str:
    """An id as a text: it stands several times in what is written about it."""
    text = str(value)
    if not _IDENTIFIER.match(text):
        raise ValueError(f"ids and subject must be texts of 1..256 characters without control characters, came {text[:64]!r}")
    return text


def _time_ms(text: str) -> int:
    instant_ms = parse_time_ms(text)
    if not _FIRST_MS <= instant_ms <= _LAST_MS:
        raise ValueError(f"expected a time of the years 1 to 9999, came {text!r}")
    return instant_ms


def _bad(error: Exception, what: str) -> BadInput:
    """The cause of a record that cannot be read, whatever was wrong with it."""
    match error:
        case BadInput():
            return error
        case orjson.JSONDecodeError():
            return BadInput(Cause.NOT_JSON, f"expected {what} as JSON: {error}")
        case ValidationError():
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            return BadInput(Cause.DATA_INVALID, f"data.{place}: {first['msg']}")
        case _:
            return BadInput(Cause.ENVELOPE_INVALID, f"expected {what}: {type(error).__name__} {error}")
