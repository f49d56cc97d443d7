"""Language models' calls as state: what the operator adds, holds, and does when its TaskManager dies."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import psutil
from rich.console import Console

from benchmarks.bed import Arrivals, bench_home, finish_load, load, prepared, start_load, wait_until
from contracts.domain import load_domain
from contracts.envelope import derive_id
from contracts.errors import JobFailed
from contracts.exchange import Concluded, Exchange
from contracts.prompt import Prompt
from contracts.topics import topic
from ops import cluster, flink_jobs, instance, kafka, policies
from ops.home import CHECKOUT, Home, environment
from ops.model_server import Behaviour, ModelServer, running
from ops.player import Emitter
from ops.run import bring_up
from ops.submission import Submission, want
from ops.watch import percentiles
from ops.world import NewFact
from udfs.reason.recorded import digest
from udfs.serde import write_event

DOMAIN = "machines"
# Calls before anything is measured: after 3,000 both JVMs compile for another ten seconds, with half a core.
WARM = 9000
# Samples after which a series' past is known (sql/incidents/10_series_deviations.sql).
_KNOWN = 80
_TEXT = "You look after machines. Decide whether one needs maintenance."


@contextmanager
def reasoning(latency_ms: float, *, checkpoint_ms: int = 5000, in_flight: int = 1000) -> Iterator[tuple[Home, str, ModelServer]]:
    """An instance with job `reason` alone, asking a model server of this latency about every situation."""
    home = bench_home()
    with running(Behaviour(latency_ms=latency_ms)) as server:
        try:
            with environment(
                FLYBALL_AGENTS=str(CHECKOUT / "benchmarks" / "reason_agents.yaml"), OPENAI_BASE_URL=server.base_url,
                OPENAI_API_KEY="bench", FLYBALL_RECOVERY_INTERVAL_MS=str(checkpoint_ms), FLYBALL_REASON_IN_FLIGHT=str(in_flight),
            ):  # fmt: skip
                bootstrap = prepared(home)
                _publish_prompt(bootstrap)
                Submission(home, DOMAIN, ["reason"]).go().wait()
                want(home, DOMAIN, [])
                flink_jobs.wait_running(home, DOMAIN, ["reason"])
                load(home, "situations", WARM, run="warm", machines=WARM)
                _wait_for_conclusions(bootstrap, WARM)
                yield home, bootstrap, server
        finally:
            instance.stop(home)


def _publish_prompt(bootstrap: str) -> None:
    prompt = Prompt(prompt_id="bench", version=1, model="bench-model", text=_TEXT, sha256=digest(_TEXT))
    event = write_event(
        event_id=derive_id("bench/1", "prompt", DOMAIN), source="/flyball/bench", event_type=Prompt.event_type,
        subject="bench/1", time_ms=int(time.time() * 1000), dataschema="urn:flyball:machines:flyball.prompt:1",
        data=prompt.model_dump(mode="json"),
    )  # fmt: skip
    writer = kafka.producer(bootstrap)
    writer.send(topic("prompts").of(DOMAIN), key=b"bench/1", value=event).get(timeout=30)
    writer.close()


def _exchanges(bootstrap: str) -> list[dict[str, Any]]:
    records = kafka.read_all(bootstrap, [topic("exchanges").of(DOMAIN)])
    return [orjson.loads(record.value or b"{}") for record in records]


def _wait_for_conclusions(bootstrap: str, count: int, timeout_s: float = 120) -> None:
    def found() -> int:
        return len({e["data"]["call_id"] for e in _exchanges(bootstrap) if e["type"] == Concluded.event_type})

    wait_until(lambda: found() >= count, lambda: f"{found()} of {count} calls were concluded", timeout_s=timeout_s)


def added_latency(in_flight: int, seconds: int = 30, latency_s: float = 1.0) -> dict[str, float | None]:
    """What is added to a model's own second from a situation's append to its proposal's arrival (ms), and checkpoints.

    `in_flight` situations a second with a model of one second keep so many calls open.
    """
    with reasoning(latency_s * 1000, checkpoint_ms=1000) as (home, bootstrap, _):
        count = int(in_flight / latency_s) * seconds
        with Arrivals(bootstrap, "proposals") as proposals:
            load(home, "situations", count, rate=in_flight / latency_s, run="timed")
            appended = _appended_ms(bootstrap, "timed")
            taken = [ms - round(latency_s * 1000) for ms in proposals.taken_ms(appended)]
        return percentiles(taken) | {"checkpoint_ms": _checkpoint_ms(home)}


def _appended_ms(bootstrap: str, run: str) -> dict[str, int]:
    return {
        str(orjson.loads(record.value or b"{}")["correlationid"]): record.appended_ms
        for record in kafka.read_all(bootstrap, [topic("situations").of(DOMAIN)])
        if (record.key or b"").startswith(f"{run}-".encode())
    }


def _checkpoint_ms(home: Home) -> float:
    """Median duration of the last checkpoints, end to end."""
    (job,) = flink_jobs.states(home, DOMAIN)
    history = cluster.get(flink_jobs.rest_port(home), f"/jobs/{job.job_id}/checkpoints")["history"]
    return float(statistics.median(c["end_to_end_duration"] for c in history if c["status"] == "COMPLETED"))


def throughput(concurrency: int = 500, seconds: int = 20) -> float:
    """Calls a second answered with a model of one second and so many in flight at most."""
    with reasoning(1000, in_flight=concurrency) as (home, _, server):
        before = server.stats()["requests"]
        load(home, "situations", concurrency * seconds, run="timed")
        samples: list[tuple[float, int]] = []

        def answered() -> int:
            samples.append((time.monotonic(), server.stats()["requests"] - before))
            return samples[-1][1]

        wait_until(lambda: answered() >= concurrency * seconds * 0.95, lambda: f"{samples[-1][1]} calls", timeout_s=300)
        steady = [s for s in samples if concurrency * seconds * 0.2 <= s[1] <= concurrency * seconds * 0.9]
        return (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])


def idle_cost(seconds: int = 30) -> float:
    """Share of a core (percent) that the job takes while nothing is asked: a TaskManager with it less one without."""
    with reasoning(1000) as (home, _, _):
        processes = home.read_state()["processes"]
        assert isinstance(processes, dict)
        manager = psutil.Process(int(processes["taskmanager-0"]["pid"]))
        time.sleep(60)  # what was just warmed up is still compiled, for more than a percent
        with_job = _cpu_percent(manager, seconds)
        flink_jobs.cancel(home, DOMAIN)
        flink_jobs.wait_cancelled(home, DOMAIN)
        return with_job - _cpu_percent(manager, seconds)


def _cpu_percent(process: psutil.Process, seconds: int) -> float:
    def cpu_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, began = cpu_s(), time.monotonic()
    time.sleep(seconds)  # what is measured is time that passes
    return 100 * (cpu_s() - before) / (time.monotonic() - began)


def killed(in_flight: int = 200) -> dict[str, float]:
    """`kill -9` of the TaskManager with so many calls in flight: what was answered, what was paid twice.

    Of the situations around the blow alone: those that warmed the job up were answered before it. `in_flight`,
    `requests`, `requests_repeated` and `paid_again` are the model server's own counts; `paid_again` may hold replies
    that the blow kept from being recorded.
    """
    with reasoning(2000, checkpoint_ms=1000) as (home, bootstrap, server):
        before = server.stats()
        clients = start_load(home, "situations", in_flight * 5, rate=in_flight / 2, run="timed")
        wait_until(lambda: server.stats()["requests"] - before["requests"] >= in_flight * 2, lambda: "calls", timeout_s=60)
        processes = home.read_state()["processes"]
        assert isinstance(processes, dict)
        manager = int(processes["taskmanager-0"]["pid"])
        at_blow = server.stats()["in_flight"]
        if at_blow < 0.8 * in_flight:
            raise JobFailed(f"expected {in_flight} calls in flight at the blow, the model server had {at_blow}")
        os.kill(manager, signal.SIGKILL)
        finish_load(clients)
        _wait_for_conclusions(bootstrap, WARM + in_flight * 5, timeout_s=180)
        wait_until(lambda: not flink_jobs.open_calls(home, DOMAIN), lambda: "calls still open", timeout_s=60)
        _wait_for_commit(home)
        after = server.stats()
        timed = _timed(bootstrap, "situations", "id")
        turns = [
            (e["data"]["call_id"], e["data"]["turn"])
            for e in _exchanges(bootstrap)
            if e["type"] == Exchange.event_type and e["data"]["situation_id"] in timed
        ]
        proposals = _timed(bootstrap, "proposals", "causationid")
        return {
            "situations": len(timed),
            "answered": len(timed.keys() & proposals.keys()),
            "answered_once": sum(sum(proposals[name].values()) == 1 for name in timed),
            "answered_in_two_ways": sum(len(ways) > 1 for ways in proposals.values()),
            "proposal_records": sum(ways.total() for ways in proposals.values()),
            "proposal_records_a_situation_at_most": max(ways.total() for ways in proposals.values()),
            "in_flight": at_blow,
            "requests": after["requests"] - before["requests"],
            "requests_repeated": after["repeated"] - before["repeated"],
            "paid_again": after["paid_again"] - before["paid_again"],
            "replies_recorded_twice": len(turns) - len(set(turns)),
        }


def _timed(bootstrap: str, name: str, situation_id: str) -> defaultdict[str, Counter[str]]:
    """By the situation in this field of an event: digests of a topic's records of run `timed`, and how often each came."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in kafka.read_all(bootstrap, [topic(name).of(DOMAIN)]):
        if (record.key or b"").startswith(b"timed-"):
            text = (record.value or b"").decode()
            found[str(orjson.loads(text)[situation_id])][digest(text)] += 1
    return found


