"""The command line: `./flyball help`. Each command is a thin front of a module in ops/."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from contracts.errors import FlyballError, SetupFailed
from ops.plain import plain

app = typer.Typer(
    name="flyball",
    help="Runs autonomous agents on live event streams; none acts until a versioned policy allows it.",
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip
policy_app = typer.Typer(help="Policies as versioned events.", no_args_is_help=True)
model_app = typer.Typer(help="Models as versioned events.", no_args_is_help=True)
prompt_app = typer.Typer(help="Prompts of language models as versioned events.", no_args_is_help=True)
letters_app = typer.Typer(help="Bad input with its cause and position.", no_args_is_help=True)
approvals_app = typer.Typer(help="What waits for people.", no_args_is_help=True)
audit_app = typer.Typer(help="Proof of what was decided, and its story.", no_args_is_help=True)
access_app = typer.Typer(help="Who may speak to a secure broker, and certificates.", no_args_is_help=True)
contracts_app = typer.Typer(help="The generated contracts.", invoke_without_command=True)
app.add_typer(policy_app, name="policy")
app.add_typer(approvals_app, name="approvals")
app.add_typer(model_app, name="model")
app.add_typer(prompt_app, name="prompt")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(contracts_app, name="contracts")
app.add_typer(audit_app, name="audit")
producers_app = typer.Typer(help="Keys that producers sign facts with.", no_args_is_help=True)
app.add_typer(producers_app, name="producers")
app.add_typer(access_app, name="access")

out = Console(width=None if sys.stdout.isatty() else 180)
err = Console(stderr=True)

Domain = Annotated[str, typer.Argument(help="machines, payments, ...: see conf/")]
Since = Annotated[str | None, typer.Option("--from", help="event time (RFC 3339), included")]
Until = Annotated[str | None, typer.Option("--to", help="event time (RFC 3339), not included")]
Graph = Annotated[Path | None, typer.Option(help="CSV of reference facts, played before the input (incidents: who calls whom)")]
SignWith = Annotated[
    Path | None, typer.Option("--sign-with", help="sign each fact with this private key (PEM) of conf/DOMAIN/producers.yaml")
]
Secure = Annotated[bool, typer.Option("--secure", help="TLS, logins and access rights on the broker")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


def _home() -> Any:
    from ops.home import Home

    return Home.default()


def _bootstrap() -> str:
    """The running instance's broker, or FLYBALL_BOOTSTRAP_SERVERS for one elsewhere."""
    import os

    if given := os.environ.get("FLYBALL_BOOTSTRAP_SERVERS"):
        return given
    from ops import instance

    home = _home()
    if not instance.is_running(home):
        raise SetupFailed(
            f"nothing runs in {home.path}: start it with './flyball up DOMAIN' (or set"
            " FLYBALL_BOOTSTRAP_SERVERS to a broker elsewhere)"
        )
    instance.take_secrets(home)
    return str(home.read_state()["bootstrap_servers"])


def _now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def _told() -> Iterator[None]:
    """Errors Flyball raises on purpose become one clear line and exit code 1."""
    try:
        yield
    except FlyballError as error:
        err.print("[red]error:[/red]", end=" ")
        err.print(plain(error), highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], None]:
    """Register a command whose Flyball errors are told, not traced."""

    def register(function: Callable[..., None]) -> None:
        @wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> None:
            with _told():
                function(*arguments, **options)

        group.command(name)(wrapped)

    return register


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _rate(text: str | None) -> float | None:
    if text is None or text == "max":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise SetupFailed(f"--rate: expected facts a second, or 'max'; came {text!r}")
    return rate


# ------------------------------------------------------------------------------ the whole loop


@command(app)
def run(
    domain: Domain,
    input: Annotated[Path | None, typer.Option(help="CSV, bare JSONL or CloudEvents JSONL")] = None,
    graph: Graph = None,
    subject: Annotated[str | None, typer.Option(help="the entity a file is about; default: its name")] = None,
    rate: Annotated[str | None, typer.Option(help="facts a second, or 'max'")] = None,
    report: Annotated[Path | None, typer.Option(help="write the report here, decisions.jsonl and commands.jsonl beside it")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave everything running at the end")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoints and topics")] = False,
    seed: Annotated[int, typer.Option(help="of generated inputs and simulated actuators")] = 1,
    count: Annotated[int | None, typer.Option(help="facts of a generated input")] = None,
    sign_with: SignWith = None,
    secure: Secure = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Start everything, play an input through the whole loop, show what happened, take it down."""
    from jobs.settings import load_settings
    from ops import run as runner

    settings = load_settings(domain)
    if input is not None and not input.is_file():
        raise SetupFailed(f"--input: expected a file, came {str(input)!r}")
    if graph is not None and (input is None or not graph.is_file()):
        raise SetupFailed(f"--graph: expected a file, and --input with it; came {str(graph)!r}")
    asked = runner.Asked(
        domain=domain, input=input, graph=graph, subject=subject,
        rate=settings.default_rate if rate is None else _rate(rate), report=report, is_kept=keep,
        is_resumed=resume, seed=seed, count=count, sign_with=sign_with, is_secure=secure,
    )  # fmt: skip
    result = runner.run(asked, _home(), Console(stderr=True) if as_json else out)
    if as_json:
        _print_json(result)
    if result["not_sent"]:
        raise typer.Exit(1)


@command(app)
def up(domain: Domain, resume: Annotated[bool, typer.Option("--resume")] = False, secure: Secure = False) -> None:
    """Start broker and cluster (if needed), and this domain's topics, policies, jobs and actuator."""
    from ops import instance
    from ops import run as runner

    home = _home()
    fresh = not resume and not instance.is_running(home)
    _, seconds = runner.bring_up(home, domain, is_fresh=fresh, console=err, is_secure=secure)
    out.print(f"{domain} is up after {seconds['setup']:.1f} s; './flyball status' shows it")


@command(app)
def down() -> None:
    """Stop everything that runs here; topics and checkpoints stay for --resume."""
    from ops import instance

    with err.status("stopping"):
        was_running = instance.stop(_home())
    out.print("stopped" if was_running else "nothing was running")


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
    from ops.home import CHECKOUT
    from ops.upgrade import upgrade as run_upgrade

    done = run_upgrade(
        _home(), domain, job, err if as_json else out, checkout=source.resolve() if source else CHECKOUT, is_anew=anew,
        within_s=within,
    )  # fmt: skip
    if as_json:
        _print_json(done.told())
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
        _print_json({"jobs": found, "differences": differing})
    elif not write:
        sys.stdout.write(state_list.as_text(found))
    for difference in differing:
        err.print(difference, markup=False, highlight=False, soft_wrap=True)
    if differing:
        err.print("A savepoint made before is found and read by what the file says: see 'Upgrading' in docs/operations.md;"
                  " './flyball state --write' writes what is now")  # fmt: skip
        raise typer.Exit(1)


