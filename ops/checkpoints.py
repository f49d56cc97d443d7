"""Checkpoints and savepoints of the jobs on disk: which is the newest, and which nobody needs any more."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from contracts.errors import StateRefused
from ops import cluster
from ops.flink_jobs import JOBS, unfinished
from ops.home import Home

_METADATA = struct.Struct(">IIq")  # what Flink's _metadata begins with: magic number, version, checkpoint id
_MAGIC = 0x4960672D
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_LEFT_BEHIND = "left_behind.json"


def checkpoints_folder(home: Home, domain: str, job: str) -> Path:
    """A job's checkpoints, `<job id>/chk-<number>`, and its savepoints, `savepoints/<job id>/savepoint-...`."""
    return cluster.folder(home) / "checkpoints" / f"{domain}.{job}"


def plans_folder(home: Home, domain: str, job: str) -> Path:
    """A job's plan as it was submitted last, named by its job id."""
    return cluster.folder(home) / "plans" / f"{domain}.{job}"


def checkpoint_id(metadata: Path) -> int:
    """The number of a checkpoint or savepoint by its file `_metadata`. Raises StateRefused when that does not begin as Flink's do.

    Checkpoints and savepoints count together, and a job goes on counting from the state that it starts from.
    """
    with metadata.open("rb") as file:
        header = file.read(_METADATA.size)
    if len(header) < _METADATA.size or (told := _METADATA.unpack(header))[0] != _MAGIC:
        raise StateRefused(f"{metadata}: expected the metadata of a checkpoint, came {header.hex() or 'nothing'}")
    return int(told[2])


def latest_checkpoints(home: Home, domain: str) -> dict[str, str]:
    """Job -> path of its newest complete checkpoint or savepoint on disk, for `--resume`.

    The newest has the highest id: a copy loses the times of files, and clocks step. They tell equal ids apart only. What
    was left behind (`leave_behind`) counts only where nothing else is.
    """
    found = {job: max(_complete(checkpoints_folder(home, domain, job)), default=None) for job in JOBS}
    return {job: newest[-1].as_uri() for job, newest in found.items() if newest is not None}


def _complete(folder: Path) -> Iterator[tuple[bool, int, float, Path]]:
    """Every complete state in a job's folder, so that the newest is the greatest."""
    left = _left_behind(folder)
    # Not Path.glob: it raises when a folder it looks into is gone, and Flink and other submissions delete meanwhile.
    for name in (*glob("*/chk-*/_metadata", root_dir=folder), *glob("savepoints/*/savepoint-*/_metadata", root_dir=folder)):
        place = (metadata := folder / name).parent
        with suppress(StateRefused, FileNotFoundError):  # half written; deleted since, because a newer one is complete
            yield place.parent.name not in left, checkpoint_id(metadata), metadata.stat().st_mtime, place


def _left_behind(folder: Path) -> list[str]:
    noted = folder / _LEFT_BEHIND
    return list(json.loads(noted.read_text())) if noted.exists() else []


def _by_job_id(folder: Path) -> list[Path]:
    """The folders of a job's checkpoints and savepoints, one a submission."""
    return [path for path in (*folder.glob("*"), *folder.glob("savepoints/*")) if _JOB_ID.fullmatch(path.name)]


def leave_behind(home: Home, domain: str, job: str) -> None:
    """What starts next begins without state, at id 1: from its first checkpoint on, state that is there now counts no more."""
    folder = checkpoints_folder(home, domain, job)
    staged = folder / f"{_LEFT_BEHIND}.new"
    staged.write_text(json.dumps(sorted({path.name for path in _by_job_id(folder)})))
    staged.replace(folder / _LEFT_BEHIND)


def forget_others(home: Home, domain: str, job: str, state: str = "") -> None:
    """Delete all state of a job but `state`, which it starts from, and that of submissions that have not ended.

    The first checkpoint after a start is whole (Flink's claim mode NO_CLAIM), so none needs another submission's files.
    Where `state` lies elsewhere nothing is deleted: without it the job may still need what is here. Raises httpx.HTTPError.
    """
    folder = checkpoints_folder(home, domain, job)
    chosen = Path(url2pathname(urlsplit(state).path)).parent if state else None
    known = _by_job_id(folder)
    if chosen is not None and chosen not in known:
        return
    running = set(unfinished(home))
    gone = folder / "gone"
    shutil.rmtree(gone, ignore_errors=True)  # a command that died left it
    gone.mkdir(parents=True)
    for number, path in enumerate(path for path in known if path != chosen and path.name not in running):
        path.rename(gone / str(number))  # whole or not at all: half of a checkpoint must not be taken for one
    shutil.rmtree(gone, ignore_errors=True)
    (folder / _LEFT_BEHIND).unlink(missing_ok=True)
    named = {path.name for path in _by_job_id(folder)} | running | {path.stem for path in plans_folder(home, domain, job).glob("*")}
    for noted in (folder / "operators").glob("*.json"):
        if noted.stem not in named:
            noted.unlink(missing_ok=True)
