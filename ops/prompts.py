"""Prompts as files and as events: conf/<domain>/prompts/*.md, checked, published, listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from contracts.domain import load_domain
from contracts.envelope import derive_id
from contracts.errors import SetupFailed
from contracts.prompt import Prompt
from jobs.settings import ROOT, load_settings
from ops import versions
from udfs.agents.definition import LlmAgent, asking, load_agents
from udfs.reason.prompt import read_prompt_file


@dataclass(frozen=True)
class PublishedPrompt:
    """A prompt version as its newest event left it."""

    prompt: Prompt
    offset: int
    published_at: str


def name_of(prompt: Prompt) -> str:
    return f"{prompt.prompt_id}@{prompt.version}"


def prompt_files(domain: str) -> list[Path]:
    return sorted((ROOT / "conf" / domain / "prompts").glob("*.md"))


def llm_agents(domain: str) -> list[LlmAgent]:
    """The agents in force (FLYBALL_AGENTS or conf/<domain>/agents.yaml) that ask a language model, and which (FLYBALL_MODEL)."""
    settings = load_settings(domain)
    agents = load_agents(settings.agents_file, load_domain(domain))
    return [asking(agent, settings.model) for agent in agents if isinstance(agent, LlmAgent)]


def check_files(files: Sequence[Path], agents: Sequence[LlmAgent] = ()) -> list[Prompt]:
    """Every prompt of `files`, each version once, and one for each of `agents`.

    Raises SetupFailed with all problems of all files, one a line.
    """
    prompts: list[Prompt] = []
    problems: list[str] = []
    for file in files:
        try:
            prompt = read_prompt_file(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file}: expected a readable UTF-8 file: {error}")
            continue
        except SetupFailed as error:
            problems.append(str(error))
            continue
        if any(name_of(p) == name_of(prompt) for p in prompts):
            problems.append(f"{file}: expected each version of a prompt once, {name_of(prompt)} came again")
        prompts.append(prompt)
    known = {prompt.prompt_id for prompt in prompts}
    if not problems:  # else the missing one may be a refused one
        problems += [
            f"agent {agent.agent!r}: expected a file with its prompt {agent.prompt!r}; there are {sorted(known)}"
            for agent in agents
            if agent.prompt not in known
        ]
    if problems:
        raise SetupFailed("\n".join(problems))
    return prompts


def shipped_prompts(domain: str) -> list[Prompt]:
    """Every prompt of conf/<domain>/prompts, checked; each agent of the domain's own file that asks has one.

    Other agents (FLYBALL_AGENTS) bring their prompts themselves.
    """
    has_own = not load_settings(domain).agents
    return check_files(prompt_files(domain), llm_agents(domain) if has_own else ())


def newest(prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    """Prompt id -> its highest active version."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        before = found.get(prompt.prompt_id)
        if prompt.status == "active" and (before is None or before.version < prompt.version):
            found[prompt.prompt_id] = prompt
    return found


def published(bootstrap_servers: str, domain: str) -> dict[str, PublishedPrompt]:
    """"id@version" -> that version as its newest event left it, in the order of first publishing."""
    found: dict[str, PublishedPrompt] = {}
    for offset, event in versions.events(bootstrap_servers, domain, "prompts"):
        if event.get("type") != Prompt.event_type:
            continue
        try:
            prompt = Prompt.model_validate_json(orjson.dumps(event["data"]))
        except (ValidationError, KeyError, TypeError):
            continue  # `reason` keeps it in dead letters
        found[name_of(prompt)] = PublishedPrompt(prompt, offset, str(event.get("time")))
    return found


def publish(bootstrap_servers: str, domain: str, prompts: Iterable[Prompt], *, now_ms: int) -> list[str]:
    """Write one event per prompt and give "id@version" of each; agents ask with the newest from then on.

    A version never changes: raises SetupFailed, publishing nothing, when one is already published with
    another text, model or schema.
    """
    prompts = list(prompts)
    known = published(bootstrap_servers, domain)
    changed = [
        name_of(prompt)
        for prompt in prompts
        if (before := known.get(name_of(prompt))) is not None and _content(before.prompt) != _content(prompt)
    ]
    if changed:
        raise SetupFailed(f"expected a new version for a changed prompt; published with other content: {', '.join(changed)}")
    versions.write(
        bootstrap_servers, domain, "prompts", "prompt",
        (
            (key := f"{p.prompt_id}/{p.version}", derive_id(f"{key}/{p.sha256}/{p.status}/{now_ms}", "prompt", domain), p)
            for p in prompts
        ),
        now_ms=now_ms,
    )  # fmt: skip
    return [name_of(prompt) for prompt in prompts]


def is_news(prompt: Prompt, known: Mapping[str, PublishedPrompt]) -> bool:
    """Whether the version is not published, or with other content (which `publish` then refuses)."""
    before = known.get(name_of(prompt))
    return before is None or _content(before.prompt) != _content(prompt)


def _content(prompt: Prompt) -> dict[str, object]:
    """What a version never changes: all but whether it is in force."""
    return prompt.model_dump(exclude={"status"})
