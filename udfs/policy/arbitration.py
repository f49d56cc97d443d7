"""Step 7 of the truth table: proposals that conflict wait for each other, and the best of them wins. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.policy import Arbitration
from udfs.policy.reading import Incoming


@dataclass
class Contest:
    """Proposals about one subject that conflict, directly or by way of others.

    Closes when the subject's event time reaches `closes_ms` or the wall clock `closes_wall_ms`.
    `members`: [proposal, partition, offset, actions it conflicts with, resource].
    """

    closes_ms: int
    closes_wall_ms: int
    members: list[list[Any]] = field(default_factory=list)

    def concerns(self, action: str, conflicts_with: Sequence[str], resource: object) -> bool:
        """Whether a proposal of `action` conflicts with one that waits here."""
        return any(conflict(member, action, conflicts_with, resource) for member in self.members)


def conflict(member: Sequence[Any], action: str, conflicts_with: Sequence[str], resource: object) -> bool:
    """Whether a member and a proposal, about the same subject, cannot both be done: one of them says so.

    What is about no resource is about the whole subject, and so about every resource of it.
    """
    raw, _, _, its_conflicts, its_resource = member
    its_action = raw["data"]["action"]
    is_apart = None not in (resource, its_resource) and its_resource != resource
    return not is_apart and (action in its_conflicts or its_action in conflicts_with)


def join(
    contests: list[Contest], proposal: Incoming, terms: Arbitration, variables: Mapping[str, object],
    partition: int, offset: int, *, now_ms: int, wall_ms: int,
) -> Contest:  # fmt: skip
    """The contest the proposal waits in: those it conflicts with, made one; otherwise its own."""
    found = None if terms.resource is None else variables.get(terms.resource)
    resource = None if found is None else str(found)
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
