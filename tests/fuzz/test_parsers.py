"""No input makes a parser crash, hang or swell: it is used, or refused on purpose (tests/fuzz/parsers.py)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from ops.home import CHECKOUT
from tests.fuzz import inputs
from tests.fuzz.inputs import BOMBS, TookTooLong, examples, judge
from tests.fuzz.parsers import PARSERS, Parser

# The same examples every time: a failure here is one everywhere.
DETERMINISTIC = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", PARSERS)
def test_an_input_is_used_or_refused_whatever_is_done_to_it(name: str) -> None:
    parser = PARSERS[name]

    @DETERMINISTIC
    @given(examples(parser))
    def holds(value: bytes) -> None:
        judge(parser, value)

    holds()


@pytest.fixture(scope="module")
def bombed() -> dict[str, str]:
    """Every bomb on every parser, in a process of its own with little memory and time; what went wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs"], cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"the process died over {done.stderr[-600:]}"
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_no_input_that_is_made_to_hurt_hurts(bombed: dict[str, str]) -> None:
    assert bombed == {}
    assert len(BOMBS) > 30


def never_ending(_: bytes) -> object:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


@pytest.mark.parametrize("read", [never_ending, lambda _: time.sleep(60)])
def test_a_parser_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, read: Callable[[bytes], object]) -> None:
    monkeypatch.setattr(inputs, "MAX_WALL_S", 0.1)
    with pytest.raises(TookTooLong):
        judge(Parser("slow", read, ()), b"")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_a_parser_that_swells_is_found_however_much_was_taken_before() -> None:
    for _ in range(2):
        with pytest.raises(AssertionError, match="MiB"):
            judge(Parser("large", lambda _: len(b"x" * ((inputs.MAX_MIB + 8) << 20)), ()), b"")
