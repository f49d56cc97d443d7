"""`./flyball run`: the whole loop, from empty topics to a report."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from contracts.access import principal
from contracts.domain import load_domain
from contracts.errors import JobFailed, SetupFailed
from jobs.settings import ROOT, Settings, load_settings
from ops import access, code_versions, flink_jobs, instance, kafka, people, producers, shipped, trace
from ops.checkpoints import latest_checkpoints
from ops.code_versions import Code
from ops.emit import close_windows
from ops.home import Home
from ops.plain import plain
from ops.player import Emitted, Emitter, Item, read_file, with_references
from ops.ports import choose
from ops.submission import Submission, want, wanted
from ops.watch import Seen, Watch, percentiles
from ops.world import NewFact, World, load_world

QUIET_CHECKS = 3
QUIET_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Asked:
    """What the command line asked for."""

    domain: str
    input: Path | None = None
    graph: Path | None = None
    subject: str | None = None
    rate: float | None = None
    report: Path | None = None
    is_kept: bool = False
    is_resumed: bool = False
    is_secure: bool = False
    seed: int = 1
    count: int | None = None
    sign_with: Path | None = None


def bring_up(
    home: Home, domain: str, *, is_fresh: bool, console: Console, while_pid: int | None = None,
    seed: int = 1, options: tuple[str, ...] = (), is_secure: bool = False, joins: bool = True,
) -> tuple[Settings, dict[str, float]]:  # fmt: skip
    """Broker, cluster, topics, policies, models, jobs, actuator and sealer; returns when all of it runs.

    In the instance that runs here (`joins`; otherwise that is refused), or in a new one. A secure instance stays so when
    it goes on (not `is_fresh`), also without `is_secure`. Raises SetupFailed, JobFailed or PolicyRefused with the cause;
    then no job runs that the supervisor does not know of. Gives the settings in force and how long it took (seconds).
    """
    began = time.monotonic()
    settings = load_settings(domain)
    load_domain(domain)
    load_world(domain)
    with home.alone(f"up-{domain}", patience_s=0):  # two would submit every job twice
        content = shipped.load(home, domain)
        people.made_key(people.key_file(home, domain, people.AUDIT_KEY))
        with home.alone("start"):
            has_joined = instance.is_running(home)
            if not has_joined:
                is_secure = is_secure or (home.is_secure and not is_fresh)
                _make_secrets(home, domain, is_secure, console)
                instance.start(home, fresh=is_fresh, while_pid=while_pid, secure=is_secure)
            elif not joins:
                raise SetupFailed("an instance already runs here; './flyball down' stops it ('emit' plays facts into it)")
            elif domain in wanted(home):
                raise SetupFailed(f"{domain} is up already; './flyball status' shows it")
            elif is_secure and not home.is_secure:
                raise SetupFailed("the instance that runs here is not secure: './flyball down' first, then --secure")
            else:
                _make_secrets(home, domain, home.is_secure, console)
        instance.take_secrets(home)
        resume = None if is_fresh else latest_checkpoints(home, domain)
        try:
            _start_parts(home, domain, content, resume, console, seed, options)
        except BaseException:
            if while_pid and not has_joined:
                instance.stop(home)
            raise
    return settings, {"setup": time.monotonic() - began}


def _make_secrets(home: Home, domain: str, is_secure: bool, console: Console) -> None:
    if is_secure and (warning := access.made(home.secrets, domain)):
        console.print(f"[yellow]{warning}[/yellow]")


def _start_parts(
    home: Home, domain: str, content: shipped.Shipped, resume: Mapping[str, str] | None, console: Console,
    seed: int, options: tuple[str, ...],
) -> None:  # fmt: skip
    """The domain's topics, jobs and processes. The jobs are planned while broker and cluster still start."""
    models_port = 0
    is_served = load_settings(domain).models_url or os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")
    if "reason" in flink_jobs.jobs_of(domain) and not is_served:
        models_port = choose({"models": 0})["models"]
        options = (*options, "--models-url", f"http://127.0.0.1:{models_port}/v1")
    code = code_versions.kept(home)
    submission = Submission(home, domain, options=options, resume_from=resume, code=code)
    try:
        with console.status("starting the broker and the cluster, planning the jobs"):
            bootstrap = _wait_for_broker(home, domain)
            kafka.create_topics(bootstrap, domain)
            shipped.publish_new(bootstrap, domain, content, now_ms=int(time.time() * 1000))
            instance.wait_ready(home)
            if left := flink_jobs.unfinished(home, domain):
                raise SetupFailed(f"{', '.join(sorted(left.values()))} run here already, submitted by hand; './flyball down' stops all that runs here")
        with console.status(f"submitting {', '.join(flink_jobs.jobs_of(domain))}"):
            _submit(home, domain, submission, options, code, seed, models_port)
            flink_jobs.wait_running(home, domain)
            instance.wait_actuator(home, domain)
            instance.wait_sealer(home, domain)
            if models_port:
                instance.wait_model_server(home, domain)
    except BaseException:
        submission.cancel()
        raise


