"""What was exchanged, written before it is used and read back after a restart."""

from __future__ import annotations

import asyncio
import time

import pytest

from contracts.errors import BrokerUnavailable
from contracts.exchange import Concluded, Exchange
from tests.confluent_stand_in import StandInTopic
from udfs.reason import recorded
from udfs.reason.recorded import Exchanges, digest


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> StandInTopic:
    made = StandInTopic()
    monkeypatch.setattr(recorded, "Producer", made.producer)
    monkeypatch.setattr(recorded, "Consumer", made.consumer)
    return made


def exchange(turn: int = 0, *, reply: str = "{}", call_id: str = "call-1") -> Exchange:
    return Exchange(
        call_id=call_id, turn=turn, kind="model", agent="carer", agent_version=1, situation_id="s-1", name="m",
        request="[]", request_sha256=digest("[]"), reply=reply, reply_sha256=digest(reply),
        started_at="2026-01-01T00:00:00Z", latency_ms=1,
    )  # fmt: skip


def concluded(call_id: str = "call-1") -> Concluded:
    return Concluded(call_id=call_id, agent="carer", agent_version=1, situation_id="s-1", how="proposed", turn=0)


def write(*events: Exchange | Concluded) -> None:
    exchanges = Exchanges("machines", "nowhere")

    async def all_of_them() -> None:
        for event in events:
            await (exchanges.record(event) if isinstance(event, Exchange) else exchanges.conclude(event))

    try:
        asyncio.run(all_of_them())
    finally:
        exchanges.close()


def read_back(since_ms: int) -> Exchanges:
    exchanges = Exchanges("machines", "nowhere")
    exchanges.since(since_ms)
    exchanges.close()
    return exchanges


def test_what_was_recorded_is_read_back_without_its_question(log: StandInTopic) -> None:
    began_ms = int(time.time() * 1000)
    write(exchange(0), exchange(100), concluded())
    found = read_back(began_ms)
    assert found.levels("call-1", 100) == 1
    assert found.concluded("call-1") == concluded()
    again = found.exchange("call-1", 0)
    assert again is not None
    assert (again.exchange.reply, again.exchange.request, again.offset) == ("{}", "", 0)
    found.forget("call-1")
    assert (found.levels("call-1", 100), found.concluded("call-1")) == (None, None)


def test_reading_back_ends_when_compaction_took_the_last_records(log: StandInTopic) -> None:
    began_ms = int(time.time() * 1000)
    write(exchange(0), exchange(1), concluded())
    del log.log[1:]
    found = read_back(began_ms)
    assert found.exchange("call-1", 0) is not None
    assert found.concluded("call-1") is None


def test_what_nobody_of_ours_wrote_is_passed_over(log: StandInTopic) -> None:
    began_ms = int(time.time() * 1000)
    for value in (b"", b"{", b"[]", b'"x"', b'{"type":"flyball.exchange","data":5}', b'{"type":"flyball.concluded"}', b"\xff"):
        log.put(value)
    write(exchange(0))
    assert read_back(began_ms).exchange("call-1", 0) is not None


def test_a_broker_that_does_not_acknowledge_is_told_as_such(log: StandInTopic) -> None:
    log.is_down = True
    with pytest.raises(BrokerUnavailable, match=r"machines\.exchanges"):
        write(exchange(0))


def test_a_record_the_broker_would_not_take_is_told_as_such(log: StandInTopic) -> None:
    log.max_bytes = 10
    with pytest.raises(BrokerUnavailable, match="size"):
        write(exchange(0))
