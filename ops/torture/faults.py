"""The faults: one function each. It starts a load, breaks something, and gives what came of it."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from contracts.errors import JobFailed
from ops import cluster, flink_jobs, instance
from ops.checkpoints import latest_checkpoints
from ops.submission import Submission, want
from ops.torture import facts
from ops.torture.bed import ALL_RECOVERED_WITHIN_S, RECOVERY_PATIENCE_S, Bed, Kind, Result
from ops.torture.traffic import DOMAIN, Load, Uncommitted
from ops.watch import percentiles
from ops.worlds import drill

Play = Callable[[Bed, str], Result]
# How long an input without a blow is played.
PLAYED_S = 10.0
STOPPED_S = 30.0
FULL_S = 10.0
# No file of the process grows beyond this: what a full disk does, without one.
FULL_BYTES = 4096
SLOW_MS = 10_000.0
LOOKED_EVERY_S = 2.0
PAUSES_S = 60.0
KILLS_IN_TRANSACTION = 3
# heartbeat.timeout is 4.5 s, the broker's session 3 s.
LONGEST_PAUSE_S = 9.0
PAUSES_SEED = 24
PAUSED_PARTS = ("broker", "taskmanager-0", "jobmanager", f"actuator-{DOMAIN}")


@dataclass(frozen=True)
class Fault:
    """`says` is one line for people; `is_short`: among the four that matter most."""

    name: str
    says: str
    play: Play
    is_short: bool = False
    needs_transactions: bool = False
    kind: Kind = field(default_factory=Kind)


# ------------------------------------------------------------------------------- processes


def _kill(process: psutil.Process) -> float:
    """`kill -9`; gives when (time.monotonic)."""
    at = time.monotonic()
    process.send_signal(signal.SIGKILL)
    return at


def killed(part: str) -> Play:
    def play(bed: Bed, name: str) -> Result:
        load = bed.start_load(bed.rounds(name))
        process = bed.process(part)
        at = _kill(process)
        bed.wait_back(part, process.pid)
        return bed.finish(name, load, since=at)

    return play


def killed_in_transaction(bed: Bed, name: str) -> Result:
    """The TaskManager dies when a decision lies in the log whose transaction is open, and is undone with it.

    One that had gone so far that it is committed afterwards was no blow: then it is tried again.
    """
    load = bed.start_load(bed.rounds(name))
    fate, kills, at = "", 0, 0.0
    while fate != "aborted" and kills < KILLS_IN_TRANSACTION:
        kills += 1
        with Uncommitted(bed.bootstrap) as reader:
            place = reader.wait_for_one(lambda place: place not in bed.tap.places)
            process = bed.process("taskmanager-0")
            at = _kill(process)
        bed.wait_back("taskmanager-0", process.pid)
        fate = bed.wait_until(
            lambda place=place: bed.tap.fate_of(place), "the end of the transaction", timeout_s=RECOVERY_PATIENCE_S  # type: ignore[misc]
        )
    result = bed.finish(name, load, since=at, notes={"the_open_transaction_was": fate, "kills": kills})
    if fate != "aborted":
        result.findings.object(f"whatever transaction was open when the TaskManager died was committed, {kills} times")
    return result


def actuator_killed(bed: Bed, name: str) -> Result:
    """Between doing and reporting: the till has settled a command, and is not let back to say so."""
    hold = drill.hold_file(bed.home)
    load = bed.start_load(bed.rounds(name))
    try:
        hold.touch()
        interrupted = bed.wait_until(hold.read_text, "a command in the hands of the actuator", timeout_s=60)
        at = _kill(bed.process(f"actuator-{DOMAIN}"))
    finally:
        hold.unlink(missing_ok=True)
    result = bed.finish(name, load, since=at, asked_again=1)
    asked = drill.settled(bed.home).get(interrupted)
    if asked != 2:
        result.findings.object(f"the settlement that was cut off was asked for {asked} times, not twice")
    return result


def python_worker_killed(bed: Bed, name: str) -> Result:
    """Jobs have worker processes in process mode only; the newest of them dies."""
    load = bed.start_load(bed.rounds(name))
    manager = bed.process("taskmanager-0")
    workers = [child for child in manager.children(recursive=True) if "pyflink" in " ".join(child.cmdline())]
    if not workers:
        load.end()
        raise JobFailed("expected Python workers below the TaskManager, found none")
    return bed.finish(name, load, since=_kill(workers[-1]), notes={"workers": len(workers)})


def broker_stopped(bed: Bed, name: str) -> Result:
    """SIGSTOP; the time counts from SIGCONT."""
    load = bed.start_load(bed.rounds(name))
    broker = bed.process("broker")
    broker.send_signal(signal.SIGSTOP)
    try:
        bed.play_for(STOPPED_S)
    finally:
        broker.send_signal(signal.SIGCONT)
    return bed.finish(name, load, since=time.monotonic())


def processes_paused(bed: Bed, name: str) -> Result:
    """One process after another stands still (SIGSTOP), some for longer than the others wait for it.

    What is taken for dead comes back and finds itself replaced. The time counts from the last SIGCONT.
    """
    chance = random.Random(PAUSES_SEED)
    load = bed.start_load(bed.rounds(name))
    at = time.monotonic()
    until = at + PAUSES_S
    pauses: list[str] = []
    left: list[str] = []
    while time.monotonic() < until:
        left = left or chance.sample(PAUSED_PARTS, len(PAUSED_PARTS))
        part, seconds = left.pop(), chance.uniform(0.5, LONGEST_PAUSE_S)
        try:
            process = bed.process(part)
            process.send_signal(signal.SIGSTOP)
        except psutil.NoSuchProcess:  # it is just being replaced
            bed.play_for(0.5)
            continue
        try:
            bed.play_for(seconds)
        finally:
            if process.is_running():
                process.send_signal(signal.SIGCONT)
            at = time.monotonic()
        pauses.append(f"{part} {seconds:.1f} s")
        bed.play_for(chance.uniform(0.5, 4.0))
    return bed.finish(name, load, since=at, notes={"pauses": pauses})


# ----------------------------------------------------------------------------------- disks


def checkpoint_disk_full(bed: Bed, name: str) -> Result:
    """JobManager and TaskManager may write no file beyond 4 KiB (RLIMIT_FSIZE): checkpoints fail as on a full disk.

    Not only theirs: nothing these processes write fits, RocksDB's files and logs included. The time counts from when
    there is room again.
    """
    load = bed.start_load(bed.rounds(name))
    failed_before = _failed_checkpoints(bed)
    full = [bed.process("jobmanager"), bed.process("taskmanager-0")]
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for process in full:
        process.rlimit(psutil.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
    try:
        bed.play_for(FULL_S)
        failed = _failed_checkpoints(bed) - failed_before
    finally:
        for process in full:
            if process.is_running():
                process.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    result = bed.finish(name, load, since=time.monotonic(), notes={"failed_checkpoints": failed})
    if failed < 1:
        result.findings.object("no checkpoint failed: nothing was tried")
    return result


def _failed_checkpoints(bed: Bed) -> int:
    port = flink_jobs.rest_port(bed.home)
    found = 0
    for job in flink_jobs.states(bed.home, DOMAIN):
        found += int(cluster.get(port, f"/jobs/{job.job_id}/checkpoints")["counts"]["failed"])
    return found


# -------------------------------------------------------------------------------- restarts


def restarted_from_checkpoint(bed: Bed, name: str) -> Result:
    """Everything is taken down, broker included, and comes up again; the load goes on. The time counts from `down`."""
    load = bed.start_load(bed.rounds(name))
    at = time.monotonic()
    instance.stop(bed.home)
    bed.bring_up(is_fresh=False)
    return bed.finish(name, load, since=at, within_s=ALL_RECOVERED_WITHIN_S)


def restarted_from_savepoint(bed: Bed, name: str) -> Result:
    """Every job is stopped with a savepoint and submitted from it. The time counts from the first stop."""
    load = bed.start_load(bed.rounds(name))
    at = time.monotonic()
    _submit(bed, _stopped_with_savepoints(bed), ())
    return bed.finish(name, load, since=at)


def rescaled_up(bed: Bed, name: str) -> Result:
    narrow, wide = _widths()
    return _rescaled(bed, name, narrow, wide)


def rescaled_down(bed: Bed, name: str) -> Result:
    narrow, wide = _widths()
    return _rescaled(bed, name, wide, narrow)


def _widths() -> tuple[int, int]:
    """Subtasks: as configured and half of that, or one and two."""
    wide = max(2, int(os.environ.get("FLYBALL_PARALLELISM") or "1"))
    return wide // 2, wide


def _rescaled(bed: Bed, name: str, before: int, after: int) -> Result:
    """Every job is cancelled and goes on from its last checkpoint with other subtasks than `before`."""
    if set(bed.parallelism().values()) != {before}:
        _go_on_with(bed, before)
    load = bed.start_load(bed.rounds(name))
    at = time.monotonic()
    _go_on_with(bed, after)
    result = bed.finish(name, load, since=at, notes={"subtasks": [before, after]})
    if set(bed.parallelism().values()) != {after}:
        result.findings.object(f"expected {after} subtasks of each job, came {bed.parallelism()}")
    return result


def _go_on_with(bed: Bed, parallelism: int) -> None:
    flink_jobs.cancel(bed.home, DOMAIN)
    flink_jobs.wait_cancelled(bed.home, DOMAIN)
    _submit(bed, latest_checkpoints(bed.home, DOMAIN), ("--parallelism", str(parallelism)))


def _submit(bed: Bed, resume_from: dict[str, str], options: Sequence[str]) -> None:
    Submission(bed.home, DOMAIN, options=options, resume_from=resume_from).go().wait()
    want(bed.home, DOMAIN, options)


def _stopped_with_savepoints(bed: Bed) -> dict[str, str]:
    """Job -> where its savepoint is."""
    base = f"http://127.0.0.1:{flink_jobs.rest_port(bed.home)}"
    asked: dict[str, str] = {}
    for job in flink_jobs.states(bed.home, DOMAIN):
        answer = cluster.rest_client().post(f"{base}/jobs/{job.job_id}/stop", json={"drain": False}, timeout=30)
        answer.raise_for_status()
        asked[job.name.removeprefix(f"{DOMAIN}.")] = f"/jobs/{job.job_id}/savepoints/{answer.json()['request-id']}"
    port = flink_jobs.rest_port(bed.home)

    def place_of(path: str) -> str | None:
        told: dict[str, Any] = cluster.get(port, path)
        if told["status"]["id"] != "COMPLETED":
            return None
        if "location" not in told["operation"]:
            raise JobFailed(f"no savepoint: {str(told['operation'])[:1000]}")
        return str(told["operation"]["location"])

    return {
        name: bed.wait_until(lambda path=path: place_of(path), f"the savepoint of {name}", timeout_s=60)  # type: ignore[misc]
        for name, path in asked.items()
    }


# ---------------------------------------------------------------------------------- inputs


def spoilt(how: Callable[[Iterator[list[facts.Item]]], Iterator[list[facts.Item]]]) -> Play:
    def play(bed: Bed, name: str) -> Result:
        load = bed.start_load(how(bed.rounds(name)))
        bed.play_for(PLAYED_S)
        return bed.finish(name, load, since=None)

    return play


def input_repeated(bed: Bed, name: str) -> Result:
    """Once it is all decided, the whole input comes again, in the same order."""
    load = bed.start_load(bed.rounds(name))
    bed.play_for(PLAYED_S)
    first = bed.finish(name, load, since=None)
    again = Load(bed.bootstrap, iter([load.sent]), rate=10 * bed.rate)
    again.start()
    again.end(at_once=False)
    result = bed.conclude(name, [*load.sent, *again.sent], None, {})
    for finding in first.findings.told:
        result.findings.object(f"before the repeat: {finding}")
    return result


# ---------------------------------------------------------------------------------- agents


def slow_agent(bed: Bed, name: str) -> Result:
    """A language model begins to take ten seconds a call: the rules beside it decide as fast as before."""
    model = bed.model
    assert model is not None
    load = bed.start_load(bed.rounds(name))
    bed.play_for(2 * PLAYED_S)  # until the JVM is warm, or what is slow would be the beginning
    measured_from = time.monotonic()
    bed.play_for(PLAYED_S)
    slow_at = time.monotonic()
    model.behaviour = model.behaviour.model_copy(update={"latency_ms": SLOW_MS})
    open_calls = 0  # Flink fetches an operator's metrics for the next look, not for this one
    while time.monotonic() < slow_at + 2 * PLAYED_S:
        bed.play_for(LOOKED_EVERY_S)
        open_calls = max(open_calls, flink_jobs.open_calls(bed.home, DOMAIN))
    result = bed.finish(name, load, since=None)  # nothing stops
    model.behaviour = model.behaviour.model_copy(update={"latency_ms": 50.0})
    before = _latency_ms(bed, load, since=measured_from, until=slow_at)
    after = _latency_ms(bed, load, since=slow_at)
    result.notes |= {"neighbours_ms_before": before, "neighbours_ms": after, "calls_open_meanwhile": open_calls}
    if open_calls < 1:
        result.findings.object("no call was open meanwhile: nothing was tried")
    if any((after[of] or 0) > 2 * (before[of] or 0) + beside for of, beside in (("p50", 100), ("p99", 500))):
        result.findings.object(f"the neighbours' latency was {before} ms and is {after} ms")
    return result


def _latency_ms(bed: Bed, load: Load, *, since: float = 0.0, until: float = float("inf")) -> dict[str, float | None]:
    """From handing a fact to the producer to its decision, of the facts of a period."""
    return percentiles(
        [
            round((bed.tap.decided_at[fact] - at) * 1000)
            for fact, at in load.sent_at.items()
            if since <= at < until and fact in bed.tap.decided_at
        ]
    )


AT_LEAST_ONCE = Kind(delivery="at_least_once")
FAULTS: tuple[Fault, ...] = (
    Fault("none", "nothing is broken", spoilt(lambda rounds: rounds)),
    Fault("taskmanager_killed", "kill -9 of the TaskManager", killed("taskmanager-0"), is_short=True),
    Fault("jobmanager_killed", "kill -9 of the JobManager", killed("jobmanager"), is_short=True),
    Fault("actuator_killed", "kill -9 of the actuator between doing and reporting", actuator_killed, is_short=True),
    Fault("broker_killed", "kill -9 of the broker", killed("broker"), is_short=True),
    Fault("broker_stopped", "SIGSTOP of the broker for 30 s", broker_stopped),
    Fault("processes_paused", "one process after another stands still, up to 9 s, for a minute", processes_paused),
    Fault("killed_in_transaction", "kill -9 of the TaskManager while a Kafka transaction is open", killed_in_transaction,
          needs_transactions=True),
    Fault("checkpoint_disk_full", "for 10 s no checkpoint can be written", checkpoint_disk_full),
    Fault("clock_stepped", "the producer's clock steps by a minute, to and fro",
          spoilt(lambda rounds: facts.stepped(rounds, every=4))),
    Fault("input_shuffled", "facts up to a minute of event time out of order",
          spoilt(lambda rounds: facts.shuffled(rounds, over=6, seed=1))),
    Fault("input_repeated", "the whole input once more", input_repeated),
    Fault("poison", "a record nobody can read behind every 100", spoilt(lambda rounds: facts.poisoned(rounds, every=100))),
    Fault("rescaled_up", "every job goes on with twice the subtasks, from its checkpoint", rescaled_up),
    Fault("rescaled_down", "every job goes on with half the subtasks, from its checkpoint", rescaled_down),
    Fault("restarted_from_savepoint", "every job is stopped with a savepoint, and goes on from it", restarted_from_savepoint),
    Fault("restarted_from_checkpoint", "everything is taken down, and comes up from checkpoints", restarted_from_checkpoint),
    Fault("taskmanager_killed_at_least_once", "kill -9 of the TaskManager, at least once",
          killed("taskmanager-0"), kind=AT_LEAST_ONCE),
    Fault("jobmanager_killed_at_least_once", "kill -9 of the JobManager, at least once",
          killed("jobmanager"), kind=AT_LEAST_ONCE),
    Fault("broker_killed_at_least_once", "kill -9 of the broker, at least once", killed("broker"), kind=AT_LEAST_ONCE),
    Fault("slow_agent", "a language model takes ten seconds a call", slow_agent, kind=Kind(has_slow_agent=True)),
    Fault("taskmanager_killed_beside_standby", "kill -9 of the TaskManager, while another stands by",
          killed("taskmanager-0"), kind=Kind(standby=1)),
    Fault("python_worker_killed", "kill -9 of a Python worker, all jobs in process mode", python_worker_killed,
          kind=Kind(flink="{python.execution-mode: process, python.fn-execution.bundle.time: 10}")),
)  # fmt: skip
