"""A process of the cluster is killed while it works: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import signal
from typing import Any

from contracts.envelope import parse_time_ms
from ops import flink_jobs
from ops.submission import want
from tests.loop import Loop, proposal, reading

START_MS = parse_time_ms("2014-07-01T00:00:00Z")
ROUNDS = 40


class Work:
    """Readings and proposals of a few machines of one test, round by round, and what came of them."""

    def __init__(self, machines: Loop, name: str) -> None:
        self.machines = machines
        self.subjects = [f"{name}-{n}" for n in range(8)]
        self.proposed: list[str] = []

    def give(self, rounds: range) -> None:
        for n in rounds:
            log = [
                (s, *proposal(s, event_ms=START_MS + n * 3_600_000, expires_after_s=90 * 86_400))
                for s in self.subjects
            ]
            self.proposed += [proposal_id for _, proposal_id, _ in log]
            self.machines.send("proposals", *((subject, event) for subject, _, event in log))
            self.machines.emit(*(reading(s, START_MS + n * 60_000, float(n)) for s in self.subjects))

    def decided(self) -> list[str]:
        found = [self.machines.events("decisions", s, agent="test-agent") for s in self.subjects]
        return [d["data"]["proposal_id"] for decisions in found for d in decisions]

    def wait_until_done(self) -> None:
        self.machines.wait_for("every decision", lambda: set(self.decided()) >= set(self.proposed))
        self.machines.wait_for(
            "every reading",
            lambda: all(
                len(self.machines.situations("reading_scored", s)) >= ROUNDS for s in self.subjects
            ),
        )
        self.machines.settle()

    def assert_nothing_is_lost_or_done_twice(self) -> None:
        assert sorted(self.decided()) == sorted(self.proposed), "each proposal is decided once"
        for subject in self.subjects:
            cooled = {"action": "activate_cooling"}
            allowed = self.machines.events("decisions", subject, verdict="allow", **cooled)
            assert len(allowed) == 2, "the limit of one a day is kept across the restart"
            command_ids = sorted(d["data"]["command_id"] for d in allowed)
            commands = self.machines.events("commands", subject, **cooled)
            assert sorted(c["id"] for c in commands) == command_ids
            outcomes = self.machines.events("outcomes", subject, **cooled)
            assert sorted(o["data"]["command_id"] for o in outcomes) == command_ids
            seen = self.machines.situations("reading_scored", subject)
            assert [s["data"]["readings_seen"] for s in seen] == list(range(1, ROUNDS + 1))


def kill(loop: Loop, name: str) -> int:
    """The pid of the process that was killed."""
    pid = pid_of(loop, name)
    os.kill(pid, signal.SIGKILL)
    return pid


def pid_of(loop: Loop, name: str) -> int:
    processes: Any = loop.home.read_state()["processes"]
    return int(processes[name]["pid"])


def test_nothing_is_lost_or_done_twice_when_the_taskmanager_is_killed(
    machines: Loop, payments: Loop
) -> None:
    started = machines.restarts()
    work = Work(machines, "killed")

    work.give(range(ROUNDS // 2))
    machines.wait_for("some decisions", work.decided)
    victim = kill(machines, "taskmanager-0")
    work.give(range(ROUNDS // 2, ROUNDS))

    work.wait_until_done()
    work.assert_nothing_is_lost_or_done_twice()
    assert pid_of(machines, "taskmanager-0") != victim
    machines.wait_for(
        "the restarts in the jobs' metrics",
        lambda: all(count > started[name] for name, count in machines.restarts().items()),
    )


def test_nothing_is_lost_or_done_twice_when_the_jobmanager_is_killed(
    machines: Loop, payments: Loop
) -> None:
    """It forgets its jobs: the supervisor submits them again from their newest checkpoints."""
    want(payments.home, "payments", [])  # submitted by hand, so nobody asked for them yet
    known = {job.job_id for job in flink_jobs.states(machines.home)}
    work = Work(machines, "forgotten")

    work.give(range(ROUNDS // 2))
    machines.wait_for("some decisions", work.decided)
    victim = kill(machines, "jobmanager")
    work.give(range(ROUNDS // 2, ROUNDS))

    work.wait_until_done()
    work.assert_nothing_is_lost_or_done_twice()
    assert pid_of(machines, "jobmanager") != victim
    flink_jobs.wait_running(payments.home, "payments")
    again = flink_jobs.states(machines.home)
    assert len(again) == len(known) and not known & {job.job_id for job in again}
    assert all(job.restarts for job in again), "every job began with a checkpoint"
