"""producers: keys that facts are signed with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ops.cli.options import AsJson, Domain
from ops.cli.terminal import command, err, print_json, print_table

app = typer.Typer()
group = typer.Typer(help="Keys that producers sign facts with.", no_args_is_help=True)
app.add_typer(group, name="producers")


@command(group)
def keygen(
    domain: Domain,
    key_id: Annotated[str, typer.Argument(help="a name for the key, like 'meters-2026'; never used again")],
    output: Annotated[Path | None, typer.Option(help="where the private key goes; default: KEY_ID.pem here")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a producer's key: the private one in a file, the public one as an entry for producers.yaml."""
    from jobs.settings import load_settings
    from ops import producers

    settings = load_settings(domain)
    made = producers.keygen(settings, key_id, output or Path(f"{key_id}.pem"))
    if as_json:
        print_json({"private_key": made.file, "add_to": settings.producers_file, "entry": made.entry})
        return
    err.print(f"the private key is in {made.file}; add below 'keys:' in {settings.producers_file}:", soft_wrap=True)
    sys.stdout.write(made.entry)


@command(group, "list")
def list_keys(domain: Domain, as_json: AsJson = False) -> None:
    """Every key of conf/DOMAIN/producers.yaml, and what it may sign."""
    from contracts.domain import load_domain
    from jobs.settings import load_settings
    from udfs.signed_facts import load_producers

    keys = load_producers(load_settings(domain).producers_file, load_domain(domain))
    if as_json:
        print_json([key.model_dump(mode="json") for key in keys])
        return
    print_table(
        ("key", "producer", "types", "subjects", "not before", "not after"),
        (
            (key.key_id, key.producer, ", ".join(key.types), ", ".join(key.subjects), key.not_before or "", key.not_after or "")
            for key in keys
        ),
    )
