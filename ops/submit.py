"""The embedded cluster's job client: one process, one JVM, for all jobs of a domain.

`flink run` starts a JVM and a Python a job, which on two cores is most of the time until the first
decision. Run as `python -m ops.submit --domain machines context propose govern`: plans what needs no
broker while broker and cluster still start, waits for a line on standard input, then submits and
prints {"job": "id"} as the last line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys

from jobs.environment import submit, table_environment
from jobs.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--parallelism", type=int)
    parser.add_argument("--models-url")
    parser.add_argument("--resume-from", type=json.loads, default={})
    asked = parser.parse_args()
    given = {"parallelism": asked.parallelism, "models_url": asked.models_url}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(asked.domain, **overrides)
    planned = {}
    for name in asked.jobs:
        job = importlib.import_module(f"jobs.{name}")
        os.environ.pop("FLYBALL_RESUME_FROM", None)
        if name in asked.resume_from:
            os.environ["FLYBALL_RESUME_FROM"] = asked.resume_from[name]
        env, t_env = table_environment(name, settings)
        if not job.NEEDS_BROKER:
            job.plan(env, t_env, settings)
        planned[name] = (job, env, t_env)
    if not sys.stdin.readline():
        sys.exit("the command that asked for these jobs is gone")
    ids = {}
    for name, (job, env, t_env) in planned.items():
        if job.NEEDS_BROKER:
            job.plan(env, t_env, settings)
        ids[name] = submit(env, name, settings)
    print(json.dumps(ids), flush=True)


if __name__ == "__main__":
    main()
