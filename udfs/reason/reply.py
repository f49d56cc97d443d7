"""Replies: what a model may answer, and the one way its words come in."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.data import ActionParameters, Scalar
from contracts.domain import DomainContract, things_named
from contracts.envelope import parse_json
from contracts.errors import BadInput, ReplyRefused
from udfs.agents.core import Situation
from udfs.agents.definition import LlmAgent
from udfs.reason.masking import Mask

ABSTAIN = "abstain"
MAX_CHARACTERS = 65_536
# First key of each shape of `parameters`: servers tell shapes apart by it, and it ties them to the action.
SHAPE = "for"
# No event can hold a larger integer.
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
# What structured outputs take (OpenAI's subset); the rest of a contract is checked when the reply is read.
_KEPT = ("type", "enum", "const", "description", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class ReplyForm(BaseModel):
    """What every reply looks like; `parameters` are judged by the chosen action's own contract."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    action: str = Field(max_length=64, description="one of the declared actions, or abstain")
    parameters: dict[str, Scalar] = Field(description="those of the chosen action; for abstain none")
    confidence: float = Field(ge=0.0, le=1.0, description="0 unsure .. 1 certain")
    reason: str = Field(max_length=1000, description="why, in a few sentences")
    evidence: tuple[str, ...] = Field(max_length=100, description="ids from the data's evidence that the reason rests on")


@dataclass(frozen=True)
class Reply:
    """A reply that fitted. `action` None: the model abstained. Personal values are back in their places."""

    action: str | None
    parameters: Mapping[str, Scalar]
    confidence: float
    reason: str
    evidence: tuple[str, ...]


def reply_schema(agent: LlmAgent, contract: DomainContract) -> dict[str, Any]:
    """The JSON schema of an agent's replies, in the subset that strict structured outputs take; not to be changed.

    It is the same for every situation, so that a server that compiles schemas does so once; which evidence
    there is, and which things a parameter may name, `read_reply` knows.
    """
    return schema_of(tuple(contract.actions[name] for name in agent.actions))


@lru_cache(maxsize=256)
def schema_of(actions: tuple[type[ActionParameters], ...]) -> dict[str, Any]:
    """The schema of a reply that chooses among `actions`, or abstains."""
    properties = _plain(ReplyForm.model_json_schema())["properties"]
    properties["action"]["enum"] = [*(action.action for action in actions), ABSTAIN]
    shapes = [
        _object({SHAPE: {"type": "string", "enum": [action.action]}, **action_schema(action)["properties"]})
        for action in actions
    ]
    properties["parameters"] = {"anyOf": [*shapes, _object({SHAPE: {"type": "string", "enum": [ABSTAIN]}})]}
    return {**_object(properties), "description": "the reply"}


def response_format(agent: LlmAgent, contract: DomainContract) -> dict[str, Any]:
    """`response_format` of a chat completion for a server with structured outputs."""
    schema = reply_schema(agent, contract)
    return {"type": "json_schema", "json_schema": {"name": agent.agent, "strict": True, "schema": schema}}


@lru_cache(maxsize=256)
def action_schema(action: type[ActionParameters]) -> dict[str, Any]:
    """An action's parameters for a model: every one named, nothing else allowed; where its value must stand in the data."""
    properties = _plain(action.model_json_schema())["properties"]
    for name, fields in things_named(action).items():
        told = (properties[name].get("description"), f"only as {' or '.join(fields)} of the data says it")
        properties[name]["description"] = "; ".join(filter(None, told))
    return {**_object(properties), "description": (action.__doc__ or "").strip()}


def read_reply(
    text: str,
    agent: LlmAgent,
    contract: DomainContract,
    situation: Situation,
    mask: Mask,
    also_evidence: Collection[str] = (),
) -> Reply:
    """The reply in `text`, or ReplyRefused saying which rule it broke, in words the model may be told.

    Nothing of it but action, parameters, confidence, reason and evidence is ever used: subject, suspects
    and features are the situation's own, and so is every thing that the action's contract says a parameter names.
    """
    form = _form(_json(text, is_fenced=not agent.is_structured))
    evidence = _evidence(form.evidence, situation, mask, also_evidence)
    reason = str(mask.restore(form.reason))[:1000]
    if form.action == ABSTAIN:
        return Reply(None, {}, form.confidence, reason, evidence)
    if form.action not in agent.actions:
        known = ", ".join((*agent.actions, ABSTAIN))
        raise ReplyRefused("undeclared_action", f"expected an action of {known}; came {form.action[:64]!r}")
    given = dict(form.parameters)
    shape = given.pop(SHAPE, form.action)
    if shape != form.action:
        raise ReplyRefused("wrong_parameters", f"expected the parameters of {form.action}; came those of {str(shape)[:64]!r}")
    action = contract.actions[form.action]
    parameters = _parameters(given, action, mask)
    _refuse_others(parameters, given, action, situation)
    return Reply(form.action, parameters, form.confidence, reason, evidence)


