"""What of Flink the commands see: its REST API, as far as they ask it, and the files of its checkpoints."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ops.home import Home


def write_state(place: Path, number: int) -> Path:
    """A complete checkpoint or savepoint: its metadata begin as Flink 2.2 begins them."""
    place.mkdir(parents=True)
    (place / "_metadata").write_bytes(struct.pack(">IIq", 0x4960672D, 6, number) + b"and so on")
    return place


def job_id(number: int) -> str:
    return f"{number:032x}"


@dataclass
class Job:
    name: str
    state: str = "RUNNING"
    completed: int = 1


@dataclass
class Flink:
    """A JobManager with jobs, by id in the order of their start.

    `while_stopping`: what happens at each question after a savepoint, before the one that finds it complete. None gives
    no answer at all.
    """

    home: Home
    jobs: dict[str, Job] = field(default_factory=dict)
    while_stopping: list[Callable[[], Any] | None] = field(default_factory=list)
    loses_its_answer: bool = False
    savepoints: dict[str, Path] = field(default_factory=dict)

    def start(self, name: str, state: str = "RUNNING", completed: int = 1) -> str:
        new = job_id(len(self.jobs) + 1)
        self.jobs[new] = Job(name, state, completed)
        return new

    def running(self, name: str) -> list[str]:
        return [one for one, job in self.jobs.items() if job.name == name and job.state == "RUNNING"]

    def get(self, path: str) -> Any:
        """None: no answer; an int: this status."""
        match path.strip("/").split("/"):
            case ["overview"]:
                return {"slots-available": 1, "taskmanagers": 1}
            case ["jobs", "overview"]:
                numbered = enumerate(self.jobs.items())
                return {"jobs": [{"jid": one, "name": j.name, "state": j.state, "start-time": n} for n, (one, j) in numbered]}
            case ["jobs", one, "checkpoints"]:
                return {"counts": {"completed": self.jobs[one].completed, "restored": 0}}
            case ["jobs", one, "savepoints", trigger]:
                return self._savepoint(one, trigger)
            case ["jobs", _, "exceptions"]:
                return {}
            case ["jobs", _, "metrics"]:
                return []
            case ["jobs", one]:
                return {"vertices": [{"status": self.jobs[one].state}]}
        return 404

    def _savepoint(self, one: str, trigger: str) -> Any:
        if self.while_stopping:
            happens = self.while_stopping.pop(0)
            answer = None if happens is None else happens()
            return answer if answer is not None or happens is None else {"status": {"id": "IN_PROGRESS"}}
        place = self.savepoints.get(trigger)
        if place is None:
            return 404
        self.jobs[one].state = "FINISHED"
        if not place.exists():
            write_state(place, 100)
        return {"status": {"id": "COMPLETED"}, "operation": {"location": f"file:{place}"}}

    def post(self, path: str, asked: dict[str, Any]) -> Any:
        self.savepoints[asked["triggerId"]] = Path(urlsplit(asked["targetDirectory"]).path) / "savepoint-1"
        return None if self.loses_its_answer else {"request-id": asked["triggerId"]}

    def patch(self, path: str) -> Any:
        self.jobs[path.split("/")[2]].state = "CANCELED"
        return {}


@contextmanager
def flink(home: Home) -> Iterator[Flink]:
    """A stand-in that serves, where the state of `home` says."""
    stand_in = Flink(home)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(stand_in.get(urlsplit(self.path).path))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(stand_in.post(self.path, json.loads(content)))

        def do_PATCH(self) -> None:
            self._answer(stand_in.patch(urlsplit(self.path).path))

        def _answer(self, answer: Any) -> None:
            if answer is None:
                return  # the connection is closed
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    home.write_state({"ports": {"rest": server.server_address[1]}})
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
