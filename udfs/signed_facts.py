"""Facts signed by their producers: detached JWS (RFC 7515, appendix F) by Ed25519 (RFC 8032).

A signed fact carries the extension attribute `jws`: a JWS whose payload is not inside (RFC 7797, b64 false) but is the
canonical JSON (RFC 8785) of the event without `jws`. The protected header says which key signed (`kid`), for
which topic (`aud`) and when (`iat`, seconds of wall time). Why so: docs/decisions/0024.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import jwt
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.approval import PublicKey
from contracts.data import Instant, Slug
from contracts.dead_letter import Cause
from contracts.domain import DomainContract
from contracts.envelope import format_time_ms, parse_json, parse_time_ms
from contracts.errors import BadInput, SetupFailed
from contracts.fact import ClockTicked
from contracts.outcome import Outcome
from contracts.topics import topic
from udfs.policy.signing import public_bytes
from udfs.yaml_file import read_yaml

ATTRIBUTE: Final = "jws"
ALGORITHM: Final = "EdDSA"
# Far more than header and signature take; what is longer is refused before anything is computed over it.
MAX_JWS_CHARACTERS: Final = 1024
# How far a producer's clock may lead the broker's.
LEAP_MS: Final = 60_000
# What the loop itself writes, to topics that only its own processes may write to: it bears no signature.
OWN_TYPES: Final = frozenset({Outcome.event_type, ClockTicked.event_type})

Mode = Literal["accepted", "required"]
_JWS = jwt.PyJWS(algorithms=[ALGORITHM])


class ProducerKey(BaseModel):
    """A key, and what facts it may sign: of `types`, about subjects that match one of `subjects` (`*`, `?`, `[ab]`).

    It counts for what was signed from `not_before` until before `not_after`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: Slug
    producer: str = Field(min_length=1, max_length=256, description="who has the private key, for people")
    public_key: PublicKey
    types: tuple[str, ...] = Field(min_length=1, max_length=100)
    subjects: tuple[str, ...] = Field(default=("*",), min_length=1, max_length=1000)
    not_before: Instant | None = None
    not_after: Instant | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ProducerKey, ...]


def load_producers(path: Path, contract: DomainContract) -> tuple[ProducerKey, ...]:
    """The keys in `path` (conf/<domain>/producers.yaml), checked against the contract; none without the file.

    Raises SetupFailed naming file and key, what was expected and what came.
    """
    if not path.exists():
        return ()
    try:
        found = _File.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SetupFailed(f"{path}: {place}: {first['msg']}, came {str(first['input'])[:100]!r}") from None
    names = [key.key_id for key in found.keys]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SetupFailed(f"{path}: expected each key_id once, came {twice} twice")
    for key in found.keys:
        place = f"{path}: key {key.key_id!r}"
        if unknown := sorted(set(key.types) - set(contract.facts)):
            raise SetupFailed(f"{place}: expected types of {sorted(contract.facts)}, came {unknown}")
        try:
            Ed25519PublicKey.from_public_bytes(public_bytes(key.public_key))
            bounds = [parse_time_ms(at) for at in (key.not_before, key.not_after) if at is not None]
        except ValueError as error:
            raise SetupFailed(f"{place}: {error}") from None
        if len(bounds) == 2 and bounds[0] >= bounds[1]:
            raise SetupFailed(f"{place}: expected not_before to lie before not_after")
    return found.keys


