"""Start and stop the embedded instance of one home, and say how it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil

from contracts.errors import SetupFailed
from ops import cluster
from ops.home import CHECKOUT, Home
from ops.ports import choose
from ops.setup import fetch_jars
from ops.supervisor import SIDE_PROCESSES

START_PATIENCE_S = 120.0


def _supervisor(home: Home) -> psutil.Process | None:
    pid = home.read_state().get("supervisor_pid")
    if not isinstance(pid, int):
        return None
    try:
        process = psutil.Process(pid)
        command = process.cmdline()
    except psutil.Error:
        return None
    # The pid may be another's by now, another home's supervisor too.
    return process if "ops.supervisor" in command and str(home.path) in command else None


def is_running(home: Home) -> bool:
    return _supervisor(home) is not None and home.read_state().get("state") in ("starting", "ready")


def configured_ports(*, is_secure: bool = False) -> dict[str, int]:
    """FLYBALL_KAFKA_PORT, FLYBALL_REST_PORT, ... ; 0 (the default) lets us choose."""
    found = {}
    for name in ("kafka", "controller", "rest", "jobmanager", *(["internal"] if is_secure else [])):
        text = os.environ.get(f"FLYBALL_{name.upper()}_PORT", "0")
        if not text.isdigit() or int(text) > 65535:
            raise SetupFailed(f"FLYBALL_{name.upper()}_PORT: expected 0..65535, came {text!r}")
        found[name] = int(text)
    return found


def configured_taskmanagers() -> int:
    """FLYBALL_TASKMANAGERS: with as many as jobs, no job's Python waits for another's."""
    return _number("FLYBALL_TASKMANAGERS", default=1, least=1)


def configured_standby() -> int:
    """FLYBALL_STANDBY: so many TaskManagers more, where jobs go on at once when theirs dies."""
    return _number("FLYBALL_STANDBY", default=0, least=0)


def _number(name: str, *, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 16):
        raise SetupFailed(f"{name}: expected {least}..16, came {text!r}")
    return int(text)


def internal_servers(home: Home) -> str:
    """Where a secure broker listens for itself and for whoever sets rights."""
    ports = home.read_state().get("ports")
    return f"127.0.0.1:{ports['internal']}" if isinstance(ports, dict) and "internal" in ports else ""


def bootstrap_servers(home: Home) -> str:
    """The running instance's broker; from here on this process speaks to it as it asks. Raises SetupFailed."""
    if not is_running(home):
        raise SetupFailed(
            f"nothing runs in {home.path}: start it with './flyball up DOMAIN' (or set"
            " FLYBALL_BOOTSTRAP_SERVERS to a broker elsewhere)"
        )
    take_secrets(home)
    return str(home.read_state()["bootstrap_servers"])


def take_secrets(home: Home) -> None:
    """From here on this process speaks to the broker of `home` as that asks (udfs/broker_access.py)."""
    os.environ.update(home.broker_environment())


def start(home: Home, *, fresh: bool, while_pid: int | None = None, secure: bool = False) -> None:
    """Launch the supervisor; returns at once (see wait_ready). `fresh` empties topics and state.

    `secure`: the broker takes TLS and known principals only (ops/access.py); their secrets must be there.
    """
    if is_running(home):
        raise SetupFailed(
            f"an instance already runs in {home.path} (supervisor {home.read_state()['supervisor_pid']});"
            " './flyball down' stops it, './flyball status' shows it"
        )
    fetch_jars(home)
    stop_orphans(home)
    if fresh:
        shutil.rmtree(home.run, ignore_errors=True)
        shutil.rmtree(home.logs, ignore_errors=True)
    shutil.rmtree(home.run / "jobs", ignore_errors=True)
    for kind in SIDE_PROCESSES:
        for stale in (home.run / f"{kind}s").glob("*.[jr]*"):  # requests and ready marks, not memory
            stale.unlink()
    for folder in (home.logs, home.run):  # events, prompts, what was done: for whoever runs it alone
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    ports = choose(configured_ports(is_secure=secure))
    taskmanagers, standby = configured_taskmanagers(), configured_standby()
    cluster.prepare(home, ports, taskmanagers)  # job clients read it before the cluster is up
    arguments = ["--home", str(home.path), "--ports", json.dumps(ports), "--taskmanagers", str(taskmanagers),
                 "--standby", str(standby)]  # fmt: skip
    if while_pid:
        arguments += ["--while-pid", str(while_pid)]
    if secure:
        arguments.append("--secure")
    with (home.logs / "supervisor.out").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.supervisor", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=CHECKOUT,
            env={**os.environ, **home.broker_environment(is_secure=secure), "PYTHONPATH": str(CHECKOUT)},
            start_new_session=True,
        )
    home.write_state(
        {
            "state": "starting",
            "is_secure": secure,
            "ports": ports,
            "supervisor_pid": process.pid,
            "bootstrap_servers": f"127.0.0.1:{ports['kafka']}",
            "rest_url": f"http://127.0.0.1:{ports['rest']}",
        }
    )
    take_secrets(home)


