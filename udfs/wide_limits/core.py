"""Limits wider than a subject, and circuit breakers: one place counts them for the whole domain.

Pure: claims and settlements in, in the order of the log; grants and moves of breakers out. `now` is
event time, the highest of any claim so far. A claim that comes again (after a crash) gets the grant it
got before, so the limits are exact under both deliveries.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from contracts.decision import Grant, Reason
from contracts.envelope import format_time_ms, parse_time_ms
from contracts.limit_claim import CircuitMoved, Claim, ClaimedLimit, Settlement
from contracts.policy import Circuit
from udfs.state import LIMIT_CLAIMS, LIMITS

# Claims whose grants are remembered at least, to answer them alike when they come again.
REMEMBERED = 20_000
# Longer keys stand as their digest.
_MAX_SCOPE = 1024


@dataclass
class Entry:
    """One claim as it was answered. `amounts`: scope -> what it takes of it; times are event time in ms."""

    number: int
    claim_id: str
    at_ms: int
    grant: dict[str, Any]
    amounts: dict[str, float] = field(default_factory=dict)
    within_ms: dict[str, int] = field(default_factory=dict)
    flights: list[str] = field(default_factory=list)
    lapses_ms: int = 0
    circuit: str = ""
    is_probe: bool = False
    is_settled: bool = False

    def keep_until_ms(self) -> int:
        """When no limit needs it any more."""
        windows = [self.at_ms + within_ms for within_ms in self.within_ms.values()]
        return max([*windows, 0 if self.is_settled else self.lapses_ms])


@dataclass
class Window:
    """What was granted of one scope within its window, oldest first; how many count, and their sum."""

    entries: deque[Entry] = field(default_factory=deque)
    count: int = 0
    total: float = 0.0


@dataclass
class Breaker:
    """One agent's one action. `failures`: when, in ms; `probe`: the claim let through while half open."""

    state: str = "closed"
    failures: list[int] = field(default_factory=list)
    opened_ms: int = 0
    probe: str = ""
    terms: dict[str, int] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a claim or settlement: a grant, moves of a breaker, and the entries that changed."""

    grant: Grant | None = None
    moves: list[CircuitMoved] = field(default_factory=list)
    changed: list[Entry] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)


class WideLimits:
    """Counts for one domain. Kept in memory; what changed is told, so that it can be stored entry by entry."""

    def __init__(self) -> None:
        self.clock_ms = 0
        self.breakers: dict[str, Breaker] = {}
        self._number = 0
        self._entries: dict[str, Entry] = {}
        self._windows: dict[str, Window] = {}
        self._flights: dict[str, dict[str, Entry]] = {}

    def head_to_json(self) -> str:
        """All but the entries."""
        return LIMITS.dump([self.clock_ms, self.breakers])

    @classmethod
    def restore(cls, head: str | None, entries: list[str]) -> WideLimits:
        """As it was when `head` and every entry were stored."""
        limits = cls()
        if head is not None:
            limits.clock_ms, breakers = LIMITS.load(head)
            limits.breakers = {name: Breaker(**raw) for name, raw in breakers.items()}
        for raw in sorted((LIMIT_CLAIMS.load(text) for text in entries), key=lambda raw: raw["number"]):
            limits._enter(Entry(**raw))
        return limits

    def _enter(self, entry: Entry) -> None:
        self._entries[entry.claim_id] = entry
        self._number = entry.number + 1
        for scope, amount in entry.amounts.items():
            window = self._windows.setdefault(scope, Window())
            window.entries.append(entry)
            window.count += 1
            window.total += amount
        if not entry.is_settled:
            for scope in entry.flights:
                self._flights.setdefault(scope, {})[entry.claim_id] = entry

    def claim(self, claim: Claim) -> Outcome:
        """Grant everything a claim asks for, or nothing of it."""
        known = self._entries.get(claim.claim_id)
        if known is not None:
            return Outcome(as_grant(known.grant))
        self.clock_ms = max(self.clock_ms, parse_time_ms(claim.at))
        done = Outcome()
        entry = Entry(self._number, claim.claim_id, self.clock_ms, {})
        if claim.outcome_within_s and claim.command_id:
            entry.lapses_ms = self.clock_ms + claim.outcome_within_s * 1000
        counters: dict[str, int | float] = {}
        why_not = self._circuit_refuses(claim, entry, done) if claim.circuit and claim.command_id else None
        for limit in claim.limits:
            why_not = why_not or self._limit_refuses(limit, counters)
        reason, told = why_not or (None, "")
        done.grant = Grant(
            claim_id=claim.claim_id, is_granted=why_not is None, reason=reason, explanation=told, counters=counters,
        )  # fmt: skip
        entry.grant = done.grant.model_dump(mode="json")
        if why_not is None:
            self._reserve(claim, entry, done)
        else:
            entry.lapses_ms, entry.circuit, entry.is_probe = 0, "", False
        self._enter(entry)
        done.changed.append(entry)
        done.forgotten += self._forget()
        return done

    def _reserve(self, claim: Claim, entry: Entry, done: Outcome) -> None:
        for limit in claim.limits:
            if limit.max_in_flight is not None:
                if claim.command_id is not None:
                    entry.flights.append(limit.scope)
            else:
                entry.amounts[limit.scope] = 1.0 if limit.max_count is not None else limit.asked or 0.0
                entry.within_ms[limit.scope] = (limit.within_s or 0) * 1000
        if entry.is_probe:
            breaker = self.breakers[entry.circuit]
            if breaker.state == "open":
                self._move(entry.circuit, "half_open", "it was open long enough; one probe is let through", claim.claim_id, done)
            breaker.probe = claim.claim_id

    def _limit_refuses(
        self, limit: ClaimedLimit, counters: dict[str, int | float]
    ) -> tuple[Reason, str] | None:
        if limit.max_in_flight is not None:
            flying = self._flights.get(limit.scope, {})
            for name in [name for name, entry in flying.items() if entry.lapses_ms <= self.clock_ms]:
                del flying[name]
            counters[f"in_flight of {limit.policy}"] = len(flying)
            if len(flying) >= limit.max_in_flight:
                told = f"{len(flying)} without outcome over all subjects, {limit.policy} lets at most {limit.max_in_flight}"
                return Reason.IN_FLIGHT_LIMIT, told
            return None
        within_s = limit.within_s or 0
        window = self._windows.get(limit.scope) or Window()
        since_ms = self.clock_ms - within_s * 1000
        while window.entries and window.entries[0].at_ms <= since_ms:
            self._leave(window.entries.popleft(), limit.scope, window)
        if not window.entries:
            window.total = 0.0  # no rounding is carried on
        if limit.max_total is not None:
            counters[f"spent within {within_s}s of {limit.policy}"] = window.total
            if limit.asked is None:
                return Reason.BUDGET_LIMIT, f"{limit.policy} has a budget of something this proposal does not name"
            if window.total + limit.asked > limit.max_total:
                told = (
                    f"{window.total:g} allowed within {within_s} s over all subjects, {limit.asked:g} more is over"
                    f" the {limit.max_total:g} of {limit.policy}"
                )
                return Reason.BUDGET_LIMIT, told
            return None
        count = window.count
        counters[f"allowed within {within_s}s of {limit.policy}"] = count
        if limit.max_count is not None and count >= limit.max_count:
            told = f"{count} allowed within {within_s} s over all subjects, {limit.policy} lets at most {limit.max_count}"
            return Reason.RATE_LIMIT, told
        return None

    def _circuit_refuses(self, claim: Claim, entry: Entry, done: Outcome) -> tuple[Reason, str] | None:
        assert claim.circuit is not None
        entry.circuit = f"{claim.agent}/{claim.action}"
        breaker = self.breakers.setdefault(entry.circuit, Breaker())
        breaker.terms = claim.circuit.model_dump()
        if breaker.state == "closed":
            return None
        open_until_ms = breaker.opened_ms + claim.circuit.open_s * 1000
        if breaker.state == "open" and self.clock_ms < open_until_ms:
            left_s = (open_until_ms - self.clock_ms) / 1000
            return Reason.CIRCUIT_OPEN, f"{entry.circuit} kept failing; open for another {left_s:.1f} s of event time"
        probe = self._entries.get(breaker.probe)
        is_waiting = probe is not None and not probe.is_settled and probe.lapses_ms > self.clock_ms
        if breaker.state == "half_open" and is_waiting:
            return Reason.CIRCUIT_OPEN, f"{entry.circuit} kept failing; its probe has no outcome yet"
        entry.is_probe = True
        return None

    def settle(self, settlement: Settlement) -> Outcome:
        """What became of a granted claim; one that is not known (lapsed, forgotten, a repeat) changes nothing."""
        done = Outcome()
        entry = self._entries.get(settlement.claim_id)
        if entry is None or entry.is_settled or not entry.grant["is_granted"]:
            return done
        entry.is_settled = True
        done.changed.append(entry)
        for scope in entry.flights:
            self._flights.get(scope, {}).pop(entry.claim_id, None)
        if settlement.what == "unused":
            self._correct(entry, 0.0, counts_too=True)
        elif settlement.cost is not None:
            self._correct(entry, settlement.cost, counts_too=False)
        if entry.circuit:
            self._feed(entry, settlement, done)
        return done

    def _correct(self, entry: Entry, cost: float, *, counts_too: bool) -> None:
        """Budgets take the real cost; an unused claim leaves every window."""
        for scope, amount in list(entry.amounts.items()):
            window = self._windows[scope]
            if counts_too:
                self._leave(entry, scope, window)
            elif _is_budget(scope):
                window.total += cost - amount
                entry.amounts[scope] = cost

    @staticmethod
    def _leave(entry: Entry, scope: str, window: Window) -> None:
        """It counts no more; one that left before its time stays in the window as nothing."""
        if scope in entry.amounts:
            window.count -= 1
            window.total -= entry.amounts.pop(scope)

    def _feed(self, entry: Entry, settlement: Settlement, done: Outcome) -> None:
        breaker = self.breakers[entry.circuit]
        said_ms = parse_time_ms(settlement.at)
        # A time after the command's lapse is not believed: one wild outcome must not stop an action for years.
        at_ms = max(self.clock_ms, said_ms) if said_ms <= entry.lapses_ms else self.clock_ms
        terms = Circuit.model_validate(breaker.terms)
        if entry.is_probe and breaker.probe == entry.claim_id and breaker.state == "half_open":
            breaker.probe = ""
            if settlement.what == "succeeded":
                breaker.failures = []
                self._move(entry.circuit, "closed", "its probe succeeded", entry.claim_id, done)
            elif settlement.what == "failed":
                breaker.opened_ms = at_ms
                self._move(entry.circuit, "open", "its probe failed", entry.claim_id, done)
            return
        if settlement.what != "failed" or breaker.state != "closed":
            return
        since_ms = at_ms - terms.within_s * 1000
        breaker.failures = [when for when in breaker.failures if when > since_ms] + [at_ms]
        if len(breaker.failures) >= terms.failures:
            breaker.opened_ms, breaker.failures = at_ms, []
            told = f"{terms.failures} failures within {terms.within_s} s"
            self._move(entry.circuit, "open", told, entry.claim_id, done)

    def _move(self, name: str, after: Any, because: str, claim_id: str, done: Outcome) -> None:
        breaker = self.breakers[name]
        agent, action = name.split("/")
        before: Any = breaker.state
        breaker.state = after
        done.moves.append(
            CircuitMoved(
                agent=agent, action=action, before=before, after=after, because=because, claim_id=claim_id,
                at=format_time_ms(self.clock_ms),
            )
        )  # fmt: skip

    def _forget(self) -> Iterator[str]:
        """Entries that no limit needs any more, the newest REMEMBERED kept to answer repeats."""
        while len(self._entries) > REMEMBERED:
            name, oldest = next(iter(self._entries.items()))
            if oldest.keep_until_ms() > self.clock_ms:
                return
            del self._entries[name]
            self._drop(oldest)
            yield name

    def _drop(self, oldest: Entry) -> None:
        """Out of every window, with the windows nobody is left in: there may be one for each value of a field."""
        for scope in oldest.within_ms:
            window = self._windows.get(scope)
            while window and window.entries and window.entries[0].number <= oldest.number:
                self._leave(window.entries.popleft(), scope, window)
            if window and not window.entries:
                del self._windows[scope]
        for scope in oldest.flights:
            if (flying := self._flights.get(scope)) is not None:
                flying.pop(oldest.claim_id, None)
                if not flying:
                    del self._flights[scope]


def scope_of(per: Mapping[str, object], within_s: int | None, counted: str) -> str:
    """The key under which what is alike is counted together; `counted`: count, in_flight or a budget's amount."""
    scope = orjson.dumps([counted, within_s, per], option=orjson.OPT_SORT_KEYS)
    if len(scope) > _MAX_SCOPE:  # features are texts of any length
        scope = orjson.dumps([counted, within_s, {"sha256": hashlib.sha256(scope).hexdigest()}])
    return scope.decode()


def _is_budget(scope: str) -> bool:
    return orjson.loads(scope)[0] not in ("count", "in_flight")


def as_grant(raw: Mapping[str, Any]) -> Grant:
    """A grant out of its JSON. Raises ValidationError, KeyError or ValueError for what is none."""
    reason = raw["reason"]
    return Grant.model_validate({**raw, "reason": None if reason is None else Reason(reason)})