def _wait_for_commit(home: Home) -> None:
    """Until what was written before is committed: the second checkpoint from now began after it."""

    def completed() -> int:
        (job,) = flink_jobs.states(home, DOMAIN)
        return job.checkpoints_completed

    enough = completed() + 2
    wait_until(lambda: completed() >= enough, lambda: "no two checkpoints were completed", timeout_s=60)


def alert_to_remedy(count: int, *, each_s: float = 2.0) -> dict[str, float | None]:
    """From the append of what ends a bad sample to the command of its remedy's arrival (ms), all four jobs, model of one second.

    Each is about a system of its own, known by a few samples before, and no rule fits what it shows: a
    language model is asked. (A text alone is no cause for a remedy.) At least once, a TaskManager a job. One every two
    seconds: the agent may spend 60,000 tokens a minute, some forty calls; the next ones would page a person instead. These
    systems have nothing that a remedy heals, so remedies fail: each circuit is open only after a thousand failures here.
    """
    home = bench_home()
    instance.stop(home)
    try:
        with environment(
            FLYBALL_DELIVERY="at_least_once", FLYBALL_TASKMANAGERS="4", FLYBALL_MODEL_SERVER="{latency_ms: 1000}"
        ):
            bring_up(home, "incidents", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid())
            bootstrap = str(home.read_state()["bootstrap_servers"])
            now_ms = int(time.time() * 1000)
            shipped = policies.check_files("incidents", policies.policy_files("incidents"))
            patient = [
                policy.model_copy(
                    update={"version": policy.version + 1, "circuit": policy.circuit.model_copy(update={"failures": 1000})}
                )
                for policy in shipped if policy.circuit is not None
            ]  # fmt: skip
            policies.publish(bootstrap, "incidents", patient, now_ms=now_ms)
            for ago, run in ((2, "warm"), (1, "timed")):  # in the order of their times, or the second's facts are late
                with Arrivals(bootstrap, "commands", _remedied, domain="incidents") as commands:
                    appended = _raise_alerts(bootstrap, run, count, each_s, began_ms=now_ms - ago * (_KNOWN + 5) * 60_000)
                    taken = commands.taken_ms(appended)
            return percentiles(taken)
    finally:
        instance.stop(home)


