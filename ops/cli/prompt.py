"""prompt: what language models are asked with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import SetupFailed
from ops.cli.options import AsJson, Domain, Files
from ops.cli.terminal import bootstrap, command, now_ms, out, print_cases, print_columns, print_json
from ops.plain import plain

app = typer.Typer()
group = typer.Typer(help="Prompts of language models as versioned events.", no_args_is_help=True)
app.add_typer(group, name="prompt")


@command(group)
def check(domain: Domain, files: Files = None, as_json: AsJson = False) -> None:
    """Check prompt files (default: all of conf/DOMAIN/prompts); needs no broker."""
    from ops import prompts

    checked = prompts.check_files(files) if files else prompts.shipped_prompts(domain)
    if as_json:
        print_json({"ok": True, "prompts": [{"prompt": prompts.name_of(p), "model": p.model, "sha256": p.sha256} for p in checked]})
        return
    for prompt in checked:
        out.print(f"ok {prompts.name_of(prompt)} for {prompt.model} ({len(prompt.text)} characters, sha256 {prompt.sha256[:12]})")


@command(group)
def publish(domain: Domain, files: Files = None, as_json: AsJson = False) -> None:
    """Check and publish prompt files; all or nothing. The newest version asks, without restart."""
    from ops import prompts

    chosen = prompts.check_files(files) if files else prompts.shipped_prompts(domain)
    names = prompts.publish(bootstrap(), domain, chosen, now_ms=now_ms())
    if as_json:
        print_json({"published": names})
        return
    for name in names:
        out.print(f"published {name}")


@command(group, "list")
def list_versions(domain: Domain, as_json: AsJson = False) -> None:
    """Every published prompt version with its status."""
    from ops import prompts

    rows = [
        {"prompt": name, "status": p.prompt.status, "model": p.prompt.model, "schema": p.prompt.reply_schema,
         "sha256": p.prompt.sha256, "published_at": p.published_at, "offset": p.offset}
        for name, p in prompts.published(bootstrap(), domain).items()
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        print_columns(("prompt", "status", "model", "sha256", "published_at"), rows)


@command(group)
def show(
    domain: Domain, name: Annotated[str, typer.Argument(metavar="ID[@VERSION]")], as_json: AsJson = False
) -> None:
    """One published prompt: the newest version, or the one named."""
    from ops import prompts
    from ops.versions import chosen

    prompt = chosen(prompts.published(bootstrap(), domain), name).prompt
    if as_json:
        print_json(prompt.model_dump(mode="json"))
        return
    out.print(f"{prompts.name_of(prompt)} {prompt.status}, for {prompt.model}, sha256 {prompt.sha256}")
    out.print(plain(prompt.text))


@command(group, "test")
def play_cases(
    domain: Domain,
    file: Annotated[Path | None, typer.Argument(help="default: conf/DOMAIN/prompts_test.yaml")] = None,
    live: Annotated[bool, typer.Option("--live", help="ask the server at OPENAI_BASE_URL instead of the recorded replies")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a given/expect table of prompts against recorded replies, or a live model; needs no broker."""
    from contracts.domain import load_domain
    from ops import prompt_tests

    if live and not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        raise SetupFailed("--live: set OPENAI_BASE_URL (and OPENAI_API_KEY), for instance to what './flyball model-server' prints")
    results = prompt_tests.run(domain, file, ask=prompt_tests.live(load_domain(domain)) if live else None)
    if not as_json:
        print_cases([(result.case, result.problem, result.left_out) for result in results])
        return
    print_json([{"case": r.case, "problem": r.problem, "left_out": r.left_out} for r in results])
    if any(result.problem is not None for result in results):
        raise typer.Exit(1)
