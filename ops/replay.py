"""Recorded decisions made again, under the recorded policies or under others: in this process, or on Flink."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import orjson

from contracts.access import principal
from contracts.domain import load_domain
from contracts.errors import JobFailed, SetupFailed
from contracts.policy import Policy
from contracts.topics import topic
from jobs.settings import load_settings
from ops import code_versions, flink_jobs, instance, kafka
from ops.audit import read_period
from ops.home import CHECKOUT, Home
from ops.policies import check_files
from ops.submission import client_environment
from udfs.policy.audit import Line
from udfs.policy.govern import Governor
from udfs.policy.policy_log import Candidates, PolicyLog
from udfs.policy.policy_set import PolicySet
from udfs.policy.replayed import Replayed, SubjectLog, Terms

# So many decisions are made again before another process has begun.
_LITTLE = 20_000


@dataclass
class Done:
    """What was found, and the wall time of it all, reading and auditing included."""

    found: Replayed = field(default_factory=Replayed)
    seconds: float = 0.0

    def told(self) -> dict[str, Any]:
        """As `--json` prints it."""
        rate = round(self.found.decisions / self.seconds) if self.seconds else None
        return {**self.found.to_dict(), "decisions_per_s": rate}


def read_candidates(domain: str, folder: Path) -> list[Policy]:
    """The policies of a folder, checked. Raises SetupFailed when it has none, PolicyRefused."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise SetupFailed(f"--policies: expected a folder with *.yaml, found none in {folder}")
    return check_files(domain, files)


@dataclass(frozen=True)
class _Asked:
    """What is replayed, and how; the same in every process."""

    bootstrap_servers: str
    domain: str
    terms: Terms
    candidates: tuple[Policy, ...] | None


