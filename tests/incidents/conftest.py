"""`incidents` on an instance of its own: four jobs, a model server, and clocks that lie years apart."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from ops import instance as embedded
from ops import run as runner
from ops.home import Home
from tests.loop import Loop


@pytest.fixture(scope="package")
def incidents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """`incidents` as `./flyball up` makes it, with job `reason` and a scripted model server."""
    home = Home(tmp_path_factory.mktemp("incidents"))
    runner.bring_up(home, "incidents", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid(), seed=2)
    loop = Loop(home, "incidents")
    try:
        yield loop
    finally:
        loop.close()
        embedded.stop(home)
