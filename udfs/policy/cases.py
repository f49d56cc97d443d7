"""Given/expect cases of the truth table: the same for `policy test` and for our own tests.

A case is data:
    given    proposals about one subject, in order, each a mapping; between them outcomes, what people
             say, and the wall clock
    expect   for each decision what it must say: any of `verdict`, `reason`, `action`, `parameters`,
             `obligations`, `is_commanded`, `matched` (policy ids), `explains` (a part of the
             explanation), `clock` (seconds), `would` (verdict and reason under shadow and canary, or under the active
             versions where a canary decided), `lost_to` (which row won);
             for each note: `note` (contends, counted, refused, escalated), `explains`
    max_holds  how many may wait for people, and for each other (100)
    people   name -> {roles, may, is_active}; their keys are made from their names
A proposal: agent, action, situation, parameters, confidence, features, hops, chain (correlation id);
`at`, `features_at` in seconds of event time after the case's start, `expires_after` in seconds. An outcome:
`outcome_of` (which decision, from 0), status, cost, at. An answer: `answer_to` (which decision held),
`answer` (approve, refuse, edit), `by`, parameters, reason, `digest_of` (another decision's action). An
override: `override` (the action), `by`, parameters, reason, break_glass. `wall` is the wall clock in seconds
after the case's start, on any row; a row with nothing else lets it pass. `seen`: features of a situation that
nobody proposed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contracts.approval import Answer, Override, Person
from contracts.decision import Decision, Grant, Noted
from contracts.domain import DomainContract
from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.limit_claim import Settlement
from contracts.outcome import Outcome
from contracts.proposal import Proposal
from udfs.policy.govern import MAX_HOLDS, Governor, NeedsGrant
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Incoming, Reported, Word
from udfs.policy.signing import public_text, sign, to_sign
from udfs.policy.subject import SubjectState
from udfs.policy.writing import Decided, Place
from udfs.serde import write_event
from udfs.wide_limits.core import WideLimits

START_MS = parse_time_ms("2014-01-01T00:00:00Z")
_PROPOSAL = {
    "at", "agent", "action", "situation", "parameters", "confidence", "features", "features_at",
    "expires_after", "hops", "chain", "wall",
}  # fmt: skip
_OUTCOME = {"outcome_of", "status", "cost", "at"}
_ANSWER = {"answer_to", "answer", "by", "parameters", "reason", "digest_of", "wall"}
_OVERRIDE = {"override", "by", "parameters", "reason", "break_glass", "wall"}
_SECONDS = {"at", "features_at", "expires_after", "wall"}
_EXPECT = {
    "verdict", "reason", "action", "parameters", "obligations", "is_commanded", "matched", "explains", "clock",
    "would", "lost_to",
}  # fmt: skip


def key_of(person: str) -> Ed25519PrivateKey:
    """A person's key for cases, made from the name: not for anything that is real."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(person.encode()).digest())


def people_of(given: Mapping[str, Any]) -> list[Person]:
    """The people of a case. Raises ValidationError for one that is none."""
    return [
        Person.model_validate_json(
            orjson.dumps({"roles": [], **raw, "person": name, "public_key": public_text(key_of(name))})
        )
        for name, raw in given.items()
    ]


@dataclass
class Played:
    """What came of a case, and the records people and actuators wrote in it, by offset."""

    decided: list[Decided] = field(default_factory=list)
    answers: dict[int, tuple[bytes | None, bytes | None]] = field(default_factory=dict)
    outcomes: list[tuple[int, Reported]] = field(default_factory=list)
    proposals: dict[int, tuple[bytes | None, bytes | None]] = field(default_factory=dict)


