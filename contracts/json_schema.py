"""JSON Schema 2020-12 of every event type: the envelope around the data of its pydantic model.

Needs nothing but the contracts, so that a producer in any language can check its events first. The
edge (udfs/serde.py) judges by more than a schema can say: repeated keys, the record key, times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from contracts.catalogue import EventType, event_types
from contracts.data import Data
from contracts.envelope import MAX_HOPS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1, "maxLength": 256}
_OPTIONAL_TEXT: Mapping[str, Any] = {**_TEXT, "type": ["string", "null"]}
# Null counts as absent (JSON format 2.2), so every optional attribute allows it.
ENVELOPE: Mapping[str, Mapping[str, Any]] = {
    "specversion": {"const": "1.0"},
    "id": {**_TEXT, "description": "derived from what caused the event: a repeat has the same id"},
    "source": {**_TEXT, "format": "uri-reference", "maxLength": 1024},
    "type": _TEXT,
    "subject": {**_TEXT, "description": "the entity it is about; for facts also the record key"},
    "time": {"type": "string", "format": "date-time", "description": "event time, RFC 3339"},
    "datacontenttype": {"enum": ["application/json", None]},
    "dataschema": {"type": ["string", "null"], "format": "uri"},
    "correlationid": {**_OPTIONAL_TEXT, "description": "names the whole causal chain"},
    "causationid": {**_OPTIONAL_TEXT, "description": "id of the direct cause"},
    "traceparent": {**_OPTIONAL_TEXT, "description": "W3C trace context"},
    "expirytime": {**_OPTIONAL_TEXT, "format": "date-time", "description": "of no use after this"},
    "jws": {
        "type": ["string", "null"],
        "maxLength": 1024,
        "description": "the producer's signature (detached JWS); facts only",
    },
    "hops": {
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": MAX_HOPS,
        "description": "how far round the loop",
    },
}
REQUIRED = ("specversion", "id", "source", "type", "subject", "time", "data")
# Any other attribute is an extension: CloudEvents names and types. (`data` would be such a name.)
EXTENSION_NAME = "^(?!data$)[a-z0-9]+$"
EXTENSION: Mapping[str, Any] = {
    "anyOf": [
        {"type": ["string", "boolean", "null"]},
        {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    ]
}


def data_schema(data: type[Data], definitions_at: str = "#/$defs/") -> dict[str, Any]:
    """The schema of one `data` model; its `$defs` are referred to below `definitions_at`."""
    return data.model_json_schema(mode="validation", ref_template=definitions_at + "{model}")


def event_schema(event: EventType) -> dict[str, Any]:
    """The schema of one whole event, complete in itself."""
    data = data_schema(event.data)
    definitions = data.pop("$defs", {})
    properties = {
        **ENVELOPE,
        "type": {"const": event.name},
        "dataschema": {"enum": [event.urn, None]},
    }
    return {
        "$schema": DIALECT,
        "$id": event.urn,
        "title": event.name,
        "description": event.says,
        "type": "object",
        "required": list(REQUIRED),
        "properties": {**properties, "data": {"$ref": "#/$defs/data"}},
        "patternProperties": {EXTENSION_NAME: EXTENSION},
        "additionalProperties": False,
        "$defs": {"data": data, **definitions},
    }


def document(domains: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`dataschema` URN -> JSON Schema of the whole event, for every event type of `domains`."""
    return {event.urn: event_schema(event) for domain in domains for event in event_types(domain)}
