"""What operators have made when they opened, and Python's garbage collector."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from udfs import heap


class Node:
    """Something that refers to itself: only a collection takes it away."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("ago_s", "is_left"), [(1.0, True), (61.0, False)])
def test_garbage_of_the_last_run_goes_when_a_job_starts_again_after_a_minute(
    monkeypatch: pytest.MonkeyPatch, ago_s: float, is_left: bool
) -> None:
    monkeypatch.setattr(heap, "_collected_at_s", time.monotonic() - ago_s)
    node = Node()
    found = weakref.ref(node)
    heap.settle()
    monkeypatch.setattr(heap, "_collected_at_s", time.monotonic() - ago_s)
    del node
    gc.collect()
    assert found() is not None, "what was there at the start is looked at no more"
    heap.settle()
    assert (found() is not None) is is_left
