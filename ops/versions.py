"""What is published as versioned events (policies, people, models, prompts): written, read, and named `id@version`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import orjson

from contracts.access import principal
from contracts.data import Data
from contracts.envelope import schema_urn
from contracts.errors import SetupFailed
from contracts.topics import topic
from ops import kafka
from udfs.serde import write_event

Published = TypeVar("Published")


def events(bootstrap_servers: str, domain: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, event) of every JSON object in the topic, oldest first."""
    for record in kafka.read_all(bootstrap_servers, [topic(name).of(domain)]):
        try:
            event = orjson.loads(record.value or b"")
        except orjson.JSONDecodeError:
            continue
        if isinstance(event, dict):
            yield record.offset, event


def write(
    bootstrap_servers: str, domain: str, name: str, by: str, versions: Iterable[tuple[str, str, Data]], *, now_ms: int
) -> None:
    """One event a version (key, event id, content) into the topic, in order; returns when Kafka has them. `by`: its source."""
    writer = kafka.producer(bootstrap_servers, principal=principal(domain, "people"))
    try:
        for key, event_id, content in versions:
            event = write_event(
                event_id=event_id,
                source=f"/flyball/{domain}/ops/{by}",
                event_type=content.event_type,
                subject=key,
                time_ms=now_ms,
                dataschema=schema_urn(domain, content.event_type, content.schema_version),
                data=content.model_dump(mode="json"),
            )
            writer.send(topic(name).of(domain), key=key.encode(), value=event).get(timeout=30)
    finally:
        writer.close()


def chosen(found: Mapping[str, Published], name: str) -> Published:
    """The version `name` means: `id@version` that one, an id alone its newest. Raises SetupFailed when there is none."""
    versions = [each for each in found if name in (each, each.rpartition("@")[0])]
    if not versions:
        raise SetupFailed(f"expected one of {sorted(found)}, came {name!r}")
    return found[max(versions, key=lambda each: int(each.rpartition("@")[2]))]
