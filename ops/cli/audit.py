"""audit: chains and signed heads over the topics, and one subject's story."""

from __future__ import annotations

from typing import Annotated

import typer

from contracts.errors import SetupFailed
from ops.cli.options import AsJson, Domain, Since, Until
from ops.cli.terminal import bootstrap, command, err, out, print_json
from ops.home import Home
from ops.plain import plain

app = typer.Typer()
group = typer.Typer(help="Proof of what was decided, and its story.", no_args_is_help=True)
app.add_typer(group, name="audit")


@command(group)
def verify(
    domain: Domain,
    since: Since = None,
    until: Until = None,
    public_key: Annotated[
        str | None, typer.Option(help="the heads' key (base64url), without this home's key file")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="NUMBER:SHA256 of a head noted elsewhere; it must still be there")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check each subject's chain of decisions and each signed head, over the topics; names the first bad record.

    --from and --to restrict which entries are counted. Chains and heads are read from their beginning
    whatever they say, and what is bad at any time is told: later entries rest on it.
    """
    from ops import audit

    found = audit.verify(
        bootstrap(), domain,
        public_key=public_key or audit.key_of_home(Home.default(), domain),
        period=audit.read_period(since, until),
        anchor=None if anchor is None else audit.read_anchor(anchor),
    )  # fmt: skip
    told = found.told()
    if as_json:
        print_json(told)
    else:
        out.print(
            f"{told['entries']} entries of {told['subjects']} subjects, {told['superseded']} superseded;"
            f" {told['heads']} heads, {told['unsealed']} entries not sealed yet; {told['bad']} bad"
        )
        if last := told["last_head"]:
            out.print(f"last head, to be noted elsewhere: {last['number']}:{last['sha256']}", soft_wrap=True)
        for bad in found.bad[:20]:
            err.print(plain(bad.told()), style="red", soft_wrap=True)
    if found.bad:
        raise typer.Exit(1)


@command(group)
def export(
    domain: Domain,
    subject: Annotated[str, typer.Option(help="whose story")],
    as_json: AsJson = False,
) -> None:
    """One subject's story: each decision with who, what, when and why; --json gives every event."""
    from ops import audit

    events = audit.story(bootstrap(), domain, subject)
    if not events:
        raise SetupFailed(f"no event about {subject!r} in the topics of {domain}")
    if as_json:
        print_json(events)
    else:
        for line in audit.readable(events):
            out.print(plain(line))