def _submit(
    home: Home, domain: str, submission: Submission, options: Iterable[str], code: Code, seed: int, models_port: int
) -> None:
    """All jobs, noted as wanted; or none: where one cannot be submitted, the others are cancelled."""
    try:
        submission.go()
        instance.want_actuator(home, domain, seed)
        instance.want_sealer(home, domain)
        if models_port:
            instance.want_model_server(home, domain, models_port)
        submission.wait()
        want(home, domain, options, dict.fromkeys(flink_jobs.jobs_of(domain), code.name))
    except BaseException:
        submission.cancel()
        with suppress(httpx.HTTPError, JobFailed):
            flink_jobs.cancel(home, domain)
            flink_jobs.wait_cancelled(home, domain)
        raise


def _wait_for_broker(home: Home, domain: str) -> str:
    """The broker's address as soon as it serves this domain; the cluster may still be starting."""
    deadline = time.monotonic() + instance.START_PATIENCE_S
    while time.monotonic() < deadline:
        state = home.read_state()
        if state.get("state") in ("failed", "stopped"):
            instance.wait_ready(home)
        processes = state.get("processes")
        if isinstance(processes, dict) and (processes.get("broker") or {}).get("is_ready"):
            bootstrap = str(state["bootstrap_servers"])
            if home.is_secure:
                access.establish(instance.internal_servers(home), home.secrets, domain)
            kafka.wait_for_broker(bootstrap, principal=principal(domain, "admin"))
            return bootstrap
        time.sleep(0.05)
    instance.wait_ready(home)
    raise SetupFailed("the broker did not start")


def default_input(settings: Settings) -> Path | None:
    if not settings.default_input:
        return None
    return ROOT / "data" / settings.default_input


def items(asked: Asked, settings: Settings, world: World, watch: Watch) -> Iterator[Item | None]:
    """What to play: the file given, the data shipped with the domain, or a generated world.

    Facts go through the world's own `played`, which may put later answers of the world between
    them; refused lines pass by it in place.
    """
    path = asked.input or default_input(settings)
    refused: list[Item] = []
    if path is None:
        count = asked.count or settings.default_count
        facts: Iterable[NewFact | None] = world.generate(seed=asked.seed, count=count)
    else:

        def from_file() -> Iterator[NewFact | None]:
            rows = read_file(
                path, world, subject=asked.subject, max_ahead_ms=settings.max_ahead_s * 1000
            )
            for item in with_references(rows, asked.graph, world, subject=asked.subject):
                if isinstance(item, NewFact):
                    yield item
                else:
                    refused.append(item)

        facts = from_file()
    for fact in world.played(facts, watch.decision_of()):
        yield from _drain(refused)
        yield fact
    yield from _drain(refused)


def _drain(refused: list[Item]) -> Iterator[Item]:
    while refused:
        yield refused.pop(0)


def run(asked: Asked, home: Home, console: Console) -> dict[str, Any]:
    """Play a domain's input through the whole loop and give the report. docs/operations.md tells its keys."""
    began = time.monotonic()
    _sign(asked, load_settings(asked.domain))
    settings, seconds = bring_up(
        home, asked.domain, is_fresh=not asked.is_resumed, console=console, joins=False,
        while_pid=None if asked.is_kept else os.getpid(), seed=asked.seed, is_secure=asked.is_secure,
    )  # fmt: skip
    try:
        report = _play(asked, home, settings, console, began, seconds["setup"])
    except BaseException:
        if not asked.is_kept:
            instance.stop(home)
        raise
    if asked.is_kept:
        console.print(f"kept running; './flyball status', './flyball down' (logs: {home.logs})")
    else:
        with console.status("taking everything down"):
            flink_jobs.cancel(home, asked.domain)
            flink_jobs.wait_cancelled(home, asked.domain)
            instance.stop(home)
    return report