def wait_ready(home: Home) -> dict[str, object]:
    """The state of the instance once every part serves. Raises SetupFailed with the cause otherwise."""
    deadline = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < deadline:
        state = home.read_state()
        if state.get("state") == "ready":
            return state
        if state.get("state") in ("failed", "stopped") or _supervisor(home) is None:
            cause = state.get("error") or (home.logs / "supervisor.out").read_text()[-2000:]
            raise SetupFailed(f"the embedded parts did not start: {cause}")
        time.sleep(0.1)
    raise SetupFailed(
        f"expected broker and cluster within {START_PATIENCE_S:.0f} s; still waiting for"
        f" {[n for n, p in _processes(home).items() if not p['is_ready']]}. Logs: {home.logs}"
    )


def _processes(home: Home) -> dict[str, dict[str, object]]:
    found = home.read_state().get("processes")
    return found if isinstance(found, dict) else {}


def stop(home: Home) -> bool:
    """Stop everything of this home; True when something was running."""
    supervisor = _supervisor(home)
    if supervisor is not None:
        supervisor.send_signal(signal.SIGTERM)
        if not _has_ended(supervisor, within_s=60):
            supervisor.kill()
    found = stop_orphans(home)
    return supervisor is not None or found


def _has_ended(process: psutil.Process, *, within_s: float) -> bool:
    """True once it runs no more; a zombie that its parent has not collected yet has ended too."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def stop_orphans(home: Home) -> bool:
    """End processes whose supervisor was killed: known by pid and as a part of this home."""
    found = False
    for entry in _processes(home).values():
        pid = entry.get("pid")
        if not isinstance(pid, int):
            continue
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and _is_part(home, process):
                found = True
                process.terminate()
                if not _has_ended(process, within_s=10):
                    process.kill()
        except psutil.Error:
            continue
    return found


def _is_part(home: Home, process: psutil.Process) -> bool:
    """Whether it is a part of this home: a JVM that logs there, or a process of ours that was told of it."""
    command = process.cmdline()
    if {f"ops.{kind}" for kind in SIDE_PROCESSES} & {*command}:
        return bool(process.environ().get("FLYBALL_HOME") == str(home.path))
    return any(f"{home.logs}/" in argument for argument in command)


def memory_mib(home: Home) -> dict[str, float]:
    """Proportional memory (PSS) of each process of the instance and what it started, in MiB."""
    found = {}
    pids = {name: entry.get("pid") for name, entry in _processes(home).items()}
    pids["supervisor"] = home.read_state().get("supervisor_pid")
    for name, pid in pids.items():
        if isinstance(pid, int):
            try:
                process = psutil.Process(pid)
                started = [] if name == "supervisor" else process.children(recursive=True)
                found[name] = sum(p.memory_full_info().pss for p in (process, *started)) / 2**20
            except psutil.Error:
                continue
    return found


def want_actuator(home: Home, domain: str, seed: int) -> None:
    """Ask the supervisor for an actuator of `domain`."""
    _want(home, "actuator", domain, ["--seed", str(seed)])


def want_sealer(home: Home, domain: str) -> None:
    """Ask the supervisor for the sealer of `domain`'s audit heads."""
    _want(home, "sealer", domain, [])


def want_model_server(home: Home, domain: str, port: int) -> None:
    """Ask the supervisor for a scripted model server, for a domain whose agents need one and have no other."""
    _want(home, "model_server", domain, ["--port", str(port)])


def _want(home: Home, kind: str, domain: str, arguments: list[str]) -> None:
    folder = home.run / f"{kind}s"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{domain}.ready").unlink(missing_ok=True)
    staged = folder / f"{domain}.new"
    staged.write_text(json.dumps(arguments))
    staged.replace(folder / f"{domain}.json")


def wait_actuator(home: Home, domain: str) -> None:
    _wait_for(home, "actuator", domain)


def wait_sealer(home: Home, domain: str) -> None:
    _wait_for(home, "sealer", domain)


def wait_model_server(home: Home, domain: str) -> None:
    _wait_for(home, "model_server", domain)


def _wait_for(home: Home, kind: str, domain: str) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    while not (home.run / f"{kind}s" / f"{domain}.ready").exists():
        state = home.read_state()
        if state.get("state") == "failed" or time.monotonic() > deadline:
            raise SetupFailed(
                f"the {kind} of {domain!r} did not start: {state.get('error') or home.logs}"
            )
        time.sleep(0.05)
