"""SQL files into statements, and what generated SQL says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.domain import load_domain
from contracts.envelope import derive_id
from contracts.errors import SetupFailed
from jobs.context import domain_views, sinks, sources, sql_statements
from jobs.settings import ROOT, load_settings
from jobs.tables import interval

STATEMENTS = {
    "nothing": ("", []),
    "only a comment": ("-- SELECT 1;\n", []),
    "one": ("SELECT 1;\n", ["SELECT 1"]),
    "no semicolon at the end": ("SELECT 1;\nSELECT 2", ["SELECT 1", "SELECT 2"]),
    "comment with semicolon": ("-- first; second;\nSELECT 1;\n  -- third;\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
    "semicolon inside a line": ("SELECT 'a;b';\n", ["SELECT 'a;b'"]),
    "several lines": ("CREATE VIEW v AS\nSELECT\n    1;\n\n\nSELECT 2; \n", ["CREATE VIEW v AS\nSELECT\n    1", "SELECT 2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_file_is_split_at_semicolons_that_end_a_line(name: str) -> None:
    text, wanted = STATEMENTS[name]
    assert sql_statements(text) == wanted


def test_views_are_read_in_order_of_files_and_those_for_people_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "20_b.sql").write_text("CREATE VIEW c AS\nSELECT 2;")
    (tmp_path / "10_a.sql").write_text("-- first\nCREATE VIEW `a` AS SELECT 1;\ncreate view b as SELECT 11;")
    (tmp_path / "views.sql").write_text("CREATE VIEW d AS SELECT 3;")
    assert list(domain_views(tmp_path).items()) == [("a", "SELECT 1"), ("b", "SELECT 11"), ("c", "SELECT 2")]


def test_a_domain_without_sql_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="expected SQL files"):
        domain_views(tmp_path)


def test_a_statement_that_makes_no_view_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "10_a.sql").write_text("DROP TABLE facts;")
    with pytest.raises(SetupFailed, match=r"10_a\.sql: expected only .*came 'DROP TABLE facts'"):
        domain_views(tmp_path)


@pytest.mark.parametrize("domain", ["incidents", "loans", "machines", "payments"])
def test_every_situation_of_a_domain_has_a_view_of_its_name(domain: str) -> None:
    views = domain_views(ROOT / "sql" / domain)
    assert {kind.split(".", 1)[1] for kind in load_domain(domain).situations} <= set(views)


def test_each_situation_and_control_topic_has_a_sink() -> None:
    settings = load_settings("machines")
    assert set(sinks(settings)) >= {"machines_reading_scored_sink", "refused_sink"}
    (source,) = sources(settings).values()
    assert "'machines.facts;machines.outcomes'" in source
    assert "read_committed" in source


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0, "INTERVAL '0 00:00:00' DAY TO SECOND"),
        (59, "INTERVAL '0 00:00:59' DAY TO SECOND"),
        (3_661, "INTERVAL '0 01:01:01' DAY TO SECOND"),
        (90 * 86_400 + 1, "INTERVAL '90 00:00:01' DAY TO SECOND"),
    ],
)
def test_an_interval_says_days_and_time(seconds: int, wanted: str) -> None:
    assert interval(seconds) == wanted


def test_derived_ids_are_stable() -> None:
    """SQL makes the same ids (tests/flink): changing this changes every id in every log."""
    assert derive_id("cause", "stage", "producer", 1) == "5eac4e675d6b58dfe5efa29c3f0d9b4e"


@pytest.mark.parametrize("domain", sorted(path.parent.name for path in (ROOT / "conf").glob("*/domain.yaml")))
def test_a_domain_whose_views_go_by_another_key_than_the_subject_runs_context_as_one_subtask(domain: str) -> None:
    # By another key a subject's rows take several ways and may overtake each other (docs/decisions/0026).
    queries = domain_views(ROOT / "sql" / domain).values()
    keys = {key.strip(" ()\n") for query in queries for key in re.findall(r"PARTITION BY ([^\n]*?)(?: ORDER BY|,? DESCRIPTOR|\n)", query)}
    assert keys, "every domain has a view with a key"
    assert (load_settings(domain).context_parallelism == 1) == (keys != {"subject"})
