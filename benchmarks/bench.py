"""`./flyball bench`: speed and memory of the real broker, cluster and jobs on this machine.

Each measurement starts from an empty instance of its own (`.flyball/bench`), so nothing of one run
helps or hurts another. Rates are steady-state: counted between a half and 95 % of the records, when
start-up, class loading and most of the JIT's work are over.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from contracts.errors import JobFailed, SetupFailed
from contracts.topics import topic
from jobs.settings import load_settings
from ops import flink_jobs, instance, kafka, models, policies, replay
from ops.home import CHECKOUT, Home
from ops.run import bring_up
from ops.watch import percentiles

TARGETS = {
    "context_facts_per_s": ("validate + dedup + features -> situations, steady", "40000 facts/s"),
    "govern_proposals_per_s": ("govern, three policies and more, state, audit fields, steady", "8000 proposals/s"),
    "govern_50_policies_per_s": ("govern, 50 active policies (10 in scope), 5 shadow, limits, audit chain", "5000 proposals/s"),
    "replay_decisions_per_s": ("replay of those decisions, one core", "50000 decisions/s"),
    "latency_at_least_once_ms": ("fact to decision, 1000 facts/s, at least once", "p50 10, p99 50 ms"),
    "latency_exactly_once_ms": ("fact to decision, 1000 facts/s, exactly once (250 ms), read committed", "p50 250, p99 500 ms"),
    "first_decision_s": ("first decision after ./flyball run", "25 s"),
    "cpu_probe_s": ("a fixed Python loop on the idle machine, before each run", "-"),
    "memory_mib": ("whole memory of the running loop, while it runs at 1000 facts/s", "4096 MiB"),
}  # fmt: skip


def _home() -> Home:
    return Home(CHECKOUT / ".flyball" / "bench")


def _load(home: Home, what: str, count: int, *, rate: float | None = None, run: str = "bench") -> None:
    """Write records with as many processes as help."""
    workers = 1 if rate else 2
    bootstrap = str(home.read_state()["bootstrap_servers"])
    command = [sys.executable, "-m", "benchmarks.load", what, "--bootstrap-servers", bootstrap,
               "--count", str(count), "--run", run]  # fmt: skip
    if rate:
        command += ["--rate", str(rate)]
    started = [
        subprocess.Popen([*command, "--share", f"{n}/{workers}"], cwd=CHECKOUT,
                         env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
        for n in range(workers)
    ]  # fmt: skip
    if any(process.wait() for process in started):
        raise JobFailed(f"writing {what} failed")


def _topic_rate(home: Home, name: str, wanted: int, timeout_s: float = 300) -> float:
    """Records a second into a topic, between a half of `wanted` and 95 % of it."""
    reader = kafka.consumer(str(home.read_state()["bootstrap_servers"]))
    where = kafka.partitions(reader, [topic(name).of("machines")])
    deadline = time.monotonic() + timeout_s
    samples: list[tuple[float, int]] = []
    while True:
        count = sum(reader.end_offsets(where).values())
        samples.append((time.monotonic(), count))
        if count >= wanted:
            break
        flink_jobs.check(home, "machines")
        if time.monotonic() > deadline:
            raise JobFailed(f"expected {wanted} {name} within {timeout_s:.0f} s, came {count}")
        time.sleep(0.5)
    reader.close()
    steady = [sample for sample in samples if wanted / 2 <= sample[1] <= wanted * 0.95]
    (began, first), (ended, last) = steady[0], steady[-1]
    return (last - first) / (ended - began)


def _prepared(home: Home) -> str:
    instance.stop(home)
    instance.start(home, fresh=True, while_pid=os.getpid())
    instance.wait_ready(home)
    bootstrap = str(home.read_state()["bootstrap_servers"])
    kafka.create_topics(bootstrap, "machines")
    return bootstrap


def context_rate(count: int) -> float:
    """Facts a second through `context` alone, facts written ahead."""
    home = _home()
    _prepared(home)
    _load(home, "facts", count)
    flink_jobs.Submission(home, "machines", ["context"]).go().wait()
    return _topic_rate(home, "situations", count)


def govern_rate(count: int, files: list[Path] | None = None) -> float:
    """Proposals a second through `govern` alone (exactly once), proposals written ahead."""
    home = _home()
    bootstrap = _prepared(home)
    checked = policies.check_files("machines", files or policies.policy_files("machines"))
    policies.publish(bootstrap, "machines", checked, now_ms=int(time.time() * 1000))
    _load(home, "proposals", count)
    flink_jobs.Submission(home, "machines", ["govern"]).go().wait()
    return _topic_rate(home, "decisions", count)


def govern_with_many_policies(count: int) -> dict[str, Any]:
    """`govern` with 50 active and 5 shadow policies; then a replay of what it decided."""
    folder = _home().path / "policies"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(55):
        action = "schedule_maintenance" if number < 10 or number >= 50 else "activate_cooling"
        allows = number == 0
        limits = "limits: [{max_count: 10, within_s: 86400}]\n" if allows else ""
        (folder / f"p{number}.yaml").write_text(
            f"policy_id: p{number}\nversion: 1\nstatus: {'active' if number < 50 else 'shadow'}\n"
            f"scope: {{actions: [{action}]}}\nverdict: {'allow' if allows else 'deny'}\nreason: a benchmark\n{limits}"
            f"when: confidence {'>=' if allows else '<'} 0.{number:02} && hops < {number + 5} && age_s < 3600.0\n"
        )
    rate = govern_rate(count, sorted(folder.glob("*.yaml")))
    bootstrap = str(_home().read_state()["bootstrap_servers"])
    time.sleep(2)  # the last transaction is committed by the next checkpoint
    replayed = replay.run(bootstrap, "machines")
    if replayed.found.different or replayed.found.broken_chains:
        raise JobFailed(f"expected a replay without a difference, came {replayed.told()}")
    return {
        "govern_50_policies_per_s": rate,
        "replay_decisions_per_s": replayed.found.decisions / replayed.seconds,
    }


class _Decisions(threading.Thread):
    """Arrival times of decisions at a read_committed reader, by the fact they answer."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(daemon=True)
        self._reader = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "bench",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
            }
        )
        name = topic("decisions").of("machines")
        parts = self._reader.list_topics(name, timeout=10).topics[name].partitions
        ends = [(part, self._reader.get_watermark_offsets(TopicPartition(name, part))[1]) for part in parts]
        self._reader.assign([TopicPartition(name, part, end) for part, end in ends])
        self._stopping = threading.Event()
        self.arrived: dict[str, float] = {}

    def run(self) -> None:
        while not self._stopping.is_set():
            for record in self._reader.consume(500, timeout=0.005):
                now = time.time() * 1000
                event = orjson.loads(record.value() or b"{}")
                self.arrived.setdefault(str(event.get("correlationid")), now)
        self._reader.close()

    def finish(self) -> dict[str, float]:
        self._stopping.set()
        self.join()
        return self.arrived