@command(app)
def status(as_json: AsJson = False) -> None:
    """Processes, jobs, lag, last checkpoint."""
    from ops.status import gather, show

    found = gather(_home())
    if as_json:
        _print_json(found)
    else:
        show(found, out)
    if found["state"] != "ready":
        raise typer.Exit(1)


@command(app)
def emit(
    domain: Domain,
    file: Annotated[str, typer.Argument(help="CSV, bare JSONL or CloudEvents JSONL; - reads standard input")],
    graph: Graph = None,
    subject: Annotated[str | None, typer.Option(help="the entity a file is about; default: its name")] = None,
    rate: Annotated[str | None, typer.Option(help="facts a second, or 'max'")] = None,
    tick: Annotated[bool, typer.Option("--tick", help="end with a tick on every partition, closing windows")] = False,
    sign_with: SignWith = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Publish facts into a running domain."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from contracts.access import principal
    from contracts.domain import load_domain
    from jobs.settings import load_settings
    from ops import kafka, producers
    from ops.player import Emitter, read_file, with_references
    from ops.run import close_windows
    from ops.world import load_world

    settings, world = load_settings(domain), load_world(domain)
    path = None if file == "-" else Path(file)
    sign = None if sign_with is None else producers.signer(settings, sign_with)
    if sign is None and settings.signed_facts == "required":
        err.print(f"{domain} requires signed facts: what is not signed becomes a dead letter (--sign-with)", style="yellow")
    bootstrap = _bootstrap()
    writer = kafka.producer(bootstrap, principal=principal(domain, "producer"))
    emitter = Emitter(load_domain(domain), writer, file_name=path.name if path else "stdin", sign=sign)
    items = read_file(path, world, subject=subject, max_ahead_ms=settings.max_ahead_s * 1000)
    items = with_references(items, graph, world, subject=subject)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task("publishing")
        done = emitter.emit(
            items, rate=_rate(rate),
            on_progress=lambda d: bar.update(task, description=f"published {d.facts} facts"),
        )  # fmt: skip
    if tick and done.last_event_ms:
        close_windows(emitter, bootstrap, settings)
    writer.close()
    result = {"facts": done.facts, "refused": done.refused, "not_sent": done.oversized}
    if as_json:
        _print_json(result)
    else:
        out.print(f"published {done.facts} facts, {done.refused} lines to dead letters")
    for problem in done.oversized:
        err.print(f"[red]not sent:[/red] {problem}")
    if done.oversized:
        raise typer.Exit(1)


@command(app)
def read(
    domain: Domain,
    topic: Annotated[str, typer.Argument(help="facts, situations, proposals, decisions, commands, ...")],
    from_beginning: Annotated[bool, typer.Option("--from-beginning")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="wait for more")] = False,
    max: Annotated[int | None, typer.Option(help="stop after so many records")] = None,
) -> None:  # fmt: skip
    """Print a topic as JSONL: partition, offset, key, value (committed records only).

    Without --from-beginning and --follow: what is in the topic now.
    """
    from ops.reading import records

    for line in records(
        _bootstrap(), domain, topic, from_beginning=from_beginning or not follow, follow=follow, limit=max
    ):
        sys.stdout.write(line + "\n")
        if follow:
            sys.stdout.flush()


@command(app)
def replay(
    domain: Domain,
    policies: Annotated[Path | None, typer.Option(help="a folder of candidate policies")] = None,
    since: Since = None,
    until: Until = None,
    flink: Annotated[bool, typer.Option("--flink", help="as a bounded job on the running cluster")] = False,
    as_json: AsJson = False,
) -> None:
    """Make every recorded decision again and show what differs; nothing may, under the same policies.

    In this process one partition of the decisions is in memory at a time; with --flink one subject.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from ops import policies as policy_files
    from ops import replay as replayer

    candidates = None
    if policies is not None:
        files = sorted(policies.glob("*.yaml"))
        if not files:
            raise SetupFailed(f"--policies: expected a folder with *.yaml, found none in {policies}")
        candidates = policy_files.check_files(domain, files)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task("reading the log")
        if flink:
            bar.update(task, description="a job makes the decisions again")
            done = replayer.run_on_flink(_home(), domain, candidates=candidates, since=since, until=until)
        else:
            done = replayer.run(
                _bootstrap(), domain, candidates=candidates, since=since, until=until,
                on_progress=lambda count: bar.update(task, description=f"{count} decisions made again"),
            )  # fmt: skip
    found = done.told()
    if as_json:
        _print_json(found)
    else:
        out.print(
            f"{found['decisions']} decisions made again ({found['decisions_per_s']} a second), {found['different']} differ"
        )
        if found["changes"]:
            table = Table(box=None)
            for column in ("action", "recorded", "now", "by", "how many", "outcomes lost", "for example"):
                table.add_column(column)
            for change in found["changes"]:
                lost = ", ".join(f"{status} {n}" for status, n in change["outcomes"].items())
                table.add_row(*map(plain, (
                    change["action"], change["before"], change["after"], change["policies"],
                    change["count"], lost, change["examples"][0],
                )))  # fmt: skip
            out.print(table)
        if found["broken_chains"]:
            err.print(f"[red]{found['broken_chains']} subjects have a broken chain:[/red] './flyball audit verify {domain}'")
    if found["broken_chains"] or (found["different"] and candidates is None):
        raise typer.Exit(1)


@command(audit_app, "verify")
def audit_verify(
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
        _bootstrap(), domain,
        public_key=public_key or audit.key_of_home(_home(), domain),
        period=audit.read_period(since, until),
        anchor=None if anchor is None else audit.read_anchor(anchor),
    )  # fmt: skip
    told = found.told()
    if as_json:
        _print_json(told)
    else:
        out.print(
            f"{told['entries']} entries of {told['subjects']} subjects, {told['superseded']} superseded;"
            f" {told['heads']} heads, {told['unsealed']} entries not sealed yet; {told['bad']} bad"
        )
        if last := told["last_head"]:
            out.print(f"last head, to be noted elsewhere: {last['number']}:{last['sha256']}", soft_wrap=True)
        for bad in found.bad[:20]:
            err.print(plain(bad.told()), style="red", highlight=False, soft_wrap=True)
    if found.bad:
        raise typer.Exit(1)


@command(audit_app, "export")
def audit_export(
    domain: Domain,
    subject: Annotated[str, typer.Option(help="whose story")],
    as_json: AsJson = False,
) -> None:
    """One subject's story: each decision with who, what, when and why; --json gives every event."""
    from ops import audit

    events = audit.story(_bootstrap(), domain, subject)
    if not events:
        raise SetupFailed(f"no event about {subject!r} in the topics of {domain}")
    if as_json:
        _print_json(events)
    else:
        for line in audit.readable(events):
            out.print(plain(line), highlight=False)


