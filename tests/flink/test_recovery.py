"""A process of the cluster is killed while it works: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import orjson

from contracts.envelope import parse_time_ms
from ops import flink_jobs
from ops.submission import want
from tests.loop import Loop, proposal, reading

START_MS = parse_time_ms("2014-07-01T00:00:00Z")
ROUNDS = 40
# Given before the others begin to flow.
FIRST = 10


class Work:
    """Readings and proposals of a few machines of one test, round by round, and what came of them."""

    def __init__(self, machines: Loop, name: str) -> None:
        self.machines = machines
        self.subjects = [f"{name}-{n}" for n in range(8)]
        self.proposed: list[str] = []
        self._given = threading.Condition()

    def give(self, n: int, *subjects: str) -> None:
        """Round `n` of these machines."""
        log = [
            (s, *proposal(s, event_ms=START_MS + n * 3_600_000, expires_after_s=90 * 86_400)) for s in subjects
        ]
        self.proposed += [proposal_id for _, proposal_id, _ in log]
        self.machines.send("proposals", *((subject, event) for subject, _, event in log))
        with self._given:
            self._given.notify_all()
        self.machines.emit(*(reading(s, START_MS + n * 60_000, float(n)) for s in subjects))

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Gives the first rounds; then the others, one machine at a time, while the block runs and on until all are given."""
        for n in range(FIRST):
            self.give(n, *self.subjects)
        self.machines.wait_for("the first decisions", lambda: set(self.decided()) >= set(self.proposed))
        is_over = threading.Event()

        def give_others() -> None:
            for n in range(FIRST, ROUNDS):
                for subject in self.subjects:
                    if is_over.wait(0.01):
                        return
                    self.give(n, subject)

        with ThreadPoolExecutor(1) as pool:
            flow = pool.submit(give_others)
            try:
                yield
                flow.result()
            finally:
                is_over.set()

    def kill(self, name: str) -> tuple[int, int]:
        """Kills a process just after something was given, some of what flows being decided: its pid, and when (ms)."""
        first = FIRST * len(self.subjects)
        self.machines.wait_for("decisions about what flows", lambda: len(self.decided()) > first)
        pid = pid_of(self.machines, name)
        with self._given:
            assert self._given.wait(10), "nothing more was given before the blow"
            os.kill(pid, signal.SIGKILL)
            return pid, int(time.time() * 1000)

    def assert_was_in_flight(self, at_ms: int) -> None:
        """Proposals came before and after this moment, and some that came before it were decided after it."""
        proposed = set(self.proposed)
        came = {event["id"]: ms for ms, event in self._appended("proposals") if event["id"] in proposed}
        before = {proposal_id for proposal_id, ms in came.items() if ms <= at_ms}
        assert before < came.keys(), "the flow went on across the blow"
        decided_after = {event["data"].get("proposal_id") for ms, event in self._appended("decisions") if ms > at_ms}
        assert before & decided_after, "at the blow there was nothing in flight"

    def _appended(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """When the broker appended each event of a topic about these machines."""
        records = [record for s in self.subjects for record in self.machines.records(name, s)]
        return [(record.appended_ms, orjson.loads(record.value or b"{}")) for record in records]

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


def pid_of(loop: Loop, name: str) -> int:
    processes: Any = loop.home.read_state()["processes"]
    return int(processes[name]["pid"])


def test_nothing_is_lost_or_done_twice_when_the_taskmanager_is_killed(
    machines: Loop, payments: Loop
) -> None:
    started = machines.restarts()
    work = Work(machines, "killed")

    with work.flowing():
        victim, at_ms = work.kill("taskmanager-0")

    work.wait_until_done()
    work.assert_was_in_flight(at_ms)
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

    with work.flowing():
        victim, at_ms = work.kill("jobmanager")

    work.wait_until_done()
    work.assert_was_in_flight(at_ms)
    work.assert_nothing_is_lost_or_done_twice()
    assert pid_of(machines, "jobmanager") != victim
    flink_jobs.wait_running(payments.home, "payments")
    again = flink_jobs.states(machines.home)
    assert len(again) == len(known) and not known & {job.job_id for job in again}
    assert all(job.restarts for job in again), "every job began with a checkpoint"
