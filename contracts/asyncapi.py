"""AsyncAPI 3.0 of every topic: channels, who sends and receives, and each event type as a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from contracts.catalogue import EventType, event_types
from contracts.json_schema import ENVELOPE, EXTENSION, EXTENSION_NAME, REQUIRED, data_schema
from contracts.topics import MAX_RECORD_BYTES, TOPICS, Topic

CONTENT_TYPE: Final = "application/cloudevents+json"
JOBS: Final = ("context", "propose", "reason", "govern")
# Who reads a topic as part of the loop. Anybody may read any of them.
READ_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "facts": ("context",),
    "outcomes": ("context", "govern"),
    "situations": ("propose", "reason"),
    "models": ("propose", "reason"),
    "prompts": ("reason",),
    "exchanges": ("reason",),
    "proposals": ("govern",),
    "approvals": ("govern",),
    "limits": ("govern",),
    "policies": ("govern",),
    "decisions": ("sealer",),
    "commands": ("actuators",),
    "audit-heads": ("sealer",),
}
_BINDING: Final = "0.5.0"


def written_by(row: Topic) -> tuple[str, ...]:
    """The topic table's words as names: every job dead-letters what it cannot read."""
    words = row.written_by.split(", ")
    return tuple(name for word in words for name in (JOBS if word == "every job" else (word,)))


def _schema_name(event: EventType) -> str:
    """Flyball's own types are the same in every domain; a domain's types bear its name."""
    return event.name if event.name.startswith("flyball.") else f"{event.domain}.{event.name}"


def _message_name(event: EventType) -> str:
    return f"{event.domain}.{event.topic}.{event.name}.{event.data.schema_version}"


def _channel(domain: str, row: Topic) -> dict[str, Any]:
    messages = [event for event in event_types(domain) if event.topic == row.name]
    how = "Written in Kafka transactions: read committed." if row.is_transactional else "At least once."
    return {
        "address": row.of(domain),
        "title": row.name,
        "description": f"{row.says[0].upper()}{row.says[1:]}. Order holds within one key. {how}",
        "messages": {
            event.name: {"$ref": f"#/components/messages/{_message_name(event)}"} for event in messages
        },
        "bindings": {
            "kafka": {
                "topic": row.of(domain),
                "partitions": row.partitions,
                "topicConfiguration": {
                    "cleanup.policy": [row.cleanup],
                    "retention.ms": row.retention_ms,
                    "max.message.bytes": MAX_RECORD_BYTES,
                },
                "bindingVersion": _BINDING,
            }
        },
    }


def _operations(domain: str, row: Topic) -> dict[str, Any]:
    channel = row.of(domain)
    found: dict[str, Any] = {}
    for action, actors in (("send", written_by(row)), ("receive", READ_BY.get(row.name, ()))):
        for actor in actors:
            operation: dict[str, Any] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{channel}"},
                "title": f"{actor} {action}s {row.name}",
                "messages": [
                    {"$ref": f"#/channels/{channel}/messages/{event.name}"}
                    for event in event_types(domain)
                    if event.topic == row.name
                ],
            }
            if action == "receive" and actor in JOBS:
                group = {"type": "string", "enum": [f"{domain}-{actor}"]}
                operation["bindings"] = {"kafka": {"groupId": group, "bindingVersion": _BINDING}}
            found[f"{domain}.{actor}.{action}.{row.name}"] = operation
    return found


def _message(event: EventType, row: Topic) -> dict[str, Any]:
    return {
        "name": event.name,
        "title": f"{event.name}, version {event.data.schema_version}",
        "summary": event.says,
        "contentType": CONTENT_TYPE,
        "correlationId": {
            "description": "the whole causal chain",
            "location": "$message.payload#/correlationid",
        },
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/cloudevent"},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": event.name},
                        "dataschema": {"enum": [event.urn, None]},
                        "data": {"$ref": f"#/components/schemas/{_schema_name(event)}"},
                    },
                },
            ]
        },
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": row.key},
                "bindingVersion": _BINDING,
            }
        },
    }


def _schemas(event: EventType) -> dict[str, Any]:
    name = _schema_name(event)
    data = data_schema(event.data, f"#/components/schemas/{name}.")
    definitions = data.pop("$defs", {})
    return {name: data, **{f"{name}.{key}": schema for key, schema in definitions.items()}}


def document(domains: Iterable[str]) -> dict[str, Any]:
    """The whole document for `domains`. Its schemas keep to what draft-07, AsyncAPI's default, knows."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    schemas: dict[str, Any] = {
        "cloudevent": {
            "title": "CloudEvents 1.0, structured JSON, with Flyball's extensions",
            "type": "object",
            "required": list(REQUIRED),
            "properties": {**ENVELOPE, "data": {"type": "object"}},
            "patternProperties": {EXTENSION_NAME: EXTENSION},
            "additionalProperties": False,
        }
    }
    for domain in domains:
        for row in TOPICS:
            channels[row.of(domain)] = _channel(domain, row)
            operations |= _operations(domain, row)
        rows = {row.name: row for row in TOPICS}
        for event in event_types(domain):
            messages[_message_name(event)] = _message(event, rows[event.topic])
            schemas |= _schemas(event)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Flyball",
            "version": "1.0.0",
            "description": "Facts, situations, proposals, decisions, commands and outcomes on Kafka.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }
