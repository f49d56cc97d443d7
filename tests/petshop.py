"""The shipped incidents of `data/incidents/` as the ranking sees them, and what caused them.

Deviations are computed here as sql/incidents/10_series_deviations.sql does, so that the ranking can be tried without
a cluster; tests/flink/test_incidents.py shows that SQL says the same.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from udfs.root_cause import Deviation

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "data" / "incidents"
WINDOW, GAP, ENOUGH = 289, 20, 20
Series = tuple[str, str, str]
Sample = list[tuple[Series, float]]


@cache
def calls() -> list[tuple[str, str]]:
    rows = csv.DictReader((SHIPPED / "graph.csv").read_text().splitlines())
    return [(row["from_node"], row["to_node"]) for row in rows]


@cache
def causes() -> Mapping[str, str]:
    """Incident -> the node where it was injected."""
    lines = (ROOT / "tests" / "data" / "petshop" / "ground_truth.jsonl").read_text().splitlines()
    return {found["incident_id"]: found["root_cause_node"] for found in map(json.loads, lines)}


def rows(name: str) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(gzip.decompress((SHIPPED / name).read_bytes()).decode()))


@cache
def normal() -> list[Sample]:
    return _samples(rows("normal.csv.gz"))


@cache
def incidents() -> Mapping[str, list[Sample]]:
    by_incident: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows("incidents.csv.gz"):
        by_incident[row["incident_id"]].append(row)
    return {name: _samples(found) for name, found in by_incident.items()}


def _samples(found: Iterable[Mapping[str, str]]) -> list[Sample]:
    by_time: dict[str, Sample] = defaultdict(list)
    for row in found:
        by_time[row["ts"]].append(((row["node"], row["metric"], row["statistic"]), float(row["value"])))
    return [by_time[ts] for ts in sorted(by_time)]


class Past:
    """What each series was, up to some samples ago."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._values: dict[Series, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW + GAP))
        self._scores: dict[Series, float] = {}
        for sample in samples:
            for series, value in sample:
                self._values[series].append(value)

    def deviations(self, sample: Sample) -> list[Deviation]:
        """The sample against the past, which it belongs to from now on."""
        found = []
        for series, value in sample:
            values = self._values[series]
            values.append(value)
            node, metric, statistic = series
            is_weak = metric == "requests"
            past = sorted(list(values)[:-GAP])
            score, excess = _score(past, value, is_weak=is_weak, is_worse_below=metric == "availability")
            before = self._scores.get(series, 0.0)
            self._scores[series] = score
            found.append(Deviation(node, metric, statistic, score, excess, score_before=before, is_weak=is_weak))
        return found


def _score(past: list[float], value: float, *, is_weak: bool, is_worse_below: bool) -> tuple[float, float]:
    if len(past) < ENOUGH:
        return 0.0, 0.0
    q05, q25, usual, q75, q95 = (_percentile(past, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95))
    excess = abs(value - usual) if is_weak else (usual - value if is_worse_below else value - usual)
    spread = max((q75 - q25) / 1.349, (q95 - q05) / 3.29, abs(usual) / 400)
    if spread > 0:
        return max(-1000.0, min(excess / spread, 1000.0)), excess
    return (8.0 if excess > 0 else 0.0), excess


def _percentile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
