"""When a process that ended is brought back."""

from __future__ import annotations

import sys
from pathlib import Path

from ops.supervisor import Part


def ended(tmp_path: Path, revived_after_s: float) -> Part:
    part = Part("part", lambda: [sys.executable, "-c", ""], {}, lambda: True, tmp_path / "part.out")
    part.revived_after_s = revived_after_s
    assert part.process is None
    part.start()
    assert part.process is not None
    part.process.wait(60)
    part.is_ready = True
    return part


def test_a_process_that_ended_is_brought_back_at_once(tmp_path: Path) -> None:
    part = ended(tmp_path, revived_after_s=0.0)
    assert part.is_due()
    assert not part.is_ready


def test_one_whose_work_another_does_meanwhile_leaves_it_the_cores_first(tmp_path: Path) -> None:
    part = ended(tmp_path, revived_after_s=3600.0)
    assert not part.is_due()
    part.ended_at = (part.ended_at or 0.0) - 3600.0
    assert part.is_due()
    part.start()
    assert part.ended_at is None
