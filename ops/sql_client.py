"""The real Flink SQL client, with every topic as a table and the views of a domain already there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from contracts import ddl
from contracts.access import principal
from contracts.domain import load_domain
from contracts.errors import SetupFailed
from ops import cluster, instance
from ops.home import CHECKOUT, Home
from ops.setup import java_home
from udfs import broker_access

# Small and quick to start: it parses and plans; the cluster does the work.
_JVM = "-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
# Batch: a query over a topic ends, and shows each row once, not every change of an aggregate.
# Code of hash aggregates that is not split (conf/flink.yaml) does not compile.
_SETTINGS = """\
SET 'sql-client.execution.result-mode' = 'tableau';
SET 'execution.runtime-mode' = 'batch';
SET 'table.display.max-column-width' = '60';
SET 'table.generated-code.max-length' = '4000';
"""
# The client exits with 0 whatever happens: an error shows in its output (`-f`) or, for the init
# script, in its log. Its own words are red; SQL or a result that says the same is not.
_ERROR = "\x1b[31;1m[ERROR] Could not execute"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Said once per start, of no use to anybody.
_NOISE = re.compile(r"Successfully initialized from sql script|Command history file path")


def init_script(domain: str, bootstrap_servers: str) -> str:
    """What the client runs first: the domain's tables and views, in a database of its name.

    Raises SetupFailed when there is no such domain.
    """
    load_domain(domain)
    tables = ddl.script(domain, bootstrap_servers, broker_access.flink(principal(domain, "reader")))
    views = CHECKOUT / "sql" / domain / "views.sql"
    told = views.read_text(encoding="utf-8") if views.exists() else ""
    return "\n".join([tables, told, _SETTINGS])


def _prepare(home: Home, domain: str, bootstrap_servers: str) -> Path:
    """A folder for one client: configuration, init script, and later its log.

    The client starts a gateway in its own process; given the cluster's `rest.bind-port` it would
    take the JobManager's port, so it gets the configuration without that line.
    """
    script = init_script(domain, bootstrap_servers)
    folder = cluster.folder(home) / f"sql-client-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cluster.conf_dir(home), folder)
    settings = YAML(typ="safe").load((folder / "config.yaml").read_text())
    settings["rest"].pop("bind-port", None)
    with (folder / "config.yaml").open("w") as file:
        YAML().dump(settings, file)
    (folder / "init.sql").write_text(script, encoding="utf-8")
    return folder


def _init_error(folder: Path) -> str | None:
    """What the client logged about an init script that failed; None when it ran to its end."""
    for path in folder.glob("*.log"):
        log = path.read_text(errors="replace")
        if _ERROR in log:
            return _COLOUR.sub("", log[log.index(_ERROR) :].split("\n\n", 1)[0])[:2000]
    return None


def _run_file(command: list[str], environment: dict[str, str]) -> int:
    """Pass the client's output on (colours only to a terminal); 1 when a statement failed."""
    is_terminal = sys.stdout.isatty()
    has_failed = False
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as client:
        assert client.stdout is not None  # PIPE
        for line in client.stdout:
            plain = _COLOUR.sub("", line)
            has_failed = has_failed or _ERROR in line
            if not _NOISE.match(plain):
                sys.stdout.write(line if is_terminal else plain)
                sys.stdout.flush()
    return client.returncode or int(has_failed)


def run(home: Home, domain: str, file: Path | None) -> int:
    """Run `file`, or talk to the person at the terminal; the exit code.

    Not 0 when a statement of the file fails (the rest of it is not run). Raises SetupFailed when
    nothing runs in `home`, when there is no such file or domain, and when the tables and views could
    not be made (a mistake in some sql/<domain>/views.sql), with what the client logged about it.
    """
    if file is not None and not file.is_file():
        raise SetupFailed(f"expected a file of SQL statements, found none at {str(file)!r}")
    load_domain(domain)
    state = home.read_state()
    if not instance.is_running(home) or state.get("state") != "ready":
        raise SetupFailed(
            f"nothing runs in {home.path}; './flyball up {domain}' starts it (or 'run {domain} --keep')"
        )
    folder = _prepare(home, domain, str(state["bootstrap_servers"]))
    command = [
        str(cluster.FLINK / "bin" / "sql-client.sh"),
        "-i", str(folder / "init.sql"),
        "-hist", str(home.path / "sql-history"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        **cluster.environment(home, java_home()),
        "FLINK_CONF_DIR": str(folder),
        "FLINK_LOG_DIR": str(folder),
        "JVM_ARGS": _JVM if file is None else f"{_JVM} -Dorg.jline.terminal.dumb=true",
    }
    # Ctrl-C belongs to the client (it stops a query); a handler, unlike SIG_IGN, is not inherited.
    former = signal.signal(signal.SIGINT, lambda _signum, _frame: None)
    try:
        if file is not None:
            code = _run_file([*command, "-f", str(file.resolve())], environment)
        else:
            code = subprocess.run(command, env=environment, check=False).returncode
        if error := _init_error(folder):
            raise SetupFailed(f"tables and views (sql/<domain>/views.sql) could not be made: {error}")
        return code
    finally:
        signal.signal(signal.SIGINT, former)
        shutil.rmtree(folder, ignore_errors=True)
