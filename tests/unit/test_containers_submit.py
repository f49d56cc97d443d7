"""docker/submit.py: a job is submitted once, and goes on from its newest state. No cluster: a stand-in answers for it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from ops.home import CHECKOUT

SCRIPT = CHECKOUT / "docker" / "submit.py"
JOB_ID, OTHER_ID = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"


class Rest(BaseHTTPRequestHandler):
    """What a JobManager tells of its jobs."""

    jobs: list[dict[str, str]] = []

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/jobs/overview" else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"jobs": self.jobs}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def rest() -> Iterator[HTTPServer]:
    Rest.jobs = []
    server = HTTPServer(("127.0.0.1", 0), Rest)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def volume(tmp_path: Path, rest: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume of checkpoints; and the environment of the container, with a `flink` that tells what it is asked."""
    conf, bin = tmp_path / "conf", tmp_path / "bin"
    conf.mkdir()
    (conf / "config.yaml").write_text(f"rest:\n  address: 127.0.0.1\n  port: {rest.server_port}\n")
    bin.mkdir()
    (bin / "flink").write_text('#!/bin/sh\necho "flink $*"\necho "from [$FLYBALL_RESUME_FROM]"\n')
    (bin / "flink").chmod(0o755)
    volume = tmp_path / "checkpoints"
    monkeypatch.delenv("FLINK_CONF_DIR", raising=False)
    monkeypatch.delenv("FLYBALL_RESUME_FROM", raising=False)
    monkeypatch.setenv("FLINK_HOME", str(tmp_path))
    monkeypatch.setenv("FLYBALL_CHECKPOINTS", volume.as_uri())
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return volume


@pytest.fixture(scope="module")
def submit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def state(folder: Path, number: int, *, age_s: int = 0, header: bytes | None = None) -> str:
    """A complete checkpoint or savepoint with Flink's number, last changed so long ago; its URI."""
    folder.mkdir(parents=True)
    metadata = folder / "_metadata"
    metadata.write_bytes((0x4960672D.to_bytes(4) + (4).to_bytes(4) + number.to_bytes(8) if header is None else header) + b"...")
    os.utime(metadata, (1_000_000_000 - age_s, 1_000_000_000 - age_s))
    return folder.as_uri()


def run() -> subprocess.CompletedProcess[str]:
    """As the container does."""
    return subprocess.run(
        [sys.executable, SCRIPT, "machines", "govern"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


def test_a_job_is_not_submitted_when_the_cluster_has_it(volume: Path) -> None:
    state(volume / "machines.govern" / JOB_ID / "chk-7", 7)
    Rest.jobs = [{"name": "machines.govern", "state": "FAILED"}, {"name": "machines.govern", "state": "RESTARTING"}]
    done = run()
    assert (done.returncode, done.stdout) == (0, "machines.govern is RESTARTING already: not submitted again\n")


def test_a_job_goes_on_from_its_newest_state_when_the_cluster_lost_it(volume: Path) -> None:
    Rest.jobs = [{"name": "machines.govern", "state": "CANCELED"}, {"name": "machines.propose", "state": "RUNNING"}]
    newest = state(volume / "machines.govern" / JOB_ID / "chk-7", 7)
    state(volume / "machines.propose" / OTHER_ID / "chk-9", 9)
    done = run()
    assert done.returncode == 0, done.stderr
    _, asked, start = done.stdout.splitlines()
    assert asked == f"flink run --detached --python {CHECKOUT}/jobs/govern.py --domain machines"
    assert start == f"from [{newest}]"


def test_a_job_begins_without_state_only_when_it_has_none(volume: Path) -> None:
    done = run()
    assert done.stdout.splitlines()[-1] == "from []"
    assert "without state" in done.stdout


def test_what_is_named_is_taken_when_something_newer_is_there(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(volume / "machines.govern" / JOB_ID / "chk-7", 7)
    monkeypatch.setenv("FLYBALL_RESUME_FROM", "file:///elsewhere/chk-3")
    assert run().stdout.splitlines()[-1] == "from [file:///elsewhere/chk-3]"


def test_nothing_is_submitted_when_the_cluster_does_not_answer(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "config.yaml").write_text("rest: {address: 127.0.0.1, port: 1}\n")
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert "machines.govern: expected Flink at http://127.0.0.1:1" in done.stderr


def test_nothing_is_submitted_when_checkpoints_cannot_be_looked_up(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_CHECKPOINTS", "s3://bucket/checkpoints")
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert "FLYBALL_RESUME_FROM" in done.stderr


@pytest.mark.parametrize("ended", ["FINISHED", "CANCELED", "FAILED"])
def test_a_job_that_ended_is_none(volume: Path, submit: ModuleType, ended: str) -> None:
    Rest.jobs = [{"name": "machines.govern", "state": ended}]
    assert submit.state_on_cluster(submit.rest_url(), "machines.govern") is None


def test_the_newest_has_the_highest_number_when_the_times_of_files_say_otherwise(tmp_path: Path, submit: ModuleType) -> None:
    folder = tmp_path / "machines.govern"
    state(folder / OTHER_ID / "chk-9", 9, age_s=0)
    newest = state(folder / JOB_ID / "chk-10", 10, age_s=60)
    assert submit.newest_state(folder) == newest


def test_a_savepoint_counts_when_it_is_newer(tmp_path: Path, submit: ModuleType) -> None:
    folder = tmp_path / "machines.govern"
    state(folder / JOB_ID / "chk-10", 10)
    newest = state(folder / "savepoints" / JOB_ID / "savepoint-001122-0123456789ab", 11)
    assert submit.newest_state(folder) == newest


def test_a_savepoint_is_found_where_flink_puts_it_when_not_told(tmp_path: Path, submit: ModuleType) -> None:
    folder = tmp_path / "machines.govern"
    (folder / "operators").mkdir(parents=True)
    (folder / "operators" / f"{JOB_ID}.json").write_text("[]")
    own = state(tmp_path / "savepoints" / "savepoint-001122-0123456789ab", 11)
    state(tmp_path / "savepoints" / "savepoint-ffeedd-0123456789ab", 12)
    assert submit.newest_state(folder) == own


@pytest.mark.parametrize("header", [b"", b"Ig", b"0123456789abcdef"])
def test_what_is_no_complete_checkpoint_is_passed_by(tmp_path: Path, submit: ModuleType, header: bytes) -> None:
    folder = tmp_path / "machines.govern"
    whole = state(folder / JOB_ID / "chk-7", 7)
    state(folder / JOB_ID / "chk-8", 8, header=header)
    (folder / JOB_ID / "chk-9").mkdir()
    assert submit.newest_state(folder) == whole


def test_a_job_does_not_begin_anew_when_none_of_its_checkpoints_is_whole(volume: Path) -> None:
    state(volume / "machines.govern" / JOB_ID / "chk-8", 8, header=b"")
    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: machines.govern:" in done.stderr and "expected a complete checkpoint, came 1" in done.stderr
