"""A job does not start from state that its operators would lose or misread."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import StateRefused
from jobs.operators import Operator, check_state, write_down


def of(**meanings: str) -> dict[str, Operator]:
    return {uid: Operator(uid, meaning) for uid, meaning in meanings.items()}


@pytest.fixture
def checkpoints(tmp_path: Path) -> str:
    """The checkpoints of a job, of which submission j1 has a source and two queries."""
    uri = (tmp_path / "a folder" / "d.context").as_uri()
    write_down(uri, "j1", of(source="", totals="m1", climbing="m2"))
    return uri


@pytest.mark.parametrize("state", ["{}/j1/chk-7", "{}/savepoints/j1/savepoint-ab-cd/", "j1"])
def test_the_same_operators_start_from_their_state_wherever_it_lies(checkpoints: str, state: str) -> None:
    assert check_state(checkpoints, state.format(checkpoints), of(source="", totals="m1", climbing="m2")) == []


def test_what_is_new_begins_without_state(checkpoints: str) -> None:
    assert check_state(checkpoints, "j1", of(source="", totals="m1", climbing="m2", falling="m3")) == ["falling"]


def test_every_query_that_changed_or_is_gone_is_named(checkpoints: str) -> None:
    with pytest.raises(StateRefused) as refused:
        check_state(checkpoints, f"{checkpoints}/j1/chk-7", of(source="", totals="m9"))
    assert str(refused.value) == (
        "state would be lost or misread: 'climbing' is there no more; 'totals', or what feeds it, is another query now"
    )


def test_state_of_which_nothing_is_known_is_left_to_flink(checkpoints: str) -> None:
    assert check_state(checkpoints, f"{checkpoints}/other/chk-1", of(totals="m9")) == []
    assert check_state("s3://bucket/d.context", "s3://bucket/d.context/j1/chk-7", of(totals="m9")) == []
