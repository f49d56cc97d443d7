"""Which node of a call graph is the likeliest cause of a symptom. Pure: no state, no clock, nothing fitted.

The algorithm is Traversal (Hardt et al. 2023; Orchard et al. 2024, "Root Cause Analysis of Outliers with
Missing Structural Knowledge"), made gradual: a cause is a node that deviates, that its own callees do not
explain, and whose callers show it on a path of deviating nodes up to where the symptom is. Each of the three is
a factor between 0 and 1 instead of a yes or no (docs/decisions/0019 has the reasons and figures).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Robust deviations from which a series counts as deviating, and from which it shows what a neighbour has.
FAR = 4.0
SHOWS = 2.5
# What a series of traffic says of its own node: more and fewer calls are mostly somebody else's doing.
WEAK = 0.25
# Beyond this, farther off says nothing more: it says how still the series used to be.
FARTHEST = 50.0
# A node that no deviating path links with the symptom may still be it: a call that was not observed.
UNLINKED = 0.2


@dataclass(frozen=True)
class Deviation:
    """How one series stands against its own past; a larger `score` and `excess` are worse.

    `score` is in robust deviations of that past, `excess` in the series' own unit. `score_before` is that of the
    sample before (0: none). `is_weak`: the series counts traffic, which says little of its own node.
    """

    node: str
    metric: str
    statistic: str
    score: float
    excess: float
    score_before: float = 0.0
    is_weak: bool = False
    fact_id: str = ""


Calls = Iterable[tuple[str, str]]


def find_symptom(deviations: Sequence[Deviation], calls: Calls) -> Deviation | None:
    """The deviation at the place nearest to the users, or None when nothing is wrong that they could feel.

    A series is a symptom when it is FAR off and its users feel it: every node on a path from it up to one that
    nobody calls deviates too. Where nobody calls the node itself, it must be FAR off twice in a row or have a
    callee that is FAR off as well: one odd sample of one series is noise. What deviates alone deep in the graph
    is no symptom (it is a suspect as soon as there is one).
    """
    callers, callees = _neighbours(calls)
    worst = _worst_by_node(deviations)
    felt = _felt_nodes({d.node for d in deviations}, callers, callees, worst)
    found = [d for d in deviations if d.node in felt and _is_symptom(d, felt[d.node], callees, worst)]
    return min(
        found, key=lambda d: (felt[d.node], -d.score, d.node, d.metric, d.statistic), default=None
    )


def rank_suspects(
    deviations: Sequence[Deviation], calls: Calls, symptom_node: str, *, most: int = 10
) -> tuple[str, ...]:
    """Nodes that may have caused what shows at `symptom_node`, the likeliest first; none that stands out: empty.

    Of equally strong ones the one more calls away from the symptom comes first. `calls` may hold circles.
    """
    _, callees = _neighbours(calls)
    worst = _worst_by_node(deviations)
    linked = _linked(symptom_node, callees, worst)
    own: dict[str, float] = defaultdict(float)
    series = {(d.node, d.metric, d.statistic): d for d in deviations}
    for d in deviations:
        if d.score < SHOWS:
            continue
        strength = math.log2(1.0 + min(d.score, FARTHEST)) * (WEAK if d.is_weak else 1.0)
        unexplained = 1.0 - _explained(d, callees, series)
        own[d.node] = max(own[d.node], strength * unexplained)
    scores = {node: value * max(linked.get(node, 0.0), UNLINKED) for node, value in own.items() if value > 0.0}
    below = _calls_below(symptom_node, callees)
    # Rounded, so that what is as strong (at most FARTHEST off, unexplained) is told apart by who is called, not by a hair.
    return tuple(sorted(scores, key=lambda node: (-round(scores[node], 2), -below.get(node, 0), node))[:most])


def _neighbours(calls: Calls) -> tuple[Mapping[str, set[str]], Mapping[str, set[str]]]:
    callers: dict[str, set[str]] = defaultdict(set)
    callees: dict[str, set[str]] = defaultdict(set)
    for caller, callee in calls:
        if caller != callee:
            callees[caller].add(callee)
            callers[callee].add(caller)
    return callers, callees


def _worst_by_node(deviations: Sequence[Deviation]) -> Mapping[str, float]:
    """Node -> its largest score, 0 at least; traffic aside: a caller that merely calls more shows nothing."""
    worst: dict[str, float] = {}
    for d in deviations:
        worst[d.node] = max(worst.get(d.node, 0.0), 0.0 if d.is_weak else d.score)
    return worst


def _felt_nodes(
    nodes: set[str], callers: Mapping[str, set[str]], callees: Mapping[str, set[str]], worst: Mapping[str, float]
) -> Mapping[str, int]:
    """Nodes that a path of deviating nodes joins with one that nobody calls, and how many calls that takes.

    A node that tells nothing is passed. Where every node is called by another, each counts as called by nobody.
    """

    def shows(node: str) -> bool:
        return worst.get(node, SHOWS) >= SHOWS

    entries = {node for node in nodes | set(callees) if not callers.get(node)} or nodes
    felt: dict[str, int] = {}
    level, steps = {node for node in entries if shows(node)}, 0
    while level:
        felt |= dict.fromkeys(level, steps)
        called = {callee for node in level for callee in callees.get(node, ())}
        level = {node for node in called - set(felt) if shows(node)}
        steps += 1
    return felt


def _is_symptom(d: Deviation, depth: int, callees: Mapping[str, set[str]], worst: Mapping[str, float]) -> bool:
    if d.is_weak or d.score < FAR:
        return False
    return (
        depth > 0
        or d.score_before >= FAR
        or any(worst.get(callee, 0.0) >= FAR for callee in callees.get(d.node, ()))
    )


def _calls_below(node: str, callees: Mapping[str, set[str]]) -> Mapping[str, int]:
    """How many calls lead from `node` down to each node it reaches, at least."""
    below, level, steps = {node: 0}, {node}, 0
    while level:
        steps += 1
        level = {callee for caller in level for callee in callees.get(caller, ())} - set(below)
        below |= dict.fromkeys(level, steps)
    return below


def _linked(symptom_node: str, callees: Mapping[str, set[str]], worst: Mapping[str, float]) -> Mapping[str, float]:
    """How well deviating callers link each node with the symptom: the best path's product, 1 at the symptom.

    A caller that tells nothing links as well as one that is FAR off.
    """
    best = {symptom_node: 1.0}
    waiting = [symptom_node]
    while waiting:
        node = waiting.pop()
        passed = best[node] * (1.0 if node == symptom_node else min(1.0, worst.get(node, FAR) / FAR))
        for callee in callees.get(node, ()):
            if passed > best.get(callee, 0.0):
                best[callee] = passed
                waiting.append(callee)
    return best


def _explained(
    d: Deviation, callees: Mapping[str, set[str]], series: Mapping[tuple[str, str, str], Deviation]
) -> float:
    """The share of its excess that its worst callee has in the same metric, whose unit is the same."""
    if d.excess <= 0.0:
        return 0.0
    shares = [
        theirs.excess / d.excess
        for callee in callees.get(d.node, ())
        if (theirs := series.get((callee, d.metric, d.statistic))) is not None and theirs.score >= SHOWS
    ]
    return min(1.0, max(shares, default=0.0))
