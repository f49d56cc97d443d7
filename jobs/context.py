"""Job `context`: facts, outcomes and reference facts in, situations out.

    raw records -> read_fact (validate, type) -> drop duplicates -> sql/<domain>/*.sql -> situations
                        |                             |
                        +-> dead letters              +-> late facts (event-time lane only)

Where a domain requires signatures, a fact that may be a repeat of a forgotten one is a dead letter, too.

Every view of sql/<domain>/ sees one view per fact type (`machine_temperature_measured`, ...,
`flyball_outcome`) with the columns of FACT_COLUMNS and the fact's own data fields. Every situation
type of the contract is filled from the view that has its short name (`machines.reading_scored` ->
`reading_scored`), which must give subject, cause_id, event_ms, correlation_id, traceparent, hops and the data.

Order: rows of one subject stay in their partition's order from the source to the sinks; no exchange
on another key comes before a log-order query (tests/flink reads the plan). Restart: at least once,
with derived ids; `govern` drops what is repeated. Without state all facts kept are read again; of outcomes, which are kept
for ever, older ones only move the clock (udfs/serde.py): `govern` may have forgotten what it decided about them. A source that
starts at a timestamp would read less, and skip all it has not read wherever Kafka has dropped what it stands at.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment
from pyflink.table.statement_set import StatementSet
from pyflink.table.udf import udtf

from contracts.data import SituationData
from contracts.dead_letter import Cause, DeadLetter
from contracts.domain import DomainContract, columns, load_domain, short_name
from contracts.envelope import schema_urn
from contracts.errors import SetupFailed
from contracts.fact import ClockTicked
from contracts.late_fact import LateFact
from contracts.topics import topic
from jobs.environment import EPOCH_MS, register_step, submit, table_environment
from jobs.settings import Settings, settings_from_arguments
from jobs.tables import event_sink, raw_sink, raw_source
from udfs.signed_facts import load_producers
from udfs.sql_functions import ReadFact, fact_row_columns, flink_row_type, scalar_functions

NAME = "context"
NEEDS_BROKER = False
# How many earlier facts of the same subject a fact's id is compared with.
DEDUPLICATION_ROWS = 32
FACT_COLUMNS = ("subject", "fact_id", "event_ms", "correlation_id", "hops", "traceparent", "arrival", "row_time")


def sources(settings: Settings) -> dict[str, str]:
    """Table name -> DDL of what this job reads."""
    return {"raw_facts": raw_source("raw_facts", ["facts", "outcomes"], settings, group=NAME, is_timed=True)}


def sinks(settings: Settings) -> dict[str, str]:
    """Table name -> DDL of what this job writes."""
    contract = load_domain(settings.domain)
    tables = {
        f"{short_name(kind)}_sink": event_sink(
            f"{short_name(kind)}_sink", "situations", columns(situation), settings, producer=NAME
        )
        for kind, situation in contract.situations.items()
    }
    refused = ("dead-letters", "late-facts")
    return tables | {"refused_sink": raw_sink("refused_sink", refused, settings, producer=NAME)}


def sql_statements(text: str) -> list[str]:
    """The statements of a SQL file: comments dropped, split at semicolons that end a line."""
    without_comments = re.sub(r"(?m)^\s*--.*$", "", text)
    return [s.strip() for s in re.split(r";\s*(?:\n|$)", without_comments) if s.strip()]


def domain_views(folder: Path) -> dict[str, str]:
    """View name -> query, in order of file names; views.sql is the SQL client's own."""
    files = sorted(path for path in folder.glob("*.sql") if path.name != "views.sql")
    views: dict[str, str] = {}
    for path in files:
        for statement in sql_statements(path.read_text()):
            found = re.match(r"CREATE\s+VIEW\s+`?(\w+)`?\s+AS\s+(.+)", statement, re.S | re.I)
            if found is None:
                raise SetupFailed(
                    f"{path}: expected only statements 'CREATE VIEW <name> AS <query>', came {statement[:80]!r}"
                )
            views[found.group(1)] = found.group(2)
    if not views:
        raise SetupFailed(f"expected SQL files that define situations in {folder}, found none")
    return views


def build(
    env: StreamExecutionEnvironment,
    t_env: StreamTableEnvironment,
    settings: Settings,
    sources: Mapping[str, str],
    sinks: Mapping[str, str],
) -> StatementSet:
    """Wire the job; nothing runs until the statement set is executed."""
    contract = load_domain(settings.domain)
    for ddl in (*sources.values(), *sinks.values()):
        t_env.execute_sql(ddl)
    _register_facts(t_env, settings, contract)
    for name, function in scalar_functions().items():
        t_env.create_temporary_function(name, function)
    for name, query in domain_views(settings.sql_dir).items():
        register_step(t_env, name, query)

    statements = t_env.create_statement_set()
    statements.add_insert_sql(
        f"INSERT INTO refused_sink SELECT '{topic('dead-letters').of(settings.domain)}', dead_key, dead_letter"
        " FROM typed_facts WHERE dead_key IS NOT NULL"
    )
    if settings.signed_facts == "required":
        statements.add_insert_sql(_insert_replayed(settings.domain))
    for kind, situation in contract.situations.items():
        statements.add_insert_sql(_insert_situation(settings.domain, kind, situation))
    statements.add_insert_sql(_insert_late_facts(settings.domain))
    return statements


