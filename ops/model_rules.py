"""What the scripted model says: rules over the quoted facts, and a reply for every domain without any.

A rules file is YAML, `rules:` with a list; the first rule that fits answers:

    - name: fresh-deploy
      agents: [remediation]                  # the reply schema's name; none: any agent
      actions: [roll_back]                   # all of them must be offered
      facts: {features.deploy_id: ".+"}      # path -> regex, found in the value as text; null never fits
      at_least: {features.deviation: 4}      # path -> number
      at_most: {features.minutes_since_deploy: 60}
      reply:
        action: roll_back
        parameters: {node: $features.suspect, deploy_id: $features.deploy_id}
        confidence: 0.8
        reason: "the deploy {features.deploy_id} came first"
        evidence: all                        # or a list of ids, or $paths

Instead of `reply`: `tool: {name, arguments}` (asked once; then the next rule), `raw: text` (as it stands), or
`status: 503`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.data import Slug
from contracts.errors import SetupFailed
from udfs.reason.prompt import BEGIN, END
from udfs.reason.reply import ABSTAIN, SHAPE
from udfs.yaml_file import read_yaml

_PATH = re.compile(r"\$([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)\Z")
_HOLE = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)\}")
_SCHEMA_LINE = "Reply schema: "
_AGENT_LINE = "Agent: "


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ToolAsked(_Part):
    """A look-up the model asks for; values may be $paths."""

    name: Slug
    arguments: dict[str, str] = {}


class ReplyTemplate(_Part):
    """A reply; values may be $paths into the facts, `reason` may hold {paths}."""

    action: Slug
    parameters: dict[str, str | int | float | bool | None] = {}
    confidence: float | str = Field(default=0.8, description="a number, or a $path")
    reason: str = Field(default="", max_length=1000)
    evidence: Literal["all"] | tuple[str, ...] = "all"


class Rule(_Part):
    """When all of it holds, this is answered."""

    name: Slug
    agents: tuple[Slug, ...] = ()
    actions: tuple[Slug, ...] = ()
    facts: dict[str, str] = {}
    at_least: dict[str, float] = {}
    at_most: dict[str, float] = {}
    reply: ReplyTemplate | None = None
    tool: ToolAsked | None = None
    raw: str | None = None
    status: int | None = Field(default=None, ge=400, le=599)

    @model_validator(mode="after")
    def _one_answer(self) -> Rule:
        if sum(part is not None for part in (self.reply, self.tool, self.raw, self.status)) != 1:
            raise ValueError("expected one of reply, tool, raw and status")
        for pattern in self.facts.values():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"expected a regex, came {pattern[:80]!r}: {error}") from None
        return self

    def fits(self, asked: Asked) -> bool:
        if self.agents and asked.agent not in self.agents:
            return False
        offered = set(asked.actions)
        wanted = {*self.actions, *({self.reply.action} - {ABSTAIN} if self.reply else ())}
        if not wanted <= offered:
            return False
        if self.tool is not None and (self.tool.name not in asked.tools or asked.has_looked_up(self.tool.name)):
            return False
        for path, pattern in self.facts.items():
            value = asked.at(path)
            if value is None or not re.search(pattern, as_text(value)):
                return False
        return all(_number(asked.at(path), low=low) for path, low in self.at_least.items()) and all(
            _number(asked.at(path), high=high) for path, high in self.at_most.items()
        )


class _RulesFile(_Part):
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Asked:
    """What a request asks, as far as the script cares."""

    agent: str = ""
    schema: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()

    @property
    def actions(self) -> tuple[str, ...]:
        """What may be chosen, abstaining apart."""
        offered = ((self.schema or {}).get("properties") or {}).get("action", {}).get("enum") or ()
        return tuple(name for name in offered if name != ABSTAIN)

    def at(self, path: str) -> Any:
        """The value at `features.name`, `suspects.0`, ...; None when there is none."""
        found: Any = self.facts
        for step in path.split("."):
            if isinstance(found, Mapping):
                found = found.get(step)
            elif isinstance(found, Sequence) and not isinstance(found, str) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return found

    def has_looked_up(self, tool: str) -> bool:
        return any(found.get("tool") == tool for found in self.facts.get("lookups") or ())


@dataclass(frozen=True)
class Answer:
    """What to send: text, or a tool call, or an error's status."""

    rule: str
    text: str = ""
    tool: tuple[str, str] | None = None
    status: int = 200


