"""`./flyball new` and then `./flyball run`, in a copy of the checkout, with nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.home import CHECKOUT

_LEFT_OUT = (".git", ".venv", ".venv.*", ".flyball", "__pycache__", ".*_cache")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout that shares its packages and jars."""
    copy = tmp_path / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    (copy / ".flyball").mkdir()
    (copy / ".flyball" / "jars").symlink_to(CHECKOUT / ".flyball" / "jars")
    return copy


def _flyball(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `./flyball` does once its .venv is there."""
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_a_new_domain_runs_the_whole_loop_when_nothing_else_is_touched(checkout: Path) -> None:
    assert _flyball(checkout, "new", "deliveries").returncode == 0

    done = _flyball(checkout, "run", "deliveries", "--count", "400", "--report", "out/report.json")

    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((checkout / "out" / "report.json").read_text())
    assert report["facts"] == 400
    assert report["dead_letters"] == 0
    assert report["situations"] > 400  # readings, and patterns and hours on top
    reasons = report["decisions"]["by_reason"]
    assert {"allowed_by_policy", "rate_limit", "forbidden_by_policy"} <= set(reasons)
    assert report["commands"] == reasons["allowed_by_policy"] > 0
    assert sum(report["outcomes"].values()) == report["commands"]
    assert all(job["restarts"] == 0 for job in report["jobs"])
