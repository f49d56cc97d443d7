"""approvals, approve, refuse, edit, override: what waits for people, and what people say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from contracts.errors import SetupFailed
from ops.cli.options import AsJson, Domain, Reason
from ops.cli.terminal import bootstrap, command, err, now_ms, out, pairs, print_json, print_table
from ops.home import Home
from ops.plain import plain

app = typer.Typer()
group = typer.Typer(help="What waits for people.", no_args_is_help=True)
app.add_typer(group, name="approvals")

RequestId = Annotated[str, typer.Argument(metavar="ID", help="of the request, or how it begins: see 'approvals list'")]
As = Annotated[str, typer.Option("--as", help="who you are: a person of conf/DOMAIN/people.yaml")]
KeyFile = Annotated[Path | None, typer.Option("--key", help="your private key (PEM); default: the one in .flyball/keys")]
Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a parameter of the action; may be repeated")]


@command(group, "list")
def list_requests(
    domain: Domain,
    all: Annotated[bool, typer.Option("--all", help="also those that have ended")] = False,
    as_json: AsJson = False,
) -> None:
    """Actions that are held until people answer: who is asked, and until when."""
    from ops import approvals

    told = [request.told() for request in approvals.requests(bootstrap(), domain).values()]
    shown = [row for row in told if all or row["state"] == "waiting"]
    if as_json:
        print_json(shown)
        return
    print_table(
        ("id", "subject", "action", "parameters", "by agent", "asks", "until", "approved by", "state"),
        (
            (
                row["id"][:12], row["subject"], row["action"], pairs(row["parameters"]), row["agent"],
                "; ".join(f"{r['approvers']} of {', '.join(r['roles'])}" for r in row["requires"]),
                min(r["deadline"] for r in row["requires"]), ", ".join(a["person"] for a in row["answers"]), row["state"],
            )
            for row in shown
        ),
    )  # fmt: skip
    err.print(f"{len(shown)} shown; './flyball approvals show {domain} ID' tells why, 'approve|refuse|edit' answers")


@command(group)
def show(domain: Domain, id: RequestId, as_json: AsJson = False) -> None:
    """One request: what would be done and why, what the agent saw, what was answered."""
    from ops import approvals

    request = approvals.find(bootstrap(), domain, id)
    told, data = request.told(), request.event["data"]
    if as_json:
        print_json({**told, "notes": request.notes, "decision": request.event, "ended_by": request.ended})
        return
    out.print(f"{told['id']}  {told['state']}", highlight=False)
    lines = [
        ("subject", told["subject"]),
        ("would do", f"{told['action']} {pairs(told['parameters'])}"),
        ("proposed by", f"{data['agent']}@{data['agent_version']} (confidence {data['confidence']:.4f}): {data['proposal_reason']}"),
        ("held because", told["explanation"]),
        ("on", f"{data['situation_type']} at {data['features_at']}: {pairs(data['features'])}"),
        ("digest", told["action_digest"]),
    ]
    for need in told["requires"]:
        nots = f", not by {', '.join(need['not_by'])}" if need["not_by"] else ""
        by = f"{need['policy_id']}@{need['version']}"
        lines.append(("asks", f"{need['approvers']} of {', '.join(need['roles'])}{nots}, until {need['deadline']} ({by})"))
    lines += [(note["what"], note["explanation"]) for note in request.notes]
    if request.ended is not None:
        end = request.ended["data"]
        lines.append(("ended", f"{end['verdict']} {end['reason']}: {end['explanation']}"))
    for name, value in lines:
        out.print(plain(f"  {name:<13}{value}"))


@command(app)
def approve(domain: Domain, id: RequestId, person: As, reason: Reason = "", key: KeyFile = None, as_json: AsJson = False) -> None:
    """Approve a held action, signed with your key; it is done when enough people did."""
    _answer(domain, id, person, key, "approve", reason, (), as_json)


@command(app)
def refuse(domain: Domain, id: RequestId, person: As, reason: Reason = "", key: KeyFile = None, as_json: AsJson = False) -> None:
    """Refuse a held action; one who refuses is enough."""
    _answer(domain, id, person, key, "refuse", reason, (), as_json)


@command(app)
def edit(
    domain: Domain, id: RequestId, person: As, changes: Set = None, reason: Reason = "", key: KeyFile = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Change a held action's parameters: another action, decided anew; somebody else approves it."""
    if not changes:
        raise SetupFailed("expected --set NAME=VALUE, came none")
    _answer(domain, id, person, key, "edit", reason, changes, as_json)


@command(app)
def override(
    domain: Domain,
    subject: Annotated[str, typer.Argument(help="whom or what it is about")],
    action: Annotated[str, typer.Argument(help="an action of the domain")],
    person: As,
    reason: Annotated[str, typer.Option(help="why; stands in the audit")],
    parameters: Set = None,
    break_glass: Annotated[bool, typer.Option("--break-glass", help="also against a forbid or a pause")] = False,
    key: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Command directly, as a person: signed, decided and recorded like any decision."""
    from ops import approvals

    given = approvals.typed(domain, action, parameters or ())
    entries = approvals.override(
        bootstrap(), domain, subject, action, approvals.Signer.of(Home.default(), domain, person, key),
        parameters=given, reason=reason, break_glass=break_glass, now_ms=now_ms(),
    )  # fmt: skip
    _tell(entries, as_json)


def _answer(
    domain: str, id: str, person: str, key: Path | None, kind: str, reason: str, changes: list[str] | tuple[()], as_json: bool
) -> None:
    from ops import approvals

    servers = bootstrap()
    request = approvals.find(servers, domain, id)
    parameters = approvals.typed(domain, request.event["data"]["action"], changes)
    signer = approvals.Signer.of(Home.default(), domain, person, key)
    _tell(
        approvals.answer(servers, domain, request, signer, kind, parameters=parameters, reason=reason, now_ms=now_ms()),
        as_json,
    )


def _tell(entries: list[dict[str, Any]], as_json: bool) -> None:
    """What an answer led to; exit code 1 where that was nothing."""
    from ops import approvals

    if as_json:
        print_json(entries)
    else:
        for data in (entry["data"] for entry in entries):
            said = f"{data['verdict']} {data['reason']}" if "verdict" in data else data["what"]
            out.print(plain(f"{said}: {data['explanation']}"))
    if not approvals.has_counted(entries):
        raise typer.Exit(1)
