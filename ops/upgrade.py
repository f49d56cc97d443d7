"""`./flyball upgrade DOMAIN JOB`: stop with a savepoint, start the new version from it, go back if it does not come up."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from contracts.errors import JobFailed, SetupFailed
from jobs.settings import load_settings
from ops import cluster, code_versions, flink_jobs, instance
from ops.checkpoints import checkpoints_folder, forget_others, latest_checkpoints, leave_behind, plans_folder
from ops.code_versions import Code
from ops.flink_jobs import SETTLED, JobState
from ops.home import CHECKOUT, Home
from ops.submission import Submission, Wanted, want, wanted

# What these write a second time has the same ids, and `govern` drops it; `govern` itself would decide again, and
# `reason` ask again.
MAY_BEGIN_ANEW = ("context", "propose")
# A savepoint waits for what is on its way through the job.
STOP_PATIENCE_S = 120.0


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
    whatever the new one has checkpointed since. `is_anew`: start without state, where that does no harm; so does a job
    that never completed a checkpoint. Raises SetupFailed or JobFailed when nothing was stopped, and JobFailed when neither
    version came up.
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
    running = _found(home, domain, job)
    is_noted = job in wanted(home)[domain].code
    if new == old and not is_anew and is_noted and running is not None and running.state == "RUNNING":
        return done
    before = _Before(home, domain, job, asked, old, running)
    with _timed(done, "planning", console, f"planning {job} as {new.name}"):
        client = _planning(before, new, is_anew=is_anew)
        try:
            done.without_state = client.wait_planned()
        except JobFailed as error:
            may_begin = f" Without state: './flyball upgrade {domain} {job} --anew'." if job in MAY_BEGIN_ANEW else ""
            raise JobFailed(f"{error} Nothing was stopped.{may_begin if 'StateRefused' in str(error) else ''}") from None
    want(home, domain, asked.options, {name: code for name, code in asked.code.items() if name != job})
    try:
        _change_over(before, new, client, done, console, is_anew=is_anew, within_s=within_s)
    finally:
        # However it ended: a job that is stopped now is missing then, and the next upgrade knows what it ran.
        runs = new if done.outcome == "upgraded" else old
        want(home, domain, asked.options, {**asked.code, job: runs.name})
    return done


@dataclass(frozen=True)
class _Before:
    """The job as it was found: how it was submitted, which version it ran, how it was (None: Flink did not know it)."""

    home: Home
    domain: str
    job: str
    asked: Wanted
    code: Code
    running: JobState | None

    @property
    def is_running(self) -> bool:
        return self.running is not None and self.running.state == "RUNNING"

    def newest(self) -> str:
        """Path of its newest state on disk; "" if it never completed a checkpoint.

        Raises JobFailed when its state is gone and it must not begin anew.
        """
        found = latest_checkpoints(self.home, self.domain).get(self.job, "")
        had_state = self.running is not None and (self.running.checkpoints_completed or self.running.restarts)
        if had_state and not found and self.job not in MAY_BEGIN_ANEW:
            folder = checkpoints_folder(self.home, self.domain, self.job)
            raise JobFailed(f"{self.domain}.{self.job} had state; expected its newest checkpoint in {folder}, found none")
        return found


def _change_over(
    before: _Before, new: Code, client: Submission, done: Upgraded, console: Console, *, is_anew: bool, within_s: float
) -> None:
    """Stop the one version, start the other; or the one again, with `done.outcome` rolled_back."""
    home, domain, job = before.home, before.domain, before.job
    stopped_at = time.monotonic()
    try:
        with _timed(done, "stopping", console, f"stopping {job} with a savepoint"):
            done.savepoint = _stop(before)
    except BaseException as error:
        client.cancel()
        done.cause = str(error) or type(error).__name__
        try:
            _wait_answers(home)
            if (still := _of(home, domain, job)) is None or still.state != "RUNNING":
                _go_back(before, None, done, console, within_s)
        except httpx.HTTPError as again:
            raise JobFailed(f"{done.cause}; and Flink does not answer: {again}. './flyball status' tells how {job} is") from None
        if isinstance(error, httpx.HTTPError):
            raise JobFailed(f"Flink did not answer while {job} was to be stopped: {error}; {before.code.name} runs") from None
        raise
    try:
        with _timed(done, "starting", console, f"starting {new.name}{' from it' if done.savepoint and not is_anew else ''}"):
            if is_anew:
                leave_behind(home, domain, job)
            client.go({job: done.savepoint} if done.savepoint and not is_anew else {}).wait()
            works_at = _wait_up(home, domain, job, within_s)
        done.outcome = "upgraded"
    except BaseException as error:
        client.cancel()
        done.outcome, done.cause = "rolled_back", str(error) or type(error).__name__
        console.print(f"{new.name} did not come up: {done.cause}", markup=False, highlight=False)
        # Where the new version of another job completed a checkpoint, decisions are written: never start from before it.
        works_at = _go_back(before, done.savepoint if job in MAY_BEGIN_ANEW else None, done, console, within_s)
        if not isinstance(error, JobFailed | httpx.HTTPError):
            raise
    done.seconds["stopped"] = works_at - stopped_at
    if is_anew and done.outcome == "upgraded":
        with suppress(httpx.HTTPError, OSError):  # it counts no more; the next start deletes it
            forget_others(home, domain, job)


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
    submitted = checkpoints_folder(home, domain, job) / "operators"
    if job in flink_jobs.jobs_of(domain) and any(submitted.glob("*.json")):
        # An upgrade of it was killed in between: what it ran then is not known, so there is one version only.
        return Wanted(asked.options, {**asked.code, job: code_versions.kept(home).name})
    raise SetupFailed(f"expected one of {', '.join(sorted(asked.code))}, came {job!r}")


def _found(home: Home, domain: str, job: str) -> JobState | None:
    """The job before anything is done. Raises SetupFailed while Flink starts again: the supervisor submits its jobs then."""
    try:
        if flink_jobs.states(home, domain):
            return _of(home, domain, job)
        cause = f"has no job of {domain} yet"
    except httpx.HTTPError as error:
        cause = f"does not answer ({error})"
    raise SetupFailed(
        f"Flink {cause}, so nothing was stopped. It may be starting again: './flyball status' tells when the jobs run; then try again"
    )


def _of(home: Home, domain: str, job: str) -> JobState | None:
    return next((one for one in flink_jobs.states(home, domain) if one.name == f"{domain}.{job}"), None)


def _planning(before: _Before, code: Code, *, is_anew: bool) -> Submission:
    options = [*before.asked.options, "--all"]
    if before.running is not None and not is_anew and (before.is_running or before.newest()):
        options += ["--instead-of", before.running.job_id]
    return Submission(before.home, before.domain, [before.job], options=options, code=code)


def _stop(before: _Before) -> str:
    """Where the job's state is, once it has ended: a savepoint or, where it kept failing, its newest checkpoint, if any.

    Raises JobFailed.
    """
    home, domain, job = before.home, before.domain, before.job
    if before.running is not None and before.is_running:
        try:
            return _savepoint(home, before.running, checkpoints_folder(home, domain, job))
        except JobFailed:
            found = _of(home, domain, job)
            if found is None or found.state == "RUNNING":
                raise  # it runs on
    flink_jobs.cancel(home, domain, [job])
    _wait_settled(home, domain, job)
    return before.newest()


def _savepoint(home: Home, running: JobState, folder: Path) -> str:
    """The path of the savepoint the job was stopped with. Raises JobFailed.

    What Flink has accepted it completes, and then the job has ended. So this ends when Flink has, after an interrupt too.
    """
    trigger = os.urandom(16).hex()  # ours, so that the order can be asked for even when its answer was lost
    try:
        with suppress(httpx.TransportError):  # accepted or not, that is what is asked next
            answer = cluster.rest_client().post(
                f"http://127.0.0.1:{flink_jobs.rest_port(home)}/jobs/{running.job_id}/stop", timeout=30,
                json={"targetDirectory": (folder / "savepoints" / running.job_id).as_uri(), "drain": False,
                      "formatType": "NATIVE", "triggerId": trigger},
            )  # fmt: skip
            if answer.is_error:
                raise JobFailed(f"{running.name} could not be stopped: {answer.text[:500]}")
        return _made(home, running, trigger)
    except KeyboardInterrupt:
        with suppress(JobFailed):
            _made(home, running, trigger)
        raise


def _made(home: Home, running: JobState, trigger: str) -> str:
    """The path of the savepoint that was ordered. Raises JobFailed when there is none, and then none will be."""
    port, path = flink_jobs.rest_port(home), f"/jobs/{running.job_id}/savepoints/{trigger}"
    deadline = time.monotonic() + STOP_PATIENCE_S
    while time.monotonic() < deadline:
        try:
            found = cluster.get(port, path)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 404:
                raise JobFailed(f"Flink knows of no order to stop {running.name}; did the JobManager die?") from None
            found = {"status": {"id": "IN_PROGRESS"}}  # busy, or on its way back: the next answer tells
        if found["status"]["id"] != "IN_PROGRESS":
            made = found.get("operation") or {}
            if "location" not in made:
                cause = flink_jobs.last_cause(str(made.get("failure-cause", {}).get("stack-trace", made)))
                raise JobFailed(f"the savepoint of {running.name} failed: {cause}")
            return str(made["location"])
        time.sleep(0.05)
    domain, job = running.name.split(".")
    flink_jobs.cancel(home, domain, [job])  # or it would end some time later, with nobody there to start it again
    _wait_settled(home, domain, job)
    raise JobFailed(f"expected a savepoint of {running.name} within {STOP_PATIENCE_S:.0f} s, came none")


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


def _go_back(before: _Before, state: str | None, done: Upgraded, console: Console, within_s: float) -> float:
    """The old version runs again, from `state` ("": from none; None: from the newest); since when.

    Raises JobFailed, with both causes, when it does not.
    """
    home, domain, job, old = before.home, before.domain, before.job, before.code
    try:
        with _timed(done, "going_back", console, f"going back to {old.name}"):
            _wait_answers(home)
            flink_jobs.cancel(home, domain, [job])
            _wait_settled(home, domain, job)
            state = before.newest() if state is None else state
            # Before it starts: its next checkpoints have the ids of those that the new version completed.
            forget_others(home, domain, job, state)
            shutil.rmtree(plans_folder(home, domain, job), ignore_errors=True)  # may be the new version's
            resume = {job: state} if state else None
            Submission(home, domain, [job], options=before.asked.options, code=old, resume_from=resume).go().wait()
            return _wait_up(home, domain, job, within_s)
    except (JobFailed, httpx.HTTPError, OSError) as error:
        is_kept = latest_checkpoints(home, domain).get(job) is not None
        raise JobFailed(
            f"{done.cause}; and {old.name} did not start again: {error}. {domain}.{job} does not run;"
            f" {'its newest state is kept' if is_kept else 'it has no state yet'}: correct the code, and"
            f" './flyball upgrade {domain} {job}' goes on from {'it' if is_kept else 'there'}"
        ) from None


def _wait_answers(home: Home) -> None:
    """A JobManager that died is brought back by the supervisor, without this job."""
    deadline = time.monotonic() + STOP_PATIENCE_S
    while not cluster.answers(flink_jobs.rest_port(home)):
        if time.monotonic() > deadline:
            raise JobFailed(f"Flink does not answer; './flyball status' tells why. Logs: {home.logs}")
        time.sleep(0.2)


def _wait_settled(home: Home, domain: str, job: str) -> None:
    deadline = time.monotonic() + 60
    while (found := _of(home, domain, job)) is not None and found.state not in SETTLED:
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