def _sign(asked: Asked, settings: Settings) -> Callable[[bytes, str], bytes] | None:
    """What signs the facts that are played; None where they bear no signature."""
    if asked.sign_with is not None:
        return producers.signer(settings, asked.sign_with)
    if settings.signed_facts == "required":
        raise SetupFailed(f"{asked.domain} requires signed facts: expected --sign-with KEYFILE, a key of {settings.producers_file}")
    return None


def _play(
    asked: Asked, home: Home, settings: Settings, console: Console, began: float, setup_s: float
) -> dict[str, Any]:
    bootstrap = str(home.read_state()["bootstrap_servers"])
    world = load_world(asked.domain)
    is_committed = settings.delivery == "exactly_once"
    watch = Watch(
        bootstrap, asked.domain, is_committed=is_committed, from_beginning=not asked.is_resumed,
        decision_key=world.decision_key,
        spool=asked.report.parent if asked.report is not None else None,
    )  # fmt: skip
    watch.start()
    path = asked.input or default_input(settings)
    writer = kafka.producer(bootstrap, principal=principal(asked.domain, "producer"))
    emitter = Emitter(
        load_domain(asked.domain), writer, file_name=path.name if path else f"seed-{asked.seed}",
        sign=_sign(asked, settings),
    )
    failure: list[BaseException] = []

    def play() -> None:
        try:
            emitter.emit(items(asked, settings, world, watch), rate=asked.rate)
            if emitter.emitted.last_event_ms:
                close_windows(emitter, bootstrap, settings)
        except BaseException as error:
            failure.append(error)

    player = threading.Thread(target=play, name="player", daemon=True)
    player.start()
    try:
        _wait_until_quiet(home, asked.domain, watch, player, failure, emitter.emitted, console)
    finally:
        watch.stop()
        writer.close()
    total_s = time.monotonic() - began
    report = build_report(asked, home, watch.seen, emitter.emitted, path, total_s, setup_s, began)
    _show_summary(report, console)
    if watch.seen.telling is not None:
        chain = trace.find_chain(bootstrap, asked.domain, watch.seen.telling[1])
        console.print(trace.as_tree(trace.tree_data(chain)))
    if asked.report is not None:
        asked.report.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
        console.print(f"report: {asked.report}")
    for problem in emitter.emitted.oversized:
        console.print(f"[red]not sent:[/red] {problem}")
    return report


def _wait_until_quiet(
    home: Home, domain: str, watch: Watch, player: threading.Thread, failure: list[BaseException],
    emitted: Emitted, console: Console,
) -> None:  # fmt: skip
    """Until the input is played, every job has read all there is, and every command has its outcome."""
    bootstrap = str(home.read_state()["bootstrap_servers"])
    lags = kafka.LagReader(bootstrap, domain, flink_jobs.jobs_of(domain))
    calm = 0
    quiet_since = time.monotonic()
    last_change = -1.0
    next_check = 0.0
    try:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            while calm < QUIET_CHECKS:
                live.update(_live_view(domain, watch.seen, emitted, player.is_alive()))
                time.sleep(0.1)
                if failure:
                    raise failure[0]
                if watch.error is not None:
                    raise watch.error
                if instance_failed := home.read_state().get("error"):
                    raise SetupFailed(str(instance_failed))
                if time.monotonic() < next_check:
                    continue
                next_check = time.monotonic() + 0.5
                try:
                    flink_jobs.check(home, domain)
                    has_open_calls = bool(flink_jobs.open_calls(home, domain))
                except httpx.HTTPError:  # a JobManager that died: the supervisor brings it back, or says why not
                    has_open_calls = True
                if player.is_alive() or watch.seen.last_change_at != last_change:
                    last_change = watch.seen.last_change_at
                    quiet_since = time.monotonic()
                    calm = 0
                    continue
                is_calm = (
                    not watch.seen.open_commands
                    and not any(lags.lags().values())
                    and not has_open_calls
                )
                calm = calm + 1 if is_calm else 0
                if time.monotonic() - quiet_since > QUIET_PATIENCE_S:
                    raise JobFailed(
                        f"the loop did not come to rest: lags {lags.lags()}, commands without outcome"
                        f" {len(watch.seen.open_commands)}. Logs: {home.logs}"
                    )
    finally:
        lags.close()


