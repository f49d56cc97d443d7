"""The actuator: does each command once, reports what it did.

Reads `<domain>.commands` (read_committed), keeps what it did in SQLite, writes `<domain>.outcomes`.
For each command, in this order, so that a crash anywhere repeats nothing that was finished:

    1. known in SQLite?    -> its outcome is published if it was not yet, and nothing is done again
    2. expired?            -> outcome `failed`, detail `expired`, handler not called
    3. handler(order)      -> called again only if a crash came between here and 4; handlers get
                              `command_id` to be idempotent by
    4. SQLite: outcome stored, then published, then marked as published, then offset committed

Run as `python -m ops.actuator DOMAIN`; the supervisor does.
"""

from __future__ import annotations

import argparse
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
from kafka import KafkaConsumer, KafkaProducer
from kafka.structs import OffsetAndMetadata, TopicPartition
from pydantic import ValidationError

from contracts.command import Command
from contracts.dead_letter import Cause
from contracts.domain import load_domain
from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.errors import BadInput
from contracts.outcome import Outcome
from contracts.topics import topic
from ops import kafka
from ops.home import Home
from ops.world import Done, Handler, Order, load_world
from udfs.serde import dead_letter, write_event

STAGE = "actuator"


class Memory:
    """Which commands were done and what came of it: one SQLite file per domain."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS done (command_id TEXT PRIMARY KEY, subject TEXT NOT NULL,"
            " outcome BLOB NOT NULL, is_published INTEGER NOT NULL DEFAULT 0)"
        )

    def outcome_of(self, command_id: str) -> tuple[bytes, bool] | None:
        row = self._db.execute(
            "SELECT outcome, is_published FROM done WHERE command_id = ?", (command_id,)
        ).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def store(self, command_id: str, subject: str, outcome: bytes) -> None:
        self._db.execute(
            "INSERT INTO done (command_id, subject, outcome) VALUES (?, ?, ?)",
            (command_id, subject, outcome),
        )

    def mark_published(self, command_ids: list[str]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany(
            "UPDATE done SET is_published = 1 WHERE command_id = ?", [(c,) for c in command_ids]
        )
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


def act(
    event: Mapping[str, object], handlers: Mapping[str, Handler], *, domain: str, waited_s: float
) -> tuple[Order, bytes]:
    """Carry out one command; gives the order and the outcome event.

    `waited_s` is how long the command lay in its topic (wall time): a command that expires n
    seconds of event time after its cause may wait n seconds. Raises BadInput for a malformed one.
    """
    try:
        command = Command.model_validate(event["data"])
        subject = str(event["subject"])
        hops = int(str(event["hops"]))
        due_ms = parse_time_ms(command.event_time)
        expiry = event.get("expirytime")
        is_expired = (
            isinstance(expiry, str) and due_ms + int(waited_s * 1000) > parse_time_ms(expiry)
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadInput(Cause.DATA_INVALID, f"data.{first['loc']}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(Cause.ENVELOPE_INVALID, f"expected a command: {error!r}") from None
    order = Order(
        command.command_id, command.action, subject, command.parameters, command.event_time,
        command.obligations,
    )
    handler = handlers.get(command.action)
    if is_expired:
        done = Done("failed", f"expired: {waited_s:.1f} s in the queue, valid until {expiry}")
    elif command.obligations.get("dry_run") is True:
        done = Done("succeeded", "dry run: nothing was done")
    elif handler is None:
        done = Done("failed", f"no handler for action {command.action!r}")
    else:
        try:
            done = handler(order)
        except Exception as error:  # a broken handler is an outcome, not a reason to stop acting
            done = Done("failed", f"{type(error).__name__}: {error}"[:500])
    event_ms = due_ms + int(done.took_s * 1000)
    outcome = write_event(
        event_id=derive_id(command.command_id, STAGE, command.action),
        source=f"/flyball/{domain}/{STAGE}",
        event_type=Outcome.event_type,
        subject=subject,
        time_ms=event_ms,
        dataschema=schema_urn(domain, Outcome.event_type),
        correlation_id=str(event.get("correlationid") or event["id"]),
        causation_id=str(event["id"]),
        traceparent=str(event["traceparent"]) if "traceparent" in event else None,
        hops=hops + 1,
        data={
            "event_time": format_time_ms(event_ms),
            "command_id": command.command_id,
            "action": command.action,
            "status": done.status,
            "cost": done.cost,
            "detail": done.detail,
        },
    )
    return order, outcome


class Actuator:
    """The loop around `act`: reads, remembers, publishes, commits. `clock` gives wall time in seconds."""

    def __init__(
        self, domain: str, memory: Memory, handlers: Mapping[str, Handler],
        reader: KafkaConsumer, writer: KafkaProducer, *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._domain = domain
        self._memory = memory
        self._handlers = handlers
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._outcomes = topic("outcomes").of(domain)
        self._dead_letters = topic("dead-letters").of(domain)
        self._committed: dict[TopicPartition, int] = {}

    def step(self) -> int:
        """Handle what the next poll brings; the number of records."""
        records = list(kafka.poll(self._reader, timeout_ms=50))
        published: list[str] = []
        sent = []
        for record in records:
            try:
                command_id, subject, outcome = self._handle(record)
            except BadInput as refused:
                key, letter = dead_letter(
                    domain=self._domain, stage=STAGE, cause=refused.code, message=str(refused),
                    topic=record.topic, partition=record.partition, offset=record.offset,
                    key=record.key, value=record.value, now_ms=record.appended_ms,
                )  # fmt: skip
                sent.append(self._writer.send(self._dead_letters, key=key.encode(), value=letter))
                continue
            if outcome is not None:
                sent.append(self._writer.send(self._outcomes, key=subject.encode(), value=outcome))
                published.append(command_id)
        if records:
            self._writer.flush()
            for future in sent:
                future.get(timeout=30)
            self._memory.mark_published(published)
        self._commit()
        return len(records)

    def _handle(self, record: kafka.Record) -> tuple[str, str, bytes | None]:
        if not record.value:
            raise BadInput(Cause.EMPTY, "expected a command, came an empty record")
        try:
            event = orjson.loads(record.value)
            command_id = str(event["data"]["command_id"])
            subject = str(event["subject"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise BadInput(Cause.NOT_JSON, f"expected a command as JSON: {error!r}") from None
        known = self._memory.outcome_of(command_id)
        if known is not None:
            outcome, is_published = known
            return command_id, subject, None if is_published else outcome
        waited_s = max(0.0, self._clock() - record.appended_ms / 1000)
        order, outcome = act(event, self._handlers, domain=self._domain, waited_s=waited_s)
        self._memory.store(order.command_id, order.subject, outcome)
        return command_id, subject, outcome

    def _commit(self) -> None:
        """Commit how far was read: past the last record and past transaction markers behind it."""
        reached = {place: self._reader.position(place) for place in self._reader.assignment()}
        if reached != self._committed:
            self._reader.commit(
                {place: OffsetAndMetadata(offset, "", -1) for place, offset in reached.items()}
            )
            self._committed = reached


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("domain")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    home = Home.default()
    load_domain(asked.domain)
    bootstrap = str(home.read_state()["bootstrap_servers"])
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = Memory(home.run / "actuators" / f"{asked.domain}.sqlite")
    reader = KafkaConsumer(
        topic("commands").of(asked.domain),
        bootstrap_servers=bootstrap,
        group_id=f"{asked.domain}-actuator",
        # There is one a domain, and it keeps its place: the group does not wait for one that died.
        group_instance_id=f"{asked.domain}-actuator",
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=20,
        metrics_enabled=False,
    )
    writer = kafka.producer(bootstrap, linger_ms=0)
    actuator = Actuator(asked.domain, memory, load_world(asked.domain).handlers(asked.seed), reader, writer)
    actuator.step()  # joins the group
    (home.run / "actuators" / f"{asked.domain}.ready").touch()
    while not stopping:
        actuator.step()
    reader.close()
    writer.close()
    memory.close()


if __name__ == "__main__":
    main()
