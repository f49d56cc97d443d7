"""The embedded Flink cluster: the standalone one inside the `apache-flink` wheel.

The processes are started with plain `java` (no shell scripts, so nothing is computed by an extra
JVM and each has a pid of its own); lib and opt are folders of links, site-packages stays untouched.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pyflink
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contracts.errors import SetupFailed
from ops.class_data import ClassData
from ops.home import CHECKOUT, Home
from ops.setup import jar_paths, java_options

FLINK = Path(pyflink.__file__).parent
# The heap of conf/flink.yaml takes all jobs of a domain. Where there are several TaskManagers, each has a part of them.
_HEAP_OF_SEVERAL = {"taskmanager": {"memory": {"task": {"heap": {"size": "512mb"}}}}}
# Heap and compiled code in pages of 2 MiB, where Linux gives them to who asks: 2 to 9 % more of everything (docs/decisions/0012).
_HUGE_PAGES = ["-XX:+UseTransparentHugePages"] if sys.platform == "linux" else []
_MIB = {"": 2**-20, "b": 2**-20, "k": 2**-10, "m": 1, "g": 2**10, "t": 2**20}
ADD_OPENS = [
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.api=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.file=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.parser=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.tree=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.util=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.net=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.reflect=ALL-UNNAMED",
    "--add-opens=java.base/java.text=ALL-UNNAMED",
    "--add-opens=java.base/java.time=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.locks=ALL-UNNAMED",
]


def folder(home: Home) -> Path:
    return home.run / "flink"


def conf_dir(home: Home) -> Path:
    return folder(home) / "conf"


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with every dotted key as a path of keys, so that one setting has one place."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _nested(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        _merge(found, inner)
    return found


def asked_settings() -> dict[str, Any]:
    """FLYBALL_FLINK: settings over conf/flink.yaml, a YAML mapping. Raises SetupFailed when it is none."""
    text = os.environ.get("FLYBALL_FLINK", "{}")
    try:
        found = YAML(typ="safe").load(text)
    except YAMLError:
        found = None
    if not isinstance(found, dict):
        raise SetupFailed(f"FLYBALL_FLINK: expected a YAML mapping like '{{a.b: c}}', came {text!r:.200}")
    return _nested(found)


def prepare(home: Home, ports: dict[str, int], taskmanagers: int = 1) -> None:
    """Write the cluster's configuration and its folders of links to jars.

    Raises SetupFailed for a FLYBALL_FLINK that is no mapping, or with a size of memory that is none, and as `java_options`.
    """
    root = folder(home)
    _link_jars(home)
    conf = conf_dir(home)
    conf.mkdir(parents=True, exist_ok=True)
    shipped = YAML(typ="safe").load((CHECKOUT / "conf" / "flink.yaml").read_text())
    settings = _merge(_nested(shipped), _HEAP_OF_SEVERAL if taskmanagers > 1 else {})
    settings = _merge(settings, asked_settings())
    # Refused here what a TaskManager could not start with.
    _java_sizes(settings)
    java_options()
    runtime: dict[str, Any] = {
        # Without a bind-host both listen on every address of the machine.
        "jobmanager": {"rpc": {"address": "127.0.0.1", "port": ports["jobmanager"]}, "bind-host": "127.0.0.1"},
        "rest": {"address": "127.0.0.1", "bind-address": "127.0.0.1", "port": ports["rest"],
                 "bind-port": str(ports["rest"])},
        "taskmanager": {"host": "127.0.0.1", "bind-host": "127.0.0.1"},
        "blob": {"server": {"port": "0"}},
        "io": {"tmp": {"dirs": str(root / "tmp")}},
        "execution": {
            "target": "remote",
            "attached": False,
            "checkpointing": {"dir": (root / "checkpoints").as_uri(),
                              "savepoint-dir": (root / "savepoints").as_uri()},
        },
        "python": {"executable": sys.executable, "client": {"executable": sys.executable}},
        "env": {"java": {"opts": {"all": " ".join(ADD_OPENS)}}},
    }  # fmt: skip
    (root / "tmp").mkdir(exist_ok=True)
    home.code.mkdir(parents=True, exist_ok=True)  # on PYTHONPATH: Python never looks again where nothing was
    with (conf / "config.yaml").open("w") as file:
        YAML().dump(_merge(settings, _nested(runtime)), file)
    logging = (CHECKOUT / "conf" / "log4j2.properties").read_text()
    for name in ("log4j.properties", "log4j-console.properties", "log4j-cli.properties",
                 "log4j-session.properties"):  # fmt: skip
        (conf / name).write_text(logging)


def links(home: Home, name: str) -> Path:
    """Flink's `lib` or `opt` as links. Shared by all homes of a checkout, as the jars are."""
    return home.jars / name


def _link_jars(home: Home) -> None:
    for name, role, shipped in (("lib", "flink-lib", "lib"), ("opt", "flink-opt", "opt")):
        jars = [*(FLINK / shipped).glob("*.jar"), *jar_paths(home, role)]
        if name == "lib":  # thread mode and the Python gateway live in flink-python
            jars += (FLINK / "opt").glob("flink-python*.jar")
        wanted = {jar.name: jar for jar in jars}
        folder = links(home, name)
        folder.mkdir(parents=True, exist_ok=True)
        for link in folder.iterdir():
            if link.readlink() == wanted.get(link.name):
                del wanted[link.name]
            else:
                link.unlink(missing_ok=True)
        for jar_name, jar in wanted.items():
            staged = folder / f".{jar_name}.{os.getpid()}"
            staged.symlink_to(jar)
            staged.replace(folder / jar_name)


