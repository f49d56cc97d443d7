"""Holds: what waits for people, who may answer, and until when. Pure; wall time comes in as an argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contracts.approval import Answer, Person
from contracts.envelope import format_time_ms
from contracts.policy import Approval, Deadline
from udfs.policy.reading import Incoming, Word
from udfs.policy.signing import action_digest

DAY_MS = 86_400_000
# Between the names of those who edited an action one after the other; no name has it.
EDITORS = ", "


def deadline_ms(asked_ms: int, deadline: Deadline) -> int:
    """When people asked at `asked_ms` are waited for no longer.

    Working days are Monday to Friday in UTC: asked on Friday at noon for one, Monday at noon; asked
    at a weekend, the days are counted from Monday's beginning.
    """
    if deadline.within_s is not None:
        return asked_ms + deadline.within_s * 1000
    days = deadline.within_working_days or 1
    day, of_day_ms = divmod(asked_ms, DAY_MS)
    asked = np.datetime64(day, "D")
    if not np.is_busday(asked):
        of_day_ms = 0
    until = np.busday_offset(asked, days, roll="forward")
    return int(until.astype("int64")) * DAY_MS + of_day_ms


@dataclass
class Approver:
    """Who approved, by which key and which of the roles asked for. Without key: of before keys were kept."""

    person: str
    public_key: str | None
    roles: list[str]

    def may_still(self, people: Mapping[str, Person]) -> bool:
        """Whether the approval counts as people are now: a key that was replaced may have been stolen."""
        now = people.get(self.person)
        if now is None or not now.is_active:
            return False
        if self.public_key is None:
            return True
        return now.public_key == self.public_key and not set(self.roles).isdisjoint(now.roles)


@dataclass
class Requirement:
    """What one policy asks of people, and who has approved for it so far."""

    policy_id: str
    version: int
    roles: list[str]
    approvers: int
    not_by: list[str]
    deadline_ms: int
    later: list[dict[str, Any]]
    approved_by: list[Approver] = field(default_factory=list)

    @classmethod
    def ask(
        cls, policy_id: str, version: int, terms: Approval, values: Mapping[str, object], now_ms: int,
        excluded: Collection[str] = (),
    ) -> Requirement:  # fmt: skip
        """`values`: the variables of the proposal, for `not_by`, names one a line; `excluded`: who may not, whatever these name."""
        named = [*excluded, *(values.get(name) for name in terms.not_by)]
        return cls(
            policy_id, version, list(terms.roles), terms.approvers,
            sorted({name for names in named if names is not None for name in str(names).split("\n")}),
            deadline_ms(now_ms, terms), [later.model_dump(mode="json") for later in terms.escalate],
        )  # fmt: skip

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Requirement:
        return cls(**{**raw, "approved_by": [Approver(**each) for each in raw["approved_by"]]})

    def is_met(self) -> bool:
        return len(self.approved_by) >= self.approvers

    def takes(self, person: str, roles: Sequence[str]) -> bool:
        return not set(self.roles).isdisjoint(roles) and person not in self.not_by

    def approve(self, person: Person) -> None:
        by_roles = sorted(set(self.roles).intersection(person.roles))
        self.approved_by.append(Approver(person.person, person.public_key, by_roles))

    def escalate(self, now_ms: int) -> bool:
        """Ask the next roles from `now_ms` on; False when there are none."""
        if not self.later:
            return False
        following = Deadline.model_validate({**self.later[0], "roles": tuple(self.later[0]["roles"])})
        self.later = self.later[1:]
        self.roles, self.deadline_ms = list(following.roles), deadline_ms(now_ms, following)
        return True

    def told(self) -> dict[str, object]:
        """As contracts/decision.py `Requirement`."""
        return {
            "policy_id": self.policy_id, "version": self.version, "roles": self.roles,
            "approvers": self.approvers, "not_by": self.not_by,
            "deadline": format_time_ms(self.deadline_ms),
        }  # fmt: skip


@dataclass
class Hold:
    """One held action. `proposal` is as it would be done, an edit by `edited_by` included.

    `partition` and `offset` are those of the proposal's record; `instead_of`: the hold it replaces.
    """

    approval_id: str
    proposal: dict[str, Any]
    replaced: dict[str, Any] | None
    requires: list[Requirement]
    asked_ms: int
    partition: int
    offset: int
    instead_of: str | None
    answers: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Hold:
        return cls(**{**raw, "requires": [Requirement.from_dict(each) for each in raw["requires"]]})

    def incoming(self) -> Incoming:
        return Incoming.from_dict(self.proposal)

    @property
    def digest(self) -> str:
        data = self.proposal["data"]
        return action_digest(
            operation=data["action"], agent=data["agent"], subject=self.proposal["subject"],
            parameters=data["parameters"],
        )  # fmt: skip

    def deadline_ms(self) -> int:
        return min(each.deadline_ms for each in self.requires if not each.is_met())

    def is_met(self) -> bool:
        return all(each.is_met() for each in self.requires)

    def policies(self) -> frozenset[tuple[str, int]]:
        return frozenset((each.policy_id, each.version) for each in self.requires)

    def excluded(self) -> set[str]:
        """Whom `not_by` names: they may not approve it, nor change it into what others or a rule would allow."""
        return {name for each in self.requires for name in each.not_by}

    def approvers(self) -> list[str]:
        """Whose approvals count, in the order they came."""
        counting = {each.person for requirement in self.requires for each in requirement.approved_by}
        return list(dict.fromkeys(each["person"] for each in self.answers if each["person"] in counting))

    def refuses(self, word: Word) -> str | None:
        """Why this answer does not count; None when it does."""
        answer, person = word.data, word.person
        assert isinstance(answer, Answer)
        name, roles = person.person, person.roles
        wanted = sorted({role for each in self.requires if not each.is_met() for role in each.roles})
        editors = (self.replaced or {}).get("by", "").split(EDITORS)
        if not person.is_active:
            return f"{name} is no longer active"
        if set(wanted).isdisjoint(roles):
            return f"expected a role of {wanted}, {name} has {sorted(roles)}"
        if answer.action_digest != self.digest:
            return f"it is for another action: expected digest {self.digest}, came {answer.action_digest}"
        if answer.answer != "refuse" and name in editors:
            return f"{name} changed the action and may not {answer.answer} it"
        if answer.answer != "refuse" and name == self.proposal["data"]["agent"]:
            return f"{name} proposed it and may not {answer.answer} it"
        if answer.answer == "edit" and name in self.excluded():
            return f"{name} handled it and may not edit it"
        if answer.answer == "approve":
            if name in self.approvers():
                return f"{name} has approved it already"
            if not any(each.takes(name, roles) for each in self.requires if not each.is_met()):
                return f"{name} handled it and may not approve it"
        return None

    def count(self, word: Word) -> None:
        """Enter an answer that counts; an approval for every requirement it can serve."""
        answer = word.data
        assert isinstance(answer, Answer)
        self.answers.append(
            {
                "person": answer.person, "answer": answer.answer, "answer_id": word.id,
                "signed_at": answer.signed_at, "reason": answer.reason,
            }
        )  # fmt: skip
        if answer.answer == "approve":
            for each in self.requires:
                if not each.is_met() and each.takes(answer.person, word.person.roles):
                    each.approve(word.person)

    def keep_approvers(self, people: Mapping[str, Person]) -> None:
        """Approvals count no more whose people have left since, have another key, or lost the role they had."""
        for each in self.requires:
            each.approved_by = [approver for approver in each.approved_by if approver.may_still(people)]

    def told(self) -> dict[str, object]:
        """As contracts/decision.py `Asked`."""
        return {
            "approval_id": self.approval_id, "action_digest": self.digest,
            "asked_at": format_time_ms(self.asked_ms), "instead_of": self.instead_of,
            "requires": [each.told() for each in self.requires], "answers": self.answers,
        }  # fmt: skip
