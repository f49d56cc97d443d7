"""Everything Flyball's own processes do with Kafka: topics, producers, readers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import confluent_kafka
import tenacity
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from contracts import access
from contracts.errors import BrokerUnavailable
from contracts.topics import MAX_RECORD_BYTES, TOPICS
from udfs import broker_access

_PATIENCE_S = 30.0
# A broker that stood still or came back names coordinators and addresses anew: what fails meanwhile is asked again.
_asked_again = tenacity.retry(
    retry=tenacity.retry_if_exception(lambda error: isinstance(error, KafkaError) and error.retriable),
    wait=tenacity.wait_fixed(0.2),
    stop=tenacity.stop_after_delay(_PATIENCE_S),
    reraise=True,
)
# So few records behind may be markers of transactions only, which no reader's committed offset passes.
_FEW = 200
# Records handed over at once by the bulk reader: few enough to be warm in the cache when they are parsed.
_BATCH = 500


@dataclass(frozen=True)
class Record:
    """One record as read: `appended_ms` is the broker's clock."""

    topic: str
    partition: int
    offset: int
    appended_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def producer(bootstrap_servers: str, *, principal: str | None = None, linger_ms: int = 5) -> KafkaProducer:
    """An idempotent producer that waits for the broker's acknowledgement; a secure broker asks for a `principal`."""
    try:
        return KafkaProducer(
            bootstrap_servers=bootstrap_servers,
            **broker_access.kafka_python(principal),
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            # As the jobs' sinks: the first batches of a new producer may be refused and a later one taken (decisions/0027).
            max_in_flight_requests_per_connection=1,
            batch_size=262_144,
            max_request_size=MAX_RECORD_BYTES,
            metrics_enabled=False,
        )
    except KafkaError as error:
        raise BrokerUnavailable(f"no broker answered at {bootstrap_servers}: {error}") from error


def consumer(
    bootstrap_servers: str, *, principal: str | None = None, is_committed: bool = True, max_poll: int = 5000
) -> KafkaConsumer:
    """A reader without a group; it sees only committed transactions unless told otherwise."""
    try:
        return KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            **broker_access.kafka_python(principal),
            isolation_level="read_committed" if is_committed else "read_uncommitted",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
            max_poll_records=max_poll,
            max_partition_fetch_bytes=MAX_RECORD_BYTES,
            metrics_enabled=False,
        )
    except KafkaError as error:
        raise BrokerUnavailable(f"no broker answered at {bootstrap_servers}: {error}") from error


def member(
    bootstrap_servers: str, group: str, *, principal: str | None = None, max_poll: int = 500
) -> KafkaConsumer:
    """A reader of committed records in a consumer group, which commits by hand; a group begins with the oldest.

    The group waits for the next poll of each member when one comes or goes, which they hear of within a second.
    One that was killed is missed after ten seconds, one that does not poll after five minutes.
    """
    try:
        return KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            **broker_access.kafka_python(principal),
            group_id=group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            max_poll_records=max_poll,
            fetch_max_wait_ms=20,
            metrics_enabled=False,
        )
    except KafkaError as error:
        raise BrokerUnavailable(f"no broker answered at {bootstrap_servers}: {error}") from error


def _admin(bootstrap_servers: str, principal: str | None) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=bootstrap_servers, **broker_access.kafka_python(principal))


def create_topics(bootstrap_servers: str, domain: str) -> None:
    """Create the domain's topics that do not exist yet, as the topic table says."""
    admin = _admin(bootstrap_servers, access.principal(domain, "admin"))
    try:
        existing = set(admin.list_topics())
        new = [
            NewTopic(
                name=row.of(domain),
                num_partitions=row.partitions,
                replication_factor=-1,  # the broker's default.replication.factor: one here, three where there are three
                topic_configs={
                    "retention.ms": str(row.retention_ms),
                    "cleanup.policy": row.cleanup,
                    "message.timestamp.type": "LogAppendTime",
                    "max.message.bytes": str(MAX_RECORD_BYTES),
                },
            )
            for row in TOPICS
            if row.of(domain) not in existing
        ]
        if new:
            admin.create_topics(new)
    except TopicAlreadyExistsError:
        pass
    finally:
        admin.close()


