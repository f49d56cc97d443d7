"""Records of a subject keep their order while a job starts: those that wait in state come before its next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from pyflink.common import Row

from tests.loop import proposal
from tests.unit.test_govern_shell import MAY, Runtime
from tests.unit.test_internal import RULE
from udfs.agents.flink import Propose
from udfs.policy import cases
from udfs.policy.flink import Govern
from udfs.serde import write_event
from udfs.waiting import StartPhase


class Proposing:
    """`propose` over states that are dictionaries; with a `runtime`, started again from what is in it."""

    def __init__(self, folder: Path, runtime: Runtime | None = None, *, models_until: int = 1) -> None:
        (folder / "agents.yaml").write_text(RULE)
        self.runtime = runtime or Runtime()
        self.runtime.items = list  # type: ignore[attr-defined]
        self.job = Propose("machines", str(folder / "agents.yaml"), models_until)
        self.job.open(self.runtime)  # type: ignore[arg-type]

    def read(self, name: str, subject: str = "m-1") -> list[str]:
        """Ids of the situations that are answered when this one comes."""
        self.runtime.key = subject
        value = write_event(
            event_id=name, source="/a", event_type="machines.cooling_failed", subject=subject, time_ms=0, dataschema="urn:x",
            data={"event_time": "2026-01-01T00:00:00Z", "command_id": "c", "detail": "valve"}, correlation_id="chain",
        )  # fmt: skip
        return answered(self.job.process_element(Row(subject.encode(), value, "machines.situations", 0, 3), self.runtime))

    def models_come(self) -> None:
        list(self.job.process_broadcast_element(Row(b"", b"none that is good", "machines.models", 0, 0), self.runtime))

    def fire(self) -> list[str]:
        """Every timer that is due within a second, in their order."""
        came = []
        while due := sorted(timer for timer in self.runtime.timers if timer[0] <= 1000):
            self.runtime.timers.discard(due[0])
            self.runtime.now, self.runtime.key = due[0]
            came += answered(self.job.on_timer(due[0][0], self.runtime))
        return came


def answered(rows: Any) -> list[str]:
    return [orjson.loads(row[2])["causationid"] for row in rows]


def test_a_situation_comes_after_those_that_wait_when_the_models_come_before_the_timer(tmp_path: Path) -> None:
    propose = Proposing(tmp_path)
    assert propose.read("s-1") == propose.read("s-2") == propose.read("other", "m-2") == []
    propose.models_come()
    assert propose.read("s-3") == ["s-1", "s-2", "s-3"]
    assert propose.read("s-4") == ["s-4"]
    assert propose.fire() == ["other"]


def test_nothing_waits_after_the_start_when_no_model_was_ever_published(tmp_path: Path) -> None:
    propose = Proposing(tmp_path, models_until=0)
    assert propose.read("s-1") == ["s-1"]
    assert propose.fire() == []
    assert propose.read("s-2") == ["s-2"]


def test_a_situation_comes_after_those_that_waited_when_propose_was_restored(tmp_path: Path) -> None:
    before = Proposing(tmp_path)
    assert before.read("s-1") == []
    after = Proposing(tmp_path, before.runtime)
    after.models_come()
    assert after.read("s-2") == ["s-1", "s-2"]
    assert after.fire() == []


def test_a_proposal_comes_after_those_that_waited_when_govern_was_restored() -> None:
    def read(job: Govern, at: int) -> list[str]:
        name, value = proposal("m-1", event_ms=cases.START_MS + at)
        names.append(name)
        row = Row(b"m-1", value, "machines.proposals", 0, at)
        return [orjson.loads(written[2])["causationid"] for written in job.process_element(row, runtime) if written[0] == "decisions"]

    names: list[str] = []
    runtime = Runtime()
    runtime.key = "m-1"
    jobs = [Govern("machines", 6, 90 * 86_400, 1) for _ in range(2)]
    jobs[0].open(runtime)  # type: ignore[arg-type]
    assert read(jobs[0], 0) == read(jobs[0], 1) == []
    jobs[1].open(runtime)  # type: ignore[arg-type]
    policy = orjson.dumps({"type": "flyball.policy", "data": MAY})
    assert list(jobs[1].process_broadcast_element(Row(b"", policy, "machines.policies", 0, 0), runtime)) == []
    assert read(jobs[1], 2) == names


def test_state_is_asked_once_a_key_and_no_more_when_the_timers_of_all_that_waited_have_fired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose, asked = Proposing(tmp_path), list[str]()

    def get() -> list[Any]:
        asked.append(propose.runtime.key)
        return []

    monkeypatch.setattr(propose.runtime.states["waiting"], "get", get)
    propose.models_come()
    for subject in ("m-1", "m-2", "m-1"):
        propose.read("s", subject)
    assert asked == ["m-1", "m-2"]
    propose.fire()
    asked.clear()
    propose.read("s", "m-3")
    assert asked == []


def test_the_start_is_over_when_a_timer_fires_that_is_later_than_any_of_what_waits() -> None:
    runtime, start = Runtime(), StartPhase(20)
    runtime.now = 100
    start.fired(1000)  # of before: nothing was read yet
    assert start.may_wait(b"a", runtime) and not start.may_wait(b"a", runtime) and start.may_wait(b"b", runtime)
    assert {at for at, _ in runtime.timers} == {121}
    start.fired(120)
    assert not start.is_over
    start.fired(121)
    assert start.is_over