@command(app)
def trace(
    id: Annotated[str, typer.Argument(help="an event id, a correlation id, or its first 12 characters")], as_json: AsJson = False
) -> None:
    """The causal tree around an event: what caused it, what came of it."""
    from contracts.access import principal
    from contracts.domain import known_domains
    from ops import kafka
    from ops import trace as tracer
    from udfs import broker_access

    bootstrap = _bootstrap()
    secrets = broker_access.folder()
    for domain in known_domains():
        if secrets is not None and not broker_access.password_file(secrets, principal(domain, "reader")).exists():
            continue  # never up here
        if f"{domain}.facts" not in kafka.existing_topics(bootstrap, domain):
            continue
        chain = tracer.find_chain(bootstrap, domain, id)
        if chain:
            roots = tracer.tree_data(chain)
            if as_json:
                _print_json(roots)
            else:
                out.print(tracer.as_tree(roots))
            return
    raise SetupFailed(f"no event and no chain {id!r} in any topic of this instance")


# ---------------------------------------------------------------------------------- governance


@command(policy_app, "check")
def policy_check(domain: Domain, files: Annotated[list[Path] | None, typer.Argument()] = None) -> None:
    """Check policy files (default: all of conf/DOMAIN/policies); needs no broker."""
    from ops import policies

    chosen = files or policies.policy_files(domain)
    checked = policies.check_files(domain, chosen)
    for policy in checked:
        out.print(f"ok {policy.policy_id}@{policy.version} ({len(policy.examples)} examples)")


@command(policy_app, "publish")
def policy_publish(domain: Domain, files: Annotated[list[Path] | None, typer.Argument()] = None) -> None:
    """Check and publish policy files; all or nothing. Takes effect without restart."""
    from ops import policies

    checked = policies.check_files(domain, files or policies.policy_files(domain))
    for name in policies.publish(_bootstrap(), domain, checked, now_ms=_now_ms()):
        out.print(f"published {name}")


@command(policy_app, "list")
def policy_list(domain: Domain, as_json: AsJson = False) -> None:
    """Every published policy version with its status, and the switches."""
    from ops import policies

    found = policies.published(_bootstrap(), domain)
    switches = policies.switches(_bootstrap(), domain)
    if as_json:
        _print_json(
            {
                "policies": [
                    {"policy": name, "status": p.policy.status, "verdict": p.policy.verdict,
                     "published_at": p.published_at, "offset": p.offset}
                    for name, p in found.items()
                ],
                "switches": [s.model_dump() for s in switches],
            }
        )  # fmt: skip
        return
    table = Table(box=None)
    for column in ("policy", "status", "verdict", "when", "published"):
        table.add_column(column)
    for name, entry in found.items():
        p = entry.policy
        table.add_row(*map(plain, (name, p.status, p.verdict, p.when, entry.published_at)))
    out.print(table)
    for switch in switches:
        if switch.paused:
            out.print(plain(f"paused agent {switch.agent or 'any'}, action {switch.action or 'any'}, subject {switch.subject or 'any'}"), style="yellow")


@command(policy_app, "show")
def policy_show(domain: Domain, name: Annotated[str, typer.Argument(metavar="ID[@VERSION]")]) -> None:
    """One policy as JSON: the newest version, or the one named."""
    from ops import policies

    found = policies.published(_bootstrap(), domain)
    if "@" in name:
        chosen = found.get(name)
    else:
        versions = [p for p in found.values() if p.policy.policy_id == name]
        chosen = max(versions, key=lambda p: p.policy.version, default=None)
    if chosen is None:
        raise SetupFailed(f"expected one of {sorted(found)}, came {name!r}")
    _print_json(chosen.policy.model_dump(mode="json"))


Reason = Annotated[str, typer.Option(help="why, for those who read it later")]


@command(policy_app, "move")
def policy_move(
    domain: Domain,
    name: Annotated[str, typer.Argument(metavar="ID@VERSION")],
    status: Annotated[str, typer.Argument(help="draft, shadow, canary, active or retired")],
    percent: Annotated[float | None, typer.Option(help="a canary's share of subjects, by hash")] = None,
    reason: Reason = "",
) -> None:
    """Publish a version again with another status."""
    import getpass

    from ops import policies

    moved = policies.move(
        _bootstrap(), domain, name, status, now_ms=_now_ms(), author=getpass.getuser(), reason=reason,
        percent=percent,
    )  # fmt: skip
    share = f" for {moved.canary_percent:g} % of subjects" if moved.status == "canary" else ""
    out.print(f"{name} is {moved.status}{share}")


@command(policy_app, "rollback")
def policy_rollback(
    domain: Domain,
    name: Annotated[str, typer.Argument(metavar="ID@VERSION")],
    reason: Reason = "",
) -> None:
    """Back to an earlier version at once: it is active, every newer one retired."""
    import getpass

    from ops import policies

    for line in policies.rollback(
        _bootstrap(), domain, name, now_ms=_now_ms(), author=getpass.getuser(), reason=reason
    ):
        out.print(line)


@command(policy_app, "diff")
def policy_diff(
    domain: Domain, since: Since = None, until: Until = None, as_json: AsJson = False
) -> None:
    """What shadow and canary policies would have changed, by action and reason."""
    from ops import coverage

    found = coverage.diff(_bootstrap(), domain, since=since, until=until)
    if as_json:
        _print_json(found)
        return
    out.print(f"{found['decisions']} decisions with a shadow or canary policy in scope, {found['different']} differ")
    table = Table(box=None)
    for column in ("action", "decided", "would have been", "by", "how many", "for example"):
        table.add_column(column)
    for change in found["changes"]:
        table.add_row(*map(plain, (
            change["action"], change["before"], change["after"], change["policies"], change["count"], change["examples"][0],
        )))  # fmt: skip
    out.print(table)


@command(policy_app, "coverage")
def policy_coverage(
    domain: Domain, since: Since = None, until: Until = None, as_json: AsJson = False
) -> None:
    """Which policies, and which branches of their conditions, matched recorded proposals, and which never."""
    from ops import coverage

    found = coverage.coverage(_bootstrap(), domain, since=since, until=until)
    if as_json:
        _print_json(found)
        return
    table = Table(box=None, title=f"{found['decisions']} decisions", title_justify="left")
    for column in ("policy", "status", "in scope", "true", "false", "error"):
        table.add_column(column)
    for row in found["policies"]:
        cells = (row["policy"], row["status"], row["in_scope"], row["true"], row["false"], row["error"])
        table.add_row(*map(plain, cells), style=None if row["true"] else "red")
        for branch in row["branches"]:
            cells = (f"  || {branch['when']}", "", "", branch["true"], "", "")
            table.add_row(*map(plain, cells), style=None if branch["true"] else "red")
    out.print(table)


@command(policy_app, "test")
def policy_test(domain: Domain, file: Annotated[Path | None, typer.Argument(help="default: conf/DOMAIN/policies_test.yaml")] = None) -> None:
    """Run a given/expect table through the whole truth table; needs no broker."""
    from ops import policy_tests

    results = policy_tests.run(domain, file)
    for result in results:
        out.print(f"{'[green]ok[/green]' if result.problem is None else '[red]failed[/red]'} {result.case}")
        if result.problem is not None:
            out.print(plain(f"   {result.problem}"))
    failed = sum(result.problem is not None for result in results)
    if failed:
        raise SetupFailed(f"{failed} of {len(results)} cases failed")
    out.print(f"{len(results)} cases passed")


