"""The pure core of `propose`: a situation and the loaded models in, proposals out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from contracts.data import SituationData, current
from contracts.dead_letter import Cause
from contracts.domain import DomainContract, columns
from contracts.envelope import MAX_HOPS, derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput, ModelRefused
from contracts.proposal import Proposal
from udfs.agents.definition import FEATURE, AnyAgent, LlmAgent, ModelAgent, RuleAgent, Suggestion, fill
from udfs.agents.onnx_model import LoadedModel
from udfs.policy.cel import Condition
from udfs.serde import refuse_large, write_event

STAGE = "propose"
# As contracts/data.py `Identifier`; and what lies in between can be written, whatever is added to it.
_IDENTIFIER = re.compile(r"[^\x00-\x1f\x7f]{1,256}\Z")
_EARLIEST_MS, _LATEST_MS = parse_time_ms("1970-01-01T00:00:00Z"), parse_time_ms("9000-01-01T00:00:00Z")
_CEL_TYPES = {"STRING": "string", "BIGINT": "int", "DOUBLE": "double", "BOOLEAN": "bool"}


@dataclass(frozen=True)
class Situation:
    """A situation as `propose` reads it; `features` are its data without `event_time`."""

    id: str
    type: str
    subject: str
    event_time: str
    correlation_id: str
    hops: int
    traceparent: str | None
    expiry: str | None
    features: Mapping[str, object]
    suspects: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Prepared:
    agent: RuleAgent | ModelAgent
    when: Condition | None
    suggestions: tuple[Suggestion, ...]  # highest bound first


# Who suggests what, how sure, by which model.
Answer = tuple[RuleAgent | ModelAgent, Suggestion, float, object]
TIERS = ("rule", "model", "nobody")


def tier_of(answers: Iterable[Answer]) -> str:
    """Who answered a situation, one of TIERS: a rule, where any did; else a model; else it is left to language models."""
    kinds = {agent.kind for agent, *_ in answers}
    return next((tier for tier in TIERS if tier in kinds), TIERS[-1])


class Agents:
    """All agents of a domain, compiled. `propose` keeps no state between situations."""

    def __init__(self, contract: DomainContract, agents: Sequence[AnyAgent]) -> None:
        self._contract = contract
        self._features = {kind: scalar_columns(model) for kind, model in contract.situations.items()}
        self._by_situation: dict[str, list[_Prepared]] = {kind: [] for kind in contract.situations}
        self._fallbacks: dict[str, _Prepared] = {}
        for agent in agents:
            if isinstance(agent, LlmAgent):
                continue  # job `reason`
            types = cel_types(contract.situations[agent.situation])
            when = None if agent.when is None else Condition.compile(agent.when, types)
            made = (agent.propose,) if isinstance(agent, RuleAgent) else agent.propose
            ordered = tuple(sorted(made, key=lambda s: -s.from_confidence))
            prepared = _Prepared(agent, when, ordered)
            if isinstance(agent, RuleAgent) and agent.is_fallback:
                self._fallbacks[agent.agent] = prepared
            else:
                self._by_situation[agent.situation].append(prepared)

    def read(self, key: bytes | None, value: bytes | None) -> Situation:
        """The situation in a record. Raises BadInput with a dead-letter cause."""
        if not value:
            raise BadInput(Cause.EMPTY, "expected a situation, came an empty record")
        refuse_large(value)
        try:
            event = orjson.loads(value)
            model = self._contract.situations.get(event["type"])
            if model is None:
                raise BadInput(Cause.UNKNOWN_TYPE, f"no situation type {event['type']!r}")
            data = current(model, event)
            features = {name: data.get(name) for name in self._features[event["type"]]}
            if unknown := set(data) - set(model.model_fields):
                raise BadInput(Cause.DATA_INVALID, f"unknown fields {sorted(unknown)[:8]}")
            if nested := [name for name, value in features.items() if isinstance(value, dict | list)]:
                raise BadInput(Cause.DATA_INVALID, f"expected scalars, came lists or objects in {nested[:8]}")
            expiry = event.get("expirytime")
            for instant in (data["event_time"], *([] if expiry is None else [expiry])):
                if not _EARLIEST_MS <= parse_time_ms(instant) < _LATEST_MS:
                    raise ValueError(f"expected a time from 1970 to 9000, came {instant[:40]!r}")
            situation_id, subject, hops = event["id"], event["subject"], event["hops"]
            correlation_id, traceparent = event.get("correlationid") or situation_id, event.get("traceparent")
            for name in (situation_id, subject, correlation_id):
                if not _IDENTIFIER.match(name):
                    raise ValueError(f"id, subject and correlationid must be 1 to 256 plain characters, came {name[:64]!r}")
            if traceparent is not None and not isinstance(traceparent, str):
                raise TypeError("traceparent must be a string")
            if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
                raise ValueError(f"hops must be an integer of 0..{MAX_HOPS}")
            if key != subject.encode():
                raise BadInput(
                    Cause.KEY_MISMATCH, f"expected the key to be the subject {subject[:64]!r}"
                )
            return Situation(
                situation_id, event["type"], subject, data["event_time"],
                correlation_id, hops, traceparent, expiry, features,
                _texts(data, "suspects"), _texts(data, "evidence"),
            )  # fmt: skip
        except orjson.JSONDecodeError as error:
            raise BadInput(Cause.NOT_JSON, f"expected a situation as JSON: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                Cause.ENVELOPE_INVALID, f"expected a situation: {type(error).__name__} {error}"
            ) from None

    def propose(
        self, situation: Situation, models: Mapping[str, LoadedModel]
    ) -> Iterator[tuple[str, bytes]]:
        """Key and value of each proposal, in the order of agents.yaml. Same input, same bytes.

        An agent whose condition cannot be evaluated, or whose model is missing or answers nonsense,
        proposes nothing: no proposal, no action. Raises BadInput for one that is too large.
        """
        for answer in self.answers(situation, models):
            yield self.write(situation, answer)

    def answers(self, situation: Situation, models: Mapping[str, LoadedModel]) -> list[Answer]:
        """What `propose` would write, not yet written."""
        asked = (_answer(prepared, situation, models) for prepared in self._by_situation[situation.type])
        return [answer for answer in asked if answer is not None]

    def write(self, situation: Situation, answer: Answer) -> tuple[str, bytes]:
        """Key and value of the proposal. Raises BadInput for one that is too large."""
        return self._write(situation, *answer)

    def would_propose(
        self, situation: Situation, models: Mapping[str, LoadedModel], names: Collection[str]
    ) -> bool:
        """Whether any of these agents answers the situation, so that nobody after them is asked."""
        return any(
            _answer(prepared, situation, models) is not None
            for prepared in self._by_situation[situation.type]
            if prepared.agent.agent in names
        )

    def fall_back(
        self, situation: Situation, name: str, *, instead_of: str, why: str
    ) -> tuple[str, bytes] | None:
        """What the fallback `name` proposes in another agent's place; None: it has nothing to say, or is no more.

        Raises BadInput for one that is too large.
        """
        prepared = self._fallbacks.get(name)
        answer = None if prepared is None else _answer(prepared, situation, {})
        if answer is None:
            return None
        return self._write(situation, *answer, stage="reason", told={"fallback": f"{instead_of}: {why}"[:300]})

    def _write(
        self,
        situation: Situation,
        agent: RuleAgent | ModelAgent,
        suggestion: Suggestion,
        confidence: float,
        used: object,
        *,
        stage: str = STAGE,
        told: Mapping[str, object] | None = None,
    ) -> tuple[str, bytes]:
        parameters = {}
        for name, value in suggestion.parameters.items():
            found = FEATURE.match(value) if isinstance(value, str) else None
            parameters[name] = value if found is None else situation.features.get(found[1])
        shown = {**situation.features, "confidence": confidence}
        expiry = situation.expiry
        if suggestion.expires_after_s is not None:
            expiry = format_time_ms(parse_time_ms(situation.event_time) + suggestion.expires_after_s * 1000)
        return write_proposal(
            self._contract.name, situation, stage=stage, agent=agent.agent, agent_version=agent.version,
            action=suggestion.action, parameters=parameters, confidence=confidence,
            reason=fill(suggestion.reason, shown), expiry=expiry,
            told={**({} if used is None else {"model": used.__dict__}), **(told or {})},
        )  # fmt: skip


def _texts(data: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A list of texts in a situation's data. Raises ValueError when it is anything else."""
    found = data.get(name) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} must be a list of strings")
    return tuple(found)


