"""`prompt test`: what a domain's agents would propose on given situations, by recorded replies or a live model.

A table is YAML, conf/<domain>/prompts_test.yaml:

    defaults: {agent: triage, subject: shop, features: {...}}
    cases:
      - case: a slow database is suspected
        given: {features: {deviation: 9.0}, suspects: [db], evidence: [f1]}   # over the defaults', field by field
        reply: {action: ..., parameters: {...}, confidence: 0.8, reason: ..., evidence: [f1]}   # or its raw text
        expect: {action: restart_service, parameters: {node: db}, confidence: [0.5, 1.0], evidence: [f1]}

`expect` holds any of action (one, a list of them, or abstain), parameters (those named), confidence (from, to),
evidence (among those cited), reason (a regex), refused (the code of a refused reply). With a live model a case
without `expect.refused` is asked, and one with it is left out: it is about what a model may wrongly say.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.domain import DomainContract, load_domain
from contracts.errors import ReplyRefused, SetupFailed
from contracts.prompt import Prompt
from jobs.settings import load_settings
from ops import prompts
from udfs.agents.core import Situation, scalar_columns
from udfs.agents.definition import LlmAgent
from udfs.reason.caller import client
from udfs.reason.masking import Mask
from udfs.reason.prompt import messages
from udfs.reason.reply import ABSTAIN, Reply, read_reply, response_format
from udfs.yaml_file import read_yaml

Ask = Callable[[LlmAgent, Prompt, Situation], Awaitable[str]]
_EVENT_TIME = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Result:
    """One case, and what is wrong with it (None: nothing). `left_out`: not asked."""

    case: str
    problem: str | None
    left_out: bool = False


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Given(_Part):
    """A situation: all features that are not given are null."""

    agent: str
    id: str = "a-situation"
    subject: str = "a-subject"
    event_time: str = _EVENT_TIME
    features: dict[str, Any] = {}
    suspects: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


class Expect(_Part):
    """What must be so; what is left out may be anything."""

    action: str | list[str] | None = None
    parameters: dict[str, Any] = {}
    confidence: tuple[float, float] = (0.0, 1.0)
    evidence: tuple[str, ...] = ()
    reason: str | None = None
    refused: str | None = None


class Case(_Part):
    case: str = Field(min_length=1)
    given: dict[str, Any] = {}
    reply: dict[str, Any] | str | None = None
    expect: Expect


class Table(_Part):
    defaults: dict[str, Any] = {}
    cases: tuple[Case, ...] = Field(min_length=1)


def run(domain: str, file: Path | None = None, *, ask: Ask | None = None) -> list[Result]:
    """Every case under the files of conf/<domain>/prompts; `ask` (see `live`) instead of recorded replies.

    Raises SetupFailed when the table, a prompt or an agent is not as it should be.
    """
    path = file or load_settings(domain).conf_dir / "prompts_test.yaml"
    agents = prompts.llm_agents(domain)
    return play(load_domain(domain), agents, prompts.shipped_prompts(domain), read_table(path), ask=ask)


def read_table(path: Path) -> Table:
    try:
        return Table.model_validate(read_yaml(path))
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5])
        raise SetupFailed(f"{path}: expected cases of case, given, reply and expect: {told}") from None


def play(
    contract: DomainContract, agents: Sequence[LlmAgent], files: Sequence[Prompt], table: Table, *, ask: Ask | None = None
) -> list[Result]:
    """Every case, one after the other; the agent's newest prompt asks."""
    by_name, newest = {agent.agent: agent for agent in agents}, prompts.newest(files)

    async def all_cases() -> list[Result]:
        return [await _play(contract, by_name, newest, table.defaults, case, ask) for case in table.cases]

    return asyncio.run(all_cases())


