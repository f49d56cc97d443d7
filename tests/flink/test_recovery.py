"""The TaskManager is killed while it works: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import signal
from typing import Any

from contracts.envelope import parse_time_ms
from tests.loop import Loop, proposal, reading

START_MS = parse_time_ms("2014-07-01T00:00:00Z")
SUBJECTS = [f"killed-{n}" for n in range(8)]
ROUNDS = 40


def test_nothing_is_lost_or_done_twice_when_the_taskmanager_is_killed(machines: Loop) -> None:
    processes: Any = machines.home.read_state()["processes"]
    victim = processes["taskmanager-0"]["pid"]
    started = machines.restarts()
    proposed: dict[str, str] = {}

    def load(rounds: range) -> None:
        for n in rounds:
            log = [
                proposal(subject, event_ms=START_MS + n * 3_600_000, expires_after_s=90 * 86_400)
                for subject in SUBJECTS
            ]
            proposed.update({log[i][0]: subject for i, subject in enumerate(SUBJECTS)})
            machines.send("proposals", *((s, event) for s, (_, event) in zip(SUBJECTS, log, strict=True)))
            machines.emit(*(reading(s, START_MS + n * 60_000, float(n)) for s in SUBJECTS))

    def decided() -> list[str]:
        found = [machines.events("decisions", s, agent="test-agent") for s in SUBJECTS]
        return [d["data"]["proposal_id"] for decisions in found for d in decisions]

    load(range(ROUNDS // 2))
    machines.wait_for("some decisions", decided)
    os.kill(victim, signal.SIGKILL)
    load(range(ROUNDS // 2, ROUNDS))

    machines.wait_for("every decision", lambda: set(decided()) >= set(proposed))
    for subject in SUBJECTS:
        machines.wait_for(
            f"every reading of {subject}",
            lambda s=subject: len(machines.situations("reading_scored", s)) >= ROUNDS,
        )
    machines.settle()
    assert sorted(decided()) == sorted(proposed), "each proposal is decided once"
    for subject in SUBJECTS:
        cooled = {"action": "activate_cooling"}
        allowed = machines.events("decisions", subject, verdict="allow", **cooled)
        assert len(allowed) == 2, "the limit of one a day is kept across the restart"
        command_ids = sorted(d["data"]["command_id"] for d in allowed)
        assert sorted(c["id"] for c in machines.events("commands", subject, **cooled)) == command_ids
        outcomes = machines.events("outcomes", subject, **cooled)
        assert sorted(o["data"]["command_id"] for o in outcomes) == command_ids
        seen = machines.situations("reading_scored", subject)
        assert [s["data"]["readings_seen"] for s in seen] == list(range(1, ROUNDS + 1))

    processes = machines.home.read_state()["processes"]
    assert processes["taskmanager-0"]["pid"] != victim
    machines.wait_for(
        "the restarts in the jobs' metrics",
        lambda: all(count > started[name] for name, count in machines.restarts().items()),
    )
