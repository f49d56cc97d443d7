"""`context` of a domain that requires signatures, on the real cluster: every bad fact has its cause, the loop's own pass."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from contracts.envelope import parse_time_ms
from jobs.context import DEDUPLICATION_ROWS
from jobs.settings import load_settings
from ops import flink_jobs, kafka, producers
from ops.home import Home
from ops.people import own_key
from ops.submission import Submission
from ops.world import NewFact
from tests.loop import Loop, Said
from udfs.signed_facts import sign_fact

START_MS = parse_time_ms("2014-04-01T00:00:00Z")
FACTS = "loans.facts"


@dataclass(frozen=True)
class Signed:
    """`loans`, of which only `context` runs, and the key `desk` that its producers.yaml knows."""

    loop: Loop
    key: Path
    sign: Callable[[bytes, str], bytes]


@pytest.fixture(scope="module")
def loans(instance: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    folder = tmp_path_factory.mktemp("signed")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLYBALL_SIGNED_FACTS", "required")
        environment.setenv("FLYBALL_PRODUCERS", str(folder / "producers.yaml"))
        settings = load_settings("loans")
        made = producers.keygen(settings, "desk", folder / "desk.pem")
        (folder / "producers.yaml").write_text("keys:\n" + made.entry)
        kafka.create_topics(str(instance.read_state()["bootstrap_servers"]), "loans")
        Submission(instance, "loans", ["context"]).go().wait()
        flink_jobs.wait_running(instance, "loans", ["context"])
        loop = Loop(instance, "loans")
        yield Signed(loop, made.file, producers.signer(settings, made.file))
        loop.close()
        flink_jobs.cancel(instance, "loans")
        flink_jobs.wait_cancelled(instance, "loans")


def received(loop: Loop, case: str, *, minute: int = 0, amount: float = 1000.0) -> bytes:
    """An application handed in: the first of a case makes one situation."""
    data = {"activity": "A_SUBMITTED", "lifecycle": None, "resource": None, "amount": amount}
    (event,) = loop.encode(NewFact("loan.activity_recorded", case, START_MS + minute * 60_000, data, f"{case}|{minute}|{amount}"))
    return event


def used(loop: Loop, case: str) -> bool:
    loop.wait_for(f"the application of {case}", lambda: loop.situations("application_received", case))
    return True


def cause(loop: Loop, place: str, value: bytes) -> str:
    letter = loop.dead_letter(place)["data"]
    assert base64.b64decode(letter["value_base64"]) == value
    return str(letter["cause"])


def test_only_facts_as_their_producer_signed_them_are_used_when_required(loans: Signed) -> None:
    loop, plain = loans.loop, received(loans.loop, "case-1")
    good = loans.sign(plain, FACTS)
    private = own_key(loans.key)

    def sign(key_id: str = "desk", audience: str = FACTS, age_s: int = 0) -> bytes:
        now_ms = int(time.time() * 1000) - age_s * 1000
        return sign_fact(plain, key=private, key_id=key_id, audience=audience, now_ms=now_ms)

    bad = {
        "signature_missing": plain,
        "signature_invalid": good.replace(b"1000.0", b"9000.0"),
        "producer_unknown": sign(key_id="stranger"),
        "signature_misplaced": sign(audience="machines.facts"),
        "signature_expired": sign(age_s=90_000),
        "producer_not_permitted": loans.sign(
            orjson.dumps(
                {**orjson.loads(plain), "type": "flyball.clock_ticked", "data": {}, "dataschema": None}
            ), FACTS,
        ),
    }  # fmt: skip
    places = loop.send("facts", *(("case-1", value) for value in bad.values()), ("case-1", good))
    assert {name: cause(loop, place, value) for place, (name, value) in zip(places, bad.items(), strict=False)} == {
        name: name for name in bad
    }
    assert used(loop, "case-1")


def test_what_the_loop_writes_itself_is_used_when_facts_must_be_signed(loans: Signed) -> None:
    loop = loans.loop
    outcome = {
        "specversion": "1.0", "id": "signed-o", "source": "/actuator", "type": "flyball.outcome", "subject": "case-2",
        "time": "2014-04-01T00:00:00Z",
        "data": {"event_time": "2014-04-01T00:00:00Z", "command_id": "c", "action": "make_offer", "status": "failed", "detail": ""},
    }  # fmt: skip
    value = json.dumps(outcome).encode()
    smuggled = received(loop, "case-2")
    good, other = loop.send("outcomes", ("case-2", value), ("case-2", smuggled))
    assert cause(loop, other, smuggled) == "unknown_type", "a fact beside the outcomes is none"
    (on_facts,) = loop.send("facts", ("case-2", value))
    assert cause(loop, on_facts, value) == "signature_missing", "an outcome among the facts must be signed"
    assert not loop.events("dead-letters", good)


def test_a_signed_fact_sent_again_counts_once_however_many_came_between(loans: Signed) -> None:
    loop, case = loans.loop, "case-3"
    facts = [loans.sign(received(loop, case, minute=n), FACTS) for n in range(DEDUPLICATION_ROWS + 8)]
    loop.send("facts", *((case, value) for value in facts))
    (remembered, forgotten) = loop.send("facts", (case, facts[-1]), (case, facts[0]))
    assert cause(loop, forgotten, facts[0]) == "replayed"
    assert not loop.events("dead-letters", remembered), "its id is known: dropped as a repeat"
    late = loans.sign(received(loop, case, minute=DEDUPLICATION_ROWS + 6, amount=7.0), FACTS)
    (place,) = loop.send("facts", (case, late))
    behind = loans.sign(received(loop, "case-4"), FACTS)
    loop.send("facts", ("case-4", behind))
    assert used(loop, "case-4")
    assert not loop.events("dead-letters", place), "a new fact, later than all that are forgotten"


def test_forgotten_ids_stay_forgotten_when_repeats_push_the_others_out(loans: Signed) -> None:
    loop, case = loans.loop, "case-5"
    first, second = (loans.sign(received(loop, case, minute=n), FACTS) for n in range(2))
    loop.send("facts", (case, first), (case, second), *[(case, second)] * (DEDUPLICATION_ROWS + 1))
    (place,) = loop.send("facts", (case, first))
    assert cause(loop, place, first) == "replayed"


def test_the_command_line_signs_what_it_publishes(loans: Signed, flyball: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_bytes(received(loans.loop, "case-6") + b"\n")
    done = flyball("emit", "loans", file, "--sign-with", loans.key)
    assert (done.code, "published 1 facts" in done.out) == (0, True), done.err
    assert used(loans.loop, "case-6")