def sign_fact(value: bytes, *, key: Ed25519PrivateKey, key_id: str, audience: str, now_ms: int) -> bytes:
    """The event `value` with its signature for the topic `audience`; its own text stays as it is.

    Raises BadInput for what cannot be signed: no JSON object, signed already, or a number that RFC 8785 has no
    form for.
    """
    event = parse_json(value)
    if not isinstance(event, dict) or not event:
        raise BadInput(Cause.ENVELOPE_INVALID, f"expected a JSON object to sign, came {type(event).__name__}")
    if ATTRIBUTE in event:
        raise BadInput(Cause.ENVELOPE_INVALID, f"expected an event without {ATTRIBUTE!r}: it is signed already")
    headers = {"kid": key_id, "aud": audience, "iat": now_ms // 1000, "typ": None}
    jws = _JWS.encode(_canonical(event), key, ALGORITHM, headers, is_payload_detached=True)
    return value.rstrip()[:-1] + f',"{ATTRIBUTE}":"{jws}"}}'.encode()


def _canonical(event: Mapping[str, Any]) -> bytes:
    signed = {name: value for name, value in event.items() if name != ATTRIBUTE}
    try:
        return rfc8785.dumps(signed)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise BadInput(Cause.SIGNATURE_INVALID, f"RFC 8785 has no form for the event: {error}") from None


class SignatureCheck:
    """Judges who may say what on which topic, by signatures. Stateless: the same record gets the same answer.

    On the outcomes topic, which producers cannot write, nothing but what the loop itself writes may be. On the facts
    topic an outcome must be signed by a key whose `types` name it: a producer could tell otherwise that its own actions
    had succeeded. `mode` accepted: of other facts a signature that is there must be good. required: one must be there.
    """

    def __init__(self, domain: str, keys: Sequence[ProducerKey], *, mode: Mode, max_age_ms: int) -> None:
        self._facts = topic("facts").of(domain)
        self._is_required = mode == "required"
        self._max_age_ms = max_age_ms
        self._keys = {
            key.key_id: (
                key,
                Ed25519PublicKey.from_public_bytes(public_bytes(key.public_key)),
                None if key.not_before is None else parse_time_ms(key.not_before),
                None if key.not_after is None else parse_time_ms(key.not_after),
            )
            for key in keys
        }

    def check(self, event: Mapping[str, Any] | None, *, kind: str, subject: str, topic: str, now_ms: int) -> None:
        """Raises BadInput when the fact may not be used.

        `event`: the whole event as parsed, None when it has no attribute but those every fact has; `now_ms`:
        when the broker appended it to `topic`.
        """
        if topic != self._facts:
            if kind not in OWN_TYPES:
                raise BadInput(
                    Cause.UNKNOWN_TYPE, f"expected only {sorted(OWN_TYPES)} on {topic!r}, came {kind!r}: facts go to {self._facts!r}"
                )
            return
        jws = None if event is None else event.get(ATTRIBUTE)
        if jws is None:
            if self._is_required or kind == Outcome.event_type:
                raise BadInput(
                    Cause.SIGNATURE_MISSING, f"expected a {kind} signed by its producer (attribute {ATTRIBUTE!r}), came none"
                )
            return
        assert event is not None
        if not isinstance(jws, str) or len(jws) > MAX_JWS_CHARACTERS:
            raise BadInput(
                Cause.SIGNATURE_INVALID, f"attribute {ATTRIBUTE!r}: expected a text of at most {MAX_JWS_CHARACTERS} characters"
            )
        try:
            key_id = _JWS.get_unverified_header(jws).get("kid")
        except (jwt.PyJWTError, ValueError) as error:
            raise BadInput(Cause.SIGNATURE_INVALID, f"attribute {ATTRIBUTE!r}: expected a detached JWS: {error}") from None
        if not isinstance(key_id, str) or key_id not in self._keys:
            raise BadInput(
                Cause.PRODUCER_UNKNOWN,
                f"expected a key of producers.yaml ({', '.join(self._keys) or 'which has none'}), came {str(key_id)[:64]!r}",
            )
        key, public, not_before_ms, not_after_ms = self._keys[key_id]
        try:
            header = _JWS.decode_complete(jws, public, [ALGORITHM], detached_payload=_canonical(event))["header"]
        except (jwt.PyJWTError, ValueError) as error:
            raise BadInput(
                Cause.SIGNATURE_INVALID, f"the signature is not that of {key_id!r} over this event: {error}"
            ) from None
        # From here on everything is what the holder of the key wrote.
        if header.get("aud") != topic:
            raise BadInput(
                Cause.SIGNATURE_MISPLACED, f"signed for {str(header.get('aud'))[:128]!r}, came on {topic!r}"
            )
        signed_s = header.get("iat")
        if type(signed_s) is not int or not 0 <= signed_s < 10**11:
            raise BadInput(Cause.SIGNATURE_INVALID, "expected 'iat' in the header as seconds since 1970")
        signed_ms = signed_s * 1000
        if (not_before_ms is not None and signed_ms < not_before_ms) or (
            not_after_ms is not None and signed_ms >= not_after_ms
        ):
            raise BadInput(
                Cause.PRODUCER_NOT_PERMITTED,
                f"key {key_id!r} counts from {key.not_before or 'ever'} until {key.not_after or 'ever'}, signed at"
                f" {format_time_ms(signed_ms)}",
            )
        if not signed_ms - LEAP_MS <= now_ms <= signed_ms + self._max_age_ms:
            raise BadInput(
                Cause.SIGNATURE_EXPIRED,
                f"expected a signature of at most {self._max_age_ms // 1000} s before {format_time_ms(now_ms)}, signed at"
                f" {format_time_ms(signed_ms)}",
            )
        if kind not in key.types or not any(fnmatch.fnmatchcase(subject, pattern) for pattern in key.subjects):
            raise BadInput(
                Cause.PRODUCER_NOT_PERMITTED,
                f"key {key_id!r} may sign {', '.join(key.types)} about {', '.join(key.subjects)[:200]}; came {kind!r}"
                f" about {subject[:64]!r}",
            )
