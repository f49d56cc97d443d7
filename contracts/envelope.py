"""The envelope every record wears: CloudEvents 1.0 in structured JSON, with Flyball's extensions.

Two judges live here. `CloudEvent` is the specification alone (used by `contracts check-event` and
at the edge); `Event` is what Flyball itself writes and reads: the same, with what Flyball needs.
Source of the rules: CloudEvents 1.0.2, "Required / Optional Attributes", "Naming Conventions",
"Type System"; JSON Event Format 1.0.2, sections 2 and 3.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from contracts.errors import BadInput
from contracts.rfc_syntax import is_absolute_uri, is_base64, is_media_type, is_uri_reference

SPEC_VERSION: Final = "1.0"
JSON_TYPE: Final = "application/json"
# More than any loop guard lets pass; what is larger is no count but nonsense.
MAX_HOPS: Final = 1_000_000
STANDARD: Final = (
    "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema",
)  # fmt: skip
# The name of an attribute "MUST consist of lower-case letters or digits".
_NAME = re.compile(r"[a-z0-9]+\Z")
# RFC 3339 date-time; the offset is required, a leap second (60) is legal.
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?([Zz]|([+-])(\d\d):(\d\d))\Z", re.ASCII
)
# The shape nearly all times have, which `datetime` reads ten times faster.
_USUAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z\Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)
# The Gregorian calendar repeats after 400 years: reckoning in 2000..2399 keeps clear of the ends of
# `datetime`, which begins with year 1 where RFC 3339 begins with 0.
_FOUR_CENTURIES = timedelta(days=146_097)
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

    A leap second is the first instant of the next minute. Raises ValueError with what was expected
    and what came.
    """
    if _USUAL_TIME.match(text):
        try:
            return _usual_ms(text)
        except ValueError:
            pass  # year 0, a leap second or no such date: the full grammar knows
    found = _TIME.match(text)
    if found is None:
        raise ValueError(f"expected an RFC 3339 time with offset, came {text[:64]!r}")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    fraction, zone, sign, zone_h, zone_m = found.groups()[6:]
    is_leap = second == 60
    try:
        whole_second = 59 if is_leap else second
        local = datetime(2000 + year % 400, month, day, hour, minute, whole_second, tzinfo=UTC)
        offset = timedelta()
        if zone not in "Zz":
            if int(zone_h) > 23 or int(zone_m) > 59:
                raise ValueError("offset out of range")
            offset = timedelta(hours=int(zone_h), minutes=int(zone_m)) * (-1 if sign == "-" else 1)
    except ValueError as error:
        raise ValueError(f"expected an RFC 3339 time, came {text[:64]!r} ({error})") from None
    instant = local - offset
    if is_leap:
        instant += timedelta(seconds=1)
        if instant.day != 1 or instant.time() != time():  # RFC 3339, appendix D
            raise ValueError(f"expected second 60 only at a month's end in UTC, came {text[:64]!r}")
    since_epoch = instant - _EPOCH + (year // 400 - 5) * _FOUR_CENTURIES
    return since_epoch // _MILLISECOND + int(((fraction or "") + "000")[:3])


# One event tells the same instants again and again: when it was, when its features were, when it was decided.
@lru_cache(maxsize=1024)
def _usual_ms(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND


@lru_cache(maxsize=1024)
def format_time_ms(instant_ms: int) -> str:
    """RFC 3339 in UTC with `Z`, with milliseconds only where there are any."""
    instant = _NAIVE_EPOCH + timedelta(milliseconds=instant_ms)
    return instant.isoformat(timespec="milliseconds" if instant_ms % 1000 else "seconds") + "Z"


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
    match name:
        case "specversion":
            wanted = "" if text == SPEC_VERSION else f"{SPEC_VERSION!r}"
        case "time":
            try:
                parse_time_ms(text)
                wanted = ""
            except ValueError as error:
                raise _refuse(f"attribute 'time': {error}") from None
        case "source":
            wanted = "" if is_uri_reference(text) else "a URI-reference (RFC 3986)"
        case "dataschema":
            wanted = "" if is_absolute_uri(text) else "an absolute URI (RFC 3986, 4.3: no fragment)"
        case "datacontenttype":
            wanted = "" if is_media_type(text) else "a media type (RFC 2046)"
        case _:
            wanted = ""
    if wanted:
        raise _refuse(f"attribute {name!r}: expected {wanted}, came {text[:64]!r}")


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
    encoded = event.get("data_base64")
    if encoded is not None:  # null: no payload in this form, as in the format's own JSON Schema
        if "data" in event:  # `"data": null` is a payload, so both are present
            raise _refuse("'data' and 'data_base64' exclude each other")
        if not isinstance(encoded, str) or not is_base64(encoded):
            raise _refuse("'data_base64': expected base64 text (RFC 4648, padded)")
    return event


class _Repeated(dict[str, object]):
    """A JSON object with a member that stands twice; `member` names the first such one."""

    member: str


def _pairs(items: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = dict(items)
    if len(found) == len(items):
        return found
    repeated = _Repeated(found)
    seen: set[str] = set()
    repeated.member = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def check_event(text: bytes) -> dict[str, bool | str | None]:
    """`{"valid": ..., "error": ...}` for one event or batch, judged by CloudEvents 1.0 alone.

    A JSON array is a batch (JSON Batch Format): each element must be valid; `[]` is. A member that
    stands twice is refused in the event itself, because "each context attribute MUST only appear at
    most once in a CloudEvent"; inside `data` it passes, because RFC 8259 only says names SHOULD be
    unique there. (Flyball's own edge, udfs/serde.py, refuses both.)
    """
    try:
        if not text.strip():
            raise BadInput("empty", "expected a JSON object, came nothing")
        parsed: object = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_constant=_no_constant,
            # Python refuses integers of thousands of digits; no attribute may be one, `data` may.
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
        )
    except UnicodeDecodeError as error:
        return {"valid": False, "error": f"expected UTF-8, byte {error.start}: {error.reason}"}
    except RecursionError:
        return {"valid": False, "error": "expected JSON nested less deeply"}
    except (ValueError, BadInput) as error:
        return {"valid": False, "error": f"expected JSON: {error}"}
    for place, event in enumerate(parsed) if isinstance(parsed, list) else [(None, parsed)]:
        where = "" if place is None else f"event {place} of the batch: "
        if isinstance(event, _Repeated):
            return {"valid": False, "error": f"{where}{event.member[:64]!r} stands twice"}
        try:
            check_cloud_event(event)
        except BadInput as error:
            return {"valid": False, "error": f"{where}{error}"}
    return {"valid": True, "error": None}


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
    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = _pairs(items)
        if isinstance(found, _Repeated):
            raise BadInput(
                "duplicate_key", f"the key {found.member[:64]!r} stands twice in one object"
            )
        return found

    try:
        json.loads(text, object_pairs_hook=pairs, parse_int=float)  # only the keys matter here
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
