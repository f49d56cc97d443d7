"""The edge: what a raw record becomes, a fact or a cause. Every cause the edge gives has its rows."""

from __future__ import annotations

import base64
import json
import time

import pytest

from contracts.dead_letter import Cause, DeadLetter
from contracts.domain import load_domain
from contracts.envelope import check_event, derive_id, parse_time_ms, schema_urn
from contracts.errors import BadInput
from contracts.topics import DAY_MS, MAX_FACT_BYTES
from udfs.serde import Fact, FactReader, dead_letter, write_event
from udfs.sql_functions import ReadFact

TYPE = "machine.temperature_measured"
NOW_MS = parse_time_ms("2014-01-01T00:00:00Z")
READER = FactReader(load_domain("machines"), max_ahead_ms=3_600_000)
EVENT: dict[str, object] = {
    "specversion": "1.0",
    "id": "a1",
    "source": "/plant",
    "type": TYPE,
    "subject": "m1",
    "time": "2013-12-02T20:15:00Z",
    "datacontenttype": "application/json",
    "dataschema": schema_urn("machines", TYPE),
    "data": {"temperature": 73.5},
}
OUTCOME = {
    "event_time": "2013-12-02T20:15:00Z",
    "command_id": "c1",
    "action": "activate_cooling",
    "status": "succeeded",
}
ABSENT = object()


def raw(**changes: object) -> bytes:
    """A good temperature fact with members changed, added or (ABSENT) taken away."""
    event = {**EVENT, **changes}
    return json.dumps({k: v for k, v in event.items() if v is not ABSENT}).encode()


def with_data(text: bytes) -> bytes:
    """The good fact with this text as its data."""
    return raw(data="DATA").replace(b'"DATA"', text)


def read(value: bytes | None, key: bytes | None = b"m1") -> Fact:
    return READER.read(key, value, NOW_MS)


