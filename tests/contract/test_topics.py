"""The topic table, and that jobs and AsyncAPI read and write the topics it says."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

import jobs.context
import jobs.govern
import jobs.propose
import jobs.reason
from contracts import asyncapi
from contracts.catalogue import event_types
from contracts.topics import FOREVER, MAX_FACT_BYTES, MAX_RECORD_BYTES, TOPICS, Topic, topic
from jobs.settings import load_settings

JOBS = {"context": jobs.context, "propose": jobs.propose, "reason": jobs.reason, "govern": jobs.govern}
NAMES = [row.name for row in TOPICS]


def topics_in(tables: dict[str, str]) -> set[str]:
    """The topics that some tables' DDL names, without the domain."""
    found = [re.search(r"'topic' = '([^']*)'", ddl) for ddl in tables.values()]
    return {name.partition(".")[2] for match in found if match for name in match.group(1).split(";")}


@pytest.mark.parametrize("row", TOPICS, ids=NAMES)
def test_a_topic_has_a_legal_name_when_a_domain_owns_it(row: Topic) -> None:
    assert row.of("machines") == f"machines.{row.name}"
    # Kafka takes '.' and '_' for the same in metric names; ours have no '_'.
    assert re.fullmatch(r"[a-z-]+", row.name)


def test_topics_are_all_different_when_listed() -> None:
    assert len({row.name for row in TOPICS}) == len(TOPICS)


@pytest.mark.parametrize("name", ["policies", "models", "decisions", "commands", "audit-heads", "dead-letters"])
def test_a_topic_keeps_every_record_when_replay_needs_them(name: str) -> None:
    row = topic(name)
    assert (row.retention_ms, row.cleanup) == (FOREVER, "delete")


@pytest.mark.parametrize("name", ["policies", "models", "audit-heads"])
def test_a_control_topic_has_one_partition_when_its_order_is_its_meaning(name: str) -> None:
    assert topic(name).partitions == 1


def test_topics_have_equal_partitions_when_keyed_by_subject() -> None:
    """A subject is then in the same partition number all along the loop."""
    along = [row.partitions for row in TOPICS if row.key == "subject" and row.name != "late-facts"]
    assert len(set(along)) == 1


def test_only_govern_writes_in_transactions_when_exactly_once() -> None:
    assert {row.name for row in TOPICS if row.is_transactional} == {"decisions", "commands"}
    assert {row.written_by for row in TOPICS if row.is_transactional} == {"govern"}


def test_a_dead_letter_fits_a_record_when_it_wraps_the_largest_fact() -> None:
    assert MAX_FACT_BYTES * 4 / 3 + 16_384 < MAX_RECORD_BYTES


def test_an_unknown_topic_is_refused_with_the_names_there_are_when_asked_for() -> None:
    with pytest.raises(KeyError, match=r"no topic 'fact'.*facts, situations"):
        topic("fact")


@pytest.mark.parametrize("name", NAMES)
def test_every_topic_carries_an_event_type_when_catalogued(name: str) -> None:
    assert [event for event in event_types("machines") if event.topic == name]


@pytest.mark.parametrize(("name", "job"), JOBS.items(), ids=JOBS)
def test_a_job_reads_what_asyncapi_says_when_wired(name: str, job: ModuleType) -> None:
    tables = job.sources(load_settings("machines"))
    read_back = getattr(job, "WRITES_ITSELF", frozenset())
    assert topics_in(tables) | read_back == {topic for topic, readers in asyncapi.READ_BY.items() if name in readers}


@pytest.mark.parametrize(("name", "job"), JOBS.items(), ids=JOBS)
def test_a_job_writes_what_the_topic_table_says_when_wired(name: str, job: ModuleType) -> None:
    tables = job.sinks(load_settings("machines"))
    by_itself = getattr(job, "WRITES_ITSELF", frozenset())  # with a producer of its own, before Flink writes
    assert topics_in(tables) | by_itself == {row.name for row in TOPICS if name in asyncapi.written_by(row)}


def test_commands_have_one_writer_when_all_jobs_are_wired() -> None:
    settings = load_settings("machines")
    writers = [name for name, job in JOBS.items() if "commands" in topics_in(job.sinks(settings))]
    assert writers == ["govern"]
