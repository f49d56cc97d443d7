"""policy: from a file that is checked and tested to a version in force, and what it did."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import FlyballError, PolicyRefused, SetupFailed
from ops.cli.options import AsJson, Domain, Files, Reason, Since, Until
from ops.cli.terminal import bootstrap, command, now_ms, out, print_cases, print_json, print_table, user
from ops.plain import plain

app = typer.Typer()
group = typer.Typer(help="Policies as versioned events.", no_args_is_help=True)
app.add_typer(group, name="policy")

Version = Annotated[str, typer.Argument(metavar="ID@VERSION")]


@command(group)
def check(domain: Domain, files: Files = None, as_json: AsJson = False) -> None:
    """Check policy files (default: all of conf/DOMAIN/policies); needs no broker."""
    from ops import policies

    try:
        checked = policies.check_files(domain, files or policies.policy_files(domain))
    except PolicyRefused as refused:
        if not as_json:
            raise
        print_json({"ok": False, "problems": [asdict(problem) for problem in refused.problems]})
        raise typer.Exit(1) from None
    told = [{"policy": f"{policy.policy_id}@{policy.version}", "examples": len(policy.examples)} for policy in checked]
    if as_json:
        print_json({"ok": True, "policies": told})
        return
    for each in told:
        out.print(f"ok {each['policy']} ({each['examples']} examples)")


@command(group)
def publish(domain: Domain, files: Files = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """Check and publish policy files; all or nothing. Takes effect without restart."""
    from ops import policies

    told = {"author": user(), "moved_because": reason}
    checked = [policy.model_copy(update=told) for policy in policies.check_files(domain, files or policies.policy_files(domain))]
    names = policies.publish(bootstrap(), domain, checked, now_ms=now_ms())
    if as_json:
        print_json({"published": names})
        return
    for name in names:
        out.print(f"published {name}")


@command(group, "list")
def list_versions(domain: Domain, as_json: AsJson = False) -> None:
    """Every published policy version with its status, and the switches."""
    from ops import policies

    servers = bootstrap()
    found, switches = policies.published(servers, domain), policies.switches(servers, domain)
    if as_json:
        rows = [
            {"policy": name, "status": p.policy.status, "verdict": p.policy.verdict,
             "published_at": p.published_at, "offset": p.offset}
            for name, p in found.items()
        ]  # fmt: skip
        print_json({"policies": rows, "switches": [switch.model_dump() for switch in switches]})
        return
    print_table(
        ("policy", "status", "verdict", "when", "published"),
        ((name, p.policy.status, p.policy.verdict, p.policy.when, p.published_at) for name, p in found.items()),
    )
    for switch in switches:
        if switch.paused:
            out.print(plain(f"paused agent {switch.agent or 'any'}, action {switch.action or 'any'}, subject {switch.subject or 'any'}"), style="yellow")


@command(group)
def show(domain: Domain, name: Annotated[str, typer.Argument(metavar="ID[@VERSION]")]) -> None:
    """One policy as JSON: the newest version, or the one named."""
    from ops import policies
    from ops.versions import chosen

    print_json(chosen(policies.published(bootstrap(), domain), name).policy.model_dump(mode="json"))


@command(group)
def move(
    domain: Domain,
    name: Version,
    status: Annotated[str, typer.Argument(help="draft, shadow, canary, active or retired")],
    percent: Annotated[float | None, typer.Option(help="a canary's share of subjects, by hash")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Publish a version again with another status."""
    from ops import policies

    moved = policies.move(
        bootstrap(), domain, name, status, now_ms=now_ms(), author=user(), reason=reason, percent=percent
    )
    if as_json:
        print_json({"policy": name, "status": moved.status, "canary_percent": moved.canary_percent})
        return
    share = f" for {moved.canary_percent:g} % of subjects" if moved.status == "canary" else ""
    out.print(f"{name} is {moved.status}{share}")


