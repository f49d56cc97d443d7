"""The embedded cluster's job client: one process, one JVM, for all jobs of a domain that run one version of the code.

`flink run` starts a JVM and a Python a job, which on two cores is most of the time until the first
decision. Run as `python -m <version>.ops.submit --domain machines context propose govern`: plans what needs no
broker while broker and cluster still start (with --all, everything; then it prints what would begin without
state), waits for a line on standard input, then submits and prints {"job": "id"} as the last line. The line may be
{"job": "path of its state"}.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from jobs import environment
from jobs.environment import planned, table_environment
from jobs.settings import load_settings

PLANNED = "planned "


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--parallelism", type=int)
    parser.add_argument("--models-url")
    parser.add_argument("--resume-from", type=json.loads, default={})
    parser.add_argument("--all", action="store_true", help="plan everything before waiting: the broker is up")
    parser.add_argument("--instead-of", help="id of the job whose state it will start from")
    asked = parser.parse_args()
    given = {"parallelism": asked.parallelism, "models_url": asked.models_url}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(asked.domain, **overrides)
    waiting, done = {}, {}
    for name in asked.jobs:
        job = importlib.import_module(f"{environment.__package__}.{name}")
        env, t_env = table_environment(name, settings)
        if asked.all or not job.NEEDS_BROKER:
            job.plan(env, t_env, settings)
        waiting[name] = (job, env, t_env)
        if asked.all:
            done[name] = planned(env, name, settings)
    if asked.all:
        anew = [uid for one in done.values() if asked.instead_of for uid in one.check(asked.instead_of)]
        print(PLANNED + json.dumps(anew), flush=True)
    line = sys.stdin.readline()
    if not line:
        sys.exit("the command that asked for these jobs is gone")
    states = asked.resume_from | (json.loads(line) if line.startswith("{") else {})
    ids = {}
    for name, (job, env, t_env) in waiting.items():
        if job.NEEDS_BROKER and not asked.all:
            job.plan(env, t_env, settings)
        ready = done.get(name) or planned(env, name, settings)
        ids[name] = ready.submit(states.get(name, ""))
    print(json.dumps(ids), flush=True)


if __name__ == "__main__":
    main()
