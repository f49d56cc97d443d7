"""What the whole loop does under load that lasts, load that is too much, and load on one subject.

All three jobs of `machines`, warm, each reading with a proposal (FLYBALL_AGENTS), at the domain's own delivery.
FLYBALL_DELIVERY, FLYBALL_PARALLELISM and FLYBALL_TASKMANAGERS (3) may say otherwise.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson
from rich.console import Console

from benchmarks.bed import bench_home, finish_load, load, reader, start_load, wait_until
from benchmarks.growth import state_bytes
from contracts.decision import Decision
from contracts.errors import JobFailed
from contracts.topics import topic
from ops import flink_jobs, instance, kafka
from ops.home import CHECKOUT, Home, environment
from ops.run import bring_up
from ops.watch import percentiles

_WARM = 20_000
_STEP_S = 12.0
_LASTING_S = 60.0
_FIRST_RATE = 200.0
_MORE = 1.5
# Of what is offered so much must be decided in time, or the maximum is reached.
_IN_TIME = 0.9
_SAMPLE_S = 15.0
# Event time of some minutes of the soak: then ids are forgotten as fast as they come.
_REMEMBER_S = 86_400
_SOAK_MACHINES = 20
# The share of a soak in which it still warms up; slopes are those of the rest.
_WARMING = 1 / 3
_PATIENCE_S = 900.0


class Matches:
    """Facts and their decisions, in whatever order they are met; each decision is about the chain a fact began.

    `facts` and `decided` count each; `repeated` counts decisions whose id came before; `open` facts without a decision.
    `taken`: run (the load's name in the subject) -> when each decided fact was appended (wall ms), and how long its decision
    took to get here (ms).
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, int]] = {}
        self._early: dict[str, float] = {}
        self._decisions: set[int] = set()
        self.facts = 0
        self.decided = 0
        self.repeated = 0
        self.taken: dict[str, list[tuple[int, int]]] = defaultdict(list)

    @property
    def open(self) -> int:
        return len(self._open)

    def fact(self, event: dict[str, Any], appended_ms: int) -> None:
        self.facts += 1
        fact = event["subject"].rsplit("-", 1)[0], appended_ms
        if (arrived := self._early.pop(event["id"], None)) is None:
            self._open[event["id"]] = fact
        else:
            self._match(fact, arrived)

    def decision(self, event: dict[str, Any], now_ms: float) -> None:
        if (name := int(event["id"][:16], 16)) in self._decisions:
            self.repeated += 1
            return
        self._decisions.add(name)
        if (fact := self._open.pop(event["correlationid"], None)) is None:
            self._early[event["correlationid"]] = now_ms
        else:
            self._match(fact, now_ms)

    def _match(self, fact: tuple[str, int], arrived_ms: float) -> None:
        run, appended_ms = fact
        self.decided += 1
        self.taken[run].append((appended_ms, max(0, round(arrived_ms - appended_ms))))

    def told(self, run: str, prefix: str = "") -> dict[str, float | None]:
        """p50 and p99 (ms) of a run."""
        found = percentiles([taken for _, taken in self.taken[run]])
        return {f"{prefix}p50_ms": found["p50"], f"{prefix}p99_ms": found["p99"]}