def play(
    contract: DomainContract, policies: PolicySet, case: Mapping[str, Any],
    defaults: Mapping[str, Any], *, max_hops: int,
) -> Played:  # fmt: skip
    """Every row of a case in order; the state passes through its JSON as it does in Flink.

    Raises ValueError for a case that is none, BadInput for a proposal outside the contract.
    """
    governor = Governor(contract, max_hops=max_hops, max_holds=case.get("max_holds", MAX_HOLDS))
    state, wide = SubjectState(), WideLimits()
    played = Played()

    def granted(trigger: Word | Incoming | None, place: Place) -> SubjectState:
        """Decide (None: look at the clock), asking wider limits as long as they are needed; the state after it."""
        grants: dict[str, Grant] = {}
        while True:
            after = SubjectState.from_json(state.to_json())
            try:
                asked = place._replace(grants=grants)
                if trigger is None:
                    played.decided.extend(governor.tick(after, policies, asked))
                elif isinstance(trigger, Word):
                    played.decided.extend(governor.hear(after, trigger, policies, asked))
                else:
                    played.decided.extend(governor.decide(after, trigger, policies, asked))
                return after
            except NeedsGrant as needed:
                came = wide.claim(needed.claim)
                assert came.grant is not None
                grants[needed.claim.claim_id] = came.grant

    decided = played.decided
    subject = str(defaults.get("subject", "a-subject"))
    key, wall_ms = subject.encode(), START_MS
    for ordinal, row in enumerate(case["given"]):
        wall_ms = max(wall_ms, START_MS + int(row.get("wall", 0) * 1000))
        heard = Place(0, ordinal, trigger="answer", wall_ms=wall_ms)
        if "outcome_of" in row:
            _refuse_unknown(row, _OUTCOME)
            reported = governor.read.outcome(key, outcome(subject, decided, row))
            if reported is None:
                raise ValueError(f"given {ordinal}: not an outcome: {row}")
            if (settled := state.report(reported, ordinal)) is not None:
                how: Literal["failed", "succeeded"] = "failed" if reported.has_failed else "succeeded"
                at = format_time_ms(reported.event_ms)
                wide.settle(Settlement(claim_id=settled.claim_id, what=how, at=at, cost=settled.cost))
            played.outcomes.append((ordinal, reported))
        elif "seen" in row:
            _refuse_unknown(row, {"seen"})
            state.see(row["seen"], policies.versioned_by)
        elif "answer_to" in row or "override" in row:
            _refuse_unknown(row, _ANSWER if "answer_to" in row else _OVERRIDE)
            said = spoken(contract.name, subject, decided, row, ordinal, wall_ms)
            played.answers[ordinal] = (key, said)
            state = granted(governor.read.word(key, said, policies.people), heard)
        elif set(row) == {"wall"}:
            state = granted(None, Place(trigger="clock", wall_ms=wall_ms))
        else:
            _refuse_unknown(row, _PROPOSAL)
            given = {**defaults, **row}
            event = proposal(contract.name, subject, given, ordinal)
            played.proposals[ordinal] = (key, event)
            incoming = governor.read.proposal(key, event)
            state = granted(incoming, Place(0, ordinal, wall_ms=wall_ms))
        state = SubjectState.from_json(state.to_json())
    return played


def spoken(
    domain: str, subject: str, decided: list[Decided], row: Mapping[str, Any], ordinal: int, wall_ms: int
) -> bytes:
    """An answer's or override's event out of a case's row, signed."""
    by = str(row["by"])
    data: dict[str, Any] = {
        "person": by, "signed_at": format_time_ms(wall_ms), "parameters": row.get("parameters", {}),
        "reason": row.get("reason", ""),
    }  # fmt: skip
    kind: type[Answer | Override]
    if "override" in row:
        kind = Override
        data |= {"action": row["override"], "break_glass": row.get("break_glass", False)}
    else:
        kind = Answer
        asked = orjson.loads(decided[row["answer_to"]].decision)
        of = orjson.loads(decided[row["digest_of"]].decision) if "digest_of" in row else asked
        data |= {
            "approval_id": asked["data"]["approval"]["approval_id"], "answer": row["answer"],
            "action_digest": of["data"]["approval"]["action_digest"],
        }  # fmt: skip
    data["signature"] = sign(key_of(by), to_sign(domain, subject, kind.event_type, data))
    return write_event(
        event_id=derive_id(f"{subject}|{ordinal}", "case", by), source=f"/flyball/{domain}/case",
        event_type=kind.event_type, subject=subject, time_ms=wall_ms,
        dataschema=schema_urn(domain, kind.event_type, kind.schema_version),
        data=data,
    )  # fmt: skip


