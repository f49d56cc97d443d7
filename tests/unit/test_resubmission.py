"""Jobs lost with the JobManager are submitted as they were planned, from their newest checkpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from contracts.errors import JobFailed
from jobs.settings import LATEST
from ops.checkpoints import latest_checkpoints
from ops.home import Home
from ops.submission import Resubmission, want
from tests.flink_stand_in import job_id, write_state

DOMAIN = "machines"
JOBS = ("context", "propose", "govern")
OLD_ID = "00112233445566778899aabbccddeeff"
LAST_ID = job_id(7)  # it was submitted again before


class Rest(BaseHTTPRequestHandler):
    """What a JobManager's REST port does with a job: it takes it, or says why not."""

    taken: list[bytes] = []
    answer = 202

    def do_POST(self) -> None:
        self.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.answer)
        self.end_headers()
        self.wfile.write(b'{"errors": ["Caused by: no such savepoint"]}' if self.answer >= 400 else b"{}")

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"jobs": []}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def rest() -> Iterator[HTTPServer]:
    Rest.taken, Rest.answer = [], 202
    server = HTTPServer(("127.0.0.1", 0), Rest)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, rest: HTTPServer) -> Home:
    """A home whose three jobs have a plan each, and two checkpoints."""
    home = Home(tmp_path)
    for job in JOBS:
        plans = home.run / "flink" / "plans" / f"{DOMAIN}.{job}"
        plans.mkdir(parents=True)
        (plans / OLD_ID).write_bytes(b"before" + bytes.fromhex(OLD_ID) + b"behind " + job.encode())
        for number in (1, 2):
            checkpoint(home, job, number)
        operators = home.run / "flink" / "checkpoints" / f"{DOMAIN}.{job}" / "operators"
        operators.mkdir()
        (operators / f"{OLD_ID}.json").write_text(f'["what {job} keeps"]')
    home.write_state({"ports": {"rest": rest.server_address[1]}})
    want(home, DOMAIN, [], dict.fromkeys(JOBS, "flyball_1"))
    return home


def checkpoint(home: Home, job: str, number: int) -> Path:
    return write_state(home.run / "flink" / "checkpoints" / f"{DOMAIN}.{job}" / LAST_ID / f"chk-{number}", number)


def test_each_job_is_posted_once_under_a_new_id_when_it_is_submitted_again(home: Home) -> None:
    ids = Resubmission(home, DOMAIN).go().wait()
    assert set(ids) == set(JOBS) and len({*ids.values(), OLD_ID}) == 4
    for job in JOBS:
        (body,) = [body for body in Rest.taken if b"behind " + job.encode() in body]
        assert bytes.fromhex(ids[job]) in body and bytes.fromhex(OLD_ID) not in body


def test_what_its_state_means_is_known_under_the_new_id_too(home: Home) -> None:
    ids = Resubmission(home, DOMAIN).go().wait()
    for job in JOBS:
        noted = home.run / "flink" / "checkpoints" / f"{DOMAIN}.{job}" / "operators" / f"{ids[job]}.json"
        assert noted.read_text() == f'["what {job} keeps"]'


def test_a_job_that_is_being_upgraded_is_left_alone(home: Home) -> None:
    want(home, DOMAIN, [], {"context": "flyball_1", "propose": "flyball_1"})
    assert set(Resubmission(home, DOMAIN).go().wait()) == {"context", "propose"}
    assert not any(b"behind govern" in body for body in Rest.taken)


def test_it_goes_on_from_the_newest_checkpoint_there_is_when_it_is_submitted(home: Home) -> None:
    lost = Resubmission(home, DOMAIN)
    newest = checkpoint(home, "govern", 3)
    lost.go().wait()
    folder = home.run / "flink" / "checkpoints"
    assert (folder / f"{DOMAIN}.govern" / LATEST).resolve() == newest.resolve()
    assert (folder / f"{DOMAIN}.context" / LATEST).resolve().name == "chk-2"
    assert latest_checkpoints(home, DOMAIN)["govern"] == newest.as_uri()


def test_the_submission_before_the_last_one_is_forgotten(home: Home) -> None:
    """But not what its operators mean: that is copied for the next one too."""
    folder = home.run / "flink" / "checkpoints" / f"{DOMAIN}.govern"
    write_state(folder / OLD_ID / "chk-0", 0)
    Resubmission(home, DOMAIN).go().wait()
    again = Resubmission(home, DOMAIN).go().wait()
    assert not (folder / OLD_ID).exists() and (folder / LAST_ID).exists()
    assert (folder / "operators" / f"{again['govern']}.json").exists()


def test_nothing_is_forgotten_when_the_jobmanager_refuses(home: Home) -> None:
    Rest.answer = 500
    old = write_state(home.run / "flink" / "checkpoints" / f"{DOMAIN}.govern" / OLD_ID / "chk-0", 0)
    with pytest.raises(JobFailed):
        Resubmission(home, DOMAIN).go().wait()
    assert old.exists()


@pytest.mark.parametrize("missing", ["plans", "checkpoints"])
def test_a_client_is_needed_when_a_job_has_no_plan_or_no_checkpoint(home: Home, missing: str) -> None:
    folder = home.run / "flink" / missing / f"{DOMAIN}.govern"
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"machines\.govern"):
        Resubmission(home, DOMAIN)


def test_the_cause_is_told_when_the_jobmanager_refuses(home: Home) -> None:
    Rest.answer = 500
    with pytest.raises(JobFailed, match="no such savepoint"):
        Resubmission(home, DOMAIN).go().wait()


def test_a_plan_is_refused_when_the_job_id_is_not_in_it(home: Home) -> None:
    (home.run / "flink" / "plans" / f"{DOMAIN}.govern" / OLD_ID).write_bytes(b"something else")
    with pytest.raises(JobFailed, match="expected the job id"):
        Resubmission(home, DOMAIN).go().wait()
    assert len(Rest.taken) == 2
