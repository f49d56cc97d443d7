"""What a replay found, subject by subject, and the sum of it: the same in process and on Flink. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from udfs.policy.audit import ALWAYS, Bad, Line, Period, audit, entries
from udfs.policy.govern import Governor
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Reported
from udfs.policy.replay import Remade, replay

_EXAMPLES = 3
# What makes a change: action, verdict and reason before and after, policies that spoke.
Key = tuple[str, str, str, str]


@dataclass
class SubjectLog:
    """Everything recorded about one subject: each topic's records in the order of partition and offset."""

    decisions: list[Line] = field(default_factory=list)
    outcomes: list[Line] = field(default_factory=list)
    approvals: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Terms:
    """How decisions are compared, and which are reported.

    by_bytes: every byte of every entry must come out as recorded. Otherwise (candidates) the first decision about
    each proposal, whenever it was made, is compared by verdict, reason and action. allows_repeats: as in udfs/policy/audit.py.
    """

    by_bytes: bool = True
    allows_repeats: bool = False
    period: Period = ALWAYS


@dataclass
class Change:
    """Decisions that changed alike. `outcomes`: how many of the commands that would not be had which.

    A command that people let go counts with the decision they were asked by. `approvals`: what would be asked of people,
    "2 of approver", and how often. `examples` are the lowest ids, so that they do not depend on the order of subjects.
    """

    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    approvals: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(
        self, count: int, outcomes: Mapping[str, int], approvals: Mapping[str, int], examples: Sequence[str]
    ) -> None:
        self.count += count
        self.outcomes.update(outcomes)
        self.approvals.update(approvals)
        self.examples = sorted({*self.examples, *examples})[:_EXAMPLES]


