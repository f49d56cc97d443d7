"""The plan of `context`: nothing may mix a subject's rows before a log-order query reads them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ops import flink_jobs
from ops.home import CHECKOUT, Home
from ops.submission import client_environment
from tests.loop import Loop

_QUERY = re.compile(r"(?:\[\d+\]:)?(OverAggregate|Match|WindowAggregate)\((.*)", re.S)
_PARTITION = re.compile(r"partitionBy=\[([^\]]*)\], orderBy=\[arrival ASC\]")


@dataclass
class Node:
    """One operator; `inputs` are what it reads, and whether by an exchange."""

    kind: str
    told: str
    inputs: list[tuple[Node, str]] = field(default_factory=list)

    def upstream(self) -> Iterator[Node]:
        for node, _ in self.inputs:
            yield node
            yield from node.upstream()


def parse(plan: list[dict[str, Any]]) -> list[Node]:
    nodes: dict[int, Node] = {}
    for told in plan:
        found = _QUERY.match(told["contents"])
        nodes[told["id"]] = Node(found[1] if found else told["type"], found[2] if found else told["contents"])
    for told in plan:
        for source in told.get("predecessors", ()):
            nodes[told["id"]].inputs.append((nodes[source["id"]], source["ship_strategy"]))
    return list(nodes.values())


@pytest.fixture(scope="module")
def plans(instance: Home) -> dict[str, list[Node]]:
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tests/flink/explain_context.py"), "machines", "payments"],
        env=client_environment(instance), cwd=CHECKOUT, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    plans: dict[str, list[Node]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            plans |= {domain: parse(plan) for domain, plan in json.loads(line).items()}
    return plans


def log_order_queries(nodes: list[Node]) -> dict[str, list[Node]]:
    """Partition key -> the queries that read a key's rows in log order."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        if node.kind in ("OverAggregate", "Match"):
            key = _PARTITION.search(node.told)
            assert key is not None, f"a log-order query is ordered by arrival: {node.kind}({node.told[:200]}"
            found.setdefault(key[1], []).append(node)
    return found


def keys_before(node: Node) -> set[str]:
    """Keys by which rows were moved on their way into `node`, its own included."""
    found = set()
    for at in (node, *node.upstream()):
        if any(how != "FORWARD" for _, how in at.inputs):
            key = _PARTITION.search(at.told)
            found.add(key[1] if key else at.told[:200])
    return found


def test_every_exchange_hashes_by_subject_when_it_comes_before_a_log_order_query(
    plans: dict[str, list[Node]],
) -> None:
    queries = log_order_queries(plans["machines"])
    assert set(queries) == {"subject"}
    assert {node.kind for node in queries["subject"]} == {"OverAggregate", "Match"}
    assert len(queries["subject"]) >= 4
    for node in queries["subject"]:
        assert keys_before(node) == {"subject"}, node.told


def test_queries_over_another_key_come_after_those_over_the_subject(plans: dict[str, list[Node]]) -> None:
    """payments has features over terminals and amounts; no query over the account may come behind them."""
    queries = log_order_queries(plans["payments"])
    assert len(queries) > 1
    for node in queries["subject"]:
        assert keys_before(node) == {"subject"}, node.told


@pytest.mark.parametrize(("domain", "at_least"), [("machines", 4), ("payments", 3)])
def test_queries_nested_on_one_key_exchange_nothing_between_them(
    plans: dict[str, list[Node]], domain: str, at_least: int
) -> None:
    over_all = [n for n in plans[domain] if n.kind == "OverAggregate" and "UNBOUNDED PRECEDING" in n.told]
    chained = [n for n in over_all if n.inputs[0][1] == "FORWARD"]
    assert len(chained) >= at_least, [n.told[:80] for n in over_all]


def test_a_query_that_keeps_rows_gets_them_through_an_exchange(plans: dict[str, list[Node]]) -> None:
    """Behind a chain a row may be reused for the next one; a kept row would change under the query."""
    for domain, nodes in plans.items():
        over_rows = [n for n in nodes if n.kind == "OverAggregate" and "UNBOUNDED" not in n.told]
        patterns = [n for n in nodes if n.kind == "Match"]
        assert over_rows and patterns, domain
        for node in (*over_rows, *patterns):
            assert node.inputs[0][1] == "HASH", node.told[:200]


def test_windows_of_event_time_are_there_beside_log_order(plans: dict[str, list[Node]]) -> None:
    for domain, nodes in plans.items():
        assert any("time_col=[row_time]" in n.told for n in nodes if n.kind == "WindowAggregate"), domain


def test_nothing_is_shuffled_between_the_source_and_validation(machines: Loop) -> None:
    """The part of the plan before the DataStream bridge, as Flink runs it."""
    job = next(j for j in flink_jobs.states(machines.home, "machines") if j.name == "machines.context")
    port = flink_jobs.rest_port(machines.home)
    plan = flink_jobs.cluster.get(port, f"/jobs/{job.job_id}/plan")["plan"]["nodes"]
    for node in plan:
        for source in node.get("inputs", ()):
            assert source["ship_strategy"] in ("FORWARD", "HASH"), (node["description"][:200], source)
    (source,) = [n for n in plan if not n.get("inputs")]
    assert "raw_facts" in source["description"]
    assert "read_fact" in source["description"] or "Correlate" in source["description"], "chained to the source"