def end_offsets(reader: KafkaConsumer, where: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The offset behind the last record of each partition.

    kafka-python 3.0.12 raises KeyError where a slow broker's answer lacks a partition: then it is asked again.
    Raises BrokerUnavailable when that goes on for 30 s.
    """
    places, until = list(where), time.monotonic() + _PATIENCE_S
    while True:
        try:
            found: dict[TopicPartition, int] = reader.end_offsets(places)
            return found
        except KeyError as missing:
            if time.monotonic() > until:
                raise BrokerUnavailable(f"no end of {missing} was told for {_PATIENCE_S:.0f} s") from None
            time.sleep(0.2)


def partitions(reader: KafkaConsumer, topics: list[str]) -> list[TopicPartition]:
    """Every partition of `topics`. Raises BrokerUnavailable when a topic is not there."""
    found = []
    for name in topics:
        numbers = _asked_again(reader.partitions_for_topic)(name)
        if not numbers:
            raise BrokerUnavailable(f"topic {name!r} does not exist; './flyball up DOMAIN' makes it")
        found += [TopicPartition(name, number) for number in sorted(numbers)]
    return found


def read_all(bootstrap_servers: str, topics: list[str], *, role: str = "reader") -> Iterator[Record]:
    """Every record that is in `topics` of one domain now, partition by partition in offset order."""
    domain = topics[0].partition(".")[0]
    reader = consumer(bootstrap_servers, principal=access.principal(domain, role))
    try:
        where = partitions(reader, topics)
        reader.assign(where)
        reader.seek_to_beginning(*where)
        ends = end_offsets(reader, where)
        while any(reader.position(p) < ends[p] for p in where):
            yield from poll(reader, timeout_ms=200)
    finally:
        reader.close()


def poll(reader: KafkaConsumer, *, timeout_ms: int) -> Iterator[Record]:
    for batch in reader.poll(timeout_ms=timeout_ms).values():
        for r in batch:
            yield Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))


class RecordsAt:
    """Single committed records of one domain by their place; quick for places asked in the order of the log."""

    def __init__(self, bootstrap_servers: str, domain: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._reader = consumer(bootstrap_servers, principal=access.principal(domain, "reader"))
        self._ahead: dict[tuple[str, int, int], Record] = {}

    def get(self, topic: str, partition: int, offset: int) -> Record | None:
        """The record, or None when the log does not hold it (any more). Raises BrokerUnavailable."""
        if (record := self._ahead.get((topic, partition, offset))) is not None:
            return record
        where = TopicPartition(topic, partition)
        if partition not in (self._reader.partitions_for_topic(topic) or ()) or not 0 <= offset < end_offsets(self._reader, [where])[where]:
            return None
        self._reader.assign([where])
        self._reader.seek(where, offset)
        until = time.monotonic() + _PATIENCE_S
        while True:
            self._ahead = {(r.topic, r.partition, r.offset): r for r in poll(self._reader, timeout_ms=200)}
            if self._ahead or self._reader.position(where) > offset:  # where it is gone, what came is behind it
                return self._ahead.get((topic, partition, offset))
            if time.monotonic() > until:
                raise BrokerUnavailable(f"{topic}/{partition} at {self._bootstrap_servers}: nothing came from offset {offset}")

    def close(self) -> None:
        self._reader.close()


class BulkReader:
    """Reads partitions one after another, committed records only, to where each ends now.

    With confluent-kafka, which fetches ahead on threads of its own: kafka-python takes longer to read a
    decision than it takes to make it again (docs/decisions/0015). Raises BrokerUnavailable.
    """

    def __init__(self, bootstrap_servers: str, *, principal: str | None = None) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._reader = confluent_kafka.Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                **broker_access.confluent(principal),
                "group.id": access.BULK_GROUP,  # asked for by the client; nothing is committed
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
                "fetch.message.max.bytes": MAX_RECORD_BYTES,
                "queued.max.messages.kbytes": 65_536,
                "check.crcs": False,
                "log_level": 0,
            }
        )

    def partitions(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions."""
        try:
            found = self._reader.list_topics(topic, timeout=_PATIENCE_S).topics[topic]
        except confluent_kafka.KafkaException as error:
            raise self._unavailable(error) from None
        if found.error is not None or not found.partitions:
            raise BrokerUnavailable(f"topic {topic!r} does not exist; './flyball up DOMAIN' makes it")
        return sorted(found.partitions)

    def size(self, topic: str, partition: int) -> int:
        """How many offsets a partition has, markers of transactions among them."""
        try:
            begin, end = self._reader.get_watermark_offsets(confluent_kafka.TopicPartition(topic, partition), timeout=_PATIENCE_S)
        except confluent_kafka.KafkaException as error:
            raise self._unavailable(error) from None
        return int(end - begin)

    def read(
        self, topic: str, partition: int, begin: int = 0
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """Offset, key and value of each record from offset `begin` on that is there when this is called."""
        where = confluent_kafka.TopicPartition(topic, partition, begin or confluent_kafka.OFFSET_BEGINNING)
        try:
            _, end = self._reader.get_watermark_offsets(where, timeout=_PATIENCE_S)
            self._reader.assign([where])
            silent_since = time.monotonic()
            while end > begin:
                found = self._reader.consume(_BATCH, timeout=0.02)  # what there is by then
                for message in found:
                    error = message.error()
                    if error is not None:
                        if error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                            return
                        if error.retriable() or not error.fatal():
                            continue
                        raise BrokerUnavailable(f"reading {topic}/{partition}: {error}")
                    offset = int(message.offset() or 0)
                    if offset >= end:
                        return
                    yield offset, message.key(), message.value()
                    if offset == end - 1:
                        return
                now = time.monotonic()
                if found:
                    silent_since = now
                elif now - silent_since > _PATIENCE_S:
                    raise BrokerUnavailable(f"{topic}/{partition}: no record came for {_PATIENCE_S:.0f} s")
        except confluent_kafka.KafkaException as error:
            raise self._unavailable(error) from None

    def rest(self) -> None:
        """Fetch nothing until the next `read`; otherwise what comes to the partition read last is fetched all the while."""
        self._reader.unassign()

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"no broker answered at {self._bootstrap_servers}: {error}")

    def close(self) -> None:
        self._reader.close()


class TransactionalWriter:
    """Writes records to several topics together, or none of them. One at a time for each `transactional_id`.

    Making one ends what another of that id has begun (a commit under way is completed, all else undone) and fences
    it: it can write no more. With confluent-kafka, whose calls all end. A transaction whose process is gone is
    undone after some 25 s, until when readers of committed records wait before it. Raises BrokerUnavailable.
    """

    def __init__(self, bootstrap_servers: str, transactional_id: str, *, principal: str | None = None) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._acknowledged: list[tuple[int, int] | None] = []
        self._error: confluent_kafka.KafkaError | None = None
        self._writer = confluent_kafka.Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                **broker_access.confluent(principal),
                "transactional.id": transactional_id,
                "transaction.timeout.ms": 15_000,
                "message.max.bytes": MAX_RECORD_BYTES,
                "partitioner": "murmur2_random",  # as the other clients
                "linger.ms": 5,
                "log_level": 0,
            }
        )
        with self._told():
            self._writer.init_transactions(_PATIENCE_S)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is sent inside is committed at its end, and undone when it raises."""
        with self._told():
            self._writer.begin_transaction()
            try:
                yield
                self._writer.commit_transaction(_PATIENCE_S)
            except BaseException as error:
                if not isinstance(error, confluent_kafka.KafkaException) or not error.args[0].fatal():
                    self._writer.abort_transaction(_PATIENCE_S)
                raise

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, *, partition: int | None = None,
        headers: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:  # fmt: skip
        """Hand over one record; `flush` tells where it lies."""
        place = len(self._acknowledged)
        self._acknowledged.append(None)

        def delivered(error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
            if error is not None:
                self._error = error
            else:
                self._acknowledged[place] = int(message.partition() or 0), int(message.offset() or 0)

        self._writer.produce(
            topic, key=key, value=value, headers=list(headers), on_delivery=delivered,
            partition=-1 if partition is None else partition,
        )  # fmt: skip

    def flush(self) -> list[tuple[int, int]]:
        """Partition and offset of each record sent since the last flush, in order, once all are acknowledged."""
        left = self._writer.flush(_PATIENCE_S)
        sent, self._acknowledged, error, self._error = self._acknowledged, [], self._error, None
        if error is not None:
            raise confluent_kafka.KafkaException(error)
        if left or None in sent:
            raise BrokerUnavailable(f"{self._bootstrap_servers} did not acknowledge within {_PATIENCE_S:.0f} s")
        return [where for where in sent if where is not None]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except confluent_kafka.KafkaException as error:
            cause = error.args[0]
            if cause.code() in (confluent_kafka.KafkaError._FENCED, confluent_kafka.KafkaError.INVALID_PRODUCER_EPOCH):
                raise BrokerUnavailable("another process of the same kind has taken over; what it has not done, do again") from None
            raise BrokerUnavailable(f"the broker at {self._bootstrap_servers} did not take the records: {cause}") from None

    def close(self) -> None:
        self._writer.flush(0)


def wait_for_broker(bootstrap_servers: str, *, principal: str | None = None, timeout_s: float = 60) -> None:
    """Until the broker answers `principal`. Raises BrokerUnavailable."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            _admin(bootstrap_servers, principal).close()
            return
        except KafkaError as error:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"no broker at {bootstrap_servers}: {error}") from error
            time.sleep(0.1)