class Follow(threading.Thread):
    """Matches facts and decisions as a read_committed reader meets them, while used as a context manager."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(name="follow", daemon=True)
        self._reader = reader(bootstrap, "facts", "decisions")
        self._stopping = threading.Event()
        self.seen = Matches()

    def run(self) -> None:
        facts = topic("facts").of("machines")
        while not self._stopping.is_set():
            for record in self._reader.consume(1000, timeout=0.005):
                event = orjson.loads(record.value() or b"{}")
                if record.topic() == facts:
                    self.seen.fact(event, record.timestamp()[1])
                elif event["type"] == Decision.event_type:
                    self.seen.decision(event, time.time() * 1000)
        self._reader.close()

    def __enter__(self) -> Follow:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def wait_decided(self, facts: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Until so many facts were seen and each is decided. Raises JobFailed with what is missing."""

        def is_done() -> bool:
            meanwhile()
            return self.seen.facts >= facts and not self.seen.open

        wait_until(
            is_done, lambda: f"lost: {self.seen.open} of {self.seen.facts} facts are not decided, {facts} were written;",
            timeout_s=_PATIENCE_S,
        )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The running loop, what follows it, and the rate (facts/s) it was seen to reach."""

    home: Home
    follow: Follow
    maximum: float

    def at(self, rate: float, seconds: float, run: str, **options: Any) -> None:
        """A steady rate for so long, and every fact of it decided."""
        wanted = self.follow.seen.facts + (count := round(rate * seconds))
        load(self.home, "facts", count, rate=rate, run=run, **options)
        self.follow.wait_decided(wanted)


@contextmanager
def running(**settings: str) -> Iterator[Bench]:
    """The loop up and warm, its maximum measured."""
    home = bench_home()
    instance.stop(home)
    chosen = {
        "FLYBALL_AGENTS": str(CHECKOUT / "benchmarks" / "agents.yaml"),
        "FLYBALL_TASKMANAGERS": os.environ.get("FLYBALL_TASKMANAGERS", "3"),
    }
    try:
        with environment(**chosen, **settings):
            bring_up(home, "machines", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid())
            with Follow(str(home.read_state()["bootstrap_servers"])) as follow:
                load(home, "facts", _WARM, run="backlog")
                follow.wait_decided(_WARM)
                yield Bench(home, follow, _lasting(home, follow, _most(home, follow)))
    finally:
        instance.stop(home)


def _most(home: Home, follow: Follow) -> float:
    """Facts decided a second for some seconds: each step offers half as much again, until it is too much twice."""
    rate, most, again = _FIRST_RATE, 0.0, False
    while True:
        offered_per_s, decided_per_s = _step(home, follow, rate, _STEP_S, f"ramp{rate:.0f}{again:d}")
        most = max(most, decided_per_s)
        if decided_per_s >= _IN_TIME * offered_per_s:
            rate, again = rate * _MORE, False
        elif again:
            return most
        else:
            again = True


def _lasting(home: Home, follow: Follow, most: float) -> float:
    """Facts decided a second for the better part of a minute, as a soak makes them, when the `most` of some seconds is offered."""
    _, decided_per_s = _step(home, follow, most, _LASTING_S, "lasting", machines=_SOAK_MACHINES, is_made_as_due=True)
    return decided_per_s


def _step(home: Home, follow: Follow, rate: float, seconds: float, run: str, **options: Any) -> tuple[float, float]:
    """Facts offered and decided a second, between a third and five sixths of a load at this rate. Then waits for its last."""
    before = follow.seen.facts
    flow = start_load(home, "facts", count := round(rate * seconds), rate=rate, run=run, **options)
    wait_until(lambda: follow.seen.facts > before, lambda: "no fact came", timeout_s=60)
    time.sleep(seconds / 3)
    since, offered, decided = time.monotonic(), follow.seen.facts, follow.seen.decided
    time.sleep(seconds / 2)
    took_s = time.monotonic() - since
    offered_per_s, decided_per_s = (follow.seen.facts - offered) / took_s, (follow.seen.decided - decided) / took_s
    finish_load(flow)
    follow.wait_decided(before + count)
    return offered_per_s, decided_per_s


def soak(minutes: float) -> dict[str, Any]:
    """`minutes` at 80 % of the maximum: memory of each process, state of each job and latency, and how they change.

    Slopes are least squares over what follows the first third: MiB and ms an hour. Proposal ids are remembered for
    a day or two of event time, about a minute of this load: otherwise state grows until 180 days are over, by design.
    """
    with running(FLYBALL_REMEMBER_S=str(_REMEMBER_S)) as bench:
        rate = 0.8 * bench.maximum
        wanted = bench.follow.seen.facts + (count := round(rate * minutes * 60))
        samples: list[dict[str, Any]] = []
        began, began_ms = time.monotonic(), time.time() * 1000
        flow = start_load(
            bench.home, "facts", count, rate=rate, run="soak", machines=_SOAK_MACHINES, is_made_as_due=True
        )

        def sample() -> None:
            if (at := time.monotonic() - began) >= len(samples) * _SAMPLE_S:
                samples.append({"at_s": at, **_sizes(bench.home), "undecided": bench.follow.seen.open})

        _until_written(bench, flow, sample)
        bench.follow.wait_decided(wanted)
        by_minute = _by_minute(bench.follow.seen.taken["soak"], began_ms)
        return {
            "maximum_facts_per_s": bench.maximum, "facts_per_s": rate, "minutes": minutes, "facts": count,
            "undecided": bench.follow.seen.open, "repeated": bench.follow.seen.repeated, **bench.follow.seen.told("soak"),
            "memory_mib": sum(samples[-1]["memory_mib"].values()), "state_mib": sum(samples[-1]["state_mib"].values()),
            "disk_bytes_per_fact": _disk_bytes(bench.home) / bench.follow.seen.facts,
            **_slopes(samples, by_minute),
            "samples": samples, "latency_by_minute": by_minute,
        }  # fmt: skip


def _until_written(bench: Bench, flow: list[subprocess.Popen[bytes]], look: Callable[[], object]) -> None:
    for process in flow:
        while process.returncode is None:
            flink_jobs.check(bench.home, "machines")
            look()
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)  # a look costs what is being measured
    finish_load(flow)


def _sizes(home: Home) -> dict[str, dict[str, float]]:
    """MiB by process (PSS), and by job of its last checkpoint."""
    jobs = [f"machines.{job}" for job in flink_jobs.jobs_of("machines")]
    return {
        "memory_mib": instance.memory_mib(home), "state_mib": {job: state_bytes(home, job) / 2**20 for job in jobs},
    }  # fmt: skip


def _disk_bytes(home: Home) -> int:
    """What lies in the topics, all of them."""
    return sum(file.stat().st_size for file in (home.run / "broker" / "data").rglob("*.log"))


def _by_minute(taken: Sequence[tuple[int, int]], began_ms: float) -> list[dict[str, float | None]]:
    minutes: dict[int, list[int]] = defaultdict(list)
    for appended_ms, took_ms in taken:
        minutes[int((appended_ms - began_ms) // 60_000)].append(took_ms)
    return [
        {"minute": minute, "facts": len(taken), "p50_ms": (p := percentiles(taken))["p50"], "p99_ms": p["p99"]}
        for minute, taken in sorted(minutes.items())
    ]


def _slopes(samples: list[dict[str, Any]], by_minute: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the sums, of each part, and of the latencies, an hour."""
    steady = [sample for sample in samples if sample["at_s"] >= samples[-1]["at_s"] * _WARMING]
    minutes = [minute for minute in by_minute if minute["minute"] >= len(by_minute) * _WARMING]
    hours = [sample["at_s"] / 3600 for sample in steady]
    found: dict[str, Any] = {}
    for what in ("memory_mib", "state_mib"):
        parts = set[str]().union(*(sample[what] for sample in steady))
        found[f"{what}_per_h"] = slope(hours, [sum(sample[what].values()) for sample in steady])
        found[f"{what}_per_h_by_part"] = {
            part: slope(hours, [sample[what].get(part, 0.0) for sample in steady]) for part in sorted(parts)
        }
    for what in ("p50_ms", "p99_ms"):
        found[f"{what}_per_h"] = slope([m["minute"] / 60 for m in minutes], [m[what] for m in minutes])
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least squares; None for fewer than two places of x."""
    return statistics.linear_regression(x, y).slope if len(set(x)) > 1 else None


def overload(minutes: float) -> dict[str, Any]:
    """Five times the maximum for so long: what is lost, how long until all is decided, latency before and after.

    `offered_per_s`: facts appended, from the first to the last of them. `drain_s` counts from the last fact written.
    `pressure` tells of each job, while there was too much: its lag at most, and what `./flyball status` said of it on
    average; `bottleneck`, whose lag was largest.
    """
    with running() as bench:
        bench.at(bench.maximum / 2, 20, "before")
        count = round(5 * bench.maximum * 60 * minutes)
        wanted = bench.follow.seen.facts + count
        looks = _Looks(bench.home)
        flow = start_load(bench.home, "facts", count, rate=5 * bench.maximum, run="overload")
        _until_written(bench, flow, looks.look)
        ended, backlog = time.monotonic(), bench.follow.seen.open
        bench.follow.wait_decided(wanted, looks.look)
        drained = time.monotonic()
        looks.close()
        appended_ms = [at_ms for at_ms, _ in bench.follow.seen.taken["overload"]]
        offered_s = (max(appended_ms) - min(appended_ms)) / 1000
        bench.at(bench.maximum / 2, 20, "after")
        return {
            "maximum_facts_per_s": bench.maximum, "facts": count, "offered_per_s": count / offered_s,
            "undecided": bench.follow.seen.open, "repeated": bench.follow.seen.repeated, "backlog": backlog,
            "drain_s": drained - ended, "decided_per_s": count / (offered_s + drained - ended),
            **bench.follow.seen.told("before", "before_"), **bench.follow.seen.told("overload", "overload_"),
            **bench.follow.seen.told("after", "after_"),
            "pressure": looks.told(), "bottleneck": looks.bottleneck(),
        }  # fmt: skip


class _Looks:
    """What `./flyball status` shows of each job, every few seconds."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lags = kafka.LagReader(str(home.read_state()["bootstrap_servers"]), "machines", flink_jobs.jobs_of("machines"))
        self._next = 0.0
        self._seen: dict[str, list[tuple[int, float, float]]] = defaultdict(list)

    def look(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 3
        lags = self._lags.lags()
        for job in flink_jobs.states(self._home, "machines"):
            name = job.name.split(".")[1]
            if (found := flink_jobs.pressure(self._home, job.job_id)) is not None:
                self._seen[name].append((lags[name], found.busy, found.back_pressured))

    def told(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "lag": max(lag for lag, _, _ in seen),
                "busy": round(statistics.fmean(busy for _, busy, _ in seen), 2),
                "back_pressured": round(statistics.fmean(held for _, _, held in seen), 2),
            }
            for name, seen in self._seen.items()
        }

    def bottleneck(self) -> str:
        told = self.told()
        return max(told, key=lambda name: told[name]["lag"], default="")

    def close(self) -> None:
        self._lags.close()


def hot_key(minutes: float) -> dict[str, Any]:
    """Half of the maximum over 100 subjects, then the same rate with every second fact about one more: all latencies."""
    with running() as bench:
        rate = bench.maximum / 2
        bench.at(rate, 60 * minutes, "even", machines=100)
        bench.at(rate, 60 * minutes, "skewed", machines=100, is_half_hot=True)
        if not bench.follow.seen.taken["hot.skewed"]:
            raise JobFailed("expected decisions about the hot subject, came none")
        return {
            "maximum_facts_per_s": bench.maximum, "facts_per_s": rate,
            **bench.follow.seen.told("even", "without_"), **bench.follow.seen.told("skewed", "others_with_"),
            **bench.follow.seen.told("hot.skewed", "hot_"),
            "undecided": bench.follow.seen.open, "repeated": bench.follow.seen.repeated,
        }  # fmt: skip
