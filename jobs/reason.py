"""Job `reason`: situations, prompts, models in; proposals of language models' agents out.

    situations --(routed, keyed by agent)--> Reason <--(broadcast)-- prompts, models
                                               |  \\
                                               |   +--> exchanges: every call as it was, before it is used
                                               +------> proposals, dead letters

Agents are data (conf/<domain>/agents.yaml, kind `llm`); a domain without any does not run this job. Restart: at
least once, with derived ids; recorded replies are used again, not paid again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment
from pyflink.table.statement_set import StatementSet

from contracts.domain import load_domain
from contracts.topics import topic
from jobs.environment import records, submit, table_environment, write
from jobs.settings import Settings, settings_from_arguments
from jobs.tables import end_offset, raw_sink, raw_source
from udfs.agents.definition import LlmAgent, load_agents
from udfs.reason.flink import CONTROL_STATE, RECORD, ROUTED, Reason, Route

NAME = "reason"
# Planning asks how long the control topics are.
NEEDS_BROKER = True
WRITTEN = ("proposals", "dead-letters")
# Written by a producer of the operator's own and read back after a restart: recorded before Flink writes.
WRITES_ITSELF = frozenset({"exchanges"})
_CONTROL = ("prompts", "models")


def sources(settings: Settings) -> dict[str, str]:
    return {
        "situations_source": raw_source("situations_source", ["situations"], settings, group=NAME),
        "control_source": raw_source("control_source", list(_CONTROL), settings, group=NAME),
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
    ready_at: dict[str, int],
) -> StatementSet:
    """Wire the job; `ready_at`: end offset of each control topic, what lies before loads first."""
    for ddl in (*sources.values(), *sinks.values()):
        t_env.execute_sql(ddl)
    agents = str(settings.agents_file)
    routed = (
        records(t_env, "situations_source", with_appended=True)
        .flat_map(Route(settings.domain, agents), ROUTED)
        .name("reason: which agents a situation concerns")
        .uid("reason-route")
    )
    control = records(t_env, "control_source").broadcast(CONTROL_STATE)
    operator = Reason(
        settings.domain, agents, settings.bootstrap_servers, ready_at,
        max(1, settings.reason_in_flight // settings.parallelism), settings.models_url, settings.model,
    )  # fmt: skip
    proposals = (
        routed.key_by(lambda record: record[0])
        .connect(control)
        .process(operator, RECORD)
        .name("reason: models are asked")
        .uid("reason-ask")
    )
    return write(t_env, proposals, settings.domain, {"proposals_sink": WRITTEN})


def plan(env: StreamExecutionEnvironment, t_env: StreamTableEnvironment, settings: Settings) -> None:
    """Build the job with its own sources and sinks, ready to be submitted."""
    ready_at = {topic(name).of(settings.domain): end_offset(settings, name, job=NAME) for name in _CONTROL}
    statements = build(env, t_env, settings, sources(settings), sinks(settings), ready_at=ready_at)
    statements.attach_as_datastream()


def main() -> None:
    settings = settings_from_arguments(sys.argv[1:])
    agents = load_agents(settings.agents_file, load_domain(settings.domain))
    if not any(isinstance(agent, LlmAgent) for agent in agents):
        print(f"{settings.domain} has no agent that asks a language model: nothing to submit", flush=True)
        return
    env, t_env = table_environment(NAME, settings)
    plan(env, t_env, settings)
    print(submit(env, NAME, settings), flush=True)


if __name__ == "__main__":
    main()
