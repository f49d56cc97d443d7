"""The embedded Kafka broker: one KRaft node under `run/broker`, in a JVM of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from contracts.errors import SetupFailed
from ops.class_data import ClassData
from ops.home import CHECKOUT, Home
from ops.setup import jar_paths, java_home, java_options

HEAP = "384m"
CLUSTER_ID = "flyballflyballflyball0"


def _properties_file(home: Home) -> Path:
    return home.run / "broker" / "server.properties"


def _java(home: Home, java: Path, heap: str, *options: str) -> list[str]:
    class_path = os.pathsep.join(str(jar) for jar in jar_paths(home, "broker"))
    return [
        str(java / "bin" / "java"),
        f"-Xmx{heap}",
        "-Xms64m",
        "-XX:+UseSerialGC" if heap == "64m" else "-XX:+UseG1GC",
        "-XX:TieredStopAtLevel=1" if heap == "64m" else "-XX:MaxMetaspaceSize=96m",
        "-Djava.awt.headless=true",
        f"-Dlog.file={home.logs / 'broker.log'}",
        f"-Dlog4j2.configurationFile={CHECKOUT / 'conf' / 'log4j2.properties'}",
        *options,
        "-cp",
        class_path,
    ]


def _listeners(home: Home, ports: dict[str, int], *, is_secure: bool) -> dict[str, object]:
    """Where the broker listens, and as what; only this machine reaches any of it."""
    kafka, controller = f"127.0.0.1:{ports['kafka']}", f"127.0.0.1:{ports['controller']}"
    if not is_secure:
        clients = f"PLAINTEXT://{kafka}"
        return {"listeners": f"{clients},CONTROLLER://{controller}", "advertised.listeners": clients}
    clients = f"CLIENTS://{kafka},INTERNAL://127.0.0.1:{ports['internal']}"
    return {
        "listeners": f"{clients},CONTROLLER://{controller}",
        "advertised.listeners": clients,
        "ssl.keystore.location": home.secrets / "broker.pem",
        "ssl.truststore.location": home.secrets / "ca.pem",
    }


def prepare(home: Home, ports: dict[str, int], *, is_secure: bool = False) -> None:
    """Write the broker's properties and format its log directory once. Keeps existing data."""
    folder = home.run / "broker"
    folder.mkdir(parents=True, exist_ok=True)
    home.logs.mkdir(parents=True, exist_ok=True)
    found = {
        "log.dirs": folder / "data",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{ports['controller']}",
        **_listeners(home, ports, is_secure=is_secure),
    }
    shipped = ["broker.properties", *(["broker.secure.properties"] if is_secure else [])]  # a later line wins
    text = "".join((CHECKOUT / "conf" / name).read_text() for name in shipped)
    _properties_file(home).write_text(text + "".join(f"{name}={value}\n" for name, value in found.items()))
    if (folder / "data" / "meta.properties").exists():
        return
    done = subprocess.run(
        [*_java(home, java_home(), "64m"), "kafka.tools.StorageTool", "format", "--standalone",
         "--cluster-id", CLUSTER_ID, "--config", str(_properties_file(home))],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SetupFailed(f"formatting the broker's log directory failed: {done.stderr[-1000:]}")


def command(home: Home, java: Path) -> list[str]:
    """The broker's own process."""
    options = [*ClassData.of("broker", java).options(), *java_options()]
    return [*_java(home, java, HEAP, *options), "kafka.Kafka", str(_properties_file(home))]