def latency(delivery: str, seconds: int, warm: int = 60_000) -> tuple[dict[str, float | None], float]:
    """Fact to decision through all three jobs at 1,000 facts/s: percentiles (ms) and memory (MiB).

    A TaskManager a job. Every reading gets a proposal here (an agent that always proposes, FLYBALL_AGENTS), so every
    fact has a decision. From the fact's append to the log to the decision's arrival at a reader.
    """
    home = _home()
    instance.stop(home)
    os.environ["FLYBALL_DELIVERY"] = delivery
    os.environ["FLYBALL_AGENTS"] = str(CHECKOUT / "benchmarks" / "agents.yaml")
    os.environ["FLYBALL_TASKMANAGERS"] = "3"
    try:
        bring_up(home, "machines", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid())
        bootstrap = str(home.read_state()["bootstrap_servers"])
        # Warm: the JIT has seen as many records as two minutes at this rate bring.
        _load(home, "facts", warm, run="backlog")
        _topic_rate(home, "decisions", warm)
        _load(home, "facts", warm, rate=1000, run="warm")
        decisions = _Decisions(bootstrap)
        decisions.start()
        _load(home, "facts", seconds * 1000, rate=1000, run="timed")
        memory = sum(instance.memory_mib(home).values()) + psutil.Process().memory_full_info().pss / 2**20
        appended = {
            str(orjson.loads(record.value or b"{}")["id"]): record.appended_ms
            for record in kafka.read_all(bootstrap, [topic("facts").of("machines")])
            if (record.key or b"").startswith(b"timed")
        }
        deadline = time.monotonic() + 180  # a queue behind the load shows as latency, not as an error
        while (missing := len(appended.keys() - decisions.arrived.keys())) and time.monotonic() < deadline:
            time.sleep(0.5)
        arrived = decisions.finish()
        if missing:
            raise JobFailed(f"{missing} of {len(appended)} facts got no decision within 180 s")
        taken = [round(arrived[fact_id] - appended_ms) for fact_id, appended_ms in appended.items()]
        return percentiles(taken), memory
    finally:
        instance.stop(home)
        for name in ("FLYBALL_DELIVERY", "FLYBALL_AGENTS", "FLYBALL_TASKMANAGERS"):
            del os.environ[name]


