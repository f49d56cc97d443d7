"""Queries nested on one key run as one chain: no exchange between them that moves nothing.

Flink's planner puts a hash exchange before every keyed query, also where the rows come from a query
on the same key and already lie where they should. Each such exchange serialises every row, hands it
to another thread, and waits for a buffer to be flushed (figures: docs/decisions/0012).
"""

from __future__ import annotations

import re
from typing import Any

from pyflink.java_gateway import get_gateway

_OVER = re.compile(r"OverAggregate\(partitionBy=\[([^\]]*)\]")
# It keeps values of a row, never the row; operators behind a chain may be given a reused row.
_KEEPS_NO_ROWS = re.compile(r"window=\[ RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW\]")
_SELECTED = re.compile(r"Calc\(select=\[(.*?)\](?:, where=\[.*\])?\)$", re.S)
_SCANNED = re.compile(r"TableSourceScan\(.*fields=\[(.*)\]\)$", re.S)
_PASSES_ALL = re.compile(r"TableToDataStream\(|(\[\d+\]:)?ConstraintEnforcer\[")


def drop_exchanges_on_the_same_key(graph: Any) -> list[str]:
    """Make exchanges of a StreamGraph forward where rows already lie by that key; names of the queries.

    Only before an OVER query over all earlier rows, and only when every operator up to the last
    exchange is known to pass the key's columns on unchanged. Anything unknown keeps its exchange.
    Same key, same parallelism, same maximal parallelism: same key groups, so state and log order are
    as with the exchange.
    """
    forward = get_gateway().jvm.org.apache.flink.streaming.runtime.partitioner.ForwardPartitioner
    changed = []
    for node in graph.getStreamNodes().toArray():
        told = node.getOperatorDescription() or ""
        over = _OVER.search(told)
        if over is None or not _KEEPS_NO_ROWS.search(told):
            continue
        for edge in node.getInEdges().toArray():
            keys = set(over[1].split(", "))
            if _ships_by(edge) == "KeyGroup" and _lies_by(graph, edge.getSourceId(), keys):
                edge.setPartitioner(forward())
                changed.append(str(node.getOperatorName()))
    return changed


def _ships_by(edge: Any) -> str:
    name = str(edge.getPartitioner().getClass().getSimpleName())
    return name.removesuffix("Partitioner").removesuffix("Stream")


def _lies_by(graph: Any, node_id: int, keys: set[str]) -> bool:
    """Whether the rows that leave the operator are partitioned by the columns `keys`."""
    node = graph.getStreamNode(node_id)
    told = node.getOperatorDescription() or ""
    if over := _OVER.search(told):
        return set(over[1].split(", ")) == keys
    if not (_PASSES_ALL.match(told) or keys <= _columns_passed(told)):
        return False
    edges = node.getInEdges()
    return (
        edges.size() == 1
        and _ships_by(edges.get(0)) == "Forward"
        and _lies_by(graph, edges.get(0).getSourceId(), keys)
    )


def _columns_passed(told: str) -> set[str]:
    """Names of the columns an operator takes over as they are ("a", not "b AS a")."""
    listed = _SELECTED.search(told) or _SCANNED.search(told)
    return set() if listed is None else set(split_list(listed[1]))


def split_list(listed: str) -> list[str]:
    """The items of "a, f(b, 'c, d') AS e": split at commas outside brackets and quotes."""
    depth, start, is_quoted, items = 0, 0, False, []
    for place, sign in enumerate(listed):
        if sign == "'":
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and depth == 0:
            items.append(listed[start:place].strip())
            start = place + 1
    return [*items, listed[start:].strip()]
