"""One embedded instance for all tests that need one, in a home of its own, started beside the others.

`tests/unit` and `tests/contract` need no process. `tests/flink` and `tests/e2e` share one broker
and one cluster, which start in the background while the quick tests run. Every test has subjects of
its own, so tests do not see each other.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from ops import instance as embedded
from ops import run as runner
from ops.home import CHECKOUT, Home
from tests.loop import Loop

# What a developer's shell may hold must not lead tests to another broker or other settings.
for _name in [name for name in os.environ if name.startswith("FLYBALL_")]:
    if _name not in ("FLYBALL_PYTHON", "FLYBALL_JAVA_HOME"):
        del os.environ[_name]

FOLDERS = ("unit", "contract", "flink", "e2e")


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(CHECKOUT / "tests").parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first; tests in flink/ and e2e/ carry the mark of their folder."""
    items.sort(key=lambda item: FOLDERS.index(_folder(item)) if _folder(item) in FOLDERS else 0)
    for item in items:
        if _folder(item) in ("flink", "e2e"):
            item.add_marker(_folder(item))


@dataclass
class _Start:
    """An instance being started on a thread of its own."""

    home: Home
    thread: threading.Thread
    errors: list[BaseException]


_START: pytest.StashKey[_Start] = pytest.StashKey()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the instance now when a chosen test will ask for it."""
    wants = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if "instance" not in wants or session.config.option.collectonly:
        return
    home = Home(session.config._tmp_path_factory.mktemp("home"))  # type: ignore[attr-defined]
    errors: list[BaseException] = []

    def start() -> None:
        try:
            embedded.start(home, fresh=True, while_pid=os.getpid())
            if "machines" in wants:
                runner.bring_up(home, "machines", is_fresh=True, console=Console(quiet=True))
            else:
                embedded.wait_ready(home)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=start, name="start-instance", daemon=True)
    session.config.stash[_START] = _Start(home, thread, errors)
    thread.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    started = session.config.stash.get(_START, None)
    if started is not None:
        started.thread.join()
        embedded.stop(started.home)


@pytest.fixture(scope="session")
def instance(request: pytest.FixtureRequest) -> Home:
    """The home of the running instance. It runs until the session ends."""
    started = request.config.stash[_START]
    started.thread.join()
    if started.errors:
        raise started.errors[0]
    return started.home


@pytest.fixture(scope="session")
def machines(instance: Home) -> Iterator[Loop]:
    """`machines` with its topics, policies, model, jobs and actuator, as `./flyball up` makes it."""
    loop = Loop(instance, "machines")
    yield loop
    loop.close()


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def flyball(instance: Home) -> Callable[..., Said]:
    """Runs `./flyball ...` against the shared instance."""

    def call(*arguments: str | Path, stdin: str | bytes = b"", timeout_s: float = 120) -> Said:
        done = subprocess.run(
            [str(CHECKOUT / "flyball"), *map(str, arguments)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True, cwd=CHECKOUT, timeout=timeout_s, check=False,
            env={**os.environ, "FLYBALL_HOME": str(instance.path), "COLUMNS": "200"},
        )  # fmt: skip
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call
