"""A record over which our own pure code fails becomes a dead letter; the records around it go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pyflink.common import Row

from tests.unit.test_govern_shell import Runtime
from udfs.agents.flink import Propose
from udfs.serde import write_event
from udfs.sql_functions import ReadFact

FACT = orjson.dumps(
    {
        "specversion": "1.0", "id": "f-1", "source": "/test", "type": "machine.temperature_measured", "subject": "m-1",
        "time": "2014-04-01T00:00:00Z", "data": {"temperature": 20.5},
    }
)  # fmt: skip
RULE = """\
agents:
  - agent: rule
    version: 1
    kind: rule
    situation: machines.cooling_failed
    when: "true"
    confidence: 0.5
    propose: {action: schedule_maintenance, parameters: {priority: normal}, reason: r}
"""


def failing(*_: Any) -> Iterator[Any]:
    raise IndexError("Ada Lovelace")


def cause_of(event: bytes) -> tuple[str, str]:
    data = orjson.loads(event)["data"]
    assert "IndexError in test_internal.py" in data["message"] and "Lovelace" not in data["message"]
    return data["cause"], f"{data['topic']}/{data['partition']}/{data['offset']}"


def test_a_fact_becomes_a_dead_letter_when_reading_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    function = ReadFact("machines", 3600, (), "accepted", 86_400)
    function.open(None)  # type: ignore[arg-type]
    reads = function._read
    function._read = failing  # type: ignore[assignment, method-assign]
    row = function.eval(b"m-1", FACT, "machines.facts", 2, 7, 2_000_000_000_000)
    assert cause_of(row[1]) == ("internal", "machines.facts/2/7")
    function._read = reads  # type: ignore[method-assign]
    assert function.eval(b"m-1", FACT, "machines.facts", 2, 8, 2_000_000_000_000)[2] == "f-1"


def test_a_situation_becomes_a_dead_letter_and_nothing_is_proposed_when_an_agent_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "agents.yaml").write_text(RULE)
    propose = Propose("machines", str(tmp_path / "agents.yaml"), 0)
    runtime = Runtime()
    runtime.items = list  # type: ignore[attr-defined]
    propose.open(runtime)  # type: ignore[arg-type]
    value = write_event(
        event_id="s-1", source="/a", event_type="machines.cooling_failed", subject="m-1", time_ms=0, dataschema="urn:x",
        data={"event_time": "2026-01-01T00:00:00Z", "command_id": "c", "detail": "valve"}, correlation_id="chain",
    )  # fmt: skip
    row = Row(b"m-1", value, "machines.situations", 0, 3)
    with monkeypatch.context() as patched:
        patched.setattr(propose._agents, "answers", failing)
        (letter,) = propose.process_element(row, runtime)
    assert (letter[0], cause_of(letter[2])) == ("dead-letters", ("internal", "machines.situations/0/3"))
    assert [each[0] for each in propose.process_element(row, runtime)] == ["proposals"]
