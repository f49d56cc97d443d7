"""Kafka topics as Flink tables: the one place that knows the connector's options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from contracts.access import principal
from contracts.errors import BrokerUnavailable
from contracts.topics import MAX_RECORD_BYTES, topic
from jobs.settings import Settings
from udfs import broker_access

if TYPE_CHECKING:
    from kafka import KafkaConsumer

KAFKA_TRANSACTION_TIMEOUT_MS = 900_000


def _with(options: Mapping[str, str]) -> str:
    quoted = ("    '{}' = '{}'".format(name, value.replace("'", "''")) for name, value in options.items())
    return "WITH (\n" + ",\n".join(quoted) + "\n)"


def raw_source(
    table: str, topics: list[str], settings: Settings, *, group: str, is_timed: bool = False,
    until: Mapping[int, int] | Literal["latest"] | None = None,
) -> str:  # fmt: skip
    """A table of undecoded records with their place; `appended_at` is the broker's clock.

    `is_timed` adds a watermark, generated inside the source for each partition apart (reading a
    backlog, partitions run apart by any amount; one watermark behind the source would call the
    slower ones late). It reads the envelope's `time` from the undecoded text, only when in UTC
    ("Z"); one further ahead of the broker's clock than a fact may be moves nothing.
    `until` bounds it: partition -> offset of a single topic, or where every partition ends as the job starts.
    """
    options = {
        "connector": "kafka",
        "topic": ";".join(topic(name).of(settings.domain) for name in topics),
        "properties.bootstrap.servers": settings.bootstrap_servers,
        **broker_access.flink(principal(settings.domain, group)),
        "properties.group.id": f"{settings.domain}-{group}",
        "properties.isolation.level": "read_committed",
        "properties.max.poll.records": "5000",
        "properties.max.partition.fetch.bytes": str(MAX_RECORD_BYTES),
        "scan.startup.mode": "earliest-offset",
        "key.format": "raw",
        "key.fields": "record_key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
    }
    if until == "latest":
        options["scan.bounded.mode"] = "latest-offset"
    elif until is not None:
        options["scan.bounded.mode"] = "specific-offsets"
        ends = (f"partition:{partition},offset:{end}" for partition, end in sorted(until.items()))
        options["scan.bounded.specific-offsets"] = ";".join(ends)
    return (
        f"CREATE TEMPORARY TABLE {table} (\n"
        "    record_key BYTES,\n"
        "    record_value BYTES,\n"
        "    `topic` STRING METADATA VIRTUAL,\n"
        "    `partition` INT METADATA VIRTUAL,\n"
        "    `offset` BIGINT METADATA VIRTUAL,\n"
        "    appended_at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL"
        f"{_source_watermark(settings) if is_timed else ''}\n"
        f") {_with(options)}"
    )


def interval(seconds: int) -> str:
    """`seconds` as a SQL interval of any length."""
    days, rest = divmod(seconds, 86_400)
    return f"INTERVAL '{days} {rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}' DAY TO SECOND"


def _source_watermark(settings: Settings) -> str:
    # String functions, not REGEXP_EXTRACT: Flink compiles the pattern anew for each record.
    text = "CAST(record_value AS STRING)"
    told = f"""SPLIT_INDEX(SPLIT_INDEX({text}, '"time":', 1), '"', 1)"""
    parsed = f"TO_TIMESTAMP_LTZ(SUBSTRING({told}, 1, 19), 'yyyy-MM-dd''T''HH:mm:ss')"
    claimed = f"CASE WHEN {told} LIKE '%Z' OR {told} LIKE '%+00:00' THEN {parsed} END"
    latest = f"appended_at + {interval(settings.max_ahead_s)}"
    epoch = "CAST(TIMESTAMP '1970-01-01 00:00:00.000' AS TIMESTAMP_LTZ(3))"
    # One too far ahead is refused as a fact (time_ahead), so it must not move the clock either.
    return (
        f",\n    claimed_at AS COALESCE(CASE WHEN {claimed} <= {latest} THEN {claimed} END, {epoch}),\n"
        f"    WATERMARK FOR claimed_at AS claimed_at - {interval(settings.watermark_delay_s)}"
    )


def sink_options(
    topics: Sequence[str], settings: Settings, *, producer: str, is_transactional: bool = False
) -> dict[str, str]:
    """Options every sink shares. One producer writes all of `topics`, where asked in one transaction a checkpoint.

    Transactional ids are a few and used again: a new one for each checkpoint, Flink's default, fills the
    broker's memory in a day (decisions/0027).
    """
    options = {
        "connector": "kafka",
        "topic": ";".join(topic(name).of(settings.domain) for name in topics),
        "properties.bootstrap.servers": settings.bootstrap_servers,
        **broker_access.flink(principal(settings.domain, producer)),
        "properties.linger.ms": "5",
        "properties.batch.size": "131072",
        # With more, a broker that refuses a new producer's first batch for a moment may take its second one first: it
        # knows no sequence of that producer yet. Records of a subject would change their order (decisions/0027).
        "properties.max.in.flight.requests.per.connection": "1",
        "properties.acks": "all",
        "properties.max.request.size": str(MAX_RECORD_BYTES),
        "sink.delivery-guarantee": "at-least-once",
        "key.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
    }
    if is_transactional and settings.delivery == "exactly_once":
        options |= {
            "sink.delivery-guarantee": "exactly-once",
            "sink.transactional-id-prefix": f"{settings.domain}-{producer}-{topics[0]}",
            "sink.transaction-naming-strategy": "POOLING",
            "properties.transaction.timeout.ms": str(KAFKA_TRANSACTION_TIMEOUT_MS),
            # Nothing shows before the checkpoint, which sends what lingers.
            "properties.linger.ms": "20",
        }
    return options


def raw_sink(
    table: str, topics: Sequence[str], settings: Settings, *, producer: str, is_transactional: bool = False
) -> str:
    """A table that writes `record_value` (JSON text made elsewhere) under `record_key` into `topic`, one of `topics`.

    Several topics: of a single one Flink lets no row name its topic.
    """
    options = sink_options(topics, settings, producer=producer, is_transactional=is_transactional)
    options |= {"key.fields": "record_key", "value.format": "raw"}
    return (
        f"CREATE TEMPORARY TABLE {table} (\n    `topic` STRING NOT NULL METADATA,\n    record_key STRING,\n"
        f"    record_value STRING\n) {_with(options)}"
    )


def event_sink(
    table: str, topic_name: str, data_columns: Mapping[str, str], settings: Settings, *, producer: str
) -> str:
    """A table of CloudEvents whose `data` is a typed ROW; Flink's JSON format writes them."""
    options = sink_options([topic_name], settings, producer=producer)
    options |= {
        "key.fields": "subject",
        "value.format": "json",
        "value.json.encode.ignore-null-fields": "true",
        "value.fields-include": "ALL",
    }
    data = ", ".join(f"`{name}` {kind}" for name, kind in data_columns.items())
    return (
        f"CREATE TEMPORARY TABLE {table} (\n"
        "    specversion STRING,\n    id STRING,\n    source STRING,\n    `type` STRING,\n"
        "    subject STRING,\n    `time` STRING,\n    datacontenttype STRING,\n"
        "    dataschema STRING,\n    correlationid STRING,\n    causationid STRING,\n"
        "    traceparent STRING,\n    hops BIGINT,\n"
        f"    data ROW<{data}>\n) {_with(options)}"
    )


