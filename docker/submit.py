"""One-shot: submits a job with `flink run`, unless the cluster has it already: `python docker/submit.py machines govern`.

The job starts from what FLYBALL_RESUME_FROM names, otherwise from its newest complete checkpoint or savepoint below
FLYBALL_CHECKPOINTS; only one that has neither begins without state. So this may run at any time: `docker compose up`
starts one-shot containers again that have ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from glob import glob
from pathlib import Path

import httpx
from ruamel.yaml import YAML

from contracts.errors import FlyballError, JobFailed, SetupFailed, StateRefused
from jobs.settings import ROOT
from ops.checkpoints import checkpoint_id
from ops.flink_jobs import SETTLED


def rest_url() -> str:
    """Where `flink run` submits to, by the configuration that it reads."""
    folder = Path(os.environ.get("FLINK_CONF_DIR") or Path(os.environ["FLINK_HOME"]) / "conf")
    rest = YAML(typ="safe").load((folder / "config.yaml").read_text())["rest"]
    return f"http://{rest['address']}:{rest['port']}"


def state_on_cluster(url: str, name: str) -> str | None:
    """What state the job `name` is in; None: the cluster has none of that name, or it ended. Raises JobFailed."""
    try:
        jobs = httpx.get(f"{url}/jobs/overview", timeout=30).raise_for_status().json()["jobs"]
    except httpx.HTTPError as error:
        raise JobFailed(f"expected Flink at {url}: {error}") from None
    return next((job["state"] for job in jobs if job["name"] == name and job["state"] not in SETTLED), None)


def newest_state(folder: Path) -> str | None:
    """URI of the newest complete checkpoint or savepoint of the job that has its checkpoints in `folder`.

    Copies lose the times of files, so Flink's own number counts. Raises StateRefused when there are some and none is whole.
    """
    # Not Path.glob: it raises when a folder it looks into is gone, and Flink deletes meanwhile.
    places = (*glob("*/chk-*/_metadata", root_dir=folder), *glob("savepoints/**/savepoint-*/_metadata", root_dir=folder, recursive=True))
    found = [folder / place for place in places]
    # Where `flink stop` puts a savepoint unless it is told: beside the jobs, named by how the job's id begins.
    for noted in folder.glob("operators/*.json"):
        found += folder.parent.glob(f"savepoints/savepoint-{noted.stem[:6]}-*/_metadata")
    complete = []
    for metadata in found:
        with suppress(StateRefused, FileNotFoundError):  # half written; deleted since
            complete.append((checkpoint_id(metadata), metadata.parent))
    if found and not complete:
        raise StateRefused(f"{folder}: expected a complete checkpoint, came {len(found)} that are not")
    return max(complete)[1].as_uri() if complete else None


def starts_from(name: str) -> str | None:
    """The state to start the job `name` from; None: it has none. Raises SetupFailed or StateRefused when that cannot be told."""
    if asked := os.environ.get("FLYBALL_RESUME_FROM"):
        return asked
    checkpoints = os.environ.get("FLYBALL_CHECKPOINTS", "")
    if not checkpoints.startswith("file:///"):
        raise SetupFailed(
            f"expected FLYBALL_CHECKPOINTS=file:///..., came {checkpoints!r}: what lies elsewhere cannot be looked up."
            " Name in FLYBALL_RESUME_FROM what to start from, or use 'flink run'"
        )
    return newest_state(Path(checkpoints.removeprefix("file://")) / name)


def main() -> None:
    domain, job = sys.argv[1:]
    name = f"{domain}.{job}"
    try:
        if (state := state_on_cluster(rest_url(), name)) is not None:
            print(f"{name} is {state} already: not submitted again")
            return
        start = starts_from(name)
    except FlyballError as error:
        sys.exit(f"error: {name}: {error}")
    print(f"{name}: submitted, to start {f'from {start}' if start else 'without state: it has no checkpoint'}", flush=True)
    client = ["flink", "run", "--detached", "--python", f"{ROOT}/jobs/{job}.py", "--domain", domain]
    sys.exit(subprocess.run(client, check=False, env={**os.environ, "FLYBALL_RESUME_FROM": start or ""}).returncode)


if __name__ == "__main__":
    main()
