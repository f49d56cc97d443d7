"""emit, read, trace, sql: what is written to the topics, and what stands in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import SetupFailed
from ops.cli.options import About, AsJson, Domain, Graph, Rate, SignWith, facts_per_s
from ops.cli.terminal import bootstrap, command, err, out, print_json, progress
from ops.home import Home

app = typer.Typer()


@command(app)
def emit(
    domain: Domain,
    file: Annotated[str, typer.Argument(help="CSV, bare JSONL or CloudEvents JSONL; - reads standard input")],
    graph: Graph = None,
    subject: About = None,
    rate: Rate = None,
    tick: Annotated[bool, typer.Option("--tick", help="end with a tick on every partition, closing windows")] = False,
    sign_with: SignWith = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Publish facts into a running domain."""
    from jobs.settings import load_settings
    from ops import producers
    from ops.emit import emit as publish

    settings = load_settings(domain)
    sign = None if sign_with is None else producers.signer(settings, sign_with)
    if sign is None and settings.signed_facts == "required":
        err.print(f"{domain} requires signed facts: what is not signed becomes a dead letter (--sign-with)", style="yellow")
    servers = bootstrap()
    with progress("publishing") as say:
        done = publish(
            servers, settings, None if file == "-" else Path(file), graph=graph, subject=subject,
            rate=facts_per_s(rate), sign=sign, is_closed=tick, on_progress=lambda d: say(f"published {d.facts} facts"),
        )  # fmt: skip
    if as_json:
        print_json({"facts": done.facts, "refused": done.refused, "not_sent": done.oversized})
    else:
        out.print(f"published {done.facts} facts, {done.refused} lines to dead letters")
    for problem in done.oversized:
        err.print(f"[red]not sent:[/red] {problem}")
    if done.oversized:
        raise typer.Exit(1)


@command(app)
def read(
    domain: Domain,
    topic: Annotated[str, typer.Argument(help="facts, situations, proposals, decisions, commands, ...")],
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="with --follow: first what is in the topic already; without --follow that is printed anyway")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="go on with what comes, until Ctrl-C or --max")] = False,
    max: Annotated[int | None, typer.Option(help="stop after so many records")] = None,
) -> None:  # fmt: skip
    """Print a topic as JSONL: partition, offset, key, value (committed records only).

    Without --follow: all that is in the topic now, from its beginning, then it ends. With --follow: what comes from now on, as
    Kafka's console consumer does by itself; --from-beginning puts what is there before it.
    """
    from ops.reading import records

    for line in records(
        bootstrap(), domain, topic, from_beginning=from_beginning or not follow, follow=follow, limit=max
    ):
        sys.stdout.write(line + "\n")
        if follow:
            sys.stdout.flush()


@command(app)
def trace(
    id: Annotated[str, typer.Argument(help="an event id, a correlation id, or its first 12 characters")], as_json: AsJson = False
) -> None:
    """The causal tree around an event: what caused it, what came of it."""
    from ops import trace as tracer

    roots = tracer.tree_data(tracer.find_anywhere(bootstrap(), id))
    if as_json:
        print_json(roots)
    else:
        out.print(tracer.as_tree(roots))


@command(app)
def sql(
    file: Annotated[Path | None, typer.Option("-f", "--file", help="run these statements and end")] = None,
    domain: Annotated[str | None, typer.Option(help="the current database; default: what is up")] = None,
) -> None:
    """The real Flink SQL client with every topic as a table and the views of sql/DOMAIN/views.sql."""
    from ops import sql_client
    from ops.status import running_domains

    bootstrap()
    home = Home.default()
    chosen = domain or next(iter(running_domains(home)), None)
    if chosen is None:
        raise SetupFailed("no domain is up; name one with --domain")
    raise typer.Exit(sql_client.run(home, chosen, file))