def _answer(
    prepared: _Prepared, situation: Situation, models: Mapping[str, LoadedModel]
) -> Answer | None:
    """This agent's answer; None: it has nothing to say."""
    agent = prepared.agent
    if prepared.when is not None and prepared.when.evaluate(situation.features).value is not True:
        return None
    used = None
    if isinstance(agent, RuleAgent):
        confidence = agent.confidence
    else:
        model = models.get(agent.model)
        if model is None:
            return None
        try:
            confidence = model.confidence(situation.features)
        except ModelRefused:
            return None
        used = model.used
    for suggestion in prepared.suggestions:
        if confidence >= suggestion.from_confidence:
            return agent, suggestion, confidence, used
    return None


def scalar_columns(situation: type[SituationData]) -> dict[str, str]:
    """The features of a situation: its columns without event time, suspects and evidence."""
    return {name: kind for name, kind in columns(situation).items() if name != "event_time" and kind in _CEL_TYPES}


def cel_types(situation: type[SituationData]) -> dict[str, str]:
    """Feature -> CEL type, for an agent's `when`."""
    return {name: _CEL_TYPES[kind] for name, kind in scalar_columns(situation).items()}


def write_proposal(
    domain: str, situation: Situation, *, stage: str, agent: str, agent_version: int, action: str,
    parameters: Mapping[str, object], confidence: float, reason: str, expiry: str | None, told: Mapping[str, object],
) -> tuple[str, bytes]:  # fmt: skip
    """Key and value of a proposal about a situation. `told`: what only some proposals tell, by field.

    Its id is derived from situation, stage and agent: an agent speaks once about a situation. Raises BadInput for one
    that `govern` would not take: a situation may be larger when its features are written again.
    """
    data: dict[str, object] = {
        "event_time": situation.event_time,
        "agent": agent,
        "agent_version": agent_version,
        "action": action,
        "parameters": parameters,
        "confidence": confidence,
        "reason": reason,
        "situation_type": situation.type,
        "features": situation.features,
        "features_at": situation.event_time,
        "model": None,
        **told,
    }
    for name, listed in (("suspects", situation.suspects), ("evidence", situation.evidence)):
        if listed:
            data.setdefault(name, listed)
    event = write_event(
        event_id=derive_id(situation.id, stage, agent),
        source=f"/flyball/{domain}/{stage}/{agent}",
        event_type=Proposal.event_type,
        subject=situation.subject,
        time_ms=parse_time_ms(situation.event_time),
        dataschema=schema_urn(domain, Proposal.event_type, Proposal.schema_version),
        data=data,
        correlation_id=situation.correlation_id,
        causation_id=situation.id,
        hops=situation.hops,
        traceparent=situation.traceparent,
        expiry=expiry,
    )
    refuse_large(event)
    return situation.subject, event