REFUSED: dict[str, tuple[Cause, bytes | None]] = {
    "tombstone": (Cause.TOMBSTONE, None),
    "empty": (Cause.EMPTY, b""),
    "blank": (Cause.EMPTY, b" \r\n\t"),
    "byte_ff": (Cause.NOT_UTF8, b"\xff"),
    "latin_1_in_text": (Cause.NOT_UTF8, raw(id="x").replace(b'"x"', b'"\xe4"')),
    "utf_16": (Cause.NOT_UTF8, raw().decode().encode("utf-16")),
    "surrogate_as_utf8": (Cause.NOT_UTF8, raw(id="x").replace(b'"x"', b'"\xed\xa0\x80"')),
    "overlong_utf8": (Cause.NOT_UTF8, raw(id="x").replace(b'"x"', b'"\xc0\xaf"')),
    "text": (Cause.NOT_JSON, b"temperature 73"),
    "open_brace": (Cause.NOT_JSON, b"{"),
    "cut_off": (Cause.NOT_JSON, raw()[:-1]),
    "two_documents": (Cause.NOT_JSON, raw() + raw()),
    "byte_order_mark": (Cause.NOT_JSON, b"\xef\xbb\xbf" + raw()),
    "single_quotes": (Cause.NOT_JSON, raw().replace(b'"', b"'")),
    "nested_100000": (Cause.NOT_JSON, b"[" * 100_000),
    "nan": (Cause.NOT_JSON, with_data(b'{"temperature": NaN}')),
    "infinity": (Cause.NOT_JSON, with_data(b'{"temperature": Infinity}')),
    "minus_infinity": (Cause.NOT_JSON, with_data(b'{"temperature": -Infinity}')),
    "nan_in_an_extension": (Cause.NOT_JSON, raw()[:-1] + b',"x": NaN}'),
    "lone_surrogate": (Cause.NOT_JSON, raw(subject="\ud800")),
    "nul_byte": (Cause.NOT_JSON, raw().replace(b"m1", b"m\x00")),
    "key_twice_in_data": (Cause.DUPLICATE_KEY, with_data(b'{"temperature": 1, "temperature": 2}')),
    "key_twice_same_value": (Cause.DUPLICATE_KEY, with_data(b'{"temperature":1,"temperature":1}')),
    "key_twice_escaped": (Cause.DUPLICATE_KEY, with_data(b'{"temperature":1,"\\u0074emperature":2}')),
    "key_twice_spaced": (Cause.DUPLICATE_KEY, with_data(b'{"temperature":1,"temperature" :2}')),
    "attribute_twice": (Cause.DUPLICATE_KEY, raw()[:-1] + b',"id":"b2"}'),
    "extension_twice": (Cause.DUPLICATE_KEY, raw()[:-1] + b',"x":1,"x":2}'),
    "data_twice": (Cause.DUPLICATE_KEY, raw()[:-1] + b',"data":{"temperature":1}}'),
    "key_twice_below_an_extension": (Cause.DUPLICATE_KEY, raw()[:-1] + b',"x":{"a":1,"a":2}}'),
    "array": (Cause.ENVELOPE_INVALID, b"[]"),
    "batch": (Cause.ENVELOPE_INVALID, b"[" + raw() + b"]"),
    "number": (Cause.ENVELOPE_INVALID, b"12"),
    "null": (Cause.ENVELOPE_INVALID, b"null"),
    "no_members": (Cause.ENVELOPE_INVALID, b"{}"),
    "bare_data": (Cause.ENVELOPE_INVALID, b'{"temperature": 73.5}'),
    **{
        f"{name}_missing": (Cause.ENVELOPE_INVALID, raw(**{name: ABSENT}))
        for name in ("specversion", "id", "source", "type", "subject", "time")
    },
    **{
        f"{name}_empty": (Cause.ENVELOPE_INVALID, raw(**{name: ""}))
        for name in ("specversion", "id", "source", "type", "subject", "time", "dataschema")
    },
    **{
        f"{name}_number": (Cause.ENVELOPE_INVALID, raw(**{name: 7}))
        for name in ("specversion", "id", "source", "type", "subject", "time", "correlationid")
    },
    "specversion_0_3": (Cause.ENVELOPE_INVALID, raw(specversion="0.3")),
    "id_too_long": (Cause.ENVELOPE_INVALID, raw(id="x" * 257)),
    "id_with_newline": (Cause.ENVELOPE_INVALID, raw(id="a\nb")),
    "subject_with_noncharacter": (Cause.ENVELOPE_INVALID, raw(subject="\U0010ffff")),
    "source_not_a_uri": (Cause.ENVELOPE_INVALID, raw(source="two words")),
    "source_of_bad_characters": (Cause.ENVELOPE_INVALID, raw(source="a|b")),
    "time_garbage": (Cause.ENVELOPE_INVALID, raw(time="lunchtime")),
    "time_without_offset": (Cause.ENVELOPE_INVALID, raw(time="2013-12-02T20:15:00")),
    "time_without_seconds": (Cause.ENVELOPE_INVALID, raw(time="2013-12-02T20:15+01:00")),
    "time_with_comma": (Cause.ENVELOPE_INVALID, raw(time="2013-12-02T20:15:00,5Z")),
    "time_no_such_day": (Cause.ENVELOPE_INVALID, raw(time="2013-02-29T20:15:00Z")),
    "content_is_xml": (Cause.ENVELOPE_INVALID, raw(datacontenttype="text/xml")),
    "hops_negative": (Cause.ENVELOPE_INVALID, raw(hops=-1)),
    "hops_text": (Cause.ENVELOPE_INVALID, raw(hops="1")),
    "hops_true": (Cause.ENVELOPE_INVALID, raw(hops=True)),
    "hops_too_many": (Cause.ENVELOPE_INVALID, raw(hops=10**9)),
    "hops_of_5000_digits": (Cause.NOT_JSON, raw()[:-1] + b',"hops":' + b"9" * 5000 + b"}"),
    "extension_badly_named": (Cause.ENVELOPE_INVALID, raw(**{"my.ext": "x"})),
    "extension_float": (Cause.ENVELOPE_INVALID, raw(x=1.5)),
    "extension_object": (Cause.ENVELOPE_INVALID, raw(x={"a": 1})),
    "both_kinds_of_data": (Cause.ENVELOPE_INVALID, raw(data_base64="e30=")),
    "type_unknown": (Cause.UNKNOWN_TYPE, raw(type="machine.exploded")),
    "type_of_another_domain": (Cause.UNKNOWN_TYPE, raw(type="payment.charged_back")),
    "type_upper_case": (Cause.UNKNOWN_TYPE, raw(type=TYPE.upper())),
    "type_of_a_situation": (Cause.UNKNOWN_TYPE, raw(type="machines.reading_scored")),
    "type_of_a_command": (Cause.UNKNOWN_TYPE, raw(type="flyball.command")),
    "version_2": (Cause.WRONG_VERSION, raw(dataschema=schema_urn("machines", TYPE, 2))),
    "version_of_another_domain": (Cause.WRONG_VERSION, raw(dataschema=schema_urn("payments", TYPE))),
    "version_of_another_type": (
        Cause.WRONG_VERSION,
        raw(dataschema=schema_urn("machines", "flyball.outcome")),
    ),
    "version_2_with_other_data": (
        Cause.WRONG_VERSION,
        raw(dataschema=schema_urn("machines", TYPE, 2), data={"celsius": 1}),
    ),
    "data_missing": (Cause.DATA_INVALID, raw(data=ABSENT)),
    "data_null": (Cause.DATA_INVALID, raw(data=None)),
    "data_text": (Cause.DATA_INVALID, raw(data='{"temperature": 73.5}')),
    "data_array": (Cause.DATA_INVALID, raw(data=[73.5])),
    "data_base64_instead": (Cause.DATA_INVALID, raw(data=ABSENT, data_base64="e30=")),
    "field_missing": (Cause.DATA_INVALID, raw(data={})),
    "field_unknown": (Cause.DATA_INVALID, raw(data={"temperature": 1.0, "unit": "C"})),
    "field_null": (Cause.DATA_INVALID, raw(data={"temperature": None})),
    "field_text": (Cause.DATA_INVALID, raw(data={"temperature": "73.5"})),
    "field_bool": (Cause.DATA_INVALID, raw(data={"temperature": True})),
    "field_array": (Cause.DATA_INVALID, raw(data={"temperature": [73.5]})),
    "field_too_large": (Cause.DATA_INVALID, raw(data={"temperature": 1e13})),
    "field_too_small": (Cause.DATA_INVALID, raw(data={"temperature": -1e13})),
    "field_overflows": (Cause.DATA_INVALID, with_data(b'{"temperature": 1e999}')),
    "field_of_5000_digits": (Cause.NOT_JSON, with_data(b'{"temperature": %s}' % (b"9" * 5000))),
    "fields_of_another_type": (Cause.DATA_INVALID, raw(data=OUTCOME)),
    "outcome_of_no_status": (
        Cause.DATA_INVALID,
        raw(type="flyball.outcome", dataschema=ABSENT, data={**OUTCOME, "status": "perhaps"}),
    ),
    "time_before_1970": (Cause.TIME_ABSURD, raw(time="1969-12-31T23:59:59.999Z")),
    "time_year_0": (Cause.TIME_ABSURD, raw(time="0000-01-01T00:00:00Z")),
    "time_year_13": (Cause.TIME_ABSURD, raw(time="0013-12-02T20:15:00Z")),
    "time_a_millisecond_too_far_ahead": (Cause.TIME_AHEAD, raw(time="2014-01-01T01:00:00.001Z")),
    "time_ahead_by_its_offset": (Cause.TIME_AHEAD, raw(time="2014-01-01T00:30:00-01:00")),
    "time_year_9999": (Cause.TIME_AHEAD, raw(time="9999-12-31T23:59:59Z")),
    "time_year_9999_leap_second": (Cause.TIME_AHEAD, raw(time="9999-12-31T23:59:60Z")),
    "too_large": (Cause.TOO_LARGE, b" " * (MAX_FACT_BYTES + 1)),
    "too_large_and_good": (Cause.TOO_LARGE, raw() + b" " * MAX_FACT_BYTES),
}


