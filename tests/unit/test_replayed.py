"""What a replay finds of one subject after another, and the sum of it, wherever it was found."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from contracts.domain import load_domain
from contracts.policy import Policy, PolicySwitch
from tests.unit.test_govern_truth_table import DEFAULTS, policies_of
from udfs.policy import cases
from udfs.policy.audit import Line, Period
from udfs.policy.govern import Governor
from udfs.policy.policy_log import Candidates, PolicyLog
from udfs.policy.policy_set import PolicySet
from udfs.policy.replayed import Replayed, SubjectLog, Terms
from udfs.policy.subject import SubjectState
from udfs.policy.writing import Place

CONTRACT = load_domain("machines")
CASE: dict[str, Any] = {"policies": [{"id": "may"}], "given": [{}, {"at": 60}, {"at": 120, "confidence": 0.99}]}
STRICTER = policies_of({"policies": [{"id": "may", "when": "confidence > 0.95"}]})


def lines(partition: int = 0, case: dict[str, Any] = CASE) -> list[Line]:
    played = cases.play(CONTRACT, policies_of(case), case, DEFAULTS, max_hops=6)
    return [Line(partition, n, b"m-1", decided.decision) for n, decided in enumerate(played.decided)]


def replayed(decisions: list[Line], policies: PolicySet | None = None, terms: Terms = Terms()) -> Replayed:
    found = Replayed()
    policies_at = {-1: policies or policies_of(CASE)}
    found.replay(Governor(CONTRACT, max_hops=6), SubjectLog(decisions), policies_at, terms)
    return found


def counts(found: Replayed) -> tuple[int, int, int]:
    return found.decisions, found.different, found.broken_chains


def edited(line: Line, **fields: object) -> Line:
    event = orjson.loads(line.value or b"")
    event["data"] |= fields
    return line._replace(value=orjson.dumps(event))


def test_nothing_differs_under_the_same_policies() -> None:
    assert counts(replayed(lines())) == (3, 0, 0)


def test_a_chain_is_made_again_up_to_its_first_bad_entry() -> None:
    first, second, third = lines()
    assert counts(replayed([first, edited(second, explanation="forged"), third])) == (2, 1, 1)
    assert counts(replayed([first, third])) == (1, 0, 1)
    assert counts(replayed([*lines(0), *lines(1)])) == (3, 0, 1), "a subject in two partitions"


def test_a_repeated_entry_is_made_again_once_where_repeats_are_allowed() -> None:
    first, second, third = lines()
    again = [first, second, second._replace(offset=2), third._replace(offset=3)]
    assert counts(replayed(again, terms=Terms(allows_repeats=True))) == (3, 0, 0)
    assert counts(replayed(again)) == (2, 0, 1)


@pytest.mark.parametrize("fields", [{"confidence": "high"}, {"agent": "NOT A SLUG"}, {"inputs": None}, {"event_time": 1}])
def test_an_entry_that_govern_cannot_have_written_differs(fields: dict[str, object]) -> None:
    found = replayed([edited(lines()[0], **fields)])
    assert counts(found) == (1, 1, 0)
    (change,) = found.to_dict()["changes"]
    assert change["after"] == "nothing"


def test_only_a_period_of_event_time_is_reported_whatever_the_offset_it_is_written_in() -> None:
    from ops.audit import read_period

    period = read_period("2014-01-01T01:01:00+01:00", "2014-01-01T00:02:00Z")
    assert counts(replayed(lines(), terms=Terms(period=period))) == (1, 0, 0)
    assert counts(replayed(lines(), terms=Terms(period=Period(None, cases.START_MS)))) == (0, 0, 0)


def test_the_sum_of_what_was_found_apart_does_not_depend_on_the_order() -> None:
    terms = Terms(by_bytes=False)
    parts = [replayed(lines(), STRICTER, terms), replayed(lines()[:1], STRICTER, terms), replayed(lines())]
    there, back = Replayed(), Replayed()
    for part in parts:
        there.add(part.to_dict())
    for part in reversed(parts):
        back.add(orjson.loads(orjson.dumps(part.to_dict())))
    assert there.to_dict() == back.to_dict()
    assert counts(there) == (7, 3, 0)
    (change,) = there.to_dict()["changes"]
    assert (change["before"], change["after"]) == ("allow allowed_by_policy", "deny no_policy_matched")
    assert (change["count"], change["outcomes"]) == (3, {"none yet": 3})


CANDIDATES = Terms(by_bytes=False)
CONTENDS = {"arbitration": {"conflicts_with": ["activate_cooling"], "window_s": 10}}
CONTEST: dict[str, Any] = {
    "policies": [{"id": "may", **CONTENDS}],
    "given": [{}, {"at": 1, "confidence": 0.99}, {"wall": 10}, {"at": 60}, {"at": 120}],
}


def test_a_note_of_an_open_contest_is_told_apart_from_what_differs() -> None:
    found = replayed(lines(case=CONTEST), policies_of(CONTEST))
    assert counts(found) == (6, 0, 0)
    assert (found.not_replayable, found.to_dict()["not_replayable"]) == (1, 1)
    found.add(found.to_dict())
    assert (found.decisions, found.not_replayable) == (12, 2)


def test_candidates_are_compared_by_the_first_decision_of_each_proposal_also_when_its_contest_closed_later() -> None:
    contest = lines(case=CONTEST)
    assert counts(replayed(contest, policies_of(CONTEST), CANDIDATES)) == (3, 0, 0)
    stricter = policies_of({"policies": [{"id": "may", "when": "confidence > 0.95", **CONTENDS}]})
    found = replayed(contest, stricter, CANDIDATES)
    assert counts(found) == (3, 2, 0), "the notes are no decisions"
    assert {(change["before"], change["after"]) for change in found.to_dict()["changes"]} == {
        ("deny lost_arbitration", "deny no_policy_matched"), ("allow allowed_by_policy", "deny no_policy_matched"),
    }  # fmt: skip


def test_candidates_are_compared_when_only_they_or_only_the_recorded_ones_arbitrate() -> None:
    without = policies_of({"policies": [{"id": "may"}]})
    (change,) = replayed(lines(case=CONTEST), without, CANDIDATES).to_dict()["changes"]
    assert (change["before"], change["after"], change["count"]) == ("deny lost_arbitration", "allow allowed_by_policy", 1)
    case = {**CONTEST, "policies": [{"id": "may"}]}
    found = replayed(lines(case=case), policies_of(CONTEST), CANDIDATES)
    assert {(change["before"], change["after"], change["count"]) for change in found.to_dict()["changes"]} == {
        ("allow allowed_by_policy", "deny lost_arbitration", 1), ("allow allowed_by_policy", "contends", 1),
    }  # fmt: skip


def test_what_people_led_to_is_not_compared_with_candidates() -> None:
    case = {
        "policies": [{"id": "wait", "verdict": "hold"}],
        "given": [
            {}, {"answer_to": 0, "answer": "approve", "by": "ada"},
            {"override": "activate_cooling", "by": "edsger", "parameters": {"duration_s": 60}, "reason": "smoke"},
        ],
    }  # fmt: skip
    assert counts(replayed(lines(case=case), policies_of({"policies": [{"id": "may"}]}), CANDIDATES)) == (1, 1, 0)


def test_a_command_that_people_let_go_is_lost_with_the_decision_they_were_asked_by() -> None:
    case = {
        "policies": [{"id": "wait", "verdict": "hold"}],
        "given": [{}, {"answer_to": 0, "answer": "approve", "by": "ada"}, {"at": 60}],
    }
    (denied,) = replayed(lines(case=case), policies_of({"policies": [{"id": "may", "when": "false"}]}), CANDIDATES).to_dict()["changes"]
    assert (denied["before"], denied["after"], denied["count"]) == ("hold held_by_policy", "deny no_policy_matched", 2)
    assert denied["outcomes"] == {"none yet": 1}, "nobody let the second one go"
    (allowed,) = replayed(lines(case=case), policies_of({"policies": [{"id": "may"}]}), CANDIDATES).to_dict()["changes"]
    assert (allowed["after"], allowed["outcomes"]) == ("allow allowed_by_policy", {})


def test_a_forged_command_id_is_told_and_stops_no_replay() -> None:
    forged = [edited(line, command_id=["not", "an", "id"]) for line in lines()[:1]]
    (change,) = replayed(forged, STRICTER, CANDIDATES).to_dict()["changes"]
    assert change["outcomes"] == {"none yet": 1}


def test_a_change_tells_what_would_be_asked_of_people() -> None:
    asking = {"id": "ask", "verdict": "require_approval", "approval": {"roles": ["approver"], "approvers": 2, "within_s": 60}}
    found = replayed(lines(), policies_of({"policies": [asking, {"id": "wait", "verdict": "hold"}]}), CANDIDATES)
    (change,) = found.to_dict()["changes"]
    assert (change["count"], change["approvals"]) == (3, {"1 of approver": 3, "2 of approver": 3})


def test_what_was_paused_is_paused_under_candidates_too_until_it_was_resumed() -> None:
    may = Policy(policy_id="may", version=1, status="active", when="true", verdict="allow", reason="r")
    events = [may, PolicySwitch(paused=True, agent="a"), PolicySwitch(paused=True), PolicySwitch(paused=False, agent="a"), PolicySwitch(paused=False)]
    log = PolicyLog(
        [
            (offset, orjson.dumps({"type": event.event_type, "data": event.model_dump(mode="json")}))
            for offset, event in enumerate(events)
        ],
        CONTRACT.policy_variables(),
    )
    governor, state, decisions = Governor(CONTRACT, max_hops=6), SubjectState(), []
    for offset in range(len(events)):
        proposal = governor.read.proposal(b"m-1", cases.proposal("machines", "m-1", DEFAULTS, offset))
        (decided,) = governor.decide(state, proposal, log[offset], Place(0, offset, policies_offset=offset))
        decisions.append(Line(0, offset, b"m-1", decided.decision))
    reasons = [orjson.loads(line.value or b"")["data"]["reason"] for line in decisions]
    assert reasons == ["allowed_by_policy", "paused", "paused", "paused", "allowed_by_policy"]
    found = Replayed()
    found.replay(governor, SubjectLog(decisions), Candidates([may], log), CANDIDATES)
    assert counts(found) == (5, 0, 0)
