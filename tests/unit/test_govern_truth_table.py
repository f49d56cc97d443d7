"""`govern`'s pure core against tests/data/govern_truth_table.yaml, and that a log decides itself again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from ruamel.yaml import YAML

from contracts.approval import Override
from contracts.command import Command
from contracts.decision import Reason
from contracts.domain import DomainContract, load_domain
from contracts.envelope import parse_time_ms
from contracts.errors import BadInput
from contracts.outcome import Outcome
from contracts.policy import Policy, PolicySwitch
from tests.loop import proposal
from udfs.policy import cases
from udfs.policy.govern import Governor
from udfs.policy.policy_book import read_policy_event
from udfs.policy.policy_file import parse
from udfs.policy.policy_set import PolicySet
from udfs.policy.signing import sign, to_sign
from udfs.policy.subject import SubjectState
from udfs.policy.writing import Decided

START_MS = parse_time_ms("2014-01-01T00:00:00Z")
CONTRACT = load_domain("machines")
TABLE: list[dict[str, Any]] = YAML(typ="safe").load(
    (Path(__file__).parent.parent / "data" / "govern_truth_table.yaml").read_text()
)


def contract_of(case: dict[str, Any]) -> DomainContract:
    return load_domain(case.get("domain", CONTRACT.name))


def policies_of(case: dict[str, Any]) -> PolicySet:
    policies = []
    for given in case.get("policies", ()):
        fields = {"version": 1, "status": "active", "when": "true", "verdict": "allow", "reason": "a test"}
        raw = {**fields, **given}
        raw["policy_id"] = raw.pop("id")
        policies.append(parse(orjson.dumps(raw).decode(), contract_of(case).policy_variables()))
    switches = [PolicySwitch(paused=True, **given) for given in case.get("switches", ())]
    return PolicySet.compile(policies, switches, cases.people_of(case.get("people") or PEOPLE))


PEOPLE = {
    "ada": {"roles": ["approver", "underwriter"]},
    "grace": {"roles": ["underwriter"]},
    "edsger": {"roles": ["underwriter", "head"], "may": ["override", "break_glass"]},
    "alan": {"roles": ["visitor"], "may": ["override"]},
    "gone": {"roles": ["approver"], "is_active": False},
}
DEFAULTS = {
    "agent": "a", "action": "activate_cooling", "situation": "machines.reading_scored",
    "parameters": {"duration_s": 60}, "subject": "m-1",
}  # fmt: skip


def play(case: dict[str, Any]) -> cases.Played:
    return cases.play(contract_of(case), policies_of(case), case, DEFAULTS, max_hops=6)


def decide(case: dict[str, Any]) -> list[Decided]:
    return play(case).decided


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case["case"])
def test_the_decision_is_as_the_truth_table_says_when_a_proposal_comes(case: dict[str, Any]) -> None:
    played = play(case)
    decided = played.decided
    assert len(decided) == len(case["expect"])
    for ordinal, (got, wanted) in enumerate(zip(decided, case["expect"], strict=True)):
        assert cases.mismatch(got, wanted, played.proposals) is None, f"row {ordinal}"
        data = orjson.loads(got.decision)["data"]
        if "verdict" in data:
            assert (got.command is not None) is (data["verdict"] == "allow") is (data["command_id"] is not None)


def test_every_reason_code_is_in_the_truth_table() -> None:
    assert {row["reason"] for case in TABLE for row in case["expect"] if "reason" in row} == set(Reason)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case["case"])
def test_the_same_bytes_come_out_when_a_log_is_decided_again(case: dict[str, Any]) -> None:
    assert decide(case) == decide(case)


def test_a_command_says_what_was_allowed_when_there_is_one() -> None:
    case = {"policies": [{"id": "may"}], "given": [{"expires_after": 60, "parameters": {"duration_s": 5}}]}
    (decided,) = decide(case)
    assert decided.command is not None
    decision, command = orjson.loads(decided.decision), orjson.loads(decided.command)
    data = Command.model_validate(command["data"])
    assert data.command_id == command["id"] == decision["data"]["command_id"]
    assert data.decision_id == command["causationid"] == decision["id"]
    assert (data.action, data.parameters, data.agent) == ("activate_cooling", {"duration_s": 5}, "a")
    assert data.event_time == decision["data"]["event_time"] == "2014-01-01T00:00:00Z"
    assert command["expirytime"] == "2014-01-01T00:01:00Z"


def test_no_command_comes_out_when_the_allowed_action_needs_none() -> None:
    contract = load_domain("payments")
    action = next(a for a in contract.actions.values() if not a.is_commanded)
    situation = next(iter(contract.situations))
    governor = Governor(contract, max_hops=6)
    policies = PolicySet.compile(
        [Policy(policy_id="may", version=1, status="active", when="true", verdict="allow", reason="r")]
    )
    _, event = proposal(
        "m-1", event_ms=START_MS, action=action.action, situation_type=situation, features={},
        parameters=dict.fromkeys(action.model_fields, "x"), domain="payments",
    )  # fmt: skip
    (decided,) = governor.decide(SubjectState(), governor.read.proposal(b"m-1", event), policies)
    assert orjson.loads(decided.decision)["data"]["verdict"] == "allow"
    assert decided.command is None


POLICY = {"policy_id": "may", "version": 1, "status": "active", "when": "true", "verdict": "allow", "reason": "r"}
GOOD = orjson.loads(proposal("m-1", event_ms=START_MS)[1])

# what is wrong -> change of the envelope, change of the data, cause
MALFORMED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another type": ({"type": "flyball.command"}, {}, "unknown_type"),
    "another subject than its key": ({"subject": "m-2"}, {}, "key_mismatch"),
    "subject is no text": ({"subject": 5}, {}, "envelope_invalid"),
    "hops is text": ({"hops": "1"}, {}, "envelope_invalid"),
    "hops below 0": ({"hops": -1}, {}, "envelope_invalid"),
    "hops past all counting": ({"hops": 1e30}, {}, "envelope_invalid"),
    "expiry is prose": ({"expirytime": "soon"}, {}, "envelope_invalid"),
    "an action nobody knows": ({}, {"action": "launch_missiles"}, "data_invalid"),
    "a situation nobody knows": ({}, {"situation_type": "machines.exploded"}, "data_invalid"),
    "a parameter too many": ({}, {"parameters": {"duration_s": 60, "x": 1}}, "data_invalid"),
    "a parameter too few": ({}, {"parameters": {}}, "data_invalid"),
    "a parameter of another type": ({}, {"parameters": {"duration_s": "60"}}, "data_invalid"),
    "a parameter past its bounds": ({}, {"parameters": {"duration_s": 86_401}}, "data_invalid"),
    "confidence over 1": ({}, {"confidence": 1.01}, "data_invalid"),
    "an unknown field": ({}, {"verdict": "allow"}, "data_invalid"),
    "no such day": ({}, {"event_time": "2014-02-30T00:00:00Z"}, "envelope_invalid"),
    "year 0, which cannot be written again": ({}, {"event_time": "0000-01-01T00:00:00Z"}, "envelope_invalid"),
    "a leap second after the last year": ({}, {"event_time": "9999-12-31T23:59:60Z"}, "envelope_invalid"),
    "an expiry after the last year": ({"expirytime": "9999-12-31T23:59:59-23:59"}, {}, "envelope_invalid"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_proposal_is_refused_when_it_is_malformed(name: str) -> None:
    envelope, data, cause = MALFORMED[name]
    event = {**GOOD, **envelope, "data": {**GOOD["data"], **data}}
    with pytest.raises(BadInput) as refused:
        Governor(CONTRACT, max_hops=6).read.proposal(b"m-1", orjson.dumps(event))
    assert refused.value.code == cause


@pytest.mark.parametrize(
    ("value", "cause"),
    [(None, "empty"), (b"", "empty"), (b"{", "not_json"), (b"\xff", "not_json"), (b"[]", "envelope_invalid"), (b"{}", "envelope_invalid")],
)  # fmt: skip
def test_a_record_is_refused_when_it_is_no_proposal(value: bytes | None, cause: str) -> None:
    with pytest.raises(BadInput) as refused:
        Governor(CONTRACT, max_hops=6).read.proposal(b"m-1", value)
    assert refused.value.code == cause


@pytest.mark.parametrize("subject", ["", "m\n1", "m" * 257])
def test_a_proposal_is_refused_when_nothing_could_be_written_about_its_subject(subject: str) -> None:
    with pytest.raises(BadInput) as refused:
        Governor(CONTRACT, max_hops=6).read.proposal(subject.encode(), orjson.dumps({**GOOD, "subject": subject}))
    assert refused.value.code == "envelope_invalid"


@pytest.mark.parametrize("signed_at", ["0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z"])
def test_a_person_is_refused_when_they_sign_at_no_time_that_can_be_written(signed_at: str) -> None:
    policies = policies_of({})
    data: dict[str, Any] = {
        "person": "alan", "signed_at": signed_at, "action": "activate_cooling", "parameters": {"duration_s": 60},
        "reason": "smoke",
    }  # fmt: skip
    data["signature"] = sign(cases.key_of("alan"), to_sign("machines", "m-1", Override.event_type, data))
    event = {**GOOD, "type": Override.event_type, "data": data}
    with pytest.raises(BadInput) as refused:
        Governor(CONTRACT, max_hops=6).read.word(b"m-1", orjson.dumps(event), policies.people)
    assert refused.value.code == "envelope_invalid"


@pytest.mark.parametrize("event_time", ["0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z"])
def test_an_outcome_is_none_when_its_time_cannot_be_written(event_time: str) -> None:
    data = {"event_time": event_time, "command_id": "c", "action": "activate_cooling", "status": "failed"}
    event = {"type": Outcome.event_type, "subject": "m-1", "data": data}
    assert Governor(CONTRACT, max_hops=6).read.outcome(b"m-1", orjson.dumps(event)) is None


@pytest.mark.parametrize(
    "data",
    [
        orjson.dumps({**POLICY, "effective_from": "2014-02-30T00:00:00Z"}),
        orjson.dumps({**POLICY, "obligations": {"x": 2**60}}),
        b"[" * 300 + b"]" * 300,
    ],
    ids=["no such day", "an integer past 2^53", "nested too deeply"],
)
def test_a_policy_event_is_refused_when_it_cannot_be_made_into_a_set(data: bytes) -> None:
    with pytest.raises(BadInput) as refused:
        read_policy_event(b'{"type":"flyball.policy","data":' + data + b"}", CONTRACT.policy_variables())
    assert refused.value.code == "policy_refused"


def test_what_was_allowed_is_forgotten_when_no_limit_looks_back_so_far() -> None:
    state = SubjectState()
    for day in range(5):
        state.clock_ms = START_MS + day * 86_400_000
        state.remember("activate_cooling", 2 * 86_400_000)
    assert state.count("activate_cooling", 10 * 86_400_000) == 2


def test_wider_limits_are_asked_for_when_what_they_count_by_is_a_long_text_and_there_are_many() -> None:
    limits = [{"per": ["feature_detail"], "max_count": 1, "within_s": 60 + n} for n in range(16)]
    played = play(
        {
            "policies": [{"id": f"may-{n}", "limits": limits} for n in range(5)],
            "given": [
                {"situation": "machines.cooling_failed", "features": {"detail": "x" * 5000 + end}} for end in "aab"
            ],
        }
    )
    assert [orjson.loads(each.decision)["data"]["verdict"] for each in played.decided] == ["allow", "deny", "allow"]
