"""The Flink environment of a job: delivery, checkpoints and restarts by settings, nothing else."""

from __future__ import annotations

import os

from pyflink.common import Configuration
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway
from pyflink.table import DataTypes, Schema, StreamTableEnvironment
from pyflink.table.statement_set import StatementSet

from jobs.settings import Settings


def configuration(name: str, settings: Settings) -> Configuration:
    """What differs from conf/flink.yaml for this job."""
    config = Configuration()
    transactional = name == "govern" and settings.delivery == "exactly_once"
    interval = settings.checkpoint_interval_ms if transactional else settings.recovery_interval_ms
    values = {
        "pipeline.name": f"{settings.domain}.{name}",
        "parallelism.default": str(settings.parallelism),
        "pipeline.max-parallelism": "128",
        "execution.checkpointing.interval": f"{interval} ms",
        "execution.checkpointing.min-pause": "50 ms",
        "table.local-time-zone": "UTC",
        "table.exec.uid.generation": "ALWAYS",
    }
    if checkpoints := os.environ.get("FLYBALL_CHECKPOINTS"):
        values["execution.checkpointing.dir"] = f"{checkpoints}/{settings.domain}.{name}"
    if resume := os.environ.get("FLYBALL_RESUME_FROM"):
        values["execution.state-recovery.path"] = resume
    if rest := os.environ.get("FLYBALL_REST"):  # started as a plain script, not by `flink run`
        host, port = rest.rsplit(":", 1)
        values |= {"execution.target": "remote", "rest.address": host, "rest.port": port}
    for key, value in values.items():
        config.set_string(key, value)
    return config


def table_environment(
    name: str, settings: Settings
) -> tuple[StreamExecutionEnvironment, StreamTableEnvironment]:
    config = configuration(name, settings)
    if "FLYBALL_REST" in os.environ:
        # get_execution_environment() ignores execution.target outside `flink run`; the Java class
        # itself does not, and saves a second JVM for each job of the embedded cluster.
        flink = get_gateway().jvm.org.apache.flink
        whole = flink.configuration.GlobalConfiguration.loadConfiguration(config._j_configuration)
        env = StreamExecutionEnvironment(
            flink.streaming.api.environment.StreamExecutionEnvironment(whole)
        )
    else:
        env = StreamExecutionEnvironment.get_execution_environment(config)
    return env, StreamTableEnvironment.create(env)


def submit(env: StreamExecutionEnvironment, name: str, settings: Settings) -> str:
    """Submit what was planned in `env`; the job's id."""
    return str(env.execute_async(f"{settings.domain}.{name}").get_job_id())


def records(t_env: StreamTableEnvironment, table: str) -> DataStream:
    """A raw source as a stream of (key, value, topic, partition, offset); bytes stay bytes."""
    return t_env.to_data_stream(
        t_env.sql_query(
            "SELECT record_key, record_value, `topic` AS log_topic,"
            f" CAST(`partition` AS BIGINT) AS log_partition, `offset` AS log_offset FROM {table}"
        )
    )


def write(
    t_env: StreamTableEnvironment, statements: StatementSet, stream: DataStream, sink: str
) -> None:
    """Add "every (key, value) of `stream` into the raw sink table `sink`" to the statements."""
    schema = (
        Schema.new_builder()
        .column("f0", DataTypes.STRING())
        .column("f1", DataTypes.STRING())
        .build()
    )
    statements.add_insert(sink, t_env.from_data_stream(stream, schema))
