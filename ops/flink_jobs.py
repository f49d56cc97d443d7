"""The jobs on the embedded cluster: submit, watch, explain, cancel."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from contracts.domain import load_domain
from contracts.errors import JobFailed
from jobs.settings import LATEST, load_settings
from ops import cluster, code_versions
from ops.class_data import ClassData
from ops.code_versions import Code
from ops.home import CHECKOUT, Home
from ops.setup import java_home
from ops.submit import PLANNED
from udfs.agents.definition import LlmAgent, load_agents

JOBS = ("context", "propose", "reason", "govern")
SUBMIT_PATIENCE_S = 180.0
_NO_SLOTS = (
    ". No slot is free: a job takes as many as its parallelism. More TaskManagers (FLYBALL_TASKMANAGERS), or more slots"
    " on each (FLYBALL_FLINK='{taskmanager.numberOfTaskSlots: 16}')"
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


def client_environment(home: Home) -> dict[str, str]:
    """The environment of a process that submits a job to the running instance of `home`."""
    state = home.read_state()
    return {
        **os.environ,
        **cluster.environment(home, java_home()),
        # A client plans one job and ends: the optimising compiler would cost more than it gives.
        "JVM_ARGS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto",
        **home.broker_environment(),
        "FLYBALL_REST": str(state["rest_url"]).removeprefix("http://"),
        "FLYBALL_BOOTSTRAP_SERVERS": str(state["bootstrap_servers"]),
        "FLYBALL_CHECKPOINTS": (cluster.folder(home) / "checkpoints").as_uri(),
        "FLYBALL_PLANS": str(cluster.folder(home) / "plans"),
    }


class Submission:
    """The client that submits jobs of a domain (ops/submit.py), started at once.

    It plans while broker and cluster may still be starting; `go` lets it submit, `wait` gives the
    job ids or raises with what it said. The jobs run `code`, by default the checkout as it is now.
    """

    def __init__(
        self, home: Home, domain: str, jobs: Iterable[str] | None = None,
        *, options: Iterable[str] = (), resume_from: dict[str, str] | None = None, code: Code | None = None,
    ) -> None:  # fmt: skip
        self._log = home.logs / (f"submit-{domain}.out" if jobs is None else f"submit-{domain}.{'-'.join(jobs := tuple(jobs))}.out")
        jobs = jobs_of(domain) if jobs is None else tuple(jobs)
        code = code or code_versions.kept(home)
        self._name = f"{domain}: {', '.join(jobs)}"
        command = [sys.executable, "-m", f"{code.name}.ops.submit", "--domain", domain, *jobs, *options]
        if resume_from:
            command += ["--resume-from", json.dumps(resume_from)]
        environment = client_environment(home)
        environment["JVM_ARGS"] += " " + " ".join(ClassData.of("client", java_home()).options())
        with self._log.open("wb") as out:
            self._client = subprocess.Popen(
                command, env=environment, cwd=CHECKOUT,
                stdin=subprocess.PIPE, stdout=out, stderr=out,
            )  # fmt: skip

    def is_going_on(self) -> bool:
        return self._client.poll() is None

    def wait_planned(self) -> list[str]:
        """With the option --all: what would begin without state, once everything is planned; JobFailed as `wait`."""
        deadline = time.monotonic() + SUBMIT_PATIENCE_S
        while time.monotonic() < deadline:
            has_ended = not self.is_going_on()
            said = self._log.read_text(errors="replace").splitlines()
            for line in said:
                if line.startswith(PLANNED):
                    found: list[str] = json.loads(line.removeprefix(PLANNED))
                    return found
            if has_ended:
                break
            time.sleep(0.1)
        self.cancel()
        raise JobFailed(f"planning {self._name} failed: {last_cause(self._log.read_text(errors='replace'))}")

    def go(self, states: Mapping[str, str] | None = None) -> Submission:
        """Broker, topics and cluster are there: submit as soon as planned. `states`: job -> what it starts from."""
        assert self._client.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._client.stdin.write((json.dumps(states) if states else "go").encode() + b"\n")
            self._client.stdin.close()
        return self

    def cancel(self) -> None:
        self._client.kill()
        self._client.wait()

    def wait(self) -> dict[str, str]:
        """Job name -> job id, once all are submitted. Raises JobFailed with the cause."""
        try:
            code = self._client.wait(SUBMIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.cancel()
            raise JobFailed(
                f"submitting {self._name} took over {SUBMIT_PATIENCE_S:.0f} s; see {self._log}"
            ) from None
        said = self._log.read_text(errors="replace")
        if code:
            raise JobFailed(f"submitting {self._name} failed: {last_cause(said)}")
        ids: dict[str, str] = json.loads(said.strip().splitlines()[-1])
        return ids


class Resubmission:
    """The jobs of a domain that are to run, submitted once more as they were planned (jobs/environment.py keeps the plans).

    Each goes on from its newest complete checkpoint under a new job id. No client plans anything, which on busy cores
    takes most of the time of a `Submission`. Raises FileNotFoundError when a job has no plan or no checkpoint.
    """

    def __init__(self, home: Home, domain: str) -> None:
        self._home = home
        self._domain = domain
        self._plans: dict[str, Path] = {}
        checkpoints = latest_checkpoints(home, domain)
        for job in wanted(home)[domain].code:
            folder = cluster.folder(home) / "plans" / f"{domain}.{job}"
            kept = [path for path in folder.glob("*") if path.suffix != ".new"]
            if not kept or job not in checkpoints:
                raise FileNotFoundError(f"no plan or no checkpoint of {domain}.{job}")
            self._plans[job] = kept[0]
        self._doing: dict[str, Future[str]] = {}
        self._pool = ThreadPoolExecutor(len(self._plans))

    def is_going_on(self) -> bool:
        return not self._doing or not all(doing.done() for doing in self._doing.values())

    def go(self) -> Resubmission:
        """The cluster is there: submit."""
        self._doing = {job: self._pool.submit(self._submit, job, plan) for job, plan in self._plans.items()}
        self._pool.shutdown(wait=False)
        return self

    def cancel(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> dict[str, str]:
        """Job name -> job id, once all are submitted. Raises JobFailed with the cause."""
        try:
            return {job: doing.result(SUBMIT_PATIENCE_S) for job, doing in self._doing.items()}
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise JobFailed(f"submitting the jobs of {self._domain} again failed: {error}") from error

    def _submit(self, job: str, plan: Path) -> str:
        _link_latest(self._home, self._domain, job)
        before, new = bytes.fromhex(plan.name), os.urandom(16)
        content = plan.read_bytes()
        if content.count(before) != 1:
            raise JobFailed(f"{plan}: expected the job id {plan.name} in it once, came {content.count(before)} times")
        answer = httpx.post(
            f"http://127.0.0.1:{rest_port(self._home)}/v1/jobs",
            files={
                "request": (None, json.dumps({"executionPlanFileName": "plan", "jobJarFileNames": [],
                                              "jobArtifactFileNames": []}), "application/json"),
                "file_0": ("plan", content.replace(before, new), "application/octet-stream"),
            },
            timeout=60,
        )  # fmt: skip
        if answer.is_error:
            raise JobFailed(f"{self._domain}.{job} was not taken again: {last_cause(answer.text)}")
        noted = checkpoints_folder(self._home, self._domain, job) / "operators" / f"{plan.name}.json"
        if noted.exists():  # what its operators mean, for whoever starts from its checkpoints
            shutil.copy(noted, noted.with_stem(new.hex()))
        return new.hex()


def _link_latest(home: Home, domain: str, job: str) -> None:
    """Point the link that the kept plan of a job goes on from at its newest complete checkpoint."""
    target = Path(latest_checkpoints(home, domain)[job].removeprefix("file://"))
    link = cluster.folder(home) / "checkpoints" / f"{domain}.{job}" / LATEST
    staged = link.with_suffix(".new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(target)
    staged.replace(link)


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


@dataclass(frozen=True)
class Wanted:
    """The jobs of a domain that are to run: options they are submitted with, and job -> name of its code's version."""

    options: list[str]
    code: dict[str, str]


