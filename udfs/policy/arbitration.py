"""Step 7 of the truth table: proposals that conflict wait for each other, and the best of them wins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from contracts.policy import Arbitration
from udfs.policy.reading import Incoming

_NEVER_MS: Final = 2**62


@dataclass
class Contest:
    """Proposals about one subject that conflict, directly or by way of others.

    Closes when the subject's event time reaches `closes_ms` or the wall clock `closes_wall_ms`.
    `members`: [proposal, partition, offset, actions it conflicts with, resource].
    """

    closes_ms: int
    closes_wall_ms: int
    members: list[list[Any]] = field(default_factory=list)

    @classmethod
    def of_unknown(cls) -> Contest:
        """One that a replay knows nothing of yet: its member counts, conflicts with nothing and stays."""
        return cls(_NEVER_MS, _NEVER_MS, [[{"data": {"action": ""}}, 0, 0, [], None]])

    @property
    def is_unknown(self) -> bool:
        return self.closes_ms == _NEVER_MS

    def concerns(self, action: str, conflicts_with: Sequence[str], resource: object) -> bool:
        """Whether a proposal of `action` conflicts with one that waits here."""
        return any(conflict(member, action, conflicts_with, resource) for member in self.members)

    def absorb(self, contests: list[Contest]) -> None:
        """Take in those of `contests` that conflict with a member of this one, directly or by way of others."""

        def meets(other: Contest) -> bool:
            return other is not self and any(self.concerns(_action(each), *each[3:]) for each in other.members)

        while met := [each for each in contests if meets(each)]:
            for other in met:
                self.members += other.members
                contests.remove(other)


def conflict(member: Sequence[Any], action: str, conflicts_with: Sequence[str], resource: object) -> bool:
    """Whether a member and a proposal, about the same subject, cannot both be done: one of them says so.

    What is about no resource is about the whole subject, and so about every resource of it.
    """
    *_, its_conflicts, its_resource = member
    its_action = _action(member)
    is_apart = None not in (resource, its_resource) and its_resource != resource
    return not is_apart and (action in its_conflicts or its_action in conflicts_with)


def resource_of(terms: Arbitration, variables: Mapping[str, object]) -> str | None:
    """What a proposal is about, of its subject; None: the whole subject."""
    found = None if terms.resource is None else variables.get(terms.resource)
    return None if found is None else str(found)


def is_concerned(
    contests: Sequence[Contest], proposal: Incoming, terms: Arbitration, variables: Mapping[str, object]
) -> bool:
    """Whether anything that waits conflicts with the proposal."""
    resource = resource_of(terms, variables)
    return any(each.concerns(proposal.data.action, terms.conflicts_with, resource) for each in contests)


def renewed(member: Sequence[Any], terms: Arbitration, variables: Mapping[str, object]) -> list[Any]:
    """A member under the terms of now."""
    return [*member[:3], list(terms.conflicts_with), resource_of(terms, variables)]


def join(
    contests: list[Contest], proposal: Incoming, terms: Arbitration, variables: Mapping[str, object],
    partition: int, offset: int, *, now_ms: int, wall_ms: int,
) -> Contest:  # fmt: skip
    """The contest the proposal waits in: those it conflicts with, made one; otherwise its own."""
    resource = resource_of(terms, variables)
    action, conflicts = proposal.data.action, list(terms.conflicts_with)
    concerned = [each for each in contests if each.concerns(action, conflicts, resource)]
    if concerned:
        contest, *others = concerned
        for other in others:
            contest.closes_ms = min(contest.closes_ms, other.closes_ms)
            contest.closes_wall_ms = min(contest.closes_wall_ms, other.closes_wall_ms)
            contest.members += other.members
            contests.remove(other)
    else:
        window_ms = int(terms.window_s * 1000)
        contest = Contest(now_ms + window_ms, wall_ms + window_ms)
        contests.append(contest)
    contest.members.append([proposal.to_dict(), partition, offset, conflicts, resource])
    return contest


def _action(member: Sequence[Any]) -> str:
    return str(member[0]["data"]["action"])
