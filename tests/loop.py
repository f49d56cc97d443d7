"""A domain that is up, as tests see it: send records, read topics, await conditions.

The only place of the tests that sleeps is `Loop.wait_for`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from kafka import TopicPartition

from contracts.domain import load_domain
from contracts.envelope import derive_id, format_time_ms, schema_urn
from contracts.proposal import Proposal
from contracts.topics import TOPICS, topic
from jobs.settings import load_settings
from ops import flink_jobs, kafka, state_list
from ops.checkpoints import checkpoints_folder
from ops.home import Home
from ops.player import Emitter
from ops.world import NewFact
from udfs.serde import write_event

T = TypeVar("T")
PATIENCE_S = 120.0
_LOOK_AT_JOBS_EVERY_S = 2.0
_SERIAL = itertools.count(1)


class TopicLog(threading.Thread):
    """Reads every topic of a domain (committed records) into memory until `stop`."""

    def __init__(self, bootstrap_servers: str, domain: str) -> None:
        super().__init__(name=f"log-{domain}", daemon=True)
        self._domain = domain
        self._reader = kafka.consumer(bootstrap_servers)
        where = kafka.partitions(self._reader, [row.of(domain) for row in TOPICS])
        self._reader.assign(where)
        self._reader.seek_to_beginning(*where)
        self._all: dict[str, list[kafka.Record]] = defaultdict(list)
        self._by_key: dict[tuple[str, bytes | None], list[kafka.Record]] = defaultdict(list)
        self._stopping = threading.Event()
        self.positions: dict[TopicPartition, int] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                for record in kafka.poll(self._reader, timeout_ms=50):
                    self._all[record.topic].append(record)
                    self._by_key[(record.topic, record.key)].append(record)
                self.positions = {place: self._reader.position(place) for place in self._reader.assignment()}
        except BaseException as error:
            self.error = error
        finally:
            self._reader.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)

    def records(self, name: str, key: str | None = None) -> list[kafka.Record]:
        full = topic(name).of(self._domain)
        found = self._all[full] if key is None else self._by_key[(full, key.encode())]
        return list(found)


class Loop:
    """One domain on the shared instance."""

    def __init__(self, home: Home, domain: str) -> None:
        self.home = home
        self.domain = domain
        self.contract = load_domain(domain)
        self.settings = load_settings(domain)
        self.bootstrap = str(home.read_state()["bootstrap_servers"])
        self._writer = kafka.producer(self.bootstrap)
        self.log = TopicLog(self.bootstrap, domain)
        self.log.start()

    def close(self) -> None:
        self.log.stop()
        self._writer.close()

    # ------------------------------------------------------------------------------- sending

    def send(self, name: str, *records: tuple[str | bytes | None, bytes | None]) -> list[str]:
        """Write raw records; gives the place "topic/partition/offset" of each."""
        full = topic(name).of(self.domain)
        futures = [
            self._writer.send(full, key=key.encode() if isinstance(key, str) else key, value=value)
            for key, value in records
        ]
        self._writer.flush()
        done = [future.get(timeout=30) for future in futures]
        return [f"{d.topic}/{d.partition}/{d.offset}" for d in done]

    def encode(self, *facts: NewFact) -> list[bytes]:
        """The events of an input of these facts: the same facts give the same ids, every time."""
        emitter = Emitter(self.contract, self._writer, file_name="test")
        return [emitter.encode(fact) for fact in facts]

    def emit(self, *facts: NewFact) -> list[str]:
        """Publish facts as a played file would; gives their ids."""
        events = self.encode(*facts)
        self.send("facts", *((f.subject, e) for f, e in zip(facts, events, strict=True)))
        return [str(orjson.loads(event)["id"]) for event in events]

    def tick(self, event_ms: int) -> None:
        """Event time passes `event_ms` on every partition."""
        Emitter(self.contract, self._writer, file_name="test").tick(event_ms)

    def publish(self, name: str, kind: str, key: str, data: Mapping[str, object]) -> str:
        """One event on a control topic, unchecked, as another tool might write it; its place."""
        event = write_event(
            event_id=derive_id(f"{key}/{next(_SERIAL)}/{time.time_ns()}", "test", self.domain),
            source=f"/flyball/{self.domain}/test",
            event_type=kind,
            subject=key,
            time_ms=int(time.time() * 1000),
            dataschema=schema_urn(self.domain, kind),
            data=data,
        )
        return self.send(name, (key, event))[0]

    # ------------------------------------------------------------------------------- reading

    def records(self, name: str, key: str | None = None) -> list[kafka.Record]:
        return self.log.records(name, key)

    def events(self, name: str, key: str | None = None, **data: object) -> list[dict[str, Any]]:
        """Events of a topic in the order read; `type_` and fields of `data` narrow them."""
        kind = data.pop("type_", None)
        return [
            event
            for event in map(_event, self.records(name, key))
            if event is not None
            and (kind is None or event.get("type") == kind)
            and all(event["data"].get(field) == value for field, value in data.items())
        ]

    def situations(self, kind: str, subject: str) -> list[dict[str, Any]]:
        """Situations of one type about one subject, in order; each id once (at least once delivery)."""
        found = {e["id"]: e for e in self.events("situations", subject, type_=f"{self.domain}.{kind}")}
        return list(found.values())

    def dead_letter(self, place: str) -> dict[str, Any]:
        """The dead letter about the record at `place`, awaited."""
        return self.wait_for(
            f"a dead letter about {place}", lambda: self.events("dead-letters", place)
        )[0]

    def decision_of(self, proposal_id: str, subject: str) -> dict[str, Any]:
        """The decision about a proposal, awaited."""
        return self.wait_for(
            f"a decision about proposal {proposal_id}",
            lambda: self.events("decisions", subject, proposal_id=proposal_id),
        )[0]

    # ------------------------------------------------------------------------------ awaiting

    def wait_for(self, what: str, probe: Callable[[], T], *, timeout_s: float = PATIENCE_S) -> T:
        """What `probe` gives, as soon as it is truthy. Fails naming `what` and why the loop is stuck."""
        deadline = time.monotonic() + timeout_s
        look_at_jobs_at = time.monotonic() + _LOOK_AT_JOBS_EVERY_S
        while not (found := probe()):
            if self.log.error is not None:
                raise AssertionError(f"the test's own reader failed: {self.log.error!r}")
            now = time.monotonic()
            if now > look_at_jobs_at:
                look_at_jobs_at = now + _LOOK_AT_JOBS_EVERY_S
                if failed := self.home.read_state().get("error"):
                    raise AssertionError(f"awaiting {what}: the instance failed: {failed}")
                if any(job.state == "FAILED" for job in self._jobs()):
                    raise AssertionError(f"awaiting {what}: {self.why()}")
            if now > deadline:
                raise AssertionError(f"expected {what} within {timeout_s:.0f} s. {self.why()}")
            time.sleep(0.02)
        return found

    def settle(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Until every job has read all there is, no model is asked, every topic stands still, and we have read it too."""
        jobs = flink_jobs.jobs_of(self.domain)
        asks_models = "reason" in jobs
        reader = kafka.LagReader(self.bootstrap, self.domain, jobs)
        ends_reader = kafka.consumer(self.bootstrap)
        where = kafka.partitions(ends_reader, [row.of(self.domain) for row in TOPICS])
        before: list[dict[TopicPartition, int]] = []

        def is_calm() -> bool:
            lags, ends = reader.lags(), kafka.end_offsets(ends_reader, where)
            is_still = not any(lags.values()) and before == [ends]
            before[:] = [ends]
            is_read = is_still and all(self.log.positions.get(place, 0) >= end for place, end in ends.items())
            return is_read and not (asks_models and flink_jobs.open_calls(self.home, self.domain))

        try:
            self.wait_for("the loop to come to rest", is_calm, timeout_s=timeout_s)
        finally:
            reader.close()
            ends_reader.close()

    def assert_jobs_keep_what_is_listed(self) -> None:
        """docs/state.yaml has the operators of the running jobs, as they were written down when submitted."""
        listed = state_list.read()
        for job in self._jobs():
            name = job.name.removeprefix(f"{self.domain}.")
            folder = checkpoints_folder(self.home, self.domain, name)
            found = orjson.loads((folder / "operators" / f"{job.job_id}.json").read_bytes())
            expected = listed["context"][self.domain] if name == "context" else listed[name]
            assert [(one["uid"], one["meaning"]) for one in found] == [(one["uid"], one.get("meaning", "")) for one in expected], (
                f"{job.name} keeps something else than docs/state.yaml says: './flyball state' tells what"
            )

    def restarts(self) -> dict[str, int]:
        """Job name -> how often it was restarted."""
        return {job.name: flink_jobs.restarts(self.home, job.job_id) for job in self._jobs()}

    def _jobs(self) -> list[flink_jobs.JobState]:
        try:
            return flink_jobs.states(self.home, self.domain)
        except Exception:  # a cluster that restarts answers later
            return []

    def why(self) -> str:
        """State and last exception of each job, and the last complaints in the logs."""
        told = []
        for job in self._jobs():
            try:
                cause = flink_jobs.root_cause(self.home, job.job_id)
            except Exception as error:
                cause = f"unknown: {error!r}"
            told.append(f"{job.name} {job.state} ({cause})")
        lines = [f"{path.name}: {line}" for path, line in self._complaints()]
        return "\n  ".join(["Jobs:", *(told or ["none"]), f"Logs in {self.home.logs}:", *lines])

    def _complaints(self) -> Iterator[tuple[Any, str]]:
        processes = [*self.home.logs.glob("actuator*.out"), *self.home.logs.glob("sealer*.out")]
        for path in sorted(self.home.logs.glob("*.log")) + sorted(processes):
            lines = path.read_text(errors="replace").splitlines()[-400:]
            bad = [line for line in lines if " ERROR " in line or "Caused by" in line or "Error:" in line]
            for line in bad[-4:]:
                yield path, line[:300]


