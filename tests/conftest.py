"""One embedded instance for all tests that need one, in a home of its own, started beside the others.

`tests/unit` and `tests/contract` need no process. Most of `tests/flink` and `tests/e2e` share one broker and one
cluster, which start in the background while the quick tests run and end with the last test that needs them. Behind
come the tests that start an instance of their own: they have the cores to themselves. Every test has subjects of its
own, so tests do not see each other.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from ops import cluster, code_versions, flink_jobs, kafka, shipped
from ops import instance as embedded
from ops import run as runner
from ops.home import CHECKOUT, Home
from ops.submission import client_environment
from tests.loop import Loop, Said

# What a developer's shell may hold must not lead tests to another broker or other settings.
for _name in [name for name in os.environ if name.startswith("FLYBALL_")]:
    if _name not in ("FLYBALL_PYTHON", "FLYBALL_JAVA_HOME"):
        del os.environ[_name]
# Instances of a minute: a fifth of what ran was the optimising compiler, for code that soon ends.
os.environ["FLYBALL_JAVA_OPTIONS"] = "-XX:TieredStopAtLevel=1"
os.environ["FLYBALL_SEAL_EVERY_S"] = "2"  # or tests would wait for heads
os.environ["FLYBALL_RECOVERY_INTERVAL_MS"] = "1000"  # or they would wait for offsets, which are committed with a checkpoint
os.environ["FLYBALL_MODEL_SERVER"] = "{latency_ms: 200}"

logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it tells of every slow moment and every stop

WITH_PROCESSES = ("flink", "e2e", "secure", "incidents")
FOLDERS = ("unit", "contract", "fuzz", *WITH_PROCESSES)


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(CHECKOUT / "tests").parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, then those of the shared instance; tests in the last four folders carry the mark of their folder."""
    items.sort(key=lambda item: (_folder(item) in WITH_PROCESSES, not _is_shared(item), _place(item)))
    for item in items:
        if _folder(item) in WITH_PROCESSES:
            item.add_marker(_folder(item))


def _place(item: pytest.Item) -> int:
    return FOLDERS.index(_folder(item)) if _folder(item) in FOLDERS else 0


def _is_shared(item: pytest.Item) -> bool:
    return "instance" in getattr(item, "fixturenames", ())


class _Step:
    """Something being brought up on a thread of its own, after another step."""

    def __init__(self, work: Callable[[], object], after: _Step | None = None) -> None:
        self._work, self._after = work, after
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after.wait()
            self._work()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until it is up; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error


@dataclass
class _Started:
    """What this session has begun to bring up."""

    home: Home
    steps: dict[str, _Step]
    loops: list[Loop]

    def end(self) -> None:
        while self.loops:
            self.loops.pop().close()
        embedded.stop(self.home)


_STARTED: pytest.StashKey[_Started] = pytest.StashKey()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start now what a chosen test will ask for."""
    wants = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if "instance" not in wants or session.config.option.collectonly:
        return
    home = Home(session.config._tmp_path_factory.mktemp("home"))  # type: ignore[attr-defined]
    # Before there are threads: CPython 3.11's ast.parse fails (SystemError, recursion depth mismatch) when a callback
    # of the garbage collector, as Hypothesis has one, lets another thread parse meanwhile.
    code_versions.kept(home)

    def start() -> None:
        embedded.start(home, fresh=True, while_pid=os.getpid())
        if "machines" in wants:
            runner.bring_up(home, "machines", is_fresh=True, console=Console(quiet=True))
        else:
            embedded.wait_ready(home)

    steps = {"instance": _Step(start)}
    if "payments" in wants:
        steps["payments"] = _Step(lambda: bring_up_by_hand(home, "payments"), steps["instance"])
    session.config.stash[_STARTED] = _Started(home, steps, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    started = session.config.stash.get(_STARTED, None)
    if started is not None:
        started.end()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The shared instance ends with the last test that needs it."""
    if _is_shared(item) and nextitem is not None and not _is_shared(nextitem):
        item.config.stash[_STARTED].end()


@pytest.fixture(scope="session")
def instance(request: pytest.FixtureRequest) -> Home:
    """The home of the running instance."""
    started = request.config.stash[_STARTED]
    started.steps["instance"].wait()
    return started.home


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest, instance: Home) -> Loop:
    """`machines` with its topics, policies, model, jobs and actuator, as `./flyball up` makes it."""
    return _loop(request, instance, "machines")


@pytest.fixture(scope="session")
def payments(request: pytest.FixtureRequest, instance: Home) -> Loop:
    """`payments`, whose jobs were submitted by hand with `flink run`, as on a cluster of one's own."""
    request.config.stash[_STARTED].steps["payments"].wait()
    return _loop(request, instance, "payments")


def _loop(request: pytest.FixtureRequest, instance: Home, domain: str) -> Loop:
    loop = Loop(instance, domain)
    request.config.stash[_STARTED].loops.append(loop)
    return loop


def bring_up_by_hand(home: Home, domain: str) -> None:
    """What `./flyball up` does, but `flink run -py jobs/<job>.py -- --domain <domain>` for each job.

    Its `govern` runs as two subtasks, and from a copy of the code, as after an upgrade by hand.
    """
    bootstrap = str(home.read_state()["bootstrap_servers"])
    now_ms = int(time.time() * 1000)
    kafka.create_topics(bootstrap, domain)
    shipped.publish_new(bootstrap, domain, shipped.load(home, domain), now_ms=now_ms)
    environment = client_environment(home)
    copy = code_versions.kept(home).path
    del environment["FLYBALL_REST"]  # the client finds the cluster in FLINK_CONF_DIR
    clients = {
        job: subprocess.Popen(
            [
                str(cluster.FLINK / "bin" / "flink"), "run", "-py",
                str((copy if job == "govern" else CHECKOUT) / "jobs" / f"{job}.py"), "--", "--domain", domain,
                "--parallelism", "2" if job == "govern" else "1",
            ],
            cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for job in flink_jobs.jobs_of(domain)
    }  # fmt: skip
    for job, client in clients.items():
        said, _ = client.communicate(timeout=400)
        (home.logs / f"flink-run-{domain}.{job}.out").write_text(said)
        assert client.returncode == 0, f"flink run -py jobs/{job}.py: {said[-3000:]}"
        assert "Job has been submitted with JobID" in said, said[-3000:]
    flink_jobs.wait_running(home, domain, timeout_s=300)
    embedded.want_actuator(home, domain, seed=1)
    embedded.want_sealer(home, domain)
    embedded.wait_actuator(home, domain)
    embedded.wait_sealer(home, domain)


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
