"""What was exchanged with models: written to `<domain>.exchanges` before use, read back after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from dataclasses import dataclass

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from pydantic import ValidationError

from contracts.access import principal
from contracts.data import Data, current
from contracts.envelope import derive_id, schema_urn
from contracts.errors import BadInput, BrokerUnavailable
from contracts.exchange import Concluded, Exchange
from contracts.topics import MAX_RECORD_BYTES, topic
from udfs import broker_access
from udfs.serde import write_event

STAGE = "reason"
# How far clocks of producers may differ.
_MARGIN_MS = 60_000
_TIMEOUT_S = 30.0


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Recorded:
    """An exchange and its place in the log."""

    exchange: Exchange
    partition: int
    offset: int


class Exchanges:
    """The topic `<domain>.exchanges`, written by a producer outside Flink's transactions.

    `since` reads back what other runs of this operator recorded; what is recorded by this one is not kept.
    Raises BrokerUnavailable when the broker does not answer for 30 s.
    """

    def __init__(self, domain: str, bootstrap_servers: str) -> None:
        self._domain = domain
        self._topic = topic("exchanges").of(domain)
        self._bootstrap = bootstrap_servers
        self._access = broker_access.confluent(principal(domain, STAGE))
        self._producer = Producer(
            {"bootstrap.servers": bootstrap_servers, **self._access, "acks": "all", "enable.idempotence": True, "linger.ms": 2,
             "message.max.bytes": MAX_RECORD_BYTES, "delivery.timeout.ms": 60_000}
        )  # fmt: skip
        self._turns: dict[str, dict[int, Recorded]] = {}
        self._concluded: dict[str, Concluded] = {}
        self._ends: dict[int, int] | None = None
        self._read_from: dict[int, int] = {}
        self._since_ms: int | None = None
        self._is_closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="exchanges", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._is_closed.is_set():
            self._producer.poll(0.5)

    def close(self) -> None:
        self._is_closed.set()
        self._poller.join(2)

    def exchange(self, call_id: str, turn: int) -> Recorded | None:
        return self._turns.get(call_id, {}).get(turn)

    def concluded(self, call_id: str) -> Concluded | None:
        return self._concluded.get(call_id)

    def levels(self, call_id: str, turns: int) -> int | None:
        """The highest level of fallback that was answered before; None when none was."""
        return max((turn // turns for turn in self._turns.get(call_id, ())), default=None)

    def forget(self, call_id: str) -> None:
        """It is concluded and written: what was read back about it is needed no more."""
        self._concluded.pop(call_id, None)
        self._turns.pop(call_id, None)

    async def record(self, exchange: Exchange) -> Recorded:
        """Acknowledged by the broker when it returns."""
        message = await self._send(f"{exchange.call_id}/{exchange.turn}", exchange, exchange.situation_id)
        return Recorded(exchange, int(message.partition() or 0), int(message.offset() or 0))

    async def conclude(self, concluded: Concluded) -> None:
        await self._send(concluded.call_id, concluded, concluded.situation_id)

    async def _send(self, key: str, data: Data, cause_id: str) -> Message:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Message] = loop.create_future()

        def delivered(error: object, message: Message) -> None:
            def tell() -> None:
                if done.cancelled():
                    return
                if error is not None:
                    done.set_exception(BrokerUnavailable(f"{self._topic} at {self._bootstrap}: {error}"))
                else:
                    done.set_result(message)

            loop.call_soon_threadsafe(tell)

        event = write_event(
            event_id=derive_id(key, STAGE, data.event_type),
            source=f"/flyball/{self._domain}/{STAGE}",
            event_type=data.event_type,
            subject=key,
            time_ms=int(time.time() * 1000),
            dataschema=schema_urn(self._domain, data.event_type, data.schema_version),
            data=data.model_dump(mode="json"),
            causation_id=cause_id,
        )
        try:
            self._producer.produce(self._topic, key=key.encode(), value=event, on_delivery=delivered)
        except (BufferError, KafkaException) as error:
            raise BrokerUnavailable(f"{self._topic} at {self._bootstrap}: {error}") from None
        return await done

    def since(self, at_ms: int) -> None:
        """Have read back everything recorded from `at_ms` on, before this operator began."""
        if self._since_ms is not None and at_ms >= self._since_ms:
            return
        reader = Consumer(
            {"bootstrap.servers": self._bootstrap, **self._access, "group.id": f"{self._domain}-{STAGE}-reads-back",
             "enable.auto.commit": False, "isolation.level": "read_committed", "enable.partition.eof": True,
             "auto.offset.reset": "earliest"}
        )  # fmt: skip
        try:
            if self._ends is None:
                listed = reader.list_topics(self._topic, timeout=_TIMEOUT_S).topics[self._topic].partitions
                if not listed:
                    raise BrokerUnavailable(f"{self._topic} at {self._bootstrap}: expected partitions, came none")
                self._ends = {
                    number: int(reader.get_watermark_offsets(TopicPartition(self._topic, number), timeout=_TIMEOUT_S)[1])
                    for number in listed
                }
                self._read_from = dict(self._ends)
            asked = [TopicPartition(self._topic, number, max(0, at_ms - _MARGIN_MS)) for number in self._ends]
            for found in reader.offsets_for_times(asked, timeout=_TIMEOUT_S):
                if found.error is not None:
                    raise KafkaException(found.error)
                begin, end = int(found.offset), self._read_from[found.partition]
                if 0 <= begin < end:
                    self._read(reader, found.partition, begin, end)
                    self._read_from[found.partition] = begin
            self._since_ms = at_ms
        except KafkaException as error:
            raise BrokerUnavailable(f"{self._topic} at {self._bootstrap}: {error}") from error
        finally:
            reader.close()

    def _read(self, reader: Consumer, partition: int, begin: int, end: int) -> None:
        """From `begin` to before `end`, or to the last record there is: compaction may have taken those behind it."""
        reader.assign([TopicPartition(self._topic, partition, begin)])
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            (place,) = reader.position([TopicPartition(self._topic, partition)])
            if place.offset >= end:
                return
            for message in reader.consume(500, timeout=0.2):
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF and message.partition() == partition:
                    return
                if error is None and (message.offset() or 0) < end:
                    deadline = time.monotonic() + _TIMEOUT_S
                    self._keep(message)
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{self._topic}/{partition}: nothing came from offset {place.offset} for {_TIMEOUT_S:.0f} s")

    def _keep(self, message: Message) -> None:
        match read_exchange(message.value()):
            case Exchange() as exchange:
                # The question itself is not needed to use its answer, and is the most of what there is.
                exchange = exchange.model_copy(update={"request": ""})
                place = Recorded(exchange, int(message.partition() or 0), int(message.offset() or 0))
                self._turns.setdefault(exchange.call_id, {}).setdefault(exchange.turn, place)
            case Concluded() as concluded:
                self._concluded.setdefault(concluded.call_id, concluded)


def read_exchange(value: bytes | None) -> Exchange | Concluded | None:
    """What a record of the exchanges topic holds; None for what nobody of ours wrote."""
    try:
        event = orjson.loads(value or b"")
        for kind in (Exchange, Concluded):
            if event.get("type") == kind.event_type:
                return kind.model_validate(current(kind, event))
    except (orjson.JSONDecodeError, ValidationError, BadInput, KeyError, AttributeError):
        pass
    return None