def end_offset(settings: Settings, topic_name: str, *, job: str) -> int:
    """Where the only partition of a control topic ends now, asked as `job`; what lies before loads first.

    Control topics are written without transactions, so the record before the end is a real one.
    Raises BrokerUnavailable when no broker answers or the topic is missing.
    """
    return committed_ends(settings, topic_name, job=job)[0]


def committed_ends(settings: Settings, topic_name: str, *, job: str) -> dict[int, int]:
    """Partition -> where its committed records end now. Raises BrokerUnavailable as `end_offset`."""
    with _reader(settings, topic_name, job) as (reader, where):
        return {partition.partition: int(end) for partition, end in reader.end_offsets(where).items()}


def control_records(settings: Settings, topic_name: str, *, job: str) -> list[tuple[int, bytes | None]]:
    """Offset and value of every record of a control topic now. Raises BrokerUnavailable as `end_offset`."""
    found: list[tuple[int, bytes | None]] = []
    with _reader(settings, topic_name, job) as (reader, where):
        reader.assign(where)
        reader.seek_to_beginning(*where)
        ends = reader.end_offsets(where)
        while any(reader.position(partition) < end for partition, end in ends.items()):
            for batch in reader.poll(timeout_ms=200).values():
                found += [(record.offset, record.value) for record in batch]
    return found


@contextmanager
def _reader(settings: Settings, topic_name: str, job: str) -> Iterator[tuple[KafkaConsumer, list[Any]]]:
    """A consumer of committed records, and the topic's partitions."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    name = topic(topic_name).of(settings.domain)
    try:
        reader = KafkaConsumer(
            bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed",
            **broker_access.kafka_python(principal(settings.domain, job)),
            enable_auto_commit=False, max_partition_fetch_bytes=MAX_RECORD_BYTES,
        )  # fmt: skip
        try:
            if name not in reader.topics():
                raise BrokerUnavailable(
                    f"topic {name!r} is not at {settings.bootstrap_servers}; './flyball up"
                    f" {settings.domain}' makes the topics"
                )
            yield reader, [TopicPartition(name, number) for number in sorted(reader.partitions_for_topic(name))]
        finally:
            reader.close()
    except KafkaError as error:
        raise BrokerUnavailable(f"no broker at {settings.bootstrap_servers}: {error}") from error