def environment(home: Home, java: Path) -> dict[str, str]:
    """What Flink's processes and client need in their environment."""
    site_packages = str(FLINK.parent)
    python_path = [str(CHECKOUT), str(home.code), site_packages]
    return {
        "JAVA_HOME": str(java),
        "FLINK_HOME": str(FLINK),
        "FLYBALL_HOME": str(home.path),  # where look-ups of language models' agents find their databases
        "FLINK_CONF_DIR": str(conf_dir(home)),
        "FLINK_LIB_DIR": str(links(home, "lib")),
        "FLINK_OPT_DIR": str(links(home, "opt")),
        "FLINK_LOG_DIR": str(home.logs),
        "FLINK_PID_DIR": str(home.run),
        "PYTHONPATH": os.pathsep.join(python_path),
        "OMP_NUM_THREADS": "1",
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", ""),
    }


def _java(home: Home, java: Path, log: str, *options: str) -> list[str]:
    class_path = os.pathsep.join(sorted(str(jar) for jar in links(home, "lib").glob("*.jar")))
    return [
        str(java / "bin" / "java"),
        *options,
        *ADD_OPENS,
        # Not `log.file`: where that is set RocksDB logs beside it, in a file named by its whole path, and
        # that name is too long for a file system when a job is rescaled in a home some folders deep.
        f"-Dflyball.log.file={home.logs / log}",
        f"-Dlog4j.configurationFile={conf_dir(home) / 'log4j.properties'}",
        "-cp",
        class_path,
    ]


def jobmanager_command(home: Home, java: Path) -> list[str]:
    return [
        *_java(home, java, "jobmanager.log", "-Xmx512m", "-Xms128m", "-XX:MetaspaceSize=128m",
               "-XX:MaxMetaspaceSize=256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
               *ClassData.of("jobmanager", java).options()),
        "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
        "--configDir",
        str(conf_dir(home)),
        f"-Dweb.log.path={home.logs / 'jobmanager.log'}",
    ]


def _java_sizes(settings: dict[str, Any]) -> list[str]:
    """A TaskManager's heap, young generation and direct memory (MiB) as its settings say; Flink's own scripts do the same."""

    def mib(*names: str) -> int:
        total = 0.0
        for name in names:
            found: Any = settings["taskmanager"]["memory"]
            for part in name.split("."):
                found = found[part]
            if not (size := re.fullmatch(r"(\d+) *([bkmgt]?)[a-z]*", str(found).lower())):
                raise SetupFailed(f"taskmanager.memory.{name}: expected a size like 512mb, came {found!r}")
            total += int(size[1]) * _MIB[size[2]]
        return int(total)

    heap = mib("framework.heap.size", "task.heap.size")
    direct = mib("framework.off-heap.size", "task.off-heap.size", "network.max")
    return [f"-Xmx{heap}m", f"-Xms{heap}m", f"-Xmn{heap * 3 // 8}m", f"-XX:MaxDirectMemorySize={direct}m"]


def taskmanager_command(home: Home, java: Path, index: int) -> list[str]:
    """One TaskManager, with the memory that the written configuration gives it."""
    settings = _nested(YAML(typ="safe").load((conf_dir(home) / "config.yaml").read_text()))
    # Several at once: one of them writes the archive.
    data = ClassData.of("taskmanager", java)
    class_data = data.options() if index == 0 or data.path.exists() else []
    return [
        *_java(home, java, f"taskmanager-{index}.log", "-XX:+UseParallelGC", *_java_sizes(settings),
               # Left to itself the collector makes these spaces a hundredth of the young one. Then what lives for a moment, records on
               # their way and checkpoints, lands among the old, which fills within minutes and is collected while all wait.
               "-XX:-UseAdaptiveSizePolicy", "-XX:SurvivorRatio=6",
               "-XX:MetaspaceSize=192m", "-XX:MaxMetaspaceSize=256m",
               "-XX:-DontCompileHugeMethods", *_HUGE_PAGES, *class_data, *java_options()),
        "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
        "--configDir",
        str(conf_dir(home)),
        f"-Dtaskmanager.resource-id=taskmanager-{index}",
        f"-Dtaskmanager.log.path={home.logs / f'taskmanager-{index}.log'}",
    ]  # fmt: skip


@cache
def rest_client() -> httpx.Client:
    """One for all calls to Flink's REST API: to make one reads the machine's certificates, 22 ms of CPU.

    It asks no proxy, and keeps no connection to a JobManager that may die.
    """
    return httpx.Client(timeout=5, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def get(rest_port: int, path: str) -> Any:
    """One GET of Flink's REST API as parsed JSON. Raises httpx.HTTPError."""
    answer = rest_client().get(f"http://127.0.0.1:{rest_port}{path}")
    answer.raise_for_status()
    return answer.json()


def answers(rest_port: int) -> bool:
    try:
        get(rest_port, "/overview")
    except httpx.HTTPError:
        return False
    return True


def taskmanagers_registered(rest_port: int) -> int:
    try:
        return int(get(rest_port, "/overview")["taskmanagers"])
    except (httpx.HTTPError, KeyError):
        return 0
