"""Flink SQL of a domain for people: its topics as tables, each event type as a view.

Made from the topic table and the models, for the SQL client (ops/sql_client.py) and for
`contracts --ddl`. The jobs read raw bytes instead (jobs/tables.py), because a table of a format drops
what it cannot read and a job may not.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from enum import Enum
from typing import Final

from contracts.catalogue import EventType, event_types
from contracts.data import Data
from contracts.domain import short_name, sql_type
from contracts.topics import MAX_RECORD_BYTES, TOPICS, Topic

ENVELOPE: Final = (
    "specversion", "id", "source", "type", "subject", "time", "dataschema", "correlationid",
    "causationid", "traceparent", "expirytime",
)  # fmt: skip
# What every view of an event type begins and ends with.
VIEW_HEAD: Final = ("subject", "id", "time", "occurred_at", "correlationid", "causationid", "hops")
# Null for a fact whose time has another offset than Z; Flyball itself writes only Z.
OCCURRED_AT: Final = "TRY_CAST(REPLACE(REPLACE(`time`, 'T', ' '), 'Z', '') AS TIMESTAMP(3)) AS occurred_at"
VIEW_TAIL: Final = {"log_partition": "partition", "log_offset": "offset", "appended_at": "appended_at"}


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def table_name(row: Topic) -> str:
    """`dead-letters` -> `dead_letters`. (MODELS is a keyword of Flink SQL: write `models` in backticks.)"""
    return row.name.replace("-", "_")


def topic_table(row: Topic, domain: str, bootstrap_servers: str, login: Mapping[str, str] | None = None) -> str:
    """The topic as a table that ends where the topic ends now; committed records only.

    `login`: options of the connector for a broker that asks who reads (udfs/broker_access.py).
    """
    options = {
        "connector": "kafka",
        "topic": row.of(domain),
        "properties.bootstrap.servers": bootstrap_servers,
        **(login or {}),
        "properties.isolation.level": "read_committed",
        "properties.max.partition.fetch.bytes": str(MAX_RECORD_BYTES),
        "scan.startup.mode": "earliest-offset",
        "scan.bounded.mode": "latest-offset",
        "key.format": "raw",
        "key.fields": "record_key",
        "value.format": "json",
        "value.json.ignore-parse-errors": "true",
        "value.fields-include": "EXCEPT_KEY",
    }
    columns = [
        "record_key STRING",
        *(f"`{name}` STRING" for name in ENVELOPE),
        "hops BIGINT",
        "`data` STRING COMMENT 'a JSON object'",
        "`partition` INT METADATA VIRTUAL",
        "`offset` BIGINT METADATA VIRTUAL",
        "appended_at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL",
    ]
    listed = ",\n    ".join(columns)
    with_options = ",\n    ".join(f"{_text(key)} = {_text(value)}" for key, value in options.items())
    return (
        f"CREATE TABLE `{table_name(row)}` (\n    {listed}\n)\n"
        f"COMMENT {_text(f'{row.says} (key: {row.key})')}\nWITH (\n    {with_options}\n)"
    )


def _unpacked(name: str, annotation: object) -> str:
    """The SQL expression of one field of `data`; what is not a scalar stays JSON text."""
    path = _text(f"$.{name}")
    kind = _scalar_type(annotation)
    match kind:
        case None:
            return f"JSON_QUERY(`data`, {path})"
        case "STRING":
            return f"JSON_VALUE(`data`, {path})"
        case "BIGINT":  # JSON_VALUE ... RETURNING knows no BIGINT in Flink 2.2
            return f"TRY_CAST(JSON_VALUE(`data`, {path}) AS BIGINT)"
        case _:
            return f"JSON_VALUE(`data`, {path} RETURNING {kind})"


def _scalar_type(annotation: object) -> str | None:
    """Its SQL type, or None for an object, an array or a mixture."""
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    if typing.get_origin(annotation) is not typing.Annotated and len(members) == 1:
        annotation = members[0] if not isinstance(members[0], str) else str  # X | None, Literal["x"]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "STRING"
    if typing.get_origin(annotation) in (dict, list, tuple):
        return None
    try:
        return sql_type(annotation)
    except (TypeError, ValueError):
        return None


def _column_name(name: str, data: type[Data]) -> str:
    """A field named like a column of the envelope is told apart by `data_`."""
    taken = {*VIEW_HEAD, *VIEW_TAIL}
    if name not in taken:
        return name
    renamed = f"data_{name}"
    while renamed in data.model_fields:
        renamed = f"data_{renamed}"
    return renamed


def event_view(event: EventType) -> str:
    """One row an event of this type, its `data` unpacked into typed columns."""
    columns = [OCCURRED_AT if name == "occurred_at" else f"`{name}`" for name in VIEW_HEAD]
    columns += [
        f"{_unpacked(name, field.annotation)} AS `{_column_name(name, event.data)}`"
        for name, field in event.data.model_fields.items()
    ]
    columns += [f"`{column}` AS {name}" if column != name else name for name, column in VIEW_TAIL.items()]
    listed = ",\n    ".join(columns)
    return (
        f"CREATE VIEW `{short_name(event.name)}`\nCOMMENT {_text(event.says.rstrip('.'))}\nAS SELECT\n"
        f"    {listed}\nFROM `{event.topic.replace('-', '_')}`\nWHERE `type` = {_text(event.name)}"
    )


def script(domain: str, bootstrap_servers: str, login: Mapping[str, str] | None = None) -> str:
    """Every statement for `domain`, in a database of its name, each ended by a semicolon.

    Raises SetupFailed when there is no such domain.
    """
    statements = [f"CREATE DATABASE IF NOT EXISTS `{domain}`", f"USE `{domain}`"]
    statements += [topic_table(row, domain, bootstrap_servers, login) for row in TOPICS]
    statements += [event_view(event) for event in event_types(domain)]
    return _HEADER.format(domain=domain) + ";\n\n".join(statements) + ";\n"


_HEADER = """\
-- Domain {domain}: one table a topic, one view an event type. Generated by './flyball contracts --ddl'.
-- A query reads a topic from its beginning to where it ends now, and ends. To follow it instead:
--     SET 'execution.runtime-mode' = 'streaming';
--     SELECT * FROM facts /*+ OPTIONS('scan.bounded.mode'='unbounded', 'scan.startup.mode'='latest-offset') */;
-- (a hint is for tables, not views). Records that are not JSON objects are skipped here; they are in
-- dead_letters. `time` is event time as written, occurred_at the same as a TIMESTAMP in UTC; log_partition
-- and log_offset are where the event lies, appended_at the broker's clock.
"""
