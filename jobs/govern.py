"""Job `govern`: proposals, outcomes, people's answers, policies in; decisions and commands out.

    proposals,
    outcomes,
    approvals --(keyed by subject)--> Govern <--(broadcast)-- policies, switches, people
                                        |
                                        +--> decisions, commands (one transaction), dead letters

Only it writes commands. The truth table is in udfs/policy/govern.py. Under exactly_once decisions and commands are written
in Kafka transactions that a checkpoint commits.
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
from udfs.policy.flink import POLICIES_STATE, RECORD, Govern

NAME = "govern"
# Planning asks how long a control topic is.
NEEDS_BROKER = True
# A decision and its command become visible together. Claims on limits must not wait for a checkpoint.
WRITTEN = {"decisions_sink": ("decisions", "commands"), "limits_sink": ("limits", "dead-letters")}


def sources(settings: Settings) -> dict[str, str]:
    topics = ["proposals", "outcomes", "approvals", "limits"]
    if settings.govern_reads_situations:
        topics.append("situations")
    return {
        "proposals_source": raw_source("proposals_source", topics, settings, group=NAME),
        "policies_source": raw_source("policies_source", ["policies"], settings, group=NAME),
    }


def sinks(settings: Settings) -> dict[str, str]:
    return {
        sink: raw_sink(sink, topics, settings, producer=NAME, is_transactional=sink == "decisions_sink")
        for sink, topics in WRITTEN.items()
    }


def build(
    env: StreamExecutionEnvironment,
    t_env: StreamTableEnvironment,
    settings: Settings,
    sources: Mapping[str, str],
    sinks: Mapping[str, str],
    *,
    policies_until: int,
) -> StatementSet:
    """Wire the job; `policies_until` is the policies topic's end offset: those load before anything."""
    for ddl in (*sources.values(), *sinks.values()):
        t_env.execute_sql(ddl)
    proposals = keyed_records(t_env, "proposals_source")
    policies = records(t_env, "policies_source").broadcast(POLICIES_STATE)
    govern = Govern(settings.domain, settings.max_hops, settings.remember_s, policies_until)
    decisions = (
        proposals.connect(policies)
        .process(govern, RECORD)
        .name("govern: the truth table")
        .uid("govern-truth-table")
    )
    return write(t_env, decisions, settings.domain, WRITTEN)


def plan(env: StreamExecutionEnvironment, t_env: StreamTableEnvironment, settings: Settings) -> None:
    """Build the job with its own sources and sinks, ready to be submitted."""
    until = end_offset(settings, "policies", job=NAME)
    statements = build(env, t_env, settings, sources(settings), sinks(settings), policies_until=until)
    statements.attach_as_datastream()


def main() -> None:
    settings = settings_from_arguments(sys.argv[1:])
    env, t_env = table_environment(NAME, settings)
    plan(env, t_env, settings)
    print(submit(env, NAME, settings), flush=True)


if __name__ == "__main__":
    main()
