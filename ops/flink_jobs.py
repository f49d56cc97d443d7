"""The jobs on the embedded cluster, asked over Flink's REST API: how they are, why they failed; and stopped.

Who submits them is ops/submission.py; what they keep on disk, ops/checkpoints.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from contracts.domain import load_domain
from contracts.errors import JobFailed
from jobs.settings import load_settings
from ops import cluster
from ops.home import Home
from udfs.agents.definition import LlmAgent, load_agents

JOBS = ("context", "propose", "reason", "govern")
SETTLED = ("FINISHED", "CANCELED", "FAILED")
_NO_SLOTS = (
    ". No slot is free: a job takes as many as its parallelism. More TaskManagers (FLYBALL_TASKMANAGERS), or more slots"
    " on each (FLYBALL_FLINK='{taskmanager.numberOfTaskSlots: 32}')"
)


@dataclass(frozen=True)
class JobState:
    """One job as Flink's REST API tells it."""

    job_id: str
    name: str
    state: str
    checkpoints_completed: int
    restarts: int
    last_checkpoint_ms: int | None
    last_checkpoint_path: str | None
    started_ms: int


def jobs_of(domain: str) -> tuple[str, ...]:
    """The jobs a domain runs: `reason` only where agents.yaml has agents that ask a language model."""
    agents = load_agents(load_settings(domain).agents_file, load_domain(domain))
    has_llm = any(isinstance(agent, LlmAgent) for agent in agents)
    return tuple(job for job in JOBS if job != "reason" or has_llm)


def last_cause(said: str) -> str:
    """The innermost cause in a Java or Python stack trace, with its line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "Traceback (most recent call last):" in said:
        python = said.rsplit("Traceback (most recent call last):", 1)[1].splitlines()
        ends = [n for n, line in enumerate(python) if line.strip() and not line.startswith((" ", "\t"))]
        if ends:
            place = next((line.strip() for line in reversed(python[: ends[0]]) if "File" in line), "")
            return f"{python[ends[0]].strip()} ({place})"[:1500]
    causes = [line for line in lines if line.startswith("Caused by:")]
    if causes:
        return causes[-1].removeprefix("Caused by:").strip()[:1500]
    told = [line for line in lines if not line.startswith(("at ", "File ", "..."))]
    return (told[-1] if told else "nothing was printed")[:1500]


def rest_port(home: Home) -> int:
    ports = home.read_state().get("ports")
    return int(ports["rest"]) if isinstance(ports, dict) else 0


def states(home: Home, domain: str | None = None) -> list[JobState]:
    """The newest job of each name, sorted. Raises httpx.HTTPError when the cluster does not answer."""
    port = rest_port(home)
    newest: dict[str, dict[str, Any]] = {}
    for job in cluster.get(port, "/jobs/overview")["jobs"]:
        if domain is not None and not job["name"].startswith(f"{domain}."):
            continue
        known = newest.get(job["name"])
        if known is None or job["start-time"] > known["start-time"]:
            newest[job["name"]] = job
    return [_state(port, newest[name]) for name in sorted(newest)]


def unfinished(home: Home, domain: str | None = None) -> dict[str, str]:
    """Job id -> name of every job that has not ended, also where several bear one name. Raises httpx.HTTPError."""
    return {
        job["jid"]: job["name"]
        for job in cluster.get(rest_port(home), "/jobs/overview")["jobs"]
        if job["state"] not in SETTLED and (domain is None or job["name"].startswith(f"{domain}."))
    }


def _state(port: int, job: dict[str, Any]) -> JobState:
    try:
        checkpoints = cluster.get(port, f"/jobs/{job['jid']}/checkpoints")
    except httpx.HTTPError:
        checkpoints = {}
    counts = checkpoints.get("counts") or {}
    latest = (checkpoints.get("latest") or {}).get("completed") or {}
    return JobState(
        job["jid"], job["name"], job["state"], int(counts.get("completed", 0)),
        max(0, int(counts.get("restored", 0))), latest.get("latest_ack_timestamp"),
        latest.get("external_path"), int(job["start-time"]),
    )  # fmt: skip


def root_cause(home: Home, job_id: str) -> str:
    """Why a job failed or restarts, innermost cause first, from Flink's REST API."""
    found = cluster.get(rest_port(home), f"/jobs/{job_id}/exceptions?maxExceptions=3")
    entries = (found.get("exceptionHistory") or {}).get("entries") or []
    if not entries:
        return "Flink gives no exception"
    # The newest entry of a given-up job is the giving up itself; the one before says why.
    traces = [entry["stacktrace"] for entry in entries]
    told = [t for t in traces if "Recovery is suppressed" not in t.splitlines()[0]] or traces
    return last_cause(told[0])


def restarts(home: Home, job_id: str) -> int:
    """How often the job was restarted as a whole, from its metrics."""
    try:
        found = cluster.get(rest_port(home), f"/jobs/{job_id}/metrics?get=numRestarts")
    except httpx.HTTPError:
        return 0
    return int(found[0]["value"]) if found else 0