def _event(record: kafka.Record) -> dict[str, Any] | None:
    try:
        event = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("data"), dict) else None


# ------------------------------------------------------------------------------------- builders


def reading(subject: str, event_ms: int, temperature: float = 20.0) -> NewFact:
    """A reading of a machine."""
    return NewFact(
        "machine.temperature_measured", subject, event_ms, {"temperature": temperature},
        f"{subject}|{event_ms}|{temperature!r}",
    )  # fmt: skip


def proposal(
    subject: str,
    *,
    event_ms: int,
    name: str = "",
    agent: str = "test-agent",
    action: str = "activate_cooling",
    parameters: Mapping[str, object] | None = None,
    confidence: float = 0.9,
    hops: int = 0,
    situation_type: str = "machines.reading_scored",
    features: Mapping[str, object] | None = None,
    expires_after_s: int | None = None,
    domain: str = "machines",
) -> tuple[str, bytes]:
    """Id and event of a proposal. Equal arguments give equal bytes."""
    event_time = format_time_ms(event_ms)
    proposal_id = derive_id(f"{subject}|{event_ms}|{name}", "test", agent)
    event = write_event(
        event_id=proposal_id,
        source=f"/flyball/{domain}/test",
        event_type=Proposal.event_type,
        subject=subject,
        time_ms=event_ms,
        dataschema=schema_urn(domain, Proposal.event_type),
        correlation_id=proposal_id,
        causation_id=proposal_id,
        hops=hops,
        expiry=None if expires_after_s is None else format_time_ms(event_ms + expires_after_s * 1000),
        data={
            "event_time": event_time,
            "agent": agent,
            "agent_version": 1,
            "action": action,
            "parameters": {"duration_s": 60} if parameters is None else dict(parameters),
            "confidence": confidence,
            "reason": "a test",
            "situation_type": situation_type,
            "features": {"readings_seen": 5000} if features is None else dict(features),
            "features_at": event_time,
        },
    )
    return proposal_id, event


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str