def load_rules(files: Sequence[Path]) -> tuple[Rule, ...]:
    """The rules of all files, in order. Raises SetupFailed naming the file and what is wrong."""
    rules: list[Rule] = []
    for file in files:
        found = read_yaml(file)
        try:
            rules += _RulesFile.model_validate_json(orjson.dumps(found)).rules
        except (ValidationError, TypeError) as error:
            told = (
                "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:3])
                if isinstance(error, ValidationError) else str(error)
            )  # fmt: skip
            raise SetupFailed(f"{file}: expected rules: {told}") from None
    return tuple(rules)


def read_request(body: Mapping[str, Any]) -> Asked:
    """What a chat completion's body asks: the schema from response_format, or from the system message."""
    texts = [(m.get("role"), content_text(m.get("content"))) for m in body.get("messages") or () if isinstance(m, Mapping)]
    system = "\n".join(text for role, text in texts if role in ("system", "developer"))
    form = (body.get("response_format") or {}).get("json_schema") or {}
    schema, agent = form.get("schema"), _after(system, _AGENT_LINE) or form.get("name")
    if schema is None and (line := _after(system, _SCHEMA_LINE)):
        schema = _object(line)
    data: Mapping[str, Any] = {}
    for role, text in texts:
        begin = text.find(BEGIN)
        if role == "user" and begin >= 0 and (end := text.find(END, begin)) > 0:
            data = _object(text[begin + len(BEGIN) : end]) or {}
            break
    data = {**data, **_looked_up(body.get("messages") or (), data)}
    tools = tuple(t["function"]["name"] for t in body.get("tools") or () if isinstance(t, Mapping) and "function" in t)
    return Asked(agent or "", schema, data, tools)


