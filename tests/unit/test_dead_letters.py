"""Dead letters without a broker: which became what, which may be put back, and as what."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from contracts.dead_letter import Redriven
from contracts.envelope import parse_time_ms
from contracts.errors import BadInput, SetupFailed
from ops import dead_letters, kafka, redrive
from ops.dead_letters import Claim, History, Mark, Standing, choose, judged, sha256
from ops.redrive import choose_corrected, corrected_lines, edit, judges, plan
from tests.kafka_stand_in import StandInBroker, StandInConsumer
from udfs.serde import MAX_KEPT_BYTES, dead_letter, write_event

NOW_MS = parse_time_ms("2026-01-01T12:00:00Z")
GOOD: dict[str, Any] = {
    "specversion": "1.0", "id": "f-1", "source": "/test", "type": "machine.temperature_measured", "subject": "m-1",
    "time": "2014-04-01T00:00:00Z", "data": {"temperature": 20.5},
}  # fmt: skip


def a_letter(
    offset: int = 0, *, topic: str = "machines.facts", value: bytes | None = b"{nope", key: bytes | None = b"m-1",
    stage: str = "context", cause: str = "not_json", at_ms: int = NOW_MS,
) -> bytes:  # fmt: skip
    return dead_letter(
        domain="machines", stage=stage, cause=cause, message="m", topic=topic, partition=0, offset=offset, key=key,
        value=value, now_ms=at_ms,
    )[1]  # fmt: skip


def a_mark(letter: bytes, offset: int, /, **changes: Any) -> bytes:
    """The record of `letter` was put back at `offset`; `changes` are in data, `envelope` ones around it."""
    (history,) = histories([letter])
    envelope = changes.pop("envelope", {})
    event = orjson.loads(
        write_event(
            event_id=f"r-{offset}", source="/test", event_type=Redriven.event_type, subject=history.letter.place,
            time_ms=NOW_MS, dataschema="urn:x", causation_id=history.letter.id,
            data={
                "refused_sha256": history.letter.mark[1], "attempt": 1, "is_edited": False, "topic": "machines.facts",
                "partition": 0, "offset": offset, "sha256": history.letter.mark[1], **changes,
            },
        )
    )  # fmt: skip
    return orjson.dumps(event | envelope)


def histories(
    values: Sequence[bytes | None], *, forged: Collection[int] = (), unknown: Collection[int] = (), of: Collection[Mark] | None = None
) -> list[History]:
    """Of a topic with these records; what claims to be put back at one of `forged` offsets is not there, of `unknown` is gone."""

    def standing(claim: Claim) -> Standing:
        return "forged" if claim.put.offset in forged else "unknown" if claim.put.offset in unknown else "there"

    records = [kafka.Record("machines.dead-letters", 0, at, NOW_MS, None, value) for at, value in enumerate(values)]
    return dead_letters.histories("machines", records, standing, of=of)


def states(found: list[History], *, read_until: int = 0) -> list[str]:
    return [history.state(lambda put: put.offset < read_until) for history in found]


def planned(letter: bytes, corrected: bytes | None = None) -> redrive.Put:
    (history,) = histories([letter])
    return plan("machines", history, corrected, judges("machines", NOW_MS))


def test_a_letter_is_dead_when_nothing_was_put_back() -> None:
    assert states(histories([a_letter()])) == ["dead"]


def test_a_letter_is_accepted_when_its_readers_have_passed_the_record_and_no_letter_came() -> None:
    found = histories([a_letter(), a_mark(a_letter(), 7)])
    assert states(found, read_until=7) == ["redriven"]
    assert states(found, read_until=8) == ["accepted"]


def test_a_letter_died_again_and_history_goes_on_when_there_is_one_about_where_it_was_put() -> None:
    second, third = a_letter(7), a_letter(9)
    found = histories([a_letter(), a_mark(a_letter(), 7), second, a_mark(second, 9, attempt=2), third])
    assert states(found, read_until=100) == ["dead_again", "dead_again", "dead"]
    first_id, second_id, third_id = (history.letter.id for history in found)
    assert [history.before for history in found] == [None, first_id, second_id]
    assert [history.after for history in found] == [second_id, third_id, None]
    assert [history.attempt for history in found] == [0, 1, 2]
    for history in found:
        assert [each.letter.id for each in dead_letters.chain(found, history)] == [first_id, second_id, third_id]


def test_a_history_ends_when_letters_that_cannot_be_name_each_other() -> None:
    one, other = a_letter(1), a_letter(2)
    found = histories([one, other, a_mark(one, 2, is_edited=True), a_mark(other, 1, is_edited=True)])
    assert all(len(dead_letters.chain(found, history)) == 2 for history in found)


def test_a_letter_is_listed_once_when_a_restarted_job_wrote_it_again() -> None:
    assert len(histories([a_letter(), a_letter()])) == 1


def test_both_letters_are_redriven_when_two_stages_refused_one_record_and_one_is() -> None:
    refused = [a_letter(stage=stage, topic="machines.situations") for stage in ("propose", "reason")]
    found = histories([*refused, a_mark(refused[0], 7, topic="machines.situations")])
    assert states(found) == ["redriven", "redriven"]


def test_another_line_of_a_file_is_not_redriven_when_one_of_the_same_number_was() -> None:
    one, other = (a_letter(topic="stdin", value=value, stage="player") for value in (b"1,2", b"3,4"))
    assert states(histories([one, a_mark(one, 7, is_edited=True), other])) == ["redriven", "dead"]


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"{}", b'{"type":"flyball.dead_letter","data":{}}'])
def test_what_is_no_letter_is_left_out_when_letters_are_read(value: bytes | None) -> None:
    assert len(histories([value, a_letter()])) == 1


def test_letters_are_chosen_by_id_place_cause_and_time_when_asked_for() -> None:
    found = histories([a_letter(0), a_letter(1, cause="empty"), a_letter(2, at_ms=NOW_MS + 1000)])
    first, second, third = found
    assert choose(found) == found
    assert choose(found, ids=[second.letter.id, "machines.facts/0/2"]) == [second, third]
    assert choose(found, cause="not_json") == [first, third]
    assert choose(found, since="2026-01-01T12:00:01Z") == [third]
    assert choose(found, cause="empty", since="2026-01-01T12:00:01Z") == []


@pytest.mark.parametrize(
    ("options", "told"),
    [({"ids": ["no-such"]}, "no dead letter 'no-such'"), ({"cause": "bad"}, "expected one of empty"), ({"since": "now"}, "--since")],
)
def test_a_choice_is_refused_with_what_was_expected_when_it_names_nothing(options: dict[str, Any], told: str) -> None:
    with pytest.raises(SetupFailed, match=told):
        choose(histories([a_letter()]), **options)


def test_the_same_bytes_go_to_the_same_partition_when_a_record_is_put_back_as_it_was() -> None:
    put = planned(a_letter(value=b"\xff\x00", key=None))
    assert (put.topic, put.key, put.value, put.partition) == ("machines.facts", None, b"\xff\x00", 0)
    assert (put.is_edited, put.attempt) == (False, 1)


def test_a_corrected_record_is_keyed_by_its_subject_and_compact_when_it_fits_its_contract() -> None:
    put = planned(a_letter(key=b"wrong"), orjson.dumps(GOOD, option=orjson.OPT_INDENT_2))
    assert (put.key, put.value, put.partition) == (b"m-1", orjson.dumps(GOOD), None)
    assert put.is_edited


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"data": {"temperature": "hot"}}, "data_invalid"),
        ({"type": "machine.exploded"}, "unknown_type"),
        ({"time": "2999-01-01T00:00:00Z"}, "time_ahead"),
        ({"subject": None}, "envelope_invalid"),
    ],
)
def test_a_corrected_record_is_refused_with_its_cause_when_it_does_not_fit(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(BadInput) as refused:
        planned(a_letter(), orjson.dumps(GOOD | changes))
    assert refused.value.code == cause


@pytest.mark.parametrize("corrected", [b"{nope", b"", b'{"a":1,"a":2}', b"\xff", b"7"])
def test_a_corrected_record_is_refused_when_it_is_no_json_event(corrected: bytes) -> None:
    with pytest.raises(BadInput):
        planned(a_letter(), corrected)


def test_a_corrected_proposal_is_judged_as_one_when_it_is_put_back() -> None:
    with pytest.raises(BadInput, match=r"expected 'flyball\.proposal'"):
        planned(a_letter(topic="machines.proposals", stage="govern"), orjson.dumps(GOOD))


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        ("commands", "only govern writes commands"),
        ("policies", "policy publish"),
        ("models", "model publish"),
        ("prompts", "prompt publish"),
        ("exchanges", "a model's reply"),
        ("limits", "only its own writer"),
        ("decisions", "only its own writer"),
    ],
)
def test_a_record_is_not_put_back_when_only_its_own_writer_may_write_it(topic: str, told: str) -> None:
    for corrected in (None, orjson.dumps(GOOD)):
        with pytest.raises(SetupFailed, match=told):
            planned(a_letter(topic=f"machines.{topic}"), corrected)


def test_a_signed_answer_is_put_back_as_it_was_and_never_changed() -> None:
    letter = a_letter(topic="machines.approvals", stage="govern", cause="signature_invalid")
    assert planned(letter).value == b"{nope"
    with pytest.raises(SetupFailed, match="signed"):
        planned(letter, orjson.dumps(GOOD))


def test_a_line_of_a_file_becomes_a_fact_when_the_event_is_given() -> None:
    letter = a_letter(12, topic="readings.csv", value=b"yesterday,7", key=None, stage="player", cause="row_invalid")
    with pytest.raises(SetupFailed, match="no event"):
        planned(letter)
    put = planned(letter, orjson.dumps(GOOD))
    assert (put.topic, put.key, put.partition) == ("machines.facts", b"m-1", None)


def test_a_record_is_not_put_back_when_only_its_beginning_was_kept() -> None:
    with pytest.raises(SetupFailed, match="first bytes"):
        planned(a_letter(value=b"x" * (MAX_KEPT_BYTES + 1), cause="too_large"))


def test_corrected_lines_are_read_when_they_are_events_or_their_texts() -> None:
    lines = [b'{"id":"a","value":{"x":1},"cause":"y"}', b"", b'{"id":"b","value":"{\\"x\\": 2}"}']
    assert corrected_lines(lines) == {"a": b'{"x":1}', "b": b'{"x": 2}'}


def test_a_corrected_line_names_a_letter_by_its_id_or_place_also_when_it_empties_the_record() -> None:
    (history,) = histories([a_letter()])
    for name in (history.letter.id, history.letter.place):
        chosen, given = choose_corrected([history], [orjson.dumps({"id": name, "value": ""})])
        assert (chosen, given) == ([history], {history.letter.id: b""})


@pytest.mark.parametrize(
    "line", [b"{", b"7", b'{"id":"a"}', b'{"value":{}}', b'{"id":["a"],"value":{}}', b'{"id":"a","value":' + b"[" * 300 + b"]" * 300 + b"}"]
)
def test_a_corrected_line_is_refused_with_its_number_when_it_is_none(line: bytes) -> None:
    with pytest.raises(SetupFailed, match=r'line 2: expected \{"id"'):
        corrected_lines([b'{"id":"a","value":{}}', line])


def test_the_editor_gets_json_indented_and_gives_back_what_it_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "replace it.py"
    script.write_text("import sys, pathlib; f = pathlib.Path(sys.argv[1]); f.write_text(f.read_text().replace('  \"a\": 1', '\"a\": 2'))")
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} '{script}'")
    (history,) = histories([a_letter(value=b'{"a":1}')])
    assert orjson.loads(edit(history.letter, tmp_path / "record.json")) == {"a": 2}


def test_the_original_bytes_come_back_when_the_editor_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "true")
    (history,) = histories([a_letter(value=b' {"a": 1}')])
    assert edit(history.letter, tmp_path / "record.json") == b' {"a": 1}'
    assert redrive.redrive("nowhere", "machines", [history], corrected={history.letter.id: b' {"a": 1}'}, now_ms=0) == [
        redrive.Result(history.letter.id, "skipped", "it was not changed")
    ]


@pytest.mark.parametrize(("editor", "told"), [("false", "exit code 1"), ("/no/such/editor", "cannot run")])
def test_nothing_is_put_back_when_the_editor_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editor: str, told: str) -> None:
    monkeypatch.setenv("VISUAL", editor)
    (history,) = histories([a_letter()])
    with pytest.raises(SetupFailed, match=told):
        edit(history.letter, tmp_path / "record.json")


def test_a_dry_run_tells_which_record_would_be_refused_again_and_writes_nothing() -> None:
    chosen = histories([a_letter(0), a_letter(1, value=orjson.dumps(GOOD), cause="time_ahead")])
    bad, good = redrive.redrive("nowhere", "machines", chosen, is_dry=True, now_ms=NOW_MS)
    assert (bad.what, good.what, good.why) == ("would_redrive", "would_redrive", "")
    assert bad.why.startswith("it would be refused again: not_json")


# ------------------------------------------------------------------------- who writes letters may lie


def forged(**changes: Any) -> bytes:
    event = orjson.loads(a_letter())
    event["data"] |= changes.pop("data", {})
    return orjson.dumps(event | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"value_base64": "abc"}}, {"data": {"key_base64": "%%%%"}}, {"time": "yesterday"}, {"id": 7},
        {"id": "../../up"}, {"id": "/etc/passwd"},
    ],
)  # fmt: skip
def test_a_letter_that_no_stage_can_have_written_is_left_out_when_letters_are_read(changes: dict[str, Any]) -> None:
    assert [history.letter.place for history in histories([forged(**changes), a_letter(1)])] == ["machines.facts/0/1"]


FORGED_FIELDS = [
    {"envelope": {"causationid": ["x"]}}, {"envelope": {"causationid": {}}}, {"envelope": {"causationid": None}}, {"envelope": {"causationid": "0" * 32}},
    {"envelope": {"subject": ["x"]}}, {"envelope": {"subject": 7}}, {"envelope": {"time": 7}}, {"envelope": {"time": "now"}}, {"envelope": {"data": [1]}},
    {"attempt": 10**9}, {"attempt": 0}, {"offset": -1}, {"offset": "7"}, {"partition": -1}, {"refused_sha256": "0" * 64},
]  # fmt: skip


@pytest.mark.parametrize("changes", FORGED_FIELDS)
def test_a_letter_stays_dead_when_an_event_about_it_holds_nonsense(changes: dict[str, Any]) -> None:
    found = histories([a_letter(), a_mark(a_letter(), 7, **changes), a_letter(1)])
    assert states(found) == ["dead", "dead"]
    assert [len(dead_letters.chain(found, history)) for history in found] == [1, 1]


@pytest.mark.parametrize(
    ("is_edited", "changes"),
    [
        (False, {"offset": 3}), (False, {"offset": 2}), (False, {"partition": 1}), (False, {"sha256": "0" * 64}), (False, {"topic": "machines.situations"}),
        (True, {"topic": "machines.outcomes"}), (True, {"topic": "payments.facts"}), (True, {"topic": "no-such"}),
    ],
)  # fmt: skip
def test_a_letter_stays_dead_when_it_cannot_have_been_put_back_there(is_edited: bool, changes: dict[str, Any]) -> None:
    letter = a_letter(3)
    assert states(histories([letter, a_mark(letter, 7, is_edited=is_edited)])) == ["redriven"]
    assert states(histories([letter, a_mark(letter, 7, is_edited=is_edited, **changes)])) == ["dead"]


def test_a_letter_of_a_topic_that_nothing_is_put_back_to_stays_dead_whatever_is_claimed() -> None:
    letter = a_letter(topic="machines.commands")
    assert states(histories([letter, a_mark(letter, 7, topic="machines.commands")])) == ["dead"]


def test_a_letter_was_put_back_where_the_record_stands_however_many_events_say_something_else() -> None:
    letter = a_letter()
    for offsets in [(5, 6, 7), (7, 5, 6), (6, 7, 5)]:
        (history,) = histories([letter, *(a_mark(letter, at) for at in offsets)], forged=[5], unknown=[6])
        assert history.redriven is not None
        assert (history.redriven.offset, history.is_seen) == (7, True)


def test_a_letter_counts_as_put_back_when_nobody_can_look_any_more() -> None:
    (history,) = histories([a_letter(), a_mark(a_letter(), 7)], unknown=[7])
    assert (history.redriven is not None, history.is_seen) == (True, False)


def test_only_claims_about_the_letters_asked_for_are_looked_at() -> None:
    letters = [a_letter(0), a_letter(1)]
    values = [*letters, *(a_mark(letter, 7 + at) for at, letter in enumerate(letters))]
    assert states(histories(values, of={histories(letters)[1].letter.mark})) == ["dead", "redriven"]


def a_claim(offset: int = 7, **changes: Any) -> Claim:
    (history,) = histories([a_letter()])
    put = Redriven.model_validate(orjson.loads(a_mark(a_letter(), offset, **changes))["data"])
    return Claim(history.letter, put, "2026-01-01T12:00:00Z", NOW_MS)


def a_record(claim: Claim, value: bytes = b"{nope", *, appended_ms: int = NOW_MS, offset: int = 7, **changes: bytes) -> kafka.Record:
    headers = {"flyball-dead-letter": claim.letter.id.encode(), "flyball-attempt": b"1", "traceparent": b"x", **changes}
    return kafka.Record("machines.facts", 0, offset, appended_ms, b"m-1", value, tuple(headers.items()))


def test_a_claim_is_true_when_the_record_is_there_with_its_bytes_and_headers() -> None:
    claim = a_claim()
    assert judged(claim, a_record(claim), None, 8, 8) == "there"
    assert judged(claim, a_record(claim, b"{no"), None, 8, 8) == "forged"
    assert judged(claim, a_record(claim, **{"flyball-attempt": b"2"}), None, 8, 8) == "forged"
    assert judged(claim, a_record(claim, **{"flyball-dead-letter": b"0" * 32}), None, 8, 8) == "forged"
    assert judged(claim, a_record(claim, **{"flyball-dead-letter": b"\xff"}), None, 8, 8) == "forged"


def test_a_claim_is_forged_when_the_log_shows_that_the_record_never_was_there() -> None:
    claim = a_claim(7)
    first = a_record(claim, appended_ms=NOW_MS, offset=0)
    assert judged(claim, None, first, 7, 7) == "forged", "behind the end"
    assert judged(claim, None, first, 9, 9) == "forged", "where a transaction ended"
    long_before = a_record(claim, appended_ms=NOW_MS - 3_600_000, offset=8)
    assert judged(claim, None, long_before, 9, 9) == "forged", "older records are still there"


def test_nobody_can_tell_when_the_record_may_have_left_the_log_or_its_partition_is_held_up() -> None:
    claim = a_claim(7)
    later = a_record(claim, appended_ms=NOW_MS + 1, offset=8)
    assert judged(claim, None, later, 9, 9) == "unknown"
    assert judged(claim, None, None, 9, 9) == "unknown", "everything has left"
    assert judged(claim, None, a_record(claim, offset=0), 7, 9) == "unknown", "a transaction is open"


class StandInWriter:
    """A transactional writer on the stand-in; what it sent, with headers."""

    def __init__(self, broker: StandInBroker) -> None:
        self._broker, self.sent, self._places = broker, list[tuple[str, dict[str, Any]]](), list[tuple[int, int]]()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, *, partition: int | None = None,
        headers: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:  # fmt: skip
        self.sent.append((topic, dict(headers)))
        record = self._broker.put(topic, key, value)
        record.headers = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers]
        self._places.append((0, record.offset))

    def flush(self) -> list[tuple[int, int]]:
        places, self._places = self._places, []
        return places

    def close(self) -> None:
        pass


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StandInBroker:
    found = StandInBroker()
    monkeypatch.setattr(kafka, "consumer", lambda *_, **__: StandInConsumer(found))
    return found


def redriven(broker: StandInBroker, letter: bytes, **options: Any) -> tuple[redrive.Result, StandInWriter]:
    writer = StandInWriter(broker)
    (result,) = redrive.redrive("nowhere", "machines", histories([letter]), now_ms=NOW_MS, writer=cast(Any, writer), **options)
    return result, writer


def test_a_record_goes_back_with_the_headers_it_had_when_the_log_holds_it(broker: StandInBroker) -> None:
    broker.put("machines.facts", b"m-0", b"another")
    broker.put("machines.facts", b"m-1", b"{nope").headers = [("traceparent", b"00-1-2-01"), ("flyball-attempt", b"7")]
    result, writer = redriven(broker, a_letter(1))
    assert (result.what, result.place) == ("redriven", "machines.facts/0/2")
    assert writer.sent[0] == (
        "machines.facts", {"traceparent": b"00-1-2-01", "flyball-dead-letter": result.letter_id, "flyball-attempt": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("letter", "why"),
    [
        (a_letter(0, value=b'{"type":"flyball.proposal"}', topic="machines.proposals"), "left the log"),
        (a_letter(0, value=b"made up"), "forged"),
        (a_letter(0, key=b"m-2"), "forged"),
        (a_letter(9), "left the log"),
    ],
)
def test_nothing_is_put_back_when_the_log_does_not_hold_what_the_letter_says(
    broker: StandInBroker, letter: bytes, why: str
) -> None:
    broker.put("machines.facts", b"m-1", b"{nope")
    result, writer = redriven(broker, letter)
    assert (result.what, writer.sent) == ("refused", [])
    assert why in result.why


def test_a_corrected_record_is_put_back_when_its_original_has_left_the_log(broker: StandInBroker) -> None:
    (history,) = histories([a_letter(9)])
    result, _ = redriven(broker, a_letter(9), corrected={history.letter.id: orjson.dumps(GOOD)})
    assert result.what == "redriven"


def marked(broker: StandInBroker, letter: bytes, mark: bytes) -> None:
    for value in (letter, mark):
        broker.put("machines.dead-letters", None, value, timestamp=NOW_MS)


def test_a_record_is_put_back_however_often_somebody_says_that_it_was(broker: StandInBroker) -> None:
    broker.put("machines.facts", b"m-1", b"{nope", timestamp=NOW_MS)
    broker.put("machines.facts", b"m-1", b"{nope", timestamp=NOW_MS)
    for offset in (1, 2, 10**12):
        marked(broker, a_letter(0), a_mark(a_letter(0), offset))
    marked(broker, a_letter(0), a_mark(a_letter(0), 5, is_edited=True, partition=7, sha256=sha256(b"x")))
    (before,) = dead_letters.read("nowhere", "machines")
    assert before.redriven is None
    result, _ = redriven(broker, a_letter(0))
    assert (result.what, result.place) == ("redriven", "machines.facts/0/2")


@pytest.mark.parametrize("corrected", [None, orjson.dumps(GOOD)])
def test_a_record_is_not_put_back_twice_when_it_stands_where_it_was_put(broker: StandInBroker, corrected: bytes | None) -> None:
    letter = a_letter(0)
    (history,) = histories([letter])
    given = {} if corrected is None else {"corrected": {history.letter.id: corrected}}
    broker.put("machines.facts", b"m-1", b"{nope")
    broker.put("machines.dead-letters", None, letter)
    assert redriven(broker, letter, **given)[0].what == "redriven"
    result, writer = redriven(broker, letter, **given)
    assert (result.what, result.why, writer.sent) == ("skipped", "redriven before, to machines.facts/0/1", [])
    (told,) = [dead_letters.told(each, lambda _: True) for each in dead_letters.read("nowhere", "machines")]
    assert (told["state"], told["redriven"]["is_seen"]) == ("accepted", True)


def test_a_record_is_not_put_back_when_nobody_can_tell_whether_it_was(broker: StandInBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters.Places, "standing", lambda *_: "unknown")
    broker.put("machines.facts", b"m-1", b"{nope")
    marked(broker, a_letter(0), a_mark(a_letter(0), 5))
    result, writer = redriven(broker, a_letter(0))
    assert (result.what, writer.sent) == ("skipped", [])
    assert "cannot be looked at" in result.why


class HeldUp(StandInConsumer):
    """Committed records end at `stable`, as where a transaction is open; `is_committed`: it sees no others."""

    def __init__(self, broker: StandInBroker, stable: int, is_committed: bool) -> None:
        super().__init__(broker)
        self._stable = stable if is_committed else None

    def end_offsets(self, places: list[Any]) -> dict[Any, int]:
        return {p: min(end, self._stable) if self._stable is not None and p.topic.endswith("facts") else end for p, end in super().end_offsets(places).items()}


def test_a_record_is_not_put_back_while_a_transaction_hides_whether_it_was(broker: StandInBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        broker.put("machines.facts", b"m-1", b"{nope", timestamp=NOW_MS)
    marked(broker, a_letter(0), a_mark(a_letter(0), 2))
    monkeypatch.setattr(kafka, "consumer", lambda *_, is_committed=True, **__: HeldUp(broker, 1, is_committed))
    result, writer = redriven(broker, a_letter(0))
    assert (result.what, writer.sent) == ("skipped", [])
    (history,) = dead_letters.read("nowhere", "machines")
    assert (history.redriven is not None, history.is_seen) == (True, False)
