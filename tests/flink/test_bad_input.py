"""A storm of bad records on every topic: each lands in dead letters, the good ones between them come out."""

from __future__ import annotations

import base64
import re

import pytest
from kafka import KafkaProducer

from contracts.dead_letter import DeadLetter
from contracts.envelope import parse_time_ms
from contracts.topics import MAX_FACT_BYTES
from ops.player import Emitter, RawEvent
from tests.loop import Loop, reading
from udfs.serde import MAX_KEPT_BYTES

START_MS = parse_time_ms("2014-04-01T00:00:00Z")
SUBJECT = "storm-1"
GOOD = (
    '{"specversion":"1.0","id":"storm-bad","source":"/test","type":"machine.temperature_measured",'
    '"subject":"storm-1","time":"2014-04-01T00:00:00Z","datacontenttype":"application/json",'
    '"dataschema":"urn:flyball:machines:machine.temperature_measured:1","data":{"temperature":20.5}}'
)


def but(old: str, new: str) -> bytes:
    """The good event with one thing about it changed."""
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new).encode()


# what is wrong -> the record's value, the cause in its dead letter
STORM: dict[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "tombstone"),
    "empty": (b"", "empty"),
    "blank": (b" \n ", "empty"),
    "prose": (b"hello", "not_json"),
    "cut off": (GOOD[:-1].encode(), "not_json"),
    "two events in one": (f"{GOOD}{GOOD}".encode(), "not_json"),
    "too deep": (b"[" * 100_000, "not_json"),
    "a number": (b"5", "envelope_invalid"),
    "null": (b"null", "envelope_invalid"),
    "a batch": (f"[{GOOD}]".encode(), "envelope_invalid"),
    "not UTF-8": (GOOD.encode().replace(b"storm-bad", b"storm-\xff\xfe"), "not_utf8"),
    "binary": (bytes(range(256)), "not_utf8"),
    "UTF-16": (GOOD.encode("utf-16"), "not_utf8"),
    "NaN": (but("20.5", "NaN"), "not_json"),
    "infinity": (but("20.5", "Infinity"), "not_json"),
    "minus infinity": (but("20.5", "-Infinity"), "not_json"),
    "a number past double": (but("20.5", "1e999"), "data_invalid"),
    "key twice in data": (but('{"temperature":20.5}', '{"temperature":1,"temperature":2}'), "duplicate_key"),
    "key twice, escaped": (but('{"temperature":20.5}', '{"temperature":1,"temp\\u0065rature":2}'), "duplicate_key"),
    "key twice outside": (but('"id":"storm-bad"', '"id":"a","id":"b"'), "duplicate_key"),
    "unknown type": (but('"type":"machine.temperature_measured"', '"type":"machine.exploded"'), "unknown_type"),
    "other version": (but("measured:1", "measured:2"), "wrong_version"),
    "other domain": (but("urn:flyball:machines", "urn:flyball:payments"), "wrong_version"),
    "unknown field": (but('{"temperature":20.5}', '{"temperature":20.5,"x":1}'), "data_invalid"),
    "missing field": (but('{"temperature":20.5}', "{}"), "data_invalid"),
    "text for a number": (but("20.5", '"20.5"'), "data_invalid"),
    "bool for a number": (but("20.5", "true"), "data_invalid"),
    "null for a number": (but("20.5", "null"), "data_invalid"),
    "list for a number": (but("20.5", "[20.5]"), "data_invalid"),
    "past its bounds": (but("20.5", "1e13"), "data_invalid"),
    "data is text": (but('{"temperature":20.5}', '"20.5"'), "data_invalid"),
    "no data": (but(',"data":{"temperature":20.5}', ""), "data_invalid"),
    "no id": (but('"id":"storm-bad",', ""), "envelope_invalid"),
    "no subject": (but('"subject":"storm-1",', ""), "envelope_invalid"),
    "no time": (but('"time":"2014-04-01T00:00:00Z",', ""), "envelope_invalid"),
    "specversion 0.3": (but('"1.0"', '"0.3"'), "envelope_invalid"),
    "id is a number": (but('"storm-bad"', "7"), "envelope_invalid"),
    "control character": (but("storm-bad", "storm\\u0000bad"), "envelope_invalid"),
    "upper-case attribute": (but('"id":"storm-bad"', '"id":"storm-bad","Extra":1'), "envelope_invalid"),
    "time is prose": (but("2014-04-01T00:00:00Z", "yesterday"), "envelope_invalid"),
    "time without offset": (but("2014-04-01T00:00:00Z", "2014-04-01T00:00:00"), "envelope_invalid"),
    "no such day": (but("2014-04-01T00:00:00Z", "2014-02-30T00:00:00Z"), "envelope_invalid"),
    "month 99": (but("2014-04-01T00:00:00Z", "2014-99-01T00:00:00Z"), "envelope_invalid"),
    "before 1970": (but("2014-04-01T00:00:00Z", "1492-10-12T00:00:00Z"), "time_absurd"),
    "year 0": (but("2014-04-01T00:00:00Z", "0000-01-01T00:00:00Z"), "time_absurd"),
    "far ahead": (but("2014-04-01T00:00:00Z", "2999-01-01T00:00:00Z"), "time_ahead"),
    "end of time": (but("2014-04-01T00:00:00Z", "9999-12-31T23:59:59Z"), "time_ahead"),
    "other key": (but('"subject":"storm-1"', '"subject":"storm-2"'), "key_mismatch"),
    "1 MiB of prose": (b"x" * 2**20, "not_json"),
    "one byte past 2 MiB": (b"x" * (MAX_FACT_BYTES + 1), "too_large"),
}  # fmt: skip