def _looked_up(messages: Sequence[Any], data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`lookups` (tool, answer) and `evidence` of the facts with what the messages of tools add."""
    names = {
        call["id"]: call["function"]["name"]
        for message in messages if isinstance(message, Mapping) and message.get("role") == "assistant"
        for call in message.get("tool_calls") or ()
    }  # fmt: skip
    lookups, evidence = list(data.get("lookups") or ()), list(data.get("evidence") or ())
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "tool":
            text = content_text(message.get("content"))
            found = _object(text) or {}
            answered = found.get("found", text)
            lookups.append({
                "tool": names.get(str(message.get("tool_call_id")), ""),
                "answer": (_object(answered) or answered) if isinstance(answered, str) else answered,
            })  # fmt: skip
            evidence += [str(found["evidence_id"])] if "evidence_id" in found else []
    return {**({"lookups": lookups} if lookups else {}), **({"evidence": evidence} if evidence else {})}


def answer(asked: Asked, rules: Sequence[Rule]) -> Answer:
    """The first rule that fits; otherwise the reply that fits every domain."""
    for rule in rules:
        if rule.fits(asked):
            return _by(rule, asked)
    if asked.schema is None:
        return Answer("echo", text="understood")
    return Answer("default", text=_compact(_general(asked)))


def _by(rule: Rule, asked: Asked) -> Answer:
    if rule.status is not None:
        return Answer(rule.name, status=rule.status)
    if rule.raw is not None:
        return Answer(rule.name, text=rule.raw)
    if rule.tool is not None:
        arguments = {name: as_text(_filled(value, asked)) for name, value in rule.tool.arguments.items()}
        return Answer(rule.name, tool=(rule.tool.name, _compact(arguments)))
    assert rule.reply is not None
    made = rule.reply
    wanted = _shape(asked, made.action)
    parameters = {name: _fitting(_filled(value, asked), wanted.get(name, {})) for name, value in made.parameters.items()}
    reason = _HOLE.sub(lambda hole: as_text(asked.at(hole[1])), made.reason)
    cited = (
        list(asked.facts.get("evidence") or ())
        if made.evidence == "all"
        else [text for item in made.evidence if (text := as_text(_filled(item, asked)))]
    )
    confidence = _filled(made.confidence, asked)
    reply = {
        "action": made.action,
        "parameters": _tied(asked, made.action, parameters),
        "confidence": min(1.0, max(0.0, confidence)) if isinstance(confidence, int | float) else 0.5,
        "reason": (reason or rule.name)[:1000],
        "evidence": cited[:100],
    }
    return Answer(rule.name, text=_compact(reply))


def _general(asked: Asked) -> dict[str, Any]:
    """The action most of whose parameters are features by name; of equals the first declared."""
    ranked = [(sum(_feature(asked, n, s) is not None for n, s in _shape(asked, a).items()), a) for a in asked.actions]
    action = max(ranked, key=lambda pair: pair[0])[1] if ranked else ABSTAIN
    parameters = {name: _value(asked, name, schema) for name, schema in _shape(asked, action).items()}
    kind, subject = as_text(asked.facts.get("type")), as_text(asked.facts.get("subject"))
    return {
        "action": action,
        "parameters": _tied(asked, action, parameters),
        "confidence": 0.7,
        "reason": f"{kind or 'what was told'} about {subject or 'the subject'} warrants {action}"[:1000],
        "evidence": list(asked.facts.get("evidence") or ())[:100],
    }


def _variants(asked: Asked, action: str) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """The shapes of `parameters` that may be the action's, and whether they name it."""
    parameters = ((asked.schema or {}).get("properties") or {}).get("parameters") or {}
    for shape in parameters.get("anyOf") or (parameters,):
        properties = shape.get("properties") or {}
        named = (properties.get(SHAPE) or {}).get("enum")
        if named is None or action in named:
            yield properties, named is not None


def _shape(asked: Asked, action: str) -> dict[str, Mapping[str, Any]]:
    found = next(_variants(asked, action), ({}, False))[0]
    return {name: schema for name, schema in found.items() if name != SHAPE}


def _tied(asked: Asked, action: str, parameters: dict[str, Any]) -> dict[str, Any]:
    is_named = next(_variants(asked, action), ({}, False))[1]
    return {SHAPE: action, **parameters} if is_named else parameters


def _types(schema: Mapping[str, Any]) -> set[str]:
    kind = schema.get("type")
    own = set(kind) if isinstance(kind, list) else {kind} if kind else set()
    return own.union(*(_types(inner) for inner in schema.get("anyOf") or ()))


def _feature(asked: Asked, name: str, schema: Mapping[str, Any]) -> Any:
    """The feature of the same name where it is of the parameter's type, or None."""
    value = (asked.facts.get("features") or {}).get(name)
    kinds = _types(schema)
    fits = (
        ("boolean" in kinds and isinstance(value, bool))
        or ("integer" in kinds and type(value) is int)
        or ("number" in kinds and isinstance(value, int | float) and not isinstance(value, bool))
        or ("string" in kinds and isinstance(value, str) and value != "")
    )
    return value if fits and ("enum" not in schema or value in schema["enum"]) else None


def _value(asked: Asked, name: str, schema: Mapping[str, Any]) -> Any:
    if (feature := _feature(asked, name, schema)) is not None:
        return feature
    if schema.get("enum"):
        return schema["enum"][0]
    kinds = _types(schema)
    if "string" in kinds:
        suspects = asked.facts.get("suspects") or ()
        return str(suspects[0]) if suspects else as_text(asked.facts.get("subject")) or "unknown"
    if kinds & {"integer", "number"}:
        return schema.get("minimum", 1)
    return False if "boolean" in kinds else None


def _filled(value: object, asked: Asked) -> Any:
    found = _PATH.match(value) if isinstance(value, str) else None
    return value if found is None else asked.at(found[1])


def _fitting(value: Any, schema: Mapping[str, Any]) -> Any:
    return int(value) if isinstance(value, float) and "integer" in _types(schema) and value.is_integer() else value


def as_text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: object, *, low: float | None = None, high: float | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (low is None or value >= low) and (high is None or value <= high)


def content_text(content: object) -> str:
    """A message's text; parts of type text joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def _after(text: str, start: str) -> str:
    """The rest of the last line that begins with `start`: ours come after the author's."""
    at = text.rfind("\n" + start)
    if at < 0:
        return ""
    return text[at + 1 + len(start) :].split("\n", 1)[0]


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _compact(value: object) -> str:
    return orjson.dumps(value).decode()
