"""Class data sharing: what a JVM parsed and checked in one run is mapped in the next.

The first run of a part writes an archive when it ends (a few seconds, some 80 MiB); later runs start
with it (figures: docs/decisions/0014). The JVM itself refuses an archive made with another class path or Java
and then starts as if there were none.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from ops.home import CHECKOUT
from ops.setup import JARS_LOCK

# Its remarks about classes it leaves out would stand among the part's own last words.
_QUIET = ["-Xlog:disable", "-Xlog:all=error:stderr"]


@dataclass(frozen=True)
class ClassData:
    """The archive of one part (`broker`, `jobmanager`, ...), shared by all homes of a checkout."""

    path: Path

    @classmethod
    def of(cls, part: str, java: Path) -> ClassData:
        release = java / "release"
        seen = (
            JARS_LOCK.read_bytes(),
            f"{CHECKOUT} {java}".encode(),
            release.read_bytes() if release.exists() else b"",
        )
        digest = hashlib.sha256(b"\0".join(seen)).hexdigest()[:12]
        return cls(CHECKOUT / ".flyball" / "class-data" / f"{part}-{digest}.jsa")

    def options(self) -> list[str]:
        """JVM options: use the archive, or write one at exit, which the next start finds."""
        if not self.path.exists():
            self._adopt()
        if self.path.exists():
            return [f"-XX:SharedArchiveFile={self.path}", "-Xshare:auto", *_QUIET]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return [f"-XX:ArchiveClassesAtExit={self.path.with_suffix(f'.{os.getpid()}.part')}", *_QUIET]

    def _adopt(self) -> None:
        """Put an archive in place that a JVM wrote when it ended, unless it is still at it."""
        for staged in self.path.parent.glob(f"{self.path.stem}.*.part"):
            if any(str(staged) in argument for line in _command_lines() for argument in line):
                continue
            with staged.open("rb") as file:
                is_whole = any(file.read(64))  # the JVM writes the header last
            if is_whole and not self.path.exists():
                staged.replace(self.path)
            else:
                staged.unlink(missing_ok=True)


def _command_lines() -> list[list[str]]:
    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
