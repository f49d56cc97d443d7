"""What goes through an instance: a steady load of items, and readers of what comes out.

A broker that is away is waited for. What was sent and what was read stays in memory, each partition in the order of the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import orjson

from contracts.envelope import parse_time_ms
from contracts.errors import JobFailed
from contracts.topics import topic
from ops import kafka
from ops.torture import checker, facts

DOMAIN = "drill"
QUIET_PATIENCE_S = 120.0


class Tap(threading.Thread):
    """Reads what a domain writes (committed records only) until `stop`; a broker that is away is waited for."""

    TOPICS = ("decisions", "commands", "outcomes", "dead-letters")

    def __init__(self, bootstrap: str) -> None:
        super().__init__(name="tap", daemon=True)
        self._reader = _consumer(bootstrap, is_committed=True)
        self._short = {topic(name).of(DOMAIN): name for name in self.TOPICS}
        self._reader.assign(_places(self._reader, list(self._short), confluent_kafka.OFFSET_BEGINNING))
        self._stopping = threading.Event()
        self.events: dict[str, list[dict[str, Any]]] = {name: [] for name in self.TOPICS}
        self.advice: list[dict[str, Any]] = []
        # Topic, partition and offset of what was read.
        self.places: set[tuple[str, int, int]] = set()
        # Topic and partition -> the offset read last.
        self._last: dict[tuple[str, int], int] = {}
        # Fact id -> when its decision was first read (time.monotonic).
        self.decided_at: dict[str, float] = {}
        self.decided: set[checker.Key] = set()
        self.commanded: set[str] = set()
        self.done: set[str] = set()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                for record in self._reader.consume(500, timeout=0.02):
                    if record.error() is None:
                        self._take(self._short[str(record.topic())], orjson.loads(record.value() or b"{}"))
                        self._note(str(record.topic()), int(record.partition() or 0), int(record.offset() or 0))
        except BaseException as error:
            self.error = error
        finally:
            self._reader.close()

    def _take(self, name: str, event: dict[str, Any]) -> None:
        chain = str(event.get("correlationid"))
        if event.get("type") == "flyball.decision" and event["data"]["action"] == "advise":
            self.advice.append(event)  # the slow agent's: judged apart
            return
        if name == "decisions":
            self.decided.add(checker.key_of(event, parse_time_ms(event["data"]["event_time"])))
            self.decided_at.setdefault(chain, time.monotonic())
        elif name == "commands":
            self.commanded.add(chain)
        elif name == "outcomes":
            self.done.add(chain)
        self.events[name].append(event)

    def _note(self, topic_name: str, partition: int, offset: int) -> None:
        self.places.add((topic_name, partition, offset))
        self._last[topic_name, partition] = offset

    def fate_of(self, place: tuple[str, int, int]) -> str:
        """What became of a record's transaction: "committed", "aborted", or "" as long as nothing behind it was read."""
        is_passed = self._last.get(place[:2], -1) > place[2]  # before the places: this goes on in another thread
        if place in self.places:
            return "committed"
        return "aborted" if is_passed else ""

    def count(self, name: str) -> int:
        """Records of a topic that were read."""
        full = topic(name).of(DOMAIN)
        return sum(place[0] == full for place in list(self.places))

    def has_read_all(self, bootstrap: str) -> bool:
        """Whether a second reader finds no committed record that this one has not read yet."""
        return all(
            (record.topic, record.partition, record.offset) in self.places
            for record in kafka.read_all(bootstrap, list(self._short))
        )

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)


class Ends:
    """Where the topics end that the tap reads, for a reader of committed records."""

    def __init__(self, bootstrap: str) -> None:
        self._reader = kafka.consumer(bootstrap)
        self._where = kafka.partitions(self._reader, [topic(name).of(DOMAIN) for name in Tap.TOPICS])

    def told(self) -> dict[Any, int]:
        """By partition."""
        return kafka.end_offsets(self._reader, self._where)

    def close(self) -> None:
        self._reader.close()


class Uncommitted:
    """Reads decisions as they are written from now on, before their transaction is committed."""

    def __init__(self, bootstrap: str) -> None:
        self._reader = _consumer(bootstrap, is_committed=False)
        self._reader.assign(_places(self._reader, [topic("decisions").of(DOMAIN)], confluent_kafka.OFFSET_END))

    def __enter__(self) -> Uncommitted:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def wait_for_one(self, is_wanted: Callable[[tuple[str, int, int]], bool]) -> tuple[str, int, int]:
        """Topic, partition and offset of the next record that is wanted."""
        deadline = time.monotonic() + QUIET_PATIENCE_S
        while time.monotonic() < deadline:
            for record in self._reader.consume(1, timeout=0.1):
                place = str(record.topic()), int(record.partition() or 0), int(record.offset() or 0)
                if record.error() is None and is_wanted(place):
                    return place
        raise JobFailed(f"expected a decision in an open transaction within {QUIET_PATIENCE_S:.0f} s")


def _consumer(bootstrap: str, *, is_committed: bool) -> confluent_kafka.Consumer:
    return confluent_kafka.Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "torture",  # asked for by the client; nothing is committed
            "enable.auto.commit": False,
            "isolation.level": "read_committed" if is_committed else "read_uncommitted",
            "fetch.wait.max.ms": 20,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
    )


def _places(reader: confluent_kafka.Consumer, topics: list[str], offset: int) -> list[confluent_kafka.TopicPartition]:
    known = reader.list_topics(timeout=30).topics
    return [
        confluent_kafka.TopicPartition(name, part, offset) for name in topics for part in sorted(known[name].partitions)
    ]


class Load(threading.Thread):
    """Writes rounds of items at a steady rate until `end`; what was sent stays in `sent`, in the order of the log."""

    def __init__(self, bootstrap: str, source: Iterator[list[facts.Item]], *, rate: float) -> None:
        super().__init__(name="load", daemon=True)
        self._source = source
        self._rate = rate
        self._writer = confluent_kafka.Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 1,
                "partitioner": "murmur2",  # as Flink's own and the actuator's producers do
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        self._ending = threading.Event()
        self._failed: list[str] = []
        self.sent: list[facts.Item] = []
        # Fact id -> when it was handed to the producer (time.monotonic).
        self.sent_at: dict[str, float] = {}

    def run(self) -> None:
        began, count = time.monotonic(), 0
        for items in self._source:
            if self._ending.is_set():
                break
            for item in items:
                self._send(item)
            count += len(items)
            while (ahead := began + count / self._rate - time.monotonic()) > 0:
                self._writer.poll(min(ahead, 0.05))
        self._writer.flush(60)

    def _send(self, item: facts.Item) -> None:
        key, value = item.to_record()
        self._writer.produce(topic("facts").of(DOMAIN), key=key, value=value, on_delivery=self._delivered)
        self.sent.append(item)
        if isinstance(item, facts.Fact):
            self.sent_at[item.id] = time.monotonic()

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._failed.append(str(error))

    def end(self, *, at_once: bool = True) -> None:
        """Write no more; or, with a source that ends by itself, wait for that.

        Raises JobFailed when a record was not acknowledged: what is not in the log cannot be asked for."""
        if at_once:
            self._ending.set()
        self.join(120)
        if self._failed or self.is_alive() or len(self._writer):
            raise JobFailed(f"the load could not be written: {self._failed[:1] or len(self._writer)}")

    def facts(self) -> list[facts.Fact]:
        return [item for item in self.sent if isinstance(item, facts.Fact)]
