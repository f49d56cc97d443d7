"""The pure core of `reason`: what waits for a language model's agent, what is asked, and what it may take.

One desk an agent. It decides and keeps the books; it makes no call and reads no clock: time comes in as
wall milliseconds, events in, orders out.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from udfs.agents.definition import LlmAgent

MINUTE_MS = 60_000
DAY_MS = 86_400_000
# Why a model or the whole agent could not answer; as contracts/exchange.py `Concluded.why`.
Why = Literal["abstained", "budget", "circuit_open", "deadline", "failed", "malformed", "expired", "no_prompt"]
# Turns of a level of fallback: level * TURNS + question, so that a recorded turn tells its level.
TURNS = 100


@dataclass
class Call:
    """A situation that an agent is asked about, from its arrival to its conclusion. Kept in Flink's state.

    `record` is the situation's place and text: key, value, topic, partition, offset. `level` counts
    whom it was given up with: 0 the agent's own model, then `fallback` in its order. `is_answered`: a reply
    at this level was recorded before a restart, so it is used whatever time has passed. `starts`: 0 until it is
    asked, then 1 and one more each time it was lost in flight. `asked_at_ms`: when its first level was asked, 0 until
    then; its deadline counts from there. `reserved_at_ms`: when its latest level was.
    """

    call_id: str
    situation_id: str
    subject: str
    event_ms: int
    expiry_ms: int | None
    arrived_ms: int
    appended_ms: int
    record: list[Any]
    size: int
    level: int = 0
    is_asked: bool = False
    is_answered: bool = False
    starts: int = 0
    reserved: int = 0
    reserved_cost: float = 0.0
    reserved_at_ms: int = 0
    taken: dict[str, float] = field(default_factory=dict)
    asked_at_ms: int = 0
    last_turn: int | None = None
    troubles: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Start:
    """Ask this model about the call; give up at `until_ms`, or when `tokens` or `cost` are taken."""

    call: Call
    model: str
    until_ms: int
    tokens: float = math.inf
    cost: float = math.inf


@dataclass(frozen=True)
class Conclude:
    """Nobody else is asked: the rule agent `agent` speaks, or nobody (None)."""

    call: Call
    agent: str | None
    why: Why
    explanation: str


Order = Start | Conclude


class Window:
    """Tokens and cost of the last `last_ms`, sliding by `bucket_ms`; a bucket that began before is not counted."""

    def __init__(self, last_ms: int, bucket_ms: int, buckets: dict[str, list[float]] | None = None) -> None:
        self._last_ms, self._bucket_ms = last_ms, bucket_ms
        self._buckets: dict[int, list[float]] = {int(b): list(v) for b, v in (buckets or {}).items()}

    def to_dict(self) -> dict[str, list[float]]:
        return {str(bucket): entry for bucket, entry in self._buckets.items()}

    def add(self, at_ms: int, tokens: float, cost: float) -> None:
        entry = self._buckets.setdefault(at_ms // self._bucket_ms, [0.0, 0.0])
        entry[0] += tokens
        entry[1] += cost

    def latest_ms(self) -> int:
        """When the latest bucket began; 0 without one."""
        return max(self._buckets, default=0) * self._bucket_ms

    def taken(self, now_ms: int) -> tuple[float, float]:
        first = self._first(now_ms)
        found = [entry for bucket, entry in self._buckets.items() if bucket >= first]
        return sum(e[0] for e in found), sum(e[1] for e in found)

    def forget(self, now_ms: int) -> None:
        first = self._first(now_ms)
        for bucket in [b for b in self._buckets if b < first]:
            del self._buckets[bucket]

    def _first(self, now_ms: int) -> int:
        return (now_ms - self._last_ms) // self._bucket_ms + 1


class Books:
    """What calls took in the last minute (to the second) and the last day (to the minute)."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.minute = Window(MINUTE_MS, 1000, state.get("seconds"))
        self.day = Window(DAY_MS, MINUTE_MS, state.get("minutes"))

    def to_dict(self) -> dict[str, Any]:
        return {"seconds": self.minute.to_dict(), "minutes": self.day.to_dict()}

    def latest_ms(self) -> int:
        """These books were kept then, or later."""
        return max(self.minute.latest_ms(), self.day.latest_ms())

    def add(self, at_ms: int, tokens: float, cost: float) -> None:
        for window in (self.minute, self.day):
            window.add(at_ms, tokens, cost)

    def forget(self, now_ms: int) -> None:
        for window in (self.minute, self.day):
            window.forget(now_ms)


