"""The envelope every record wears: CloudEvents 1.0 in structured JSON, with Flyball's extensions.

Two judges live here. `CloudEvent` is the specification alone (used by `contracts check-event` and
at the edge); `Event` is what Flyball itself writes and reads: the same, with what Flyball needs.
Source of the rules: CloudEvents 1.0.2, "Required / Optional Attributes", "Naming Conventions",
"Type System"; JSON Event Format 1.0.2, sections 2 and 3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from contracts.errors import BadInput

SPEC_VERSION: Final = "1.0"
JSON_TYPE: Final = "application/json"
STANDARD: Final = (
    "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema",
)  # fmt: skip
# The name of an attribute "MUST consist of lower-case letters or digits".
_NAME = re.compile(r"[a-z0-9]+\Z")
# RFC 3339 date-time; the offset is required, a leap second (60) is legal.
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?([Zz]|([+-])(\d\d):(\d\d))\Z"
)
# RFC 3986: the characters a URI reference may hold; anything else must be percent-encoded.
_URI = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+\Z")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
# RFC 2046 media type: type/subtype, parameters after a semicolon.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`{|}~]+/[A-Za-z0-9!#$%&'*+\-.^_`{|}~]+\s*(?:;.*)?\Z")
# Strings may not hold control characters, lone surrogates or Unicode non-characters.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(p * 0x10000 + 0xFFFE)}{chr(p * 0x10000 + 0xFFFF)}" for p in range(17))
    + "]"
)
_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1


def derive_id(cause: str, stage: str, producer: str, ordinal: int = 0) -> str:
    """The id of what `producer` in `stage` makes, as its `ordinal`-th, out of the event `cause`.

    32 lower-case hexadecimal digits (half of a SHA-256). A stage that runs again writes the same
    id. The SQL twin is `SUBSTRING(SHA256(CONCAT_WS('|', ...)), 1, 32)` in jobs/context.py.
    """
    text = f"{cause}|{stage}|{producer}|{ordinal}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse_time_ms(text: str) -> int:
    """Milliseconds since 1970-01-01T00:00:00Z of an RFC 3339 timestamp; finer digits are cut off.

    Raises ValueError with what was expected and what came.
    """
    found = _TIME.match(text)
    if found is None:
        raise ValueError(f"expected an RFC 3339 time with offset, came {text[:64]!r}")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    fraction, zone, sign, zone_h, zone_m = found.groups()[6:]
    leap = second == 60
    try:
        instant = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
        offset = timedelta()
        if zone not in "Zz":
            if int(zone_h) > 23 or int(zone_m) > 59:
                raise ValueError("offset out of range")
            offset = timedelta(hours=int(zone_h), minutes=int(zone_m))
    except ValueError as error:
        raise ValueError(f"expected an RFC 3339 time, came {text[:64]!r} ({error})") from None
    whole_s = (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) + leap
    whole_s -= int(offset.total_seconds()) * (-1 if sign == "-" else 1)
    return whole_s * 1000 + int(((fraction or "") + "000")[:3])


def format_time_ms(instant_ms: int) -> str:
    """RFC 3339 in UTC with `Z`, with milliseconds only where there are any."""
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant_ms)
    text = instant.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    millis = instant_ms % 1000
    return f"{text}.{millis:03d}Z" if millis else f"{text}Z"


def _refuse(message: str) -> BadInput:
    return BadInput("envelope_invalid", message)


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(f"attribute {name!r}: expected a string, came {type(value).__name__}")
    if not value:
        raise _refuse(f"attribute {name!r}: expected a non-empty string, came ''")
    if found := _FORBIDDEN.search(value):
        raise _refuse(f"attribute {name!r}: character U+{ord(found.group()):04X} is not allowed")
    return value


def _check_standard(name: str, value: object) -> None:
    text = _string(name, value)
    if name == "specversion" and text != SPEC_VERSION:
        raise _refuse(f"attribute 'specversion': expected '1.0', came {text[:32]!r}")
    if name == "time":
        try:
            parse_time_ms(text)
        except ValueError as error:
            raise _refuse(f"attribute 'time': {error}") from None
    if name in ("source", "dataschema"):
        try:
            urlsplit(text)
            fits = _URI.match(text) is not None
        except ValueError:
            fits = False
        if not fits or (name == "dataschema" and not _SCHEME.match(text)):
            wanted = "a URI-reference" if name == "source" else "an absolute URI"
            raise _refuse(f"attribute {name!r}: expected {wanted}, came {text[:64]!r}")
    if name == "datacontenttype" and not _MEDIA_TYPE.match(text):
        raise _refuse(f"attribute 'datacontenttype': expected a media type, came {text[:64]!r}")


def check_cloud_event(event: object) -> dict[str, Any]:
    """The event itself when CloudEvents 1.0 allows it; raises BadInput with the rule it breaks.

    Judges by the specification alone: unknown extension attributes and any `data` are fine.
    """
    if not isinstance(event, dict):
        raise _refuse(f"expected a JSON object, came {type(event).__name__}")
    for name in ("specversion", "id", "source", "type"):
        if event.get(name) is None:
            raise _refuse(f"required attribute {name!r} is missing")
    for name, value in event.items():
        if name in ("data", "data_base64"):
            continue
        if not _NAME.match(name):
            raise _refuse(f"attribute name {name[:64]!r}: expected lower-case letters and digits")
        if value is None:
            continue  # JSON format 2.2: a null attribute counts as absent
        if name in STANDARD:
            _check_standard(name, value)
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int):
            if not _INT_MIN <= value <= _INT_MAX:
                raise _refuse(f"attribute {name!r}: expected a 32-bit integer, came {value}")
        elif isinstance(value, str):
            if found := _FORBIDDEN.search(value):
                raise _refuse(f"attribute {name!r}: character U+{ord(found.group()):04X} is not allowed")
        else:
            raise _refuse(
                f"attribute {name!r}: expected a string, boolean or integer, came"
                f" {type(value).__name__}"
            )
    if "data_base64" in event and event["data_base64"] is not None:
        if event.get("data") is not None:
            raise _refuse("'data' and 'data_base64' exclude each other")
        encoded = event["data_base64"]
        try:
            if not isinstance(encoded, str):
                raise ValueError("not a string")
            base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error) as error:
            raise _refuse(f"'data_base64': expected base64 text ({error})") from None
    return event


def parse_json(raw: bytes) -> object:
    """Strict JSON: UTF-8, no duplicate keys, no NaN or infinities. Raises BadInput with a code.

    Codes: `empty`, `not_utf8`, `not_json`, `duplicate_key`.
    """
    if not raw.strip():
        raise BadInput("empty", "expected a JSON object, came an empty record")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("not_utf8", f"expected UTF-8, byte {error.start}: {error.reason}") from None
    try:
        parsed = pydantic_core.from_json(raw, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise BadInput("not_json", f"expected JSON: {error}") from None
    _refuse_duplicate_keys(text)
    return parsed


def _refuse_duplicate_keys(text: str) -> None:
    import json

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in items:
            if key in found:
                raise BadInput("duplicate_key", f"the key {key[:64]!r} stands twice in one object")
            found[key] = value
        return found

    try:
        json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise BadInput("not_json", "expected JSON nested less deeply") from None


class Event(BaseModel):
    """A CloudEvent as Flyball writes it. Unknown extension attributes are kept (`model_extra`).

    `time` is event time. `correlationid` names the whole chain, `causationid` the direct cause,
    `hops` counts how often the chain went round the loop.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    specversion: str = SPEC_VERSION
    id: str = Field(min_length=1, max_length=256)
    source: str = Field(min_length=1, max_length=1024)
    type: str = Field(min_length=1, max_length=256)
    subject: str = Field(min_length=1, max_length=256)
    time: str
    datacontenttype: str = JSON_TYPE
    dataschema: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    expirytime: str | None = None
    hops: int = Field(default=0, ge=0, le=1_000_000)
    data: Mapping[str, Any]

    @property
    def time_ms(self) -> int:
        return parse_time_ms(self.time)


def schema_urn(domain: str, event_type: str, version: int = 1) -> str:
    """The `dataschema` of an event type: an absolute URI that names domain, type and version."""
    return f"urn:flyball:{domain}:{event_type}:{version}"
