"""`./flyball upgrade DOMAIN JOB`: stop with a savepoint, start the new version from it, go back if it does not come up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from contracts.errors import JobFailed, SetupFailed
from jobs.settings import load_settings
from ops import cluster, code_versions, flink_jobs, instance
from ops.code_versions import Code
from ops.flink_jobs import JobState
from ops.home import CHECKOUT, Home
from ops.submission import Submission, Wanted, want, wanted

# What these write a second time has the same ids, and `govern` drops it; `govern` itself would decide again, and
# `reason` ask again.
MAY_BEGIN_ANEW = ("context", "propose")
# A savepoint waits for what is on its way through the job.
STOP_PATIENCE_S = 120.0
_SETTLED = ("FINISHED", "CANCELED", "FAILED")


@dataclass
class Upgraded:
    """What was done. `seconds`: how long each step took; `stopped` is how long the job did not work.

    From the order to stop until every task runs again or, where what it writes shows with a checkpoint, until the first
    one is complete.
    """

    domain: str
    job: str
    before: str
    after: str
    outcome: str = "unchanged"
    savepoint: str = ""
    without_state: list[str] = field(default_factory=list)
    cause: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        return {**vars(self), "seconds": {name: round(took, 2) for name, took in self.seconds.items()}}


def upgrade(
    home: Home, domain: str, job: str, console: Console,
    *, checkout: Path = CHECKOUT, is_anew: bool = False, within_s: float = 120.0,
) -> Upgraded:  # fmt: skip
    """Run `job` on the code of `checkout` from where it stopped. Outcome: unchanged, upgraded or rolled_back.

    Nothing is stopped before the new version is planned and its state is known to fit. It has come up when every task
    runs and one checkpoint is complete, within `within_s`; otherwise the old version starts again, from the savepoint or
    whatever the new one has checkpointed since. `is_anew`: start without state, where that does no harm. Raises
    SetupFailed or JobFailed when nothing was stopped, and JobFailed when neither version came up.
    """
    load_settings(domain)
    with home.alone(f"upgrade-{domain}", patience_s=0):  # two would start a job twice, and forget each other's code
        return _upgrade(home, domain, job, console, checkout=checkout, is_anew=is_anew, within_s=within_s)


def _upgrade(
    home: Home, domain: str, job: str, console: Console, *, checkout: Path, is_anew: bool, within_s: float
) -> Upgraded:
    asked = _asked(home, domain, job)
    old, new = code_versions.named(home, asked.code[job]), code_versions.kept(home, checkout)
    done = Upgraded(domain, job, old.name, new.name)
    if is_anew and job not in MAY_BEGIN_ANEW:
        raise SetupFailed(f"--anew: expected one of {', '.join(MAY_BEGIN_ANEW)}; {job} would forget what it has decided")
    running = _of(home, domain, job)
    if new == old and not is_anew and running is not None and running.state == "RUNNING":
        return done
    with _timed(done, "planning", console, f"planning {job} as {new.name}"):
        client = _planning(home, domain, job, asked, new, running, is_anew=is_anew)
        try:
            done.without_state = client.wait_planned()
        except JobFailed as error:
            may_begin = f" Without state: './flyball upgrade {domain} {job} --anew'." if job in MAY_BEGIN_ANEW else ""
            raise JobFailed(f"{error} Nothing was stopped.{may_begin if 'StateRefused' in str(error) else ''}") from None
    want(home, domain, asked.options, {name: code for name, code in asked.code.items() if name != job})
    stopped_at = time.monotonic()
    try:
        with _timed(done, "stopping", console, f"stopping {job} with a savepoint"):
            done.savepoint = _stop(home, domain, job, running)
    except BaseException as error:
        client.cancel()
        done.cause = str(error)
        _wait_answers(home)
        if (still := _of(home, domain, job)) is None or still.state in _SETTLED:
            _go_back(home, domain, job, asked, old, done, console, within_s)
        want(home, domain, asked.options, asked.code)
        if isinstance(error, httpx.HTTPError):
            raise JobFailed(f"Flink did not answer while {job} was to be stopped: {error}; {old.name} runs") from None
        raise
    try:
        with _timed(done, "starting", console, f"starting {new.name}{'' if is_anew else ' from it'}"):
            client.go({} if is_anew else {job: done.savepoint}).wait()
            works_at = _wait_up(home, domain, job, within_s)
        done.outcome = "upgraded"
        want(home, domain, asked.options, {**asked.code, job: new.name})
    except BaseException as error:
        client.cancel()
        done.outcome, done.cause = "rolled_back", str(error)
        console.print(f"{new.name} did not come up: {error}", markup=False, highlight=False)
        works_at = _go_back(home, domain, job, asked, old, done, console, within_s)
        if not isinstance(error, JobFailed | httpx.HTTPError):
            raise
    done.seconds["stopped"] = works_at - stopped_at
    return done


def _asked(home: Home, domain: str, job: str) -> Wanted:
    """How the domain's jobs were submitted. Raises SetupFailed when `job` is not one of them."""
    if not instance.is_running(home):
        raise SetupFailed(f"nothing runs in {home.path}; './flyball up {domain}' starts it, with the code as it is now")
    asked = wanted(home).get(domain)
    if asked is None:
        raise SetupFailed(
            f"{domain} is not up, or its jobs were submitted by hand: then see 'Upgrading' in docs/operations.md"
        )
    if job in asked.code:
        return asked
    if job in flink_jobs.jobs_of(domain) and flink_jobs.latest_checkpoints(home, domain).get(job):
        # An upgrade of it was killed in between: what it ran then is not known, so there is one version only.
        return Wanted(asked.options, {**asked.code, job: code_versions.kept(home).name})
    raise SetupFailed(f"expected one of {', '.join(sorted(asked.code))}, came {job!r}")


