"""replay: every recorded decision made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ops.cli.options import AsJson, Domain, Since, Until
from ops.cli.terminal import bootstrap, command, err, out, print_json, print_table, progress
from ops.home import Home

app = typer.Typer()


@command(app)
def replay(
    domain: Domain,
    policies: Annotated[Path | None, typer.Option(help="a folder of candidate policies")] = None,
    since: Since = None,
    until: Until = None,
    processes: Annotated[int | None, typer.Option(min=1, help="how many work side by side; one a core otherwise")] = None,
    flink: Annotated[bool, typer.Option("--flink", help="as a bounded job on the running cluster")] = False,
    as_json: AsJson = False,
) -> None:
    """Make every recorded decision again and show what differs; nothing may, under the same policies.

    Partitions of the decisions are shared out among the cores, each has one in memory; with --flink one subject.
    """
    from ops import replay as replayer

    candidates = None if policies is None else replayer.read_candidates(domain, policies)
    with progress("reading the log") as say:
        if flink:
            say("a job makes the decisions again")
            done = replayer.run_on_flink(Home.default(), domain, candidates=candidates, since=since, until=until)
        else:
            done = replayer.run(
                bootstrap(), domain, candidates=candidates, since=since, until=until,
                on_progress=lambda count: say(f"{count} decisions made again"), processes=processes,
            )  # fmt: skip
    found = done.told()
    if as_json:
        print_json(found)
    else:
        out.print(
            f"{found['decisions']} decisions made again ({found['decisions_per_s']} a second), {found['different']} differ"
            + (f"; {waits} notes of contests that are open cannot be made again yet" if (waits := found["not_replayable"]) else "")
        )
        if found["changes"]:
            print_table(
                ("action", "recorded", "now", "by", "how many", "outcomes lost", "asks", "for example"),
                (
                    (
                        change["action"], change["before"], change["after"], change["policies"], change["count"],
                        *(", ".join(f"{what} {n}" for what, n in change[name].items()) for name in ("outcomes", "approvals")),
                        change["examples"][0],
                    )
                    for change in found["changes"]
                ),
            )  # fmt: skip
        if found["broken_chains"]:
            err.print(f"[red]{found['broken_chains']} subjects have a broken chain:[/red] './flyball audit verify {domain}'")
    if found["broken_chains"] or (found["different"] and candidates is None):
        raise typer.Exit(1)
