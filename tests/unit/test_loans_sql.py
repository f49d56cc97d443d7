"""The SQL of loans: what is computed over all cases comes behind everything that needs a case's order."""

from __future__ import annotations

import re

from jobs.context import domain_views
from jobs.settings import ROOT

VIEWS = domain_views(ROOT / "sql" / "loans")


def behind(name: str) -> set[str]:
    """The views that read `name`, themselves or through others."""
    readers = {view for view, query in VIEWS.items() if re.search(rf"\b(FROM|JOIN) {name}\b", query)}
    return readers.union(*(behind(reader) for reader in readers))


def test_no_query_over_a_case_comes_behind_the_one_over_all_cases() -> None:
    over_all = [name for name, query in VIEWS.items() if re.search(r"(WINDOW \w+ AS|OVER) \(ORDER BY", query)]
    assert over_all == ["usual_amounts"]
    mixed = behind("usual_amounts")
    assert {"application_received", "fraud_suspected", "application_analysed", "offer_accepted"} <= mixed
    for name in mixed:
        assert "PARTITION BY" not in VIEWS[name], name


def test_patterns_and_absence_read_nothing_over_all_cases() -> None:
    assert not {"bouncing", "case_turns", "offer_unanswered"} & behind("usual_amounts")