class Desk:
    """The work of one agent. `state` is what `to_dict` gave; calls are kept apart, one by one."""

    def __init__(
        self, agent: LlmAgent, state: dict[str, Any] | None = None, calls: Iterable[dict[str, Any]] = ()
    ) -> None:
        state = state or {}
        self.agent = agent
        self.books = Books(state)
        # model -> failures in a row, and until when none is made (0: none failed for good yet)
        self._failures: dict[str, int] = dict(state.get("failures", {}))
        self._open_until: dict[str, int] = dict(state.get("open_until", {}))
        self._takes_ms: dict[str, float] = dict(state.get("takes_ms", {}))  # model -> what an answer takes lately
        self._probing: set[str] = set()
        self.calls: dict[str, Call] = {}
        self._in_flight = 0
        # Heap of what waits: whether it was never asked, since when it was asked or waits, order, call id. What was begun
        # goes before what was not, so the first one's deadline is the first to pass.
        self._queue: list[tuple[bool, int, int, str]] = []
        self._order_of = itertools.count()
        # Of each subject that calls are of: how many, and the newest event time of those that came meanwhile.
        self._of_subject: dict[str, tuple[int, int]] = {}
        for raw in sorted(calls, key=lambda raw: raw["arrived_ms"]):
            call = Call(**raw)
            if call.is_asked:  # in flight when its TaskManager was lost: it is in flight no more
                self._give_back(call)
                call.is_asked = False
                call.starts += 1
            self.take(call)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.books.to_dict(),
            "failures": self._failures,
            "open_until": self._open_until,
            "takes_ms": self._takes_ms,
        }

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def waiting(self) -> int:
        return len(self.calls) - self._in_flight

    def take(self, call: Call) -> None:
        """A new call waits."""
        self.calls[call.call_id] = call
        count, newest_ms = self._of_subject.get(call.subject, (0, call.event_ms))
        self._of_subject[call.subject] = count + 1, max(newest_ms, call.event_ms)
        self._wait(call)

    def _wait(self, call: Call) -> None:
        since_ms = call.asked_at_ms or call.arrived_ms
        heapq.heappush(self._queue, (not call.asked_at_ms, since_ms, next(self._order_of), call.call_id))

    def _drop(self, call: Call) -> None:
        del self.calls[call.call_id]
        count, newest_ms = self._of_subject.pop(call.subject)
        if count > 1:
            self._of_subject[call.subject] = count - 1, newest_ms

    def unknown_since_ms(self) -> int:
        """After a restart: from when on something of its calls may be recorded that is not in this state. Raises ValueError without calls."""
        # What was never asked was not while the books were kept; a conclusion of it may have been under way for a minute.
        kept_ms = self.books.latest_ms() - MINUTE_MS
        return min(_unknown_since_ms(call, kept_ms) for call in self.calls.values())

    def give_up(self, call: Call) -> None:
        """It was concluded before a restart: nothing is to be asked."""
        self._drop(call)

    def orders(self, now_ms: int, *, room: int, has_prompt: bool) -> Iterator[Order]:
        """What is to be done now with what waits, oldest first; `room`: how many calls may start.

        What expired before its first turn came is dropped, whether anything may start or not. A call that may not start yet
        is left as it is: it may be another model's when its turn comes.
        """
        while self._queue:
            call = self.calls.get(self._queue[0][3])
            if call is None or call.is_asked:  # dropped meanwhile
                heapq.heappop(self._queue)
                continue
            has_room = room > 0 and self._in_flight < self.agent.concurrency
            order = self._order(call, now_ms, has_room=has_room, has_prompt=has_prompt)
            if order is None:
                return  # neither can those behind it start, nor is their deadline past
            heapq.heappop(self._queue)
            if isinstance(order, Start):
                room -= 1
            else:
                self._drop(call)
            yield order

    def _order(self, call: Call, now_ms: int, *, has_room: bool, has_prompt: bool) -> Order | None:
        if self._is_expired(call, now_ms):
            return _expired(call)
        level, is_answered, troubles = call.level, call.is_answered, [*call.troubles]
        if is_answered and self._at(level)[0] is None:  # its models were others when it was answered
            level, is_answered, troubles = 0, False, []
        deadline_ms = int(self.agent.deadline_s * 1000)
        until_ms = (now_ms if is_answered else call.asked_at_ms or now_ms) + deadline_ms
        while True:
            model, rule = self._at(level)
            trouble: tuple[Why, str] | None = None
            if model is None:
                call.level, call.is_answered, call.troubles = level, is_answered, troubles
                told = "; ".join(troubles) or "nobody could be asked"
                return Conclude(call, rule, first_why(troubles), told[:1000])
            if not has_prompt:
                trouble = "no_prompt", f"no active prompt {self.agent.prompt!r}"
            elif is_answered:
                pass  # paid already
            elif call.asked_at_ms and now_ms + self._least_ms(model) >= until_ms:
                trouble = "deadline", f"the {self.agent.deadline_s:g} s since it was first asked leave no time for an answer"
            elif (open_until := self._open_until.get(model, 0)) and (now_ms < open_until or model in self._probing):
                trouble = "circuit_open", f"{model} failed {self.agent.circuit.failures} times in a row"
            elif told := self._over_budget(call.size, level, now_ms):
                trouble = "budget", told
            if trouble is None:
                if not has_room:
                    return None
                if self._open_until.get(model):
                    self._probing.add(model)
                call.level, call.is_answered, call.troubles = level, is_answered, troubles
                call.is_asked, call.asked_at_ms = True, call.asked_at_ms or now_ms
                call.starts = max(1, call.starts)
                tokens, cost = self._left(now_ms)
                call.reserved, call.reserved_cost = self._may_take(call.size, level)
                call.reserved_at_ms = now_ms
                self.books.add(now_ms, call.reserved, call.reserved_cost)
                self._in_flight += 1
                return Start(call, model, until_ms, tokens, cost)
            troubles.append(f"{trouble[0]}: {trouble[1]}")
            level += 1

    def _least_ms(self, model: str) -> float:
        """How much time a call must have left to be worth its price: what an answer took lately, at most half of all."""
        return min(self._takes_ms.get(model, 0.0), self.agent.deadline_s * 500)

    def _is_expired(self, call: Call, now_ms: int) -> bool:
        """Whether it was never asked, and its subject is past its expiry or it waited for longer than it was of use."""
        if call.expiry_ms is None or call.asked_at_ms or call.is_answered:
            return False
        _, newest_ms = self._of_subject[call.subject]
        return newest_ms > call.expiry_ms or now_ms > call.arrived_ms + (call.expiry_ms - call.event_ms)

    def _at(self, level: int) -> tuple[str | None, str | None]:
        """The model to ask at this level, or the rule agent to speak; neither: nobody is left."""
        if level == 0:
            return self.agent.model, None
        if level <= len(self.agent.fallback):
            fallback = self.agent.fallback[level - 1]
            return fallback.model, fallback.agent
        return None, None

    def prices(self, level: int) -> tuple[float, float]:
        """For a million tokens in and out of the model asked at this level."""
        of = self.agent.budget if level == 0 else self.agent.fallback[level - 1]
        return of.price_in, of.price_out

    def _may_take(self, size: int, level: int) -> tuple[int, float]:
        """Tokens and cost of one question of this size at this level."""
        price_in, price_out = self.prices(level)
        cost = (size * price_in + self.agent.max_tokens * price_out) / 1e6
        return size + self.agent.max_tokens, cost

    def _give_back(self, call: Call) -> None:
        """What was reserved, out of the minute it was reserved in: no other minute may come to less than was taken."""
        self.books.add(call.reserved_at_ms or call.arrived_ms, -call.reserved, -call.reserved_cost)
        call.reserved, call.reserved_cost = 0, 0.0

    def _bounds(self) -> tuple[tuple[Window, int | None, float | None, str], ...]:
        """What is bounded: the time, its tokens, its cost, its name."""
        budget = self.agent.budget
        return (
            (self.books.minute, budget.tokens_per_minute, budget.cost_per_minute, "minute"),
            (self.books.day, budget.tokens_per_day, budget.cost_per_day, "day"),
        )

    def _left(self, now_ms: int) -> tuple[float, float]:
        """Tokens and cost that nobody has taken or reserved."""
        tokens = cost = math.inf
        for window, tokens_bound, cost_bound, _ in self._bounds():
            if tokens_bound is None and cost_bound is None:
                continue
            taken_tokens, taken_cost = window.taken(now_ms)
            tokens = min(tokens, math.inf if tokens_bound is None else tokens_bound - taken_tokens)
            cost = min(cost, math.inf if cost_bound is None else cost_bound - taken_cost)
        return tokens, cost

    def _over_budget(self, size: int, level: int, now_ms: int) -> str:
        """What a call of this size would overdraw at this level; empty: nothing."""
        tokens, cost = self._may_take(size, level)
        for window, tokens_bound, cost_bound, name in self._bounds():
            if tokens_bound is None and cost_bound is None:
                continue
            taken_tokens, taken_cost = window.taken(now_ms)
            if tokens_bound is not None and taken_tokens + tokens > tokens_bound:
                return f"{taken_tokens:.0f} of {tokens_bound} tokens a {name} taken, this call may take {tokens}"
            if cost_bound is not None and taken_cost + cost > cost_bound:
                return f"{taken_cost:g} of {cost_bound:g} cost a {name} taken, this call may take {cost:g}"
        return ""

    def spent(self, call: Call, at_ms: int, tokens: int, cost: float) -> None:
        """A question was answered: what it took takes the place of what was reserved."""
        self._give_back(call)
        self.books.add(at_ms, tokens, cost)

    def ended(self, call: Call, now_ms: int, trouble: tuple[Why, str] | None) -> None:
        """The call came back: concluded (`trouble` None), or its next level is due."""
        model, _ = self._at(call.level)
        assert model is not None
        self._in_flight -= 1
        self._probing.discard(model)
        if call.reserved:
            self._give_back(call)
        self.books.forget(now_ms)
        if trouble is None and call.reserved_at_ms:
            took_ms = now_ms - call.reserved_at_ms
            self._takes_ms[model] = took_ms + 0.8 * (self._takes_ms.get(model, took_ms) - took_ms)
        if trouble is None or trouble[0] == "malformed":  # it answered
            self._failures.pop(model, None)
            self._open_until.pop(model, None)
        elif trouble[0] in ("failed", "deadline"):
            failures = self._failures[model] = self._failures.get(model, 0) + 1
            if failures >= self.agent.circuit.failures:
                self._open_until[model] = now_ms + int(self.agent.circuit.open_s * 1000)
        if trouble is None:
            self._drop(call)
        else:
            call.is_asked = call.is_answered = False
            call.troubles.append(f"{trouble[0]}: {trouble[1]}"[:300])
            call.level += 1
            self._wait(call)


def first_why(troubles: Sequence[str]) -> Why:
    """The first trouble of a call says why; the later ones are told with it."""
    return troubles[0].partition(":")[0] if troubles else "failed"  # type: ignore[return-value]


def _unknown_since_ms(call: Call, kept_ms: int) -> int:
    if call.is_answered:  # it is not known when
        return call.appended_ms
    return call.asked_at_ms or max(call.arrived_ms, kept_ms)


def _expired(call: Call) -> Conclude:
    return Conclude(call, None, "expired", "its expirytime passed while it waited for its turn")
