"""The plan of `context`: nothing may mix a subject's rows before a log-order query reads them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ops import flink_jobs
from ops.home import CHECKOUT, Home
from tests.loop import Loop

_NODE = re.compile(r"^(?P<indent>[ :|]*)(?:\+- |:- )?(?P<kind>\w+)\((?P<told>.*)$")
_PARTITION = re.compile(r"partitionBy=\[([^\]]*)\], orderBy=\[arrival ASC\]")
_HASH = re.compile(r"distribution=\[hash\[([^\]]*)\]\]")


@dataclass
class Node:
    """One line of a plan; `inputs` are what it reads."""

    kind: str
    told: str
    inputs: list[Node] = field(default_factory=list)

    def upstream(self) -> Iterator[Node]:
        for node in self.inputs:
            yield node
            yield from node.upstream()


def parse(plan: str) -> list[Node]:
    """All nodes of "Optimized Execution Plan", with reused parts put where they are read."""
    nodes: list[Node] = []
    shared: dict[str, Node] = {}
    path: list[tuple[int, Node]] = []
    for line in plan.split("== Optimized Execution Plan ==", 1)[1].splitlines():
        found = _NODE.match(line)
        if found is None:
            path.clear()
            continue
        depth = line.index(found["kind"])
        if found["kind"] == "Reused":
            node = shared[re.findall(r"reference_id=\[(\d+)\]", line)[0]]
        else:
            node = Node(found["kind"], found["told"])
            nodes.append(node)
            if name := re.search(r"\(reuse_id=\[(\d+)\]\)", line):
                shared[name[1]] = node
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            path[-1][1].inputs.append(node)
        path.append((depth, node))
    return nodes


@pytest.fixture(scope="module")
def plans(instance: Home) -> dict[str, list[Node]]:
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tests/flink/explain_context.py"), "machines", "payments"],
        env=flink_jobs.client_environment(instance), cwd=CHECKOUT, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    texts = re.split(r"(?m)^== (machines|payments)$", done.stdout)
    return {name: parse(text) for name, text in zip(texts[1::2], texts[2::2], strict=True)}


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
    exchanges = [n for n in node.upstream() if n.kind == "Exchange"]
    return {(found[1] if (found := _HASH.search(n.told)) else n.told) for n in exchanges}


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
