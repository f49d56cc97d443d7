"""How long one thing takes to follow from another: decisions, commands, policies in force."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
from confluent_kafka import Producer
from rich.console import Console

from benchmarks.bed import (
    Arrivals,
    bench_home,
    load,
    policy_folder,
    prepared,
    start_load,
    wait_for_records,
    wait_until,
)  # fmt: skip
from benchmarks.rates import many_policies, publish
from contracts.errors import JobFailed
from contracts.topics import topic
from ops import approvals, flink_jobs, instance, kafka, people, policies
from ops.home import CHECKOUT, Home, environment
from ops.run import bring_up
from ops.submission import Submission
from ops.watch import percentiles

# Proposals decided, or answers given, before anything is timed.
_WARM = 2000
_ASKS = """\
policy_id: ask
version: 1
status: active
scope: {actions: [schedule_maintenance]}
when: confidence >= 0.0
verdict: require_approval
approval: {roles: [approver], within_s: 86400}
reason: a benchmark of answers
"""
_TURNS = """\
policy_id: turns
version: %d
status: active
scope: {actions: [schedule_maintenance]}
when: confidence >= 0.0
verdict: %s
reason: a benchmark of versions
"""


def latency(
    delivery: str, seconds: int, *, rate: int = 1000, warm_s: int = 60, has_many_policies: bool = False
) -> tuple[dict[str, float | None], float]:
    """Fact to decision through all three jobs at `rate` facts/s: percentiles (ms) and memory (MiB).

    A TaskManager a job. Every reading gets a proposal here (an agent that always proposes, FLYBALL_AGENTS), so every
    fact has a decision. From the fact's append to the log to the decision's arrival at a reader.
    In force are the shipped policies, or those of `many_policies` instead.
    """
    home = bench_home()
    instance.stop(home)
    agents = str(CHECKOUT / "benchmarks" / "agents.yaml")
    try:
        with environment(FLYBALL_DELIVERY=delivery, FLYBALL_AGENTS=agents, FLYBALL_TASKMANAGERS="3"):
            bring_up(home, "machines", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid())
            bootstrap = str(home.read_state()["bootstrap_servers"])
            if has_many_policies:
                _replace_policies(bootstrap, many_policies(home))
            # Warm: the JIT has seen as many records as two minutes at this rate bring.
            load(home, "facts", warm_s * 1000, run="backlog")
            wait_for_records(home, "decisions", warm_s * 1000)
            load(home, "facts", warm_s * rate, rate=rate, run="warm")
            with Arrivals(bootstrap, "decisions") as decisions:
                load(home, "facts", seconds * rate, rate=rate, run="timed")
                memory = sum(instance.memory_mib(home).values()) + psutil.Process().memory_full_info().pss / 2**20
                return percentiles(decisions.taken_ms(_appended_ms(bootstrap, "facts", "timed"))), memory
    finally:
        instance.stop(home)


def _replace_policies(bootstrap: str, files: list[Path]) -> None:
    """These policies in force, and no other."""
    known = policies.published(bootstrap, "machines")
    publish(bootstrap, files)
    for name in known:
        policies.move(bootstrap, "machines", name, "retired", now_ms=int(time.time() * 1000))


def _appended_ms(bootstrap: str, name: str, run: str) -> dict[str, int]:
    """When the broker appended each event of a run, by correlation id; a fact begins a chain, its own id is that."""
    found = {}
    for record in kafka.read_all(bootstrap, [topic(name).of("machines")]):
        if (record.key or b"").startswith(f"{run}-".encode()):
            event = orjson.loads(record.value or b"{}")
            found[str(event.get("correlationid") or event["id"])] = record.appended_ms
    return found


def approval_to_command(count: int, *, rate: float = 50, warm: int = _WARM) -> dict[str, float | None]:
    """A person's answer to the command, through `govern` alone (at least once): percentiles (ms).

    `count` proposals, a subject each, are held by a policy that requires one approval. Their approvals, signed ahead,
    are sent at `rate` a second straight to the approvals topic. From the answer's append to the log to the command's
    arrival at a reader. Before, `warm` others were held and answered as fast as it goes.
    """
    home = bench_home()
    try:
        with environment(FLYBALL_DELIVERY="at_least_once"):
            bootstrap = prepared(home)
            policies.publish_people(
                bootstrap, "machines", people.people(home, "machines"), now_ms=int(time.time() * 1000)
            )
            publish(bootstrap, policy_folder(home, {"ask": _ASKS}))
            load(home, "proposals", warm, machines=warm, run="warm")
            load(home, "proposals", count, machines=count, run="timed")
            Submission(home, "machines", ["govern"]).go().wait()
            held: dict[str, approvals.Request] = {}

            def are_held() -> bool:
                flink_jobs.check(home, "machines")
                held.update(approvals.requests(bootstrap, "machines"))
                return len(held) == warm + count

            wait_until(are_held, lambda: f"{len(held)} of {warm + count} were held", timeout_s=180)
        for run, each_s in (("warm", 0.0), ("timed", 1 / rate)):
            answers = _signed_answers(home, run, held)
            with Arrivals(bootstrap, "commands") as commands:
                _send_approvals(bootstrap, answers, each_s)
                taken = commands.taken_ms(_appended_ms(bootstrap, "approvals", run))
        if len(taken) != count:
            raise JobFailed(f"expected {count} answers in the log, came {len(taken)}")
        return percentiles(taken)
    finally:
        instance.stop(home)


def _signed_answers(home: Home, run: str, held: dict[str, approvals.Request]) -> list[tuple[str, bytes]]:
    """An approval of each action held for the subjects of a run: subject and event."""
    key = people.own_key(people.key_file(home, "machines", "ada"))
    return [
        (
            str(request.event["subject"]),
            approvals.answer_event("machines", request, "ada", key, "approve", now_ms=int(time.time() * 1000))[1],
        )
        for request in held.values()
        if str(request.event["subject"]).startswith(f"{run}-")
    ]


def _send_approvals(bootstrap: str, answers: list[tuple[str, bytes]], each_s: float) -> None:
    writer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0})
    began = time.monotonic()
    for number, (subject, event) in enumerate(answers):
        time.sleep(max(0.0, began + number * each_s - time.monotonic()))
        writer.produce(topic("approvals").of("machines"), key=subject.encode(), value=event)
        writer.poll(0)
    if left := writer.flush(30):
        raise JobFailed(f"{left} of {len(answers)} answers were not acknowledged")


def policy_publish(publishes: int, *, rate: int = 200, every_s: float = 3) -> dict[str, Any]:
    """Seconds until a published policy counts: median and most of `publishes` in one run (exactly once).

    `rate` proposals a second stream through `govern` alone. Each publish is a new version of the one policy, which
    turns its verdict. From the policy event's append to the log to the arrival, at a read_committed reader, of the
    first decision with another policy_set_digest; that decision must have the new verdict.
    """
    home = bench_home()
    try:
        bootstrap = prepared(home)
        _publish_turn(home, bootstrap, 1)
        load(home, "proposals", _WARM, run="warm")
        Submission(home, "machines", ["govern"]).go().wait()
        with Arrivals(bootstrap, "decisions", _under) as decisions:
            wait_for_records(home, "decisions", _WARM)
            _publish_in_turn(home, bootstrap, decisions.arrived, publishes, rate, every_s)
        arrived = decisions.arrived
        verdicts = [under.split()[1] for under in arrived]
        if any(one == other for one, other in itertools.pairwise(verdicts)):
            raise JobFailed(f"expected verdicts in turn, came {verdicts}")
        appended = [record.appended_ms for record in kafka.read_all(bootstrap, [topic("policies").of("machines")])]
        taken = [(at - since) / 1000 for at, since in zip(arrived.values(), appended, strict=True)][1:]
        return {"median": statistics.median(taken), "max": max(taken)}
    finally:
        instance.stop(home)


def _publish_in_turn(
    home: Home, bootstrap: str, arrived: Mapping[str, float], publishes: int, rate: int, every_s: float
) -> None:
    """Versions 2, 3, ... while proposals stream, each `every_s` after the first decision under the one before."""

    def is_under(version: int) -> bool:
        flink_jobs.check(home, "machines")
        return len(arrived) >= version

    def wait_for(version: int) -> None:
        wait_until(lambda: is_under(version), lambda: f"no decision under version {version}", timeout_s=60)

    # More proposals than needed: publishing itself takes part of a second.
    flow = start_load(home, "proposals", round(rate * (30 + publishes * (every_s + 3))), rate=rate, run="timed")
    try:
        wait_for_records(home, "decisions", _WARM + 5 * rate)
        for version in range(2, publishes + 2):
            _publish_turn(home, bootstrap, version)
            wait_for(version)
            time.sleep(every_s)
        if flow[0].poll() is not None:
            raise JobFailed("expected proposals until the last publish, but they had ended")
    finally:
        for process in flow:
            process.terminate()
            process.wait()


def _under(decision: dict[str, Any]) -> str:
    return f"{decision['data']['policy_set_digest']} {decision['data']['verdict']}"


def _publish_turn(home: Home, bootstrap: str, version: int) -> None:
    text = _TURNS % (version, "allow" if version % 2 else "deny")
    publish(bootstrap, policy_folder(home, {"turns": text}))