def want(home: Home, domain: str, options: Iterable[str], code: Mapping[str, str] | None = None) -> None:
    """Note that this domain's jobs are to run: the supervisor submits them again if they get lost.

    `code`: job -> version; by default all jobs, as the checkout is now.
    """
    if code is None:
        code = dict.fromkeys(jobs_of(domain), code_versions.kept(home).name)
    folder = home.run / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"{domain}.new"
    staged.write_text(json.dumps({"options": list(options), "code": dict(code)}))
    staged.replace(folder / f"{domain}.json")


def wanted(home: Home) -> dict[str, Wanted]:
    """Every domain that is up, with its jobs."""
    return {path.stem: Wanted(**json.loads(path.read_text())) for path in (home.run / "jobs").glob("*.json")}


def submit_lost(home: Home, domain: str) -> list[Submission]:
    """Clients for the jobs of `domain` that are to run, each from its newest state, one client a version of the code."""
    asked, states = wanted(home)[domain], latest_checkpoints(home, domain)
    clients = []
    for version in sorted(set(asked.code.values())):
        jobs = [job for job, name in asked.code.items() if name == version]
        clients.append(
            Submission(
                home, domain, jobs, options=asked.options, code=code_versions.named(home, version),
                resume_from={job: states[job] for job in jobs if job in states},
            )
        )  # fmt: skip
    return clients


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
    for job in states(home, domain):
        if wanted is not None and job.name not in wanted:
            continue
        if job.state not in ("CANCELED", "FINISHED", "FAILED"):
            httpx.patch(f"http://127.0.0.1:{port}/jobs/{job.job_id}?mode=cancel", timeout=10)


def wait_cancelled(home: Home, domain: str | None = None, *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while any(j.state in ("RUNNING", "CANCELLING", "CREATED", "RESTARTING") for j in states(home, domain)):
        if time.monotonic() > deadline:
            raise JobFailed(f"expected the jobs to end within {timeout_s:.0f} s")
        time.sleep(0.1)


def checkpoints_folder(home: Home, domain: str, job: str) -> Path:
    """A job's checkpoints, `<job id>/chk-<number>`, and its savepoints, `savepoints/<job id>/savepoint-...`."""
    return cluster.folder(home) / "checkpoints" / f"{domain}.{job}"


def latest_checkpoints(home: Home, domain: str) -> dict[str, str]:
    """Job -> path of its newest complete checkpoint or savepoint on disk, for `--resume`."""
    found: dict[str, str] = {}
    for job in JOBS:
        folder = checkpoints_folder(home, domain, job)
        done = sorted(
            [*folder.glob("*/chk-*/_metadata"), *folder.glob("savepoints/*/savepoint-*/_metadata")],
            key=lambda path: path.stat().st_mtime,
        )
        if done:
            found[job] = done[-1].parent.as_uri()
    return found
