"""Given/expect cases of the truth table: the same for `policy test` and for our own tests.

A case is data:
    given    proposals about one subject, in order, each a mapping; and outcomes between them
    expect   for each proposal what its decision must say: any of `verdict`, `reason`, `action`,
             `obligations`, `is_commanded`, `matched` (policy ids), `explains` (a part of the
             explanation), `clock` (seconds), `would` (verdict and reason under shadow and canary)
A proposal: agent, action, situation, parameters, confidence, features, hops, chain (correlation id);
`at`, `features_at` in seconds of event time after the case's start, `expires_after` in seconds. An outcome:
`outcome_of` (which proposal, from 0), status, cost, at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from contracts.decision import Decision
from contracts.domain import DomainContract
from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.outcome import Outcome
from contracts.proposal import Proposal
from udfs.policy.govern import Decided, Governor, Place, SubjectState
from udfs.policy.policy_set import PolicySet
from udfs.serde import write_event

START_MS = parse_time_ms("2014-01-01T00:00:00Z")
_PROPOSAL = {
    "at", "agent", "action", "situation", "parameters", "confidence", "features", "features_at",
    "expires_after", "hops", "chain",
}  # fmt: skip
_OUTCOME = {"outcome_of", "status", "cost", "at"}
_EXPECT = {
    "verdict", "reason", "action", "obligations", "is_commanded", "matched", "explains", "clock", "would",
}  # fmt: skip


def decide(
    contract: DomainContract, policies: PolicySet, case: Mapping[str, Any],
    defaults: Mapping[str, Any], *, max_hops: int,
) -> list[Decided]:  # fmt: skip
    """Every proposal of a case in order; the state passes through its JSON as it does in Flink.

    Raises ValueError for a case that is none, BadInput for a proposal outside the contract.
    """
    governor, state = Governor(contract, max_hops=max_hops), SubjectState()
    decided: list[Decided] = []
    subject = str(defaults.get("subject", "a-subject"))
    for ordinal, row in enumerate(case["given"]):
        if "outcome_of" in row:
            _refuse_unknown(row, _OUTCOME)
            reported = governor.read_outcome(subject.encode(), outcome(subject, decided, row))
            if reported is None:
                raise ValueError(f"given {ordinal}: not an outcome: {row}")
            state.report(reported, ordinal)
        else:
            _refuse_unknown(row, _PROPOSAL)
            given = {**defaults, **row}
            incoming = governor.read(subject.encode(), proposal(contract.name, subject, given, ordinal))
            decided.append(governor.decide(state, incoming, policies, Place(0, ordinal)))
        state = SubjectState.from_json(state.to_json())
    return decided


def _refuse_unknown(row: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(row) - known):
        raise ValueError(f"expected some of {sorted(known)}, came {unknown}")


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
        dataschema=schema_urn(domain, Proposal.event_type),
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


def mismatch(decided: Decided, wanted: Mapping[str, Any]) -> str | None:
    """What of `wanted` the decision does not say, in words; None when it says all of it."""
    _refuse_unknown(wanted, _EXPECT)
    data = Decision.model_validate_json(orjson.dumps(orjson.loads(decided.decision)["data"]))
    candidate = data.candidate
    said = {
        "verdict": data.verdict,
        "reason": data.reason.value,
        "action": data.action,
        "obligations": data.obligations,
        "is_commanded": decided.command is not None,
        "matched": [policy.policy_id for policy in data.policies],
        "clock": (parse_time_ms(data.decided_at_event_time) - START_MS) / 1000,
        "would": candidate and {"verdict": candidate.verdict, "reason": candidate.reason.value},
    }
    for name, value in wanted.items():
        if name == "explains":
            if value not in data.explanation:
                return f"expected an explanation with {value!r}, came {data.explanation!r}"
        elif said[name] != value:
            return f"expected {name} {value!r}, came {said[name]!r} ({data.explanation})"
    return None
