"""The Flink environment of a job: delivery, checkpoints and restarts by settings, nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyflink.common import Configuration, Types
from pyflink.datastream import DataStream, KeyedStream, StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway
from pyflink.table import DataTypes, EnvironmentSettings, Schema, StreamTableEnvironment
from pyflink.table.statement_set import StatementSet
from pyflink.util.java_utils import get_j_env_configuration, to_jarray

from jobs.chaining import drop_exchanges_on_the_same_key
from jobs.operators import Operator, check_state, name_operators, name_step, write_down
from jobs.settings import LATEST, Settings

# SQL for when the broker appended a record, to the second, as ms since 1970. TIMESTAMPDIFF is an INT.
EPOCH_MS = (
    "CAST(TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', CAST(appended_at AS TIMESTAMP(3))) AS BIGINT)"
    " * 1000"
)


def checkpoints_of(name: str, settings: Settings) -> str:
    """URI of the job's own folder of checkpoints below FLYBALL_CHECKPOINTS; empty: the cluster's."""
    below = os.environ.get("FLYBALL_CHECKPOINTS")
    return f"{below}/{settings.domain}.{name}" if below else ""


def configuration(name: str, settings: Settings) -> Configuration:
    """What differs from conf/flink.yaml for this job."""
    config = Configuration()
    transactional = name == "govern" and settings.delivery == "exactly_once"
    interval = settings.checkpoint_interval_ms if transactional else settings.recovery_interval_ms
    parallelism = settings.context_parallelism if name == "context" else None
    values = {
        "pipeline.name": f"{settings.domain}.{name}",
        "parallelism.default": str(parallelism or settings.parallelism),
        "pipeline.max-parallelism": "128",
        "execution.checkpointing.interval": f"{interval} ms",
        "execution.checkpointing.min-pause": "50 ms",
        "table.local-time-zone": "UTC",
        "table.exec.uid.generation": "DISABLED",
    }
    if name == "replay":
        # Bounded, and begun anew when it fails. Its name is not `domain.job`: it is none of the domain's jobs.
        values |= {
            "pipeline.name": f"replay {settings.domain}",
            "execution.runtime-mode": "BATCH",
            "execution.batch.adaptive.auto-parallelism.enabled": "false",
        }
        del values["execution.checkpointing.interval"]
    elif name != "context":
        # Each record is handed on at once: a timer that flushes every ms costs more at their rates.
        values["execution.buffer-timeout.interval"] = "0 ms"
    if name == "govern":
        # Ids of months, checkpointed four times a second: only what changed may be written (decisions/0013).
        values |= {
            "state.backend.type": "rocksdb",
            "execution.checkpointing.incremental": "true",
            "state.backend.rocksdb.compaction.style": "UNIVERSAL",
            "state.backend.rocksdb.use-bloom-filter": "true",
            "state.backend.rocksdb.writebuffer.size": "4mb",
        }
    if (checkpoints := checkpoints_of(name, settings)) and name != "replay":
        values["execution.checkpointing.dir"] = checkpoints
    if rest := os.environ.get("FLYBALL_REST"):  # started as a plain script, not by `flink run`
        host, port = rest.rsplit(":", 1)
        values |= {
            "execution.target": "remote",
            "rest.address": host,
            "rest.port": port,
            # The default, and not to be changed: older state is deleted (ops/checkpoints.py), so no checkpoint may need it.
            "execution.state-recovery.claim-mode": "NO_CLAIM",
        }
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
    mode = EnvironmentSettings.in_batch_mode if name == "replay" else EnvironmentSettings.in_streaming_mode
    return env, StreamTableEnvironment.create(env, environment_settings=mode())


def stream_graph(env: StreamExecutionEnvironment, job_name: str) -> Any:
    """What was planned in `env`, as Flink runs it; `env` is empty after."""
    graph = env._generate_stream_graph(clear_transformations=True, job_name=job_name)
    drop_exchanges_on_the_same_key(graph)
    return graph


@dataclass(frozen=True)
class Planned:
    """A job ready to be submitted, and what its state means (jobs/operators.py).

    `plans`: the folder where the plan is kept when it is submitted, so that it can be again without a client.
    """

    env: StreamExecutionEnvironment
    graph: Any
    operators: Mapping[str, Operator]
    checkpoints: str
    plans: Path | None

    def check(self, state: str) -> list[str]:
        """What would begin without state; raises StateRefused when the job must not start from `state`."""
        return check_state(self.checkpoints, state, self.operators)

    def submit(self, state: str = "") -> str:
        """The job's id. `state`: path of a checkpoint or savepoint to start from; raises StateRefused."""
        if state:
            self.check(state)
            # Known only after it was planned; Flink takes it from here when it submits.
            settings = get_j_env_configuration(self.env._j_stream_execution_environment)
            settings.setString("execution.state-recovery.path", state)
        job_id = str(self.env._j_stream_execution_environment.executeAsync(self.graph).getJobID())
        write_down(self.checkpoints, job_id, self.operators)
        if self.plans is not None:
            _keep_plan(self.graph, self.plans, f"{self.checkpoints}/{LATEST}", job_id)
        return job_id


def planned(env: StreamExecutionEnvironment, name: str, settings: Settings) -> Planned:
    """What was planned in `env`, with a uid for every operator."""
    full_name = f"{settings.domain}.{name}"
    graph = stream_graph(env, full_name)
    checkpoints, plans = checkpoints_of(name, settings), os.environ.get("FLYBALL_PLANS")
    kept_in = Path(plans) / full_name if plans and checkpoints else None
    return Planned(env, graph, name_operators(graph), checkpoints, kept_in)


