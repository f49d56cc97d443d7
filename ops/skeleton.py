"""`./flyball new DOMAIN`: a running skeleton of a domain, to be changed file by file.

The skeleton is ops/skeleton_files/, an ordinary domain called `newdomain` in a folder of its own;
laying it out copies it with that word replaced, in paths and in text.
"""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from contracts.errors import SetupFailed
from ops.home import CHECKOUT

SKELETON = Path(__file__).resolve().parent / "skeleton_files"
PLACEHOLDER = "newdomain"
_NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")
# `flyball` is the prefix of our own event types; the others would hide a module or a folder of ours.
_OURS = frozenset({"flyball", PLACEHOLDER, "contracts", "udfs", "jobs", "ops", "sql", "conf", "tests"})


def lay_out(domain: str, *, root: Path = CHECKOUT) -> list[Path]:
    """Write a new domain below `root` and give its files, relative to it.

    Overwrites nothing: raises SetupFailed, having written nothing, for a name that cannot be one of
    a Python module and a topic, and when any file or folder of that domain exists.
    """
    _check_name(domain)
    sources = sorted(p for p in SKELETON.rglob("*") if p.is_file() and p.suffix != ".pyc")
    targets = [Path(_renamed(str(source.relative_to(SKELETON)), domain)) for source in sources]
    for taken in (*targets, Path("sql") / domain, Path("conf") / domain):
        if (root / taken).exists():
            raise SetupFailed(f"expected no domain {domain!r} yet, found {taken}; nothing was written")
    for source, target in zip(sources, targets, strict=True):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        with (root / target).open("x", encoding="utf-8") as file:
            file.write(_renamed(source.read_text(encoding="utf-8"), domain))
    return targets


def _renamed(text: str, domain: str) -> str:
    class_name = "".join(part.capitalize() for part in domain.split("_"))
    return text.replace(PLACEHOLDER.capitalize(), class_name).replace(PLACEHOLDER, domain)


def _check_name(domain: str) -> None:
    wanted = "expected a domain name like 'deliveries' (2 to 40 of a-z, 0-9, _, a letter first)"
    if not _NAME.fullmatch(domain):
        raise SetupFailed(f"{wanted}, came {domain[:64]!r}")
    if keyword.iskeyword(domain) or keyword.issoftkeyword(domain):
        raise SetupFailed(f"{wanted}, came the Python keyword {domain!r}")
    if domain in sys.stdlib_module_names:
        raise SetupFailed(f"{wanted}, came {domain!r}, a module of Python's standard library")
    if domain in _OURS:
        raise SetupFailed(f"{wanted}, came {domain!r}, which Flyball uses itself")