def _register_facts(
    t_env: StreamTableEnvironment, settings: Settings, contract: DomainContract
) -> None:
    """typed_facts (validated once), facts (deduplicated), and one view per fact type."""
    typed = fact_row_columns(settings.domain)
    read_fact = udtf(
        ReadFact(
            settings.domain, settings.max_ahead_s, load_producers(settings.producers_file, contract),
            settings.signed_facts, settings.signature_max_age_s,
        ),
        result_types=flink_row_type(typed),
    )  # fmt: skip
    t_env.create_temporary_function("read_fact", read_fact)
    names = ", ".join(f"`{name}`" for name in typed)
    is_required = settings.signed_facts == "required"
    # The record as it came, for the dead letter of one that may be replayed.
    raw = f", record_key, record_value, {EPOCH_MS} AS appended_ms" if is_required else ""
    validated = (
        f"SELECT {names}, `topic` AS log_topic, CAST(`partition` AS BIGINT) AS log_partition,"
        f" `offset` AS log_offset{raw}"
        # Without the inner SELECT, the source's event time would be computed once more for each record.
        " FROM (SELECT record_key, record_value, `topic`, `partition`, `offset`, appended_at FROM raw_facts),"
        " LATERAL TABLE(read_fact(record_key, record_value, `topic`, `partition`,"
        f" `offset`, {EPOCH_MS})) AS T({names})"
    )
    register_step(t_env, "typed_facts", validated)
    kept = [f"`{name}`" for name in typed if name not in ("dead_key", "dead_letter", "fact_hash")]
    kept += ["log_topic", "log_partition", "log_offset"]
    good = "SELECT * FROM typed_facts WHERE dead_key IS NULL"
    if is_required:
        good = _with_forgotten(good, topic("facts").of(settings.domain))
    deduplicated = (
        f"SELECT {', '.join(kept)}{', forgotten_ms, record_key, record_value, appended_ms' if is_required else ''} FROM ("
        " SELECT *, ARRAY_AGG(fact_hash) OVER (PARTITION BY subject ORDER BY arrival"
        f" ROWS BETWEEN {DEDUPLICATION_ROWS} PRECEDING AND CURRENT ROW) AS recent"
        f" FROM ({good})"
        ") WHERE ARRAY_POSITION(recent, fact_hash) = CARDINALITY(recent)"
    )
    register_step(t_env, "new_facts" if is_required else "facts", deduplicated)
    if is_required:
        t_env.execute_sql(
            f"CREATE TEMPORARY VIEW facts AS SELECT {', '.join(kept)}, arrival, row_time FROM new_facts"
            f" WHERE NOT ({_IS_FORGOTTEN})"
        )
    for kind, fact in contract.facts.items():
        listed = ", ".join(f"`{name}`" for name in (*FACT_COLUMNS, *columns(fact)))
        t_env.execute_sql(
            f"CREATE TEMPORARY VIEW {short_name(kind)} AS SELECT {listed} FROM facts WHERE fact_type = '{kind}'"
        )


# `forgotten_ms` is null for a subject's first facts and for what comes on another topic.
_IS_FORGOTTEN = "COALESCE(event_ms <= forgotten_ms, FALSE)"


def _with_forgotten(good: str, facts_topic: str) -> str:
    """The rows of `good` with `forgotten_ms`: the highest event time among the subject's facts whose ids are forgotten.

    A fact after it is none of those; one not after it may be one of them again. One number a subject, for ever.
    """
    over = "OVER (PARTITION BY subject ORDER BY arrival)"
    signed_ms = f"CASE WHEN log_topic = '{facts_topic}' THEN event_ms END"
    return (
        f"SELECT *, CASE WHEN log_topic = '{facts_topic}' THEN LAG(highest_ms, {DEDUPLICATION_ROWS + 1}) {over} END"
        f" AS forgotten_ms FROM (SELECT *, MAX({signed_ms}) {over} AS highest_ms FROM ({good}))"
    )