def submit(env: StreamExecutionEnvironment, name: str, settings: Settings) -> str:
    """Submit what was planned in `env`, from the state FLYBALL_RESUME_FROM names, if any; the job's id."""
    return planned(env, name, settings).submit(os.environ.get("FLYBALL_RESUME_FROM", ""))


def _keep_plan(graph: Any, folder: Path, resume_from: str, job_id: str) -> None:
    """The submitted graph as Flink's own client sends it, in `folder` under its job id, to go on from `resume_from`."""
    jvm = get_gateway().jvm
    restore = jvm.org.apache.flink.runtime.jobgraph.SavepointRestoreSettings.forPath(resume_from)
    graph.setSavepointRestoreSettings(restore)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    stream = jvm.java.io.ObjectOutputStream(jvm.java.io.FileOutputStream(str(folder / f"{job_id}.new")))
    stream.writeObject(graph)
    stream.close()
    (folder / f"{job_id}.new").replace(folder / job_id)


def register_step(t_env: StreamTableEnvironment, name: str, query: str) -> None:
    """Register `query` as the view `name`, computed once however often it is read.

    The planner inlines views: what is read twice it computes twice, and an expression over an
    expression repeats it, until the code is too long for the JVM's compiler. So the plan is cut
    here: rows cross to a DataStream and back in Flink's own form, which costs next to nothing.
    Time attributes do not cross; they are made anew: `arrival` is PROCTIME() after each step, and
    `row_time` the column event_ms with the source's watermark.
    """
    jvm = get_gateway().jvm
    table = t_env._j_tenv.sqlQuery(query)
    columns = [str(column) for column in table.getResolvedSchema().getColumnNames()]
    if made := [column for column in ("arrival", "row_time") if column in columns]:
        dropped = [getattr(jvm.org.apache.flink.table.api.Expressions, "$")(c) for c in made]
        expression = jvm.org.apache.flink.table.expressions.Expression
        table = table.dropColumns(to_jarray(expression, dropped))
    row_type = table.getResolvedSchema().toPhysicalRowDataType()
    schema = (
        jvm.org.apache.flink.table.api.Schema.newBuilder()
        .fromRowDataType(row_type)
        .columnByExpression("arrival", "PROCTIME()")
    )
    if "event_ms" in columns:
        schema = schema.columnByExpression(
            "row_time", "TO_TIMESTAMP_LTZ(COALESCE(event_ms, 0), 3)"
        ).watermark("row_time", "SOURCE_WATERMARK()")
    row_data = jvm.java.lang.Class.forName("org.apache.flink.table.data.RowData")
    stream = t_env._j_tenv.toDataStream(table, row_type.bridgedTo(row_data))
    name_step(stream, name)
    t_env._j_tenv.createTemporaryView(
        name, t_env._j_tenv.fromDataStream(stream, schema.build())
    )


def records(t_env: StreamTableEnvironment, table: str, *, with_appended: bool = False) -> DataStream:
    """A raw source as a stream of (key, value, topic, partition, offset); bytes stay bytes.

    `with_appended` adds when the broker appended it (ms since 1970).
    """
    appended = f", {EPOCH_MS} AS appended_ms" if with_appended else ""
    return t_env.to_data_stream(
        t_env.sql_query(
            "SELECT record_key, record_value, `topic` AS log_topic,"
            f" CAST(`partition` AS BIGINT) AS log_partition, `offset` AS log_offset{appended} FROM {table}"
        )
    )


def keyed_records(t_env: StreamTableEnvironment, table: str) -> KeyedStream:
    """A raw source as records (see `records`) keyed by their key's text, '' where there is none.

    What `DataStream.key_by` does, with the key computed in SQL: key_by with a Python function sends
    each record through Python once more.
    """
    keyed = t_env.to_data_stream(
        t_env.sql_query(
            "SELECT COALESCE(CAST(record_key AS STRING), '') AS record_key_text, ROW(record_key,"
            " record_value, `topic`, CAST(`partition` AS BIGINT), `offset`) AS log_record"
            f" FROM {table}"
        )
    )
    record_type = Types.ROW(
        [Types.PRIMITIVE_ARRAY(Types.BYTE()), Types.PRIMITIVE_ARRAY(Types.BYTE()), Types.STRING(),
         Types.LONG(), Types.LONG()]
    )  # fmt: skip
    row_type = Types.ROW([Types.STRING(), record_type]).get_java_type_info()
    keyed._j_data_stream.getTransformation().setOutputType(row_type)
    key_type = Types.ROW([Types.STRING()]).get_java_type_info()
    selected = keyed._j_data_stream.keyBy(get_gateway().jvm.KeyByKeySelector(), key_type)
    return KeyedStream(selected, record_type, keyed)


def write(
    t_env: StreamTableEnvironment, stream: DataStream, domain: str, sinks: Mapping[str, Sequence[str]]
) -> StatementSet:
    """Statements that write every (topic, key, value) of `stream` into the raw sink table of its topic.

    `sinks`: table -> the topics it writes, named as the rows name them: without the domain.
    """
    schema = Schema.new_builder()
    for name in ("f0", "f1", "f2"):
        schema = schema.column(name, DataTypes.STRING())
    t_env.create_temporary_view("written", t_env.from_data_stream(stream, schema.build()))
    statements = t_env.create_statement_set()
    for sink, topics in sinks.items():
        listed = ", ".join(f"'{name}'" for name in topics)
        query = t_env.sql_query(f"SELECT CONCAT('{domain}.', f0), f1, f2 FROM written WHERE f0 IN ({listed})")
        statements.add_insert(sink, query)
    return statements
