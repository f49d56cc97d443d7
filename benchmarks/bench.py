"""`./flyball bench`: speed and memory of the real broker, cluster and jobs on this machine.

Each measurement starts from an empty instance of its own (`.flyball/bench`), so nothing of one run
helps or hurts another. Rates are steady-state: counted between a half and 95 % of the records, when
start-up, class loading and most of the JIT's work are over.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import endurance, reasoning
from benchmarks.bed import bench_home
from benchmarks.growth import growth
from benchmarks.latency import approval_to_command, latency, policy_publish
from benchmarks.rates import context_rate, govern_rate, govern_with_many_policies, open_subjects
from benchmarks.scaled_out import scaled_out
from contracts.errors import JobFailed, SetupFailed
from jobs.settings import load_settings
from ops import instance, models
from ops.home import CHECKOUT

TARGETS = {
    "context_facts_per_s": ("validate + dedup + features -> situations, steady", "40000 facts/s"),
    "govern_proposals_per_s": ("govern, three policies and more, state, audit fields, steady", "8000 proposals/s"),
    "govern_50_policies_per_s": ("govern, 50 active policies (10 in scope), 5 shadow, limits, audit chain", "5000 proposals/s"),
    "replay_decisions_per_s": ("replay of those decisions, one core", "50000 decisions/s"),
    "replay_all_cores_per_s": ("the same, partitions shared out among all cores", "-"),
    "latency_at_least_once_ms": ("fact to decision, 1000 facts/s, at least once", "p50 10, p99 50 ms"),
    "latency_exactly_once_ms": ("fact to decision, 1000 facts/s, exactly once (250 ms), read committed", "p50 250, p99 500 ms"),
    "latency_50_policies_ms": ("fact to decision, 500 facts/s, at least once, those 55 policies", "p99 60 ms"),
    "approval_to_command_ms": ("a signed approval to its command, 50/s, at least once", "p99 100 ms"),
    "policy_publish_s": ("a published policy version to the first decision under it, 200 proposals/s", "1 s"),
    "subjects_1m": ("1,000,000 subjects with a command in flight each, RocksDB", "2048 MiB managed"),
    "reason_100_ms": ("added by `reason` to a model of 1 s, 100 calls in flight; checkpoints", "p50 60 ms"),
    "reason_300_ms": ("the same, 300 in flight", "p50 150, checkpoint 500 ms"),
    "reason_calls_per_s": ("a model of 1 s, at most 500 calls in flight", "400 calls/s"),
    "reason_idle_percent": ("of a core, for job `reason` while nothing is asked", "3 %"),
    "reason_killed": ("kill -9 of the TaskManager, 200 calls in flight", "answered once, none asked again"),
    "alert_to_remedy_ms": ("an alert to its remediation command, model of 1 s", "p99 2500 ms"),
    "soak": ("80 % of the measured maximum for 30 minutes; slopes after the first third", "flat"),
    "overload": ("five times the maximum for a minute", "none undecided or repeated; latency returns"),
    "hot_key": ("one subject takes half of the facts, at half of the maximum", "others as without"),
    "growth": ("one more policy, agent, subject, remembered id", "-"),
    "scaled_out": ("the same input with 1 subtask, and with 4 on two TaskManagers", "0 differ"),
    "first_decision_s": ("first decision after ./flyball run", "25 s"),
    "cpu_probe_s": ("a fixed Python loop on the idle machine, before each run", "-"),
    "memory_mib": ("whole memory of the running loop, while it runs at 1000 facts/s", "4096 MiB"),
}  # fmt: skip


def first_decision() -> float:
    """Seconds from the command to the first decision, everything fetched before."""
    home = bench_home()
    instance.stop(home)  # of the measurement before
    report = home.path / "first" / "report.json"
    slice_file = home.path / "first" / "machine.csv"
    slice_file.parent.mkdir(parents=True, exist_ok=True)
    whole = CHECKOUT / "data" / load_settings("machines").default_input
    slice_file.write_text("".join(whole.read_text().splitlines(keepends=True)[:4000]))
    ran = subprocess.run(
        [str(CHECKOUT / "flyball"), "run", "machines", "--input", str(slice_file), "--report", str(report)],
        capture_output=True, text=True, env={**os.environ, "FLYBALL_HOME": str(home.path)},
    )  # fmt: skip
    if ran.returncode:
        raise JobFailed(f"./flyball run machines ended with exit code {ran.returncode}: {ran.stderr[-500:]}")
    return float(json.loads(report.read_text())["seconds"]["first_decision"])


def plans(minutes: float | None = None) -> dict[str, Callable[[], dict[str, Any]]]:
    """What can be measured, by the name `--only` takes (listed in its help, ops/cli/checkout.py): figures by name.

    `minutes`: how long soak takes, overload has too much, each half of hot_key takes; instead of 30, 1 and 1.
    """
    return {
        "context": lambda: {"context_facts_per_s": context_rate(1_500_000)},
        "govern": lambda: {"govern_proposals_per_s": govern_rate(200_000)},
        "govern_50": lambda: govern_with_many_policies(100_000),
        "at_least_once": lambda: _named("at_least_once", *latency("at_least_once", 30)),
        "exactly_once": lambda: _named("exactly_once", *latency("exactly_once", 30)),
        "latency_50_policies": lambda: {
            "latency_50_policies_ms": latency("at_least_once", 30, rate=500, has_many_policies=True)[0]
        },
        "approval_to_command": lambda: {"approval_to_command_ms": approval_to_command(300)},
        "policy_publish": lambda: {"policy_publish_s": policy_publish(10)},
        "subjects_1m": lambda: {"subjects_1m": open_subjects(1_000_000)},
        "reason_100": lambda: {"reason_100_ms": reasoning.added_latency(100)},
        "reason_300": lambda: {"reason_300_ms": reasoning.added_latency(300)},
        "reason_throughput": lambda: {"reason_calls_per_s": reasoning.throughput()},
        "reason_idle": lambda: {"reason_idle_percent": reasoning.idle_cost()},
        "reason_killed": lambda: {"reason_killed": reasoning.killed()},
        "alert_to_remedy": lambda: {"alert_to_remedy_ms": reasoning.alert_to_remedy(60)},
        "soak": lambda: {"soak": endurance.soak(minutes or 30)},
        "overload": lambda: {"overload": endurance.overload(minutes or 1)},
        "hot_key": lambda: {"hot_key": endurance.hot_key(minutes or 1)},
        "growth": lambda: {"growth": growth()},
        "scaled_out": lambda: {"scaled_out": scaled_out()},
        "first_decision": lambda: {"first_decision_s": first_decision()},
    }


def measure(
    only: list[str], runs: int, output: Path, console: Console, minutes: float | None = None
) -> dict[str, Any]:
    """Run the chosen measurements `runs` times each, print medians, write every run as JSON: so far, when one fails."""
    models.shipped_models("machines")
    known = plans(minutes)
    unknown = set(only) - set(known)
    if unknown:
        raise SetupFailed(f"--only: expected some of {sorted(known)}, came {sorted(unknown)}")
    found: dict[str, list[Any]] = {}
    try:
        for name, plan in known.items():
            if only and name not in only:
                continue
            for number in range(1, runs + 1):
                found.setdefault("cpu_probe_s", []).append(_probe_s())
                with console.status(f"{name}: run {number} of {runs}"):
                    for figure, value in plan().items():
                        found.setdefault(figure, []).append(value)
                told = {figure: _median(values[-1:]) for figure, values in found.items()}
                console.print(f"[dim]{name} {number}/{runs}: {told}[/dim]")
    finally:
        instance.stop(bench_home())
        result = _write(found, f"./flyball bench --runs {runs}" + "".join(f" --only {o}" for o in only)
                        + (f" --minutes {minutes:g}" if minutes else ""), output)  # fmt: skip
    _show(result, console)
    console.print(f"written: {output}")
    return result


def _write(found: dict[str, list[Any]], command: str, output: Path) -> dict[str, Any]:
    """The figures as JSON, with what they were measured by and on."""
    result = {
        "command": command,
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
    """Of numbers; of dicts by key, what is no number (a series, a name, nothing measured) left out: the runs have it."""
    if not isinstance(values[0], dict):
        return statistics.median(values)
    keys = [key for key in values[0] if all(isinstance(value[key], int | float) for value in values)]
    return {key: statistics.median(value[key] for value in values) for key in keys}


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
            parts = value if isinstance(value, dict) else {"": value}
            shown = ", ".join(f"{part} {_told(figure)}".strip() for part, figure in parts.items())
            table.add_row(what, target, shown)
    console.print(table)


def _told(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:,.1f}"
