"""Prints the plan of each domain's `context` job; run as a process of its own, because it needs a JVM."""

from __future__ import annotations

import sys

from jobs import context
from jobs.environment import table_environment
from jobs.settings import load_settings

for domain in sys.argv[1:]:
    # Two subtasks, so that an exchange that could be left out at one shows.
    settings = load_settings(domain, parallelism=2)
    env, t_env = table_environment(context.NAME, settings)
    statements = context.build(env, t_env, settings, context.sources(settings), context.sinks(settings))
    print(f"== {domain}")
    print(statements.explain())