def check_letter(loop: Loop, place: str, key: bytes, value: bytes | None, stage: str) -> DeadLetter:
    """The dead letter about `place`: whole, valid by its contract, with the original bytes."""
    event = loop.dead_letter(place)
    letter = DeadLetter.model_validate({**event["data"], "cause": _cause(event)})
    topic, partition, offset = place.rsplit("/", 2)
    assert (letter.topic, letter.partition, letter.offset) == (topic, int(partition), int(offset))
    assert letter.stage == stage
    assert letter.message
    assert letter.key_base64 is not None and base64.b64decode(letter.key_base64) == key
    if value is None:
        assert letter.value_base64 is None
    else:
        assert letter.value_base64 is not None and base64.b64decode(letter.value_base64) == value
    return letter


def _cause(event: dict[str, dict[str, str]]) -> object:
    from contracts.dead_letter import Cause

    return Cause(event["data"]["cause"])


def test_good_facts_come_out_and_bad_ones_are_kept_when_a_storm_comes(machines: Loop) -> None:
    good = [reading(SUBJECT, START_MS + n * 60_000, float(n)) for n in range(len(STORM) + 1)]
    events = machines.encode(*good)
    log: list[tuple[str, bytes | None]] = [(SUBJECT, events[0])]
    for event, (value, _) in zip(events[1:], STORM.values(), strict=True):
        log += [(SUBJECT, value), (SUBJECT, event)]
    places = machines.send("facts", *log)[1::2]
    before = machines.restarts()

    seen = machines.wait_for(
        "every good reading",
        lambda: len(s := machines.situations("reading_scored", SUBJECT)) >= len(good) and s,
    )
    assert [s["data"]["readings_seen"] for s in seen] == list(range(1, len(good) + 1))
    found = {
        name: str(check_letter(machines, place, SUBJECT.encode(), value, "context").cause)
        for place, (name, (value, _)) in zip(places, STORM.items(), strict=True)
    }
    assert found == {name: cause for name, (_, cause) in STORM.items()}
    assert machines.restarts() == before, "no bad record restarts a job"


def test_a_fact_without_key_is_refused_when_its_subject_names_one(machines: Loop) -> None:
    (place,) = machines.send("facts", (None, GOOD.encode()))
    event = machines.dead_letter(place)
    assert (event["data"]["cause"], event["data"].get("key_base64")) == ("key_mismatch", None)


