"""A seeded loan desk: cases over some weeks, as its log would tell them up to the decision.

| share | kind of case |
|---|---|
| 35 % | taken at a counter: somebody hands it in with its amount |
| 40 % | handed in online, with its amount |
| 25 % | handed in online without an amount, which a call brings later |
| 4 % | handed in three times within the hour, each time for more |
| 4 % | an amount ten to sixteen times the usual |
| 9 % | going to and fro between two people |
| 3 % | withdrawn minutes after it was handed in |

The log says nothing of analysis, fraud checks, offers and decisions: those are left to the loop, and
what follows from them is played by ops/worlds/loans_customers.py. Pure and seeded: the same seed and
count give the same facts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from contracts.loans import ActivityRecorded
from ops.csv_time import parse_loose_time_ms
from ops.world import NewFact

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
START_MS = parse_loose_time_ms("2025-03-03T00:00:00Z")  # a Monday
CASES_PER_DAY = 12
FILED_AFTER_DAYS = 24
# ada, grace, edsger and barbara may approve loans (conf/loans/people.yaml); what they handled others must approve.
STAFF = ("ada", "grace", "edsger", "barbara", "donald", "4711", "4712")
USUAL_AMOUNT = 11_000.0
SPREAD = 0.8  # standard deviation of the amounts' logarithms

Answer = Literal["accepts", "refuses", "late", "silent"]
_ANSWERS: dict[Answer, int] = {"accepts": 45, "refuses": 15, "late": 10, "silent": 30}


@dataclass(frozen=True)
class CaseOpened(NewFact):
    """A generated case's first fact, with what its customer would do; that is never part of `data`.

    `ready_ms` is when its amount is known, so that it can be decided; `answer_ms` is how long after an
    offer its customer answers it.
    """

    ready_ms: int = 0
    answer: Answer = "silent"
    answer_ms: int = 0


def activity(
    case: str, event_ms: int, name: str, *, lifecycle: str = "COMPLETE", resource: str | None = None,
    amount: float | None = None,
) -> NewFact:  # fmt: skip
    """One row of the log."""
    told = {"activity": name, "lifecycle": lifecycle or None, "resource": resource, "amount": amount}
    data = {key: value for key, value in told.items() if value is not None}
    return NewFact(ActivityRecorded.event_type, case, event_ms, data, f"{event_ms}|{sorted(data.items())}")


def generate(seed: int, count: int) -> Iterator[NewFact]:
    """Whole cases, at most `count` facts (one case at least), in order of event time."""
    facts: list[NewFact] = []
    number = 0
    while len(more := _case(seed, number)) + len(facts) <= count or number == 0:
        facts += more
        number += 1
    facts.sort(key=lambda fact: fact.event_ms)  # stable: rows of one time keep their case's order
    return iter(facts)


def _case(seed: int, number: int) -> list[NewFact]:
    """One case: how it comes in, who works on it, and that it is filed in the end."""
    draw = random.Random(f"{seed}|{number}")
    case = f"L{seed}-{number:05d}"
    opened_ms = _opening_ms(draw, number)
    clerk, other = draw.sample(STAFF, 2)
    channel = draw.choices(("counter", "online", "call"), (35, 40, 25))[0]
    twist = draw.choices(("", "resubmitted", "far", "withdrawn"), (89, 4, 4, 3))[0]
    amount = _round(min(60_000.0, max(500.0, USUAL_AMOUNT * draw.lognormvariate(0, SPREAD))))
    if twist == "far":
        amount = _round(USUAL_AMOUNT * draw.uniform(10, 16))

    told, by = (None if channel == "call" else amount), (clerk if channel == "counter" else None)
    rows = [
        activity(case, opened_ms, "A_SUBMITTED", resource=by, amount=told),
        activity(case, opened_ms + 300, "A_PARTLYSUBMITTED", resource=by),
    ]
    now_ms = ready_ms = opened_ms + 300
    if twist == "resubmitted":
        for _ in range(2):
            now_ms += draw.randrange(5, 25) * MINUTE_MS
            amount = _round(amount * draw.uniform(1.1, 1.5))
            rows.append(activity(case, now_ms, "A_SUBMITTED", resource=by, amount=amount))
            ready_ms = now_ms
    if channel == "call":
        rows.append(activity(case, now_ms + 5_000, "W_CALL_FOR_AMOUNT", lifecycle="SCHEDULE"))
        now_ms += draw.randrange(30, 600) * MINUTE_MS
        rows.append(activity(case, now_ms, "W_CALL_FOR_AMOUNT", lifecycle="START", resource=clerk))
        now_ms += draw.randrange(2, 15) * MINUTE_MS
        rows.append(activity(case, now_ms, "W_CALL_FOR_AMOUNT", resource=clerk, amount=amount))
        ready_ms = now_ms
    if twist == "withdrawn":
        rows.append(activity(case, ready_ms + draw.randrange(2, 8) * MINUTE_MS, "A_CANCELLED"))
    else:
        rows += _work(draw, case, now_ms, clerk, other)
    rows.append(activity(case, opened_ms + FILED_AFTER_DAYS * DAY_MS, "W_FILE_CASE", lifecycle="complete"))

    answer: Answer = draw.choices(list(_ANSWERS), list(_ANSWERS.values()))[0]
    days = draw.uniform(12, 16) if answer == "late" else draw.uniform(0.5, 8)
    first = rows[0]
    rows[0] = CaseOpened(
        first.type, case, first.event_ms, first.data, first.identity, ready_ms, answer, int(days * DAY_MS)
    )
    return rows


def _work(draw: random.Random, case: str, since_ms: int, clerk: str, other: str) -> list[NewFact]:
    """The papers are looked through, by one person, by two, or to and fro between them."""
    turns = draw.choices(((clerk,), (clerk, other), (clerk, other, clerk, other)), (68, 23, 9))[0]
    rows = [activity(case, since_ms + 8 * MINUTE_MS, "A_PREACCEPTED")]
    if draw.random() < 0.1:  # a name nobody interprets, from a tool that knows no lifecycle
        rows.append(activity(case, since_ms + 9 * MINUTE_MS, "LETTER SCANNED", lifecycle=""))
    rows.append(activity(case, since_ms + 10 * MINUTE_MS, "W_CHECK_PAPERS", lifecycle="SCHEDULE"))
    now_ms = since_ms
    for person in turns:
        now_ms += draw.randrange(60, 600) * MINUTE_MS
        rows.append(activity(case, now_ms, "W_CHECK_PAPERS", lifecycle="START", resource=person))
        now_ms += draw.randrange(10, 60) * MINUTE_MS
        rows.append(activity(case, now_ms, "W_CHECK_PAPERS", resource=person))
    return rows


def _opening_ms(draw: random.Random, number: int) -> int:
    """Some minute between 7 and 21 h of the day this case falls on."""
    day = number // CASES_PER_DAY
    return START_MS + day * DAY_MS + draw.randrange(7 * 60, 21 * 60) * MINUTE_MS


def _round(amount: float) -> float:
    """To the next hundred, as people ask for loans."""
    return max(100.0, round(amount / 100) * 100.0)
