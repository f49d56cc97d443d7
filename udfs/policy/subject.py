"""What `govern` keeps per subject."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from contracts.data import ActionParameters
from udfs.policy.approval import Hold
from udfs.policy.arbitration import Contest
from udfs.policy.reading import Reported
from udfs.state import SUBJECT

# Ends of holds remembered per subject.
MAX_CLOSED = 32
# Commands per subject whose outcomes settle claims on wider limits.
MAX_CLAIMS = 256
# Outcomes per subject kept until their commands are known.
MAX_EARLY = 8
# Before a claim's id, where the cost of its command corrects none of its budgets; ids are hexadecimal.
_AS_RESERVED: Final = "as reserved: "
# One thing that was allowed: when; with what limits may ask for, where one asks for more than that.
Allowed = int | list[Any]


class Settled(NamedTuple):
    """The claim on wider limits that an outcome settles, and the cost its budgets take."""

    claim_id: str
    cost: float | None


@dataclass
class SubjectState:
    """What `govern` keeps per subject. Times are event time in ms.

    clock_ms: the highest accepted event time.
    allowed: action -> what was allowed, in the order of time: ms, or, while a limit counts by more
        than subject and action, [ms, agent, {variable: value}, command id, cost its outcome told] (and of what it is: limits.py);
        kept as long as the longest limit looks back, at least a day.
    in_flight: command id -> [action, lapses_ms, cooldown_ms, what is done (`deed`)], until its outcome or
        its lapse.
    cooling_ms: deed -> until when it waits after a failure.
    chains: the last ones, [ms, correlation id, agent, deed, hops] of what was commanded.
    decisions, head: how many were made, and the SHA-256 of the last one's bytes.
    outcomes_offset: the last outcome applied.
    holds: approval id -> what waits for people (times of people are wall time in ms).
    closed: approval id -> how it ended, of the last holds.
    claims: command id -> the claim on wider limits that its outcome settles.
    waits_for: the claim that must be granted before anything else about the subject is read.
    waits_since_ms: the wall clock when its record was taken; asked_ms: when it was made last. grants: those it got already for the same record.
    contests: proposals that wait for others that conflict.
    versions: variable -> the highest value seen, of those policies tell the subject's version by.
    has_older_ids, turns_of_untimed: where ids of proposals seen may lie (udfs/policy/seen.py).
    early: command id -> [has it failed, its event time, its cost], the last outcomes whose command is not known: after a
        crash an outcome may be read before its proposal is decided again.
    """

    clock_ms: int = 0
    allowed: dict[str, list[Allowed]] = field(default_factory=dict)
    in_flight: dict[str, list[Any]] = field(default_factory=dict)
    cooling_ms: dict[str, int] = field(default_factory=dict)
    chains: list[list[Any]] = field(default_factory=list)
    decisions: int = 0
    head: str | None = None
    outcomes_offset: int = -1
    holds: dict[str, Hold] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    waits_for: str = ""
    waits_since_ms: int = 0
    asked_ms: int = 0
    grants: dict[str, dict[str, Any]] = field(default_factory=dict)
    contests: list[Contest] = field(default_factory=list)
    versions: dict[str, float] = field(default_factory=dict)
    has_older_ids: bool = False
    turns_of_untimed: int = 0
    early: dict[str, list[Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        return SUBJECT.dump(
            [self.clock_ms, self.allowed, self.in_flight, self.cooling_ms, self.chains,
             self.decisions, self.head, self.outcomes_offset, self.holds, self.closed,
             self.claims, self.waits_for, self.waits_since_ms, self.asked_ms,
             self.grants, self.contests, self.versions, self.has_older_ids, self.turns_of_untimed,
             self.early]
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str | None) -> SubjectState:
        if text is None:
            return cls()
        state = cls(*SUBJECT.load(text))
        state.holds = {name: Hold.from_dict(raw) for name, raw in state.holds.items()}  # type: ignore[arg-type]
        state.contests = [Contest(**raw) for raw in state.contests]  # type: ignore[arg-type]
        return state

    def go_on_to(self, event_ms: int) -> None:
        """The clock goes on, if that is later. What people commanded before there was one counts from its beginning."""
        if event_ms <= self.clock_ms:
            return
        if not self.clock_ms:
            self.allowed = {
                action: [event_ms if isinstance(entry, int) else [event_ms, *entry[1:]] for entry in allowed]
                for action, allowed in self.allowed.items()
            }
            for flight in self.in_flight.values():
                flight[1] += event_ms
            for chain in self.chains:
                chain[0] = event_ms
            self.cooling_ms = {done: until + event_ms for done, until in self.cooling_ms.items()}
        self.clock_ms = event_ms

    def claim(self, command_id: str, claim_id: str, *, takes_cost: bool = True) -> None:
        """The command's outcome will settle this claim, with its cost or without; the oldest are forgotten."""
        self.claims[command_id] = claim_id if takes_cost else _AS_RESERVED + claim_id
        while len(self.claims) > MAX_CLAIMS:
            del self.claims[next(iter(self.claims))]

    def see(self, features: Mapping[str, object], versioned_by: Sequence[str]) -> bool:
        """Note the subject's version where `features` tell it; whether it is a new one."""
        is_new = False
        for variable in versioned_by:
            value = features.get(variable.removeprefix("feature_"))
            if isinstance(value, (int, float)) and value > self.versions.get(variable, float("-inf")):
                self.versions[variable] = float(value)
                is_new = True
        return is_new

    def close(self, approval_id: str, how: str) -> None:
        """A hold has ended; its end is remembered for those who answer late."""
        del self.holds[approval_id]
        self.closed[approval_id] = how
        while len(self.closed) > MAX_CLOSED:
            del self.closed[next(iter(self.closed))]

    def next_deadline_ms(self) -> int | None:
        """When people or other proposals are waited for no longer, on the wall clock; None: nobody is."""
        if not self.holds and not self.contests:
            return None
        deadlines = [hold.deadline_ms() for hold in self.holds.values()]
        return min([*deadlines, *(contest.closes_wall_ms for contest in self.contests)])

    def count(self, action: str, within_ms: int) -> int:
        """How many were allowed in the last `within_ms` of event time, the present included."""
        allowed = self.allowed.get(action)
        if not allowed:
            return 0
        since = self.clock_ms - within_ms
        if _at(allowed[0]) > since:  # nearly always: all of them, or none
            return len(allowed)
        if _at(allowed[-1]) <= since:
            return 0
        return len(allowed) - bisect_right(allowed, since, key=_at)

    def within(self, within_ms: int) -> list[tuple[str, Allowed]]:
        """Everything allowed in the last `within_ms`, with its action."""
        since = self.clock_ms - within_ms
        return [
            (action, entry)
            for action, allowed in self.allowed.items()
            for entry in allowed[bisect_right(allowed, since, key=_at) :]
        ]

    def remember(self, action: str, keep_ms: int, detail: Sequence[object] = ()) -> None:
        """One more was allowed now: also what is late, or was held, counts from now on."""
        allowed = self.allowed.setdefault(action, [])
        allowed.append([self.clock_ms, *detail] if detail else self.clock_ms)
        del allowed[: bisect_right(allowed, self.clock_ms - keep_ms, key=_at)]

    def flying(self) -> list[list[Any]]:
        """The commands without outcome that have not lapsed; forgets the others."""
        lapsed = [name for name, flight in self.in_flight.items() if flight[1] <= self.clock_ms]
        for name in lapsed:
            del self.in_flight[name]
        return list(self.in_flight.values())

    def report(self, reported: Reported, offset: int) -> Settled | None:
        """Take an outcome in; gives the claim that it settles, if one.

        One whose command is not known (lapsed, a repeat, or not decided yet) is kept for a while.
        """
        self.outcomes_offset = offset
        command_id = reported.command_id
        if command_id not in self.in_flight and command_id not in self.claims:
            self.early[command_id] = [reported.has_failed, reported.event_ms, reported.cost]
            while len(self.early) > MAX_EARLY:
                del self.early[next(iter(self.early))]
        return self.settle(command_id, reported.has_failed, reported.event_ms, reported.cost)

    def settle(self, command_id: str, has_failed: bool, event_ms: int, cost: float | None) -> Settled | None:
        """What an outcome changes: its command is no longer in flight; a failure starts the cool-down.

        A cost takes the place of what budgets had reserved. A time after the command's lapse is not believed: whatever
        actuators say, nothing cools down for years. Gives the claim that is settled, if one.
        """
        settled = _settled(self.claims.pop(command_id, None), cost)
        flight = self.in_flight.pop(command_id, None)
        if flight is not None and has_failed and flight[2]:
            failed_ms = event_ms if event_ms <= flight[1] else self.clock_ms
            until, done = failed_ms + flight[2], deed_of(flight)
            self.cooling_ms = {name: at for name, at in self.cooling_ms.items() if at > self.clock_ms}
            self.cooling_ms[done] = max(self.cooling_ms.get(done, 0), until)
        if cost is None:
            return settled
        for allowed in self.allowed.values():
            for entry in allowed:
                if isinstance(entry, list) and entry[3] == command_id:
                    entry[4] = cost
        return settled


def _settled(claim: str | None, cost: float | None) -> Settled | None:
    if claim is None:
        return None
    claim_id = claim.removeprefix(_AS_RESERVED)
    return Settled(claim_id, cost if claim_id == claim else None)


def deed(action: type[ActionParameters], parameters: Mapping[str, object]) -> str:
    """What the loop guard tells apart: the action, and the resource it is done to where it names one.

    For actions without resource it is the action's name, as state has always held it.
    """
    if action.resource is None:
        return action.action
    return f"{action.action} {parameters.get(action.resource)}"


def deed_of(flight: Sequence[Any]) -> str:
    """The deed of an entry of `in_flight`."""
    return str(flight[3])


def _at(entry: Allowed) -> int:
    return entry if isinstance(entry, int) else int(entry[0])