def test_a_fact_of_one_mebibyte_is_used_when_it_is_good(machines: Loop) -> None:
    event = GOOD.replace("storm-1", "heavy-1").replace('"data":', f'"note":"{"x" * 2**20}","data":')
    machines.send("facts", ("heavy-1", event.encode()))
    machines.wait_for("the situation", lambda: machines.situations("reading_scored", "heavy-1"))


def test_the_producer_refuses_with_a_clear_error_when_a_record_is_over_two_mebibytes(machines: Loop) -> None:
    emitter = Emitter(machines.contract, machines._writer, file_name="big.jsonl")
    done = emitter.emit([RawEvent(7, b"heavy-2", b"x" * (MAX_FACT_BYTES + 1))], rate=None)
    assert done.facts == 0
    assert done.oversized == [f"expected at most {MAX_FACT_BYTES} bytes a record, came {MAX_FACT_BYTES + 1} (line 7)"]


def test_the_job_goes_on_when_compression_carries_a_record_past_the_brokers_limit(machines: Loop) -> None:
    value = b" " * (8 * 2**20)
    writer = KafkaProducer(
        bootstrap_servers=machines.bootstrap, compression_type="gzip", max_request_size=2 * len(value),
        metrics_enabled=False,
    )  # fmt: skip
    done = writer.send("machines.facts", key=b"zipped-1", value=value).get(timeout=60)
    writer.close()
    machines.emit(reading("zipped-1", START_MS))
    machines.wait_for("the reading behind it", lambda: machines.situations("reading_scored", "zipped-1"))
    letter = machines.dead_letter(f"{done.topic}/{done.partition}/{done.offset}")["data"]
    assert letter["cause"] == "too_large"
    assert re.search(rf"first {MAX_KEPT_BYTES} of {len(value)} bytes", letter["message"])
    assert base64.b64decode(letter["value_base64"]) == value[:MAX_KEPT_BYTES]


SITUATION = (
    b'{"specversion":"1.0","id":"s","source":"/t","type":"machines.cooling_failed","subject":"junk-1","hops":0,'
    b'"data":{"event_time":"2014-04-01T00:00:00Z","command_id":"c","detail":"d"}}'
)
PROPOSAL = (
    b'{"specversion":"1.0","id":"p","source":"/t","type":"flyball.proposal","subject":"junk-1","hops":0,"data":'
    b'{"event_time":"2014-04-01T00:00:00Z","agent":"a","agent_version":1,"action":"activate_cooling",'
    b'"parameters":{"duration_s":60},"confidence":0.9,"reason":"","situation_type":"machines.reading_scored",'
    b'"features":{},"features_at":"2014-04-01T00:00:00Z"}}'
)
OUTCOME = (
    b'{"specversion":"1.0","id":"o","source":"/t","type":"flyball.outcome","subject":"junk-1",'
    b'"time":"2014-04-01T00:00:00Z","data":{"event_time":"2014-04-01T00:00:00Z","command_id":"c",'
    b'"action":"activate_cooling","status":"failed","detail":""}}'
)
COMMAND = (
    b'{"specversion":"1.0","id":"c","source":"/t","type":"flyball.command","subject":"junk-1","hops":0,"data":'
    b'{"event_time":"2014-04-01T00:00:00Z","command_id":"junk-c","action":"activate_cooling",'
    b'"parameters":{},"agent":"a","decision_id":"d","proposal_id":"p","reason":""}}'
)
POLICY = (
    b'{"specversion":"1.0","id":"x","source":"/t","type":"flyball.policy","subject":"junk/1","data":'
    b'{"policy_id":"junk","version":1,"status":"active","when":"true","verdict":"hold","reason":"r"}}'
)
MODEL = (
    b'{"specversion":"1.0","id":"x","source":"/t","type":"flyball.model","subject":"junk/1","data":'
    b'{"alias":"machine-health","version":9,"status":"active","format":"onnx","sha256":"'
    + b"0" * 64
    + b'","artefact_base64":"AAAA","inputs":["jump"],"output":"confidence","trained_on":""}}'
)
ANY = [None, b"", b"{nope", b"\xff\xfe", b"7", b"[]", b"null", b"{}", b'{"type":7,"data":[]}']

