"""`incidents` on an instance of its own: four jobs, a model server, and clocks that lie years apart."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from contracts.outcome import Outcome
from jobs.settings import load_settings
from ops import instance as embedded
from ops import producers
from ops import run as runner
from ops.home import Home
from tests.loop import Loop


@pytest.fixture(scope="package")
def incidents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """`incidents` as `./flyball up` makes it, with job `reason`, a scripted model server, and a key that signs outcomes."""
    home = Home(tmp_path_factory.mktemp("incidents"))
    keys = tmp_path_factory.mktemp("keys") / "producers.yaml"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLYBALL_PRODUCERS", str(keys))
        made = producers.keygen(load_settings("incidents"), "outcomes", keys.with_suffix(".pem"))
        keys.write_text("keys:\n" + made.entry.replace("types: [", f"types: [{Outcome.event_type}, "))
        runner.bring_up(home, "incidents", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid(), seed=2)
        loop = Loop(home, "incidents")
        try:
            yield loop
        finally:
            loop.close()
            embedded.stop(home)
