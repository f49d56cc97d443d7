"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import SetupFailed

Domain = Annotated[str, typer.Argument(help="machines, payments, ...: see conf/")]
Files = Annotated[list[Path] | None, typer.Argument()]
Since = Annotated[str | None, typer.Option("--from", help="event time (RFC 3339), included")]
Until = Annotated[str | None, typer.Option("--to", help="event time (RFC 3339), not included")]
Graph = Annotated[Path | None, typer.Option(help="CSV of reference facts, played before the input (incidents: who calls whom)")]
About = Annotated[str | None, typer.Option(help="the entity a file is about; default: its name")]
Rate = Annotated[str | None, typer.Option(help="facts a second, or 'max'")]
SignWith = Annotated[
    Path | None, typer.Option("--sign-with", help="sign each fact with this private key (PEM) of conf/DOMAIN/producers.yaml")
]
Reason = Annotated[str, typer.Option(help="why, for those who read it later")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


def facts_per_s(rate: str | None) -> float | None:
    """What `--rate` says; None: as fast as it goes. Raises SetupFailed."""
    if rate is None or rate == "max":
        return None
    try:
        found = float(rate)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise SetupFailed(f"--rate: expected facts a second, or 'max'; came {rate!r}")
    return found
