"""The sealer and `audit verify` on a broker in memory: restarts, crashes, a backlog, keys, periods."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kafka.errors import KafkaError

from contracts.envelope import parse_time_ms
from contracts.errors import SetupFailed
from ops import audit, kafka, people, sealer
from ops.home import Home
from ops.people import AUDIT_KEY, key_file, made_key
from ops.sealer import Sealer
from tests.kafka_stand_in import StandInBroker, StandInBulkReader, StandInConsumer, StandInProducer
from udfs.policy.audit import Line, read
from udfs.policy.heads import Anchor
from udfs.policy.signing import public_text

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = public_text(KEY)
NOW_MS = 1_700_000_000_000
DECISIONS, HEADS = "machines.decisions", "machines.audit-heads"


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StandInBroker:
    found = StandInBroker()
    monkeypatch.setattr(kafka, "consumer", lambda _servers, **_options: StandInConsumer(found))
    monkeypatch.setattr(kafka, "BulkReader", lambda _servers, **_options: StandInBulkReader(found))
    monkeypatch.setattr(kafka, "producer", lambda _servers, **_options: StandInProducer(found))
    monkeypatch.setattr(kafka, "existing_topics", lambda _servers, _domain: {DECISIONS, HEADS})
    return found


def decide(broker: StandInBroker, subject: str, day: int = 1) -> None:
    """The subject's next entry, of this day of January 2014."""
    chain = [r for r in broker.topics[DECISIONS] if r.key == subject.encode()]
    previous = hashlib.sha256(chain[-1].value or b"").hexdigest() if chain else None
    data = {"event_time": f"2014-01-{day:02}T00:00:00Z", "entry": {"number": len(chain) + 1, "previous": previous}}
    broker.put(DECISIONS, subject.encode(), orjson.dumps({"subject": subject, "data": data}))


def opened(key: Ed25519PrivateKey = KEY) -> Sealer:
    return Sealer.open("a broker", "machines", key)


def look(one: Sealer) -> int:
    return one.look(lambda: NOW_MS)


def verified(**options: Any) -> dict[str, Any]:
    return audit.verify("a broker", "machines", **{"public_key": PUBLIC, **options}).told()


def test_a_head_is_written_only_when_there_is_something_new(broker: StandInBroker) -> None:
    one = opened()
    assert look(one) == 0
    decide(broker, "m-1")
    assert (look(one), look(one)) == (1, 0)
    decide(broker, "m-2")
    assert look(one) == 1
    told = verified()
    assert (told["ok"], told["entries"], told["subjects"], told["heads"], told["unsealed"]) == (True, 2, 2, 2, 0)
    assert told["first_bad"] is None
    last = told["last_head"]
    assert (last["number"], last["sealed_at"], last["public_key"]) == (2, "2023-11-14T22:13:20Z", PUBLIC)


def test_nothing_is_sealed_twice_or_left_out_when_the_sealer_starts_again(broker: StandInBroker) -> None:
    for turn in range(3):
        decide(broker, "m-1")
        decide(broker, f"m-{turn}")
        assert look(opened()) == 1
    assert look(opened()) == 0
    told = verified()
    assert (told["ok"], told["heads"], told["unsealed"]) == (True, 3, 0)


def test_a_head_that_was_not_acknowledged_is_made_again_by_the_next_sealer(broker: StandInBroker) -> None:
    decide(broker, "m-1")
    one = opened()
    broker.is_down = True
    with pytest.raises(KafkaError):
        look(one)
    broker.is_down = False
    assert look(opened()) == 1
    assert (verified()["ok"], verified()["heads"]) == (True, 1)