@command(policy_app, "eval")
def policy_eval(
    when: Annotated[str, typer.Option("--when", help="a CEL condition")],
    vars: Annotated[str, typer.Option("--vars", help="its variables as a JSON object")] = "{}",
) -> None:
    """Evaluate one condition exactly as govern would: {"value": ...} or {"error": ...}."""
    from contracts.envelope import parse_json
    from udfs.policy.cel import eval_condition

    try:
        variables = parse_json(vars.encode())
    except (FlyballError, UnicodeEncodeError) as error:
        raise SetupFailed(f"--vars: {error}") from None
    if not isinstance(variables, dict):
        raise SetupFailed(f"--vars: expected a JSON object, came {type(variables).__name__}")
    sys.stdout.write(json.dumps(eval_condition(when, variables)) + "\n")


def _switch(
    domain: str, agent: str | None, action: str | None, subject: str | None, reason: str, is_paused: bool
) -> None:
    import getpass

    from contracts.domain import load_domain
    from contracts.policy import PolicySwitch
    from ops import policies

    known = load_domain(domain).actions
    if action is not None and action not in known:
        raise SetupFailed(f"--action: expected one of {sorted(known)}, came {action!r}")
    if agent is not None:
        from jobs.settings import load_settings
        from udfs.agents.definition import load_agents

        agents = load_agents(load_settings(domain).agents_file, load_domain(domain))
        names = sorted(a.agent for a in agents)
        if agent not in names:
            raise SetupFailed(f"--agent: expected one of {names}, came {agent!r}")
    switch = PolicySwitch(
        paused=is_paused, agent=agent, action=action, subject=subject, reason=reason, author=getpass.getuser()
    )
    policies.throw_switch(_bootstrap(), domain, switch, now_ms=_now_ms())
    what = f"agent {agent or 'any'}, action {action or 'any'}, subject {subject or 'any'}"
    out.print(f"{'paused' if is_paused else 'resumed'} {domain}: {what}")


Agent = Annotated[str | None, typer.Option(help="only this agent")]
Action = Annotated[str | None, typer.Option(help="only this action")]
Subject = Annotated[str | None, typer.Option(help="only this subject")]
Why = Annotated[str, typer.Option(help="kept with the switch")]


@command(app)
def pause(domain: Domain, agent: Agent = None, action: Action = None, subject: Subject = None, reason: Why = "") -> None:
    """Make govern deny (reason: paused) from the next proposal on."""
    _switch(domain, agent, action, subject, reason, True)


@command(app)
def resume(domain: Domain, agent: Agent = None, action: Action = None, subject: Subject = None, reason: Why = "") -> None:
    """Take a pause back; name the same agent, action and subject."""
    _switch(domain, agent, action, subject, reason, False)


# -------------------------------------------------------------------------------------- people

RequestId = Annotated[str, typer.Argument(metavar="ID", help="of the request, or how it begins: see 'approvals list'")]
As = Annotated[str, typer.Option("--as", help="who you are: a person of conf/DOMAIN/people.yaml")]
KeyFile = Annotated[Path | None, typer.Option("--key", help="your private key (PEM); default: the one in .flyball/keys")]
Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a parameter of the action; may be repeated")]


@command(approvals_app, "list")
def approvals_list(
    domain: Domain,
    all: Annotated[bool, typer.Option("--all", help="also those that have ended")] = False,
    as_json: AsJson = False,
) -> None:
    """Actions that are held until people answer: who is asked, and until when."""
    from ops import approvals

    told = [request.told() for request in approvals.requests(_bootstrap(), domain).values()]
    shown = [row for row in told if all or row["state"] == "waiting"]
    if as_json:
        _print_json(shown)
        return
    table = Table(box=None)
    for column in ("id", "subject", "action", "parameters", "by agent", "asks", "until", "approved by", "state"):
        table.add_column(column)
    for row in shown:
        asks = "; ".join(f"{r['approvers']} of {', '.join(r['roles'])}" for r in row["requires"])
        table.add_row(*map(plain, (
            row["id"][:12], row["subject"], row["action"], _pairs(row["parameters"]), row["agent"], asks,
            min(r["deadline"] for r in row["requires"]), ", ".join(a["person"] for a in row["answers"]), row["state"],
        )))  # fmt: skip
    out.print(table)
    err.print(f"{len(shown)} shown; './flyball approvals show {domain} ID' tells why, 'approve|refuse|edit' answers")


@command(approvals_app, "show")
def approvals_show(domain: Domain, id: RequestId, as_json: AsJson = False) -> None:
    """One request: what would be done and why, what the agent saw, what was answered."""
    from ops import approvals

    request = approvals.find(_bootstrap(), domain, id)
    told, data = request.told(), request.event["data"]
    if as_json:
        _print_json({**told, "notes": request.notes, "decision": request.event, "ended_by": request.ended})
        return
    out.print(f"{told['id']}  {told['state']}", highlight=False)
    for name, value in (
        ("subject", told["subject"]),
        ("would do", f"{told['action']} {_pairs(told['parameters'])}"),
        ("proposed by", f"{data['agent']}@{data['agent_version']} (confidence {data['confidence']:.4f}): {data['proposal_reason']}"),
        ("held because", told["explanation"]),
        ("on", f"{data['situation_type']} at {data['features_at']}: {_pairs(data['features'])}"),
        ("digest", told["action_digest"]),
    ):
        out.print(plain(f"  {name:<13}{value}"), highlight=False)
    for need in told["requires"]:
        nots = f", not by {', '.join(need['not_by'])}" if need["not_by"] else ""
        out.print(
            f"  {'asks':<13}{need['approvers']} of {', '.join(need['roles'])}{nots}, until {need['deadline']}"
            f" ({need['policy_id']}@{need['version']})", markup=False, highlight=False,
        )  # fmt: skip
    for note in request.notes:
        out.print(plain(f"  {note['what']:<13}{note['explanation']}"), highlight=False)
    if request.ended is not None:
        end = request.ended["data"]
        out.print(plain(f"  {'ended':<13}{end['verdict']} {end['reason']}: {end['explanation']}"), highlight=False)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _tell(entries: list[dict[str, Any]], as_json: bool) -> None:
    """What an answer led to; an answer that does not count, and a command denied, is a failure."""
    if as_json:
        _print_json(entries)
    for entry in entries:
        data = entry["data"]
        if not as_json:
            said = f"{data['verdict']} {data['reason']}" if "verdict" in data else data["what"]
            out.print(plain(f"{said}: {data['explanation']}"), highlight=False)
    last = entries[-1]["data"]
    if last.get("what") == "refused" or last.get("reason") == "override_not_permitted":
        raise typer.Exit(1)


