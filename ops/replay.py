"""Recorded decisions made again, under the recorded policies or under others: in this process, or on Flink."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


def run(
    bootstrap_servers: str,
    domain: str,
    *,
    candidates: Sequence[Policy] | None = None,
    since: str | None = None,
    until: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Done:
    """Make every recorded decision again; report those between two event times (RFC 3339).

    Without `candidates` every byte of an entry must come out as recorded. With them, the first decisions
    about proposals are compared by verdict, reason and action, and every candidate counts as active;
    pauses, outcomes and people's answers are the recorded ones, also where another decision would have had
    others. One partition of each topic is in memory at a time. Raises SetupFailed for what is no time.
    """
    settings, contract = load_settings(domain), load_domain(domain)
    terms = Terms(
        by_bytes=candidates is None, allows_repeats=settings.delivery == "at_least_once",
        period=read_period(since, until),
    )  # fmt: skip
    governor = Governor(contract, max_hops=settings.max_hops)
    done = Done()
    began = time.perf_counter()
    reader = kafka.BulkReader(bootstrap_servers, principal=principal(domain, "reader"))
    try:
        log = PolicyLog(
            [(offset, value) for offset, _, value in reader.read(topic("policies").of(domain), 0)],
            contract.policy_variables(),
        )
        policies: Mapping[int, PolicySet] = log if candidates is None else Candidates(candidates, log)
        is_whole: dict[bytes, bool] = {}
        for logs in _partitions(reader, domain):
            for subject in list(logs):
                records = logs.pop(subject)
                if subject in is_whole:  # in a second partition: nothing of it can follow from the first
                    done.found.broken_chains += is_whole[subject]
                    is_whole[subject] = False
                    continue
                is_whole[subject] = done.found.replay(governor, records, policies, terms)
                if on_progress is not None:
                    on_progress(done.found.decisions)
    finally:
        reader.close()
    done.seconds = time.perf_counter() - began
    return done


def _partitions(reader: kafka.BulkReader, domain: str) -> Iterator[dict[bytes, SubjectLog]]:
    """Subject -> all that is recorded about it, for one partition after another.

    What a subject's decisions rest on lies in the same partition of the other topics, and was there
    before them.
    """
    for partition in reader.partitions(topic("decisions").of(domain)):
        logs: dict[bytes, SubjectLog] = defaultdict(SubjectLog)
        for offset, key, value in reader.read(topic("decisions").of(domain), partition):
            logs[key or b""].decisions.append(Line(partition, offset, key, value))
        for name in ("outcomes", "approvals"):
            for offset, key, value in reader.read(topic(name).of(domain), partition):
                if (log := logs.get(key or b"")) is not None:
                    getattr(log, name).append(Line(partition, offset, key, value))
        yield logs


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
