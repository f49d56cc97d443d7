"""What must come out, from the facts alone: a second opinion that shares no code with what it judges.

It knows the rules of the domain `drill` as its policies and SQL say them in words:

- an amount comes with the count and the sum of its subject's amounts that arrived up to it;
- from 90 it is denied; four are settled within a minute; 600 in all within ten minutes of what was settled;
- `now` is the subject's highest event time so far; what is settled counts from `now` on;
- a fact that came before among its subject's last 32 records is dropped; one that came before that is counted again, and
  decided once;
- the amounts of each ten minutes are counted and summed, and noted once;
- each command has one outcome; only outcomes may come again, as the same event;
- the till is asked for each settlement once, unless the actuator dies between asking and storing;
- from 95 a slow agent, where there is one, is asked about an amount, and what it says is decided about once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ops.torture.facts import Fact

LARGE, ADVISED = 90, 95
A_MINUTE, MOST_A_MINUTE = 60_000, 4
TEN_MINUTES, MOST_IN_TEN = 600_000, 600
AN_HOUR, A_DAY = 3_600_000, 86_400_000
REMEMBERED_FACTS = 32
# What a decision answers: a fact (by its id), or a subject's ten minutes (by their end, ms).
Key = tuple[str, str]


@dataclass(frozen=True)
class Wanted:
    """One decision as it must be, and its command, if any."""

    subject: str
    verdict: str
    reason: str
    parameters: Mapping[str, int]
    counters: Mapping[str, float]
    is_commanded: bool


@dataclass
class _Subject:
    seen: int = 0
    total: int = 0
    now_ms: int = 0
    settled: list[tuple[int, int]] = field(default_factory=list)
    recent: list[str] = field(default_factory=list)
    decided: set[str] = field(default_factory=set)


def wanted(facts: Iterable[Fact]) -> dict[Key, Wanted]:
    """Every decision that the facts must lead to; `facts` in the order of the log, repeats included."""
    subjects: dict[str, _Subject] = defaultdict(_Subject)
    windows: dict[tuple[str, int], list[int]] = defaultdict(list)
    found: dict[Key, Wanted] = {}
    for fact in facts:
        subject = subjects[fact.subject]
        is_dropped = fact.id in subject.recent
        subject.recent = [*subject.recent, fact.id][-REMEMBERED_FACTS:]
        if is_dropped:
            continue
        subject.seen += 1
        subject.total += fact.amount
        if fact.id in subject.decided:
            continue
        subject.decided.add(fact.id)
        found[("settle", fact.id)] = _settled(subject, fact)
        windows[(fact.subject, fact.event_ms // TEN_MINUTES)].append(fact.amount)
    for (name, window), amounts in windows.items():
        sums = {"facts": len(amounts), "amounts": sum(amounts)}
        key = ("note_sum", f"{name}-sums {(window + 1) * TEN_MINUTES}")
        found[key] = Wanted(f"{name}-sums", "allow", "allowed_by_policy", sums, {}, is_commanded=False)
    return found


def _settled(subject: _Subject, fact: Fact) -> Wanted:
    subject.now_ms = now = max(subject.now_ms, fact.event_ms)
    parameters = {"number": fact.number, "amount": fact.amount, "seen": subject.seen, "total": subject.total}

    def since(ms: int) -> list[int]:
        return [amount for at, amount in subject.settled if at > now - ms]

    counters: dict[str, float] = {"allowed_1h": len(since(AN_HOUR)), "allowed_24h": len(since(A_DAY)), "hops": 0}
    if fact.amount >= LARGE:
        return Wanted(fact.subject, "deny", "forbidden_by_policy", parameters, counters, is_commanded=False)
    counters["allowed_within_60s"] = len(since(A_MINUTE))
    if len(since(A_MINUTE)) >= MOST_A_MINUTE:
        return Wanted(fact.subject, "deny", "rate_limit", parameters, counters, is_commanded=False)
    counters["parameter_amount_within_600s"] = sum(since(TEN_MINUTES))
    if sum(since(TEN_MINUTES)) + fact.amount > MOST_IN_TEN:
        return Wanted(fact.subject, "deny", "budget_limit", parameters, counters, is_commanded=False)
    subject.settled.append((now, fact.amount))
    return Wanted(fact.subject, "allow", "allowed_by_policy", parameters, counters, is_commanded=True)


@dataclass(frozen=True)
class Seen:
    """What a read-committed reader saw of one fault: events as parsed JSON, in the order read.

    `dead_letters`: ids of letters about records put aside; `asked`: command id -> how often the till was asked to settle it,
    of these and of commands that nobody saw.
    """

    decisions: Sequence[Mapping[str, Any]]
    commands: Sequence[Mapping[str, Any]]
    outcomes: Sequence[Mapping[str, Any]]
    dead_letters: Sequence[str]
    asked: Mapping[str, int]


@dataclass
class Findings:
    """How many were lost, repeated and wrong; `told` says which, the first of each kind.

    Where `allows_repeats` (at least once), what came again is counted as `recognised`: a reader tells it by its id. One that
    says something else, or has another id, is wrong.
    """

    allows_repeats: bool = False
    lost: int = 0
    repeated: int = 0
    recognised: int = 0
    wrong: int = 0
    told: list[str] = field(default_factory=list)

    def lose(self, what: str) -> None:
        self.lost += 1
        self._tell(f"lost: {what}")

    def repeat(self, what: str) -> None:
        if self.allows_repeats:
            self.recognised += 1
            return
        self.repeated += 1
        self._tell(f"repeated: {what}")

    def object(self, what: str) -> None:
        self.wrong += 1
        self._tell(f"wrong: {what}")

    def _tell(self, what: str) -> None:
        kind = what.partition(":")[0]
        if sum(line.startswith(kind) for line in self.told) < 5:
            self.told.append(what)


def key_of(event: Mapping[str, Any], event_ms: int) -> Key:
    """What a decision answers; `event_ms`: its data's event time."""
    action = str(event["data"]["action"])
    return action, f"{event['subject']} {event_ms}" if action == "note_sum" else str(event["correlationid"])


