"""Policies as files and as events: check, publish, list, move, pause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import orjson
from pydantic import ValidationError

from contracts.approval import Person
from contracts.data import Data
from contracts.domain import DomainContract, load_domain
from contracts.envelope import derive_id, format_time_ms
from contracts.errors import PolicyProblem, PolicyRefused, SetupFailed
from contracts.policy import DEFAULT_APPROVAL, Policy, PolicySwitch, Status
from jobs.settings import ROOT, load_settings
from ops import people, versions
from udfs.agents.definition import load_agents
from udfs.policy.policy_file import load


@dataclass(frozen=True)
class PublishedPolicy:
    """A policy version as its newest event left it."""

    policy: Policy
    offset: int
    published_at: str


def policy_files(domain: str) -> list[Path]:
    return sorted((ROOT / "conf" / domain / "policies").glob("*.yaml"))


def check_files(domain: str, files: Sequence[Path]) -> list[Policy]:
    """Every policy of `files`, or PolicyRefused with all problems of all of them."""
    contract = load_domain(domain)
    variables = contract.policy_variables()
    people_file = people.people_file(domain)
    known_people = people.read_people(people_file).people
    policies: list[Policy] = []
    problems: list[PolicyProblem] = []
    for file in files:
        try:
            policy = load(file, variables)
        except PolicyRefused as refused:
            problems += refused.problems
            continue
        for kind, given, known in (
            ("action", policy.scope.actions, contract.actions),
            ("situation", policy.scope.situations, contract.situations),
        ):
            problems += [
                PolicyProblem(f"an {kind} of {sorted(known)} in scope", repr(name), file=str(file))
                for name in given
                if name not in known
            ]
        problems += _unknown_names(policy, contract, variables, str(file))
        if known_people:  # where there are none, all that waits for people expires to deny
            problems += _missing_people(policy, {p.person: p.roles for p in known_people}, people_file, str(file))
        same = [p for p in policies if (p.policy_id, p.version) == (policy.policy_id, policy.version)]
        if same:
            problems.append(
                PolicyProblem(
                    "each version of a policy once", f"{policy.policy_id}@{policy.version} twice",
                    file=str(file),
                )
            )  # fmt: skip
        policies.append(policy)
    if problems:
        raise PolicyRefused.of(problems)
    return policies


def _missing_people(
    policy: Policy, roles_of: Mapping[str, Sequence[str]], people_file: Path, file: str
) -> Iterator[PolicyProblem]:
    """Whom a hold of this policy would ask in vain; without `approval` it holds what it cannot evaluate, on default terms."""
    terms = policy.approval or DEFAULT_APPROVAL
    for asked, least in ((terms, terms.approvers), *((later, 1) for later in terms.escalate)):
        able = [person for person, roles in roles_of.items() if not set(asked.roles).isdisjoint(roles)]
        if len(able) < least:
            yield PolicyProblem(
                f"at least {least} with a role of {', '.join(asked.roles)} in {people_file}, who are asked when it holds",
                ", ".join(able) or "nobody", file=file,
            )  # fmt: skip


def _unknown_names(
    policy: Policy, contract: DomainContract, variables: Mapping[str, str], file: str
) -> Iterator[PolicyProblem]:
    """What limits and fallback name that the domain does not have."""
    for limit in policy.limits:
        for name in (*limit.per, *((limit.amount,) if limit.amount else ())):
            if name not in variables:
                yield PolicyProblem("a variable of the domain in a limit", repr(name), file=file)
        if limit.amount and variables.get(limit.amount) not in ("int", "double"):
            yield PolicyProblem("a number as amount of a limit", repr(limit.amount), file=file)
    if policy.current_by is not None and variables.get(policy.current_by) not in ("int", "double"):
        yield PolicyProblem("a number of the domain as current_by", repr(policy.current_by), file=file)
    terms = policy.arbitration
    for name in terms.conflicts_with if terms is not None else ():
        if name not in contract.actions:
            yield PolicyProblem(f"an action of {sorted(contract.actions)} in conflicts_with", repr(name), file=file)
    named = [*(policy.approval.not_by if policy.approval else ()), *([terms.resource] if terms and terms.resource else ())]
    for name in named:
        if name not in variables:
            yield PolicyProblem("a variable of the domain in not_by and resource", repr(name), file=file)
    if policy.fallback is not None:
        action = contract.actions.get(policy.fallback.action)
        if action is None:
            known = sorted(contract.actions)
            yield PolicyProblem(f"an action of {known} as fallback", repr(policy.fallback.action), file=file)
            return
        try:
            action.model_validate(policy.fallback.parameters)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            yield PolicyProblem(f"parameters of {action.action} as fallback", f"{place}: {first['msg']}", file=file)


def published(bootstrap_servers: str, domain: str) -> dict[str, PublishedPolicy]:
    """"id@version" -> that version as its newest event left it, in the order of first publishing."""
    found: dict[str, PublishedPolicy] = {}
    for offset, event in versions.events(bootstrap_servers, domain, "policies"):
        if event.get("type") != Policy.event_type:
            continue
        try:
            policy = Policy.model_validate_json(orjson.dumps(event["data"]))
        except (ValidationError, KeyError, TypeError):
            continue
        name = f"{policy.policy_id}@{policy.version}"
        found[name] = PublishedPolicy(policy, offset, str(event.get("time")))
    return found


def switches(bootstrap_servers: str, domain: str) -> list[PolicySwitch]:
    """The newest switch of each scope."""
    found: dict[tuple[str | None, ...], PolicySwitch] = {}
    for _, event in versions.events(bootstrap_servers, domain, "policies"):
        if event.get("type") == PolicySwitch.event_type:
            try:
                switch = PolicySwitch.model_validate(event["data"])
            except (ValidationError, KeyError, TypeError):
                continue
            found[(switch.agent, switch.action, switch.subject)] = switch
    return list(found.values())


def publish(
    bootstrap_servers: str, domain: str, policies: Iterable[Policy], *, now_ms: int
) -> list[str]:
    """Write one event per policy and give "id@version" of each.

    A version never changes: raises PolicyRefused, publishing nothing, when a version is already
    published with other content than today's (status apart), or when one is none that `govern` would take.
    """
    policies = [_valid(f"{policy.policy_id}@{policy.version}", policy.model_dump()) for policy in policies]
    known = published(bootstrap_servers, domain)
    problems = []
    for policy in policies:
        name = f"{policy.policy_id}@{policy.version}"
        before = known.get(name)
        if before is not None and _content(before.policy) != _content(policy):
            problems.append(
                PolicyProblem(f"a new version for changed content (published: {name})", "other content")
            )
    if problems:
        raise PolicyRefused.of(problems)
    _write(bootstrap_servers, domain, ((f"{p.policy_id}/{p.version}", p) for p in policies), now_ms)
    return [f"{p.policy_id}@{p.version}" for p in policies]


def _content(policy: Policy) -> dict[str, object]:
    """What a version never changes: all but how far it has come."""
    return policy.model_dump(exclude={"status", "canary_percent", "author", "moved_because"})


def move(
    bootstrap_servers: str, domain: str, name: str, status: str, *, now_ms: int, author: str = "",
    reason: str = "", percent: float | None = None,
) -> Policy:  # fmt: skip
    """Publish `name` ("id@version") again with another status; `percent` is a canary's share."""
    known = published(bootstrap_servers, domain)
    changes: dict[str, object] = {"author": author, "moved_because": reason}
    if percent is not None:
        changes["canary_percent"] = percent
    policy = _moved(known, name, status, changes)
    publish(bootstrap_servers, domain, [policy], now_ms=now_ms)
    return policy


