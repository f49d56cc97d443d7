"""What faults are played on: one instance with its load, fault after fault, and what each came to.

A fault is concluded only when everything due has come, or no more comes, and all readers are at rest.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx
import psutil
from rich.console import Console

from contracts.domain import load_domain
from contracts.envelope import parse_time_ms
from contracts.errors import JobFailed, SetupFailed
from contracts.topics import topic
from ops import audit, cluster, flink_jobs, instance, kafka, replay
from ops import run as runner
from ops.home import CHECKOUT, Home, environment
from ops.model_server import Behaviour, ModelServer, running
from ops.player import Emitter
from ops.ports import choose
from ops.torture import checker, facts
from ops.torture.traffic import DOMAIN, QUIET_PATIENCE_S, Ends, Load, Tap
from ops.worlds import drill

T = TypeVar("T")
SUBJECTS = 12
# Decisions that must flow before anything is broken, and how long the load goes on after the next decision.
STEADY = 3 * SUBJECTS
# Who asks a JobManager that has just started for more than this takes the core it starts on.
ASKED_EVERY_S = 0.5
GOES_ON_S = 2.0
RECOVERY_PATIENCE_S = 120.0
# What is killed is back, and decides, within this; everything at once within that.
RECOVERED_WITHIN_S = 30.0
ALL_RECOVERED_WITHIN_S = 60.0
# All topics end where they ended so long ago: longer than govern's checkpoints are apart, which end its transactions.
REST_S = 1.0
# A sealer that a fault left waiting for the broker gives up after 30 s, and begins anew at its next turn.
SEAL_EVERY_S = 5
SEALED_WITHIN_S = 60.0
# Far enough apart that no window of one fault is open in the next.
APART_MS = 86_400_000
STARTS_MS = 1_735_689_600_000
CLOSING_MS = (600 + 120 + 1) * 1000


@dataclass
class Result:
    """One row of the report."""

    fault: str
    delivery: str
    facts: int
    findings: checker.Findings
    seconds_to_next_decision: float | None
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_green(self) -> bool:
        return not (self.findings.lost or self.findings.repeated or self.findings.wrong)

    def told(self) -> dict[str, Any]:
        """As `--json` prints it."""
        seconds = self.seconds_to_next_decision
        return {
            "fault": self.fault,
            "lost": self.findings.lost,
            "repeated": self.findings.repeated,
            "wrong": self.findings.wrong,
            "seconds_to_next_decision": None if seconds is None else round(seconds, 2),
            "delivery": self.delivery,
            "facts": self.facts,
            **({"recognised_repeats": self.findings.recognised} if self.findings.allows_repeats else {}),
            **({"told": self.findings.told} if self.findings.told else {}),
            **self.notes,
        }


@dataclass(frozen=True)
class Kind:
    """What kind of instance a fault is played on."""

    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    flink: str = "{}"
    has_slow_agent: bool = False
    standby: int = 0


class Bed:
    """One instance with the domain up, for fault after fault; each fault has subjects of its own."""

    def __init__(self, home: Home, kind: Kind, *, rate: float) -> None:
        self.home = home
        self.delivery = kind.delivery
        self.rate = rate
        self._kind = kind
        self._played = 0
        self._letters_before = 0
        self.model: ModelServer | None = None

    @contextmanager
    def up(self) -> Iterator[Bed]:
        """The instance runs inside, on a port that stays over restarts."""
        instance.stop(self.home)
        values = {
            "FLYBALL_HOME": str(self.home.path),
            "FLYBALL_DELIVERY": self.delivery,
            "FLYBALL_FLINK": self._kind.flink,
            "FLYBALL_STANDBY": str(self._kind.standby),
            "FLYBALL_KAFKA_PORT": str(choose({"kafka": 0})["kafka"]),
            "FLYBALL_SEAL_EVERY_S": str(SEAL_EVERY_S),
        }
        with ExitStack() as stack:
            if self._kind.has_slow_agent:
                self.model = stack.enter_context(running(Behaviour(latency_ms=50)))
                values |= {"OPENAI_BASE_URL": self.model.base_url, "OPENAI_API_KEY": "torture"}
                values["FLYBALL_AGENTS"] = str(CHECKOUT / "conf" / DOMAIN / "agents_with_advisor.yaml")
            stack.enter_context(environment(**values))
            try:
                self.bring_up(is_fresh=True)
                self.bootstrap = str(self.home.read_state()["bootstrap_servers"])
                self.tap = Tap(self.bootstrap)
                self.tap.start()
                self.wait_until(self._is_standby_ready, "TaskManagers that stand by", timeout_s=RECOVERY_PATIENCE_S)
                yield self
                self.tap.stop()
            finally:
                instance.stop(self.home)

    def bring_up(self, *, is_fresh: bool) -> None:
        runner.bring_up(
            self.home, DOMAIN, is_fresh=is_fresh, console=Console(quiet=True), while_pid=os.getpid()
        )

    def _is_standby_ready(self) -> bool:
        processes: Any = self.home.read_state()["processes"]
        managers = [told["is_ready"] for name, told in processes.items() if name.startswith("taskmanager-")]
        return all(managers) and len(managers) == instance.configured_taskmanagers() + self._kind.standby

    # ------------------------------------------------------------------------------- processes

    def parallelism(self) -> dict[str, int]:
        """Job -> the subtasks of its widest operator."""
        port = flink_jobs.rest_port(self.home)
        return {
            job.name.removeprefix(f"{DOMAIN}."): max(
                int(vertex["parallelism"]) for vertex in cluster.get(port, f"/jobs/{job.job_id}")["vertices"]
            )
            for job in flink_jobs.states(self.home, DOMAIN)
        }

    def process(self, name: str) -> psutil.Process:
        """A supervised process, as the supervisor last wrote it down."""
        processes: Any = self.home.read_state()["processes"]
        return psutil.Process(int(processes[name]["pid"]))

    def part(self, kind: str) -> str:
        return f"{kind}-{DOMAIN}"

    # ------------------------------------------------------------------------------ one fault

    def rounds(self, name: str) -> Iterator[list[facts.Item]]:
        """Amounts of subjects that no fault before had, a day after those."""
        self._played += 1
        base_ms = STARTS_MS + self._played * APART_MS
        return facts.rounds(f"{name}-{self._played}", subjects=SUBJECTS, base_ms=base_ms, seed=1)

    def start_load(self, source: Iterator[list[facts.Item]], *, rate: float | None = None) -> Load:
        """A steady load, whose decisions flow when this returns."""
        load = Load(self.bootstrap, source, rate=rate or self.rate)
        load.start()
        self.wait_until(
            lambda: sum(fact in self.tap.decided_at for fact in list(load.sent_at)) >= STEADY,
            "a steady flow of decisions", timeout_s=QUIET_PATIENCE_S,
        )  # fmt: skip
        return load

    def play_for(self, seconds: float) -> None:
        """Let the load go on; raises when something fails for good meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            time.sleep(0.1)

    def wait_for_decision(self, load: Load, since: float) -> None:
        """Until a fact that was sent after `since` is decided."""

        def is_decided() -> bool:
            return any(at > since and fact in self.tap.decided_at for fact, at in list(load.sent_at.items()))

        self.wait_until(is_decided, "a decision about a fact sent after the blow", timeout_s=RECOVERY_PATIENCE_S)

    def wait_back(self, part: str, pid: int) -> None:
        """Until another process than `pid` serves as `part` and all jobs run."""

        def is_back() -> bool:
            processes: Any = self.home.read_state()["processes"]
            if processes[part]["pid"] == pid or not processes[part]["is_ready"]:
                return False
            try:
                jobs = flink_jobs.states(self.home, DOMAIN)
            except httpx.HTTPError:
                return False
            return len(jobs) == len(flink_jobs.jobs_of(DOMAIN)) and all(job.state == "RUNNING" for job in jobs)

        self.wait_until(is_back, f"{part} and the jobs to be back", timeout_s=RECOVERY_PATIENCE_S, every_s=ASKED_EVERY_S)

    def _appended_s(self, fact_id: str, since: float) -> dict[str, float]:
        """Seconds from `since` to the first append of what a fact led to, stage by stage: where the time went."""
        began_ms = (time.time() - time.monotonic() + since) * 1000
        stages = {topic(name).of(DOMAIN): name for name in ("facts", "situations", "proposals", "decisions")}
        found: dict[str, float] = {}
        for record in kafka.read_all(self.bootstrap, list(stages)):
            if fact_id.encode() in (record.value or b""):
                found.setdefault(stages[record.topic], round((record.appended_ms - began_ms) / 1000, 1))
        return {name: found[name] for name in stages.values() if name in found}

    def finish(
        self, name: str, load: Load, *, since: float | None, notes: Mapping[str, Any] | None = None, asked_again: int = 0,
        within_s: float = RECOVERED_WITHIN_S,
    ) -> Result:  # fmt: skip
        """Let the load go on until decisions flow again and a little longer, wait for quiet, and check everything.

        `since`: when the blow fell (time.monotonic), None where nothing stops; the next decision is to come `within_s` of it.
        `asked_again`: how many calls of the till may be one too many, because the fault killed the actuator in them.
        """
        if since is not None:
            self.wait_for_decision(load, time.monotonic())
        self.play_for(GOES_ON_S)
        load.end()
        ended = time.monotonic()
        result = self.conclude(name, load.sent, None, notes or {}, asked_again=asked_again)
        if since is not None:
            came = {at: chain for chain, at in self.tap.decided_at.items() if at < ended}
            at = checker.next_decision_at(came, since)
            if at is not None:
                result.seconds_to_next_decision = at - since
                if at - since > within_s:
                    result.findings.object(f"the next decision came after {at - since:.1f} s, not within {within_s:.0f} s")
                result.notes["appended_after_s"] = self._appended_s(came[at], since)
        return result

    def conclude(
        self, name: str, sent: list[facts.Item], seconds: float | None, notes: Mapping[str, Any], *, asked_again: int = 0,
    ) -> Result:  # fmt: skip
        """Close the windows, wait for quiet, check everything."""
        sent_facts = [item for item in sent if isinstance(item, facts.Fact)]
        due = checker.wanted(sent_facts)
        self.tick(max(fact.event_ms for fact in sent_facts) + CLOSING_MS)
        self._wait_for_all(due)
        self.wait_quiet()
        subjects = {fact.subject for fact in sent_facts}
        mine = subjects | {f"{subject}-sums" for subject in subjects}
        seen = self._seen(mine)
        instants = {
            text: parse_time_ms(text) for text in (str(event["data"]["event_time"]) for event in seen.decisions)
        }
        bad_records = sum(isinstance(item, facts.Poison) for item in sent)
        findings = checker.check(
            due, bad_records, seen, instants,
            allows_repeats=self.delivery == "at_least_once", asked_again=asked_again,
        )  # fmt: skip
        if self._kind.has_slow_agent:
            advice = [event for event in list(self.tap.advice) if event["subject"] in subjects]
            checker.check_advice(sent_facts, advice, findings)
        self._audit(findings)
        told = {
            "outcomes_again": len(seen.outcomes) - len({event["id"] for event in seen.outcomes}),
            "settlements_asked_again": sum(times > 1 for times in seen.asked.values()),
            "restarts": self._restarts(),
        }
        return Result(name, self.delivery, len(sent_facts), findings, seconds, {**notes, **told})

    def _restarts(self) -> dict[str, int]:
        """Job -> how often it was restarted since it was submitted."""
        return {
            job.name.removeprefix(f"{DOMAIN}."): flink_jobs.restarts(self.home, job.job_id)
            for job in flink_jobs.states(self.home, DOMAIN)
        }

    def tick(self, event_ms: int) -> None:
        writer = kafka.producer(self.bootstrap)
        Emitter(load_domain(DOMAIN), writer, file_name="torture").tick(event_ms)
        writer.close()

    def _wait_for_all(self, due: Mapping[checker.Key, checker.Wanted]) -> None:
        """Until everything due has come, or no more comes for a while: what is missing then is told as lost."""
        left, changed_at = -1, time.monotonic()
        while now_left := checker.missing(due, self.tap.decided, self.tap.commanded, self.tap.done):
            self.look()
            if now_left != left:
                left, changed_at = now_left, time.monotonic()
            if time.monotonic() - changed_at > 45:
                return
            time.sleep(0.1)

    def wait_quiet(self) -> None:
        """Until every job and the actuator have read all there is, and the tap all they wrote, and no more comes.

        A transaction that is open meanwhile moves the ends when it is committed.
        """
        reader, ends = kafka.LagReader(self.bootstrap, DOMAIN, flink_jobs.jobs_of(DOMAIN)), Ends(self.bootstrap)
        deadline = time.monotonic() + QUIET_PATIENCE_S
        at_rest: object = None
        rests_since = 0.0
        try:
            while True:
                self.look()
                looked_at = time.monotonic()
                is_busy = any(reader.lags().values()) or self._has_open_calls()
                found = None if is_busy else ends.told()
                if found is None or found != at_rest:
                    at_rest, rests_since = found, time.monotonic()
                elif looked_at - rests_since >= REST_S and self.tap.has_read_all(self.bootstrap):
                    return
                if time.monotonic() > deadline:
                    raise JobFailed(f"the loop did not come to rest: lags {reader.lags()}. Logs: {self.home.logs}")
                time.sleep(0.3)
        finally:
            ends.close()
            reader.close()

    def _has_open_calls(self) -> bool:
        """Whether the slow agent, where there is one, still has something to say."""
        return self._kind.has_slow_agent and flink_jobs.open_calls(self.home, DOMAIN) > 0

    def check_repeats(self, findings: checker.Findings) -> None:
        """Commands and outcomes of all faults so far once more: some may have come again after their fault was judged."""
        late = checker.Findings(findings.allows_repeats)
        checker.check_repeats(self.tap.events["commands"], self.tap.events["outcomes"], late)
        if late.repeated or late.wrong:
            findings.object(f"when all faults were over, there had come again: {late.told}")

    def look(self) -> None:
        """Raises when the instance, a job or the reader has failed for good."""
        if self.tap.error is not None:
            raise self.tap.error
        if told := self.home.read_state().get("error"):
            raise SetupFailed(str(told))

    def wait_until(self, probe: Callable[[], T | None], what: str, *, timeout_s: float, every_s: float = 0.02) -> T:
        """What `probe` gives, as soon as it is truthy."""
        deadline = time.monotonic() + timeout_s
        while not (found := probe()):
            self.look()
            if time.monotonic() > deadline:
                raise JobFailed(f"expected {what} within {timeout_s:.0f} s; {self.why()}")
            time.sleep(every_s)
        return found

    def why(self) -> str:
        """State and last cause of each job."""
        try:
            told = [
                f"{job.name} {job.state}: {flink_jobs.root_cause(self.home, job.job_id)}"
                for job in flink_jobs.states(self.home, DOMAIN)
            ]
        except Exception as error:
            told = [f"the cluster does not answer: {error}"]
        return f"{'; '.join(told)}. Logs: {self.home.logs}"

    def _seen(self, subjects: set[str]) -> checker.Seen:
        """What was read about these subjects; a dead letter is about the record at its place."""
        mine: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for name in ("decisions", "commands", "outcomes"):
            for event in list(self.tap.events[name]):
                if event.get("subject") in subjects:
                    mine[name].append(event)
        letters = [str(event["id"]) for event in list(self.tap.events["dead-letters"])]
        before, letters = set(letters[: self._letters_before]), letters[self._letters_before :]
        self._letters_before += len(letters)
        letters = [name for name in letters if name not in before]  # one that is told again is of the fault before
        # What was settled and is of no other fault: a command that nobody may see was done, perhaps.
        others = {str(event["data"]["command_id"]) for event in list(self.tap.events["commands"]) if event.get("subject") not in subjects}
        asked = {name: times for name, times in drill.settled(self.home).items() if name not in others}
        return checker.Seen(mine["decisions"], mine["commands"], mine["outcomes"], letters, asked)

    def _audit(self, findings: checker.Findings) -> None:
        """The chains of all subjects so far, the signed heads, and every decision made again; all of them are there.

        The sealer has its next turns to seal the last ones.
        """
        until = time.monotonic() + SEALED_WITHIN_S
        while (verified := self._verified()).seals.unsealed or not verified.seals.heads:
            if time.monotonic() > until:
                break
            self.look()
            time.sleep(SEAL_EVERY_S / 5)
        again = replay.run(self.bootstrap, DOMAIN).told()
        seen = self.tap.count("decisions") if self.delivery == "exactly_once" else None
        check_audit(verified, again, seen, findings)

    def _verified(self) -> audit.Verified:
        return audit.verify(self.bootstrap, DOMAIN, public_key=audit.key_of_home(self.home, DOMAIN))


def check_audit(
    verified: audit.Verified, again: Mapping[str, Any], seen: int | None, findings: checker.Findings
) -> None:
    """What `audit verify` and `replay` (as it is told) found is all good, and about all there is.

    `seen`: records of the decisions topic that were read; None where repeats are allowed, which replay leaves out.
    """
    for bad in verified.bad:
        findings.object(f"audit: {bad}")
    if not verified.seals.heads or verified.seals.unsealed:
        findings.object(f"audit: {verified.seals.unsealed} decisions not sealed by {verified.seals.heads} heads")
    for _ in range(int(again["different"]) + int(again["broken_chains"])):
        findings.object(f"replay: {again['different']} differ, {again['broken_chains']} broken chains")
    replayed = int(again["decisions"]) + int(again["not_replayable"])
    if seen is not None and not (verified.audit.entries == replayed == seen):
        findings.object(f"{seen} decisions were read, {verified.audit.entries} audited, {replayed} replayed")