# topic -> who writes the dead letter, the record's key, the bad values
INNER: dict[str, tuple[str, str, list[bytes | None]]] = {
    "outcomes": ("context", "junk-1", [
        *ANY,
        OUTCOME.replace(b'"failed"', b'"exploded"'),
        OUTCOME.replace(b'"command_id":"c",', b""),
        OUTCOME.replace(b'"detail":""', b'"detail":NaN'),
        OUTCOME.replace(b'"detail":""', b'"detail":"' + b"x" * 2000 + b'"'),
    ]),
    "situations": ("propose", "junk-1", [
        *ANY,
        SITUATION.replace(b"cooling_failed", b"exploded"),
        SITUATION.replace(b'"subject":"junk-1"', b'"subject":5'),
        SITUATION.replace(b'"subject":"junk-1"', b'"subject":"junk-2"'),
        SITUATION.replace(b'"id":"s"', b'"id":{}'),
        SITUATION.replace(b'"hops":0', b'"hops":1e30'),
        SITUATION.replace(b'"hops":0', b'"hops":-1'),
        SITUATION.replace(b'"hops":0,', b""),
        SITUATION.replace(b'"detail":"d"', b'"detail":"d","x":1'),
        SITUATION.replace(b"2014-04-01T", b"2014-04-31T"),
        SITUATION.replace(b'"2014-04-01T00:00:00Z"', b"5"),
    ]),
    "proposals": ("govern", "junk-1", [
        *ANY,
        PROPOSAL.replace(b"activate_cooling", b"launch_missiles"),
        PROPOSAL.replace(b'"duration_s":60', b'"duration_s":"60"'),
        PROPOSAL.replace(b'"duration_s":60', b'"duration_s":60,"x":1'),
        PROPOSAL.replace(b'"confidence":0.9', b'"confidence":1.5'),
        PROPOSAL.replace(b'"confidence":0.9', b'"confidence":NaN'),
        PROPOSAL.replace(b'"subject":"junk-1"', b'"subject":5'),
        PROPOSAL.replace(b'"subject":"junk-1"', b'"subject":"junk-2"'),
        PROPOSAL.replace(b'"hops":0', b'"hops":1e30'),
        PROPOSAL.replace(b'"hops":0', b'"hops":true'),
        PROPOSAL.replace(b'"event_time":"2014-04-01', b'"event_time":"2014-04-31'),
        PROPOSAL.replace(b"flyball.proposal", b"flyball.command"),
    ]),
    "commands": ("actuator", "junk-1", [
        *ANY,
        COMMAND.replace(b'"agent":"a",', b""),
        COMMAND.replace(b'"hops":0,', b""),
        COMMAND.replace(b"2014-04-01", b"2014-04-31"),
    ]),
    "policies": ("govern", "junk/1", [
        *ANY,
        POLICY.replace(b'"true"', b'"confidence >"'),
        POLICY.replace(b'"hold"', b'"perhaps"'),
        POLICY.replace(b'"version":1', b'"version":0'),
        POLICY.replace(b'"reason":"r"', b'"reason":"r","variables":{"nonsense":"int"}'),
        POLICY.replace(b'"reason":"r"', b'"reason":"r","x":1'),
        b'{"type":"flyball.switch","data":{"paused":"yes"}}',
        b'{"type":"flyball.switch"}',
    ]),
    "models": ("propose", "junk/1", [
        *ANY,
        MODEL,
        MODEL.replace(b'"AAAA"', b'"not base64!"'),
        MODEL.replace(b'"onnx"', b'"pickle"'),
        MODEL.replace(b'"version":9', b'"version":"9"'),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_bad_records_are_kept_and_the_job_goes_on_when_they_come_on_an_inner_topic(
    machines: Loop, name: str
) -> None:
    stage, key, values = INNER[name]
    before = machines.restarts()
    places = machines.send(name, *((key, value) for value in values))
    for place, value in zip(places, values, strict=True):
        check_letter(machines, place, key.encode(), value, stage)
    assert machines.restarts() == before
    subject = f"after-{name}"
    machines.emit(reading(subject, START_MS))
    machines.wait_for(
        "a reading behind them", lambda: machines.situations("reading_scored", subject)
    )
