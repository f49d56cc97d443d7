"""The pure core of `govern`: one truth table from proposal to decision.

In this order; each step may end it, each end has a reason code (contracts/decision.py):

    1. seen before                       -> nothing
    2. paused (domain, agent or action)  -> deny   paused
    3. past its expirytime               -> deny   stale_expired
       features older than freshness_s   -> deny   stale_features
    4. more hops than max_hops           -> deny   hop_limit
    5. policies: none matched            -> deny   no_policy_matched
                 a matching forbid       -> deny   forbidden_by_policy
                 one cannot be evaluated -> hold   policy_error
                 a matching hold         -> hold   held_by_policy
    6. rate limits of what was allowed   -> deny   rate_limit
    9. allow                             -> one command
                                            allowed_by_policy

(7 arbitration and 8 approval come later.) `now` is event time: the subject's highest accepted event
time, this proposal's included. Nothing here reads a clock or makes a random number, so a log of
proposals, policies and switches gives the same decisions again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from pydantic import ValidationError

from contracts.command import Command
from contracts.dead_letter import Cause
from contracts.decision import Decision, Reason
from contracts.domain import DomainContract, columns
from contracts.envelope import MAX_HOPS, derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput
from contracts.proposal import Proposal
from udfs.policy.policy_set import PolicySet
from udfs.serde import write_event

STAGE = "govern"
HOUR_MS = 3_600_000
# What CEL sees as allowed_1h and allowed_24h, and the least that is remembered for them.
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class Incoming:
    """A proposal as read from its topic, envelope and data, checked against the contract."""

    id: str
    subject: str
    event_ms: int
    features_ms: int
    expiry_ms: int | None
    correlation_id: str
    hops: int
    traceparent: str | None
    data: Proposal


@dataclass
class SubjectState:
    """What `govern` keeps per subject: its clock, and when each action was allowed (event time, ms).

    Allowed times are kept as long as the longest limit looks back, at least a day. Cleared by
    nothing else: it is a few numbers a subject. `proposals` counts those decided so far.
    """

    clock_ms: int = 0
    allowed_ms: dict[str, list[int]] = field(default_factory=dict)
    proposals: int = 0

    def to_json(self) -> str:
        return orjson.dumps([self.clock_ms, self.allowed_ms, self.proposals]).decode()

    @classmethod
    def from_json(cls, text: str | None) -> SubjectState:
        return cls() if text is None else cls(*orjson.loads(text))

    def count(self, action: str, within_ms: int) -> int:
        """How many were allowed in the last `within_ms` of event time, the present included."""
        times = self.allowed_ms.get(action, ())
        return len(times) - bisect_right(times, self.clock_ms - within_ms)

    def remember(self, action: str, event_ms: int, keep_ms: int) -> None:
        times = self.allowed_ms.setdefault(action, [])
        times.insert(bisect_right(times, event_ms), event_ms)
        del times[: bisect_right(times, self.clock_ms - keep_ms)]


@dataclass(frozen=True)
class Decided:
    """One decision, and the command it allows."""

    decision: bytes
    command: bytes | None


class Governor:
    """Decides for one domain under one policy set at a time."""

    def __init__(self, contract: DomainContract, *, max_hops: int) -> None:
        self._contract = contract
        self._max_hops = max_hops
        domain = contract.name
        self._source = f"/flyball/{domain}/{STAGE}"
        self._decision_schema = schema_urn(domain, Decision.event_type)
        self._command_schema = schema_urn(domain, Command.event_type)
        self._features = {
            kind: {name: f"feature_{name}" for name in columns(situation) if name != "event_time"}
            for kind, situation in contract.situations.items()
        }
        self._parameters = {
            name: {field: f"parameter_{field}" for field in columns(action)}
            for name, action in contract.actions.items()
        }

    def read(self, key: bytes | None, value: bytes | None) -> Incoming:
        """The proposal in a record; raises BadInput with a dead-letter cause.

        Only actions, situations and parameters of the contract pass: whatever an agent says, it
        cannot name anything else.
        """
        if not value:
            raise BadInput(Cause.EMPTY, "expected a proposal, came an empty record")
        try:
            event = orjson.loads(value)
            if event["type"] != Proposal.event_type:
                raise BadInput(
                    Cause.UNKNOWN_TYPE, f"expected {Proposal.event_type!r}, came {event['type']!r}"
                )
            data = Proposal.model_validate(event["data"])
            action = self._contract.actions.get(data.action)
            if action is None or data.situation_type not in self._features:
                raise BadInput(
                    Cause.DATA_INVALID,
                    f"no action {data.action!r} or situation {data.situation_type!r} in the contract",
                )
            action.model_validate(data.parameters)
            expiry = event.get("expirytime")
            subject, hops = event["subject"], event["hops"]
            if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
                raise ValueError(f"hops must be an integer of 0..{MAX_HOPS}")
            if key is None or key != subject.encode():
                raise BadInput(
                    Cause.KEY_MISMATCH, f"expected the key to be the subject {subject!r}"
                )
            return Incoming(
                id=str(event["id"]),
                subject=subject,
                event_ms=parse_time_ms(data.event_time),
                features_ms=parse_time_ms(data.features_at),
                expiry_ms=None if expiry is None else parse_time_ms(expiry),
                correlation_id=str(event.get("correlationid") or event["id"]),
                hops=hops,
                traceparent=event.get("traceparent"),
                data=data,
            )
        except orjson.JSONDecodeError as error:
            raise BadInput(Cause.NOT_JSON, f"expected a proposal as JSON: {error}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise BadInput(Cause.DATA_INVALID, f"data.{place}: {first['msg']}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                Cause.ENVELOPE_INVALID, f"expected a proposal: {type(error).__name__} {error}"
            ) from None

    def decide(self, state: SubjectState, proposal: Incoming, policies: PolicySet) -> Decided:
        """Steps 2 to 9 for a proposal not seen before; updates `state` (clock, what was allowed)."""
        state.clock_ms = max(state.clock_ms, proposal.event_ms)
        data = proposal.data
        counters: dict[str, int | float] = {
            "allowed_1h": state.count(data.action, HOUR_MS),
            "allowed_24h": state.count(data.action, DAY_MS),
            "hops": proposal.hops,
        }
        verdict, reason, told, matched, keep_ms = self._judge(state, proposal, policies, counters)
        decision_id = derive_id(proposal.id, STAGE, "decision")
        command_id = None
        if verdict == "allow":
            state.remember(data.action, proposal.event_ms, max(DAY_MS, keep_ms))
            if self._contract.actions[data.action].is_commanded:
                command_id = derive_id(decision_id, STAGE, "command")
        decision = self._decision(
            state,
            proposal,
            policies,
            decision_id,
            verdict,
            reason,
            told,
            matched,
            counters,
            command_id,
        )
        if command_id is None:
            return Decided(decision, None)
        return Decided(decision, self._command(proposal, decision_id, command_id, told))

    def _judge(
        self,
        state: SubjectState,
        proposal: Incoming,
        policies: PolicySet,
        counters: dict[str, int | float],
    ) -> tuple[str, Reason, str, list[dict[str, object]], int]:
        data = proposal.data
        if policies.is_paused(data.agent, data.action):
            return "deny", Reason.PAUSED, "paused: domain, agent or action", [], 0
        if proposal.expiry_ms is not None and state.clock_ms > proposal.expiry_ms:
            late_s = (state.clock_ms - proposal.expiry_ms) / 1000
            return "deny", Reason.STALE_EXPIRED, f"expired {late_s:.1f} s of event time ago", [], 0
        age_s = (state.clock_ms - proposal.features_ms) / 1000
        freshness_s = policies.freshness_s(
            agent=data.agent, action=data.action, situation=data.situation_type,
            event_ms=state.clock_ms,
        )  # fmt: skip
        if freshness_s is not None and age_s > freshness_s:
            told = f"features are {age_s:.1f} s old, the policy asks for {freshness_s:g} s"
            return "deny", Reason.STALE_FEATURES, told, [], 0
        if proposal.hops > self._max_hops:
            told = f"{proposal.hops} times round the loop, at most {self._max_hops}"
            return "deny", Reason.HOP_LIMIT, told, [], 0
        judged = policies.judge(
            self._variables(proposal, age_s, counters),
            agent=data.agent, action=data.action, situation=data.situation_type,
            event_ms=state.clock_ms,
        )  # fmt: skip
        matched: list[dict[str, object]] = [
            {"policy_id": policy_id, "version": version, "verdict": verdict}
            for policy_id, version, verdict in judged.matched
        ]
        keep_ms = 0
        if judged.verdict == "allow":
            for policy_id, limit in judged.limits:
                within_ms = limit.within_s * 1000
                keep_ms = max(keep_ms, within_ms)
                count = state.count(data.action, within_ms)
                counters[f"allowed_within_{limit.within_s}s"] = count
                if count >= limit.max_count:
                    told = (
                        f"{count} {data.action} allowed within {limit.within_s} s for this subject,"
                        f" {policy_id} lets at most {limit.max_count}"
                    )
                    return "deny", Reason.RATE_LIMIT, told, matched, keep_ms
        return judged.verdict, judged.reason, judged.explanation, matched, keep_ms

    def _variables(
        self, proposal: Incoming, age_s: float, counters: Mapping[str, int | float]
    ) -> dict[str, object]:
        data = proposal.data
        variables: dict[str, object] = {
            "action": data.action,
            "agent": data.agent,
            "subject": proposal.subject,
            "situation": data.situation_type,
            "confidence": data.confidence,
            "hops": proposal.hops,
            "age_s": age_s,
            "allowed_1h": counters["allowed_1h"],
            "allowed_24h": counters["allowed_24h"],
        }
        features, parameters = data.features, data.parameters
        for name, variable in self._features[data.situation_type].items():
            if (value := features.get(name)) is not None:
                variables[variable] = value
        for name, variable in self._parameters[data.action].items():
            if (value := parameters.get(name)) is not None:
                variables[variable] = value
        return variables

    def _decision(
        self,
        state: SubjectState,
        proposal: Incoming,
        policies: PolicySet,
        decision_id: str,
        verdict: str,
        reason: Reason,
        told: str,
        matched: list[dict[str, object]],
        counters: Mapping[str, int | float],
        command_id: str | None,
    ) -> bytes:
        data = proposal.data
        return write_event(
            event_id=decision_id,
            source=self._source,
            event_type=Decision.event_type,
            subject=proposal.subject,
            time_ms=proposal.event_ms,
            dataschema=self._decision_schema,
            correlation_id=proposal.correlation_id,
            causation_id=proposal.id,
            hops=proposal.hops,
            traceparent=proposal.traceparent,
            data={
                "event_time": data.event_time,
                "decided_at_event_time": format_time_ms(state.clock_ms),
                "verdict": verdict,
                "reason": reason.value,
                "explanation": told,
                "proposal_id": proposal.id,
                "agent": data.agent,
                "agent_version": data.agent_version,
                "action": data.action,
                "parameters": data.parameters,
                "confidence": data.confidence,
                "situation_type": data.situation_type,
                "features": data.features,
                "model": None if data.model is None else data.model.__dict__,
                "policy_set_digest": policies.digest,
                "policies": matched,
                "counters": counters,
                "command_id": command_id,
            },
        )

    def _command(self, proposal: Incoming, decision_id: str, command_id: str, told: str) -> bytes:
        data = proposal.data
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
            expiry=None if proposal.expiry_ms is None else format_time_ms(proposal.expiry_ms),
            data={
                "event_time": data.event_time,
                "command_id": command_id,
                "action": data.action,
                "parameters": data.parameters,
                "agent": data.agent,
                "decision_id": decision_id,
                "proposal_id": proposal.id,
                "reason": data.reason or told,
            },
        )