def _refuse_unknown(row: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(row) - known):
        raise ValueError(f"expected some of {sorted(known)}, came {unknown}")
    for name in _SECONDS & set(row):
        if not isinstance(row[name], int | float):
            raise ValueError(f"{name}: expected a number of seconds, came {row[name]!r:.100}")


def _instant(seconds: float) -> str:
    return format_time_ms(START_MS + int(seconds * 1000))


def proposal(domain: str, subject: str, given: Mapping[str, Any], ordinal: int) -> bytes:
    """A proposal's event out of a case's row; equal arguments give equal bytes."""
    at = given.get("at", 0)
    proposal_id = derive_id(f"{subject}|{ordinal}", "case", str(given.get("agent")))
    expires_after = given.get("expires_after")
    return write_event(
        event_id=proposal_id,
        source=f"/flyball/{domain}/case",
        event_type=Proposal.event_type,
        subject=subject,
        time_ms=START_MS + int(at * 1000),
        dataschema=schema_urn(domain, Proposal.event_type, Proposal.schema_version),
        correlation_id=str(given.get("chain", proposal_id)),
        causation_id=proposal_id,
        hops=given.get("hops", 0),
        expiry=None if expires_after is None else _instant(at + expires_after),
        data={
            "event_time": _instant(at),
            "agent": given["agent"],
            "agent_version": 1,
            "action": given["action"],
            "parameters": given.get("parameters", {}),
            "confidence": given.get("confidence", 0.9),
            "reason": "a case",
            "situation_type": given["situation"],
            "features": given.get("features", {}),
            "features_at": _instant(given.get("features_at", at)),
        },
    )


def outcome(subject: str, decided: list[Decided], row: Mapping[str, Any]) -> bytes:
    command = decided[row["outcome_of"]].command
    if command is None:
        raise ValueError(f"proposal {row['outcome_of']} has no command to report on")
    data = orjson.loads(command)["data"]
    return orjson.dumps(
        {
            "type": Outcome.event_type,
            "subject": subject,
            "data": {
                "event_time": _instant(row.get("at", 0)),
                "command_id": data["command_id"],
                "action": data["action"],
                "status": row.get("status", "succeeded"),
                "cost": row.get("cost"),
            },
        }
    )


def mismatch(
    decided: Decided, wanted: Mapping[str, Any], proposals: Mapping[int, tuple[bytes | None, bytes | None]]
) -> str | None:
    """What of `wanted` the decision does not say, in words; None when it says all of it."""
    event = orjson.loads(decided.decision)
    if ("note" in wanted) is not (event["type"] == Noted.event_type):
        return f"expected a {'note' if 'note' in wanted else 'decision'}, came {event['data']}"
    if "note" in wanted:
        _refuse_unknown(wanted, {"note", "explains"})
        noted = Noted.model_validate_json(orjson.dumps(event["data"]))
        return _first_mismatch({"note": noted.what}, noted.explanation, wanted)
    _refuse_unknown(wanted, _EXPECT)
    data = Decision.model_validate_json(orjson.dumps(event["data"]))
    candidate = data.candidate
    ids = {orjson.loads(event or b"")["id"]: ordinal for ordinal, (_, event) in proposals.items()}
    said: dict[str, Any] = {
        "lost_to": ids.get(data.lost_to),
        "verdict": data.verdict,
        "reason": data.reason.value,
        "action": data.action,
        "parameters": data.parameters,
        "obligations": data.obligations,
        "is_commanded": decided.command is not None,
        "matched": [policy.policy_id for policy in data.policies],
        "clock": (parse_time_ms(data.decided_at_event_time) - START_MS) / 1000,
        "would": candidate and {"verdict": candidate.verdict, "reason": candidate.reason.value},
    }
    return _first_mismatch(said, data.explanation, wanted)


def _first_mismatch(said: Mapping[str, Any], explanation: str, wanted: Mapping[str, Any]) -> str | None:
    for name, value in wanted.items():
        if name == "explains":
            if value not in explanation:
                return f"expected an explanation with {value!r}, came {explanation!r}"
        elif said[name] != value:
            return f"expected {name} {value!r}, came {said[name]!r} ({explanation})"
    return None
