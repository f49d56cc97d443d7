"""A topic of one partition in memory, behind the calls `reason` makes of confluent-kafka."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition


@dataclass
class StoredMessage:
    """A record, or the end of the partition; read as confluent-kafka's `Message` is."""

    at: int
    timestamp_ms: int
    raw: bytes | None
    failed: KafkaError | None = None

    def error(self) -> KafkaError | None:
        return self.failed

    def offset(self) -> int:
        return self.at

    def partition(self) -> int:
        return 0

    def value(self) -> bytes | None:
        return self.raw


@dataclass
class StandInTopic:
    """`log` may have gaps, as after compaction; `end` is the next offset. `is_down`: nothing is acknowledged."""

    log: list[StoredMessage] = field(default_factory=list)
    end: int = 0
    is_down: bool = False
    max_bytes: int = 4 * 1024 * 1024

    def put(self, value: bytes, timestamp_ms: int | None = None) -> StoredMessage:
        at_ms = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        self.log.append(StoredMessage(self.end, at_ms, value))
        self.end += 1
        return self.log[-1]

    def producer(self, _: dict[str, Any]) -> StandInProducer:
        return StandInProducer(self)

    def consumer(self, _: dict[str, Any]) -> StandInConsumer:
        return StandInConsumer(self)


class StandInProducer:
    def __init__(self, topic: StandInTopic) -> None:
        self._topic = topic
        self._sent: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def produce(self, name: str, *, key: bytes, value: bytes, on_delivery: Callable[[object, Any], None]) -> None:
        if len(value) > self._topic.max_bytes:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self._topic.is_down:
            self._sent.put(lambda: on_delivery(KafkaError(KafkaError._MSG_TIMED_OUT), None))
            return
        stored = self._topic.put(value)
        self._sent.put(lambda: on_delivery(None, stored))

    def poll(self, timeout: float) -> None:
        """Returns early where nothing was sent: whoever closes waits for its end."""
        with contextlib.suppress(queue.Empty):
            self._sent.get(timeout=min(timeout, 0.02))()


class StandInConsumer:
    def __init__(self, topic: StandInTopic) -> None:
        self._topic, self._position, self._told_end = topic, -1001, False

    def list_topics(self, name: str, timeout: float) -> Any:
        listed = type("Listed", (), {"partitions": {0: None}})()
        return type("Cluster", (), {"topics": {name: listed}})()

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, self._topic.end

    def offsets_for_times(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        (place,) = asked
        found = next((m.at for m in self._topic.log if m.timestamp_ms >= place.offset), -1)
        return [TopicPartition(place.topic, place.partition, found)]

    def assign(self, places: list[TopicPartition]) -> None:
        (place,) = places
        self._next, self._position, self._told_end = place.offset, -1001, False

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(place.topic, place.partition, self._position) for place in places]

    def consume(self, count: int, timeout: float) -> list[StoredMessage]:
        found = [m for m in self._topic.log if m.at >= self._next][:count]
        if found:
            self._next = self._position = found[-1].at + 1
        elif not self._told_end:
            self._told_end = True
            return [StoredMessage(self._topic.end, 0, None, KafkaError(KafkaError._PARTITION_EOF))]
        return found

    def close(self) -> None:
        pass
