"""The supervisor: one background process that keeps the embedded parts alive.

It starts the broker, the JobManager and the TaskManagers (and the actuators and sealers asked for), then those that
stand by, submits jobs again from their last checkpoints after a JobManager died (a standalone one forgets them), writes what
it knows to `run/instance.json`, and brings a dead process back at most `MAX_RESTARTS` times in
`RESTART_WINDOW_S`. After that it records which process died and why, and stops everything.
Flink's own scripts do none of this, and cost a JVM start each to compute memory sizes.

Run as `python -m ops.supervisor`, by `ops.instance.start`; ends on SIGTERM, or when the process
given with --while-pid is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from contracts.errors import JobFailed
from ops import broker, cluster, flink_jobs
from ops.home import CHECKOUT, Home
from ops.ports import is_listening
from ops.setup import java_home
from ops.submission import Resubmission, Submission, submit_lost, wanted

MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
# A JVM that writes its class data at its first end takes some seconds for it.
STOP_PATIENCE_S = 30.0
# Where another TaskManager stands by, the jobs that move there have the cores first.
STANDBY_HEAD_START_S = 15.0
# One of each a domain: `python -m ops.<kind> DOMAIN`, asked for in run/<kind>s/<domain>.json.
SIDE_PROCESSES = ("actuator", "sealer", "model_server")


@dataclass
class Part:
    """One supervised process. `ready` tells when it serves; `command` is asked anew at a restart."""

    name: str
    command: Callable[[], list[str]]
    environment: dict[str, str]
    ready: Callable[[], bool]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    is_ready: bool = False
    revived_after_s: float = 0.0
    ended_at: float | None = None
    restarted_at: deque[float] = field(default_factory=deque)
    restarts: int = 0

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=CHECKOUT,
                start_new_session=True,
            )
        self.is_ready = False
        self.ended_at = None

    def is_due(self) -> bool:
        """Whether it is to be brought back: it ended, which is noted at the first look, and others had their head start."""
        if self.process is not None and self.process.poll() is None:
            return False
        self.is_ready = False
        self.ended_at = self.ended_at or time.monotonic()
        return time.monotonic() >= self.ended_at + self.revived_after_s

    def last_words(self) -> str:
        """Why the process ended, as far as its output and its log file say."""
        said = ""
        for path in (self.log, self.log.with_suffix(".log")):
            try:
                said += "\n".join(path.read_text(errors="replace").splitlines()[-400:])
            except FileNotFoundError:
                continue
        return flink_jobs.last_cause(said)


class Supervisor:
    """Holds the parts of one home. `step` is called a few times a second."""

    def __init__(
        self, home: Home, ports: dict[str, int], taskmanagers: int, *, standby: int = 0, is_secure: bool = False
    ) -> None:
        self.home = home
        self._taskmanagers = taskmanagers
        self._standby = standby  # TaskManagers to start once jobs have their slots
        self.is_secure = is_secure
        self.ports = ports
        self.error: str | None = None
        self.state = "starting"
        self._java = java = java_home()
        self.parts: dict[str, Part] = {}
        self.are_jobs_lost = False
        self.resubmissions: list[Submission | Resubmission] = []
        flink_env = cluster.environment(home, java)
        self._add(
            "broker",
            lambda: broker.command(home, java),
            {},
            lambda: is_listening(ports["kafka"]),
        )
        self._add(
            "jobmanager",
            lambda: cluster.jobmanager_command(home, java),
            flink_env,
            lambda: cluster.answers(ports["rest"]),
        )
        for index in range(taskmanagers):
            self._add_taskmanager(index)

    def _add(
        self,
        name: str,
        command: Callable[[], list[str]],
        environment: dict[str, str],
        ready: Callable[[], bool],
    ) -> None:
        self.parts[name] = Part(name, command, environment, ready, self.home.logs / f"{name}.out")

    def _add_taskmanager(self, index: int) -> Part:
        name = f"taskmanager-{index}"
        self._add(
            name,
            lambda: cluster.taskmanager_command(self.home, self._java, index),
            cluster.environment(self.home, self._java),
            lambda: cluster.taskmanagers_registered(self.ports["rest"]) >= self._taskmanagers,
        )
        return self.parts[name]

    def _start_standby(self) -> None:
        """Beside running jobs: whoever waits for the first decision does not wait for these too."""
        for _ in range(self._standby):
            self._taskmanagers += 1
            self._add_taskmanager(self._taskmanagers - 1).start()
        self._standby = 0
        for part in self.parts.values():
            if part.name.startswith("taskmanager-"):
                part.revived_after_s = STANDBY_HEAD_START_S

    def start(self) -> None:
        for part in self.parts.values():
            if part.name != "broker":
                part.start()
        broker.prepare(self.home, self.ports, is_secure=self.is_secure)  # the first time a JVM of its own: beside the others
        self.parts["broker"].start()
        self.write()

    def _wanted(self) -> dict[str, tuple[str, str, list[str]]]:
        """Name of the part -> kind, domain and extra arguments, as asked for in run/<kind>s/<domain>.json."""
        found = {}
        for kind in SIDE_PROCESSES:
            for path in (self.home.run / f"{kind}s").glob("*.json"):
                try:
                    found[f"{kind}-{path.stem}"] = (kind, path.stem, list(json.loads(path.read_text())))
                except (json.JSONDecodeError, FileNotFoundError):
                    continue
        return found

    def step(self) -> None:
        side = self._wanted()
        for name, (kind, domain, arguments) in side.items():
            if name not in self.parts and self.state == "ready":
                ready_file = self.home.run / f"{kind}s" / f"{domain}.ready"
                command = [sys.executable, "-m", f"ops.{kind}", domain, *arguments]
                self._add(
                    name,
                    lambda command=command: command,  # type: ignore[misc]
                    {"FLYBALL_HOME": str(self.home.path), "PYTHONPATH": str(CHECKOUT)},
                    lambda ready_file=ready_file: ready_file.exists(),  # type: ignore[misc]
                )
                ready_file.unlink(missing_ok=True)
                self.parts[name].start()
        for name in [n for n in self.parts if n.startswith(tuple(f"{kind}-" for kind in SIDE_PROCESSES))]:
            if name not in side:
                stop_process(self.parts.pop(name).process)
        for part in self.parts.values():
            if part.is_due():
                self._revive(part)
            elif not part.is_ready and part.ended_at is None:
                part.is_ready = part.ready()
        self._resubmit()
        if self._standby and self.state == "ready" and wanted(self.home):
            self._start_standby()
        if self.state == "starting" and all(part.is_ready for part in self.parts.values()):
            self.state = "ready"

    def _revive(self, part: Part) -> None:
        now = time.monotonic()
        code = part.process.returncode if part.process else None
        part.restarted_at.append(now)
        while part.restarted_at and now - part.restarted_at[0] > RESTART_WINDOW_S:
            part.restarted_at.popleft()
        if len(part.restarted_at) > MAX_RESTARTS or (self.state == "starting" and part.restarts):
            self.state = "failed"
            self.error = (
                f"{part.name} ended with exit code {code} {len(part.restarted_at)} times within"
                f" {RESTART_WINDOW_S / 60:.0f} minutes: {part.last_words()} (logs: {self.home.logs})"
            )
            return
        part.restarts += 1
        part.start()
        if part.name == "jobmanager":
            self._plan_lost_jobs()

    def _plan_lost_jobs(self) -> None:
        """Jobs are submitted as they were planned; where a plan or a checkpoint is missing, a client plans anew.

        Clients plan while the JobManager starts; those of one that died before are of no use.
        """
        for submission in self.resubmissions:
            submission.cancel()
        self.resubmissions = [client for domain in wanted(self.home) for client in self._lost_jobs(domain)]
        self.are_jobs_lost = True

    def _lost_jobs(self, domain: str) -> list[Submission | Resubmission]:
        try:
            return [Resubmission(self.home, domain)]
        except FileNotFoundError:
            return [*submit_lost(self.home, domain)]

    def _resubmit(self) -> None:
        """Let the clients submit once the cluster and the broker serve; jobs that do not come back are a failure."""
        needed = (part for part in self.parts.values() if not part.name.startswith(SIDE_PROCESSES))
        if self.are_jobs_lost and all(part.is_ready for part in needed):
            self.are_jobs_lost = False
            for submission in self.resubmissions:
                submission.go()
        for submission in [s for s in self.resubmissions if not s.is_going_on()]:
            self.resubmissions.remove(submission)
            try:
                submission.wait()
            except JobFailed as error:
                self.state = "failed"
                self.error = f"jobs lost with the JobManager could not be submitted again: {error}"

    def write(self) -> None:
        self.home.write_state(
            {
                "state": self.state,
                "error": self.error,
                "is_secure": self.is_secure,
                "supervisor_pid": os.getpid(),
                "bootstrap_servers": f"127.0.0.1:{self.ports['kafka']}",
                "rest_url": f"http://127.0.0.1:{self.ports['rest']}",
                "ports": self.ports,
                "processes": {
                    part.name: {
                        "pid": part.process.pid if part.process else None,
                        "is_ready": part.is_ready,
                        "restarts": part.restarts,
                        "log": str(part.log),
                    }
                    for part in self.parts.values()
                },
            }
        )

    def stop(self) -> None:
        """Actuators and Flink first, then the sealers, which seal what those left, then the broker.

        So nobody talks to a closed port.
        """
        order = sorted(
            self.parts.values(),
            key=lambda p: (p.name == "broker", _is_sealer(p), p.name == "jobmanager", p.name),
        )
        for part in order:
            if part.name != "broker" and not _is_sealer(part) and part.process:
                part.process.terminate()
        for part in order:
            stop_process(part.process)


def _is_sealer(part: Part) -> bool:
    return part.name.startswith("sealer-")


def stop_process(process: subprocess.Popen[bytes] | None) -> None:
    """Ask, wait, then insist."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ports", type=json.loads, required=True)
    parser.add_argument("--taskmanagers", type=int, default=1)
    parser.add_argument("--standby", type=int, default=0, help="TaskManagers more, started once jobs run")
    parser.add_argument("--while-pid", type=int)
    parser.add_argument("--secure", action="store_true")
    asked = parser.parse_args()
    supervisor = Supervisor(
        Home(asked.home), asked.ports, asked.taskmanagers, standby=asked.standby, is_secure=asked.secure
    )
    is_stopping = False

    def on_signal(_signum: int, _frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    written: object = None
    try:
        supervisor.start()
        while not is_stopping and supervisor.state != "failed":
            supervisor.step()
            summary = (
                supervisor.state,
                [(p.name, p.process and p.process.pid, p.is_ready) for p in supervisor.parts.values()],
            )
            if summary != written:
                supervisor.write()
                written = summary
            if asked.while_pid and not _exists(asked.while_pid):
                break
            time.sleep(0.1)
    except Exception as error:
        supervisor.state, supervisor.error = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        supervisor.stop()
        if supervisor.state != "failed":
            supervisor.state = "stopped"
        supervisor.write()


if __name__ == "__main__":
    main()