@pytest.mark.parametrize(("cause", "value"), REFUSED.values(), ids=REFUSED)
def test_a_record_is_refused_with_its_cause_when_it_is_bad(cause: Cause, value: bytes | None) -> None:
    with pytest.raises(BadInput) as refused:
        read(value)
    assert refused.value.code == cause
    assert 0 < len(str(refused.value)) <= 2000


OUTCOME_EVENT = raw(type="flyball.outcome", dataschema=ABSENT, data=OUTCOME)


@pytest.mark.parametrize(
    ("days", "topic", "kind"),
    [(29, "outcomes", "outcome"), (31, "outcomes", "clock_ticked"), (200, "outcomes", "clock_ticked"), (200, "facts", "")],
)
def test_an_outcome_is_only_a_tick_when_facts_of_its_time_are_gone(days: int, topic: str, kind: str) -> None:
    """Without state, `context` reads all outcomes there ever were."""
    context = ReadFact("machines", 3600, (), "accepted", 86_400)
    context.open(None)  # type: ignore[arg-type]
    event = OUTCOME_EVENT if topic == "outcomes" else raw()
    row = context.eval(b"m1", event, f"machines.{topic}", 0, 0, int(time.time() * 1000) - days * DAY_MS)
    assert row[4] == (f"flyball.{kind}" if topic == "outcomes" else "machine.temperature_measured")