def run(
    bootstrap_servers: str,
    domain: str,
    *,
    candidates: Sequence[Policy] | None = None,
    since: str | None = None,
    until: str | None = None,
    on_progress: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> Done:
    """Make every recorded decision again; report those between two event times (RFC 3339).

    Without `candidates` every byte of an entry must come out as recorded. With them, the first decisions
    about proposals are compared by verdict, reason and action, and every candidate counts as active;
    pauses, outcomes and people's answers are the recorded ones, also where another decision would have had
    others. Partitions are shared out among `processes`: one a core, unless told otherwise, and one alone where there is little
    to do. Each has one partition of each topic in memory at a time. Raises SetupFailed for what is no time, JobFailed when a
    process ends.
    """
    terms = Terms(
        by_bytes=candidates is None, allows_repeats=load_settings(domain).delivery == "at_least_once",
        period=read_period(since, until),
    )  # fmt: skip
    asked = _Asked(bootstrap_servers, domain, terms, None if candidates is None else tuple(candidates))
    report = on_progress or (lambda _: None)
    began = time.perf_counter()
    with closing(_Replayer(asked)) as replayer:
        sizes = replayer.sizes()
        processes = min(processes or _cores(), len(sizes))
        found = None
        if processes > 1 and sum(sizes.values()) > _LITTLE:
            found = _side_by_side(asked, sorted(sizes, key=lambda number: -sizes[number]), processes, report)
        if found is None:
            found, subjects = Replayed(), dict[bytes, bool]()
            for partition in sizes:
                replayer.replay(partition, found, subjects, report)
    return Done(found, time.perf_counter() - began)


def _side_by_side(
    asked: _Asked, partitions: Sequence[int], processes: int, on_progress: Callable[[int], None]
) -> Replayed | None:
    """What all partitions give; None where a subject lies in two of them: only its first counts, so all is to be done in order."""
    found, subjects = Replayed(), set[bytes]()
    context = get_context("spawn")
    made, is_over = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(processes, context, _begin, (asked, made, is_over)) as pool:
        try:
            waiting = {pool.submit(_replay_partition, partition) for partition in partitions}
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                on_progress(made.value)
                for future in done:
                    part, its_subjects = future.result()
                    if not subjects.isdisjoint(its_subjects):
                        return None
                    subjects.update(its_subjects)
                    found.add(part)
        except BrokenProcessPool:
            told = f"one of {processes} processes ended before its partition was replayed; --processes 1 takes the least memory"
            raise JobFailed(told) from None
        finally:
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Over(Exception):
    """Nobody waits for this partition any more."""


_given: tuple[_Asked, Any, Any] | None = None
_own: _Replayer | None = None


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _begin(asked: _Asked, made: Any, is_over: Any) -> None:
    """In a process of its own, which ends with its parent however that ends. Ctrl-C is the parent's to answer."""
    global _given
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    _given = asked, made, is_over


def _replay_partition(partition: int) -> tuple[dict[str, Any], list[bytes]]:
    global _own
    assert _given is not None
    asked, made, is_over = _given
    if _own is None:  # here, so that what it raises reaches the parent
        _own = _Replayer(asked)
    found, subjects = Replayed(), dict[bytes, bool]()
    told = 0

    def tell(decisions: int) -> None:
        nonlocal told
        if is_over.is_set():
            raise _Over
        with made.get_lock():
            made.value += decisions - told
        told = decisions

    _own.replay(partition, found, subjects, tell)
    return found.to_dict(), list(subjects)


class _Replayer:
    """Replays partitions, one after another."""

    def __init__(self, asked: _Asked) -> None:
        contract = load_domain(asked.domain)
        self._domain, self._terms = asked.domain, asked.terms
        self._governor = Governor(contract, max_hops=load_settings(asked.domain).max_hops)
        self._reader = kafka.BulkReader(asked.bootstrap_servers, principal=principal(asked.domain, "reader"))
        log = PolicyLog(
            [(offset, value) for offset, _, value in self._reader.read(topic("policies").of(asked.domain), 0)],
            contract.policy_variables(),
        )
        self._policies: Mapping[int, PolicySet] = log if asked.candidates is None else Candidates(asked.candidates, log)

    def close(self) -> None:
        self._reader.close()

    def sizes(self) -> dict[int, int]:
        """Partition -> about how many decisions it holds."""
        decisions = topic("decisions").of(self._domain)
        return {partition: self._reader.size(decisions, partition) for partition in self._reader.partitions(decisions)}

    def replay(
        self, partition: int, found: Replayed, is_whole: dict[bytes, bool], on_progress: Callable[[int], None]
    ) -> None:
        """Add what a partition gives to `found`. `is_whole`: subjects so far, and whether their chains are whole.

        What a subject's decisions rest on lies in the same partition of the other topics, and was there
        before them.
        """
        logs: dict[bytes, SubjectLog] = defaultdict(SubjectLog)
        for offset, key, value in self._reader.read(topic("decisions").of(self._domain), partition):
            logs[key or b""].decisions.append(Line(partition, offset, key, value))
        for name in ("outcomes", "approvals"):
            for offset, key, value in self._reader.read(topic(name).of(self._domain), partition):
                if (log := logs.get(key or b"")) is not None:
                    getattr(log, name).append(Line(partition, offset, key, value))
        for subject in list(logs):
            records = logs.pop(subject)
            if subject in is_whole:  # in a second partition: nothing of it can follow from the first
                found.broken_chains += is_whole[subject]
                is_whole[subject] = False
                continue
            is_whole[subject] = found.replay(self._governor, records, self._policies, self._terms)
            on_progress(found.decisions)


def run_on_flink(
    home: Home,
    domain: str,
    *,
    candidates: Sequence[Policy] | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Done:
    """The same by a bounded job on the running cluster of `home`; the report is the same too.

    Its time includes planning and submission, some seconds. Raises SetupFailed when nothing runs there or for
    what is no time, JobFailed with the cause.
    """
    period = read_period(since, until)
    if not instance.is_running(home):
        raise SetupFailed(f"--flink: no cluster runs in {home.path}; './flyball up {domain}' starts one")
    command = [sys.executable, "-m", f"{code_versions.kept(home).name}.jobs.replay", "--domain", domain]
    for option, value in (("--from-ms", period.from_ms), ("--to-ms", period.to_ms)):
        if value is not None:
            command += [f"{option}={value}"]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=home.run) as folder:
        if candidates is not None:
            path = Path(folder) / "candidates.json"
            path.write_bytes(orjson.dumps([policy.model_dump(mode="json") for policy in candidates]))
            command += ["--candidates", str(path)]
        client = subprocess.run(
            command, env=client_environment(home), cwd=CHECKOUT, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if client.returncode:
        (home.logs / f"replay-{domain}.out").write_text(client.stdout + client.stderr)
        raise JobFailed(f"replay of {domain} on Flink failed: {flink_jobs.last_cause(client.stdout + client.stderr)}")
    done = Done()
    done.found.add(orjson.loads(client.stdout.strip().splitlines()[-1]))
    done.seconds = time.perf_counter() - began
    return done