@dataclass
class Replayed:
    """What a replay found. `changes` groups decisions that came out otherwise; sums can be added.

    `decisions`: how many entries were made again; `not_replayable`: those that cannot be yet, as their contests
    are open.
    """

    decisions: int = 0
    different: int = 0
    not_replayable: int = 0
    broken_chains: int = 0
    changes: dict[Key, Change] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "decisions": self.decisions,
            "different": self.different,
            "not_replayable": self.not_replayable,
            "broken_chains": self.broken_chains,
            "changes": [
                {
                    "action": action, "before": before, "after": after, "policies": policies,
                    "count": change.count, "outcomes": dict(sorted(change.outcomes.items())),
                    "approvals": dict(sorted(change.approvals.items())), "examples": change.examples,
                }
                for (action, before, after, policies), change in sorted(
                    self.changes.items(), key=lambda item: (-item[1].count, item[0])
                )
            ],
        }  # fmt: skip

    def add(self, found: Mapping[str, Any]) -> None:
        """Add what was found elsewhere, as `to_dict` gives it."""
        self.decisions += found["decisions"]
        self.different += found["different"]
        self.not_replayable += found["not_replayable"]
        self.broken_chains += found["broken_chains"]
        for raw in found["changes"]:
            key = (raw["action"], raw["before"], raw["after"], raw["policies"])
            self.changes.setdefault(key, Change()).add(
                raw["count"], raw["outcomes"], raw["approvals"], raw["examples"]
            )

    def replay(
        self, governor: Governor, log: SubjectLog, policies_at: Mapping[int, PolicySet], terms: Terms
    ) -> bool:
        """Make one subject's entries again and add what differs; whether its chain is whole.

        A chain is made again as far as it is whole; one that is broken is counted. A subject's records
        lie in one partition: what stands in a later one breaks the chain.
        """
        if not log.decisions:
            return True
        partition = min(line.partition for line in log.decisions)
        here = [line for line in log.decisions if line.partition == partition]
        is_split = len(here) < len(log.decisions)
        bad: list[Bad] = []
        if terms.allows_repeats:  # what supersedes an entry may come long after it
            found = audit(here, allows_repeats=True)
            bad = found.bad
            here = [line for chain in found.chains.values() for line in chain.lines]
        chain = ((line, orjson.loads(line.value or b"")) for line in here) if terms.allows_repeats else entries(here, bad)
        outcomes = _reported(governor, log.outcomes)
        statuses = {
            reported.command_id: "failed" if reported.has_failed else "succeeded" for _, reported in outcomes
        }
        answers = {line.offset: (line.key, line.value) for line in log.approvals}
        again = replay(governor, chain, here, outcomes, answers, policies_at)
        if terms.by_bytes:
            self._compare_bytes(again, terms.period, statuses)
        else:
            self._compare_first(again, terms.period, statuses)
        is_whole = not bad and not is_split
        self.broken_chains += not is_whole
        return is_whole

    def _compare_bytes(self, again: Iterable[Remade], period: Period, statuses: Mapping[str, str]) -> None:
        """Every entry, byte by byte."""
        is_always = period == ALWAYS
        for remade in again:
            if not is_always and not period.covers(remade.recorded["data"].get("event_time")):
                continue
            if not remade.is_replayable:
                self.not_replayable += 1
                continue
            self.decisions += 1
            if not remade.is_same:
                self._enter(remade.recorded, remade.remade, statuses)

    def _compare_first(self, again: Iterable[Remade], period: Period, statuses: Mapping[str, str]) -> None:
        """The first decision about each proposal. Recorded and remade may come of different triggers: only one contended."""
        recorded: dict[str, dict[str, Any]] = {}
        remade: dict[str, dict[str, Any]] = {}
        waiting: dict[str, dict[str, Any]] = {}
        held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        let_go: dict[str, str] = {}  # proposal -> the command that people let go

        def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
            if before["data"]["verdict"] == "hold":
                held.append((before, after))
            else:
                self._compare(before, after, period, statuses)

        for entry in again:
            data = entry.recorded["data"]
            if data.get("command_id") and decided_first(entry.recorded) is None:
                let_go[str(data.get("proposal_id"))] = data["command_id"]
            found = [(recorded, entry.recorded), *((remade, orjson.loads(text)) for text in entry.made)]
            for events, event in found:
                if (proposal_id := decided_first(event)) is not None:
                    events[proposal_id] = event
                    if proposal_id in recorded and proposal_id in remade:
                        compare(recorded.pop(proposal_id), remade.pop(proposal_id))
                elif events is remade and event["data"].get("what") == "contends":
                    waiting[event["data"]["about"]] = event
        for proposal_id, event in recorded.items():  # not decided about now
            compare(event, waiting.get(proposal_id, {}))
        for before, after in held:
            self._compare(before, after, period, statuses, let_go.get(before["data"]["proposal_id"]))

    def _compare(
        self, recorded: dict[str, Any], remade: dict[str, Any], period: Period, statuses: Mapping[str, str],
        let_go: str | None = None,
    ) -> None:  # fmt: skip
        if period.covers(recorded["data"].get("event_time")):
            self.decisions += 1
            if _said(recorded) != _said(remade):
                self._enter(recorded, remade, statuses, let_go)

    def _enter(
        self, recorded: dict[str, Any], remade: dict[str, Any], statuses: Mapping[str, str], let_go: str | None = None
    ) -> None:
        self.different += 1
        before, after = recorded["data"], remade.get("data") or {}
        spoke = after.get("policies") or before.get("policies") or ()
        policies = ", ".join(f"{p['policy_id']}@{p['version']}" for p in spoke)
        (said, action), (says, _) = _said(recorded), _said(remade)
        lost = {}
        if (commanded := before.get("command_id") or let_go) and not after.get("command_id"):
            lost = {statuses.get(str(commanded), "none yet"): 1}
        change = self.changes.setdefault((action, said, says, policies), Change())
        change.add(1, lost, _approvals(after), [str(recorded["id"])])


def _reported(governor: Governor, lines: Sequence[Line]) -> list[tuple[int, Reported]]:
    read = ((line.offset, governor.read.outcome(line.key, line.value)) for line in lines)
    return [(offset, reported) for offset, reported in read if reported is not None]


def decided_first(event: Mapping[str, Any]) -> str | None:
    """The proposal that this is the first decision about; None for notes, and for what came of people's words."""
    data = event["data"]
    proposal_id = data.get("proposal_id")
    return str(proposal_id) if "verdict" in data and event.get("causationid") == proposal_id else None


def _approvals(data: Mapping[str, Any]) -> Counter[str]:
    """What a decision asks of people."""
    asks = data["approval"]["requires"] if data.get("verdict") == "hold" else ()
    return Counter(f"{ask['approvers']} of {', '.join(ask['roles'])}" for ask in asks)


def _said(event: Mapping[str, Any]) -> tuple[str, str]:
    """Verdict and reason, or what a note says; and the action."""
    data = event.get("data") or {}
    said = f"{data['verdict']} {data['reason']}" if "verdict" in data else str(data.get("what", "nothing"))
    return said, str(data.get("action", ""))
