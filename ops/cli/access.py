"""access: who may speak to a secure broker."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli.options import AsJson, Domain
from ops.cli.terminal import command, out, print_json, print_table
from ops.home import Home

app = typer.Typer()
group = typer.Typer(help="Who may speak to a secure broker, and certificates.", no_args_is_help=True)
app.add_typer(group, name="access")

Role = Annotated[str, typer.Argument(help="producer or actuator: of these there may be several")]
Named = Annotated[str, typer.Argument(help="which one: a-z, 0-9, hyphens")]


def _known_domain(domain: str) -> None:
    from jobs.settings import load_settings

    load_settings(domain)


@command(group, "list")
def list_rights(domain: Domain, as_json: AsJson = False) -> None:
    """Who may do what with the topics of a domain; needs no broker."""
    from ops import access

    _known_domain(domain)
    rights = {
        who: [f"{g.operation} {g.resource.lower()} {g.name}{'*' if g.is_prefix else ''}" for g in access.rights(who)]
        for who in access.principals(access.secrets_of(Home.default()), domain)
    }
    if as_json:
        print_json([{"principal": who, "rights": told} for who, told in rights.items()])
    else:
        print_table(("principal", "rights"), ((who, "\n".join(told)) for who, told in rights.items()))


@command(group)
def add(domain: Domain, role: Role, name: Named, as_json: AsJson = False) -> None:
    """A producer or actuator more, with a password of its own; the file is what it needs besides ca.pem."""
    from ops import access

    _known_domain(domain)
    home = Home.default()
    path = access.add(access.secrets_of(home), domain, role, name)
    is_told = access.tell(home, domain)
    if as_json:
        print_json({"principal": path.stem, "file": path, "in_force": is_told})
        return
    out.print(f"{path.stem}: password in {path}" + ("" if is_told else "; the next secure start lets it in"), soft_wrap=True)


@command(group)
def remove(domain: Domain, role: Role, name: Named, as_json: AsJson = False) -> None:
    """Let a named producer or actuator in no more."""
    from ops import access

    _known_domain(domain)
    home = Home.default()
    who = access.remove(access.secrets_of(home), domain, role, name)
    is_told = access.tell(home, domain)
    if as_json:
        print_json({"principal": who, "in_force": is_told})
        return
    out.print(f"{who} is removed" + ("; connections it has last until they close" if is_told else "; the next secure start knows"))


@command(group)
def rotate(
    domain: Domain,
    roles: Annotated[list[str] | None, typer.Argument(help="govern, producer-gateway, ...; default: all")] = None,
    as_json: AsJson = False,
) -> None:
    """New passwords; what speaks with the old ones is then to be started again."""
    from ops import access

    _known_domain(domain)
    home = Home.default()
    rotated = access.rotate(access.secrets_of(home), domain, roles)
    for who in () if as_json else rotated:
        out.print(f"{who} has a new password")
    is_told = access.tell(home, domain)
    if as_json:
        print_json({"principals": rotated, "in_force": is_told})
    elif is_told:
        out.print(f"what runs with the old ones logs in no more once it has to: './flyball down', './flyball up {domain} --resume'")


@command(group)
def renew(
    host: Annotated[list[str] | None, typer.Option(help="a name or address clients know the broker by, besides this machine's")] = None,
    as_json: AsJson = False,
) -> None:
    """A new certificate of the broker, from the same authority; it takes effect at the next start."""
    from ops import access, certificates

    ends = certificates.renew(access.secrets_of(Home.default()), (*certificates.HOSTS, *(host or ())), now=certificates.now())
    if as_json:
        print_json({"not_after": ends.isoformat()})
        return
    out.print(f"the broker's certificate is good until {ends:%Y-%m-%d}; './flyball down' and up again to use it")