def _live_view(domain: str, seen: Seen, emitted: Emitted, is_playing: bool) -> Group:
    counts = Table.grid(padding=(0, 2))
    counts.add_row(
        f"[bold]{domain}[/bold] {'playing' if is_playing else 'settling'}",
        f"facts {emitted.facts}", f"situations {seen.situations}", f"proposals {seen.proposals}",
        *(f"{name} {count}" for name, count in sorted(seen.verdicts.items())),
        f"commands {seen.commands}", f"outcomes {sum(seen.outcomes.values())}",
        f"dead letters {seen.dead_letters}",
    )  # fmt: skip
    latest = Table(box=None, show_header=False, padding=(0, 1))
    for event in list(seen.latest):
        data = event["data"]
        latest.add_row(*map(plain, (
            event.get("time"), event.get("subject"), data.get("verdict"), data.get("action"), data.get("reason"),
            str(data.get("explanation"))[:80],
        )))  # fmt: skip
    return Group(counts, latest)


def build_report(
    asked: Asked, home: Home, seen: Seen, emitted: Emitted, path: Path | None,
    total_s: float, setup_s: float, began: float,
) -> dict[str, Any]:  # fmt: skip
    """The report's JSON; every number comes from the topics and from Flink's REST API."""
    busy_ms = (seen.last_decision_ms or 0) - (seen.first_fact_ms or 0)
    return {
        "domain": asked.domain,
        "input": str(path) if path else f"generated, seed {asked.seed}",
        "facts": seen.facts,
        "duplicates": seen.duplicates,
        "dead_letters": seen.dead_letters,
        "dead_letter_causes": dict(sorted(seen.causes.items())),
        "situations": seen.situations,
        "proposals": seen.proposals,
        "language_models": {"answered": len(seen.reasoned), "fell_back": len(seen.fell_back)},
        "decisions": {
            **{verdict: seen.verdicts.get(verdict, 0) for verdict in ("allow", "deny", "hold")},
            "by_reason": dict(sorted(seen.reasons.items())),
        },
        "commands": seen.commands,
        "commands_by_action": dict(sorted(seen.actions.items())),
        "outcomes": {status: seen.outcomes.get(status, 0) for status in ("succeeded", "failed")},
        "latency_ms": {
            "fact_to_decision": percentiles(seen.decision_ms),
            "fact_to_command": percentiles(seen.command_ms),
        },
        "throughput_facts_per_s": round(seen.facts / (busy_ms / 1000), 1) if busy_ms > 0 else None,
        "jobs": [
            {
                "name": job.name,
                "state": job.state,
                "checkpoints_completed": job.checkpoints_completed,
                "restarts": flink_jobs.restarts(home, job.job_id),
            }
            for job in flink_jobs.states(home, asked.domain)
        ],
        "seconds": {
            "setup": round(setup_s, 2),
            "first_decision": round(seen.first_decision_at - began, 2) if seen.first_decision_at else None,
            "total": round(total_s, 2),
        },
        "memory_mib": {name: round(value) for name, value in instance.memory_mib(home).items()},
        "not_sent": emitted.oversized,
    }


def _show_summary(report: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{report['domain']}: {Path(report['input']).name}", box=None, title_justify="left")
    table.add_column("what", style="cyan")
    table.add_column("how many", justify="right")
    table.add_column("", style="dim")
    decisions = report["decisions"]
    reasons = ", ".join(f"{name} {count}" for name, count in decisions["by_reason"].items())
    actions = ", ".join(f"{name} {count}" for name, count in report["commands_by_action"].items())
    causes = ", ".join(f"{name} {count}" for name, count in report["dead_letter_causes"].items())
    table.add_row("facts", str(report["facts"]), f"{report['duplicates']} repeated")
    table.add_row("situations", str(report["situations"]), "")
    asked = report["language_models"]
    by_models = f"{asked['answered']} by a language model, {asked['fell_back']} by a cheaper one or a rule in its place"
    table.add_row("proposals", str(report["proposals"]), by_models if any(asked.values()) else "")
    table.add_row("decisions", str(sum(decisions[v] for v in ("allow", "deny", "hold"))), reasons)
    table.add_row("commands", str(report["commands"]), actions)
    outcomes = report["outcomes"]
    table.add_row("outcomes", str(sum(outcomes.values())), f"{outcomes['failed']} failed")
    table.add_row("dead letters", str(report["dead_letters"]), causes)
    for name, values in report["latency_ms"].items():
        told = ", ".join(f"{p} {v:.0f} ms" for p, v in values.items() if v is not None)
        table.add_row(name.replace("_", " "), "", told or "nothing to measure")
    seconds = report["seconds"]
    table.add_row("seconds", f"{seconds['total']:.1f}", f"first decision after {seconds['first_decision']}")
    console.print(table)
