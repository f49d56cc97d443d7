"""Files of the domain incidents into facts: measurements, the call graph beside them, ends of samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.domain import load_domain
from contracts.errors import SetupFailed
from ops.player import Item, RefusedLine, read_file, with_references
from ops.world import NewFact, load_world
from ops.worlds.incidents import _closing_samples

HOUR_MS = 3_600_000
INPUT = """\
ts,node,metric,statistic,value
2023-08-21T09:00:00Z,web,latency,Average,0.25
2023-08-21T09:00:00Z,db,requests,Sum,7
2023-08-21T09:05:00Z,web,latency,Average,0.5
2023-08-21T09:05:00Z,web,latency,Average,fast
2023-08-21T09:05:00Z,web,latency,Average,nan
"""
GRAPH = "from_node,to_node\nweb,db\nweb\n"


def items(folder: Path, *, graph: bool = True, subject: str | None = None, domain: str = "incidents") -> list[Item]:
    (folder / "shop.csv").write_text(INPUT)
    (folder / "graph.csv").write_text(GRAPH)
    world = load_world(domain)
    rows = read_file(folder / "shop.csv", world, subject=subject, max_ahead_ms=HOUR_MS)
    return list(with_references(rows, folder / "graph.csv" if graph else None, world, subject=subject))


def test_rows_are_facts_of_the_contract_about_the_system_of_the_file(tmp_path: Path) -> None:
    facts = [item for item in items(tmp_path) if isinstance(item, NewFact)]
    assert {fact.subject for fact in facts} == {"shop"}
    for fact in facts:
        load_domain("incidents").facts[fact.type].model_validate(fact.data)


def test_calls_come_first_with_the_time_of_the_first_row(tmp_path: Path) -> None:
    first, refused, second, *_ = items(tmp_path)
    assert isinstance(first, NewFact) and isinstance(second, NewFact)
    assert (first.type, first.data) == ("incident.call_observed", {"from_node": "web", "to_node": "db"})
    assert first.event_ms == second.event_ms
    assert isinstance(refused, RefusedLine) and "expected 2 columns" in str(refused.error)


def test_the_subject_asked_for_is_that_of_both_files(tmp_path: Path) -> None:
    assert {item.subject for item in items(tmp_path, subject="store") if isinstance(item, NewFact)} == {"store"}


def test_rows_without_a_finite_number_are_refused(tmp_path: Path) -> None:
    told = [str(item.error) for item in items(tmp_path, graph=False) if isinstance(item, RefusedLine)]
    assert len(told) == 2 and "'fast'" in told[0] and "'nan'" in told[1]


def test_reference_facts_are_refused_when_the_domain_knows_none(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="reference facts"):
        items(tmp_path, domain="machines")


def test_a_graph_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="cannot read"):
        list(with_references(iter([]), tmp_path / "none.csv", load_world("incidents"), subject=None))


def test_each_sample_is_closed_behind_its_last_row_and_the_last_at_the_end(tmp_path: Path) -> None:
    facts = [item for item in items(tmp_path) if isinstance(item, NewFact)]
    kinds = [fact.type.removeprefix("incident.") for fact in _closing_samples(facts) if fact is not None]
    assert kinds == [
        "call_observed", "metric_measured", "metric_measured", "sample_closed", "metric_measured", "sample_closed",
    ]  # fmt: skip


def test_a_sample_that_is_closed_already_is_not_closed_again() -> None:
    measured = NewFact("incident.metric_measured", "s", 1, {}, "a")
    closed = NewFact("incident.sample_closed", "s", 1, {}, "b")
    later = NewFact("incident.metric_measured", "s", 2, {}, "c")
    assert [f.event_ms for f in _closing_samples([measured, closed, None, later]) if f] == [1, 1, 2, 2]
