"""`machines` on a secure instance: it runs, it listens on this machine only, and it keeps its secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from contracts.access import ROLES
from jobs.settings import ROOT
from ops import certificates
from ops.home import CHECKOUT, Home
from tests.listening import addresses
from tests.loop import Said

SERIES = ROOT / "data" / "machines" / "machine_temperature_system_failure.csv"
PLANTED_KEY = "planted-key-of-a-model-server"
# Lines around the failure of the machine, with what the profile needs before: so there are commands.
FIRST, LAST = 18_800, 20_200


@dataclass(frozen=True)
class Running:
    """A secure instance after `run --keep`, and its passwords."""

    home: Home
    said: Said
    planted: dict[str, str]

    def flyball(self, *arguments: str | Path, stdin: str = "", timeout_s: float = 200) -> Said:
        return flyball(self.home, *arguments, stdin=stdin, timeout_s=timeout_s)

    def told(self, *arguments: str, stdin: str = "") -> Any:
        said = self.flyball(*arguments, stdin=stdin)
        assert said.code == 0, said.err
        return json.loads(said.out)

    @property
    def state(self) -> dict[str, Any]:
        return self.home.read_state()

    def processes(self) -> list[psutil.Process]:
        """Every process of the instance, and what those started."""
        found: dict[int, psutil.Process] = {}
        for pid in [self.state["supervisor_pid"], *(p["pid"] for p in self.state["processes"].values())]:
            process = psutil.Process(pid)
            found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        return list(found.values())


def flyball(home: Home, *arguments: str | Path, stdin: str = "", timeout_s: float = 200) -> Said:
    done = subprocess.run(
        [str(CHECKOUT / "flyball"), *map(str, arguments)], input=stdin.encode(), capture_output=True, cwd=CHECKOUT,
        timeout=timeout_s, check=False,
        env={**os.environ, "FLYBALL_HOME": str(home.path), "COLUMNS": "200", "OPENAI_API_KEY": PLANTED_KEY},
    )  # fmt: skip
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`./flyball run machines --secure` of a few readings, with passwords that were there before."""
    folder = tmp_path_factory.mktemp("secure")
    home = Home(folder / "home")
    planted = {f"machines.{role}": f"planted-password-of-{role}" for role in ROLES}
    for who, password in planted.items():
        certificates.write_secret(home.secrets / f"{who}.properties", f"password={password}\n".encode())
    lines = SERIES.read_text().splitlines(keepends=True)
    series = folder / "series.csv"
    series.write_text("".join([lines[0], *lines[FIRST:LAST]]))
    said = flyball(
        home, "run", "machines", "--secure", "--input", series, "--subject", "m1", "--rate", "max", "--keep", "--json",
        timeout_s=400,
    )  # fmt: skip
    try:
        yield Running(home, said, planted)
    finally:
        flyball(home, "down")


def test_the_loop_goes_round_on_a_secure_broker(running: Running) -> None:
    assert running.said.code == 0, running.said.err[-3000:]
    report = json.loads(running.said.out)
    assert report["facts"] >= LAST - FIRST
    assert report["commands"] > 0
    assert sum(report["outcomes"].values()) == report["commands"]
    assert report["dead_letters"] == 0
    assert {job["name"]: (job["state"], job["restarts"]) for job in report["jobs"]} == {
        f"machines.{job}": ("RUNNING", 0) for job in ("context", "propose", "govern")
    }


def test_every_command_that_speaks_to_the_broker_works(running: Running, tmp_path: Path) -> None:
    status = running.told("status", "--json")
    assert status["is_secure"] is True
    assert set(status["lag"]["machines"]) == {"context", "propose", "govern", "actuator"}
    csv = "timestamp,value\n2014-09-01T00:00:00Z,1\nnonsense,2\n"
    emitted = running.told("emit", "machines", "-", "--subject", "m2", "--tick", "--json", stdin=csv)
    assert (emitted["facts"], emitted["refused"]) == (1, 1)
    assert [row["cause"] for row in running.told("dead-letters", "list", "machines", "--json")]
    read = running.flyball("read", "machines", "commands", "--from-beginning", "--max", "1")
    (root,) = running.told("trace", json.loads(read.out)["value"]["id"], "--json")
    assert root["noun"] == "fact"
    assert running.told("audit", "verify", "machines", "--json")["bad"] == 0
    assert running.told("replay", "machines", "--json")["different"] == 0
    for arguments in (("pause", "machines", "--agent", "heat-rule"), ("resume", "machines", "--agent", "heat-rule")):
        said = running.flyball(*arguments)
        assert said.code == 0, said.err
    overridden = running.told(
        "override", "machines", "m1", "schedule_maintenance", "--set", "priority=urgent", "--as", "grace", "--reason", "a test",
        "--json",
    )  # fmt: skip
    assert overridden[-1]["data"]["reason"] == "override"


