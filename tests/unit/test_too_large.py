"""Records nobody could pass on: over 2 MiB they are dead letters, and what comes of the others fits into Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from pyflink.common import Row

from contracts.dead_letter import Cause
from contracts.domain import load_domain
from contracts.errors import BadInput
from contracts.policy import Policy
from contracts.topics import MAX_FACT_BYTES, MAX_RECORD_BYTES
from tests.loop import proposal
from tests.unit.test_govern_shell import MAY, Runtime, Shell, override
from tests.unit.test_waiting import RULE
from udfs.agents.flink import Propose
from udfs.policy import cases
from udfs.policy.reading import Reader
from udfs.serde import write_event

READER = Reader(load_domain("machines"))
# What Kafka may add to a record: its own fields, and the key twice as long as any subject in UTF-8.
AROUND = 2048


def filled(size: int, **features: Any) -> bytes:
    """A proposal of `size` bytes, all of it one feature."""
    empty = proposal("m-1", event_ms=cases.START_MS, features={**features, "detail": ""})[1]
    return proposal("m-1", event_ms=cases.START_MS, features={**features, "detail": "x" * (size - len(empty))})[1]


def refused(*arguments: Any) -> str:
    with pytest.raises(BadInput) as error:
        READER.proposal(*arguments)
    return error.value.code


def test_what_govern_reads_is_refused_when_it_is_larger_than_a_fact_may_be() -> None:
    assert len(filled(MAX_FACT_BYTES)) == MAX_FACT_BYTES
    assert READER.proposal(b"m-1", filled(MAX_FACT_BYTES))
    assert refused(b"m-1", filled(MAX_FACT_BYTES + 1)) == Cause.TOO_LARGE
    with pytest.raises(BadInput) as word:
        READER.word(b"m-1", override("ann") + b" " * MAX_FACT_BYTES, {})
    assert word.value.code == Cause.TOO_LARGE
    data = {"event_time": "2014-01-01T00:00:00Z", "command_id": "c", "action": "activate_cooling", "status": "failed"}
    outcome = orjson.dumps({"type": "flyball.outcome", "subject": "m-1", "data": data})
    situation = orjson.dumps({"type": "machines.cooling_failed", "subject": "m-1", "data": {"detail": "d"}})
    assert READER.outcome(b"m-1", outcome) and READER.outcome(b"m-1", outcome + b" " * MAX_FACT_BYTES) is None
    assert READER.situation(b"m-1", situation) and READER.situation(b"m-1", situation + b" " * MAX_FACT_BYTES) is None


def test_a_proposal_is_refused_when_its_numbers_take_more_than_that_written_again() -> None:
    numbers = b",".join(b'"%x":1e15' % n for n in range(120_000))
    value = filled(1000).replace(b'"detail":"', numbers + b',"detail":"')
    assert len(value) < MAX_FACT_BYTES < 2 * len(value)
    assert refused(b"m-1", value) == Cause.TOO_LARGE


@pytest.mark.parametrize("name", ["id", "correlationid"])
def test_a_proposal_is_refused_when_its_ids_which_are_told_again_and_again_are_no_ids(name: str) -> None:
    event = orjson.loads(filled(1000))
    for bad in ("x" * 257, "a\nb"):
        assert refused(b"m-1", orjson.dumps({**event, name: bad})) == Cause.ENVELOPE_INVALID


def test_decision_and_command_fit_when_the_proposal_is_as_large_as_it_may_be() -> None:
    shell = Shell()
    shell.publish((Policy.event_type, {**MAY, "obligations": {f"o{n}": "x" * 1000 for n in range(16)}}))
    event = orjson.loads(filled(MAX_FACT_BYTES - 4096))
    long = "ä" * 256
    value = orjson.dumps({**event, "id": long, "correlationid": long, "traceparent": long})
    written = shell.read("proposals", b"m-1", value)
    assert [each["type"] for each in written] == ["flyball.decision", "flyball.command"]
    for row in shell.wrote:
        assert len(row[2].encode()) - len(value) < 65_536, "what is added to it: ids, reasons, policies, numbers"
    assert MAX_FACT_BYTES + 65_536 + AROUND < MAX_RECORD_BYTES


def test_a_proposal_is_a_dead_letter_when_policies_make_more_of_it_than_kafka_takes() -> None:
    shell = Shell()
    asks = {"roles": ["approver"], "within_s": 60, "not_by": ["feature_detail"]}
    for name in ("one", "two"):
        shell.publish((Policy.event_type, {**MAY, "policy_id": name, "verdict": "hold", "approval": asks}))
    small, large = (
        proposal("m-1", event_ms=cases.START_MS, situation_type="machines.cooling_failed", features={"detail": "x" * size})[1]
        for size in (10, 2_000_000)
    )
    (letter,) = shell.read("proposals", b"m-1", large)
    assert (letter["type"], letter["data"]["cause"]) == ("flyball.dead_letter", "too_large")
    (held,) = shell.read("proposals", b"m-1", small)
    assert (held["data"]["verdict"], held["data"]["entry"]["number"]) == ("hold", 1), "as if it had not come"


def test_a_situation_is_a_dead_letter_when_it_or_its_proposal_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(RULE)
    propose, runtime = Propose("machines", str(tmp_path / "agents.yaml"), 0), Runtime()
    runtime.items = list  # type: ignore[attr-defined]
    propose.open(runtime)  # type: ignore[arg-type]

    def read(size: int) -> list[tuple[str, str]]:
        value = write_event(
            event_id="s-1", source="/a", event_type="machines.cooling_failed", subject="m-1", time_ms=0, dataschema="urn:x",
            data={"event_time": "2026-01-01T00:00:00Z", "command_id": "c", "detail": "x" * size}, correlation_id="chain",
        )  # fmt: skip
        rows = propose.process_element(Row(b"m-1", value, "machines.situations", 0, 3), runtime)
        return [(row[0], orjson.loads(row[2])["data"].get("cause", "")) for row in rows]

    assert read(1_000_000) == [("proposals", "")]
    assert read(MAX_FACT_BYTES - 500) == [("dead-letters", "too_large")], "a proposal tells more than its situation"
    assert read(MAX_FACT_BYTES) == [("dead-letters", "too_large")]
