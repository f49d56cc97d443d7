"""Topics for people and programs: JSONL of a topic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from contracts.access import principal
from contracts.errors import SetupFailed
from contracts.topics import TOPICS
from contracts.topics import topic as topic_row
from ops import kafka


def _json_or_text(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value.decode("utf-8", errors="replace")


def records(
    bootstrap_servers: str, domain: str, topic: str, *,
    from_beginning: bool, follow: bool, limit: int | None,
) -> Iterator[str]:  # fmt: skip
    """One JSON object a record: partition, offset, key, value. Committed records only.

    A private topic is read as auditor. `follow` waits for more, for ever; otherwise it ends where the topic ended when it began.
    """
    short = topic.removeprefix(f"{domain}.")
    if short not in [row.name for row in TOPICS]:
        raise SetupFailed(f"expected a topic of {[row.name for row in TOPICS]}, came {topic!r}")
    row = topic_row(short)
    reader = kafka.consumer(bootstrap_servers, principal=principal(domain, "auditor" if row.is_private else "reader"))
    try:
        where = kafka.partitions(reader, [row.of(domain)])
        reader.assign(where)
        (reader.seek_to_beginning if from_beginning else reader.seek_to_end)(*where)
        ends = reader.end_offsets(where)
        left = limit
        while follow or any(reader.position(place) < ends[place] for place in where):
            for record in kafka.poll(reader, timeout_ms=200):
                if left is not None and left <= 0:
                    return
                yield json.dumps(
                    {
                        "partition": record.partition,
                        "offset": record.offset,
                        "key": None if record.key is None else record.key.decode(errors="replace"),
                        "value": _json_or_text(record.value),
                    },
                    ensure_ascii=False,
                )
                left = None if left is None else left - 1
            if left is not None and left <= 0:
                return
    finally:
        reader.close()