def _insert_replayed(domain: str) -> str:
    """Dead letters, as udfs/serde.py writes them, of facts that cannot be told from forgotten ones."""
    place = "CONCAT(log_topic, '/', CAST(log_partition AS STRING), '/', CAST(log_offset AS STRING))"
    message = (
        f"CONCAT('expected a fact later than ', {_instant('forgotten_ms')}, ', up to which ids of its subject are"
        f" forgotten; came one of ', {_instant('event_ms')})"
    )
    return (
        f"INSERT INTO refused_sink SELECT '{topic('dead-letters').of(domain)}', {place}, JSON_OBJECT("
        "KEY 'specversion' VALUE '1.0',"
        f" KEY 'id' VALUE {_derived_id(place, 'dead-letter')},"
        f" KEY 'source' VALUE '/flyball/{domain}/{NAME}', KEY 'type' VALUE '{DeadLetter.event_type}',"
        f" KEY 'subject' VALUE {place}, KEY 'time' VALUE {_instant('appended_ms')},"
        " KEY 'datacontenttype' VALUE 'application/json',"
        f" KEY 'dataschema' VALUE '{schema_urn(domain, DeadLetter.event_type, DeadLetter.schema_version)}',"
        " KEY 'hops' VALUE 0,"
        " KEY 'data' VALUE JSON_OBJECT("
        f"KEY 'cause' VALUE '{Cause.REPLAYED}', KEY 'message' VALUE {message}, KEY 'stage' VALUE '{NAME}',"
        " KEY 'topic' VALUE log_topic, KEY 'partition' VALUE log_partition, KEY 'offset' VALUE log_offset,"
        " KEY 'key_base64' VALUE TO_BASE64(CAST(record_key AS STRING)),"
        " KEY 'value_base64' VALUE TO_BASE64(CAST(record_value AS STRING))))"
        f" FROM new_facts WHERE {_IS_FORGOTTEN}"
    )


def _instant(event_ms: str) -> str:
    """SQL for event time as the envelope writes it."""
    return f"DATE_FORMAT(TO_TIMESTAMP_LTZ({event_ms}, 3), 'yyyy-MM-dd''T''HH:mm:ss.SSS''Z''')"


def _derived_id(cause_id: str, kind: str) -> str:
    """SQL for contracts.envelope.derive_id(cause, "context", kind)."""
    return f"SUBSTRING(SHA256(CONCAT_WS('|', {cause_id}, '{NAME}', '{kind}', '0')), 1, 32)"


def _insert_situation(domain: str, kind: str, situation: type[SituationData]) -> str:
    """One INSERT per situation type: the envelope around the columns of its view."""
    view = kind.split(".", 1)[1]
    instant = _instant("event_ms")
    data = ", ".join(
        instant if name == "event_time" else f"`{name}`" for name in columns(situation)
    )
    return (
        f"INSERT INTO {short_name(kind)}_sink SELECT '1.0',"
        f" {_derived_id('cause_id', kind)},"
        f" '/flyball/{domain}/{NAME}', '{kind}', subject, {instant}, 'application/json',"
        f" '{schema_urn(domain, kind, situation.schema_version)}', correlation_id, cause_id,"
        f" traceparent, hops, ROW({data}) FROM {view}"
    )


def _insert_late_facts(domain: str) -> str:
    """Facts behind the watermark: event-time windows drop them in silence, so they are kept here."""
    kind, instant = LateFact.event_type, _instant("event_ms")
    return (
        f"INSERT INTO refused_sink SELECT '{topic('late-facts').of(domain)}', subject, JSON_OBJECT("
        "KEY 'specversion' VALUE '1.0',"
        f" KEY 'id' VALUE {_derived_id('fact_id', kind)},"
        f" KEY 'source' VALUE '/flyball/{domain}/{NAME}', KEY 'type' VALUE '{kind}',"
        f" KEY 'subject' VALUE subject, KEY 'time' VALUE {instant},"
        " KEY 'datacontenttype' VALUE 'application/json',"
        f" KEY 'dataschema' VALUE '{schema_urn(domain, kind, LateFact.schema_version)}',"
        " KEY 'correlationid' VALUE correlation_id, KEY 'causationid' VALUE fact_id, KEY 'hops' VALUE hops,"
        " KEY 'data' VALUE JSON_OBJECT("
        f"KEY 'event_time' VALUE {instant}, KEY 'fact_id' VALUE fact_id, KEY 'fact_type' VALUE fact_type,"
        " KEY 'topic' VALUE log_topic, KEY 'partition' VALUE log_partition, KEY 'offset' VALUE log_offset,"
        " KEY 'watermark' VALUE CAST(CURRENT_WATERMARK(row_time) AS STRING)))"
        f" FROM facts WHERE row_time <= CURRENT_WATERMARK(row_time) AND fact_type <> '{ClockTicked.event_type}'"
    )


def plan(env: StreamExecutionEnvironment, t_env: StreamTableEnvironment, settings: Settings) -> None:
    """Build the job with its own sources and sinks, ready to be submitted."""
    statements = build(env, t_env, settings, sources(settings), sinks(settings))
    statements.attach_as_datastream()


def main() -> None:
    settings = settings_from_arguments(sys.argv[1:])
    env, t_env = table_environment(NAME, settings)
    plan(env, t_env, settings)
    print(submit(env, NAME, settings), flush=True)


if __name__ == "__main__":
    main()
