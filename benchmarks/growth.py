"""How cost grows: with policies and agents (the pure cores on one core), with subjects and ids (state of `govern`)."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.bed import bench_home, load, policy_folder, prepared
from benchmarks.load import proposal, situation
from benchmarks.rates import HOLDS_ON, publish, wait_for_checkpoint_of_all
from contracts.domain import load_domain
from jobs.settings import load_settings
from ops import cluster, flink_jobs, instance, policies
from ops.home import Home
from ops.submission import Submission
from udfs.agents.core import Agents
from udfs.agents.definition import load_agents
from udfs.policy.govern import Governor
from udfs.policy.policy_set import PolicySet
from udfs.policy.subject import SubjectState

_POLICIES = (1, 50, 100, 200)
_AGENTS = (1, 5, 20, 50)
_RECORDS = 2000
_SUBJECTS = 60_000
_FEW = 100


def growth() -> dict[str, Any]:
    """Microseconds for one more policy, in scope or not, and for one more agent, silent or proposing; MiB for more subjects.

    Slopes of least squares. The times are those of udfs/policy and udfs/agents alone, with reading and writing the
    events, on one core; without Flink's part, which does not grow with them.
    """
    return {
        "us_per_policy_in_scope": slope_us(_POLICIES, lambda count: _deciding(count, "schedule_maintenance")),
        "us_per_policy_out_of_scope": slope_us(_POLICIES, lambda count: _deciding(count, "activate_cooling")),
        "us_per_silent_agent": slope_us(_AGENTS, lambda count: _proposing(count, "temperature > 1000.0")),
        "us_per_proposing_agent": slope_us(_AGENTS, lambda count: _proposing(count, "temperature < 1000.0")),
        **_state(),
    }


def slope_us(counts: Iterable[int], work: Callable[[int], Callable[[], None]]) -> float:
    """Microseconds a record that one more adds; of five tries the quickest counts, all sizes taking turns."""
    works = {count: work(count) for count in counts}
    rounds = [[_timed(each) for each in works.values()] for _ in range(5)]
    quickest = [min(times) for times in zip(*rounds, strict=True)]
    return statistics.linear_regression(list(works), quickest).slope * 1e6 / _RECORDS


def _timed(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _deciding(count: int, action: str) -> Callable[[], None]:
    """Decides proposals of `schedule_maintenance` under `count` forbids of `action`, none of which matches."""
    forbids = "policy_id: p{0}\nversion: 1\nstatus: active\nscope: {{actions: [{1}]}}\nverdict: deny\nreason: a benchmark\n" \
        "when: confidence < 0.{0:03} && hops < 5 && age_s < 3600.0\n"  # fmt: skip
    texts = {f"p{n}": forbids.format(n, action) for n in range(count)}
    made = PolicySet.compile(policies.check_files("machines", policy_folder(bench_home(), texts)))
    contract = load_domain("machines")
    events = [proposal(number, _FEW, "growth") for number in range(_RECORDS)]

    def work() -> None:
        governor, states = Governor(contract, max_hops=6), defaultdict[bytes, SubjectState](SubjectState)
        for key, event in events:
            governor.decide(states[key], governor.read.proposal(key, event), made)

    return work


def _proposing(count: int, when: str) -> Callable[[], None]:
    """Answers situations with `count` rules."""
    rule = "  - agent: rule-{0}\n    version: 1\n    kind: rule\n    situation: machines.reading_scored\n    when: '{1}'\n" \
        "    confidence: 0.9\n    propose: {{action: schedule_maintenance, parameters: {{priority: normal}}, reason: bench}}\n"  # fmt: skip
    home, contract = bench_home(), load_domain("machines")
    home.path.mkdir(parents=True, exist_ok=True)
    file = home.path / "agents.yaml"
    file.write_text("agents:\n" + "".join(rule.format(n, when) for n in range(count)))
    agents = Agents(contract, load_agents(file, contract))
    events = [situation(number, _FEW, "growth") for number in range(_RECORDS)]

    def work() -> None:
        for key, event in events:
            for _ in agents.propose(agents.read(key, event), {}):
                pass

    return work


def _state() -> dict[str, float]:
    """Bytes in a checkpoint of `govern` for one subject with a command in flight, and for one more id it remembers."""
    home = bench_home()
    try:
        bootstrap = prepared(home)
        publish(bootstrap, policy_folder(home, {"open-subjects": HOLDS_ON}))
        Submission(home, "machines", ["govern"]).go().wait()
        sizes = [0.0]
        for run, machines in (("many", _SUBJECTS), ("few", _FEW)):
            load(home, "proposals", _SUBJECTS, run=run, machines=machines)
            wait_for_checkpoint_of_all(home, bootstrap)
            sizes.append(state_bytes(home, "machines.govern"))
        subjects, ids = ((sizes[n + 1] - sizes[n]) / _SUBJECTS for n in range(2))
        return {"bytes_per_subject": subjects, "bytes_per_id": ids, "remember_days": load_settings("machines").remember_s / 86_400}
    finally:
        instance.stop(home)


def state_bytes(home: Home, name: str) -> float:
    """The whole state of a job as of its last checkpoint."""
    (job,) = (job for job in flink_jobs.states(home) if job.name == name)
    latest = cluster.get(flink_jobs.rest_port(home), f"/jobs/{job.job_id}/checkpoints")["latest"]["completed"] or {}
    return float(latest.get("state_size", 0))