def first_decision() -> float:
    """Seconds from the command to the first decision, everything fetched before."""
    home = _home()
    report = home.path / "first" / "report.json"
    slice_file = home.path / "first" / "machine.csv"
    slice_file.parent.mkdir(parents=True, exist_ok=True)
    whole = CHECKOUT / "data" / load_settings("machines").default_input
    slice_file.write_text("".join(whole.read_text().splitlines(keepends=True)[:4000]))
    subprocess.run(
        [str(CHECKOUT / "flyball"), "run", "machines", "--input", str(slice_file), "--report", str(report)],
        check=True, capture_output=True, env={**os.environ, "FLYBALL_HOME": str(home.path)},
    )  # fmt: skip
    return float(json.loads(report.read_text())["seconds"]["first_decision"])


def measure(only: list[str], runs: int, output: Path, console: Console) -> dict[str, Any]:
    """Run the chosen measurements `runs` times each, print medians, write every run as JSON."""
    models.shipped_models("machines")
    plans: dict[str, Callable[[], dict[str, Any]]] = {
        "context": lambda: {"context_facts_per_s": context_rate(1_500_000)},
        "govern": lambda: {"govern_proposals_per_s": govern_rate(200_000)},
        "govern_50": lambda: govern_with_many_policies(100_000),
        "at_least_once": lambda: _named("at_least_once", *latency("at_least_once", 30)),
        "exactly_once": lambda: _named("exactly_once", *latency("exactly_once", 30)),
        "first_decision": lambda: {"first_decision_s": first_decision()},
    }
    unknown = set(only) - set(plans)
    if unknown:
        raise SetupFailed(f"--only: expected some of {sorted(plans)}, came {sorted(unknown)}")
    found: dict[str, list[Any]] = {}
    try:
        for name, plan in plans.items():
            if only and name not in only:
                continue
            for number in range(1, runs + 1):
                found.setdefault("cpu_probe_s", []).append(_probe_s())
                with console.status(f"{name}: run {number} of {runs}"):
                    for figure, value in plan().items():
                        found.setdefault(figure, []).append(value)
                console.print(f"[dim]{name} {number}/{runs}: { {k: v[-1] for k, v in found.items()} }[/dim]")
    finally:
        instance.stop(_home())
    result = {
        "command": f"./flyball bench --runs {runs}" + "".join(f" --only {o}" for o in only),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "cpu": _cpu_name(),
            "python": platform.python_version(),
            "java": _java_version(),
        },
        "figures": {name: {"median": _median(values), "runs": values} for name, values in found.items()},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    _show(result, console)
    console.print(f"written: {output}")
    return result


def _probe_s() -> float:
    """Seconds for a fixed loop: shared machines change their speed by the hour, and figures with it."""
    began = time.perf_counter()
    total = 0
    for number in range(20_000_000):
        total += number
    return time.perf_counter() - began


def _named(delivery: str, latencies: dict[str, float | None], memory: float) -> dict[str, Any]:
    return {f"latency_{delivery}_ms": latencies, "memory_mib": round(memory)}


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: statistics.median(value[key] for value in values) for key in values[0]}
    return statistics.median(values)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _java_version() -> str:
    from ops.setup import java_home, java_version

    return str(java_version(java_home()))


def _show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{result['command']} on {result['machine']}", box=None, title_justify="left")
    for column in ("what", "to reach", "median"):
        table.add_column(column)
    for name, (what, target) in TARGETS.items():
        if name in result["figures"]:
            value = result["figures"][name]["median"]
            shown = ", ".join(f"{k} {v:.0f}" for k, v in value.items()) if isinstance(value, dict) else f"{value:,.1f}"
            table.add_row(what, target, shown)
    console.print(table)