def _answer(
    domain: str, id: str, person: str, key: Path | None, kind: str, reason: str, changes: list[str] | None, as_json: bool
) -> None:
    from ops import approvals

    bootstrap = _bootstrap()
    request = approvals.find(bootstrap, domain, id)
    parameters = approvals.typed(domain, request.event["data"]["action"], changes or ())
    signer = approvals.Signer.of(_home(), domain, person, key)
    entries = approvals.answer(
        bootstrap, domain, request, signer, kind, parameters=parameters, reason=reason, now_ms=_now_ms()
    )
    _tell(entries, as_json)


@command(app)
def approve(domain: Domain, id: RequestId, person: As, reason: Reason = "", key: KeyFile = None, as_json: AsJson = False) -> None:
    """Approve a held action, signed with your key; it is done when enough people did."""
    _answer(domain, id, person, key, "approve", reason, None, as_json)


@command(app)
def refuse(domain: Domain, id: RequestId, person: As, reason: Reason = "", key: KeyFile = None, as_json: AsJson = False) -> None:
    """Refuse a held action; one who refuses is enough."""
    _answer(domain, id, person, key, "refuse", reason, None, as_json)


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
    from contracts.domain import load_domain
    from ops import approvals

    known = load_domain(domain).actions
    if action not in known:
        raise SetupFailed(f"expected an action of {sorted(known)}, came {action!r}")
    entries = approvals.override(
        _bootstrap(), domain, subject, action, approvals.Signer.of(_home(), domain, person, key),
        parameters=approvals.typed(domain, action, parameters or ()), reason=reason, break_glass=break_glass,
        now_ms=_now_ms(),
    )  # fmt: skip
    _tell(entries, as_json)


# ----------------------------------------------------------------------------------- producers


@command(producers_app, "keygen")
def producers_keygen(
    domain: Domain,
    key_id: Annotated[str, typer.Argument(help="a name for the key, like 'meters-2026'; never used again")],
    output: Annotated[Path | None, typer.Option(help="where the private key goes; default: KEY_ID.pem here")] = None,
) -> None:
    """Make a producer's key: the private one in a file, the public one as an entry for producers.yaml."""
    from jobs.settings import load_settings
    from ops import producers

    settings = load_settings(domain)
    made = producers.keygen(settings, key_id, output or Path(f"{key_id}.pem"))
    err.print(f"the private key is in {made.file}; add below 'keys:' in {settings.producers_file}:", soft_wrap=True)
    sys.stdout.write(made.entry)


@command(producers_app, "list")
def producers_list(domain: Domain, as_json: AsJson = False) -> None:
    """Every key of conf/DOMAIN/producers.yaml, and what it may sign."""
    from contracts.domain import load_domain
    from jobs.settings import load_settings
    from udfs.signed_facts import load_producers

    keys = load_producers(load_settings(domain).producers_file, load_domain(domain))
    if as_json:
        _print_json([key.model_dump(mode="json") for key in keys])
        return
    table = Table(box=None)
    for column in ("key", "producer", "types", "subjects", "not before", "not after"):
        table.add_column(column)
    for key in keys:
        cells = (key.key_id, key.producer, ", ".join(key.types), ", ".join(key.subjects), key.not_before or "", key.not_after or "")
        table.add_row(*map(plain, cells))
    out.print(table)


# -------------------------------------------------------------------------------------- models


@model_app.callback()
def _models() -> None:
    """Models as versioned events."""


@command(model_app, "train")
def model_train(domain: Domain) -> None:
    """Train on shipped data and write the ONNX artefact and its card to conf/DOMAIN/models."""
    from ops.models import model_folder
    from ops.world import load_world

    with err.status(f"training {domain}"):
        told = load_world(domain).train(model_folder(domain))
    _print_json(dict(told))


@command(model_app, "publish")
def model_publish(
    domain: Domain, cards: Annotated[list[Path] | None, typer.Argument(help="model cards (.json)")] = None
) -> None:
    """Publish alias events for models of conf/DOMAIN/models; propose answers with them at once."""
    from ops import models

    chosen = [models.read_model(card) for card in cards] if cards else models.shipped_models(domain)
    models.publish(_bootstrap(), domain, chosen, now_ms=_now_ms())
    for model in chosen:
        out.print(f"published {model.alias}/{model.version} sha256 {model.sha256}")


@command(model_app, "list")
def model_list(domain: Domain, as_json: AsJson = False) -> None:
    """Every alias event, oldest first; the last of an alias answers."""
    from ops import models

    rows: list[dict[str, Any]] = []
    for offset, event in models.published(_bootstrap(), domain):
        data: Any = event["data"]
        rows.append(
            {"alias": data["alias"], "version": data["version"], "status": data["status"],
             "sha256": data["sha256"], "published_at": event.get("time"), "offset": offset,
             "trained_on": data["trained_on"]}
        )  # fmt: skip
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None)
    for column in ("alias", "version", "status", "sha256", "published_at"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(plain(row[c]) for c in ("alias", "version", "status", "sha256", "published_at")))
    out.print(table)


# -------------------------------------------------------------------------------------- prompts


@command(prompt_app, "check")
def prompt_check(domain: Domain, files: Annotated[list[Path] | None, typer.Argument()] = None) -> None:
    """Check prompt files (default: all of conf/DOMAIN/prompts); needs no broker."""
    from ops import prompts

    for prompt in prompts.check_files(files) if files else prompts.shipped_prompts(domain):
        out.print(f"ok {prompts.name_of(prompt)} for {prompt.model} ({len(prompt.text)} characters, sha256 {prompt.sha256[:12]})")


@command(prompt_app, "publish")
def prompt_publish(domain: Domain, files: Annotated[list[Path] | None, typer.Argument()] = None) -> None:
    """Check and publish prompt files; all or nothing. The newest version asks, without restart."""
    from ops import prompts

    chosen = prompts.check_files(files) if files else prompts.shipped_prompts(domain)
    for name in prompts.publish(_bootstrap(), domain, chosen, now_ms=_now_ms()):
        out.print(f"published {name}")


@command(prompt_app, "list")
def prompt_list(domain: Domain, as_json: AsJson = False) -> None:
    """Every published prompt version with its status."""
    from ops import prompts

    rows = [
        {"prompt": name, "status": p.prompt.status, "model": p.prompt.model, "schema": p.prompt.reply_schema,
         "sha256": p.prompt.sha256, "published_at": p.published_at, "offset": p.offset}
        for name, p in prompts.published(_bootstrap(), domain).items()
    ]  # fmt: skip
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None)
    for column in ("prompt", "status", "model", "sha256", "published_at"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(plain(row[c]) for c in ("prompt", "status", "model", "sha256", "published_at")))
    out.print(table)