def _json(text: str, *, is_fenced: bool) -> object:
    if len(text) > MAX_CHARACTERS:
        raise ReplyRefused("too_long", f"expected at most {MAX_CHARACTERS} characters, came {len(text)}")
    if is_fenced and not text.lstrip().startswith("{"):
        fences = _FENCED.findall(text)
        if len(fences) > 1:
            raise ReplyRefused("not_json", f"expected one JSON object, came {len(fences)} fenced ones")
        text = fences[0] if fences else text
    try:
        return parse_json(text.encode())
    except UnicodeEncodeError:
        raise ReplyRefused("not_json", "expected text, came a lone surrogate") from None
    except BadInput as error:
        raise ReplyRefused("not_json", f"expected one JSON object: {str(error)[:200]}") from None


def _form(found: object) -> ReplyForm:
    try:
        return ReplyForm.model_validate_json(json.dumps(found))
    except ValidationError as error:
        raise ReplyRefused("wrong_schema", _told(error)) from None


def _told(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part)[:64] for part in e['loc']) or 'reply'}: {e['msg']}"
        for e in error.errors(include_url=False, include_input=False, include_context=False)[:5]
    )


def _evidence(
    cited: tuple[str, ...], situation: Situation, mask: Mask, also: Collection[str]
) -> tuple[str, ...]:
    """The ids as they are in the log; the model saw them masked."""
    given = {mask.hide(known): known for known in (*also, *situation.evidence, situation.id)}
    for name in cited:
        if name not in given:
            raise ReplyRefused("unknown_evidence", f"expected evidence of the ids given; came {name[:256]!r}")
    return tuple(dict.fromkeys(given[name] for name in cited))


def _parameters(
    given: Mapping[str, Scalar], action: type[ActionParameters], mask: Mask
) -> dict[str, Scalar]:
    if large := [name for name, value in given.items() if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX]:
        raise ReplyRefused("wrong_parameters", f"expected integers of 64 bits in {[name[:64] for name in large[:5]]}")
    restored = {name: mask.restore(value) for name, value in given.items()}
    try:
        checked = action.model_validate_json(json.dumps(restored))
    except ValidationError as error:
        raise ReplyRefused("wrong_parameters", f"parameters of {action.action}: {_told(error)}") from None
    return checked.model_dump(mode="json")


def _refuse_others(
    parameters: Mapping[str, Scalar], given: Mapping[str, Scalar], action: type[ActionParameters], situation: Situation
) -> None:
    """Raises ReplyRefused where a parameter names a thing that is not the situation's; it tells only what was `given`."""
    for name, fields in things_named(action).items():
        own = [text for field in fields for text in _texts(situation, field)]
        if parameters[name] not in (None, *own, *_empty(action, name)):
            told = f"{name} only as {' or '.join(fields)} of the data says it; came {str(given.get(name))[:256]!r}"
            raise ReplyRefused("not_of_situation", f"parameters of {action.action}: expected {told}")


def _empty(action: type[ActionParameters], name: str) -> tuple[str, ...]:
    """The empty text, where the contract says that the parameter may name nothing."""
    mark = action.model_fields[name].json_schema_extra
    return ("",) if isinstance(mark, dict) and mark.get("may_be_empty") else ()


def _texts(situation: Situation, field: str) -> tuple[str, ...]:
    """What a field of the situation's data names; nothing where it is null or not there."""
    if field == "suspects":
        return situation.suspects
    value = situation.features.get(field)
    return (value,) if isinstance(value, str) else ()


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A pydantic model's schema in the subset: references written out, no titles, defaults, lengths, patterns."""
    definitions = schema.get("$defs", {})

    def visit(node: Mapping[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            return visit({**definitions[node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}})
        kept = {key: node[key] for key in _KEPT if key in node}
        if "const" in kept:
            kept["enum"] = [kept.pop("const")]
            kept.setdefault("type", _JSON_TYPES[type(kept["enum"][0])])
        if "anyOf" in node:
            kept["anyOf"] = [visit(inner) for inner in node["anyOf"]]
        if isinstance(node.get("items"), Mapping):
            kept["items"] = visit(node["items"])
        return kept

    return {"properties": {name: visit(node) for name, node in schema.get("properties", {}).items()}}


_JSON_TYPES: dict[type, Literal["string", "boolean", "integer", "number"]] = {
    str: "string", bool: "boolean", int: "integer", float: "number",
}  # fmt: skip