# Consumer group -> the topics it reads, for lags.
READERS = {
    "context": ("facts", "outcomes"),
    "propose": ("situations",),
    "reason": ("situations",),
    "govern": ("proposals", "outcomes", "approvals", "limits"),
    "actuator": ("commands",),
}


class LagReader:
    """How many records each reader of a domain (its `jobs`, and the actuator) has yet to read, by its committed offsets.

    Flink commits offsets when a checkpoint completes, so a lag is at most one interval old.
    """

    def __init__(self, bootstrap_servers: str, domain: str, jobs: Iterable[str]) -> None:
        self._domain = domain
        self._readers = {name: READERS[name] for name in (*jobs, "actuator")}
        principal = access.principal(domain, "reader")
        self._admin = _admin(bootstrap_servers, principal)
        self._reader = consumer(bootstrap_servers, principal=principal)
        self._read_through: dict[TopicPartition, tuple[int, int]] = {}

    def lags(self) -> dict[str, int]:
        found = {}
        for reader, names in self._readers.items():
            where = partitions(self._reader, [f"{self._domain}.{name}" for name in names])
            ends = end_offsets(self._reader, where)
            group = f"{self._domain}-{reader}"
            committed = _group_offsets(self._admin, group)
            found[reader] = sum(
                self._behind(place, max(0, committed.get(place, 0)), end)
                for place, end in ends.items()
            )
        return found

    def _behind(self, place: TopicPartition, committed: int, end: int) -> int:
        """Records from `committed` to `end`; 0 where only markers of transactions are left, which Flink does not pass."""
        behind = max(0, end - committed)
        if not 0 < behind <= _FEW:
            return behind
        if self._read_through.get(place) == (committed, end):
            return 0
        self._reader.assign([place])
        self._reader.seek(place, committed)
        while self._reader.position(place) < end:
            if any(record.offset < end for record in poll(self._reader, timeout_ms=100)):
                return behind
        self._read_through[place] = committed, end
        return 0

    def close(self) -> None:
        self._admin.close()
        self._reader.close()


def committed(bootstrap_servers: str, group: str, *, principal: str | None = None) -> dict[TopicPartition, int]:
    """Where the consumer group would go on reading, for each partition it has committed."""
    admin = _admin(bootstrap_servers, principal)
    try:
        return _group_offsets(admin, group)
    finally:
        admin.close()


@_asked_again
def _group_offsets(admin: KafkaAdminClient, group: str) -> dict[TopicPartition, int]:
    return {place: at.offset for place, at in admin.list_group_offsets(group).get(group, {}).items()}


def existing_topics(bootstrap_servers: str, domain: str) -> set[str]:
    """The topics there are; of a secure broker those of `domain`, as it shows nobody what he may not see."""
    admin = _admin(bootstrap_servers, access.principal(domain, "reader"))
    try:
        return set(admin.list_topics())
    finally:
        admin.close()