async def _play(
    contract: DomainContract, agents: Mapping[str, LlmAgent], newest: Mapping[str, Prompt],
    defaults: Mapping[str, Any], case: Case, ask: Ask | None,
) -> Result:  # fmt: skip
    if ask is not None and case.expect.refused is not None:
        return Result(case.case, None, left_out=True)
    try:
        agent, situation = _situation(contract, agents, defaults, case)
    except (ValidationError, SetupFailed, TypeError) as error:
        return Result(case.case, f"not a case: {' '.join(str(error).split())[:300]}")
    if (prompt := newest.get(agent.prompt)) is None:
        return Result(case.case, f"expected the prompt {agent.prompt!r} among the files, found none in force")
    mask = Mask.of(situation, contract.personal_fields)
    try:
        if ask is not None:
            text = await ask(agent, prompt, situation)
        elif case.reply is None:
            return Result(case.case, "expected a recorded reply; --live asks the server at OPENAI_BASE_URL")
        else:
            text = case.reply if isinstance(case.reply, str) else orjson.dumps(case.reply).decode()
        reply = read_reply(text, agent, contract, situation, mask)
    except ReplyRefused as refused:
        if refused.code == case.expect.refused:
            return Result(case.case, None)
        return Result(case.case, f"expected {case.expect.refused or 'a reply that fits'}, came {refused.code}: {refused}")
    except openai.OpenAIError as error:
        told = f"HTTP {error.status_code}" if isinstance(error, openai.APIStatusError) else type(error).__name__
        return Result(case.case, f"the server gave no reply: {told}")
    return Result(case.case, _problem(reply, case.expect))


def _situation(
    contract: DomainContract, agents: Mapping[str, LlmAgent], defaults: Mapping[str, Any], case: Case
) -> tuple[LlmAgent, Situation]:
    features = {**(defaults.get("features") or {}), **(case.given.get("features") or {})}
    given = Given.model_validate({**defaults, **case.given, "features": features})
    agent = agents.get(given.agent)
    if agent is None:
        raise SetupFailed(f"expected an agent of {sorted(agents)}, came {given.agent!r}")
    names = scalar_columns(contract.situations[agent.situation])
    if unknown := set(features) - set(names):
        raise SetupFailed(f"expected features of {agent.situation}, came {sorted(unknown)}")
    return agent, Situation(
        given.id, agent.situation, given.subject, given.event_time, given.id, 0, None, None,
        {name: features.get(name) for name in names}, given.suspects, given.evidence,
    )  # fmt: skip


def _problem(reply: Reply, expect: Expect) -> str | None:
    action = reply.action or ABSTAIN
    if expect.refused is not None:
        return f"expected the reply to be refused ({expect.refused}), came {action}"
    wanted = [expect.action] if isinstance(expect.action, str) else expect.action
    if wanted is not None and action not in wanted:
        return f"expected {' or '.join(wanted)}, came {action}: {reply.reason}"
    for name, value in expect.parameters.items():
        if name not in reply.parameters or reply.parameters[name] != value:
            return f"expected the parameter {name} to be {value!r}, came {reply.parameters.get(name)!r}"
    low, high = expect.confidence
    if not low <= reply.confidence <= high:
        return f"expected a confidence of {low:g} to {high:g}, came {reply.confidence:g}"
    if missing := set(expect.evidence) - set(reply.evidence):
        return f"expected {sorted(missing)} among the evidence, came {list(reply.evidence)}"
    if expect.reason is not None and not re.search(expect.reason, reply.reason):
        return f"expected a reason like {expect.reason!r}, came {reply.reason!r}"
    return None


def live(contract: DomainContract) -> Ask:
    """Asks the server of OPENAI_BASE_URL with the key of OPENAI_API_KEY, once a case and without look-ups."""

    async def ask(agent: LlmAgent, prompt: Prompt, situation: Situation) -> str:
        options: dict[str, Any] = {"response_format": response_format(agent, contract)} if agent.is_structured else {}
        options |= {agent.token_limit_field: agent.max_tokens}
        if agent.temperature is not None:
            options["temperature"] = agent.temperature
        async with client() as connected:
            patient = connected.with_options(max_retries=agent.attempts - 1, timeout=agent.attempt_timeout_s)
            answer = await patient.chat.completions.create(
                model=agent.model,
                messages=messages(prompt, agent, situation, contract, ()),  # type: ignore[arg-type]
                **options,
            )
        message = answer.choices[0].message if answer.choices else None
        return (message.content or message.refusal or "") if message is not None else ""

    return ask
