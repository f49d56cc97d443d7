"""Job `propose`: situations and models in, proposals out.

    situations --(keyed by subject)--> Propose <--(broadcast)-- models
                                          |
                                          +--> proposals, dead letters

Agents are data (conf/<domain>/agents.yaml). Restart: at least once, with derived ids.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment
from pyflink.table.statement_set import StatementSet

from jobs.environment import keyed_records, records, submit, table_environment, write
from jobs.settings import Settings, settings_from_arguments
from jobs.tables import end_offset, raw_sink, raw_source
from udfs.agents.flink import MODELS_STATE, RECORD, Propose

NAME = "propose"
# Planning asks how long a control topic is.
NEEDS_BROKER = True
WRITTEN = ("proposals", "dead-letters")


def sources(settings: Settings) -> dict[str, str]:
    return {
        "situations_source": raw_source("situations_source", ["situations"], settings, group=NAME),
        "models_source": raw_source("models_source", ["models"], settings, group=NAME),
    }


def sinks(settings: Settings) -> dict[str, str]:
    return {
        "proposals_sink": raw_sink("proposals_sink", WRITTEN, settings, producer=NAME),
    }


def build(
    env: StreamExecutionEnvironment,
    t_env: StreamTableEnvironment,
    settings: Settings,
    sources: Mapping[str, str],
    sinks: Mapping[str, str],
    *,
    models_until: int,
) -> StatementSet:
    """Wire the job; `models_until` is the models topic's end offset: those load before anything."""
    for ddl in (*sources.values(), *sinks.values()):
        t_env.execute_sql(ddl)
    situations = keyed_records(t_env, "situations_source")
    models = records(t_env, "models_source").broadcast(MODELS_STATE)
    proposals = (
        situations.connect(models)
        .process(Propose(settings.domain, str(settings.agents_file), models_until), RECORD)
        .name("propose: agents answer situations")
        .uid("propose-agents")
    )
    return write(t_env, proposals, settings.domain, {"proposals_sink": WRITTEN})


def plan(env: StreamExecutionEnvironment, t_env: StreamTableEnvironment, settings: Settings) -> None:
    """Build the job with its own sources and sinks, ready to be submitted."""
    until = end_offset(settings, "models", job=NAME)
    statements = build(env, t_env, settings, sources(settings), sinks(settings), models_until=until)
    statements.attach_as_datastream()


def main() -> None:
    settings = settings_from_arguments(sys.argv[1:])
    env, t_env = table_environment(NAME, settings)
    plan(env, t_env, settings)
    print(submit(env, NAME, settings), flush=True)


if __name__ == "__main__":
    main()