def rollback(
    bootstrap_servers: str, domain: str, name: str, *, now_ms: int, author: str = "", reason: str = ""
) -> list[str]:
    """Make `name` the version in force: active, and every newer version of the policy retired.

    Gives what was published, "id@version status" each.
    """
    known = published(bootstrap_servers, domain)
    changes: dict[str, object] = {"author": author, "moved_because": reason or f"rollback to {name}"}
    chosen = _moved(known, name, "active", changes)
    newer = [
        _moved(known, other, "retired", changes)
        for other, entry in known.items()
        if entry.policy.policy_id == chosen.policy_id
        and entry.policy.version > chosen.version
        and entry.policy.status != "retired"
    ]
    publish(bootstrap_servers, domain, [chosen, *newer], now_ms=now_ms)
    return [f"{p.policy_id}@{p.version} {p.status}" for p in (chosen, *newer)]


def _moved(
    known: Mapping[str, PublishedPolicy], name: str, status: str, changes: Mapping[str, object]
) -> Policy:
    if name not in known:
        raise PolicyRefused.of([PolicyProblem(f"a published policy of {sorted(known)}", repr(name))])
    if status not in get_args(Status):
        raise PolicyRefused.of([PolicyProblem(f"a status of {get_args(Status)}", repr(status))])
    return _valid(name, {**known[name].policy.model_dump(), **changes, "status": status})


def _valid(name: str, fields: Mapping[str, object]) -> Policy:
    """The policy `name` of these fields; PolicyRefused where it would be none."""
    try:
        return Policy.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = " of ".join([*map(str, first["loc"][:1]), name])
        raise PolicyRefused.of([PolicyProblem(f"{place} as policies have it", str(first["msg"]))]) from None


def switch(
    domain: str, *, is_paused: bool, agent: str | None, action: str | None, subject: str | None, reason: str, author: str
) -> PolicySwitch:
    """A pause, or its end, of what the domain has. Raises SetupFailed for an agent or action it has not."""
    contract = load_domain(domain)
    if action is not None and action not in contract.actions:
        raise SetupFailed(f"--action: expected one of {sorted(contract.actions)}, came {action!r}")
    if agent is not None:
        names = sorted(each.agent for each in load_agents(load_settings(domain).agents_file, contract))
        if agent not in names:
            raise SetupFailed(f"--agent: expected one of {names}, came {agent!r}")
    return PolicySwitch(paused=is_paused, agent=agent, action=action, subject=subject, reason=reason, author=author)


def throw_switch(
    bootstrap_servers: str, domain: str, switch: PolicySwitch, *, now_ms: int
) -> None:
    """Publish a pause or its end; `govern` obeys from the next proposal it takes."""
    key = f"switch/{switch.agent or '*'}/{switch.action or '*'}/{switch.subject or '*'}"
    _write(bootstrap_servers, domain, [(key, switch)], now_ms)


def publish_people(
    bootstrap_servers: str, domain: str, people: Sequence[Person], *, now_ms: int
) -> None:
    """One event a person; `govern` knows them from then on."""
    _write(bootstrap_servers, domain, ((f"person/{each.person}", each) for each in people), now_ms)


def _write(bootstrap_servers: str, domain: str, contents: Iterable[tuple[str, Data]], now_ms: int) -> None:
    """One event a content, under its key; each time another id."""
    versions.write(
        bootstrap_servers, domain, "policies", "policy",
        (
            (key, derive_id(f"{key}/{format_time_ms(now_ms)}", "policy", domain, ordinal), content)
            for ordinal, (key, content) in enumerate(contents)
        ),
        now_ms=now_ms,
    )  # fmt: skip
