"""run, up, down, status: the embedded broker, cluster and jobs of this home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import SetupFailed
from ops.cli.options import About, AsJson, Domain, Graph, Rate, SignWith, facts_per_s
from ops.cli.terminal import command, err, out, print_json
from ops.home import Home

app = typer.Typer()

Secure = Annotated[bool, typer.Option("--secure", help="TLS, logins and access rights on the broker")]


@command(app)
def run(
    domain: Domain,
    input: Annotated[Path | None, typer.Option(help="CSV, bare JSONL or CloudEvents JSONL")] = None,
    graph: Graph = None,
    subject: About = None,
    rate: Rate = None,
    report: Annotated[Path | None, typer.Option(help="write the report here, decisions.jsonl and commands.jsonl beside it")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave everything running at the end")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoints and topics")] = False,
    seed: Annotated[int, typer.Option(help="of generated inputs and simulated actuators")] = 1,
    count: Annotated[int | None, typer.Option(help="facts of a generated input")] = None,
    sign_with: SignWith = None,
    secure: Secure = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Start everything, play an input through the whole loop, show what happened, take it down."""
    from jobs.settings import load_settings
    from ops import run as runner

    settings = load_settings(domain)
    if input is not None and not input.is_file():
        raise SetupFailed(f"--input: expected a file, came {str(input)!r}")
    if graph is not None and (input is None or not graph.is_file()):
        raise SetupFailed(f"--graph: expected a file, and --input with it; came {str(graph)!r}")
    asked = runner.Asked(
        domain=domain, input=input, graph=graph, subject=subject,
        rate=settings.default_rate if rate is None else facts_per_s(rate), report=report, is_kept=keep,
        is_resumed=resume, seed=seed, count=count, sign_with=sign_with, is_secure=secure,
    )  # fmt: skip
    result = runner.run(asked, Home.default(), err if as_json else out)
    if as_json:
        print_json(result)
    if result["not_sent"]:
        raise typer.Exit(1)


@command(app)
def up(
    domain: Domain, resume: Annotated[bool, typer.Option("--resume")] = False, secure: Secure = False, as_json: AsJson = False
) -> None:
    """Start broker and cluster (if needed), and this domain's topics, policies, jobs and actuator."""
    from ops import instance
    from ops import run as runner

    home = Home.default()
    fresh = not resume and not instance.is_running(home)
    _, seconds = runner.bring_up(home, domain, is_fresh=fresh, console=err, is_secure=secure)
    if as_json:
        print_json({"domain": domain, "fresh": fresh, "seconds": seconds})
    else:
        out.print(f"{domain} is up after {seconds['setup']:.1f} s; './flyball status' shows it")


@command(app)
def down(as_json: AsJson = False) -> None:
    """Stop everything that runs here; topics and checkpoints stay for --resume."""
    from ops import instance

    with err.status("stopping"):
        was_running = instance.stop(Home.default())
    if as_json:
        print_json({"was_running": was_running})
    else:
        out.print("stopped" if was_running else "nothing was running")


@command(app)
def status(as_json: AsJson = False) -> None:
    """Processes, jobs, lag, last checkpoint."""
    from ops.status import gather, show

    found = gather(Home.default())
    if as_json:
        print_json(found)
    else:
        show(found, out)
    if found["state"] != "ready":
        raise typer.Exit(1)
