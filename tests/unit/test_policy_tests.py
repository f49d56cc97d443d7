"""`policy test`: the shipped policies do what their tables say, and a wrong table says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SetupFailed
from ops.policy_tests import run


@pytest.mark.parametrize("domain", ["incidents", "loans", "machines", "payments"])
def test_the_shipped_policies_do_what_their_table_says(domain: str) -> None:
    results = run(domain)
    assert len(results) >= 4
    assert [(r.case, r.problem) for r in results if r.problem is not None] == []


@pytest.mark.parametrize(
    ("given", "expect", "told"),
    [
        ("[{}]", "[{verdict: deny}]", "expected verdict 'deny', came 'allow' (cooling@1"),
        ("[{}]", "[]", "expected 1 rows in expect, one a decision or note, came 0"),
        ("[{colour: red}]", "[{}]", "came ['colour']"),
        ("[{action: launch}]", "[{}]", "no action 'launch'"),
        ("[{outcome_of: 0}]", "[{}]", "IndexError"),
        ("[{}]", "[{mood: good}]", "came ['mood']"),
        ("[{at: x}]", "[{}]", "at: expected a number of seconds, came 'x'"),
        ("[{answer_to: 0}]", "[{}]", "expected 'by' in a row, and there is none"),
    ],
)
def test_a_case_fails_with_what_was_expected_and_what_came(tmp_path: Path, given: str, expect: str, told: str) -> None:
    table = tmp_path / "table.yaml"
    table.write_text(
        "defaults: {agent: heat-rule, action: activate_cooling, situation: machines.reading_scored,"
        " parameters: {duration_s: 60}, features: {readings_seen: 5000}}\n"
        f"cases: [{{case: one, given: {given}, expect: {expect}}}]\n"
    )
    (result,) = run("machines", table)
    assert told in (result.problem or "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{defaults: [], cases: [{case: one, given: [], expect: []}]}", r"expected 'defaults' to be a mapping, came \[\]"),
        ("- 1", "expected 'cases'"),
        ("cases: []", "a list of at least one"),
        ("{defaults: 3, cases: [{case: one, given: [], expect: []}]}", "expected 'defaults' to be a mapping, came 3"),
        ("{people: [ada], cases: [{case: one, given: [], expect: []}]}", r"expected 'people' to be a mapping, came \['ada'\]"),
        ("{people: {ada: 3}, cases: [{case: one, given: [], expect: []}]}", "people: expected 'ada' to be a mapping, came 3"),
        ("cases: [{case: one, given: [], expect: [], people: 3}]", "case 'one': expected 'people' to be a mapping, came 3"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, told: str) -> None:
    table = tmp_path / "table.yaml"
    table.write_text(f"{text}\n")
    with pytest.raises(SetupFailed, match=told):
        run("machines", table)


@pytest.mark.parametrize("roles", ["3", "[3]", "text"])
def test_a_case_with_people_that_are_none_fails(tmp_path: Path, roles: str) -> None:
    table = tmp_path / "table.yaml"
    table.write_text(f"cases: [{{case: one, given: [], expect: [], people: {{ada: {{roles: {roles}}}}}}}]\n")
    (result,) = run("machines", table)
    assert "not a case" in (result.problem or "")


@pytest.mark.parametrize("name", ["given", "expect"])
@pytest.mark.parametrize("rows", ["{}", "{verdict: deny}", "text", "5", "null", "[5]", "[null]", "['']", "[[]]"])
def test_a_table_is_refused_when_the_rows_of_a_case_are_no_list_of_mappings(tmp_path: Path, name: str, rows: str) -> None:
    case = {"case": "one", "given": "[]", "expect": "[]"} | {name: rows}
    table = tmp_path / "table.yaml"
    table.write_text(f"cases: [{{{', '.join(f'{key}: {value}' for key, value in case.items())}}}]\n")
    with pytest.raises(SetupFailed, match=f"case 'one': expected '{name}' to be a list of mappings, came"):
        run("machines", table)
