"""How an upgrade ends when something goes wrong: a job is never off unnoticed, and its state is never the wrong one.

Flink and the client that submits are stand-ins; with the real ones: tests/flink/test_upgrade.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from contracts.errors import JobFailed, SetupFailed
from ops import upgrade
from ops.checkpoints import checkpoint_id, checkpoints_folder, latest_checkpoints
from ops.code_versions import Code
from ops.home import Home
from ops.submission import want, wanted
from tests.flink_stand_in import Flink, flink, write_state

DOMAIN = "machines"
OLD, NEW = "flyball_old", "flyball_new"


class Client:
    """Stands in for the client that submits a job: what it is told to start runs in the stand-in for Flink."""

    flink: Flink
    broken: dict[str, int] = {}  # version that fails -> how many checkpoints it completes before
    started: list[tuple[str, str]] = []  # version, name of the state it started from

    def __init__(
        self, home: Home, domain: str, jobs: Iterable[str],
        *, options: Iterable[str] = (), resume_from: Mapping[str, str] | None = None, code: Code,
    ) -> None:  # fmt: skip
        self._home, self._code, self._states = home, code, dict(resume_from or {})
        (self._job,) = jobs

    def wait_planned(self) -> list[str]:
        return []

    def go(self, states: Mapping[str, str] | None = None) -> Client:
        self._states |= states or {}
        return self

    def wait(self) -> dict[str, str]:
        state = self._states.get(self._job)
        number = checkpoint_id(Path(state.removeprefix("file:")) / "_metadata") if state else 0
        self.started.append((self._code.name, state.rsplit("/", 1)[-1] if state else ""))
        fails, completed = self._code.name in self.broken, self.broken.get(self._code.name, 1)
        new = self.flink.start(f"{DOMAIN}.{self._job}", "FAILED" if fails else "RUNNING", completed)
        for n in range(number + 1, number + completed + 1):
            write_state(checkpoints_folder(self._home, DOMAIN, self._job) / new / f"chk-{n}", n)
        return {self._job: new}

    def cancel(self) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def cluster(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flink]:
    monkeypatch.setattr(upgrade.instance, "is_running", lambda _: True)
    monkeypatch.setattr(upgrade.code_versions, "named", lambda home, name: Code(name, home.path / name))
    monkeypatch.setattr(upgrade.code_versions, "kept", lambda home, *_: Code(NEW, home.path / NEW))
    monkeypatch.setattr(upgrade, "Submission", Client)
    want(home, DOMAIN, [], dict.fromkeys(("context", "propose", "govern"), OLD))
    with flink(home) as stand_in:
        Client.flink, Client.broken, Client.started = stand_in, {}, []
        yield stand_in


def run(home: Home, job: str = "govern", *, is_anew: bool = False) -> upgrade.Upgraded:
    return upgrade.upgrade(home, DOMAIN, job, Console(quiet=True), is_anew=is_anew, within_s=2)


def started(cluster: Flink, home: Home, job: str = "govern", state: str = "RUNNING", checkpoints: int = 1) -> str:
    """A job on the old version, its checkpoints numbered from 1."""
    new = cluster.start(f"{DOMAIN}.{job}", state, completed=checkpoints)
    for number in range(1, checkpoints + 1):
        write_state(checkpoints_folder(home, DOMAIN, job) / new / f"chk-{number}", number)
    return new


def runs_as(home: Home, job: str = "govern") -> str:
    """The version it is noted with, among the jobs that are to run."""
    return wanted(home)[DOMAIN].code[job]


def newest(home: Home, job: str = "govern") -> str:
    return latest_checkpoints(home, DOMAIN)[job].split(f"{DOMAIN}.{job}/")[1]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C counts, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def goes_on() -> None:
    """Nothing has happened yet."""


def test_the_new_version_starts_from_the_savepoint(home: Home, cluster: Flink) -> None:
    first = started(cluster, home)
    assert run(home).outcome == "upgraded"
    assert Client.started == [(NEW, "savepoint-1")]
    assert cluster.jobs[first].state == "FINISHED" and len(cluster.running(f"{DOMAIN}.govern")) == 1
    assert runs_as(home) == NEW


# ------------------------------------------------------------------------------- while it stops


@pytest.mark.usefixtures("interruptible")
def test_the_old_version_runs_again_when_interrupted_while_flink_stops_it(home: Home, cluster: Flink) -> None:
    """Flink completes what it accepted, whoever waits."""
    started(cluster, home)
    cluster.while_stopping = [goes_on, interrupt, goes_on, goes_on]
    with pytest.raises(KeyboardInterrupt):
        run(home)
    assert Client.started == [(OLD, "savepoint-1")]
    assert len(cluster.running(f"{DOMAIN}.govern")) == 1
    assert runs_as(home) == OLD


def test_an_upgrade_goes_on_when_flink_gives_no_answer_for_a_while(home: Home, cluster: Flink) -> None:
    started(cluster, home)
    cluster.while_stopping = [None, None, goes_on, None]
    assert run(home).outcome == "upgraded"
    assert Client.started == [(NEW, "savepoint-1")]


def test_an_upgrade_goes_on_when_the_answer_to_its_order_is_lost(home: Home, cluster: Flink) -> None:
    started(cluster, home)
    cluster.loses_its_answer = True
    assert run(home).outcome == "upgraded"
    assert Client.started == [(NEW, "savepoint-1")]


def test_the_old_version_starts_from_its_checkpoint_when_the_jobmanager_dies_meanwhile(home: Home, cluster: Flink) -> None:
    """A new JobManager knows neither the job nor the order."""
    started(cluster, home, checkpoints=3)

    def dies() -> int:
        cluster.jobs.clear()
        return 404

    cluster.while_stopping = [dies]
    with pytest.raises(JobFailed, match="did the JobManager die"):
        run(home)
    assert Client.started == [(OLD, "chk-3")]
    assert runs_as(home) == OLD


def test_the_old_version_runs_on_when_the_savepoint_fails(home: Home, cluster: Flink) -> None:
    first = started(cluster, home)
    cluster.while_stopping = [lambda: {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"stack-trace": "disk full"}}}]
    with pytest.raises(JobFailed, match="disk full"):
        run(home)
    assert cluster.running(f"{DOMAIN}.govern") == [first]
    assert runs_as(home) == OLD


def test_a_job_that_does_not_stop_in_time_is_ended_and_upgraded_from_its_checkpoint(
    home: Home, cluster: Flink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "STOP_PATIENCE_S", 0.3)
    first = started(cluster, home, checkpoints=2)
    cluster.while_stopping = [goes_on] * 1000
    assert run(home).outcome == "upgraded"
    assert cluster.jobs[first].state == "CANCELED"
    assert Client.started == [(NEW, "chk-2")]


def test_nothing_is_stopped_and_it_says_so_when_flink_does_not_answer(home: Home, cluster: Flink) -> None:
    home.write_state({"ports": {"rest": 1}})
    with pytest.raises(SetupFailed, match=r"nothing was stopped.*flyball status.*try again"):
        run(home)
    assert runs_as(home) == OLD


def test_nothing_is_started_while_the_supervisor_is_about_to_submit_lost_jobs(home: Home, cluster: Flink) -> None:
    """A JobManager that started again has no jobs at first."""
    with pytest.raises(SetupFailed, match=r"has no job of machines yet.*try again"):
        run(home)
    assert not Client.started and runs_as(home) == OLD


# ----------------------------------------------------------------------- a job that has no state


def test_a_job_that_never_completed_a_checkpoint_is_upgraded_without_state(home: Home, cluster: Flink) -> None:
    first = started(cluster, home, state="RESTARTING", checkpoints=0)
    assert run(home).outcome == "upgraded"
    assert Client.started == [(NEW, "")]
    assert cluster.jobs[first].state == "CANCELED"
    assert runs_as(home) == NEW


@pytest.mark.parametrize("job", ["propose", "govern"])
def test_it_can_be_upgraded_again_when_neither_version_came_up(home: Home, cluster: Flink, job: str) -> None:
    started(cluster, home, job, state="RESTARTING", checkpoints=0)
    Client.broken = {NEW: 0, OLD: 0}
    with pytest.raises(JobFailed, match=rf"failed.*; and {OLD} did not start again: .*failed.*no state yet"):
        run(home, job)
    assert Client.started == [(NEW, ""), (OLD, "")]
    assert runs_as(home, job) == OLD
    Client.broken = {}
    assert run(home, job).outcome == "upgraded"


def test_govern_does_not_begin_anew_when_its_state_is_gone(home: Home, cluster: Flink) -> None:
    cluster.start(f"{DOMAIN}.govern", "RESTARTING", completed=7)
    with pytest.raises(JobFailed, match="had state"):
        run(home)
    assert not Client.started
    assert runs_as(home) == OLD


def test_a_job_that_a_killed_upgrade_left_is_upgraded_and_noted_again(home: Home, cluster: Flink) -> None:
    started(cluster, home)
    (checkpoints_folder(home, DOMAIN, "govern") / "operators").mkdir()
    (checkpoints_folder(home, DOMAIN, "govern") / "operators" / "1.json").write_text("[]")
    want(home, DOMAIN, [], dict.fromkeys(("context", "propose"), OLD))
    assert run(home).outcome == "upgraded"
    assert runs_as(home) == NEW


# ----------------------------------------------------------------------------------- going back


def test_govern_goes_back_to_what_the_new_version_completed(home: Home, cluster: Flink) -> None:
    started(cluster, home)
    Client.broken = {NEW: 3}
    assert run(home).outcome == "rolled_back"
    assert Client.started == [(NEW, "savepoint-1"), (OLD, "chk-103")]


def test_what_the_new_version_completed_is_not_the_newest_when_context_went_back_to_the_savepoint(home: Home, cluster: Flink) -> None:
    started(cluster, home, "context")
    Client.broken = {NEW: 3}
    assert run(home, "context").outcome == "rolled_back"
    assert Client.started == [(NEW, "savepoint-1"), (OLD, "savepoint-1")]
    (third,) = cluster.running(f"{DOMAIN}.context")
    assert newest(home, "context") == f"{third}/chk-101"


def test_what_was_before_counts_no_more_when_a_job_began_anew(home: Home, cluster: Flink) -> None:
    first = started(cluster, home, "context", checkpoints=2)
    assert run(home, "context", is_anew=True).outcome == "upgraded"
    (second,) = cluster.running(f"{DOMAIN}.context")
    assert Client.started == [(NEW, "")]
    assert newest(home, "context") == f"{second}/chk-1"
    assert not (checkpoints_folder(home, DOMAIN, "context") / "savepoints" / first).exists()


def test_the_old_state_is_the_newest_again_when_a_job_that_began_anew_went_back(home: Home, cluster: Flink) -> None:
    started(cluster, home, "context")
    Client.broken = {NEW: 1}
    assert run(home, "context", is_anew=True).outcome == "rolled_back"
    assert Client.started == [(NEW, ""), (OLD, "savepoint-1")]
    (third,) = cluster.running(f"{DOMAIN}.context")
    assert newest(home, "context") == f"{third}/chk-101"


def test_a_job_that_began_anew_counts_when_the_command_was_killed_then(
    home: Home, cluster: Flink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its first checkpoint, before the state it had before was deleted."""
    started(cluster, home, "context", checkpoints=2)

    def killed(*_: Any) -> None:
        raise OSError

    monkeypatch.setattr(upgrade, "forget_others", killed)
    run(home, "context", is_anew=True)
    (second,) = cluster.running(f"{DOMAIN}.context")
    assert newest(home, "context") == f"{second}/chk-1"
