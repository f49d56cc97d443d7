"""What an operator's description tells about the columns it passes on."""

from __future__ import annotations

import pytest

from jobs.chaining import _columns_passed, split_list

LISTS = {
    "a, b": ["a", "b"],
    "a": ["a"],
    "a, F(b, c) AS d, e": ["a", "F(b, c) AS d", "e"],
    "a, 'x, (y' AS b, c": ["a", "'x, (y' AS b", "c"],
    "CASE((a > 1), b, null:DOUBLE) AS c, d": ["CASE((a > 1), b, null:DOUBLE) AS c", "d"],
}


@pytest.mark.parametrize("listed", LISTS)
def test_a_list_is_split_at_commas_outside_brackets_and_quotes(listed: str) -> None:
    assert split_list(listed) == LISTS[listed]


def test_a_column_under_another_name_is_not_passed_on() -> None:
    told = "[7]:Calc(select=[terminal_id AS subject, account, (a + b) AS c], where=[(account = 'x]')])"
    assert _columns_passed(told) == {"terminal_id AS subject", "account", "(a + b) AS c"}


def test_an_unknown_operator_passes_nothing_on() -> None:
    assert _columns_passed("[9]:Join(joinType=[InnerJoin], where=[(a = b)], select=[a, b])") == set()
