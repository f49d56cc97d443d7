"""Who may do what on the broker: rights of every principal, made from the topic table and READ_BY.

Nothing that is not granted here is allowed: the broker refuses by default, and these are all of its rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from contracts.asyncapi import JOBS, READ_BY, written_by
from contracts.dead_letter import PUT_BACK
from contracts.topics import TOPICS

# As whom the processes of a domain speak; each is a principal `<domain>.<role>`.
ROLES: Final = (*JOBS, "replay", "producer", "actuator", "sealer", "people", "redriver", "reader", "auditor", "admin")
# There may be several of these: `<domain>.producer-gateway`.
NAMED: Final = ("producer", "actuator")
# The group a bulk reader must name and never commits to (ops/kafka.py).
BULK_GROUP: Final = "flyball-bulk"
_REPLAYED: Final = ("decisions", "proposals", "outcomes", "approvals", "policies")
_SEVERAL: Final = {"producer": "producers", "actuator": "actuators"}
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, order=True)
class Grant:
    """One rule of the broker: `principal` may do `operation`. READ and WRITE include DESCRIBE."""

    principal: str
    operation: Literal["READ", "WRITE", "DESCRIBE", "CREATE"]
    resource: Literal["TOPIC", "GROUP", "TRANSACTIONAL_ID"]
    name: str
    is_prefix: bool = False


def principal(domain: str, role: str, name: str = "") -> str:
    """The name a role logs in with. Raises ValueError for a role or a name that cannot be."""
    if role not in ROLES or (name and role not in NAMED):
        raise ValueError(f"expected a role of {', '.join(NAMED if name else ROLES)}, came {role!r}")
    if name and not _NAME.fullmatch(name):
        raise ValueError(f"expected a name of a-z, 0-9 and single hyphens, came {name!r}")
    return f"{domain}.{role}-{name}" if name else f"{domain}.{role}"


def role_of(who: str) -> tuple[str, str]:
    """Domain and role of a principal. Raises ValueError when it is none."""
    domain, _, rest = who.partition(".")
    role, _, name = rest.partition("-")
    if not domain or principal(domain, role, name) != who:
        raise ValueError(f"expected <domain>.<role>, came {who!r}")
    return domain, role


def grants(who: str, *, also_reads: tuple[str, ...] = ()) -> tuple[Grant, ...]:
    """Every right of a principal; `also_reads` are topics its settings add to what the topic table says."""
    domain, role = role_of(who)
    found = {Grant(who, "READ", "TOPIC", f"{domain}.{name}") for name in (*_reads(role), *also_reads)}
    found |= {Grant(who, "WRITE", "TOPIC", f"{domain}.{name}") for name in writes(role)}
    match role:
        case "admin":  # makes topics; it can neither read nor write them
            found |= {Grant(who, o, "TOPIC", f"{domain}.", True) for o in ("CREATE", "DESCRIBE")}  # type: ignore[arg-type]
        case "reader" | "people" | "auditor":
            open_to = [row for row in TOPICS if role == "auditor" or not row.is_private]
            found |= {Grant(who, "READ", "TOPIC", row.of(domain)) for row in open_to}
            found |= {
                Grant(who, "READ", "GROUP", BULK_GROUP),
                Grant(who, "DESCRIBE", "GROUP", f"{domain}-", True),  # how far behind a job is
            }
        case "sealer":
            found.add(Grant(who, "READ", "GROUP", BULK_GROUP))
        case "actuator":
            found.add(Grant(who, "READ", "GROUP", f"{domain}-actuator", True))
        case "producer" | "redriver":
            pass
        case _:
            found.add(Grant(who, "READ", "GROUP", f"{domain}-{role}"))
    if role == "reason":
        found.add(Grant(who, "READ", "GROUP", f"{domain}-reason-reads-back"))
    transactional = [row for row in TOPICS if row.is_transactional and row.name in writes(role)]
    if role == "redriver" or transactional:
        found |= {Grant(who, o, "TRANSACTIONAL_ID", f"{domain}-{role}-", True) for o in ("WRITE", "DESCRIBE")}  # type: ignore[arg-type]
    if role in JOBS:  # Flink looks for transactions that a lost run left open
        found |= {Grant(who, "READ", "TOPIC", row.of(domain)) for row in transactional}
    return tuple(sorted(found))


def _reads(role: str) -> Iterator[str]:
    if role == "replay":
        yield from _REPLAYED
    yield from (name for name, readers in READ_BY.items() if _SEVERAL.get(role, role) in readers)


def writes(role: str) -> tuple[str, ...]:
    """The topics a role writes, without the domain."""
    if role == "redriver":
        return (*PUT_BACK, "dead-letters")
    return tuple(row.name for row in TOPICS if _SEVERAL.get(role, role) in written_by(row))