def missing(due: Mapping[Key, Wanted], decided: Collection[Key], commanded: Collection[str], done: Collection[str]) -> int:
    """How many decisions, commands (by fact id) and outcomes (by fact id) have not come yet."""
    facts = [key[1] for key, decision in due.items() if decision.is_commanded]
    return (
        sum(key not in decided for key in due)
        + sum(fact not in commanded for fact in facts)
        + sum(fact not in done for fact in facts)
    )


def check(
    due: Mapping[Key, Wanted], poison: int, seen: Seen, instants: Mapping[str, int], *,
    allows_repeats: bool, asked_again: int = 0,
) -> Findings:  # fmt: skip
    """Hold what was seen against what is due.

    `instants`: event time as written -> ms, for every decision's. `allows_repeats`: at least once, where a repeat is
    wrong only when it cannot be told by its id, or says something else. `asked_again`: how many calls of the till the
    fault may have caused beyond one a command, in either delivery.
    """
    found = Findings(allows_repeats)
    decided: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for event in seen.decisions:
        decided[key_of(event, instants[event["data"]["event_time"]])].append(event)
    for key, decision in due.items():
        if key not in decided:
            found.lose(f"the decision about {key}")
            continue
        _compare(key, decision, decided[key], found)
    for key in decided.keys() - due.keys():
        found.object(f"nothing in the input leads to a decision about {key}")
    command_of = {key: decided[key][0]["data"].get("command_id") for key in due if key in decided}
    commands = by_command(seen.commands)
    wanted_commands = {str(command_of[key]): key for key, d in due.items() if d.is_commanded and key in command_of}
    _match("command", wanted_commands, commands, found)
    for command_id, events in commands.items():
        if (of := wanted_commands.get(command_id)) is not None:
            _compare_command(of, due[of], events[0], {str(each["id"]) for each in decided[of]}, found)
    outcomes = by_command(seen.outcomes)
    _match("outcome", wanted_commands, outcomes, found)
    for event in seen.outcomes:
        if event["data"]["status"] != "succeeded":
            found.object(f"the outcome of {event['data']['command_id']}: {event['data'].get('detail')}")
    check_repeats(seen.commands, seen.outcomes, found)
    _match("settlement", wanted_commands, seen.asked, found)
    again = {command_id: times for command_id, times in seen.asked.items() if times > 1}
    if sum(again.values()) - len(again) > asked_again:
        found.object(f"settlements were asked for more than once, expected {asked_again} calls too many: {again}")
    letters = len(set(seen.dead_letters))
    for _ in range(poison - letters):
        found.lose("a dead letter")
    if letters > poison:
        found.object(f"{letters} dead letters for {poison} bad records")
    for _ in range(len(seen.dead_letters) - letters):
        found.repeat("a dead letter")
    return found


