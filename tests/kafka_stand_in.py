"""A broker in memory, behind the calls Flyball makes of kafka-python: for tests of what is around them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import ConsumerGroupMetadata, MemberState, OffsetAndMetadata


@dataclass
class StoredRecord:
    """What a consumer hands out; the names are kafka-python's."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 0
    headers: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass
class StandInBroker:
    """One partition a topic. `is_down`: nothing sent is acknowledged."""

    topics: dict[str, list[StoredRecord]] = field(default_factory=lambda: defaultdict(list))
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    committed_metadata: dict[TopicPartition, str] = field(default_factory=dict)
    is_down: bool = False

    def put(self, topic: str, key: bytes | None, value: bytes | None, *, timestamp: int = 0) -> StoredRecord:
        log = self.topics[topic]
        log.append(StoredRecord(topic, 0, len(log), key, value, timestamp))
        return log[-1]

    def values(self, topic: str) -> list[bytes | None]:
        return [record.value for record in self.topics[topic]]


class _Sent:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def get(self, timeout: float | None = None) -> None:
        if self._error is not None:
            raise self._error

    def add_errback(self, told: Callable[[Exception], None]) -> None:
        if self._error is not None:
            told(self._error)


class StandInProducer:
    def __init__(self, broker: StandInBroker) -> None:
        self._broker = broker

    def send(self, topic: str, *, key: bytes | None, value: bytes | None, partition: int | None = None) -> _Sent:
        if self._broker.is_down:
            return _Sent(KafkaError("the broker is down"))
        self._broker.put(topic, key, value)
        return _Sent(None)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class StandInConsumer:
    """A reader of `topics`; starts where the group committed, or at the beginning."""

    def __init__(self, broker: StandInBroker, *topics: str) -> None:
        self._broker = broker
        self._places = [TopicPartition(topic, 0) for topic in topics]
        self._positions = {place: broker.committed.get(place, 0) for place in self._places}
        self._paused: set[TopicPartition] = set()
        self._generation = 0
        self._is_dealing = False

    def subscribe(self, topics: list[str]) -> None:
        """Every partition of `topics` is this reader's at once."""
        self._places = [TopicPartition(topic, 0) for topic in topics]
        self._positions = {place: self._broker.committed.get(place, 0) for place in self._places}

    def rebalance(self, *, is_dealing: bool = False) -> None:
        """Another member comes or goes. The partitions stay, and where the reader stands in them, as kafka-python does it.

        `is_dealing`: not all have joined yet; that goes on until this is called again.
        """
        self._generation += 1
        self._is_dealing = is_dealing

    def group_metadata(self) -> ConsumerGroupMetadata:
        state = MemberState.REBALANCING if self._is_dealing else MemberState.STABLE
        return ConsumerGroupMetadata("group", self._generation, "member", None, state)

    def committed(self, place: TopicPartition, metadata: bool = False) -> OffsetAndMetadata | None:
        if place not in self._broker.committed:
            return None
        return OffsetAndMetadata(self._broker.committed[place], self._broker.committed_metadata[place], -1)

    def pause(self, *places: TopicPartition) -> None:
        self._paused |= set(places)

    def resume(self, *places: TopicPartition) -> None:
        self._paused -= set(places)

    def paused(self) -> set[TopicPartition]:
        return set(self._paused)

    def assignment(self) -> set[TopicPartition]:
        return set(self._places)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def assign(self, places: list[TopicPartition]) -> None:
        self._places = list(places)
        self._positions = dict.fromkeys(places, 0)

    def seek_to_beginning(self, *places: TopicPartition) -> None:
        self._positions |= dict.fromkeys(places, 0)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self._positions[place] = offset

    def seek_to_end(self, *places: TopicPartition) -> None:
        self._positions |= self.end_offsets(list(places))

    def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: len(self._broker.topics[place.topic]) for place in places}

    def position(self, place: TopicPartition) -> int:
        return self._positions[place]

    def poll(self, timeout_ms: int = 0) -> dict[TopicPartition, list[StoredRecord]]:
        found = {}
        for place in self._places:
            if place in self._paused or self._is_dealing:
                continue
            batch = self._broker.topics[place.topic][self._positions[place] :]
            if batch:
                found[place] = batch
                self._positions[place] += len(batch)
        return found

    def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        self._broker.committed |= {place: offset.offset for place, offset in offsets.items()}
        self._broker.committed_metadata |= {place: offset.metadata for place, offset in offsets.items()}

    def close(self) -> None:
        pass


class StandInBulkReader:
    """What ops/kafka.py `BulkReader` promises."""

    def __init__(self, broker: StandInBroker) -> None:
        self._broker = broker

    def partitions(self, topic: str) -> list[int]:
        return [0]

    def read(
        self, topic: str, partition: int, begin: int = 0
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        for record in list(self._broker.topics[topic])[begin:]:
            yield record.offset, record.key, record.value

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass
