"""The pure core of `govern`: one truth table from proposal to decision.

In this order; each step may end it, each end has a reason code (contracts/decision.py):

    1. seen before                       -> nothing
    2. paused (domain, agent, action,
       subject)                          -> deny   paused
    3. past its expirytime               -> deny   stale_expired
       features older than freshness_s   -> deny   stale_features
       the same, and a policy's fallback
       passes steps 2 and 4 to 6         -> allow  stale_fallback
    4. more hops than max_hops           -> deny   hop_limit
       same agent and action again in
       the same chain, a loop later      -> deny   cause_repeated
       same action, first one's outcome
       is not there (outcome_within_s)   -> deny   in_flight
       after a failure (cooldown_s)      -> deny   cooling_down
    5. policies: none matched            -> deny   no_policy_matched
                 a matching forbid       -> deny   forbidden_by_policy
                 one cannot be evaluated -> hold   policy_error
                 a matching hold         -> hold   held_by_policy
    6. limits, of what was allowed       -> deny   rate_limit
                                                   budget_limit
                                                   in_flight_limit
    9. allow                             -> one command
                                            allowed_by_policy

(7 arbitration and 8 approval come later.) `now` is event time: the subject's highest accepted event
time, this proposal's included. Nothing here reads a clock or makes a random number, so a log of
proposals, outcomes, policies and switches gives the same decisions again (ops/replay.py).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from pydantic import ValidationError

from contracts.command import Command
from contracts.data import Scalar
from contracts.dead_letter import Cause
from contracts.decision import Decision, Reason
from contracts.domain import DomainContract, columns
from contracts.envelope import MAX_HOPS, derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput
from contracts.outcome import Outcome
from contracts.policy import Limit
from contracts.proposal import Proposal
from udfs.policy.policy_set import Judgement, PolicySet, Scope
from udfs.serde import write_event

STAGE = "govern"
HOUR_MS = 3_600_000
# What CEL sees as allowed_1h and allowed_24h, and the least that is remembered for them.
DAY_MS = 24 * HOUR_MS


# Chains remembered per subject, to see one come round again.
MAX_CHAINS = 32
# One thing that was allowed: when; with what limits may ask for, where one asks for more than that.
Allowed = int | list[Any]


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
    sha256: str


@dataclass(frozen=True)
class Reported:
    """An outcome as `govern` uses it."""

    subject: str
    command_id: str
    has_failed: bool
    event_ms: int
    cost: float | None


@dataclass(frozen=True)
class Place:
    """Where in the log `govern` stands when it decides; recorded with the decision."""

    partition: int = 0
    offset: int = 0
    policies_offset: int = -1


@dataclass
class SubjectState:
    """What `govern` keeps per subject. Times are event time in ms.

    clock_ms: the highest accepted event time.
    allowed: action -> what was allowed, in the order of time: ms, or, while a limit counts by more
        than subject and action, [ms, agent, {variable: value}, command id, cost its outcome told];
        kept as long as the longest limit looks back, at least a day.
    in_flight: command id -> [action, lapses_ms, cooldown_ms], until its outcome or its lapse.
    cooling_ms: action -> until when it waits after a failure.
    chains: the last ones, [ms, correlation id, agent, action, hops] of what was commanded.
    decisions, head: how many were made, and the SHA-256 of the last one's bytes.
    outcomes_offset: the last outcome applied.
    """

    clock_ms: int = 0
    allowed: dict[str, list[Allowed]] = field(default_factory=dict)
    in_flight: dict[str, list[Any]] = field(default_factory=dict)
    cooling_ms: dict[str, int] = field(default_factory=dict)
    chains: list[list[Any]] = field(default_factory=list)
    decisions: int = 0
    head: str | None = None
    outcomes_offset: int = -1

    def to_json(self) -> str:
        return orjson.dumps(
            [self.clock_ms, self.allowed, self.in_flight, self.cooling_ms, self.chains,
             self.decisions, self.head, self.outcomes_offset]
        ).decode()  # fmt: skip

    @classmethod
    def from_json(cls, text: str | None) -> SubjectState:
        return cls() if text is None else cls(*orjson.loads(text))

    def count(self, action: str, within_ms: int) -> int:
        """How many were allowed in the last `within_ms` of event time, the present included."""
        allowed = self.allowed.get(action, ())
        return len(allowed) - bisect_right(allowed, self.clock_ms - within_ms, key=_at)

    def within(self, within_ms: int) -> list[tuple[str, Allowed]]:
        """Everything allowed in the last `within_ms`, with its action."""
        since = self.clock_ms - within_ms
        return [
            (action, entry)
            for action, allowed in self.allowed.items()
            for entry in allowed[bisect_right(allowed, since, key=_at) :]
        ]

    def remember(
        self, action: str, event_ms: int, keep_ms: int, detail: Sequence[object] = ()
    ) -> None:
        allowed = self.allowed.setdefault(action, [])
        place = bisect_right(allowed, event_ms, key=_at)
        allowed.insert(place, [event_ms, *detail] if detail else event_ms)
        del allowed[: bisect_right(allowed, self.clock_ms - keep_ms, key=_at)]

    def flying(self) -> list[list[Any]]:
        """The commands without outcome that have not lapsed; forgets the others."""
        lapsed = [name for name, flight in self.in_flight.items() if flight[1] <= self.clock_ms]
        for name in lapsed:
            del self.in_flight[name]
        return list(self.in_flight.values())

    def report(self, reported: Reported, offset: int) -> None:
        """Take an outcome in: its command is no longer in flight; a failure starts the cool-down.

        A cost takes the place of what budgets had reserved. An outcome whose command is not known
        (lapsed, or a repeat) changes nothing.
        """
        self.outcomes_offset = offset
        flight = self.in_flight.pop(reported.command_id, None)
        if flight is not None and reported.has_failed and flight[2]:
            until = reported.event_ms + flight[2]
            self.cooling_ms[flight[0]] = max(self.cooling_ms.get(flight[0], 0), until)
        if reported.cost is None:
            return
        for allowed in self.allowed.values():
            for entry in allowed:
                if isinstance(entry, list) and entry[3] == reported.command_id:
                    entry[4] = reported.cost


def _at(entry: Allowed) -> int:
    return entry if isinstance(entry, int) else int(entry[0])


@dataclass(frozen=True)
class Decided:
    """One decision, and the command it allows."""

    decision: bytes
    command: bytes | None


@dataclass(frozen=True)
class _Ruling:
    """What steps 2 to 6 say of one action, and all that is recorded of why."""

    verdict: str
    reason: Reason
    told: str
    action: str
    parameters: Mapping[str, Scalar]
    counters: dict[str, int | float] = field(default_factory=dict)
    judgement: Judgement | None = None
    candidate: dict[str, object] | None = None

    @property
    def matched(self) -> list[dict[str, object]]:
        return _matches(self.judgement) if self.judgement else []


def _matches(judgement: Judgement) -> list[dict[str, object]]:
    return [
        {"policy_id": policy_id, "version": version, "verdict": verdict}
        for policy_id, version, verdict in judgement.matched
    ]


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
                sha256=hashlib.sha256(value).hexdigest(),
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

    def read_outcome(self, key: bytes | None, value: bytes | None) -> Reported | None:
        """The outcome in a record; None for what is none (`context` keeps those as dead letters)."""
        try:
            event = orjson.loads(value or b"")
            if event["type"] != Outcome.event_type or key != event["subject"].encode():
                return None
            data = Outcome.model_validate(event["data"])
            return Reported(
                subject=event["subject"],
                command_id=data.command_id,
                has_failed=data.status == "failed",
                event_ms=parse_time_ms(data.event_time),
                cost=data.cost,
            )
        except (orjson.JSONDecodeError, ValidationError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def decide(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet, place: Place = Place()
    ) -> Decided:
        """Steps 2 to 9 for a proposal not seen before; updates `state`."""
        state.clock_ms = max(state.clock_ms, proposal.event_ms)
        ruling = self._stale_or_ruled(state, proposal, policies)
        decision_id = derive_id(proposal.id, STAGE, "decision")
        command_id = None
        if ruling.verdict == "allow":
            if self._contract.actions[ruling.action].is_commanded:
                command_id = derive_id(decision_id, STAGE, "command")
            self._remember(state, proposal, policies, ruling, command_id)
        state.decisions += 1
        decision = self._decision(state, proposal, policies, decision_id, ruling, command_id, place)
        state.head = hashlib.sha256(decision).hexdigest()
        if command_id is None:
            return Decided(decision, None)
        return Decided(decision, self._command(proposal, decision_id, command_id, ruling))

    def _stale_or_ruled(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet
    ) -> _Ruling:
        """Steps 2 to 6, with a policy's fallback in the place of a stale proposal's action."""
        data = proposal.data
        if policies.is_paused(data.agent, data.action, proposal.subject):
            return _Ruling(
                "deny", Reason.PAUSED, "paused: domain, agent, action or subject", data.action, data.parameters,
                self._counters(state, proposal, data.action),
            )  # fmt: skip
        scope = self._scope(state, proposal, policies, data.action)
        stale = self._stale(state, proposal, scope)
        if stale is None:
            return self._rule(state, proposal, policies, scope, data.action, data.parameters)
        reason, told = stale
        counters = self._counters(state, proposal, data.action)
        denied = _Ruling("deny", reason, told, data.action, data.parameters, counters)
        fallback = scope.fallback
        if fallback is None:
            return denied
        if policies.is_paused(data.agent, fallback.action, proposal.subject):
            return replace(denied, told=f"{told}; the fallback {fallback.action} is paused")
        ruled = self._rule(
            state, proposal, policies, self._scope(state, proposal, policies, fallback.action),
            fallback.action, fallback.parameters,
        )  # fmt: skip
        if ruled.verdict == "allow":
            return replace(ruled, reason=Reason.STALE_FALLBACK, told=f"{told}; instead {ruled.told}")
        return replace(denied, told=f"{told}; the fallback {fallback.action} was denied: {ruled.told}")

    def _scope(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet, action: str
    ) -> Scope:
        return policies.scope(
            agent=proposal.data.agent, action=action, situation=proposal.data.situation_type,
            subject=proposal.subject, event_ms=state.clock_ms,
        )  # fmt: skip

    @staticmethod
    def _stale(
        state: SubjectState, proposal: Incoming, scope: Scope
    ) -> tuple[Reason, str] | None:
        if proposal.expiry_ms is not None and state.clock_ms > proposal.expiry_ms:
            late_s = (state.clock_ms - proposal.expiry_ms) / 1000
            return Reason.STALE_EXPIRED, f"expired {late_s:.1f} s of event time ago"
        age_s = (state.clock_ms - proposal.features_ms) / 1000
        if scope.freshness_s is not None and age_s > scope.freshness_s:
            told = f"features are {age_s:.1f} s old, the policy asks for {scope.freshness_s:g} s"
            return Reason.STALE_FEATURES, told
        return None

    @staticmethod
    def _counters(state: SubjectState, proposal: Incoming, action: str) -> dict[str, int | float]:
        return {
            "allowed_1h": state.count(action, HOUR_MS),
            "allowed_24h": state.count(action, DAY_MS),
            "hops": proposal.hops,
        }

    def _rule(
        self,
        state: SubjectState,
        proposal: Incoming,
        policies: PolicySet,
        scope: Scope,
        action: str,
        parameters: Mapping[str, Scalar],
    ) -> _Ruling:
        """Steps 4 to 6 for one action."""
        counters = self._counters(state, proposal, action)
        if looped := self._looped(state, proposal, action):
            return _Ruling("deny", *looped, action, parameters, counters)
        age_s = (state.clock_ms - proposal.features_ms) / 1000
        variables = self._variables(proposal, action, parameters, age_s, counters)

        def ruled(scope: Scope, counters: dict[str, int | float]) -> _Ruling:
            judgement = scope.judge(variables)
            over = self._over_limit(state, proposal.data.agent, action, variables, judgement, counters)
            verdict, reason, told = over or (
                judgement.verdict, judgement.reason, judgement.explanation,
            )  # fmt: skip
            return _Ruling(verdict, reason, told, action, parameters, counters, judgement)

        real = ruled(scope, counters)
        if scope.candidate is None:
            return real
        would = ruled(scope.candidate, {})
        told: dict[str, object] = {
            "verdict": would.verdict, "reason": would.reason.value, "policies": would.matched,
        }  # fmt: skip
        return replace(real, candidate=told)

    def _looped(
        self, state: SubjectState, proposal: Incoming, action: str
    ) -> tuple[Reason, str] | None:
        """Step 4: the loop guard."""
        if proposal.hops > self._max_hops:
            told = f"{proposal.hops} times round the loop, at most {self._max_hops}"
            return Reason.HOP_LIMIT, told
        agent = proposal.data.agent
        for _, chain, by, what, hops in state.chains:
            if (chain, by, what) == (proposal.correlation_id, agent, action) and proposal.hops > hops:
                told = f"{agent} had {action} allowed in this chain before, {proposal.hops - hops} loops ago"
                return Reason.CAUSE_REPEATED, told
        for what, lapses_ms, _ in state.flying():
            if what == action:
                left_s = (lapses_ms - state.clock_ms) / 1000
                told = f"{action} was commanded and has no outcome; it lapses in {left_s:.1f} s of event time"
                return Reason.IN_FLIGHT, told
        if (until_ms := state.cooling_ms.get(action, 0)) > state.clock_ms:
            left_s = (until_ms - state.clock_ms) / 1000
            return Reason.COOLING_DOWN, f"{action} failed; it waits for another {left_s:.1f} s of event time"
        return None

    @staticmethod
    def _over_limit(
        state: SubjectState,
        agent: str,
        action: str,
        variables: Mapping[str, object],
        judgement: Judgement,
        counters: dict[str, int | float],
    ) -> tuple[str, Reason, str] | None:
        """Step 6: the first limit that is used up; writes what was counted into `counters`."""
        if judgement.verdict != "allow":
            return None
        for policy_id, limit in judgement.limits:
            if limit.max_in_flight is not None:
                flying = [flight for flight in state.flying() if "action" not in limit.per or flight[0] == action]
                counters["in_flight"] = len(flying)
                if len(flying) >= limit.max_in_flight:
                    told = f"{len(flying)} without outcome, {policy_id} lets at most {limit.max_in_flight}"
                    return "deny", Reason.IN_FLIGHT_LIMIT, told
                continue
            within_s = limit.within_s or 0
            if limit.max_count is not None and limit.per == ("subject", "action"):
                count = state.count(action, within_s * 1000)
            else:
                same = _alike(state, limit, agent, action, variables, within_s * 1000)
                count = len(same)
                if limit.max_total is not None and limit.amount is not None:
                    spent = sum(_spent(entry, limit.amount) for entry in same)
                    asked = variables.get(limit.amount)
                    counters[f"{limit.amount}_within_{within_s}s"] = spent
                    if not isinstance(asked, (int, float)) or isinstance(asked, bool) or asked < 0:
                        told = f"{policy_id} budgets {limit.amount}, which this proposal does not name"
                        return "deny", Reason.BUDGET_LIMIT, told
                    if spent + asked > limit.max_total:
                        told = (
                            f"{spent:g} of {limit.amount} allowed within {within_s} s, {asked:g} more is over"
                            f" the {limit.max_total:g} of {policy_id}"
                        )
                        return "deny", Reason.BUDGET_LIMIT, told
                    continue
            counters[f"allowed_within_{within_s}s"] = count
            if limit.max_count is not None and count >= limit.max_count:
                what = " and ".join(n for n in limit.per if n not in ("subject", "action"))
                told = (
                    f"{count} {action} allowed within {within_s} s for this subject"
                    f"{f' and {what}' if what else ''}, {policy_id} lets at most {limit.max_count}"
                )
                return "deny", Reason.RATE_LIMIT, told
        return None

    def _remember(
        self,
        state: SubjectState,
        proposal: Incoming,
        policies: PolicySet,
        ruling: _Ruling,
        command_id: str | None,
    ) -> None:
        """What was allowed, for later limits and the loop guard."""
        judgement, action = ruling.judgement, ruling.action
        assert judgement is not None  # allowed by policies
        age_s = (state.clock_ms - proposal.features_ms) / 1000
        detail: tuple[object, ...] = ()
        if policies.counts_in_detail:
            variables = self._variables(proposal, action, ruling.parameters, age_s, ruling.counters)
            values = {name: variables[name] for name in policies.counted_by if name in variables}
            detail = (proposal.data.agent, values, command_id, None)
        keep_ms = max([DAY_MS, *((limit.within_s or 0) * 1000 for _, limit in judgement.limits)])
        state.remember(action, proposal.event_ms, keep_ms, detail)
        if command_id is None:
            return
        if judgement.outcome_within_s:
            lapses_ms = proposal.event_ms + judgement.outcome_within_s * 1000
            state.in_flight[command_id] = [action, lapses_ms, judgement.cooldown_s * 1000]
        state.chains.append(
            [proposal.event_ms, proposal.correlation_id, proposal.data.agent, action, proposal.hops]
        )
        since = state.clock_ms - keep_ms
        state.chains = [chain for chain in state.chains if chain[0] > since][-MAX_CHAINS:]

    def recorded_variables(
        self, proposal: Incoming, decision: Mapping[str, Any]
    ) -> dict[str, object]:
        """What the policies saw when a recorded decision was made about its proposal."""
        clock_ms = parse_time_ms(decision["decided_at_event_time"])
        return self._variables(
            proposal, proposal.data.action, proposal.data.parameters,
            (clock_ms - proposal.features_ms) / 1000, decision["counters"],
        )  # fmt: skip

    def _variables(
        self,
        proposal: Incoming,
        action: str,
        parameters: Mapping[str, Scalar],
        age_s: float,
        counters: Mapping[str, int | float],
    ) -> dict[str, object]:
        data = proposal.data
        variables: dict[str, object] = {
            "action": action,
            "agent": data.agent,
            "subject": proposal.subject,
            "situation": data.situation_type,
            "confidence": data.confidence,
            "hops": proposal.hops,
            "age_s": age_s,
            "allowed_1h": counters["allowed_1h"],
            "allowed_24h": counters["allowed_24h"],
        }
        features = data.features
        for name, variable in self._features[data.situation_type].items():
            if (value := features.get(name)) is not None:
                variables[variable] = value
        for name, variable in self._parameters[action].items():
            if (value := parameters.get(name)) is not None:
                variables[variable] = value
        return variables

    def _decision(
        self,
        state: SubjectState,
        proposal: Incoming,
        policies: PolicySet,
        decision_id: str,
        ruling: _Ruling,
        command_id: str | None,
        place: Place,
    ) -> bytes:
        data = proposal.data
        obligations = ruling.judgement.obligations if ruling.judgement else {}
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
                "verdict": ruling.verdict,
                "reason": ruling.reason.value,
                "explanation": ruling.told,
                "proposal_id": proposal.id,
                "agent": data.agent,
                "agent_version": data.agent_version,
                "action": ruling.action,
                "parameters": ruling.parameters,
                "proposed": None
                if ruling.reason is not Reason.STALE_FALLBACK
                else {"action": data.action, "parameters": data.parameters},
                "proposal_reason": data.reason,
                "expires_at": None
                if proposal.expiry_ms is None
                else format_time_ms(proposal.expiry_ms),
                "confidence": data.confidence,
                "situation_type": data.situation_type,
                "features": data.features,
                "features_at": data.features_at,
                "model": None if data.model is None else data.model.__dict__,
                "policy_set_digest": policies.digest,
                "policies": ruling.matched,
                "counters": ruling.counters,
                "obligations": obligations if ruling.verdict == "allow" else {},
                "candidate": ruling.candidate,
                "command_id": command_id,
                "inputs": {
                    "proposal_partition": place.partition,
                    "proposal_offset": place.offset,
                    "proposal_sha256": proposal.sha256,
                    "outcomes_offset": state.outcomes_offset,
                    "policies_offset": place.policies_offset,
                },
                "entry": {"number": state.decisions, "previous": state.head},
            },
        )

    def _command(
        self, proposal: Incoming, decision_id: str, command_id: str, ruling: _Ruling
    ) -> bytes:
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
                "obligations": ruling.judgement.obligations if ruling.judgement else {},
            },
        )


def _alike(
    state: SubjectState, limit: Limit, agent: str, action: str, variables: Mapping[str, object],
    within_ms: int,
) -> list[Allowed]:  # fmt: skip
    """What was allowed within `within_ms` and is alike in everything the limit is per.

    Of what was allowed before any limit asked for more than subject and action, only these are
    known: it counts.
    """
    fields = [name for name in limit.per if name not in ("subject", "action", "agent")]

    def is_alike(entry: Allowed) -> bool:
        return isinstance(entry, int) or (
            ("agent" not in limit.per or entry[1] == agent)
            and all(entry[2].get(name) == variables.get(name) for name in fields)
        )

    return [
        entry
        for what, entry in state.within(within_ms)
        if ("action" not in limit.per or what == action) and is_alike(entry)
    ]


def _spent(entry: Allowed, amount: str) -> float:
    """What an allowed proposal took of a budget: what its outcome told, else what was reserved."""
    if isinstance(entry, int):
        return 0.0
    _, _, values, _, cost = entry
    return float(values.get(amount) or 0) if cost is None else float(cost)