def by_command(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Command id -> its commands, or its outcomes, in the order read."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if "command_id" in event["data"]:  # ticks lie on the outcomes too
            found[str(event["data"]["command_id"])].append(event)
    return found


def check_repeats(commands: Iterable[Mapping[str, Any]], outcomes: Iterable[Mapping[str, Any]], found: Findings) -> None:
    """What comes again for a command is the same event, id and all; in either delivery it is wrong otherwise.

    The same outcome again is no repeat: an actuator that died between publishing one and noting that publishes it again.
    """
    for what, events in (("command", commands), ("outcome", outcomes)):
        for command_id, (first, *again) in by_command(events).items():
            for event in again:
                if what == "command" or event != first:
                    found.repeat(f"the {what} of {command_id}")
                if event != first:
                    found.object(f"the {what} of {command_id} came again as another event: {first}, then {event}")


def check_advice(facts: Iterable[Fact], advice: Iterable[Mapping[str, Any]], found: Findings) -> None:
    """The slow agent is asked about each amount from 95, and what it says is decided about once; `advice`: the decisions."""
    by_fact: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in advice:
        by_fact[str(event["correlationid"])].append(event)
    asked = {fact.id for fact in facts if fact.amount >= ADVISED}
    for fact_id in asked - by_fact.keys():
        found.lose(f"the decision about advice on {fact_id}")
    for fact_id, (first, *again) in by_fact.items():
        for event in again:
            found.repeat(f"the decision about advice on {fact_id}")
            if event != first:
                found.object(f"the decision about advice on {fact_id} came again as another event: {first}, then {event}")
    for fact_id in by_fact.keys() - asked:
        found.object(f"nobody asked for advice on {fact_id}")


def next_decision_at(decided_at: Iterable[float], since: float) -> float | None:
    """When the longest silence after a blow at `since` ended; None when nothing came after it.

    Not simply to what came next: that may have been on its way when the blow fell, or come from a process that had not
    noticed yet.
    """
    times = [since, *sorted(at for at in decided_at if at > since)]
    return max(((after - before, after) for before, after in pairwise(times)), default=(0.0, None))[1]


def _compare(key: Key, due: Wanted, events: Sequence[Mapping[str, Any]], found: Findings) -> None:
    for _ in events[1:]:
        found.repeat(f"the decision about {key}")
    if len({event["id"] for event in events}) > 1:
        found.object(f"decisions about {key} with {len({event['id'] for event in events})} ids")
    for event in events if found.allows_repeats else events[:1]:
        data = event["data"]
        counters = {name: value for name, value in data["counters"].items() if key[0] == "settle"}
        came = (event["subject"], data["verdict"], data["reason"], data["parameters"], counters, data.get("command_id") is not None)
        must = (due.subject, due.verdict, due.reason, due.parameters, due.counters, due.is_commanded)
        if came != must:
            found.object(f"the decision about {key}: expected {must}, came {came}")


def _compare_command(key: Key, due: Wanted, event: Mapping[str, Any], decisions: Collection[str], found: Findings) -> None:
    """A command does what was decided, to whom it was decided about; `decisions`: ids of the decision it is of."""
    data = event["data"]
    came = (event["subject"], data["action"], data["parameters"])
    must = (due.subject, key[0], due.parameters)
    if came != must or data["decision_id"] not in decisions:
        found.object(f"the command for {key}: expected {must} of {sorted(decisions)}, came {came} of {data['decision_id']!r}")


def _match(what: str, due: Mapping[str, Key], came: Collection[str], found: Findings) -> None:
    """Each command id that is due has come; nothing else has."""
    for command_id, key in due.items():
        if command_id not in came:
            found.lose(f"the {what} for {key}")
    for command_id in set(came) - due.keys():
        found.object(f"a {what} that nothing in the input leads to: {command_id}")
