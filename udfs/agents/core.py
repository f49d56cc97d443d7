"""The pure core of `propose`: a situation and the loaded models in, proposals out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from contracts.dead_letter import Cause
from contracts.domain import DomainContract, columns
from contracts.envelope import MAX_HOPS, derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput, ModelRefused
from contracts.proposal import Proposal
from udfs.agents.definition import FEATURE, ModelAgent, RuleAgent, Suggestion, fill
from udfs.agents.onnx_model import LoadedModel
from udfs.policy.cel import Condition
from udfs.serde import write_event

STAGE = "propose"
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


@dataclass(frozen=True)
class _Prepared:
    agent: RuleAgent | ModelAgent
    when: Condition | None
    suggestions: tuple[Suggestion, ...]  # highest bound first


class Agents:
    """All agents of a domain, compiled. `propose` keeps no state between situations."""

    def __init__(
        self, contract: DomainContract, agents: Sequence[RuleAgent | ModelAgent]
    ) -> None:
        self._contract = contract
        self._by_situation: dict[str, list[_Prepared]] = {kind: [] for kind in contract.situations}
        for agent in agents:
            features = columns(contract.situations[agent.situation])
            types = {name: _CEL_TYPES[kind] for name, kind in features.items()}
            when = None if agent.when is None else Condition.compile(agent.when, types)
            made = (agent.propose,) if isinstance(agent, RuleAgent) else agent.propose
            ordered = tuple(sorted(made, key=lambda s: -s.from_confidence))
            self._by_situation[agent.situation].append(_Prepared(agent, when, ordered))

    def read(self, key: bytes | None, value: bytes | None) -> Situation:
        """The situation in a record. Raises BadInput with a dead-letter cause."""
        if not value:
            raise BadInput(Cause.EMPTY, "expected a situation, came an empty record")
        try:
            event = orjson.loads(value)
            data = event["data"]
            model = self._contract.situations.get(event["type"])
            if model is None:
                raise BadInput(Cause.UNKNOWN_TYPE, f"no situation type {event['type']!r}")
            features = {name: data.get(name) for name in model.model_fields if name != "event_time"}
            if unknown := set(data) - set(model.model_fields):
                raise BadInput(Cause.DATA_INVALID, f"unknown fields {sorted(unknown)[:8]}")
            parse_time_ms(data["event_time"])
            situation_id, subject, hops = event["id"], event["subject"], event["hops"]
            if not isinstance(situation_id, str) or not isinstance(subject, str):
                raise TypeError("id and subject must be strings")
            if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
                raise ValueError(f"hops must be an integer of 0..{MAX_HOPS}")
            if key != subject.encode():
                raise BadInput(
                    Cause.KEY_MISMATCH, f"expected the key to be the subject {subject[:64]!r}"
                )
            return Situation(
                situation_id, event["type"], subject, data["event_time"],
                event.get("correlationid") or situation_id, hops,
                event.get("traceparent"), event.get("expirytime"), features,
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
        proposes nothing: no proposal, no action.
        """
        for prepared in self._by_situation[situation.type]:
            agent = prepared.agent
            if prepared.when is not None and prepared.when.evaluate(situation.features).value is not True:
                continue
            used = None
            if isinstance(agent, RuleAgent):
                confidence = agent.confidence
            else:
                model = models.get(agent.model)
                if model is None:
                    continue
                try:
                    confidence = model.confidence(situation.features)
                except ModelRefused:
                    continue
                used = model.used
            for suggestion in prepared.suggestions:
                if confidence >= suggestion.from_confidence:
                    yield self._write(situation, agent, suggestion, confidence, used)
                    break

    def _write(
        self,
        situation: Situation,
        agent: RuleAgent | ModelAgent,
        suggestion: Suggestion,
        confidence: float,
        used: object,
    ) -> tuple[str, bytes]:
        parameters = {}
        for name, value in suggestion.parameters.items():
            found = FEATURE.match(value) if isinstance(value, str) else None
            parameters[name] = value if found is None else situation.features.get(found[1])
        told = {**situation.features, "confidence": confidence}
        data: dict[str, object] = {
            "event_time": situation.event_time,
            "agent": agent.agent,
            "agent_version": agent.version,
            "action": suggestion.action,
            "parameters": parameters,
            "confidence": confidence,
            "reason": fill(suggestion.reason, told),
            "situation_type": situation.type,
            "features": situation.features,
            "features_at": situation.event_time,
            "model": None if used is None else used.__dict__,
        }
        event_ms = parse_time_ms(situation.event_time)
        expiry = situation.expiry
        if suggestion.expires_after_s is not None:
            expiry = format_time_ms(event_ms + suggestion.expires_after_s * 1000)
        event = write_event(
            event_id=derive_id(situation.id, STAGE, agent.agent),
            source=f"/flyball/{self._contract.name}/{STAGE}/{agent.agent}",
            event_type=Proposal.event_type,
            subject=situation.subject,
            time_ms=event_ms,
            dataschema=schema_urn(self._contract.name, Proposal.event_type),
            data=data,
            correlation_id=situation.correlation_id,
            causation_id=situation.id,
            hops=situation.hops,
            traceparent=situation.traceparent,
            expiry=expiry,
        )
        return situation.subject, event
