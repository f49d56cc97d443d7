"""upgrade, state: the code a job runs, and what it keeps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ops.cli.options import AsJson, Domain
from ops.cli.terminal import command, err, out, print_json
from ops.home import CHECKOUT, Home

app = typer.Typer()


@command(app)
def upgrade(
    domain: Domain,
    job: Annotated[str, typer.Argument(help="context, propose, reason or govern")],
    source: Annotated[Path | None, typer.Option("--from", help="the checkout to run from now on; default: this one, as it is now")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="begin without state (context, propose): all facts kept are read again")] = False,
    within: Annotated[float, typer.Option(help="seconds the new version has to come up")] = 120.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Stop a job with a savepoint, start it on other code from there; go back if that does not come up.

    The other jobs run on, on the code they have. Exit code 1 when the old version runs again.
    """
    from ops.upgrade import upgrade as run_upgrade

    done = run_upgrade(
        Home.default(), domain, job, err if as_json else out, checkout=source.resolve() if source else CHECKOUT,
        is_anew=anew, within_s=within,
    )  # fmt: skip
    if as_json:
        print_json(done.told())
    elif done.outcome == "unchanged":
        out.print(f"{domain}.{job} runs this code already ({done.after}); nothing was stopped")
    else:
        for uid in done.without_state:
            out.print(f"began without state: {uid}", markup=False, highlight=False)
        still = "nothing was decided" if job == "govern" else "it stood still"
        out.print(
            f"{domain}.{job}: {done.outcome.replace('_', ' ')}, {done.before} -> {done.after};"
            f" {still} for {done.seconds['stopped']:.1f} s", highlight=False,
        )  # fmt: skip
    if done.outcome == "rolled_back":
        err.print(f"[red]rolled back:[/red] {done.cause}", highlight=False)
        raise typer.Exit(1)


@command(app)
def state(
    write: Annotated[bool, typer.Option("--write", help="write docs/state.yaml")] = False,
    as_json: AsJson = False,
) -> None:
    """What each job keeps, by which operator uids, names, types and versions; compared with docs/state.yaml.

    Exit code 1 when they differ (without --write).
    """
    from ops import state_list

    with err.status("planning every job of every domain"):
        found = state_list.ask()
    if write:
        state_list.FILE.write_text(state_list.as_text(found))
    differing = state_list.differences(found, state_list.read() if state_list.FILE.exists() else {})
    if as_json:
        print_json({"jobs": found, "differences": differing})
    elif not write:
        sys.stdout.write(state_list.as_text(found))
    for difference in differing:
        err.print(difference, markup=False, highlight=False, soft_wrap=True)
    if differing:
        err.print("A savepoint made before is found and read by what the file says: see 'Upgrading' in docs/operations.md;"
                  " './flyball state --write' writes what is now")  # fmt: skip
        raise typer.Exit(1)