@command(group)
def rollback(domain: Domain, name: Version, reason: Reason = "", as_json: AsJson = False) -> None:
    """Back to an earlier version at once: it is active, every newer one retired."""
    from ops import policies

    lines = policies.rollback(bootstrap(), domain, name, now_ms=now_ms(), author=user(), reason=reason)
    if as_json:
        print_json({"moved": [dict(zip(("policy", "status"), line.split(), strict=True)) for line in lines]})
        return
    for line in lines:
        out.print(line)


@command(group)
def diff(domain: Domain, since: Since = None, until: Until = None, as_json: AsJson = False) -> None:
    """What shadow and canary policies would have changed, by action and reason."""
    from ops import coverage

    found = coverage.diff(bootstrap(), domain, since=since, until=until)
    if as_json:
        print_json(found)
        return
    out.print(f"{found['decisions']} decisions with a shadow or canary policy in scope, {found['different']} differ")
    print_table(
        ("action", "active alone", "with them", "decided", "by", "how many", "for example"),
        (
            (each["action"], each["before"], each["after"], "with them" if each["is_decided"] else "active alone",
             each["policies"], each["count"], each["examples"][0])
            for each in found["changes"]
        ),
    )


@command(group)
def coverage(domain: Domain, since: Since = None, until: Until = None, as_json: AsJson = False) -> None:
    """Which policies, and which branches of their conditions, matched recorded proposals, and which never."""
    from ops.coverage import coverage as covered

    found = covered(bootstrap(), domain, since=since, until=until)
    if as_json:
        print_json(found)
        return
    rows: list[tuple[object, ...]] = []
    for each in found["policies"]:
        rows.append((each["policy"], each["status"], each["in_scope"], each["true"], each["false"], each["error"]))
        rows += [(f"  || {branch['when']}", "", "", branch["true"], "", "") for branch in each["branches"]]
    print_table(
        ("policy", "status", "in scope", "true", "false", "error"), rows, title=f"{found['decisions']} decisions",
        style=lambda row: None if row[3] else "red",
    )  # fmt: skip


@command(group, "test")
def play_cases(
    domain: Domain,
    file: Annotated[Path | None, typer.Argument(help="default: conf/DOMAIN/policies_test.yaml")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a given/expect table through the whole truth table; needs no broker."""
    from ops import policy_tests

    results = policy_tests.run(domain, file)
    if not as_json:
        print_cases([(result.case, result.problem, False) for result in results])
        return
    print_json([{"case": result.case, "problem": result.problem} for result in results])
    if any(result.problem is not None for result in results):
        raise typer.Exit(1)


@command(group, "eval")
def evaluate(
    when: Annotated[str, typer.Option("--when", help="a CEL condition")],
    vars: Annotated[str, typer.Option("--vars", help="its variables as a JSON object")] = "{}",
    domain: Annotated[str | None, typer.Option(help="whose features and parameters have their declared types, and no others are known")] = None,
) -> None:
    """Evaluate one condition exactly as govern would: {"value": ...} or {"error": ...}.

    What all policies may read (confidence, hops, ...) has its declared type; any other variable that of its JSON value, unless
    --domain says whose it is.
    """
    from contracts.domain import load_domain
    from contracts.envelope import parse_json
    from udfs.policy.cel import EVERY_DOMAIN, eval_condition

    declared = EVERY_DOMAIN if domain is None else load_domain(domain).policy_variables()

    try:
        variables = parse_json(vars.encode())
    except (FlyballError, UnicodeEncodeError) as error:
        raise SetupFailed(f"--vars: {error}") from None
    if not isinstance(variables, dict):
        raise SetupFailed(f"--vars: expected a JSON object, came {type(variables).__name__}")
    if domain is not None and (unknown := sorted(set(variables) - set(declared))):
        raise SetupFailed(f"--vars: {domain} has no variable {', '.join(map(repr, unknown))}")
    sys.stdout.write(json.dumps(eval_condition(when, variables, declared)) + "\n")
