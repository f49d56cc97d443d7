"""What a world answers to decisions, later in event time, put between the facts of an input."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from ops.world import Decided, DecisionOf, NewFact

# Decisions are asked for in batches of half a day, so that the emitter is not flushed for each.
BATCH_MS = 12 * 3_600_000
# After so many in a row that nobody decided, the world stops waiting: the loop is silent.
PATIENCE = 3
# When (event time, ms) a fact's decision is asked for, and by which key; None: it waits for none.
Awaits = Callable[[NewFact], tuple[int, str] | None]
# What follows from a fact, given its decision (None: never decided).
Follows = Callable[[NewFact, Decided | None], Iterable[NewFact]]


def with_answers(
    facts: Iterable[NewFact | None], decision_of: DecisionOf, awaits: Awaits, follows: Follows, *,
    until_ms: float = math.inf,
) -> Iterator[NewFact | None]:  # fmt: skip
    """The facts with what follows from decisions in between, in order of event time.

    `decision_of(key)` is asked once a fact that awaits one and may wait for the loop; None is given
    before, so that everything is sent. What would follow later than `until_ms` has not happened yet
    and is left out.
    """
    undecided: list[tuple[int, int, str, NewFact]] = []  # heap: by when the decision is asked for
    due: list[tuple[int, int, NewFact]] = []  # heap: what follows, by event time
    order = itertools.count()
    silent = 0

    def advance(now_ms: float) -> Iterator[NewFact | None]:
        nonlocal silent
        while True:
            if undecided and undecided[0][0] <= min(now_ms, due[0][0] if due else now_ms):
                yield None
                batch_ms = undecided[0][0] + BATCH_MS
                while undecided and undecided[0][0] <= batch_ms:
                    _, _, key, fact = heapq.heappop(undecided)
                    decided = None
                    if silent < PATIENCE:
                        decided = decision_of(key)
                        silent = silent + 1 if decided is None else 0
                    for answer in follows(fact, decided):
                        heapq.heappush(due, (answer.event_ms, next(order), answer))
            elif due and due[0][0] <= now_ms:
                yield heapq.heappop(due)[2]
            else:
                return

    for fact in facts:
        if fact is not None:
            yield from advance(min(fact.event_ms, until_ms))
        yield fact
        if fact is not None and (asked := awaits(fact)) is not None:
            heapq.heappush(undecided, (asked[0], next(order), asked[1], fact))
    yield from advance(until_ms)
