"""What follows from a decision, as the desk's log tells it later: the books, the post, the customer.

A day of event time after a generated case could be decided, its decision is asked for:

| decision allowed | the log goes on | after |
|---|---|---|
| `approve_application` | `A_APPROVED`, `A_ACTIVATED` | 1 and 2 h |
| `decline_application` | `A_DECLINED` | 1 h |
| `make_offer` | `O_CREATED`, `O_SENT` | 1 and 2 h |
| ... and the customer accepts | `O_SENT_BACK`, `O_ACCEPTED` | half a day to 8 days more |
| ... refuses | `O_DECLINED` | half a day to 8 days more |
| ... is late, and accepts | `O_SENT_BACK`, `O_ACCEPTED` | 12 to 16 days more |
| ... is silent | nothing | |

A decision that was denied, or waits for people, makes nothing happen here. A played file tells its own
story: nothing is added to it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator

from ops.world import DecisionOf, NewFact
from ops.worlds.loans_generator import DAY_MS, HOUR_MS, MINUTE_MS, CaseOpened, activity

DECIDED_AFTER_MS = DAY_MS
# Decisions are asked for in batches of half a day, so that the emitter is not flushed for each.
BATCH_MS = DAY_MS // 2
# After so many cases in a row that nobody decided, the world stops waiting: the loop is silent.
PATIENCE = 3


def with_answers(
    facts: Iterable[NewFact | None], decision_of: DecisionOf, *, until_ms: float = math.inf
) -> Iterator[NewFact | None]:
    """The facts with what follows from decisions in between, in order of event time.

    `decision_of(case)` is asked once a case and may wait for the loop; None is given before, so that
    everything is sent. What would follow later than `until_ms` has not happened yet and is left out.
    """
    undecided: list[tuple[int, int, CaseOpened]] = []  # heap: when the decision is asked for
    due: list[tuple[int, int, NewFact]] = []  # heap: what follows, by event time
    order = itertools.count()
    silent = 0

    def advance(now_ms: float) -> Iterator[NewFact | None]:
        nonlocal silent
        while True:
            if undecided and undecided[0][0] <= min(now_ms, due[0][0] if due else now_ms):
                yield None
                asked_ms = undecided[0][0]
                while undecided and undecided[0][0] <= asked_ms + BATCH_MS:
                    case = heapq.heappop(undecided)[2]
                    decided = None
                    if silent < PATIENCE:
                        decided = decision_of(case.subject)
                        silent = silent + 1 if decided is None else 0
                    for fact in what_follows(case, decided):
                        heapq.heappush(due, (fact.event_ms, next(order), fact))
            elif due and due[0][0] <= now_ms:
                yield heapq.heappop(due)[2]
            else:
                return

    for fact in facts:
        if fact is not None:
            yield from advance(min(fact.event_ms, until_ms))
        yield fact
        if isinstance(fact, CaseOpened):
            heapq.heappush(undecided, (fact.ready_ms + DECIDED_AFTER_MS, next(order), fact))
    yield from advance(until_ms)


def what_follows(case: CaseOpened, decided: tuple[str, str] | None) -> list[NewFact]:
    """The log of a case after its decision (verdict and action; None: never decided)."""
    if decided is None or decided[0] != "allow":
        return []
    at_ms = case.ready_ms + DECIDED_AFTER_MS

    def told(name: str, after_ms: int) -> NewFact:
        return activity(case.subject, at_ms + after_ms, name)

    match decided[1]:
        case "approve_application":
            return [told("A_APPROVED", HOUR_MS), told("A_ACTIVATED", 2 * HOUR_MS)]
        case "decline_application":
            return [told("A_DECLINED", HOUR_MS)]
        case "make_offer":
            sent = [told("O_CREATED", HOUR_MS), told("O_SENT", 2 * HOUR_MS)]
            answered_ms = 2 * HOUR_MS + case.answer_ms
            match case.answer:
                case "accepts" | "late":
                    back = told("O_SENT_BACK", answered_ms)
                    return [*sent, back, told("O_ACCEPTED", answered_ms + 30 * MINUTE_MS)]
                case "refuses":
                    return [*sent, told("O_DECLINED", answered_ms)]
                case "silent":
                    return sent
    return []
