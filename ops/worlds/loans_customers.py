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

import math
from collections.abc import Iterable, Iterator

from ops.answers import with_answers
from ops.world import Decided, DecisionOf, NewFact
from ops.worlds.loans_generator import DAY_MS, HOUR_MS, MINUTE_MS, CaseOpened, activity

DECIDED_AFTER_MS = DAY_MS


def with_customers(
    facts: Iterable[NewFact | None], decision_of: DecisionOf, *, until_ms: float = math.inf
) -> Iterator[NewFact | None]:
    """The facts with what follows from decisions in between (ops/answers.py), one decision a case."""

    def awaits(fact: NewFact) -> tuple[int, str] | None:
        return (fact.ready_ms + DECIDED_AFTER_MS, fact.subject) if isinstance(fact, CaseOpened) else None

    def follows(fact: NewFact, decided: Decided | None) -> list[NewFact]:
        assert isinstance(fact, CaseOpened)
        return what_follows(fact, decided)

    return with_answers(facts, decision_of, awaits, follows, until_ms=until_ms)


def what_follows(case: CaseOpened, decided: Decided | None) -> list[NewFact]:
    """The log of a case after its decision (None: it was never decided)."""
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
