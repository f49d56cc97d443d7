"""dead-letters: bad input with its cause and position, and its way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import SetupFailed
from ops.cli.options import AsJson, Domain
from ops.cli.terminal import (
    bootstrap,
    command,
    err,
    now_ms,
    out,
    print_json,
    print_table,
    progress,
    read_bytes,
)

if TYPE_CHECKING:
    from contracts.dead_letter import Redriven
    from ops.dead_letters import History

app = typer.Typer()
group = typer.Typer(help="Bad input with its cause and position.", no_args_is_help=True)
app.add_typer(group, name="dead-letters")


def _passed(domain: str, found: list[History]) -> Callable[[Redriven], bool]:
    """How letters ended is asked of the jobs' offsets, where any was redriven."""
    from ops import dead_letters, flink_jobs

    if not any(history.redriven for history in found):
        return lambda _: False
    return dead_letters.passed(bootstrap(), domain, flink_jobs.jobs_of(domain))


@command(group, "list")
def list_letters(domain: Domain, as_json: AsJson = False) -> None:
    """Every dead letter: cause, message, topic, partition, offset; whether it was redriven, and how that ended."""
    from ops import dead_letters

    found = dead_letters.read(bootstrap(), domain)
    is_past = _passed(domain, found)
    rows = [dead_letters.told(history, is_past) for history in found]
    if as_json:
        print_json(rows)
        return

    def state(row: Mapping[str, str]) -> str:
        return row["state"].replace("_", " ") + (f" as {row['after'][:12]}" if row["after"] is not None else "")

    print_table(
        ("id", "cause", "place", "bytes", "state", "message"),
        (
            (*(str(row[name])[:100] for name in ("id", "cause", "place", "bytes")), state(row), row["message"][:100])
            for row in rows
        ),
    )


@command(group)
def show(
    domain: Domain, id: Annotated[str, typer.Argument(help="a dead letter's id or TOPIC/PARTITION/OFFSET")]
) -> None:
    """One dead letter with its original bytes (as text where they are text, and in base64) and its history."""
    from ops import dead_letters

    found = dead_letters.read(bootstrap(), domain)
    history = next((each for each in found if id in (each.letter.id, each.letter.place)), None)
    if history is None:
        raise SetupFailed(f"no dead letter {id!r} in {domain}.dead-letters")
    is_past = _passed(domain, found)
    row = dead_letters.told(history, is_past, with_value=True)
    line = [dead_letters.told(each, is_past) for each in dead_letters.chain(found, history)]
    row["history"] = [{k: each[k] for k in ("id", "at", "cause", "place", "state", "redriven")} for each in line]
    print_json(row)


@command(group)
def redrive(
    domain: Domain,
    file: Annotated[
        str | None,
        typer.Argument(help='corrected records as JSONL, {"id": the letter\'s, "value": the event} a line; - reads standard input'),
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", "--ids", help="a dead letter's id or place; may be repeated, or several with commas")] = None,
    cause: Annotated[str | None, typer.Option(help="all of this cause")] = None,
    since: Annotated[str | None, typer.Option(help="all written at or after this time (RFC 3339)")] = None,
    edit: Annotated[bool, typer.Option("--edit", help="open $VISUAL or $EDITOR on each record first")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be put back, and what would be refused again")] = False,
    as_json: AsJson = False,
) -> None:
    """Put dead letters' records back into their topics, exactly once, as they were or corrected.

    Options narrow each other down. What was corrected must fit its contract. A letter is redriven once; when its record
    dies again, that is a new letter. Exit code 1 when anything is refused.
    """
    import shutil
    import tempfile

    from ops import dead_letters
    from ops import redrive as redriver

    named = [name for given in ids or [] for name in given.split(",") if name]
    if file is not None and (named or cause or since or edit):
        raise SetupFailed("a file of corrected records names its letters itself: leave --id, --cause, --since and --edit out")
    if file is None and not (named or cause or since or dry_run):
        raise SetupFailed("expected --id, --cause or --since, or corrected records; --dry-run alone shows all")
    servers = bootstrap()
    found = dead_letters.read(servers, domain)
    corrected: dict[str, bytes] | None = None
    if file is None:
        chosen = dead_letters.choose(found, ids=named, cause=cause, since=since)
    else:
        chosen, corrected = redriver.choose_corrected(found, read_bytes(file).splitlines())
    folder = Path(tempfile.mkdtemp(prefix="flyball-redrive-")) if edit else None
    if folder is not None:
        corrected = {}
        for letter in (history.letter for history in chosen if history.redriven is None):
            err.print(f"{letter.place}: {letter.data.cause}: {letter.data.message}", markup=False, highlight=False)
            corrected[letter.id] = redriver.edit(letter, folder / f"{letter.id}.json")
    with progress("putting back") as say:
        results = redriver.redrive(
            servers, domain, chosen, corrected=corrected, is_dry=dry_run, now_ms=now_ms(),
            on_progress=lambda count: say(f"put back: {count} of {len(chosen)}"),
        )  # fmt: skip
    refused = sum(result.what == "refused" for result in results)
    if folder is not None and not refused:
        shutil.rmtree(folder)
    if as_json:
        print_json([result.told() for result in results])
    else:
        for result in results:
            out.print(f"{result.letter_id} {result.what.replace('_', ' ')}", result.place or "", result.why, markup=False, highlight=False, soft_wrap=True)
        out.print(f"{sum(r.what == 'redriven' for r in results)} of {len(results)} redriven")
    if refused:
        kept = f"; what the editor left is in {folder}" if folder is not None else ""
        raise SetupFailed(f"{refused} of {len(results)} refused{kept}")
