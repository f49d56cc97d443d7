"""Files into facts: ids, refused lines, leaps, what is passed as it stands."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from contracts.domain import load_domain
from contracts.errors import BadInput, SetupFailed
from contracts.topics import MAX_FACT_BYTES
from ops.player import Emitter, Item, RawEvent, RefusedLine, read_file
from ops.world import NewFact, load_world
from tests.kafka_stand_in import StandInBroker, StandInProducer

HOUR_MS = 3_600_000
HEADER = "timestamp,value\n"


def items_of(path: Path, text: str | bytes, *, subject: str | None = None) -> list[Item]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_file(path, load_world("machines"), subject=subject, max_ahead_ms=HOUR_MS))


def emitted(items: list[Item]) -> tuple[StandInBroker, Any]:
    broker = StandInBroker()
    emitter = Emitter(load_domain("machines"), StandInProducer(broker), file_name="input.csv")  # type: ignore[arg-type]
    return broker, emitter.emit(items, rate=None)


def events_of(items: list[Item]) -> list[dict[str, Any]]:
    broker, _ = emitted(items)
    return [orjson.loads(value or b"") for value in broker.values("machines.facts")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pump-7.csv"


ROWS = HEADER + "2014-01-01T00:00:00Z,20.5\n2014-01-01T00:00:00Z,20.5\n2014-01-01 00:05:00,21\n"


def test_ids_are_the_same_when_a_file_is_played_twice(file: Path) -> None:
    first, second = events_of(items_of(file, ROWS)), events_of(items_of(file, ROWS))
    assert [e["id"] for e in first] == [e["id"] for e in second]
    assert first == second


def test_ids_differ_when_a_row_stands_twice_in_a_file(file: Path) -> None:
    first, repeated, other = events_of(items_of(file, ROWS))
    assert len({first["id"], repeated["id"], other["id"]}) == 3
    assert first["data"] == repeated["data"]


def test_ids_differ_when_the_same_rows_are_about_another_subject(file: Path) -> None:
    here, there = items_of(file, ROWS), items_of(file, ROWS, subject="pump-8")
    assert not {e["id"] for e in events_of(here)} & {e["id"] for e in events_of(there)}


def test_ids_do_not_change_when_other_rows_come_before(file: Path) -> None:
    alone = events_of(items_of(file, HEADER + "2014-01-01T01:00:00Z,5\n"))
    behind = events_of(items_of(file, ROWS + "2014-01-01T01:00:00Z,5\n"))
    assert alone[0]["id"] == behind[-1]["id"]


def test_the_file_names_the_subject_when_none_is_given(file: Path) -> None:
    event, *_ = events_of(items_of(file, ROWS))
    assert event["subject"] == "pump-7"
    assert event["type"] == "machine.temperature_measured"
    assert event["time"] == "2014-01-01T00:00:00Z"
    assert event["dataschema"] == "urn:flyball:machines:machine.temperature_measured:1"


# a row -> what the refusal says
BAD_ROWS = {
    "2014-01-01T00:00:00Z": "expected 2 columns",
    "2014-01-01T00:00:00Z,1,2": "expected 2 columns",
    "2014-01-01T00:00:00Z,warm": "expected a number",
    "2014-01-01T00:00:00Z,": "expected a number",
    "2014-01-01T00:00:00Z,nan": "finite",
    "2014-01-01T00:00:00Z,inf": "finite",
    "yesterday,20": "expected a time",
    "2014-02-30T00:00:00Z,20": "expected a time",
    ",20": "expected a time",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_is_refused_in_place_when_it_is_no_fact(file: Path, row: str) -> None:
    before, bad, after = items_of(
        file, f"{HEADER}2014-01-01T00:00:00Z,1\n{row}\n\n2014-01-01T00:05:00Z,2\n"
    )
    assert isinstance(before, NewFact)
    assert isinstance(after, NewFact)
    assert isinstance(bad, RefusedLine)
    assert (bad.line, bad.error.code, bad.raw.strip()) == (3, "row_invalid", row.encode())
    assert BAD_ROWS[row] in str(bad.error)


def test_a_row_is_refused_when_it_is_not_utf8(file: Path) -> None:
    (bad,) = items_of(file, HEADER.encode() + b"2014-01-01T00:00:00Z,\xff\n")
    assert isinstance(bad, RefusedLine)
    assert bad.error.code == "not_utf8"


def test_refused_rows_become_dead_letters_with_file_and_line_when_they_are_emitted(file: Path) -> None:
    broker, done = emitted(items_of(file, ROWS + "yesterday,20\n"))
    assert (done.facts, done.refused) == (3, 1)
    (letter,) = [orjson.loads(value or b"") for value in broker.values("machines.dead-letters")]
    data = letter["data"]
    assert (data["cause"], data["topic"], data["partition"], data["offset"]) == ("row_invalid", "input.csv", 0, 5)
    assert data["stage"] == "emit"


def test_a_row_is_refused_when_it_leaps_ahead_of_both_its_neighbours(file: Path) -> None:
    rows = ["2014-01-01T00:00:00Z,1", "2032-01-01T00:00:00Z,2", "2014-01-01T00:10:00Z,3"]
    first, leap, last = items_of(file, HEADER + "\n".join(rows))
    assert isinstance(first, NewFact)
    assert isinstance(last, NewFact)
    assert isinstance(leap, RefusedLine)
    assert (leap.line, leap.raw.strip(), leap.error.code) == (3, rows[1].encode(), "time_ahead")


def test_the_first_row_is_refused_when_it_leaps_ahead_of_the_second(file: Path) -> None:
    leap, *rest = items_of(file, HEADER + "2032-01-01T00:00:00Z,1\n2014-01-01T00:00:00Z,2\n2014-01-01T00:05:00Z,3\n")
    assert isinstance(leap, RefusedLine)
    assert all(isinstance(item, NewFact) for item in rest)


def test_no_row_is_refused_when_it_leaps_ahead_of_one_neighbour_only(file: Path) -> None:
    rows = [f"2014-01-0{day}T{hour}:00:00Z,1" for day, hour in ((1, "00"), (5, "00"), (5, "01"), (2, "00"), (2, "02"), (9, "00"))]
    assert all(isinstance(item, NewFact) for item in items_of(file, HEADER + "\n".join(rows)))


def test_no_row_is_refused_when_it_is_ahead_by_as_much_as_is_allowed(file: Path) -> None:
    rows = ["2014-01-01T00:00:00Z,1", "2014-01-01T01:00:00Z,2", "2014-01-01T00:00:00Z,3"]
    assert all(isinstance(item, NewFact) for item in items_of(file, HEADER + "\n".join(rows)))


def test_no_row_is_refused_when_a_subject_was_silent_for_months(file: Path) -> None:
    rows = ["2014-01-01T00:00:00Z,1", "2014-07-01T00:00:00Z,2", "2014-07-01T00:05:00Z,3"]
    assert all(isinstance(item, NewFact) for item in items_of(file, HEADER + "\n".join(rows)))


def test_refused_rows_keep_their_place_when_a_leap_stands_before_them(file: Path) -> None:
    rows = ["2014-01-01T00:00:00Z,1", "2032-01-01T00:00:00Z,2", "nonsense", "2014-01-01T00:10:00Z,3"]
    kinds = [type(item) for item in items_of(file, HEADER + "\n".join(rows))]
    assert kinds == [NewFact, RefusedLine, RefusedLine, NewFact]


def test_bare_json_lines_become_facts_when_they_hold_the_columns_of_a_row(file: Path) -> None:
    text = '{"timestamp": "2014-01-01T00:00:00Z", "value": 20.5}\n\n{"value": "20.5", "timestamp": "2014-01-01T00:00:00Z"}\n'
    from_json = items_of(file, text)
    assert from_json == items_of(file, ROWS)[:2]


def test_bare_json_lines_become_facts_when_they_name_type_and_data(file: Path) -> None:
    line = {"type": "machine.temperature_measured", "subject": "m-1", "time": "2014-01-01T00:00:00Z", "data": {"temperature": 1.5}}
    (fact,) = items_of(file, orjson.dumps(line))
    assert isinstance(fact, NewFact)
    assert (fact.subject, fact.data) == ("m-1", {"temperature": 1.5})


@pytest.mark.parametrize(
    "line", ['{"timestamp": "x", "value": 1}', '{"value": 1}', '{"type": 5, "subject": "m", "data": {}}', '{"type": "t", "data": 3}']
)  # fmt: skip
def test_a_bare_json_line_is_refused_when_it_is_no_fact(file: Path, line: str) -> None:
    (bad,) = items_of(file, line)
    assert isinstance(bad, RefusedLine)
    assert bad.line == 1
    assert bad.error.code == "row_invalid"


def test_lines_pass_as_they_stand_when_they_are_cloud_events_or_no_json(file: Path) -> None:
    event = b'{"specversion":"9.9","subject":"m-1","anything":[1]}'
    items = items_of(file, b'{"specversion":"1.0"}\n' + event + b"\nnot json\n[1]\n")
    assert items == [
        RawEvent(1, None, b'{"specversion":"1.0"}'),
        RawEvent(2, b"m-1", event),
        RawEvent(3, None, b"not json"),
        RawEvent(4, None, b"[1]"),
    ]
    broker, done = emitted(items)
    assert broker.values("machines.facts")[1] == event
    assert broker.topics["machines.facts"][1].key == b"m-1"
    assert done.facts == 4


def test_a_line_is_not_sent_and_told_when_it_is_over_two_mebibytes() -> None:
    fits, too_big = RawEvent(1, b"m", b"x" * MAX_FACT_BYTES), RawEvent(2, b"m", b"x" * (MAX_FACT_BYTES + 1))
    broker, done = emitted([fits, too_big])
    assert len(broker.values("machines.facts")) == done.facts == 1
    assert done.oversized == [f"expected at most {MAX_FACT_BYTES} bytes a record, came {MAX_FACT_BYTES + 1} (line 2)"]


def test_standard_input_is_read_when_no_file_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(ROWS.encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    items = list(read_file(None, load_world("machines"), subject="m-1", max_ahead_ms=HOUR_MS))
    assert [item.subject for item in items if isinstance(item, NewFact)] == ["m-1"] * 3


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\n1,2\n"])
def test_a_file_is_refused_whole_when_it_has_no_header(file: Path, content: bytes) -> None:
    with pytest.raises(SetupFailed, match="header line"):
        items_of(file, content)


def test_a_missing_file_is_told_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="cannot read"):
        list(read_file(tmp_path / "none.csv", load_world("machines"), subject=None, max_ahead_ms=1))


def test_a_header_is_understood_when_it_has_a_byte_order_mark_and_blanks(file: Path) -> None:
    (fact,) = items_of(file, "\ufefftimestamp , value\r\n2014-01-01T00:00:00Z,1\r\n")
    assert isinstance(fact, NewFact)


def test_it_is_told_when_kafka_does_not_take_a_fact(file: Path) -> None:
    broker = StandInBroker(is_down=True)
    emitter = Emitter(load_domain("machines"), StandInProducer(broker), file_name="x")  # type: ignore[arg-type]
    with pytest.raises(SetupFailed, match="Kafka did not take: KafkaError: the broker is down"):
        emitter.emit(items_of(file, ROWS), rate=None)
    with pytest.raises(SetupFailed, match="did not take"):
        emitter.tick(1_400_000_000_000)


def test_an_input_of_events_ends_at_its_last_time_that_is_not_ahead_of_the_clock(file: Path) -> None:
    event = '{"specversion":"1.0","subject":"pump-7","time":%s}\n'
    times = ('"2014-01-01T00:00:00Z"', '"2014-01-01T00:05:00Z"', '"2199-01-01T00:00:00Z"', '"noon"', "7", "null")
    _, done = emitted(items_of(file, "".join(event % time for time in times)))
    assert (done.facts, done.last_event_ms) == (6, 1_388_534_700_000)


def test_every_partition_gets_a_tick_when_event_time_is_told() -> None:
    broker = StandInBroker()
    Emitter(load_domain("machines"), StandInProducer(broker), file_name="x").tick(1_400_000_000_000)  # type: ignore[arg-type]
    ticks = [orjson.loads(value or b"") for value in broker.values("machines.facts")]
    ticks += [orjson.loads(value or b"") for value in broker.values("machines.outcomes")]
    assert [t["type"] for t in ticks] == ["flyball.clock_ticked"] * 8
    assert len({t["id"] for t in ticks}) == 8


def test_a_row_is_refused_when_its_columns_are_not_the_domains() -> None:
    with pytest.raises(BadInput, match="timestamp and value"):
        load_world("machines").row_to_fact({"time": "2014-01-01T00:00:00Z", "value": "1"}, "m-1")


def test_facts_come_by_event_time_when_a_worlds_files_stand_in_no_order_of_time(file: Path) -> None:
    class Unordered:
        plays_by_time = True
        row_to_fact = load_world("machines").row_to_fact

    file.write_text(HEADER + "2014-01-09,9\n2014-01-01,1\nno time,5\n2014-01-05,5\n2014-01-01,2\n")
    items = list(read_file(file, Unordered(), subject=None, max_ahead_ms=HOUR_MS))  # type: ignore[arg-type]
    refused, *facts = items
    assert isinstance(refused, RefusedLine)
    assert refused.line == 4
    assert [item.data["temperature"] for item in facts if isinstance(item, NewFact)] == [1.0, 2.0, 5.0, 9.0]