@command(prompt_app, "show")
def prompt_show(
    domain: Domain, name: Annotated[str, typer.Argument(metavar="ID[@VERSION]")], as_json: AsJson = False
) -> None:
    """One published prompt: the newest version, or the one named."""
    from ops import prompts

    found = prompts.published(_bootstrap(), domain)
    if "@" in name:
        chosen = found.get(name)
    else:
        versions = [p for p in found.values() if p.prompt.prompt_id == name]
        chosen = max(versions, key=lambda p: p.prompt.version, default=None)
    if chosen is None:
        raise SetupFailed(f"expected one of {sorted(found)}, came {name!r}")
    prompt = chosen.prompt
    if as_json:
        _print_json(prompt.model_dump(mode="json"))
        return
    out.print(f"{prompts.name_of(prompt)} {prompt.status}, for {prompt.model}, sha256 {prompt.sha256}")
    out.print(plain(prompt.text), highlight=False)


@command(prompt_app, "test")
def prompt_test(
    domain: Domain,
    file: Annotated[Path | None, typer.Argument(help="default: conf/DOMAIN/prompts_test.yaml")] = None,
    live: Annotated[bool, typer.Option("--live", help="ask the server at OPENAI_BASE_URL instead of the recorded replies")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a given/expect table of prompts against recorded replies, or a live model; needs no broker."""
    import os

    from contracts.domain import load_domain
    from ops import prompt_tests

    if live and not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        raise SetupFailed("--live: set OPENAI_BASE_URL (and OPENAI_API_KEY), for instance to what './flyball model-server' prints")
    results = prompt_tests.run(domain, file, ask=prompt_tests.live(load_domain(domain)) if live else None)
    failed = sum(result.problem is not None for result in results)
    left_out = sum(result.left_out for result in results)
    if as_json:
        _print_json([{"case": r.case, "problem": r.problem, "left_out": r.left_out} for r in results])
        if failed:
            raise typer.Exit(1)
        return
    for result in results:
        state = "[dim]left out[/dim]" if result.left_out else "[green]ok[/green]" if result.problem is None else "[red]failed[/red]"
        out.print(f"{state} {result.case}")
        if result.problem is not None:
            out.print(plain(f"   {result.problem}"), highlight=False)
    if failed:
        raise SetupFailed(f"{failed} of {len(results)} cases failed")
    out.print(f"{len(results) - left_out} cases passed" + (f", {left_out} left out" if left_out else ""))


@command(app, "model-server")
def model_server(
    port: Annotated[int, typer.Option(help="0 chooses a free one")] = 8089,
    latency_ms: Annotated[float, typer.Option(help="from a request to its answer")] = 1000,
    jitter_ms: Annotated[float, typer.Option(help="added or taken off, evenly")] = 0,
    error_rate: Annotated[float, typer.Option(help="share answered 500, 502 or 503")] = 0,
    malformed_rate: Annotated[float, typer.Option(help="share of replies that do not fit")] = 0,
    rate_limit_rate: Annotated[float, typer.Option(help="share answered 429, with Retry-After")] = 0,
    retry_after_s: Annotated[float, typer.Option(help="what a 429 says")] = 1,
    hang_rate: Annotated[float, typer.Option(help="share never answered")] = 0,
    seed: Annotated[int, typer.Option(help="of the dice for all of these")] = 1,
    rules: Annotated[list[Path] | None, typer.Option(help="scripted replies, e.g. conf/DOMAIN/model_rules.yaml; may be repeated")] = None,
    log: Annotated[Path | None, typer.Option(help="append each request and its reply here, as JSONL")] = None,
    as_json: AsJson = False,
) -> None:
    """An OpenAI-compatible server with scripted replies, for tests and the demo. Ends with Ctrl-C."""
    from pydantic import ValidationError

    from ops.model_rules import load_rules
    from ops.model_server import Behaviour, ModelServer, serve

    try:
        behaviour = Behaviour(
            latency_ms=latency_ms, jitter_ms=jitter_ms, error_rate=error_rate, malformed_rate=malformed_rate,
            rate_limit_rate=rate_limit_rate, retry_after_s=retry_after_s, hang_rate=hang_rate, seed=seed,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SetupFailed(f"--{'-'.join(map(str, first['loc'])).replace('_', '-') or 'rates'}: {first['msg']}") from None

    def ready(server: ModelServer) -> None:
        if as_json:
            sys.stdout.write(json.dumps({"base_url": server.base_url}) + "\n")
            sys.stdout.flush()
        else:
            out.print(f"listening; elsewhere: export OPENAI_BASE_URL={server.base_url} OPENAI_API_KEY=none", soft_wrap=True)

    stats = serve(behaviour, load_rules(rules or []), port=port, log=log, ready=ready)
    if as_json:
        _print_json(stats)
    else:
        out.print(f"{stats['requests']} requests, {stats['cancelled']} cancelled, by status {stats['by_status']}")


# --------------------------------------------------------------------------------------- access

Role = Annotated[str, typer.Argument(help="producer or actuator: of these there may be several")]
Named = Annotated[str, typer.Argument(help="which one: a-z, 0-9, hyphens")]


def _secrets() -> Path:
    from udfs import broker_access

    return broker_access.folder() or Path(_home().secrets)


def _establish(domain: str) -> bool:
    """Tell the broker, if a secure one is at hand; otherwise the next start does."""
    import os

    from ops import access, instance

    home = _home()
    servers = os.environ.get("FLYBALL_INTERNAL_SERVERS", "")
    if not servers and instance.is_running(home) and home.is_secure:
        servers = instance.internal_servers(home)
    if servers:
        access.establish(servers, _secrets(), domain)
    return bool(servers)


def _known_domain(domain: str) -> None:
    from jobs.settings import load_settings

    load_settings(domain)


@command(access_app, "list")
def access_list(domain: Domain, as_json: AsJson = False) -> None:
    """Who may do what with the topics of a domain; needs no broker."""
    from ops import access

    _known_domain(domain)
    rows = [
        {"principal": who, "rights": [f"{g.operation} {g.resource.lower()} {g.name}{'*' if g.is_prefix else ''}" for g in access.rights(who)]}
        for who in access.principals(_secrets(), domain)
    ]  # fmt: skip
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None)
    for column in ("principal", "rights"):
        table.add_column(column)
    for row in rows:
        table.add_row(str(row["principal"]), "\n".join(row["rights"]))
    out.print(table)


@command(access_app, "add")
def access_add(domain: Domain, role: Role, name: Named) -> None:
    """A producer or actuator more, with a password of its own; the file is what it needs besides ca.pem."""
    from ops import access

    _known_domain(domain)
    path = access.add(_secrets(), domain, role, name)
    is_told = _establish(domain)
    out.print(f"{path.stem}: password in {path}" + ("" if is_told else "; the next secure start lets it in"), soft_wrap=True)


@command(access_app, "remove")
def access_remove(domain: Domain, role: Role, name: Named) -> None:
    """Let a named producer or actuator in no more."""
    from ops import access

    _known_domain(domain)
    who = access.remove(_secrets(), domain, role, name)
    is_told = _establish(domain)
    out.print(f"{who} is removed" + ("; connections it has last until they close" if is_told else "; the next secure start knows"))


@command(access_app, "rotate")
def access_rotate(
    domain: Domain, roles: Annotated[list[str] | None, typer.Argument(help="govern, producer-gateway, ...; default: all")] = None
) -> None:
    """New passwords; what speaks with the old ones is then to be started again."""
    from ops import access

    _known_domain(domain)
    for who in access.rotate(_secrets(), domain, roles):
        out.print(f"{who} has a new password")
    if _establish(domain):
        out.print(f"what runs with the old ones logs in no more once it has to: './flyball down', './flyball up {domain} --resume'")


@command(access_app, "renew")
def access_renew(
    host: Annotated[list[str] | None, typer.Option(help="a name or address clients know the broker by, besides this machine's")] = None
) -> None:
    """A new certificate of the broker, from the same authority; it takes effect at the next start."""
    from ops import certificates

    ends = certificates.renew(_secrets(), (*certificates.HOSTS, *(host or ())), now=certificates.now())
    out.print(f"the broker's certificate is good until {ends:%Y-%m-%d}; './flyball down' and up again to use it")


# ------------------------------------------------------------------------------------ bad input


@command(letters_app, "list")
def letters_list(domain: Domain, as_json: AsJson = False) -> None:
    """Every dead letter: cause, message, topic, partition, offset; whether it was redriven, and how that ended."""
    from ops import dead_letters

    found = dead_letters.read(_bootstrap(), domain)
    is_past = _passed(domain, found)
    rows = [dead_letters.told(history, is_past) for history in found]
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None)
    for column in ("id", "cause", "place", "bytes", "state", "message"):
        table.add_column(column)
    for row in rows:
        told = row["state"].replace("_", " ")
        if row["after"] is not None:
            told += f" as {row['after'][:12]}"
        table.add_row(*(plain(str(row[c])[:100]) for c in ("id", "cause", "place", "bytes")), told, plain(row["message"][:100]))
    out.print(table)


def _passed(domain: str, found: list[Any]) -> Any:
    """How letters ended is asked of the jobs' offsets, where any was redriven."""
    from ops import dead_letters, flink_jobs

    if not any(history.redriven for history in found):
        return lambda _: False
    return dead_letters.passed(_bootstrap(), domain, flink_jobs.jobs_of(domain))


@command(letters_app, "show")
def letters_show(
    domain: Domain, id: Annotated[str, typer.Argument(help="a dead letter's id or TOPIC/PARTITION/OFFSET")]
) -> None:
    """One dead letter with its original bytes (as text where they are text, and in base64) and its history."""
    from ops import dead_letters

    found = dead_letters.read(_bootstrap(), domain)
    for history in found:
        if id in (history.letter.id, history.letter.place):
            is_past = _passed(domain, found)
            row = dead_letters.told(history, is_past, with_value=True)
            line = [dead_letters.told(each, is_past) for each in dead_letters.chain(found, history)]
            row["history"] = [{k: each[k] for k in ("id", "at", "cause", "place", "state", "redriven")} for each in line]
            _print_json(row)
            return
    raise SetupFailed(f"no dead letter {id!r} in {domain}.dead-letters")


@command(letters_app, "redrive")
def letters_redrive(
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

    from rich.progress import Progress, SpinnerColumn, TextColumn

    from ops import dead_letters

    named = [name for given in ids or [] for name in given.split(",") if name]
    if file is not None and (named or cause or since or edit):
        raise SetupFailed("a file of corrected records names its letters itself: leave --id, --cause, --since and --edit out")
    if file is None and not (named or cause or since or dry_run):
        raise SetupFailed("expected --id, --cause or --since, or corrected records; --dry-run alone shows all")
    corrected: dict[str, bytes] | None = None
    found = dead_letters.read(_bootstrap(), domain)
    if file is not None:
        try:
            lines = (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).splitlines()
        except OSError as error:
            raise SetupFailed(f"cannot read {file!r}: {error.strerror}") from None
        given = dead_letters.corrected_lines(lines)
        chosen = dead_letters.choose(found, ids=given) if given else []
        corrected = {h.letter.id: given.get(h.letter.id) or given[h.letter.place] for h in chosen}
    else:
        chosen = dead_letters.choose(found, ids=named, cause=cause, since=since)
    folder = Path(tempfile.mkdtemp(prefix="flyball-redrive-")) if edit else None
    if folder is not None:
        corrected = {}
        for letter in (history.letter for history in chosen if history.redriven is None):
            err.print(f"{letter.place}: {letter.data.cause}: {letter.data.message}", markup=False, highlight=False)
            corrected[letter.id] = dead_letters.edit(letter, folder / f"{letter.id}.json")
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task("putting back")
        results = dead_letters.redrive(
            _bootstrap(), domain, chosen, corrected=corrected, is_dry=dry_run, now_ms=_now_ms(),
            on_progress=lambda n: bar.update(task, description=f"put back: {n} of {len(chosen)}"),
        )  # fmt: skip
    refused = sum(result.what == "refused" for result in results)
    if folder is not None and not refused:
        shutil.rmtree(folder)
    if as_json:
        _print_json([result.told() for result in results])
    else:
        for result in results:
            out.print(f"{result.letter_id} {result.what.replace('_', ' ')}", result.place or "", result.why, markup=False, highlight=False, soft_wrap=True)
        out.print(f"{sum(r.what == 'redriven' for r in results)} of {len(results)} redriven")
    if refused:
        kept = f"; what the editor left is in {folder}" if folder is not None else ""
        raise SetupFailed(f"{refused} of {len(results)} refused{kept}")


# ------------------------------------------------------------------------------------ contracts


@contracts_app.callback()
def contracts(
    context: typer.Context,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="AsyncAPI 3 of all topics")] = False,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="JSON Schemas of all events")] = False,
    ddl: Annotated[bool, typer.Option("--ddl", help="Flink SQL DDL of all topics")] = False,
) -> None:
    """Print the generated contracts: --asyncapi, --json-schema or --ddl."""
    if context.invoked_subcommand is not None:
        return
    with _told():
        from contracts import asyncapi as asyncapi_text
        from contracts import ddl as ddl_text
        from contracts import json_schema as schema_text
        from contracts.domain import known_domains

        if asyncapi + json_schema + ddl != 1:
            raise SetupFailed("expected one of --asyncapi, --json-schema, --ddl, or check, publish, check-event")
        if asyncapi:
            _print_json(asyncapi_text.document(known_domains()))
        elif json_schema:
            _print_json(schema_text.document(known_domains()))
        else:
            import os

            from contracts.access import principal
            from udfs import broker_access

            servers = os.environ.get("FLYBALL_BOOTSTRAP_SERVERS", "localhost:9092")
            sys.stdout.write(
                "\n".join(ddl_text.script(d, servers, broker_access.flink(principal(d, "reader"))) for d in known_domains())
            )