def test_decisions_are_made_again_by_a_job_of_its_own(running: Running) -> None:
    assert running.told("replay", "machines", "--flink", "--json")["different"] == 0


def test_the_sql_client_reads_by_a_reference_and_listens_on_this_machine_only(running: Running, tmp_path: Path) -> None:
    file, told = tmp_path / "show.sql", tmp_path / "told"
    file.write_text("SHOW CREATE TABLE facts;\nSELECT 'found' AS told, COUNT(*) AS policies_told FROM policies;\n")
    # Twice in a row: to find a free port, Flink's client binds one everywhere and closes it at once, accepting nothing.
    listening: set[Any] = set()
    seen: set[Any] = set()
    with told.open("wb") as out:
        client = subprocess.Popen(
            [str(CHECKOUT / "flyball"), "sql", "-f", str(file), "--domain", "machines"], cwd=CHECKOUT, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, env={**os.environ, "FLYBALL_HOME": str(running.home.path)},
        )  # fmt: skip
        while client.poll() is None:
            with suppress(psutil.Error, OSError):  # some process of it has just ended
                tree = psutil.Process(client.pid).children(recursive=True)
                before, seen = seen, {address for process in tree for address in addresses(process)}
                listening |= before & seen
            with suppress(subprocess.TimeoutExpired):
                client.wait(0.5)
    said = told.read_text()
    assert client.returncode == 0, said[-3000:]
    assert "found" in said
    assert "machines.reader.properties:password}" in said
    assert not _secrets_in(said, running)
    assert listening and all(address.is_loopback for address in listening), listening


def _secrets_in(text: str, running: Running) -> list[str]:
    files = [(running.home.secrets / name).read_text() for name in ("broker.pem", "ca.key.pem")]
    keys = [line for file in files for line in re.findall(r"BEGIN PRIVATE KEY-+\n(\S+)", file)]
    assert len(keys) == 2
    return [secret for secret in ("planted-password", PLANTED_KEY, *keys) if secret in text]


def _rest_answers(running: Running) -> Iterator[tuple[str, str]]:
    """What Flink's REST API tells about the cluster, its processes and each job; logs too."""
    url = str(running.state["rest_url"])

    def get(path: str) -> str:
        answer = httpx.get(url + path, timeout=20)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        return answer.text

    paths = ["/config", "/overview", "/jobmanager/config", "/jobmanager/environment", "/jobmanager/log", "/taskmanagers"]
    for manager in json.loads(get("/taskmanagers"))["taskmanagers"]:
        paths += [f"/taskmanagers/{manager['id']}", f"/taskmanagers/{manager['id']}/log"]
    for job in json.loads(get("/jobs/overview"))["jobs"]:
        paths += [f"/jobs/{job['jid']}{part}" for part in ("", "/plan", "/config", "/exceptions")]
    for path in paths:
        yield path, get(path)


def test_no_secret_shows_at_flinks_rest_api(running: Running) -> None:
    answers = dict(_rest_answers(running))
    assert len(answers) > 15
    assert {path: found for path, text in answers.items() if (found := _secrets_in(text, running))} == {}


def test_no_secret_stands_in_arguments_of_a_process(running: Running) -> None:
    arguments = {p.pid: " ".join(p.cmdline()) for p in running.processes()}
    assert any("kafka.Kafka" in text for text in arguments.values())
    assert {pid: text for pid, text in arguments.items() if _secrets_in(text, running)} == {}


def _read(path: Path) -> str:
    """Empty for a file of a checkpoint that was followed by others meanwhile."""
    try:
        return path.read_bytes().decode("latin-1")
    except FileNotFoundError:
        return ""


def test_no_secret_is_written_outside_the_folder_of_secrets(running: Running) -> None:
    """Logs, configuration, checkpoints, topics, what the SQL client and the clients of jobs left."""
    told = {path for path in running.home.path.rglob("*") if path.is_file() and running.home.secrets not in path.parents}
    told -= set((running.home.path / "keys").rglob("*"))  # people's own keys are kept there, and are secret
    assert {running.home.logs / name for name in ("broker.log", "jobmanager.log", "taskmanager-0.log")} <= told
    assert any("checkpoints" in str(path) for path in told)
    found = {str(path): hits for path in told if (hits := _secrets_in(_read(path), running))}
    assert found == {}


def test_everything_listens_on_this_machine_only(running: Running) -> None:
    found = {name: addresses(process) for process in running.processes() if (name := f"{process.pid} {process.name()}")}
    listening = [address for each in found.values() for address in each]
    assert len(listening) >= 3 + 3 + 2, "broker: clients, itself, controller; JobManager: RPC, REST, blobs; TaskManager: RPC, data"
    assert {name: strange for name, each in found.items() if (strange := [str(a) for a in each if not a.is_loopback])} == {}