def _remedied(event: dict[str, Any]) -> str:
    """The system a remedy is about; triage is none."""
    return "" if event["data"]["action"] == "triage_incident" else str(event["subject"])


def _raise_alerts(bootstrap: str, run: str, count: int, each_s: float, *, began_ms: int) -> dict[str, int]:
    """Systems of two nodes whose callee got slow; when the end of the sample that shows it was appended, by system."""
    emitter_domain = load_domain("incidents")
    writer = kafka.producer(bootstrap)
    emitter = Emitter(emitter_domain, writer, file_name=run)
    systems = [f"{run}-{number}" for number in range(count)]

    def fact(system: str, kind: str, minute: int, **data: object) -> NewFact:
        return NewFact(f"incident.{kind}", system, began_ms + minute * 60_000, data, f"{kind}|{minute}|{sorted(data.items())}")

    facts = [fact(system, "call_observed", 0, from_node="web", to_node="db") for system in systems]
    for minute in range(_KNOWN):
        for system in systems:
            for node, value in (("web", 0.3), ("db", 0.1)):
                noise = 1 + 0.02 * ((minute * 7) % 5 - 2)
                facts.append(
                    fact(system, "metric_measured", minute, node=node, metric="latency", statistic="Average", value=value * noise)
                )
            facts.append(fact(system, "sample_closed", minute))
    emitter.emit(iter(facts), rate=None)
    lags = kafka.LagReader(bootstrap, "incidents", flink_jobs.jobs_of("incidents"))
    # The first alerts must not wait for the history of all of them.
    wait_until(lambda: not any(lags.lags().values()), lambda: f"jobs are behind: {lags.lags()}", timeout_s=120)
    lags.close()
    for system in systems:
        late = (("db", 0.9), ("web", 1.1))
        emitter.emit(
            iter([
                fact(system, "metric_measured", _KNOWN, node=node, metric="latency", statistic="Average", value=value)
                for node, value in late
            ] + [fact(system, "sample_closed", _KNOWN)]),
            rate=None,
        )  # fmt: skip
        time.sleep(each_s)  # a steady rate is what is measured
    writer.close()
    return {
        (record.key or b"").decode(): record.appended_ms
        for record in kafka.read_all(bootstrap, [topic("facts").of("incidents")])
        if (record.key or b"").decode() in set(systems)
        and orjson.loads(record.value or b"{}")["type"] == "incident.sample_closed"  # the last one of a system counts
    }
