"""Job `replay`: every recorded decision made again, bounded; for more than one machine holds.

    decisions,
    outcomes,
    approvals --(by subject)--> Replay --> what differs, summed here

Batch mode: records come sorted by subject, one subject is in memory at a time. Decisions are read to where
they end at submission, the others, which must reach further, to where they end a moment later. The policies
are read before and go with the job. Prints `Replayed.to_dict` as its last line. What is compared and how is in
udfs/policy/replayed.py, the same as in process (ops/replay.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson
from pyflink.datastream import DataStream
from pyflink.table import StreamTableEnvironment

from jobs.environment import keyed_records, table_environment
from jobs.settings import Settings, load_settings
from jobs.tables import committed_ends, control_records, raw_source
from udfs.policy.audit import Period
from udfs.policy.replayed import Replayed, Terms
from udfs.replay.flink import FOUND, Replay

NAME = "replay"


def sources(settings: Settings) -> dict[str, str]:
    ends = committed_ends(settings, "decisions", job=NAME)
    return {
        "decisions_source": raw_source("decisions_source", ["decisions"], settings, group=NAME, until=ends),
        "inputs_source": raw_source("inputs_source", ["outcomes", "approvals"], settings, group=NAME, until="latest"),
    }


def build(t_env: StreamTableEnvironment, sources: Mapping[str, str], replay: Replay) -> DataStream:
    """Wire the job: one JSON text a subject with decisions."""
    for ddl in sources.values():
        t_env.execute_sql(ddl)
    recorded = " UNION ALL ".join(f"SELECT * FROM {table}" for table in sources)
    t_env.create_temporary_view("recorded", t_env.sql_query(recorded))
    return (
        keyed_records(t_env, "recorded")
        .process(replay, FOUND)
        .name("replay: decisions made again")
        .uid("replay-decisions")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make every recorded decision of a domain again, on Flink.")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--bootstrap-servers", help="Kafka (FLYBALL_BOOTSTRAP_SERVERS)")
    parser.add_argument("--parallelism", type=int)
    parser.add_argument("--candidates", type=Path, help="a JSON array of policies that take the recorded ones' place")
    parser.add_argument("--from-ms", type=int, help="event time")
    parser.add_argument("--to-ms", type=int, help="event time, not included")
    asked = parser.parse_args([argument for argument in sys.argv[1:] if argument != "--"])
    given = {"bootstrap_servers": asked.bootstrap_servers, "parallelism": asked.parallelism}
    settings = load_settings(asked.domain, **{name: value for name, value in given.items() if value is not None})
    candidates = None
    if asked.candidates is not None:
        candidates = [orjson.dumps(policy).decode() for policy in orjson.loads(asked.candidates.read_bytes())]
    terms = Terms(
        by_bytes=candidates is None, allows_repeats=settings.delivery == "at_least_once",
        period=Period(asked.from_ms, asked.to_ms),
    )  # fmt: skip
    policies = control_records(settings, "policies", job=NAME)
    _, t_env = table_environment(NAME, settings)
    again = build(
        t_env, sources(settings), Replay(settings.domain, settings.max_hops, terms, policies, candidates),
    )  # fmt: skip
    total = Replayed()
    with again.execute_and_collect(f"{NAME} {settings.domain}") as found:
        for text in found:
            total.add(orjson.loads(text))
    print(orjson.dumps(total.to_dict()).decode(), flush=True)


if __name__ == "__main__":
    main()
