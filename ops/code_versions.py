"""Versions of the code that jobs run: each a copy of a checkout under a package name of its own.

In thread mode all jobs of a TaskManager share one Python interpreter, and a module lives as long as it
does: whoever is first to import `udfs.policy.flink` decides which one all others get. So a job is submitted from
a copy in which every import of our own packages names the copy (`from flyball_1a2b.contracts...`). Versions
then run side by side in one TaskManager, a running job is not touched by an edit of the checkout, and the
code to go back to is still there (docs/decisions/0025).
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import SetupFailed
from ops.home import CHECKOUT, Home

PACKAGES = ("contracts", "udfs", "jobs", "ops")
# What a job is made of. Of ops/ only the client that submits it.
_FOLDERS = ("contracts", "udfs", "jobs", "conf", "sql")
_LEFT_OUT = ("__pycache__", "published")
_CLIENT = ("ops/__init__.py", "ops/submit.py")


@dataclass(frozen=True)
class Code:
    """One version: a package named by the digest of its files, below a folder that is on PYTHONPATH."""

    name: str
    path: Path

    @property
    def is_there(self) -> bool:
        return (self.path / "__init__.py").exists()


def named(home: Home, name: str) -> Code:
    """The version called `name`. Raises SetupFailed when its files are gone."""
    code = Code(name, home.code / name)
    if not code.is_there:
        raise SetupFailed(f"expected the code of a running job in {code.path}, found none; was {home.code} emptied?")
    return code


def kept(home: Home, checkout: Path = CHECKOUT) -> Code:
    """The version that `checkout` is now, copied if it is new. Equal files have equal names.

    Raises SetupFailed for a folder that is no checkout, or a file that cannot be copied so.
    """
    files = dict(_files(checkout))
    if not {"jobs/environment.py", *_CLIENT} <= set(files):
        raise SetupFailed(f"expected a checkout of Flyball (contracts/, udfs/, jobs/, ops/), came {checkout}")
    whole = hashlib.sha256()
    for place, path in files.items():
        whole.update(f"{place}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    code = Code(f"flyball_{whole.hexdigest()[:12]}", home.code / f"flyball_{whole.hexdigest()[:12]}")
    if code.is_there:
        return code
    staged = home.code / f".{code.name}.{os.getpid()}"
    for place, path in files.items():
        copy = staged / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            copy.write_text(moved(path.read_text(encoding="utf-8"), code.name, path), encoding="utf-8")
        else:
            shutil.copyfile(path, copy)
    (staged / "__init__.py").write_text(f'"""A copy of {checkout}, as it was."""\n')
    try:
        staged.rename(code.path)
    except OSError:  # somebody else made it meanwhile
        shutil.rmtree(staged)
    return code


def _files(checkout: Path) -> Iterator[tuple[str, Path]]:
    """Place -> file of everything a job is made of, in a fixed order."""
    for folder in _FOLDERS:
        for path in sorted((checkout / folder).rglob("*")):
            place = path.relative_to(checkout)
            if path.is_file() and not any(part.startswith(".") or part in _LEFT_OUT for part in place.parts):
                yield place.as_posix(), path
    for place_of_client in _CLIENT:
        if (checkout / place_of_client).is_file():
            yield place_of_client, checkout / place_of_client


def moved(source: str, package: str, path: Path) -> str:
    """A module's text with each `from contracts... import` (or udfs, jobs, ops) as one from `package`."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            line = lines[node.lineno - 1].encode()
            start = node.col_offset + len("from ")
            lines[node.lineno - 1] = (line[:start] + package.encode() + b"." + line[start:]).decode()
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] in PACKAGES for alias in node.names):
            raise SetupFailed(f"{path}:{node.lineno}: expected 'from {node.names[0].name} import ...' of our own packages")
    return "".join(lines)