def _of(home: Home, domain: str, job: str) -> JobState | None:
    return next((one for one in flink_jobs.states(home, domain) if one.name == f"{domain}.{job}"), None)


def _planning(
    home: Home, domain: str, job: str, asked: Wanted, code: Code, running: JobState | None, *, is_anew: bool
) -> Submission:
    options = [*asked.options, "--all"]
    if running is not None and not is_anew:
        options += ["--instead-of", running.job_id]
    return Submission(home, domain, [job], options=options, code=code)


def _stop(home: Home, domain: str, job: str, running: JobState | None) -> str:
    """Where the job's state is, once it has ended: a savepoint or, where it kept failing, its newest checkpoint.

    Raises JobFailed.
    """
    if running is not None and running.state == "RUNNING":
        try:
            return _savepoint(home, domain, job, running)
        except JobFailed:
            found = _of(home, domain, job)
            if found is None or found.state == "RUNNING":
                raise  # it runs on
    flink_jobs.cancel(home, domain, [job])
    _wait_settled(home, domain, job)
    newest = flink_jobs.latest_checkpoints(home, domain).get(job)
    if newest is None:
        raise JobFailed(f"{domain}.{job} did not run, and left no state to start from")
    return newest


def _savepoint(home: Home, domain: str, job: str, running: JobState) -> str:
    """The path of the savepoint the job was stopped with. Raises JobFailed."""
    port = flink_jobs.rest_port(home)
    target = flink_jobs.checkpoints_folder(home, domain, job) / "savepoints" / running.job_id
    answer = httpx.post(
        f"http://127.0.0.1:{port}/jobs/{running.job_id}/stop", timeout=30,
        json={"targetDirectory": target.as_uri(), "drain": False, "formatType": "NATIVE"},
    )  # fmt: skip
    if answer.is_error:
        raise JobFailed(f"{domain}.{job} could not be stopped: {answer.text[:500]}")
    trigger = answer.json()["request-id"]
    deadline = time.monotonic() + STOP_PATIENCE_S
    while time.monotonic() < deadline:
        found = cluster.get(port, f"/jobs/{running.job_id}/savepoints/{trigger}")
        if found["status"]["id"] == "COMPLETED":
            made = found["operation"]
            if "location" not in made:
                cause = flink_jobs.last_cause(str(made.get("failure-cause", {}).get("stack-trace", made)))
                raise JobFailed(f"the savepoint of {domain}.{job} failed: {cause}")
            return str(made["location"])
        time.sleep(0.05)
    raise JobFailed(f"expected a savepoint of {domain}.{job} within {STOP_PATIENCE_S:.0f} s, came none")


