"""Agents as data: conf/<domain>/agents.yaml, read once, refused whole when a line of it is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contracts.data import ActionParameters, SituationData, Slug
from contracts.domain import DomainContract, columns
from contracts.errors import SetupFailed

FEATURE = re.compile(r"\$([a-z][a-z0-9_]*)\Z")
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)(?::[.0-9a-z%,]*)?\}")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Suggestion(_Part):
    """What an agent proposes from `from_confidence` upwards (0 unsure .. 1 certain).

    `parameters` are constants, or "$feature" for a feature of the situation; `reason` may hold
    {feature} and {confidence}, with a format: {level:.1f}.
    """

    action: Slug
    parameters: dict[Slug, str | int | float | bool] = {}
    from_confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    expires_after_s: int | None = Field(default=None, ge=1, description="event time")
    reason: str = Field(max_length=500)


class RuleAgent(_Part):
    """Proposes when a CEL condition over the situation's features holds; confidence is fixed."""

    kind: Literal["rule"]
    agent: Slug
    version: int = Field(ge=1)
    situation: str
    when: str
    confidence: float = Field(ge=0.0, le=1.0)
    propose: Suggestion


class ModelAgent(_Part):
    """Asks an ONNX model for a confidence; the suggestion with the highest reached bound is made.

    `when` (CEL, optional) says which situations are scored at all.
    """

    kind: Literal["model"]
    agent: Slug
    version: int = Field(ge=1)
    situation: str
    when: str | None = None
    model: Slug
    propose: tuple[Suggestion, ...] = Field(min_length=1)


Agent = Annotated[RuleAgent | ModelAgent, Field(discriminator="kind")]
_AGENTS: TypeAdapter[tuple[RuleAgent | ModelAgent, ...]] = TypeAdapter(tuple[Agent, ...])


def load_agents(path: Path, contract: DomainContract) -> tuple[RuleAgent | ModelAgent, ...]:
    """The agents of a domain, checked against its contract.

    Raises SetupFailed naming the file, the agent, what was expected and what came.
    """
    try:
        found = YAML(typ="safe").load(path.read_text())
    except FileNotFoundError:
        raise SetupFailed(f"expected the domain's agents in {path}, found no such file") from None
    except YAMLError as error:
        raise SetupFailed(f"{path}: not YAML: {error}") from None
    if not isinstance(found, dict) or set(found) != {"agents"}:
        raise SetupFailed(f"{path}: expected one key 'agents' with a list")
    try:
        agents = _AGENTS.validate_json(_to_json(found["agents"]))
    except ValidationError as error:
        problems = "; ".join(
            f"agents.{'.'.join(map(str, e['loc']))}: {e['msg']}, came {str(e['input'])[:80]!r}"
            for e in error.errors()
        )
        raise SetupFailed(f"{path}: {problems}") from None
    names = [agent.agent for agent in agents]
    if len(set(names)) != len(names):
        raise SetupFailed(f"{path}: each agent needs a name of its own, came {names}")
    for agent in agents:
        _check(path, agent, contract)
    return agents


def _to_json(value: object) -> bytes:
    import orjson

    return orjson.dumps(value)


def _check(path: Path, agent: RuleAgent | ModelAgent, contract: DomainContract) -> None:
    place = f"{path}: agent {agent.agent!r}"
    situation = contract.situations.get(agent.situation)
    if situation is None:
        known = ", ".join(contract.situations)
        raise SetupFailed(f"{place}: expected a situation of {known}; came {agent.situation!r}")
    suggestions = (agent.propose,) if isinstance(agent, RuleAgent) else agent.propose
    for suggestion in suggestions:
        action = contract.actions.get(suggestion.action)
        if action is None:
            known = ", ".join(contract.actions)
            raise SetupFailed(f"{place}: expected an action of {known}; came {suggestion.action!r}")
        _check_parameters(place, suggestion, situation, action)
        features = {*columns(situation), "confidence"}
        if unknown := set(_PLACEHOLDER.findall(suggestion.reason)) - features:
            raise SetupFailed(f"{place}: reason names unknown features {sorted(unknown)}")


def _check_parameters(
    place: str,
    suggestion: Suggestion,
    situation: type[SituationData],
    action: type[ActionParameters],
) -> None:
    features, wanted = columns(situation), columns(action)
    if set(suggestion.parameters) != set(wanted):
        raise SetupFailed(
            f"{place}: action {suggestion.action!r} takes the parameters {sorted(wanted)},"
            f" came {sorted(suggestion.parameters)}"
        )
    constants = {}
    for name, value in suggestion.parameters.items():
        found = FEATURE.match(value) if isinstance(value, str) else None
        if found is None:
            constants[name] = value
        elif features.get(found[1]) != wanted[name]:
            raise SetupFailed(
                f"{place}: parameter {name!r} is {wanted[name]}, the feature {found[1]!r} is"
                f" {features.get(found[1], 'unknown')}"
            )
    try:
        action.model_validate(constants)
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["type"] != "missing"]
        if wrong:
            raise SetupFailed(f"{place}: parameters: {wrong[0]['loc']}: {wrong[0]['msg']}") from None


def fill(template: str, features: Mapping[str, object]) -> str:
    """The template with its {feature} placeholders replaced; nothing else in it is interpreted."""

    def replace(found: re.Match[str]) -> str:
        value = features.get(found[1])
        spec = found[0][1:-1].partition(":")[2]
        try:
            return format(value, spec)
        except (TypeError, ValueError):
            return str(value)

    return _PLACEHOLDER.sub(replace, template)[:1000]
