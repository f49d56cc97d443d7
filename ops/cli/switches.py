"""pause, resume: switches that `govern` obeys at once."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli.options import AsJson, Domain
from ops.cli.terminal import bootstrap, command, now_ms, out, print_json, user

app = typer.Typer()

Agent = Annotated[str | None, typer.Option(help="only this agent")]
Action = Annotated[str | None, typer.Option(help="only this action")]
Subject = Annotated[str | None, typer.Option(help="only this subject")]
Why = Annotated[str, typer.Option(help="kept with the switch")]


@command(app)
def pause(
    domain: Domain, agent: Agent = None, action: Action = None, subject: Subject = None, reason: Why = "", as_json: AsJson = False
) -> None:
    """Make govern deny (reason: paused) from the next proposal on."""
    _throw(domain, agent, action, subject, reason, as_json, is_paused=True)


@command(app)
def resume(
    domain: Domain, agent: Agent = None, action: Action = None, subject: Subject = None, reason: Why = "", as_json: AsJson = False
) -> None:
    """Take a pause back; name the same agent, action and subject."""
    _throw(domain, agent, action, subject, reason, as_json, is_paused=False)


def _throw(
    domain: str, agent: str | None, action: str | None, subject: str | None, reason: str, as_json: bool, *, is_paused: bool
) -> None:
    from ops import policies

    switch = policies.switch(
        domain, is_paused=is_paused, agent=agent, action=action, subject=subject, reason=reason, author=user()
    )
    policies.throw_switch(bootstrap(), domain, switch, now_ms=now_ms())
    if as_json:
        print_json({"domain": domain, **switch.model_dump()})
        return
    what = f"agent {agent or 'any'}, action {action or 'any'}, subject {subject or 'any'}"
    out.print(f"{'paused' if is_paused else 'resumed'} {domain}: {what}")
