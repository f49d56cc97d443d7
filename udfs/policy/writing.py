"""What `govern` writes: decisions and notes as entries of the subject's chain, and commands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from contracts.command import Command
from contracts.data import Scalar
from contracts.decision import Decision, Grant, Noted, Reason, Trigger, Verdict
from contracts.envelope import format_time_ms, schema_urn
from contracts.limit_claim import Settlement
from contracts.proposal import Proposal
from udfs.policy.policy_set import Judgement
from udfs.policy.reading import Incoming
from udfs.policy.subject import SubjectState
from udfs.serde import write_event

STAGE = "govern"


class Place(NamedTuple):
    """Where in the log `govern` stands when it decides, and the wall clock; recorded with the decision.

    `partition` and `offset` are those of what triggered it (nothing for the clock). `grants`: what
    limits wider than the subject said to the claims of this trigger, by claim id.
    """

    partition: int = 0
    offset: int = 0
    policies_offset: int = -1
    trigger: Trigger = "proposal"
    wall_ms: int = 0
    grants: Mapping[str, Grant] = MappingProxyType({})


class Decided(NamedTuple):
    """One entry of the subject's chain (a decision or a note), and the command it allows.

    `verdict`: a decision's. `settlement`: of its claim, when the command's outcome had come before it.
    """

    decision: bytes
    command: bytes | None = None
    verdict: Verdict | None = None
    settlement: Settlement | None = None


class Ruling(NamedTuple):
    """What was decided of one action, and all that is recorded of why.

    `lost_to`: the proposal that won instead. `beside`: what the policies of the scope's candidate say, where they were
    asked together with those that decide; `candidate`: what came of it, as contracts/decision.py. `approval`: as contracts/decision.py `Asked`; `override`: as `Overridden`; `replaced`: as `Proposed`.
    """

    verdict: Verdict
    reason: Reason
    told: str
    action: str
    parameters: Mapping[str, Scalar]
    counters: Mapping[str, int | float] = MappingProxyType({})
    judgement: Judgement | None = None
    beside: Judgement | None = None
    candidate: dict[str, object] | None = None
    approval: Mapping[str, object] | None = None
    lost_to: str | None = None
    override: Mapping[str, object] | None = None
    grant: Mapping[str, object] | None = None
    replaced: Mapping[str, object] | None = None

    @property
    def matched(self) -> list[dict[str, object]]:
        return matches(self.judgement) if self.judgement else []

    @property
    def obligations(self) -> Mapping[str, Scalar]:
        return self.judgement.obligations if self.judgement and self.verdict == "allow" else {}


def matches(judgement: Judgement) -> list[dict[str, object]]:
    """As contracts/decision.py `PolicyMatch`."""
    return [
        {"policy_id": policy_id, "version": version, "verdict": verdict}
        for policy_id, version, verdict in judgement.matched
    ]


def _explained(data: Proposal) -> dict[str, object]:
    """What a proposal tells beyond features, where it tells it."""
    found: dict[str, object] = {}
    if data.reasoned is not None:
        found["reasoned"] = data.reasoned.__dict__
    for name in ("fallback", "suspects", "evidence"):
        if told := getattr(data, name):
            found[name] = told
    return found


class Writer:
    """Writes for one domain. Every entry advances the chain in the subject's state."""

    def __init__(self, domain: str) -> None:
        self._source = f"/flyball/{domain}/{STAGE}"
        self._decision_schema = schema_urn(domain, Decision.event_type, Decision.schema_version)
        self._noted_schema = schema_urn(domain, Noted.event_type, Noted.schema_version)
        self._command_schema = schema_urn(domain, Command.event_type, Command.schema_version)

    def decision(
        self, state: SubjectState, proposal: Incoming, ruling: Ruling, *, decision_id: str, cause_id: str,
        command_id: str | None, policy_set_digest: str, place: Place, proposed_at: tuple[int, int],
    ) -> bytes:  # fmt: skip
        """`proposed_at`: partition and offset of the proposal, which may lie before `place`."""
        data = proposal.data
        event = write_event(
            event_id=decision_id,
            source=self._source,
            event_type=Decision.event_type,
            subject=proposal.subject,
            time_ms=proposal.event_ms,
            dataschema=self._decision_schema,
            correlation_id=proposal.correlation_id,
            causation_id=cause_id,
            hops=proposal.hops,
            traceparent=proposal.traceparent,
            data={
                "event_time": data.event_time,
                "decided_at_event_time": format_time_ms(state.clock_ms or proposal.event_ms),
                "verdict": ruling.verdict,
                "reason": ruling.reason.value,
                "explanation": ruling.told[:2000],
                "proposal_id": proposal.id,
                "agent": data.agent,
                "agent_version": data.agent_version,
                "action": ruling.action,
                "parameters": ruling.parameters,
                "proposed": ruling.replaced,
                "proposal_reason": data.reason,
                "expires_at": None if proposal.expiry_ms is None else format_time_ms(proposal.expiry_ms),
                "confidence": data.confidence,
                "situation_type": data.situation_type,
                "features": data.features,
                "features_at": data.features_at,
                "model": None if data.model is None else data.model.__dict__,
                **_explained(data),
                "policy_set_digest": policy_set_digest,
                "policies": ruling.matched,
                "counters": dict(ruling.counters),
                "obligations": ruling.obligations,
                "candidate": ruling.candidate,
                "approval": ruling.approval,
                "lost_to": ruling.lost_to,
                "override": ruling.override,
                "grant": ruling.grant,
                "command_id": command_id,
                "inputs": self._inputs(
                    state, place, proposed_at, proposal.sha256, waits=ruling.verdict == "hold"
                ),
                "entry": self._next_entry(state),
            },
        )
        state.head = hashlib.sha256(event).hexdigest()
        return event

    def note(
        self, state: SubjectState, *, event_id: str, subject: str, event_ms: int, correlation_id: str,
        cause_id: str, about: str, what: str, told: str, answer: Mapping[str, object] | None,
        requires: list[dict[str, object]], place: Place, proposed_at: tuple[int, int], sha256: str,
    ) -> bytes:  # fmt: skip
        """What happened without deciding anything; see contracts/decision.py `Noted`."""
        event = write_event(
            event_id=event_id,
            source=self._source,
            event_type=Noted.event_type,
            subject=subject,
            time_ms=event_ms,
            dataschema=self._noted_schema,
            correlation_id=correlation_id,
            causation_id=cause_id,
            data={
                "event_time": format_time_ms(event_ms),
                "what": what,
                "explanation": told[:2000],
                "about": about,
                "answer": answer,
                "requires": requires,
                "inputs": self._inputs(state, place, proposed_at, sha256, waits=True),
                "entry": self._next_entry(state),
            },
        )
        state.head = hashlib.sha256(event).hexdigest()
        return event

    @staticmethod
    def _next_entry(state: SubjectState) -> dict[str, object]:
        state.decisions += 1
        return {"number": state.decisions, "previous": state.head}

    @staticmethod
    def _inputs(
        state: SubjectState, place: Place, proposed_at: tuple[int, int], sha256: str, *, waits: bool
    ) -> dict[str, object]:
        is_timed = waits or place.trigger != "proposal"
        return {
            "trigger": place.trigger,
            "proposal_partition": proposed_at[0],
            "proposal_offset": proposed_at[1],
            "proposal_sha256": sha256,
            "outcomes_offset": state.outcomes_offset,
            "policies_offset": place.policies_offset,
            "answer_offset": place.offset if place.trigger == "answer" else None,
            "wall_time": format_time_ms(place.wall_ms) if is_timed else None,
            "versions": state.versions,
        }

    def command(self, proposal: Incoming, ruling: Ruling, *, decision_id: str, command_id: str) -> bytes:
        data = proposal.data
        # What is done instead of something that expired has no expiry of its own.
        is_fallback = ruling.reason is Reason.STALE_FALLBACK
        expires = proposal.expiry_ms is not None and not is_fallback
        return write_event(
            event_id=command_id,
            source=self._source,
            event_type=Command.event_type,
            subject=proposal.subject,
            time_ms=proposal.event_ms,
            dataschema=self._command_schema,
            correlation_id=proposal.correlation_id,
            causation_id=decision_id,
            hops=proposal.hops,
            traceparent=proposal.traceparent,
            expiry=format_time_ms(proposal.expiry_ms or 0) if expires else None,
            data={
                "event_time": data.event_time,
                "command_id": command_id,
                "action": ruling.action,
                "parameters": ruling.parameters,
                "agent": data.agent,
                "decision_id": decision_id,
                "proposal_id": proposal.id,
                "reason": ruling.told if is_fallback else data.reason or ruling.told,
                "obligations": ruling.obligations,
            },
        )
