"""FLYBALL_FLINK over conf/flink.yaml, FLYBALL_JAVA_OPTIONS over our own; and the names `./flyball bench --only` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from benchmarks.bench import plans
from contracts.errors import SetupFailed
from ops import broker, cli, cluster
from ops.home import Home
from ops.setup import java_home


def test_an_asked_option_takes_the_shipped_ones_place_however_it_is_nested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "FLYBALL_FLINK", "{state.backend.type: rocksdb, taskmanager: {memory.managed.size: 2048mb}}"
    )
    home = Home(tmp_path)
    monkeypatch.setattr(cluster, "_link_jars", lambda _: None)

    cluster.prepare(home, {"jobmanager": 1, "rest": 2})

    written = YAML(typ="safe").load((cluster.conf_dir(home) / "config.yaml").read_text())
    assert written["state"] == {"backend": {"type": "rocksdb"}}
    assert written["taskmanager"]["memory"]["managed"] == {"size": "2048mb"}
    assert written["taskmanager"]["memory"]["task"]["heap"] == {"size": "896mb"}


@pytest.mark.parametrize(
    ("taskmanagers", "asked", "heap"),
    [(1, "{}", "1024m"), (3, "{}", "640m"), (3, "{taskmanager.memory.task.heap.size: 2 gb}", "2176m")],
)
def test_the_heap_of_a_taskmanager_is_what_its_settings_say(
    taskmanagers: int, asked: str, heap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYBALL_FLINK", asked)
    home = Home(tmp_path)
    monkeypatch.setattr(cluster, "_link_jars", lambda _: None)

    cluster.prepare(home, {"jobmanager": 1, "rest": 2}, taskmanagers)

    assert {f"-Xmx{heap}", f"-Xms{heap}", "-XX:MaxDirectMemorySize=352m"} <= {*cluster.taskmanager_command(home, tmp_path, 0)}


@pytest.mark.parametrize(("parallelism", "is_later"), [("", False), ("1", False), ("4", True)])
def test_the_optimising_compiler_starts_later_where_jobs_have_several_subtasks(
    parallelism: str, is_later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYBALL_PARALLELISM", parallelism)
    monkeypatch.setattr(cluster, "_link_jars", lambda _: None)
    home = Home(tmp_path)
    cluster.prepare(home, {"jobmanager": 1, "rest": 2})

    assert any("Tier4" in option for option in cluster.taskmanager_command(home, tmp_path, 0)) is is_later


def test_a_size_that_is_none_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_FLINK", "{taskmanager.memory.task.heap.size: much}")
    monkeypatch.setattr(cluster, "_link_jars", lambda _: None)

    with pytest.raises(SetupFailed, match=r"task\.heap\.size: expected a size like 512mb, came 'much'"):
        cluster.prepare(Home(tmp_path), {"jobmanager": 1, "rest": 2})


@pytest.mark.parametrize("text", ["rocksdb", "[1]", "{a: ", ""])
def test_what_is_no_mapping_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_FLINK", text)

    with pytest.raises(SetupFailed, match="FLYBALL_FLINK: expected a YAML mapping"):
        cluster.asked_settings()


def test_options_of_ones_own_come_last_so_that_they_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_PARALLELISM", "4")
    monkeypatch.setenv("FLYBALL_JAVA_OPTIONS", "-Xmx99m -Dsaid='two words'")
    monkeypatch.setattr(cluster, "_link_jars", lambda _: None)
    home, java = Home(tmp_path), java_home()
    cluster.prepare(home, {"jobmanager": 1, "rest": 2})

    for command in (broker.command(home, java), cluster.taskmanager_command(home, java, 0)):
        assert [option for option in command if option.startswith("-Xmx")][-1] == "-Xmx99m"
        assert "-Dsaid=two words" in command[: command.index("-cp")]


def test_an_open_quote_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_JAVA_OPTIONS", "-Dsaid='two words")
    monkeypatch.setattr(cluster, "_link_jars", lambda _: None)

    with pytest.raises(SetupFailed, match="FLYBALL_JAVA_OPTIONS: expected JVM options"):
        cluster.prepare(Home(tmp_path), {"jobmanager": 1, "rest": 2})


def test_the_help_of_bench_lists_every_measurement() -> None:
    group = typer.main.get_command(cli.app)
    told = next(option.help for option in group.commands["bench"].params if option.name == "only")

    assert set(told.split(": ")[1].split(", ")) == set(plans())
