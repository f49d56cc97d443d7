"""What every measurement stands on: an empty instance of its own, a load, and readers of its topics."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, TopicPartition

from contracts.errors import JobFailed
from contracts.topics import topic
from ops import flink_jobs, instance, kafka
from ops.home import CHECKOUT, Home


def bench_home() -> Home:
    return Home(CHECKOUT / ".flyball" / "bench")


def prepared(home: Home) -> str:
    """An empty instance with the machines' topics and no job; its broker's address."""
    instance.stop(home)
    instance.start(home, fresh=True, while_pid=os.getpid())
    instance.wait_ready(home)
    bootstrap = str(home.read_state()["bootstrap_servers"])
    kafka.create_topics(bootstrap, "machines")
    return bootstrap


def policy_folder(home: Home, policies: dict[str, str]) -> list[Path]:
    """Policies written as files: name -> YAML."""
    folder = home.path / "policies"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in policies.items():
        (folder / f"{name}.yaml").write_text(text)
    return [folder / f"{name}.yaml" for name in policies]


def load(
    home: Home, what: str, count: int, *, rate: float | None = None, run: str = "bench", machines: int = 200,
    is_half_hot: bool = False,
) -> None:  # fmt: skip
    """Write records with as many processes as help. `is_half_hot`: every second fact about one more machine."""
    finish_load(start_load(home, what, count, rate=rate, run=run, machines=machines, is_half_hot=is_half_hot))


def start_load(
    home: Home, what: str, count: int, *, rate: float | None = None, run: str = "bench", machines: int = 200,
    is_half_hot: bool = False, is_made_as_due: bool = False,
) -> list[subprocess.Popen[bytes]]:  # fmt: skip
    """As `load`, but does not wait for its end: see finish_load. `is_made_as_due`: not all of it ahead in memory.

    Facts begin where in event time those before ended, or all of them would be late.
    """
    workers = 1 if rate else 2
    clock = home.run / "benchmark-steps"
    first_step = int(clock.read_text()) if clock.exists() else 0
    clock.write_text(str(first_step + math.ceil(count / machines)))
    bootstrap = str(home.read_state()["bootstrap_servers"])
    command = [sys.executable, "-m", "benchmarks.load", what, "--bootstrap-servers", bootstrap,
               "--count", str(count), "--run", run, "--machines", str(machines), "--first-step", str(first_step)]  # fmt: skip
    if rate:
        command += ["--rate", str(rate)]
    command += ["--half-hot"] * is_half_hot + ["--as-due"] * is_made_as_due
    return [
        subprocess.Popen([*command, "--share", f"{n}/{workers}"], cwd=CHECKOUT,
                         env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
        for n in range(workers)
    ]  # fmt: skip


def finish_load(started: list[subprocess.Popen[bytes]]) -> None:
    codes = [process.wait() for process in started]
    if any(codes):
        raise JobFailed("writing the load failed")


def wait_until(is_done: Callable[[], bool], what: Callable[[], str], *, timeout_s: float) -> None:
    """Looks twice a second. Raises JobFailed saying `what` was still missing."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            raise JobFailed(f"{what()} within {timeout_s:.0f} s")
        time.sleep(0.5)


def wait_for_records(home: Home, name: str, wanted: int, timeout_s: float = 300) -> list[tuple[float, int]]:
    """Until a topic holds `wanted` records: how many there were (ends of transactions included), twice a second."""
    reader = kafka.consumer(str(home.read_state()["bootstrap_servers"]))
    where = kafka.partitions(reader, [topic(name).of("machines")])
    samples: list[tuple[float, int]] = []

    def is_there() -> bool:
        flink_jobs.check(home, "machines")
        samples.append((time.monotonic(), sum(reader.end_offsets(where).values())))
        return samples[-1][1] >= wanted

    try:
        wait_until(is_there, lambda: f"expected {wanted} {name}, came {samples[-1][1]}", timeout_s=timeout_s)
    finally:
        reader.close()
    return samples


def topic_rate(home: Home, name: str, wanted: int, timeout_s: float = 300) -> float:
    """Records a second into a topic, between a half of `wanted` and 95 % of it."""
    samples = wait_for_records(home, name, wanted, timeout_s)
    steady = [sample for sample in samples if wanted / 2 <= sample[1] <= wanted * 0.95]
    if len(steady) < 2:
        raise JobFailed(f"expected a load that takes some seconds, but {wanted} {name} came too fast to measure")
    (began, first), (ended, last) = steady[0], steady[-1]
    return (last - first) / (ended - began)


def count_committed(bootstrap: str, name: str) -> int:
    """How many records of a topic a read_committed reader gets; offsets count transactions' ends too."""
    found_by = reader(bootstrap, name, from_beginning=True)
    open_ends, found = len(found_by.assignment()), 0
    while open_ends:
        for record in found_by.consume(10_000, timeout=1.0):
            if record.error() is None:
                found += 1
            else:
                open_ends -= 1
    found_by.close()
    return found


def reader(bootstrap: str, *names: str, from_beginning: bool = False, domain: str = "machines") -> Consumer:
    """Reads these topics, committed records only, from their beginning or from where they end now."""
    found = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": from_beginning,
            "fetch.wait.max.ms": 20,
        }
    )
    places = [
        TopicPartition(full, part)
        for full in (topic(name).of(domain) for name in names)
        for part in found.list_topics(full, timeout=10).topics[full].partitions
    ]
    for place in places:
        begin, end = found.get_watermark_offsets(place)
        place.offset = begin if from_beginning else end
    found.assign(places)
    return found


class Arrivals(threading.Thread):
    """When events of a topic came to a read_committed reader (wall ms), by what they belong to.

    Reads from where the topic ends now, while it is used as a context manager. `of`: the key of an event, its
    correlation id unless told otherwise; the first event of a key counts.
    """

    def __init__(
        self, bootstrap: str, name: str, of: Callable[[dict[str, Any]], str] = lambda e: str(e.get("correlationid")),
        *, domain: str = "machines",
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._reader = reader(bootstrap, name, domain=domain)
        self._of = of
        self._stopping = threading.Event()
        self.arrived: dict[str, float] = {}

    def run(self) -> None:
        while not self._stopping.is_set():
            for record in self._reader.consume(500, timeout=0.005):
                now = time.time() * 1000
                event = orjson.loads(record.value() or b"{}")
                self.arrived.setdefault(self._of(event), now)
        self._reader.close()

    def __enter__(self) -> Arrivals:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def taken_ms(self, appended: dict[str, int], *, timeout_s: float = 180) -> list[int]:
        """From each append to its arrival. A queue behind the load shows as latency, what never comes as an error."""

        def missing() -> int:
            return len(appended.keys() - self.arrived.keys())

        wait_until(
            lambda: not missing(), lambda: f"{missing()} of {len(appended)} were not answered", timeout_s=timeout_s
        )
        return [round(self.arrived[name] - appended_ms) for name, appended_ms in appended.items()]
