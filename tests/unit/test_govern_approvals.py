"""Approvals count as people are at release: the key that signed, and a role that it counted by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from contracts.approval import Answer
from contracts.policy import Policy
from tests.unit.test_govern_truth_table import CONTRACT, DEFAULTS, PEOPLE, START_MS
from udfs.policy import cases
from udfs.policy.audit import Line, entries
from udfs.policy.govern import Governor
from udfs.policy.policy_set import PolicySet
from udfs.policy.replay import replay
from udfs.policy.signing import public_text, sign, to_sign
from udfs.policy.subject import SubjectState
from udfs.policy.writing import Decided, Place

GOVERNOR = Governor(CONTRACT, max_hops=6)
TWO_UNDERWRITERS = {"roles": ["underwriter"], "approvers": 2, "within_s": 3600}


NEW_KEY = {"public_key": public_text(cases.key_of("ada's new key"))}


def known(version: int = 1, approval: Mapping[str, Any] = TWO_UNDERWRITERS, **changed: Mapping[str, Any]) -> PolicySet:
    """One policy that asks, and the people; `changed`: what is otherwise about one."""
    wait = {
        "policy_id": "wait", "version": version, "status": "active", "when": "true", "verdict": "require_approval",
        "approval": approval, "reason": "a test",
    }  # fmt: skip
    people = [each.model_copy(update=changed.get(each.person, {})) for each in cases.people_of(PEOPLE)]
    return PolicySet.compile([Policy.model_validate_json(orjson.dumps(wait))], (), people)


class Held:
    """A held action; who answers it, and as who people are then."""

    def __init__(self, policies: PolicySet, **given: Any) -> None:
        self._state = SubjectState()
        self._policies: list[PolicySet] = []
        self._answers: dict[int, tuple[bytes | None, bytes | None]] = {}
        self._decided: list[Decided] = []
        proposal = GOVERNOR.read.proposal(b"m-1", cases.proposal("machines", "m-1", {**DEFAULTS, **given}, 0))
        self._enter(GOVERNOR.decide(self._state, proposal, policies, self._place(policies, "proposal")), policies)

    def _place(self, policies: PolicySet, trigger: Any) -> Place:
        number = len(self._policies)
        return Place(0, number, policies_offset=number, trigger=trigger, wall_ms=START_MS)

    def _enter(self, done: list[Decided], policies: PolicySet) -> None:
        self._decided += done
        self._policies.append(policies)
        self._state = SubjectState.from_json(self._state.to_json())

    def told(self) -> tuple[str, str]:
        """Reason or note, and explanation, of the last entry."""
        data = orjson.loads(self._decided[-1].decision)["data"]
        return data.get("reason") or data["what"], data["explanation"]

    def answer(self, by: str, policies: PolicySet, key: str = "", **said: Any) -> tuple[str, str]:
        """What comes of an answer to the newest hold, an approval unless it says otherwise."""
        (hold,) = self._state.holds.values()
        data = {
            "person": by, "signed_at": "2014-01-01T00:00:00Z", "approval_id": hold.approval_id,
            "action_digest": hold.digest, "answer": "approve", "parameters": {}, "reason": "", **said,
        }  # fmt: skip
        data["signature"] = sign(cases.key_of(key or by), to_sign("machines", "m-1", Answer.event_type, data))
        event = {"id": f"a-{len(self._policies)}", "type": Answer.event_type, "subject": "m-1", "data": data}
        record = self._answers[len(self._policies)] = (b"m-1", orjson.dumps(event))
        word = GOVERNOR.read.word(*record, policies.people)
        self._enter(GOVERNOR.hear(self._state, word, policies, self._place(policies, "answer")), policies)
        return self.told()

    def is_replayed(self) -> bool:
        lines = [Line(0, n, b"m-1", each.decision) for n, each in enumerate(self._decided)]
        policies_at = dict(enumerate(self._policies))
        return all(each.is_same for each in replay(GOVERNOR, entries(lines, []), lines, [], self._answers, policies_at))


@pytest.mark.parametrize(
    "change",
    [NEW_KEY, {"roles": ("approver",)}, {"is_active": False}],
    ids=["her key was replaced", "her role was taken away", "she left"],
)
def test_an_approval_counts_no_more_when_at_release_it_would_not_be_taken(change: dict[str, Any]) -> None:
    held = Held(known())
    assert held.answer("ada", known())[0] == "counted"
    assert held.answer("grace", known(ada=change)) == ("counted", "grace approved it; it waits for 1 more of underwriter")
    assert held.answer("edsger", known(ada=change))[0] == "approved_by_people"
    assert held.told()[1].startswith("approved by grace, edsger;"), "what ada said is not what it was done for"
    assert held.is_replayed()


def test_an_approval_counts_when_another_role_than_its_own_was_taken_away() -> None:
    held = Held(known())
    held.answer("ada", known())
    assert held.answer("grace", known(ada={"roles": ("underwriter",)}))[0] == "approved_by_people"


def test_a_person_approves_again_when_their_key_was_replaced() -> None:
    held, now = Held(known()), known(ada=NEW_KEY)
    held.answer("ada", known())
    assert held.answer("ada", now, key="ada's new key")[0] == "counted"
    assert held.answer("ada", now, key="ada's new key")[1] == "ada has approved it already"
    assert held.answer("grace", now)[0] == "approved_by_people"
    assert held.is_replayed()


def test_who_may_not_approve_may_not_either_when_it_is_asked_anew() -> None:
    by_ada = {"roles": ["underwriter"], "within_s": 3600, "not_by": ["feature_command_id"]}
    held = Held(known(approval=by_ada), situation="machines.cooling_failed", features={"command_id": "ada"})
    anew = known(2, {"roles": ["underwriter"], "within_s": 3600})
    assert held.answer("grace", anew)[0] == "approval_required"
    assert held.answer("ada", anew) == ("refused", "ada handled it and may not approve it")
    assert held.answer("grace", anew)[0] == "approved_by_people"
    assert held.is_replayed()
