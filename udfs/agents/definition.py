"""Agents as data: conf/<domain>/agents.yaml, read once, refused whole when a line of it is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from contracts.data import ActionParameters, SituationData, Slug
from contracts.domain import DomainContract, columns
from contracts.errors import SetupFailed
from udfs.yaml_file import read_yaml

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
    """Proposes when a CEL condition over the situation's features holds; confidence is fixed.

    `is_fallback`: it speaks only in the place of a language model's agent that names it.
    """

    kind: Literal["rule"]
    agent: Slug
    version: int = Field(ge=1)
    is_fallback: bool = False
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


class Circuit(_Part):
    """After so many failed calls in a row none is made for so long (wall time); then one, to see."""

    failures: int = Field(default=5, ge=1)
    open_s: float = Field(default=30, gt=0)


class Budget(_Part):
    """What calls may take in the last minute and the last day (wall time). None: no bound.

    Cost is in the currency of `price_in` and `price_out`, which are for a million tokens of the agent's model.
    """

    tokens_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_day: int | None = Field(default=None, ge=1)
    cost_per_minute: float | None = Field(default=None, gt=0)
    cost_per_day: float | None = Field(default=None, gt=0)
    price_in: float = Field(default=0, ge=0)
    price_out: float = Field(default=0, ge=0)


class HttpTool(_Part):
    """A look-up by HTTP GET. `url` may hold {arguments}, each of which must fully match its pattern.

    Only the host written here is asked; arguments are percent-encoded; redirects are not followed.
    """

    kind: Literal["http"]
    name: Slug
    description: str = Field(max_length=500)
    url: str = Field(pattern=r"^https?://[^\s{}/]+/\S*$")
    arguments: dict[Slug, str] = {}
    timeout_s: float = Field(default=2, gt=0, le=30)
    max_bytes: int = Field(default=4096, ge=1, le=65_536)


class SqlTool(_Part):
    """A look-up in a SQLite database, opened read-only; `query` is one SELECT with :arguments.

    `database` is a file below the home of the instance (`ledger/...`), never an argument.
    """

    kind: Literal["sql"]
    name: Slug
    description: str = Field(max_length=500)
    database: str = Field(pattern=r"^[a-z0-9_\-]+(/[a-z0-9_\-]+)*\.sqlite$")
    query: str = Field(pattern=r"(?is)^\s*SELECT\b[^;]*$")
    arguments: dict[Slug, str] = {}
    timeout_s: float = Field(default=2, gt=0, le=30)
    max_rows: int = Field(default=20, ge=1, le=200)


class Fallback(_Part):
    """Who answers when the agent cannot: a cheaper model with the same prompt, or a rule agent."""

    model: str | None = Field(default=None, min_length=1, max_length=200)
    price_in: float = Field(default=0, ge=0)
    price_out: float = Field(default=0, ge=0)
    agent: Slug | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Fallback:
        if (self.model is None) == (self.agent is None):
            raise ValueError("expected either a model or an agent")
        return self


class LlmAgent(_Part):
    """Asks a language model (job `reason`); the reply may choose among `actions`, or abstain.

    Asked only where `when` (CEL) holds and none of the agents named in `after` would propose: rules
    first, models second. Seconds are wall time, but for `expires_after_s`: event time, and wall time for what waits alone.
    """

    kind: Literal["llm"]
    agent: Slug
    version: int = Field(ge=1)
    situation: str
    when: str | None = None
    after: tuple[Slug, ...] = ()
    prompt: Slug
    model: str = Field(min_length=1, max_length=200, description="as the server names it")
    actions: tuple[Slug, ...] = Field(min_length=1)
    priority: int = Field(default=5, ge=1, le=9, description="1 is asked first")
    deadline_s: float = Field(default=30, gt=0, le=3600, description="from when it is first asked to the reply that fits")
    attempts: int = Field(default=3, ge=1, le=10, description="requests a question: 429, 5xx and time-outs are tried again")
    attempt_timeout_s: float = Field(default=20, gt=0, le=3600)
    asks: int = Field(default=2, ge=1, le=5, description="questions until a reply fits")
    concurrency: int = Field(default=16, ge=1, le=1000)
    max_tokens: int = Field(default=500, ge=16, le=32_000)
    token_limit_field: Literal["max_completion_tokens", "max_tokens"] = Field(
        default="max_completion_tokens", description="by which name the server is told max_tokens"
    )
    temperature: float | None = Field(default=0, ge=0, le=2, description="null: the server is told none")
    is_structured: bool = Field(default=True, description="the server takes response_format json_schema")
    budget: Budget = Budget()
    circuit: Circuit = Circuit()
    tools: tuple[Annotated[HttpTool | SqlTool, Field(discriminator="kind")], ...] = ()
    tool_calls: int = Field(default=3, ge=0, le=10, description="look-ups a situation")
    fallback: tuple[Fallback, ...] = ()
    expires_after_s: int | None = Field(default=None, ge=1, description="event time")


AnyAgent = RuleAgent | ModelAgent | LlmAgent
Agent = Annotated[AnyAgent, Field(discriminator="kind")]
_AGENTS: TypeAdapter[tuple[AnyAgent, ...]] = TypeAdapter(tuple[Agent, ...])


def load_agents(path: Path, contract: DomainContract) -> tuple[AnyAgent, ...]:
    """The agents of a domain, checked against its contract.

    Raises SetupFailed naming the file, the agent, what was expected and what came.
    """
    found = read_yaml(path)
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
        if isinstance(agent, LlmAgent):
            _check_others(path, agent, {a.agent: a for a in agents})
    return agents


def asking(agent: LlmAgent, model: str) -> LlmAgent:
    """The agent with `model` in place of the one it names; empty: as it is.

    Its cheaper models are left out: under their prices the same model would be asked on when the budget is spent.
    """
    if not model:
        return agent
    rules = tuple(fallback for fallback in agent.fallback if fallback.model is None)
    return agent.model_copy(update={"model": model, "fallback": rules})


def _to_json(value: object) -> bytes:
    import orjson

    return orjson.dumps(value)


def _check(path: Path, agent: AnyAgent, contract: DomainContract) -> None:
    place = f"{path}: agent {agent.agent!r}"
    situation = contract.situations.get(agent.situation)
    if situation is None:
        known = ", ".join(contract.situations)
        raise SetupFailed(f"{place}: expected a situation of {known}; came {agent.situation!r}")
    if isinstance(agent, LlmAgent):
        if unknown := set(agent.actions) - set(contract.actions):
            raise SetupFailed(f"{place}: expected actions of {', '.join(contract.actions)}; came {sorted(unknown)}")
        for tool in agent.tools:
            for name, pattern in tool.arguments.items():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise SetupFailed(f"{place}: tool {tool.name!r}: {name}: expected a pattern, {error}") from None
        return
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


def _check_others(path: Path, agent: LlmAgent, agents: Mapping[str, AnyAgent]) -> None:
    """Those it names in `after` and `fallback` exist, answer the same situation, and can."""
    for name in (*agent.after, *(f.agent for f in agent.fallback if f.agent is not None)):
        other, place = agents.get(name), f"{path}: agent {agent.agent!r}"
        if other is None or isinstance(other, LlmAgent) or other.situation != agent.situation:
            raise SetupFailed(f"{place}: expected {name!r} to be a rule or model agent of {agent.situation!r}")
        if name in agent.after and isinstance(other, RuleAgent) and other.is_fallback:
            raise SetupFailed(f"{place}: {name!r} is a fallback and answers nothing first")
        if name not in agent.after and not (isinstance(other, RuleAgent) and other.is_fallback):
            raise SetupFailed(f"{place}: expected the fallback {name!r} to be a rule agent with is_fallback: true")


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
