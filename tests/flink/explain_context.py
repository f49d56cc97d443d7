"""Prints each domain's `context` job as Flink runs it (JSON lines); a process of its own: it needs a JVM."""

from __future__ import annotations

import json
import sys

from jobs import context
from jobs.environment import stream_graph, table_environment
from jobs.settings import load_settings

for domain in sys.argv[1:]:
    # Two subtasks, so that an exchange that could be left out at one shows.
    settings = load_settings(domain, parallelism=2, context_parallelism=2)
    env, t_env = table_environment(context.NAME, settings)
    context.plan(env, t_env, settings)
    print(json.dumps({domain: json.loads(stream_graph(env, domain).getStreamingPlanAsJSON())["nodes"]}))
