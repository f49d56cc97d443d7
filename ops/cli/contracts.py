"""contracts: what is generated from them, and whether they may follow the versions published before."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from contracts.errors import SetupFailed
from ops.cli.options import AsJson
from ops.cli.terminal import command, err, out, print_json, read_bytes, told

if TYPE_CHECKING:
    from contracts.published import Compatibility

app = typer.Typer()
group = typer.Typer(help="The generated contracts.", invoke_without_command=True)
app.add_typer(group, name="contracts")


@group.callback()
def contracts(
    context: typer.Context,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="AsyncAPI 3 of all topics")] = False,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="JSON Schemas of all events")] = False,
    ddl: Annotated[bool, typer.Option("--ddl", help="Flink SQL DDL of all topics")] = False,
) -> None:
    """Print the generated contracts: --asyncapi, --json-schema or --ddl."""
    if context.invoked_subcommand is not None:
        return
    with told():
        from contracts import asyncapi as asyncapi_text
        from contracts import ddl as ddl_text
        from contracts import json_schema as schema_text
        from contracts.access import principal
        from contracts.domain import known_domains
        from udfs import broker_access

        if asyncapi + json_schema + ddl != 1:
            raise SetupFailed("expected one of --asyncapi, --json-schema, --ddl, or check, publish, check-event")
        domains = known_domains()
        if asyncapi:
            print_json(asyncapi_text.document(domains))
        elif json_schema:
            print_json(schema_text.document(domains))
        else:
            servers = os.environ.get("FLYBALL_BOOTSTRAP_SERVERS", "localhost:9092")
            scripts = (ddl_text.script(d, servers, broker_access.flink(principal(d, "reader"))) for d in domains)
            sys.stdout.write("\n".join(scripts))


@command(group)
def check(
    compatibility: Annotated[str, typer.Option(help="backward: old events stay readable; forward: old readers read new events; full: both")] = "backward",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare every event type with its versions published before; names each break and what to do. Exit code 1 for any."""
    from contracts import published
    from contracts.domain import known_domains

    if compatibility not in ("backward", "forward", "full"):
        raise SetupFailed(f"--compatibility: expected backward, forward or full, came {compatibility!r}")
    domains = known_domains()
    found = published.check(domains, cast("Compatibility", compatibility))
    new = [f"{event.name} {event.data.schema_version}" for event in published.unpublished(domains)]
    if as_json:
        print_json({"ok": not found, "findings": [one.told() for one in found], "unpublished": new})
    else:
        for one in found:
            err.print(str(one), style="red", markup=False, highlight=False, soft_wrap=True)
        if new:
            out.print(f"not published yet ('./flyball contracts publish'): {', '.join(new)}", soft_wrap=True)
        checked = sum(1 for _ in published.types_of(domains))
        out.print(f"{checked} event types, {len(found)} to correct ({compatibility})")
    if found:
        raise typer.Exit(1)


@command(group)
def publish(
    replace: Annotated[
        list[str] | None, typer.Option(help="publish this event type's version again, changed; only while nobody has events of it")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the next version of each event type whose `schema_version` is not published yet, if it may follow the last."""
    from contracts import published
    from contracts.domain import known_domains

    written = published.publish_new(known_domains(), again=set(replace or ()))
    if as_json:
        print_json({"written": written})
        return
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True)
    out.print(f"{len(written)} versions published")


@command(group)
def check_event(
    file: Annotated[str, typer.Argument(help="a file with one event, or - for standard input")],
) -> None:
    """Judge one event by the CloudEvents specification alone."""
    from contracts.envelope import check_event as judge

    sys.stdout.write(json.dumps(judge(read_bytes(file))) + "\n")