@command(contracts_app, "check")
def check_contracts(
    compatibility: Annotated[str, typer.Option(help="backward: old events stay readable; forward: old readers read new events; full: both")] = "backward",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare every event type with its versions published before; names each break and what to do. Exit code 1 for any."""
    from contracts import published
    from contracts.domain import known_domains

    if compatibility not in ("backward", "forward", "full"):
        raise SetupFailed(f"--compatibility: expected backward, forward or full, came {compatibility!r}")
    domains = known_domains()
    found = published.check(domains, compatibility)  # type: ignore[arg-type]
    new = [f"{event.name} {event.data.schema_version}" for event in published.unpublished(domains)]
    if as_json:
        _print_json({"ok": not found, "findings": [one.told() for one in found], "unpublished": new})
    else:
        for one in found:
            err.print(str(one), style="red", markup=False, highlight=False, soft_wrap=True)
        if new:
            out.print(f"not published yet ('./flyball contracts publish'): {', '.join(new)}", soft_wrap=True)
        checked = sum(1 for _ in published.types_of(domains))
        out.print(f"{checked} event types, {len(found)} to correct ({compatibility})")
    if found:
        raise typer.Exit(1)


@command(contracts_app, "publish")
def publish_contracts(
    replace: Annotated[
        list[str] | None, typer.Option(help="publish this event type's version again, changed; only while nobody has events of it")
    ] = None,
) -> None:
    """Write the next version of each event type whose `schema_version` is not published yet, if it may follow the last."""
    from contracts import published
    from contracts.domain import known_domains

    domains, again = known_domains(), set(replace or ())
    if unknown := again - {event.name for event in published.types_of(domains)}:
        raise SetupFailed(f"--replace: expected event types, came {', '.join(sorted(unknown))}")
    wrong = [one for one in published.check(domains) if one.event_type not in again]
    if wrong:
        raise SetupFailed("\n".join(["not published:", *map(str, wrong)]))
    fresh = {event.name for event in published.unpublished(domains)}
    written = [published.publish(event) for event in published.types_of(domains) if event.name in fresh | again]
    for path in written:
        out.print(f"wrote {path}", soft_wrap=True)
    out.print(f"{len(written)} versions published")


@command(contracts_app, "check-event")
def check_event(
    file: Annotated[str, typer.Argument(help="a file with one event, or - for standard input")],
) -> None:
    """Judge one event by the CloudEvents specification alone."""
    from contracts.envelope import check_event as judge

    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SetupFailed(f"cannot read {file!r}: {error.strerror}") from None
    sys.stdout.write(json.dumps(judge(text)) + "\n")


# ---------------------------------------------------------------------------- tools around them


@command(app)
def sql(
    file: Annotated[Path | None, typer.Option("-f", "--file", help="run these statements and end")] = None,
    domain: Annotated[str | None, typer.Option(help="the current database; default: what is up")] = None,
) -> None:
    """The real Flink SQL client with every topic as a table and the views of sql/DOMAIN/views.sql."""
    from ops import sql_client
    from ops.status import running_domains

    _bootstrap()
    chosen = domain or next(iter(running_domains(_home())), None)
    if chosen is None:
        raise SetupFailed("no domain is up; name one with --domain")
    raise typer.Exit(sql_client.run(_home(), chosen, file))


@command(app)
def sbom(
    output: Annotated[Path | None, typer.Option(help="write it here instead of standard output")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="look the parts up in a database of known vulnerabilities")] = False,
    database: Annotated[str, typer.Option(help="where OSV's API is spoken")] = "https://api.osv.dev",
) -> None:
    """What an installation consists of, as CycloneDX JSON; with --audit, exit code 1 when a part is known to be vulnerable."""
    from datetime import UTC, datetime

    from ops import sbom as bills

    bom = bills.bill(_home(), now=datetime.now(UTC))
    known = []
    if audit:
        with err.status("asking the vulnerability database"):
            known = bills.audit(bom, database=database)
    text = bills.as_json(bom)
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)
        err.print(f"{len(bom.components)} parts written to {output}")
    for one in known:
        err.print(f"[red]{one.id}[/red] {one.purl}", highlight=False, soft_wrap=True)
    if audit:
        err.print(f"{len(known)} known vulnerabilities in {len(bom.components)} parts")
    if known:
        raise typer.Exit(1)


@command(app)
def new(domain: Annotated[str, typer.Argument(help="a name like 'deliveries'")]) -> None:
    """Lay out a running skeleton of a new domain: contract, SQL, settings, policies, world."""
    from ops.skeleton import lay_out

    for path in lay_out(domain):
        out.print(f"wrote {path}")
    out.print(f"now: ./flyball run {domain}")


@command(app)
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="measure only this; may be repeated: context, govern, govern_50, at_least_once, exactly_once,"
            " latency_50_policies, approval_to_command, policy_publish, subjects_1m, reason_100, reason_300,"
            " reason_throughput, reason_idle, reason_killed, alert_to_remedy, soak, overload, hot_key, growth, scaled_out,"
            " first_decision"
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="runs of each measurement; medians are printed")] = 3,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="how long soak (30), overload (1) and each half of hot_key (1) take")
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON with every run")] = Path("benchmarks/latest.json"),
) -> None:
    """Measure speed and memory on this machine."""
    from benchmarks.bench import measure

    measure(only=only or [], runs=runs, output=output, console=out, minutes=minutes)


@command(app)
def torture(
    short: Annotated[bool, typer.Option("--short", help="the four faults that matter most")] = False,
    fault: Annotated[list[str] | None, typer.Option(help="only this one; may be repeated: see --list")] = None,
    list_: Annotated[bool, typer.Option("--list", help="tell what faults there are, and play none")] = False,
    as_json: AsJson = False,
) -> None:
    """Break processes, disks, clocks and inputs under load; hold what comes out against what must."""
    from ops.home import Home
    from ops.torture import run as torturer

    faults = torturer.chosen(fault or [], is_short=short)
    if list_:
        for each in faults:
            out.print(f"{each.name}  [dim]{each.says}[/dim]")
        return
    results = torturer.torture(Home(_home().path / "torture"), faults, err)
    if as_json:
        _print_json([result.told() for result in results])
    else:
        out.print(torturer.table(results))
    if not all(result.is_green for result in results):
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Ruff, mypy and every test; further arguments go to pytest (then only pytest runs)."""
    from ops.home import CHECKOUT

    steps = [[sys.executable, "-m", "pytest", *context.args]]
    if not context.args:
        steps = [
            [sys.executable, "-m", "ruff", "check", "."],
            [sys.executable, "-m", "mypy"],
            *steps,
        ]
    for step in steps:
        err.print(f"[dim]$ {' '.join(step[2:])}[/dim]")
        code = subprocess.run(step, cwd=CHECKOUT, check=False).returncode
        if code:
            raise typer.Exit(code)


@app.command("help")
def show_help(context: typer.Context) -> None:
    """This list."""
    assert context.parent is not None
    out.print(context.parent.get_help())


if __name__ == "__main__":
    app()