@dataclass(frozen=True)
class Pressure:
    """How much of the last second's time the job's most loaded task worked, and its most held back one waited: 0 to 1.

    A task is back-pressured while those behind it take no more; the busiest task behind it is the bottleneck.
    """

    busy: float
    back_pressured: float


def pressure(home: Home, job_id: str) -> Pressure | None:
    """Of a running job, by Flink's own metrics; None while there are none."""
    port, found = rest_port(home), dict[str, float]()
    try:
        for vertex in cluster.get(port, f"/jobs/{job_id}")["vertices"]:
            names = "busyTimeMsPerSecond,backPressuredTimeMsPerSecond"
            path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics?get={names}&agg=max"
            for metric in cluster.get(port, path):
                if math.isfinite(value := float(metric["max"])):
                    found[metric["id"]] = max(value, found.get(metric["id"], 0.0))
    except httpx.HTTPError:
        return None
    if not found:
        return None
    busy, back_pressured = (
        min(1.0, found.get(name, 0.0) / 1000) for name in ("busyTimeMsPerSecond", "backPressuredTimeMsPerSecond")
    )
    return Pressure(round(busy, 2), round(back_pressured, 2))


def open_calls(home: Home, domain: str) -> int:
    """How many calls of language models wait or are in flight, by the operator's own metrics."""
    port = rest_port(home)
    found = 0
    for job in states(home, domain):
        if job.name != f"{domain}.reason":
            continue
        if job.state in ("CREATED", "INITIALIZING", "RESTARTING"):
            found += 1  # what it has in state, it cannot tell yet
        if job.state != "RUNNING":
            continue
        for vertex in cluster.get(port, f"/jobs/{job.job_id}")["vertices"]:
            path = f"/jobs/{job.job_id}/vertices/{vertex['id']}/subtasks/metrics"
            names = [m["id"] for m in cluster.get(port, path) if m["id"].endswith((".in_flight", ".waiting"))]
            if names:
                found += sum(int(m["sum"]) for m in cluster.get(port, f"{path}?get={','.join(names)}&agg=sum"))
    return found


def check(home: Home, domain: str, jobs: Iterable[str] | None = None) -> None:
    """Raises JobFailed with the root cause when a job of `domain` (of `jobs`) failed for good."""
    asked = None if jobs is None else {f"{domain}.{job}" for job in jobs}
    for job in states(home, domain):
        if (asked is None or job.name in asked) and job.state in ("FAILED", "FAILING"):
            raise JobFailed(f"job {job.name} failed: {root_cause(home, job.job_id)}")


def wait_running(
    home: Home, domain: str, jobs: Iterable[str] | None = None, *, timeout_s: float = 120
) -> None:
    """Until every task of every job runs. Raises JobFailed with the cause when one does not."""
    port, jobs = rest_port(home), tuple(jobs_of(domain) if jobs is None else jobs)
    wanted = {f"{domain}.{job}" for job in jobs}
    patience = 3  # restarts of a job that has not run yet: then say why instead of trying on
    deadline = time.monotonic() + timeout_s
    while True:
        check(home, domain, jobs)
        for job in states(home, domain):
            if job.name in wanted and job.state == "RESTARTING" and restarts(home, job.job_id) >= patience:
                raise JobFailed(f"job {job.name} keeps failing: {root_cause(home, job.job_id)}")
        running = {
            job.name
            for job in states(home, domain)
            if job.state == "RUNNING"
            and all(
                task["status"] == "RUNNING"
                for task in cluster.get(port, f"/jobs/{job.job_id}")["vertices"]
            )
        }
        if wanted <= running:
            return
        if time.monotonic() > deadline:
            late = [job for job in states(home, domain) if job.name in wanted - running]
            causes = "; ".join(f"{j.name} {j.state}: {root_cause(home, j.job_id)}" for j in late)
            hint = "" if cluster.get(port, "/overview")["slots-available"] else _NO_SLOTS
            raise JobFailed(f"expected {sorted(wanted)} to run within {timeout_s:.0f} s. {causes}{hint}")
        time.sleep(0.1)


def cancel(home: Home, domain: str | None = None, jobs: Iterable[str] | None = None) -> None:
    """Cancel the running jobs (of one domain); their last checkpoints are kept for --resume."""
    port = rest_port(home)
    wanted = None if jobs is None else {f"{domain}.{job}" for job in jobs}
    for job_id, name in unfinished(home, domain).items():
        if wanted is None or name in wanted:
            cluster.rest_client().patch(f"http://127.0.0.1:{port}/jobs/{job_id}?mode=cancel", timeout=10)


def wait_cancelled(home: Home, domain: str | None = None, *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while unfinished(home, domain):
        if time.monotonic() > deadline:
            raise JobFailed(f"expected the jobs to end within {timeout_s:.0f} s")
        time.sleep(0.1)
