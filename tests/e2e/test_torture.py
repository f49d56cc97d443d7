"""One fault of `./flyball torture`, on an instance of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ops.home import CHECKOUT


def test_nothing_is_lost_repeated_or_wrong_when_the_taskmanager_dies_in_a_transaction(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "torture", "--fault", "killed_in_transaction", "--json"],
        cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT), "FLYBALL_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)
    assert row["fault"] == "killed_in_transaction"
    assert (row["lost"], row["repeated"], row["wrong"]) == (0, 0, 0)
    assert row["the_open_transaction_was"] == "aborted"
    assert row["facts"] > 0
    assert row["seconds_to_next_decision"] > 0
