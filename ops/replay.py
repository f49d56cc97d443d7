"""Recorded decisions made again, under the recorded policies or under others."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from contracts.approval import Person
from contracts.domain import load_domain
from contracts.errors import BadInput
from contracts.policy import Policy
from contracts.topics import topic
from jobs.settings import load_settings
from ops import kafka
from ops.audit import lines
from udfs.policy.audit import audit
from udfs.policy.govern import Governor
from udfs.policy.policy_book import PolicyBook
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Reported
from udfs.policy.replay import Remade, replay

_EXAMPLES = 3


@dataclass
class Replayed:
    """What a replay found. `changes` groups decisions that came out otherwise."""

    decisions: int = 0
    different: int = 0
    seconds: float = 0.0
    broken_chains: int = 0
    changes: dict[tuple[str, ...], Change] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        return {
            "decisions": self.decisions,
            "different": self.different,
            "broken_chains": self.broken_chains,
            "changes": [
                change.told() for change in sorted(self.changes.values(), key=lambda c: -c.count)
            ],
            "decisions_per_s": round(self.decisions / self.seconds) if self.seconds else None,
        }


@dataclass
class Change:
    """Decisions that changed alike; `outcomes` are the known ones of commands that would not be."""

    action: str
    before: str
    after: str
    policies: str
    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        return {**self.__dict__, "outcomes": dict(self.outcomes)}


class _Policies(Mapping[int, PolicySet]):
    """The policies and people as they were after the record of an offset; compiled once for each."""

    def __init__(self, bootstrap_servers: str, domain: str) -> None:
        self._variables = load_domain(domain).policy_variables()
        self._events = [
            (r.offset, r.value) for r in kafka.read_all(bootstrap_servers, [topic("policies").of(domain)])
        ]
        self._sets: dict[int, PolicySet] = {}

    def __getitem__(self, offset: int) -> PolicySet:
        if offset not in self._sets:
            book = PolicyBook()
            for place, value in self._events:
                if place <= offset:
                    with suppress(BadInput):  # as `govern` did: it went to dead letters
                        book.take(value, self._variables)
            self._sets[offset] = book.compile()
        return self._sets[offset]

    def __iter__(self) -> Any:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)


class _Candidates(Mapping[int, PolicySet]):
    """The same policies whatever the offset, with the people as they were."""

    def __init__(self, policies: Sequence[Policy], recorded: _Policies) -> None:
        self._policies = [policy.model_copy(update={"status": "active"}) for policy in policies]
        self._recorded = recorded
        self._sets: dict[tuple[Person, ...], PolicySet] = {}

    def __getitem__(self, offset: int) -> PolicySet:
        people = tuple(self._recorded[offset].people.values())
        if people not in self._sets:
            self._sets[people] = PolicySet.compile(self._policies, people=people)
        return self._sets[people]

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def run(
    bootstrap_servers: str,
    domain: str,
    *,
    candidates: Sequence[Policy] | None = None,
    since: str | None = None,
    until: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Replayed:
    """Make every recorded decision again; report those between two event times (RFC 3339).

    Without `candidates` every byte of an entry must come out as recorded. With them, the decisions
    about proposals are compared by verdict, reason and action, and every candidate counts as active;
    outcomes and people's answers are the recorded ones, also where another decision would have had
    others.
    """
    settings, contract = load_settings(domain), load_domain(domain)
    governor = Governor(contract, max_hops=settings.max_hops)
    found = audit(lines(bootstrap_servers, domain), allows_repeats=settings.delivery == "at_least_once")
    outcomes, known = _outcomes(bootstrap_servers, domain, governor)
    answers = _answers(bootstrap_servers, domain)
    recorded_policies = _Policies(bootstrap_servers, domain)
    policies: Mapping[int, PolicySet] = recorded_policies
    if candidates is not None:
        policies = _Candidates(candidates, recorded_policies)
    done = Replayed(broken_chains=len({bad.subject for bad in found.bad}))
    began = time.perf_counter()
    for subject, chain in found.chains.items():
        partition = chain.lines[0].partition
        for remade in replay(governor, chain.lines, outcomes.get(subject, ()), answers[partition], policies):
            data = remade.recorded["data"]
            at = data["event_time"]
            if (since is not None and at < since) or (until is not None and at >= until):
                continue
            if candidates is not None and data["inputs"]["trigger"] != "proposal":
                continue
            done.decisions += 1
            if _differs(remade, by_bytes=candidates is None):
                done.different += 1
                _enter(done, remade, known)
            if on_progress is not None and done.decisions % 1000 == 0:
                on_progress(done.decisions)
    done.seconds = time.perf_counter() - began
    return done


def _outcomes(
    bootstrap_servers: str, domain: str, governor: Governor
) -> tuple[dict[str, list[tuple[int, Reported]]], dict[str, str]]:
    """Each subject's outcomes with their offsets, and each command's status."""
    by_subject: dict[str, list[tuple[int, Reported]]] = defaultdict(list)
    statuses: dict[str, str] = {}
    for record in kafka.read_all(bootstrap_servers, [topic("outcomes").of(domain)]):
        reported = governor.read.outcome(record.key, record.value)
        if reported is not None:
            by_subject[reported.subject].append((record.offset, reported))
            statuses[reported.command_id] = "failed" if reported.has_failed else "succeeded"
    return by_subject, statuses


def _answers(
    bootstrap_servers: str, domain: str
) -> Mapping[int, dict[int, tuple[bytes | None, bytes | None]]]:
    """Partition -> offset -> key and value of people's answers."""
    found: dict[int, dict[int, tuple[bytes | None, bytes | None]]] = defaultdict(dict)
    for record in kafka.read_all(bootstrap_servers, [topic("approvals").of(domain)]):
        found[record.partition][record.offset] = (record.key, record.value)
    return found


def _said(event: Mapping[str, Any]) -> tuple[str, str]:
    """Verdict and reason, or what a note says; and the action."""
    data = event.get("data") or {}
    said = f"{data['verdict']} {data['reason']}" if "verdict" in data else str(data.get("what", "nothing"))
    return said, str(data.get("action", ""))


def _differs(remade: Remade, *, by_bytes: bool) -> bool:
    return not remade.is_same and (by_bytes or _said(remade.recorded) != _said(remade.remade))


def _enter(done: Replayed, remade: Remade, statuses: Mapping[str, str]) -> None:
    before, after = remade.recorded["data"], remade.remade.get("data") or {}
    spoke = after.get("policies") or before.get("policies") or ()
    policies = ", ".join(f"{p['policy_id']}@{p['version']}" for p in spoke)
    (said, action), (says, _) = _said(remade.recorded), _said(remade.remade)
    key = (action, said, says, policies)
    change = done.changes.setdefault(key, Change(*key))
    change.count += 1
    if before.get("command_id") and not after.get("command_id"):
        change.outcomes[statuses.get(before["command_id"], "none yet")] += 1
    if len(change.examples) < _EXAMPLES:
        change.examples.append(str(remade.recorded["id"]))
