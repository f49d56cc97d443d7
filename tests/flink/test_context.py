"""Job `context` on the real cluster: both lanes, duplicates, late facts."""

from __future__ import annotations

from contracts.envelope import derive_id, format_time_ms, parse_time_ms
from jobs.context import DEDUPLICATION_ROWS
from tests.loop import Loop, reading

START_MS = parse_time_ms("2014-03-01T00:00:00Z")
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def test_a_situation_comes_out_typed_and_with_a_derived_id_when_a_fact_goes_in(machines: Loop) -> None:
    (fact_id,) = machines.emit(reading("typed-1", START_MS + 500, 71.25))
    (situation,) = machines.wait_for(
        "the situation", lambda: machines.situations("reading_scored", "typed-1")
    )
    assert situation["id"] == derive_id(fact_id, "context", "machines.reading_scored")
    assert situation["causationid"] == situation["correlationid"] == fact_id
    assert situation["hops"] == 0
    assert situation["time"] == format_time_ms(START_MS + 500)
    assert situation["dataschema"] == "urn:flyball:machines:machines.reading_scored:1"
    data = situation["data"]
    assert machines.contract.situations["machines.reading_scored"].model_validate(data)
    assert (data["temperature"], data["readings_seen"], data["deviation"]) == (71.25, 1, 0.0)


def test_duplicates_are_dropped_when_they_come_within_the_remembered_rows(machines: Loop) -> None:
    facts = [reading("twice-1", START_MS + n * MINUTE_MS, 20 + n) for n in range(DEDUPLICATION_ROWS)]
    events = machines.encode(*facts, *(reading("twice-1", START_MS + n * HOUR_MS) for n in (1, 2)))
    log = [*events[:-2], events[0], events[-2], events[-2], events[5], events[-1]]
    machines.send("facts", *(("twice-1", event) for event in log))
    seen = machines.wait_for(
        "every reading once",
        lambda: (s := machines.events("situations", "twice-1", type_="machines.reading_scored"))
        and len(s) >= len(events) and s,
    )  # fmt: skip
    assert [s["data"]["readings_seen"] for s in seen] == list(range(1, len(events) + 1))


def test_readings_keep_the_order_of_their_log_when_their_times_do_not(machines: Loop) -> None:
    minutes = [5, 1, 9, 0, 3]
    machines.emit(*(reading("unordered-1", START_MS + m * MINUTE_MS, float(m)) for m in minutes))
    seen = machines.wait_for(
        "five situations",
        lambda: len(s := machines.situations("reading_scored", "unordered-1")) == 5 and s,
    )
    assert [s["data"]["temperature"] for s in seen] == [5.0, 1.0, 9.0, 0.0, 3.0]
    assert [s["data"]["readings_seen"] for s in seen] == [1, 2, 3, 4, 5]


def test_a_pattern_is_found_once_when_four_hot_readings_climb(machines: Loop) -> None:
    usual = [20.0 + n % 7 for n in range(80)]
    fast = [*usual, 60, 61, 62, 63, 64, 60, 61, 61, 62, 63]
    slow = [*usual, 60, 61, 62, 63, 20]
    ids = machines.emit(*(reading("climb-1", START_MS + n * MINUTE_MS, t) for n, t in enumerate(fast)))
    machines.emit(*(reading("climb-2", START_MS + n * 5 * HOUR_MS, t) for n, t in enumerate(slow)))
    for subject, temperatures in (("climb-1", fast), ("climb-2", slow)):
        machines.wait_for(
            f"all readings of {subject}",
            lambda s=subject, t=temperatures: len(machines.situations("reading_scored", s)) == len(t),
        )
    (match,) = machines.wait_for(
        "the climb", lambda: machines.situations("temperature_climbing", "climb-1")
    )
    assert match["data"] | {"event_time": None} == {
        "event_time": None, "first_temperature": 60.0, "last_temperature": 63.0, "climbing_s": 180,
    }  # fmt: skip
    assert match["causationid"] == ids[83]
    assert machines.situations("temperature_climbing", "climb-2") == [], "15 hours are too slow a climb"


def test_windows_close_and_late_readings_are_kept_when_event_time_passes(machines: Loop) -> None:
    """One test, because event time belongs to the whole domain: it only goes forward."""
    start_ms = parse_time_ms("2020-06-01T00:00:00Z")
    wild = reading("hourly-1", parse_time_ms("2999-01-01T00:00:00Z"))
    machines.emit(wild)  # refused, and it moves no clock: the readings behind it are not late
    machines.emit(
        reading("hourly-1", start_ms + 1 * MINUTE_MS, 10.0),
        reading("hourly-1", start_ms + 30 * MINUTE_MS, 40.0),
        reading("hourly-1", start_ms + 59 * MINUTE_MS, 10.0),
        reading("hourly-1", start_ms + 60 * MINUTE_MS, 99.0),
    )
    machines.wait_for("readings", lambda: len(machines.situations("reading_scored", "hourly-1")) == 4)
    assert machines.situations("hourly_profile", "hourly-1") == [], "the window is still open"

    machines.tick(start_ms + 3 * HOUR_MS)
    first, second = machines.wait_for(
        "two hours", lambda: len(s := machines.situations("hourly_profile", "hourly-1")) == 2 and s
    )
    assert first["data"] == {
        "event_time": "2020-06-01T01:00:00.000Z", "readings": 3, "mean_temperature": 20.0,
        "min_temperature": 10.0, "max_temperature": 40.0,
    }  # fmt: skip
    assert second["data"]["readings"] == 1

    late = reading("hourly-1", start_ms + 45 * MINUTE_MS, 50.0)
    (late_id,) = machines.emit(late)
    (kept,) = machines.wait_for(
        "the late reading", lambda: machines.events("late-facts", "hourly-1", fact_id=late_id)
    )
    assert kept["data"]["topic"] == "machines.facts"
    fast = machines.wait_for(
        "the fast lane", lambda: len(s := machines.situations("reading_scored", "hourly-1")) == 5 and s
    )
    assert fast[-1]["causationid"] == late_id, "the fast lane uses what the windows cannot"
    assert len(machines.situations("hourly_profile", "hourly-1")) == 2
