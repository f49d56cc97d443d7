"""What every job keeps, by what names: docs/state.yaml, written from the jobs as they are planned.

A savepoint is found again by these names, and read by these types and versions: a test holds the file against the
jobs, so that no change of them goes unseen. Run as `python -m ops.state_list` it plans (a JVM, no cluster) and prints JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from pyflink.datastream.state import ListStateDescriptor, MapStateDescriptor, ValueStateDescriptor
from ruamel.yaml import YAML

from contracts.domain import known_domains
from contracts.errors import SetupFailed
from jobs.environment import planned, table_environment
from jobs.settings import load_settings
from ops import cluster, flink_jobs
from ops.home import CHECKOUT, Home
from ops.setup import java_home
from udfs.agents import flink as agents
from udfs.policy import flink as policy
from udfs.reason import flink as reason
from udfs.state import SCHEMAS
from udfs.wide_limits import flink as wide_limits

FILE = CHECKOUT / "docs" / "state.yaml"
_HEAD = """\
# What jobs find their state by: written by './flyball state --write', held against the jobs by a test.
# uid: the operator's name in a savepoint. meaning: digest of a SQL query and of all that feeds it (jobs/operators.py).
# version: of the values (udfs/state.py); without one, a number or a time.
"""
# Operator -> the modules whose descriptors it opens.
_OPENED: dict[str, tuple[ModuleType, ...]] = {
    "propose-agents": (agents,),
    "reason-ask": (reason,),
    "govern-truth-table": (policy, wide_limits),
}
# What planning would ask the broker for.
_ENDS: dict[str, dict[str, Any]] = {
    "propose": {"models_until": 0},
    "reason": {"ready_at": {}},
    "govern": {"policies_until": 0},
}
_KINDS = {ValueStateDescriptor: "value", MapStateDescriptor: "map", ListStateDescriptor: "list"}


def states(uid: str) -> list[dict[str, object]]:
    """The states a Python operator opens: name, kind, type, version of the values."""
    job = uid.split("-")[0]
    found = []
    for module in _OPENED.get(uid, ()):
        for one in vars(module).values():
            if (kind := _KINDS.get(type(one))) is None:
                continue
            schema = SCHEMAS.get(f"{job}/{one.name}")
            told: dict[str, object] = {"state": one.name, "kind": kind, "type": str(one.type_info)}
            found.append(told if schema is None else {**told, "version": schema.version})
    return found


def _listed(domain: str, name: str) -> list[dict[str, object]]:
    job, settings = importlib.import_module(f"jobs.{name}"), load_settings(domain)
    env, t_env = table_environment(name, settings)
    ends = _ENDS.get(name, {})
    job.build(env, t_env, settings, job.sources(settings), job.sinks(settings), **ends).attach_as_datastream()
    found = []
    for operator in planned(env, name, settings).operators.values():
        told: dict[str, object] = {"uid": operator.uid}
        if operator.meaning:
            told["meaning"] = operator.meaning
        if opened := states(operator.uid):
            told["states"] = opened
        found.append(told)
    return found


def listing() -> dict[str, Any]:
    """The file's content. Needs a JVM: see `ask`."""
    asking = next(domain for domain in known_domains() if "reason" in flink_jobs.jobs_of(domain))
    same = {name: _listed(asking, name) for name in _ENDS}
    return {**same, "context": {domain: _listed(domain, "context") for domain in known_domains()}}


def ask() -> dict[str, Any]:
    """`listing` of a process of its own. Raises SetupFailed with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        cluster.prepare(home, {"jobmanager": 1, "rest": 2})
        environment = {**os.environ, **cluster.environment(home, java_home()), "FLYBALL_REST": "127.0.0.1:2"}
        environment["JVM_ARGS"] = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto"
        done = subprocess.run(
            [sys.executable, "-m", "ops.state_list"], env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SetupFailed(f"planning the jobs failed: {flink_jobs.last_cause(done.stderr)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read() -> dict[str, Any]:
    """The file as it is."""
    found: dict[str, Any] = YAML(typ="safe").load(FILE.read_text())
    return found


def as_text(found: dict[str, Any]) -> str:
    """The file's text, one operator a line where it has no states."""
    text, yaml = StringIO(), YAML()
    yaml.width = 200
    yaml.default_flow_style = None
    yaml.dump(found, text)
    return _HEAD + text.getvalue()


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What differs, one line an operator."""
    def flat(found: dict[str, Any]) -> dict[str, Any]:
        jobs = {name: listed for name, listed in found.items() if name != "context"}
        jobs |= {f"context of {domain}": listed for domain, listed in found.get("context", {}).items()}
        return {f"{job}: {one['uid']}": one for job, listed in jobs.items() for one in listed}

    ours, theirs = flat(now), flat(before)
    return [
        f"{name}: in the file {theirs.get(name, 'nothing')}, in the job {ours.get(name, 'nothing')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


if __name__ == "__main__":
    print(json.dumps(listing()))
