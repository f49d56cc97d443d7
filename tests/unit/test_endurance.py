"""What the load measurements count with: facts matched with decisions, and slopes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.endurance import Matches, _slopes, slope


def fact(name: str, subject: str = "soak-1") -> dict[str, Any]:
    return {"id": name, "subject": subject}


def decision(about: str, name: str = "00000000000000aa") -> dict[str, Any]:
    return {"id": name, "correlationid": about}


def test_a_fact_is_decided_whichever_of_both_is_read_first() -> None:
    seen = Matches()
    seen.fact(fact("f1"), 1000)
    seen.decision(decision("f1", "00000000000000a1"), 1040.0)
    seen.decision(decision("f2", "00000000000000a2"), 1070.0)
    assert (seen.facts, seen.decided, seen.open) == (1, 1, 0)

    seen.fact(fact("f2"), 1010)

    assert (seen.facts, seen.decided, seen.open) == (2, 2, 0)
    assert seen.taken == {"soak": [(1000, 40), (1010, 60)]}


def test_a_fact_without_decision_stays_open_and_a_decision_that_comes_twice_is_a_repeat() -> None:
    seen = Matches()
    for name in ("f1", "f2"):
        seen.fact(fact(name), 1000)
    seen.decision(decision("f1"), 1040.0)
    seen.decision(decision("f1"), 1090.0)

    assert (seen.open, seen.decided, seen.repeated) == (1, 1, 1)


def test_latencies_are_told_apart_by_the_name_of_the_load() -> None:
    seen = Matches()
    for number, (subject, took) in enumerate([("skewed-7", 10), ("hot.skewed-0", 500), ("skewed-8", 20)]):
        seen.fact(fact(f"f{number}", subject), 0)
        seen.decision(decision(f"f{number}", f"{number:016x}"), took)

    assert seen.told("skewed", "others_") == {"others_p50_ms": 10.0, "others_p99_ms": 20.0}
    assert seen.told("hot.skewed") == {"p50_ms": 500.0, "p99_ms": 500.0}
    assert seen.told("never") == {"p50_ms": None, "p99_ms": None}


def test_slopes_are_an_hours_and_of_what_follows_the_first_third() -> None:
    # A process that takes 60 MiB while it warms up, then one MiB a minute; another that keeps what it has.
    samples = [
        {"at_s": at * 60.0, "memory_mib": {"a": 100.0 + at + min(at, 3) * 20, "b": 50.0}, "state_mib": {"j": 7.0}}
        for at in range(10)
    ]
    minutes = [{"minute": minute, "p50_ms": 40.0, "p99_ms": 90.0 + minute} for minute in range(9)]

    found = _slopes(samples, minutes)

    assert found["memory_mib_per_h"] == pytest.approx(60.0)
    assert found["memory_mib_per_h_by_part"] == {"a": pytest.approx(60.0), "b": pytest.approx(0.0)}
    assert found["state_mib_per_h"] == pytest.approx(0.0)
    assert (found["p50_ms_per_h"], found["p99_ms_per_h"]) == (pytest.approx(0.0), pytest.approx(60.0))


def test_one_place_has_no_slope() -> None:
    assert slope([1.0, 1.0], [2.0, 3.0]) is None
