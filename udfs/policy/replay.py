"""Recorded decisions made again: from the decisions themselves, the outcomes and the policies.

The same core as the job. A decision says which outcomes and which policies were known when it was
made (`Inputs`), so the order in which `govern` happened to read its topics is repeated exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from contracts.envelope import parse_time_ms
from contracts.proposal import Proposal
from udfs.policy.audit import Line
from udfs.policy.govern import Governor, Incoming, Place, Reported, SubjectState
from udfs.policy.policy_set import PolicySet


@dataclass(frozen=True)
class Remade:
    """A recorded decision and what it is now."""

    recorded: dict[str, Any]
    remade: dict[str, Any]
    is_same: bool


def proposal_in(decision: Mapping[str, Any]) -> Incoming:
    """The proposal a decision was made about, out of the decision's own event."""
    data = decision["data"]
    proposed = data["proposed"] or data
    expires_at = data["expires_at"]
    return Incoming(
        id=data["proposal_id"],
        subject=decision["subject"],
        event_ms=parse_time_ms(data["event_time"]),
        features_ms=parse_time_ms(data["features_at"]),
        expiry_ms=None if expires_at is None else parse_time_ms(expires_at),
        correlation_id=decision["correlationid"],
        hops=decision["hops"],
        traceparent=decision.get("traceparent"),
        data=Proposal.model_validate(
            {
                "event_time": data["event_time"],
                "agent": data["agent"],
                "agent_version": data["agent_version"],
                "action": proposed["action"],
                "parameters": proposed["parameters"],
                "confidence": data["confidence"],
                "reason": data["proposal_reason"],
                "situation_type": data["situation_type"],
                "features": data["features"],
                "features_at": data["features_at"],
                "model": data["model"],
            }
        ),
        sha256=data["inputs"]["proposal_sha256"],
    )


def replay(
    governor: Governor,
    chain: Sequence[Line],
    outcomes: Sequence[tuple[int, Reported]],
    policies_at: Mapping[int, PolicySet],
) -> Iterator[Remade]:
    """One subject's decisions in order, each made again.

    `outcomes`: the subject's, with their offsets, in order. `policies_at`: the policies as they were
    after the record of each offset that a decision names.
    """
    state = SubjectState()
    settled = 0
    for line in chain:
        recorded = orjson.loads(line.value or b"")
        inputs = recorded["data"]["inputs"]
        while settled < len(outcomes) and outcomes[settled][0] <= inputs["outcomes_offset"]:
            offset, reported = outcomes[settled]
            state.report(reported, offset)
            settled += 1
        place = Place(inputs["proposal_partition"], inputs["proposal_offset"], inputs["policies_offset"])
        policies = policies_at[inputs["policies_offset"]]
        decided = governor.decide(state, proposal_in(recorded), policies, place)
        is_same = decided.decision == line.value
        yield Remade(recorded, recorded if is_same else orjson.loads(decided.decision), is_same)
