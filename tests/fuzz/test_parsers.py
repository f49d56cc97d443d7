"""No input makes a parser crash, hang or swell: it is used, or refused on purpose (tests/fuzz/parsers.py)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings

from ops.home import CHECKOUT
from tests.fuzz.inputs import BOMBS, examples, judge
from tests.fuzz.parsers import PARSERS

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
