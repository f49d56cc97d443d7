"""Jobs submitted to the embedded cluster: planned by a client, or once more as they were planned; and which are to run.

Which jobs of a domain are to run, from which version of the code, is a file of the instance's home: who starts after
a crash submits the same again, each from its newest complete checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from contracts.errors import JobFailed
from jobs.settings import LATEST
from ops import cluster, code_versions
from ops.checkpoints import checkpoints_folder, forget_others, latest_checkpoints, plans_folder
from ops.class_data import ClassData
from ops.code_versions import Code
from ops.flink_jobs import jobs_of, last_cause, rest_port
from ops.home import CHECKOUT, Home
from ops.setup import java_home
from ops.submit import PLANNED

SUBMIT_PATIENCE_S = 180.0


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
        *, options: Iterable[str] = (), resume_from: Mapping[str, str] | None = None, code: Code | None = None,
    ) -> None:  # fmt: skip
        self._log = home.logs / (f"submit-{domain}.out" if jobs is None else f"submit-{domain}.{'-'.join(jobs := tuple(jobs))}.out")
        jobs = jobs_of(domain) if jobs is None else tuple(jobs)
        code = code or code_versions.kept(home)
        self._home, self._domain = home, domain
        self._name = f"{domain}: {', '.join(jobs)}"
        self._states = dict(resume_from or {})
        command = [sys.executable, "-m", f"{code.name}.ops.submit", "--domain", domain, *jobs, *options]
        if self._states:
            command += ["--resume-from", json.dumps(self._states)]
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
        """Broker, topics and cluster are there: submit as soon as planned. `states`: job -> what it starts from.

        Older state of these jobs is deleted.
        """
        assert self._client.stdin is not None
        for job, state in {**self._states, **(states or {})}.items():
            forget_older(self._home, self._domain, job, state)
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
            kept = [path for path in plans_folder(home, domain, job).glob("*") if path.suffix != ".new"]
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
        state = _link_latest(self._home, self._domain, job)
        before, new = bytes.fromhex(plan.name), os.urandom(16)
        content = plan.read_bytes()
        if content.count(before) != 1:
            raise JobFailed(f"{plan}: expected the job id {plan.name} in it once, came {content.count(before)} times")
        answer = cluster.rest_client().post(
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
        forget_older(self._home, self._domain, job, state)
        noted = checkpoints_folder(self._home, self._domain, job) / "operators" / f"{plan.name}.json"
        if noted.exists():  # what its operators mean, for whoever starts from its checkpoints
            shutil.copy(noted, noted.with_stem(new.hex()))
        return new.hex()


def _link_latest(home: Home, domain: str, job: str) -> str:
    """Point the link that the kept plan of a job goes on from at its newest complete checkpoint, whose path this gives."""
    state = latest_checkpoints(home, domain)[job]
    link = cluster.folder(home) / "checkpoints" / f"{domain}.{job}" / LATEST
    staged = link.with_suffix(".new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(Path(state.removeprefix("file://")))
    staged.replace(link)
    return state


def forget_older(home: Home, domain: str, job: str, state: str) -> None:
    """Delete what a job that starts from `state` needs no more. What cannot be deleted now goes the next time."""
    with contextlib.suppress(httpx.HTTPError, OSError):
        forget_others(home, domain, job, state)


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
