"""Facts and proposals to measure with: written ahead, or at a steady rate.

With confluent-kafka: at 1,000 records/s kafka-python takes a quarter of one of the cores being measured.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import time

from confluent_kafka import Producer

from contracts.domain import load_domain
from contracts.envelope import derive_id, format_time_ms, schema_urn
from contracts.topics import topic
from udfs.serde import write_event

START_MS = 1_750_000_000_000
STEP_MS = 60_000


def fact(
    number: int, machines: int, run: str, source: random.Random, *, is_half_hot: bool = False, first_step: int = 0
) -> tuple[bytes, bytes]:
    """The number-th reading of a plant of `machines` machines, which read a minute apart from `first_step` on: key and value.

    `is_half_hot`: every second one is about one more machine, `hot.<run>-0`.
    """
    is_hot = is_half_hot and number % 2
    machine = f"hot.{run}-0" if is_hot else f"{run}-{(number // 2 if is_half_hot else number) % machines}"
    value = write_event(
        event_id=derive_id(f"{machine}|{number}", "bench", run),
        source="/flyball/machines/bench",
        event_type="machine.temperature_measured",
        subject=machine,
        time_ms=START_MS + (first_step + number // machines) * STEP_MS,
        dataschema=schema_urn("machines", "machine.temperature_measured"),
        data={"temperature": round(source.gauss(70.0, 2.0), 3)},
    )
    return machine.encode(), value


def proposal(number: int, machines: int, run: str) -> tuple[bytes, bytes]:
    """A proposal as `propose` writes it, with features and a model."""
    machine = f"{run}-{number % machines}"
    at = format_time_ms(START_MS + (number // machines) * STEP_MS)
    value = write_event(
        event_id=derive_id(f"{machine}|{number}", "bench-proposal", run),
        source="/flyball/machines/propose/health-model",
        event_type="flyball.proposal",
        subject=machine,
        time_ms=START_MS + (number // machines) * STEP_MS,
        dataschema=schema_urn("machines", "flyball.proposal"),
        correlation_id=derive_id(f"{machine}|{number}", "bench", run),
        causation_id=derive_id(f"{machine}|{number}", "bench-situation", run),
        data={
            "event_time": at, "agent": "health-model", "agent_version": 1,
            "action": "schedule_maintenance", "parameters": {"priority": "normal"},
            "confidence": 0.9 + (number % 100) / 1000, "reason": "benchmark",
            "situation_type": "machines.reading_scored",
            "features": {"temperature": 70.0, "readings_seen": 1000, "level_shift": 2.0,
                         "level_peak": 3.0, "jump": 1.0, "jump_peak": 8.0, "deviation": 0.5,
                         "baseline_mean": 69.0},
            "features_at": at,
            "model": {"name": "machine-health", "version": 1, "sha256": "0" * 64},
        },
    )  # fmt: skip
    return machine.encode(), value


def situation(number: int, machines: int, run: str) -> tuple[bytes, bytes]:
    """A situation as `context` writes it."""
    machine = f"{run}-{number % machines}"
    event_ms = START_MS + (number // machines) * STEP_MS
    name = derive_id(f"{machine}|{number}", "bench", run)
    value = write_event(
        event_id=derive_id(name, "bench-situation", run),
        source="/flyball/machines/context",
        event_type="machines.reading_scored",
        subject=machine,
        time_ms=event_ms,
        dataschema=schema_urn("machines", "machines.reading_scored"),
        correlation_id=name,
        causation_id=name,
        data={
            "event_time": format_time_ms(event_ms), "temperature": 70.0, "readings_seen": number, "level_shift": 2.0,
            "level_peak": 3.0, "jump": 1.0, "jump_peak": 8.0, "deviation": 0.5, "baseline_mean": 69.0,
        },
    )  # fmt: skip
    return machine.encode(), value


def main() -> None:
    parser = argparse.ArgumentParser(description="Write benchmark records into Kafka.")
    parser.add_argument("what", choices=["facts", "situations", "proposals"])
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--machines", type=int, default=200)
    parser.add_argument("--first-step", type=int, default=0, help="facts only: how many minutes of event time have passed")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--run", default="bench")
    parser.add_argument("--half-hot", action="store_true", help="every second fact about one more machine")
    parser.add_argument("--as-due", action="store_true", help="make each record when it is due, not all of them ahead")
    parser.add_argument("--share", default="0/1", help="this process writes the records n mod m")
    asked = parser.parse_args()
    load_domain("machines")
    mine, of = (int(part) for part in asked.share.split("/"))
    writer = Producer(
        {
            "bootstrap.servers": asked.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 5,  # its default, and what `./flyball emit` does
            "queue.buffering.max.messages": 200_000,
        }
    )
    failed: list[str] = []

    def delivered(error: object, _: object) -> None:
        if error is not None:
            failed.append(str(error))

    def write(key: bytes, value: bytes) -> None:
        while True:
            try:
                writer.produce(name, key=key, value=value, on_delivery=delivered)
                return
            except BufferError:  # the queue is full: wait for some to be acknowledged
                writer.poll(0.1)

    name = topic(asked.what).of("machines")
    source = random.Random(mine)
    numbers = range(mine, asked.count, of)
    if asked.what == "facts":
        records = (
            fact(number, asked.machines, asked.run, source, is_half_hot=asked.half_hot, first_step=asked.first_step)
            for number in numbers
        )
    else:
        made = situation if asked.what == "situations" else proposal
        records = (made(number, asked.machines, asked.run) for number in numbers)
    if asked.rate is None:
        for number, record in enumerate(records):
            write(*record)
            if number % 100 == 0:
                writer.poll(0)
    else:
        # Made ahead and sent every 5 ms, so that the load itself takes little of the cores measured.
        ready = records if asked.as_due else iter(list(records))
        began, sent, parent = time.monotonic(), 0, os.getppid()
        while sent < len(numbers):
            time.sleep(0.005)
            if os.getppid() != parent:
                raise SystemExit("whoever asked for this load is gone")
            due = int((time.monotonic() - began) * asked.rate / of) + 1
            for record in itertools.islice(ready, due - sent):
                write(*record)
                sent += 1
            writer.poll(0)
    writer.flush()
    if failed:
        raise SystemExit(f"{len(failed)} records were not written, the first because: {failed[0]}")


if __name__ == "__main__":
    main()
