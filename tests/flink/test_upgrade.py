"""Jobs go over to other code while facts come in; what does not come up, or would misread its state, changes nothing."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from ops import flink_jobs
from ops.checkpoints import checkpoints_folder, latest_checkpoints
from ops.home import CHECKOUT
from ops.submission import wanted
from tests.loop import Loop
from udfs.serde import write_event

START_MS = parse_time_ms("2014-08-01T00:00:00Z")
KIND = "machines.cooling_failed"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what jobs are made of."""
    for folder in ("contracts", "udfs", "jobs", "conf", "sql"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ops").mkdir()
    for name in ("__init__.py", "submit.py"):
        shutil.copy(CHECKOUT / "ops" / name, tmp_path / "ops" / name)
    return tmp_path


def edit(checkout: Path, place: str, before: str, after: str) -> None:
    path = checkout / place
    text = path.read_text()
    assert text.count(before) == 1, f"{place} has changed: {before!r}"
    path.write_text(text.replace(before, after))


class Feed:
    """Situations about a few machines, each of which makes one proposal, and so one decision."""

    def __init__(self, machines: Loop, name: str) -> None:
        self.machines = machines
        self.subjects = [f"{name}-{n}" for n in range(4)]
        self.sent: list[tuple[str, str]] = []
        self._numbers = itertools.count()

    def give(self, rounds: int) -> None:
        for n in itertools.islice(self._numbers, rounds):
            event_ms = START_MS + n * 60_000
            for subject in self.subjects:
                situation = write_event(
                    event_id=derive_id(subject, "test", KIND, n), source="/flyball/machines/test", event_type=KIND,
                    subject=subject, time_ms=event_ms, dataschema=schema_urn("machines", KIND),
                    correlation_id=f"chain-{subject}-{n}", causation_id=f"chain-{subject}-{n}",
                    data={"event_time": format_time_ms(event_ms), "command_id": "c", "detail": "d"},
                )  # fmt: skip
                self.machines.send("situations", (subject, situation))
                proposal_id = derive_id(derive_id(subject, "test", KIND, n), "propose", "escalation-rule")
                self.sent.append((subject, proposal_id))

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Goes on giving until the end."""
        over = threading.Event()

        def give() -> None:
            while not over.wait(0.1):
                self.give(1)

        thread = threading.Thread(target=give)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def decisions(self) -> list[dict[str, Any]]:
        return [d["data"] for s in self.subjects for d in self.machines.events("decisions", s)]

    def proposals(self) -> dict[str, dict[str, Any]]:
        return {p["id"]: p["data"] for s in self.subjects for p in self.machines.events("proposals", s)}

    def wait_until_done(self) -> None:
        self.machines.wait_for("every decision", lambda: len(self.decisions()) >= len(self.sent))

    def assert_each_was_decided_once(self) -> None:
        assert sorted(d["proposal_id"] for d in self.decisions()) == sorted(proposal_id for _, proposal_id in self.sent)
        commands = [c["id"] for s in self.subjects for c in self.machines.events("commands", s)]
        allowed = [d["command_id"] for d in self.decisions() if d["verdict"] == "allow"]
        assert sorted(commands) == sorted(allowed)


def states_on_disk(machines: Loop) -> set[str]:
    """The submissions of govern of which there are checkpoints or savepoints."""
    folder = checkpoints_folder(machines.home, "machines", "govern")
    found = [*folder.glob("*/chk-*/_metadata"), *folder.glob("savepoints/*/savepoint-*/_metadata")]
    return {str(path.parent.parent.relative_to(folder)) for path in found}


def test_running_jobs_keep_what_the_list_of_state_says(machines: Loop, payments: Loop) -> None:
    machines.assert_jobs_keep_what_is_listed()
    payments.assert_jobs_keep_what_is_listed()


def test_new_code_decides_and_each_proposal_is_decided_once_when_govern_is_upgraded(
    machines: Loop, flyball: Callable[..., Any], checkout: Path
) -> None:
    """Its TaskManager has imported the old code, and runs on."""
    before = {job.name: job.job_id for job in flink_jobs.states(machines.home, "machines")}
    restarts = machines.restarts()
    edit(
        checkout, "udfs/policy/writing.py", '"explanation": ruling.told[:2000],',
        '"explanation": ruling.told[:2000] + (" (new words)" if proposal.subject.startswith("upgraded-") else ""),',
    )  # fmt: skip
    feed = Feed(machines, "upgraded")
    feed.give(5)
    feed.wait_until_done()
    with feed.flowing():
        said = flyball("upgrade", "machines", "govern", "--from", checkout, "--json", timeout_s=300)
        assert said.code == 0, said.err
    feed.give(5)
    feed.wait_until_done()

    told = orjson.loads(said.out)
    assert (told["outcome"], told["without_state"]) == ("upgraded", [])
    feed.assert_each_was_decided_once()
    words = {d["proposal_id"]: d["explanation"] for d in feed.decisions()}
    are_new = [words[proposal_id].endswith(" (new words)") for _, proposal_id in feed.sent]
    assert not any(are_new[:20]) and all(are_new[-20:])
    after = {job.name: job.job_id for job in flink_jobs.states(machines.home, "machines")}
    assert {name for name, job_id in after.items() if before[name] != job_id} == {"machines.govern"}
    others = ("machines.context", "machines.propose")
    assert [machines.restarts()[name] for name in others] == [restarts[name] for name in others], "the others ran on"
    assert states_on_disk(machines) == {after["machines.govern"], f"savepoints/{before['machines.govern']}"}
    machines.settle()
    audit = orjson.loads(flyball("audit", "verify", "machines", "--json").out)
    assert (audit["ok"], audit["superseded"]) == (True, 0), audit["first_bad"]


def test_the_old_version_goes_on_when_the_new_one_does_not_come_up(
    machines: Loop, flyball: Callable[..., Any], checkout: Path
) -> None:
    edit(checkout, "udfs/policy/flink.py", "        self._wide = WideCounter(", '        raise RuntimeError("not today")\n        self._wide = WideCounter(')
    running = wanted(machines.home)["machines"]
    feed = Feed(machines, "kept")
    feed.give(5)
    with feed.flowing():
        said = flyball("upgrade", "machines", "govern", "--from", checkout, "--json", timeout_s=300)
        assert said.code == 1, said.out
    feed.give(5)
    feed.wait_until_done()

    told = orjson.loads(said.out)
    assert told["outcome"] == "rolled_back"
    assert "not today" in told["cause"]
    feed.assert_each_was_decided_once()
    assert wanted(machines.home)["machines"] == running
    runs = next(job.job_id for job in flink_jobs.states(machines.home, "machines") if job.name == "machines.govern")
    assert runs in states_on_disk(machines) and len(states_on_disk(machines)) == 2, "it, and what it started from"
    assert runs in latest_checkpoints(machines.home, "machines")["govern"]


def test_nothing_is_stopped_when_the_new_queries_would_misread_the_state(
    machines: Loop, flyball: Callable[..., Any], checkout: Path
) -> None:
    edit(checkout, "sql/machines/30_temperature_climbing.sql", "deviation > 2", "deviation > 3")
    before = [job.job_id for job in flink_jobs.states(machines.home, "machines")]

    said = flyball("upgrade", "machines", "context", "--from", checkout, timeout_s=300)

    assert said.code == 1
    told = " ".join(said.err.split())
    assert "'temperature_climbing: Match', or what feeds it, is another query now" in told
    assert "reading_totals" not in told
    assert "--anew" in told
    assert [job.job_id for job in flink_jobs.states(machines.home, "machines")] == before