def test_an_outcome_counts_from_when_it_is_told() -> None:
    reader = FactReader(load_domain("machines"), max_ahead_ms=3_600_000, outcomes_since_ms=NOW_MS)
    found = [reader.read(b"m1", OUTCOME_EVENT, NOW_MS + late_ms, "machines.outcomes").type for late_ms in (-1, 0)]
    assert found == ["flyball.clock_ticked", "flyball.outcome"]


@pytest.mark.parametrize(
    "key", [None, b"", b"m2", b"M1", b"m1 ", b"\xff", b'"m1"'], ids=lambda key: repr(key)
)
def test_a_fact_is_refused_when_its_key_is_not_its_subject(key: bytes | None) -> None:
    with pytest.raises(BadInput) as refused:
        read(raw(), key)
    assert refused.value.code == Cause.KEY_MISMATCH


def test_every_cause_of_the_edge_has_a_row_when_counted() -> None:
    elsewhere = {Cause.KEY_MISMATCH, Cause.ROW_INVALID, Cause.MODEL_REFUSED, Cause.POLICY_REFUSED, Cause.REPLY_REFUSED, Cause.AGENT_GONE,
        # tests/unit/test_signed_facts.py, tests/flink/test_signed_facts.py
        Cause.HANDLER_FAILED, Cause.SIGNATURE_INVALID, Cause.SIGNATURE_MISSING, Cause.SIGNATURE_MISPLACED, Cause.SIGNATURE_EXPIRED,
        Cause.PRODUCER_UNKNOWN, Cause.PRODUCER_NOT_PERMITTED, Cause.REPLAYED,
        Cause.INTERNAL,  # tests/unit/test_internal.py
    }
    assert {cause for cause, _ in REFUSED.values()} == set(Cause) - elsewhere


ACCEPTED: dict[str, bytes] = {
    "as_it_is": raw(),
    "whole_number": raw(data={"temperature": 73}),
    "largest": raw(data={"temperature": 1e12}),
    "exponent": with_data(b'{"temperature": 7.35E1}'),
    "no_dataschema": raw(dataschema=ABSENT),
    "no_content_type": raw(datacontenttype=ABSENT),
    "attributes_null": raw(dataschema=None, datacontenttype=None, hops=None, correlationid=None),
    "unknown_extensions": raw(x="y", n=1, b=True, nothing=None),
    "key_spelt_with_escapes": with_data(b'{"\\u0074emperature": 73.5}'),
    "blanks_and_newlines": json.dumps(EVENT, indent=3).replace('":', '" :').encode() + b"\n",
    "text_that_looks_like_a_key": raw(id='a":"b":'),
    "time_with_offset": raw(time="2013-12-02T21:15:00+01:00"),
    "time_at_the_limit": raw(time="2014-01-01T01:00:00Z"),
    "time_of_1970": raw(time="1970-01-01T00:00:00Z"),
    "one_mebibyte": raw(x="y" * 2**20),
    "two_mebibytes": raw() + b" " * (MAX_FACT_BYTES - len(raw())),
}