def test_a_head_that_was_written_without_acknowledgement_stands_once(
    broker: StandInBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unsure(StandInProducer):
        def send(self, topic: str, **record: Any) -> Any:
            super().send(topic, **record)
            broker.is_down = True
            return super().send(topic, **record)

    decide(broker, "m-1")
    with monkeypatch.context() as crash:
        crash.setattr(kafka, "producer", lambda _servers, **_options: Unsure(broker))
        with pytest.raises(KafkaError):
            look(opened())
    broker.is_down = False
    assert look(opened()) == 0
    assert (verified()["ok"], verified()["heads"]) == (True, 1)


@pytest.mark.parametrize("limit", ["MAX_RECORDS", "MAX_SUBJECTS"])
def test_a_backlog_is_sealed_in_heads_of_bounded_size(
    broker: StandInBroker, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(sealer, limit, 3)
    for number in range(10):
        decide(broker, f"m-{number}")
    assert look(opened()) == 4
    told = verified()
    assert (told["ok"], told["heads"], told["subjects"], told["unsealed"]) == (True, 4, 10, 0)


def test_the_sealer_refuses_to_start_when_the_heads_are_of_another_key(broker: StandInBroker) -> None:
    decide(broker, "m-1")
    look(opened())
    with pytest.raises(SetupFailed, match="none of them signed with the key of this home"):
        opened(Ed25519PrivateKey.from_private_bytes(b"o" * 32))


def test_records_that_are_no_decisions_are_covered_and_do_not_stop_the_sealer(broker: StandInBroker) -> None:
    decide(broker, "m-1")
    for key, value in ((b"m-2", b"junk"), (None, None), (b"\xff", b"{}")):
        broker.put(DECISIONS, key, value)
    assert look(opened()) == 1
    told = verified()
    assert (told["ok"], told["bad"], told["unsealed"]) == (False, 3, 0)
    assert told["first_bad"] == {
        "partition": 0, "offset": 1, "subject": "m-2", "entry": 0, "topic": "decisions",
        "what": "inserted or changed: it is no decision",
    }  # fmt: skip


def test_a_period_restricts_what_is_counted_and_not_what_is_checked(broker: StandInBroker) -> None:
    for day in range(1, 11):
        decide(broker, "m-1", day)
    decide(broker, "m-2", 9)
    look(opened())
    within = audit.read_period("2014-01-03T00:00:00Z", "2014-01-05T02:00:00+02:00")
    told = verified(period=within)
    assert (told["ok"], told["entries"], told["subjects"], told["heads"]) == (True, 2, 1, 1)
    broker.topics[DECISIONS][0].value = (broker.topics[DECISIONS][0].value or b"") + b" "
    assert verified(period=within)["first_bad"]["offset"] == 0, "what lies before is what it rests on"


def test_what_is_no_time_is_refused_when_a_period_is_asked_for() -> None:
    with pytest.raises(SetupFailed, match="expected an RFC 3339 time"):
        audit.read_period("yesterday", None)
    assert audit.read_period(None, "2014-01-01T00:00:00Z").to_ms == parse_time_ms("2014-01-01T00:00:00Z")


def test_verify_wants_a_key_only_when_there_are_heads(broker: StandInBroker, tmp_path: Path) -> None:
    decide(broker, "m-1")
    assert audit.key_of_home(Home(tmp_path), "machines") is None
    assert (verified(public_key=None)["ok"], verified(public_key=None)["last_head"]) == (True, None)
    look(opened())
    with pytest.raises(SetupFailed, match="--public-key"):
        verified(public_key=None)
    key = made_key(key_file(Home(tmp_path), "machines", AUDIT_KEY))
    assert audit.key_of_home(Home(tmp_path), "machines") == public_text(key) != PUBLIC
    assert verified(public_key=public_text(key))["first_bad"]["topic"] == "audit-heads"


def test_a_noted_head_is_read_when_written_as_verify_prints_it(broker: StandInBroker) -> None:
    decide(broker, "m-1")
    look(opened())
    last = verified()["last_head"]
    noted = audit.read_anchor(f"{last['number']}:{last['sha256']}")
    assert verified(anchor=noted)["ok"]
    broker.topics[HEADS].clear()
    assert verified(anchor=noted)["first_bad"]["entry"] == 1
    assert noted == Anchor(1, last["sha256"])
    for text in ("1", "1:abc", f"0:{last['sha256']}", last["sha256"]):
        with pytest.raises(SetupFailed, match="expected NUMBER:SHA256"):
            audit.read_anchor(text)


def test_a_subject_no_head_could_name_is_no_decision() -> None:
    for subject in ("", "x" * 257, "line\nbreak"):
        value = orjson.dumps({"subject": subject, "data": {"entry": {"number": 1, "previous": None}}})
        assert read(Line(0, 0, subject.encode(), value)).problem


def test_a_key_is_the_same_for_two_who_make_it_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "one.pem"
    assert public_text(made_key(path)) == public_text(made_key(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["one.pem"]


def test_nobody_has_the_name_of_the_heads_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "ROOT", tmp_path)
    file = people.people_file("machines")
    file.parent.mkdir(parents=True)
    file.write_text("roles: {approver: {}}\npeople:\n  - {person: audit-heads, roles: [approver]}\n")
    with pytest.raises(SetupFailed, match="that key signs the audit heads"):
        people.people(Home(tmp_path), "machines")
