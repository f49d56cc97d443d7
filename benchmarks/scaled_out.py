"""The same input with one subtask on one TaskManager, and with four on two: the same decisions?"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.bed import bench_home, load, policy_folder, prepared, wait_until
from benchmarks.rates import publish
from contracts.decision import Decision
from contracts.domain import load_domain
from contracts.errors import JobFailed
from contracts.topics import topic
from jobs.settings import ROOT, load_settings
from ops import audit, cluster, flink_jobs, instance, kafka, shipped
from ops.emit import closing_tick_ms
from ops.home import Home, environment
from ops.player import Emitted, Emitter, read_file
from ops.submission import Submission
from ops.world import NewFact, load_world

# Domain: the partition all its facts go to; None: by their key.
DOMAINS = {"machines": None, "payments": 0}
_LINES = 6
_READINGS = 3000
_PAYMENTS = 4000
_WIDE_SUBJECTS = 40
_WIDE_LIMIT = 7
_WIDE = f"""\
policy_id: wide
version: 1
status: active
when: subject.startsWith("wide-")
verdict: allow
outcome_within_s: 3600
limits: [{{per: [action], max_count: {_WIDE_LIMIT}, within_s: 3600}}]
reason: a benchmark of limits over all subjects
"""


@dataclass
class Found:
    """What one run made. Ids are derived, so the same input gives the same ones."""

    decisions: dict[str, set[tuple[str, ...]]]
    situations: dict[str, set[tuple[str, ...]]]
    bad_entries: int
    wide: Counter[str]
    seconds: float


def scaled_out() -> dict[str, Any]:
    """Facts of `machines` and `payments`, by default settings but for parallelism and TaskManagers; no actuator.

    Without one, because outcomes come back by wall time. Payments lie in one partition: in which order one
    terminal sees two partitions is no run's promise. Raises JobFailed when anything differs, a chain is not whole,
    or a limit over all subjects lets another number pass.
    """
    alone, spread = _played(1, 1), _played(2, 4)
    wrong = [
        f"{len(different)} {what} of {domain} differ, some of them: {sorted(different)[:4]}"
        for domain in DOMAINS
        for what, different in (
            ("situations", alone.situations[domain] ^ spread.situations[domain]),
            ("decisions", alone.decisions[domain] ^ spread.decisions[domain]),
        )
        if different
    ]
    if wrong:
        raise JobFailed("; ".join(wrong))
    return {
        **{f"{domain}_decisions": len(alone.decisions[domain]) for domain in DOMAINS},
        **{f"{domain}_situations": len(alone.situations[domain]) for domain in DOMAINS},
        "differ": 0, "bad_entries": alone.bad_entries + spread.bad_entries,
        "wide_allowed_alone": alone.wide["allowed_by_policy"], "wide_allowed_spread": spread.wide["allowed_by_policy"],
        "seconds_alone": alone.seconds, "seconds_spread": spread.seconds,
    }  # fmt: skip


def _played(taskmanagers: int, parallelism: int) -> Found:
    home = bench_home()
    try:
        with environment(FLYBALL_TASKMANAGERS=str(taskmanagers), FLYBALL_PARALLELISM=str(parallelism)):
            bootstrap = prepared(home)
            for domain in DOMAINS:
                kafka.create_topics(bootstrap, domain)
                shipped.publish_new(bootstrap, domain, shipped.load(home, domain), now_ms=int(time.time() * 1000))
            publish(bootstrap, policy_folder(home, {"wide": _WIDE}))
            # All of it is there before anybody reads. A partition that was silent for the idle timeout is left out
            # of the watermark, and what comes first after such a silence, at this speed, is late (decisions/0026).
            load(home, "proposals", _WIDE_SUBJECTS, run="wide", machines=_WIDE_SUBJECTS)
            for domain in DOMAINS:
                _play(bootstrap, domain)
            began = time.monotonic()
            for submitted in [Submission(home, domain).go() for domain in DOMAINS]:
                submitted.wait()
            for domain in DOMAINS:
                flink_jobs.wait_running(home, domain)
            _check_spread(home, taskmanagers)
            _settle(home, bootstrap)
            return _found(bootstrap, time.monotonic() - began)
    finally:
        instance.stop(home)


def _check_spread(home: Home, taskmanagers: int) -> None:
    """Each TaskManager has something to do."""
    found = cluster.get(flink_jobs.rest_port(home), "/taskmanagers")["taskmanagers"]
    used = [each["slotsNumber"] - each["freeSlots"] for each in found]
    if len(used) != taskmanagers or not all(used):
        raise JobFailed(f"expected tasks on each of {taskmanagers} TaskManagers, came slots in use {used}")


def _facts(domain: str) -> Iterator[NewFact]:
    """Six machines with the shipped readings, taking turns; generated payments with their late outcomes."""
    world, settings = load_world(domain), load_settings(domain)
    if not settings.default_input:
        facts = world.played(world.generate(seed=1, count=_PAYMENTS), _unanswered)
        yield from (fact for fact in facts if fact is not None)
        return
    lines = [
        itertools.islice(
            read_file(ROOT / "data" / settings.default_input, world, subject=f"line-{line}",
                      max_ahead_ms=settings.max_ahead_s * 1000),
            _READINGS,
        )
        for line in range(_LINES)
    ]  # fmt: skip
    for row in zip(*lines, strict=True):
        yield from (fact for fact in row if isinstance(fact, NewFact))


def _unanswered(key: str, /, **_: object) -> None:
    """The world goes on as if all was allowed."""


def _play(bootstrap: str, domain: str) -> None:
    """Every fact, and the tick that closes the windows behind them."""
    writer, settings = kafka.producer(bootstrap), load_settings(domain)
    emitter, facts = Emitter(load_domain(domain), writer, file_name="bench"), list(_facts(domain))
    for fact in facts:
        writer.send(
            topic("facts").of(domain), key=fact.subject.encode(), value=emitter.encode(fact),
            partition=DOMAINS[domain],
        )  # fmt: skip
    writer.flush()
    emitter.tick(closing_tick_ms(Emitted(last_event_ms=max(fact.event_ms for fact in facts)), settings))
    writer.close()


def _settle(home: Home, bootstrap: str) -> None:
    """Until every job has read all there is: looked at longer than checkpoints are apart."""
    readers = {domain: kafka.LagReader(bootstrap, domain, flink_jobs.jobs_of(domain)) for domain in DOMAINS}
    calm: list[dict[str, dict[str, int]]] = []

    def is_calm() -> bool:
        lags = {domain: reader.lags() for domain, reader in readers.items()}
        for domain in DOMAINS:
            flink_jobs.check(home, domain)
            del lags[domain]["actuator"]  # there is none
        calm.append(lags)
        return len(calm) >= 12 and not any(
            lag for each in calm[-12:] for of_domain in each.values() for lag in of_domain.values()
        )

    try:
        wait_until(is_calm, lambda: f"the jobs did not come to rest: {calm[-1]}", timeout_s=400)
    finally:
        for reader in readers.values():
            reader.close()


def _found(bootstrap: str, seconds: float) -> Found:
    found = Found({}, {}, 0, Counter(), seconds)
    for domain in DOMAINS:
        decisions = [e for e in _events(bootstrap, domain, "decisions") if e["type"] == Decision.event_type]
        wide = {e["id"]: e["data"]["reason"] for e in decisions if e["subject"].startswith("wide-")}
        found.wide.update(wide.values())
        found.decisions[domain] = {
            (e["id"], e["data"]["verdict"], e["data"]["reason"]) for e in decisions if e["id"] not in wide
        }
        found.situations[domain] = {(e["id"], e["type"]) for e in _events(bootstrap, domain, "situations")}
        found.bad_entries += len(audit.verify(bootstrap, domain, public_key=None).bad)
    if found.bad_entries or found.wide != {"allowed_by_policy": _WIDE_LIMIT, "rate_limit": _WIDE_SUBJECTS - _WIDE_LIMIT}:
        raise JobFailed(f"expected whole chains and {_WIDE_LIMIT} of the wide allowed, came {found.bad_entries} bad"
                        f" entries and {dict(found.wide)}")  # fmt: skip
    return found


def _events(bootstrap: str, domain: str, name: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.value or b"{}") for record in kafka.read_all(bootstrap, [topic(name).of(domain)])]
