"""A simulated system: services that call each other, and what they measure under faults and remedies.

Pure and seeded. Requests run down the graph; latency, errors run up it: a node's latency is its own and
that of the calls a request makes, a request fails when the node or a call of it fails. So a fault shows at
every caller above it, most of all where it is, and in the end at the entry.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import pi, sin
from typing import Any, Literal

from jobs.settings import ROOT
from udfs.yaml_file import read_yaml

Kind = Literal["service", "store", "external"]
DRAWN_FROM = ROOT / "data" / "incidents" / "simulated.yaml"
# Requests a second at the entry, on average over a day, and how far a day swings around that.
USUAL_RATE = 40.0
SWING = 0.2
DAY_S = 86_400
INSTANCES = 4


@dataclass(frozen=True)
class Node:
    """`own_s` is its own share of latency, seconds; `busy` its usual saturation (0 to 1)."""

    name: str
    kind: Kind
    own_s: float
    busy: float


@dataclass(frozen=True)
class System:
    """`nodes`: callers before those they call, the entry first. `calls`: caller -> callee -> calls a request."""

    name: str
    nodes: tuple[Node, ...]
    calls: Mapping[str, Mapping[str, float]]

    @property
    def entry(self) -> str:
        return self.nodes[0].name

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def callers(self, name: str) -> list[str]:
        return [caller for caller, callees in self.calls.items() if name in callees]

    def calls_a_request(self) -> dict[str, float]:
        """How often a node is called for one request at the entry."""
        found = {node.name: 0.0 for node in self.nodes}
        found[self.entry] = 1.0
        for node in self.nodes:
            for callee, calls in self.calls.get(node.name, {}).items():
                found[callee] += found[node.name] * calls
        return found


@dataclass(frozen=True)
class Effects:
    """What is wrong (or was done) now, by node: more own latency (s), own errors (share), instances more or less."""

    extra_s: Mapping[str, float]
    errors: Mapping[str, float]
    instances: Mapping[str, int]


HEALTHY = Effects({}, {}, {})


@dataclass(frozen=True)
class Measured:
    """One node over one period: seconds, share of requests, requests, share of capacity."""

    latency_s: float
    errors: float
    requests: float
    saturation: float


def behave(system: System, effects: Effects, rate: float) -> dict[str, Measured]:
    """Every node under `rate` requests a second at the entry, without noise; requests are a second's."""
    calls = system.calls_a_request()
    found: dict[str, Measured] = {}
    for node in reversed(system.nodes):  # callees first
        instances = max(1, INSTANCES + effects.instances.get(node.name, 0))
        saturation = node.busy * rate / USUAL_RATE * INSTANCES / instances
        latency_s = node.own_s + effects.extra_s.get(node.name, 0.0)
        succeeds = 1 - effects.errors.get(node.name, 0.0)
        for callee, times in system.calls.get(node.name, {}).items():
            latency_s += times * found[callee].latency_s
            succeeds *= 1 - min(1.0, times) * found[callee].errors
        found[node.name] = Measured(latency_s, 1 - succeeds, rate * calls[node.name], saturation)
    return found


def samples(
    system: System, effects: Effects, draw: random.Random, *, at_s: float, interval_s: float
) -> Iterator[tuple[str, str, str, float]]:
    """node, metric, statistic, value of one period, by name: with noise, a fixed number of draws a node."""
    rate = USUAL_RATE * (1 + SWING * sin(2 * pi * at_s / DAY_S)) * draw.gauss(1, 0.02)
    found = behave(system, effects, rate)
    for node in sorted(system.nodes, key=lambda node: node.name):
        measured = found[node.name]
        by, failing, slow, busy = draw.gauss(1, 0.015), draw.random(), draw.gauss(1, 0.04), draw.gauss(1, 0.02)
        requests = max(1, round(measured.requests * interval_s * by))
        errors = min(1.0, measured.errors + 0.001 * failing)
        yield node.name, "availability", "Average", round(100 * (1 - errors), 4)
        yield node.name, "latency", "Average", round(max(0.0005, measured.latency_s * slow), 6)
        yield node.name, "requests", "Sum", float(requests)
        if node.kind != "external":  # nobody tells how busy another's system is
            yield node.name, "saturation", "Average", round(100 * min(1.0, measured.saturation * busy), 2)


@cache
def drawn_from() -> dict[str, Any]:
    """Names and texts (data/incidents/simulated.yaml)."""
    found = read_yaml(DRAWN_FROM)
    assert isinstance(found, dict)
    return found


def draw_system(seed: int) -> System:
    """An entry, three or four services behind it, as many behind those, and what they all keep or ask."""
    draw, names = random.Random(f"{seed}|system"), drawn_from()
    services = draw.sample(names["services"], draw.choice((7, 8, 9)))
    front, back = services[:4], services[4:]
    nodes: dict[str, Node] = {}
    calls: dict[str, dict[str, float]] = {}

    def add(name: str, kind: Kind, fastest_s: float, slowest_s: float) -> str:
        nodes[name] = Node(
            name, kind, round(draw.uniform(fastest_s, slowest_s), 4), round(draw.uniform(0.35, 0.55), 2)
        )
        return name

    def connect(caller: str, callee: str, least: float, most: float) -> None:
        calls.setdefault(caller, {})[callee] = round(draw.uniform(least, most), 2)

    entry = add(names["entry"], "service", 0.01, 0.02)
    for name in (*front, *back):
        add(name, "service", 0.01, 0.04)
    for name in front:
        connect(entry, name, 0.3, 0.9)
    for number, name in enumerate(back):
        for caller in dict.fromkeys((front[number % len(front)], draw.choice(front))):
            connect(caller, name, 0.3, 0.9)
    keepers = [name for name in (*front, *back) if name not in calls]  # leaves keep something
    keepers += draw.sample([name for name in services if name not in keepers], 2)
    for number, name in enumerate(keepers):
        kind = "db" if number < 2 else draw.choice(names["stores"])
        connect(name, add(f"{name}-{kind}", "store", 0.002, 0.012), 0.8, 2.5)
    for name in draw.sample(names["externals"], draw.choice((1, 2))):
        connect(draw.choice(back), add(name, "external", 0.05, 0.1), 0.3, 0.7)
    return System(f"shop-{seed}", tuple(nodes.values()), calls)