@pytest.mark.parametrize("value", ACCEPTED.values(), ids=ACCEPTED)
def test_a_record_is_read_when_it_fits_its_contract(value: bytes) -> None:
    fact = read(value)
    assert (fact.type, fact.subject, fact.hops) == (TYPE, "m1", 0)


@pytest.mark.parametrize("value", ACCEPTED.values(), ids=ACCEPTED)
def test_a_record_is_a_cloud_event_when_the_edge_accepts_it(value: bytes) -> None:
    assert check_event(value) == {"valid": True, "error": None}


def test_a_subject_is_kept_byte_for_byte_when_it_is_not_ascii() -> None:
    fact = read(raw(subject="Kühler 🐱 1"), "Kühler 🐱 1".encode())
    assert fact.subject == "Kühler 🐱 1"


def test_event_time_is_the_instant_when_written_with_an_offset() -> None:
    assert read(raw(time="2013-12-02T21:15:00.5+01:00")).event_ms == 1386015300500


def test_a_chain_starts_with_the_fact_itself_when_it_names_none() -> None:
    assert read(raw()).correlation_id == "a1"
    assert read(raw(correlationid="c9")).correlation_id == "c9"


def test_a_fact_is_read_as_written_when_write_event_made_it() -> None:
    value = write_event(
        event_id="e1", source="/flyball/machines/emit", event_type=TYPE, subject="m1",
        time_ms=1386015300120, dataschema=schema_urn("machines", TYPE), data={"temperature": 1.5},
        correlation_id="c1", causation_id="e0", hops=3, traceparent="00-1-2-01",
    )  # fmt: skip
    fact = read(value)
    assert (fact.fact_id, fact.event_ms, fact.correlation_id, fact.hops, fact.traceparent) == (
        "e1", 1386015300120, "c1", 3, "00-1-2-01",
    )  # fmt: skip
    assert fact.data.model_dump() == {"temperature": 1.5}


def test_a_fact_is_judged_by_its_append_time_when_replayed_later() -> None:
    """ "Now" is an argument, so the same record has the same fate whenever it is read."""
    value = raw(time="2014-01-01T02:00:00Z")
    with pytest.raises(BadInput):
        READER.read(b"m1", value, NOW_MS)
    assert READER.read(b"m1", value, NOW_MS + 3_600_000).fact_id == "a1"


def letter(value: bytes | None, key: bytes | None = b"m1") -> tuple[str, dict[str, object]]:
    place, event = dead_letter(
        domain="machines", stage="context", cause=Cause.NOT_JSON, message="x" * 5000,
        topic="machines.facts", partition=2, offset=17, key=key, value=value, now_ms=NOW_MS,
    )  # fmt: skip
    assert check_event(event)["valid"]
    return place, json.loads(event)


@pytest.mark.parametrize("value", [b"", b"\xff\x00", b"{bad", None])
def test_a_dead_letter_gives_back_the_bytes_when_any_were_refused(value: bytes | None) -> None:
    place, event = letter(value)
    data = DeadLetter.model_validate_json(json.dumps(event["data"]))
    assert place == event["subject"] == "machines.facts/2/17"
    assert (data.topic, data.partition, data.offset, len(data.message)) == ("machines.facts", 2, 17, 2000)
    found = None if data.value_base64 is None else base64.b64decode(data.value_base64)
    assert found == value


def test_a_dead_letter_has_the_same_id_when_the_record_is_read_again() -> None:
    _, first = letter(b"a")
    _, again = letter(b"a")
    assert first["id"] == again["id"] == derive_id("machines.facts/2/17", "context", "dead-letter")
