"""Records a second through a job, and what a million subjects take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.bed import (
    bench_home,
    count_committed,
    load,
    policy_folder,
    prepared,
    topic_rate,
    wait_until,
)
from contracts.errors import JobFailed
from ops import cluster, flink_jobs, instance, kafka, policies, replay
from ops.home import Home, environment
from ops.submission import Submission

MANAGED_MIB = 2048
HOLDS_ON = """\
policy_id: open-subjects
version: 1
status: active
scope: {actions: [schedule_maintenance]}
when: confidence >= 0.0
verdict: allow
outcome_within_s: 2592000
reason: a benchmark of commands whose outcomes do not come
"""


def context_rate(count: int) -> float:
    """Facts a second through `context` alone, facts written ahead."""
    home = bench_home()
    prepared(home)
    load(home, "facts", count)
    Submission(home, "machines", ["context"]).go().wait()
    return topic_rate(home, "situations", count)


def govern_rate(count: int, files: list[Path] | None = None) -> float:
    """Proposals a second through `govern` alone (exactly once), proposals written ahead."""
    home = bench_home()
    bootstrap = prepared(home)
    publish(bootstrap, files or policies.policy_files("machines"))
    load(home, "proposals", count)
    Submission(home, "machines", ["govern"]).go().wait()
    return topic_rate(home, "decisions", count)


def publish(bootstrap: str, files: list[Path]) -> None:
    checked = policies.check_files("machines", files)
    policies.publish(bootstrap, "machines", checked, now_ms=int(time.time() * 1000))


def many_policies(home: Home) -> list[Path]:
    """50 active and 5 shadow policies, 10 and all 5 in the scope of what the bench proposes; one allows, with a limit."""
    texts = {}
    for number in range(55):
        action = "schedule_maintenance" if number < 10 or number >= 50 else "activate_cooling"
        allows = number == 0
        limits = "limits: [{max_count: 10, within_s: 86400}]\n" if allows else ""
        texts[f"p{number:02}"] = (
            f"policy_id: p{number}\nversion: 1\nstatus: {'active' if number < 50 else 'shadow'}\n"
            f"scope: {{actions: [{action}]}}\nverdict: {'allow' if allows else 'deny'}\nreason: a benchmark\n{limits}"
            f"when: confidence {'>=' if allows else '<'} 0.{number:02} && hops < {number + 5} && age_s < 3600.0\n"
        )
    return policy_folder(home, texts)


def govern_with_many_policies(count: int) -> dict[str, Any]:
    """`govern` with 50 active and 5 shadow policies; then a replay of what it decided."""
    home = bench_home()
    rate = govern_rate(count, many_policies(home))
    bootstrap = str(home.read_state()["bootstrap_servers"])
    time.sleep(2)  # the last transaction is committed by the next checkpoint
    flink_jobs.cancel(home, "machines")
    flink_jobs.wait_cancelled(home, "machines")
    rates = []
    for processes in (1, None):
        replayed = replay.run(bootstrap, "machines", processes=processes)
        if replayed.found.different or replayed.found.broken_chains:
            raise JobFailed(f"expected a replay without a difference, came {replayed.told()}")
        rates.append(replayed.found.decisions / replayed.seconds)
    return {"govern_50_policies_per_s": rate, "replay_decisions_per_s": rates[0], "replay_all_cores_per_s": rates[1]}


def open_subjects(count: int) -> dict[str, float]:
    """`count` subjects with a command in flight each: one proposal a subject through `govern` alone (exactly once).

    Its RocksDB has 2 GiB of managed memory: one TaskManager with one slot, because Flink divides managed
    memory evenly among slots. Proposals are written ahead. When all are decided, there are as many commands,
    and a checkpoint was completed after the last one: proposals a second (steady), the managed memory Flink
    says it has, the TaskManager's whole memory (PSS, Python's included), and the checkpoints on disk.
    """
    home = bench_home()
    flink = f"{{taskmanager.memory.managed.size: {MANAGED_MIB}mb, taskmanager.numberOfTaskSlots: 1}}"
    with environment(FLYBALL_FLINK=flink):
        bootstrap = prepared(home)
        publish(bootstrap, policy_folder(home, {"open-subjects": HOLDS_ON}))
        load(home, "proposals", count, machines=count)
        Submission(home, "machines", ["govern"]).go().wait()
        rate = topic_rate(home, "decisions", count, timeout_s=300 + count / 500)
        wait_for_checkpoint_of_all(home, bootstrap)
    for name in ("decisions", "commands"):
        if (found := count_committed(bootstrap, name)) != count:
            raise JobFailed(f"expected {count} {name}, a subject each, came {found}")
    hardware = cluster.get(flink_jobs.rest_port(home), "/taskmanagers")["taskmanagers"][0]["hardware"]
    checkpoints = cluster.folder(home) / "checkpoints" / "machines.govern"
    return {
        "subjects": count,
        "proposals_per_s": rate,
        "managed_mib": hardware["managedMemory"] / 2**20,
        "taskmanager_pss_mib": instance.memory_mib(home)["taskmanager-0"],
        "checkpoints_mib": sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file()) / 2**20,
    }


def wait_for_checkpoint_of_all(home: Home, bootstrap: str) -> None:
    """Until `govern` runs and has completed a checkpoint that holds every proposal, and one more."""
    lags = kafka.LagReader(bootstrap, "machines", ["govern"])
    try:
        wait_until(
            lambda: not lags.lags()["govern"], lambda: f"expected all decided, {lags.lags()['govern']} are not",
            timeout_s=300,
        )  # fmt: skip
        (before,) = flink_jobs.states(home, "machines")
        wait_until(
            lambda: flink_jobs.states(home, "machines")[0].checkpoints_completed > before.checkpoints_completed,
            lambda: "expected one more checkpoint, none was completed", timeout_s=60,
        )  # fmt: skip
        (after,) = flink_jobs.states(home, "machines")
        if after.state != "RUNNING" or after.restarts:
            raise JobFailed(f"expected govern RUNNING and never restarted, came {after}")
    finally:
        lags.close()