def _wait_up(home: Home, domain: str, job: str, within_s: float) -> float:
    """Until every task runs and a checkpoint is complete; since when what it does shows (see `Upgraded`).

    Raises JobFailed with the root cause.
    """
    deadline = time.monotonic() + within_s
    flink_jobs.wait_running(home, domain, [job], timeout_s=within_s)
    runs_at = time.monotonic()
    is_transactional = job == "govern" and load_settings(domain).delivery == "exactly_once"
    while True:
        found = _of(home, domain, job)
        if found is not None and found.state == "RUNNING" and found.checkpoints_completed:
            return time.monotonic() if is_transactional else runs_at
        if found is not None and found.state == "FAILED":
            raise JobFailed(f"{found.name} failed: {flink_jobs.root_cause(home, found.job_id)}")
        if time.monotonic() > deadline:
            cause = "" if found is None else f": {found.state}, {flink_jobs.root_cause(home, found.job_id)}"
            raise JobFailed(f"expected a first checkpoint of {domain}.{job} within {within_s:.0f} s{cause}")
        time.sleep(0.05)


def _go_back(
    home: Home, domain: str, job: str, asked: Wanted, old: Code, done: Upgraded, console: Console, within_s: float
) -> float:
    """The old version runs again; since when. Raises JobFailed, with both causes, when it does not."""
    try:
        with _timed(done, "going_back", console, f"going back to {old.name}"):
            _wait_answers(home)
            flink_jobs.cancel(home, domain, [job])
            _wait_settled(home, domain, job)
            # Where the new version completed a checkpoint decisions are written: never start from before it.
            newest = flink_jobs.latest_checkpoints(home, domain)[job]
            state = (done.savepoint or newest) if job in MAY_BEGIN_ANEW else newest
            Submission(home, domain, [job], options=asked.options, code=old, resume_from={job: state}).go().wait()
            works_at = _wait_up(home, domain, job, within_s)
    except (JobFailed, httpx.HTTPError) as error:
        raise JobFailed(
            f"{done.cause}; and {old.name} did not start again: {error}. {domain}.{job} is stopped; its newest state is kept:"
            f" correct the code, and './flyball upgrade {domain} {job}' goes on from it"
        ) from None
    want(home, domain, asked.options, asked.code)
    return works_at


def _wait_answers(home: Home) -> None:
    """A JobManager that died is brought back by the supervisor, without this job."""
    deadline = time.monotonic() + STOP_PATIENCE_S
    while not cluster.answers(flink_jobs.rest_port(home)):
        if time.monotonic() > deadline:
            raise JobFailed(f"Flink does not answer; './flyball status' tells why. Logs: {home.logs}")
        time.sleep(0.2)


def _wait_settled(home: Home, domain: str, job: str) -> None:
    deadline = time.monotonic() + 60
    while (found := _of(home, domain, job)) is not None and found.state not in _SETTLED:
        if time.monotonic() > deadline:
            raise JobFailed(f"{domain}.{job} is {found.state} and does not end")
        time.sleep(0.1)


@contextmanager
def _timed(done: Upgraded, step: str, console: Console, told: str) -> Iterator[None]:
    """Tells the step while it goes on, and how long it took."""
    began = time.monotonic()
    try:
        with console.status(told):
            yield
    finally:
        done.seconds[step] = time.monotonic() - began
    console.print(f"{told}: {done.seconds[step]:.1f} s", markup=False, highlight=False)
