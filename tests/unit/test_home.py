"""Where an instance lives: who is alone there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts.errors import SetupFailed
from ops.home import Home


def test_a_second_process_of_a_kind_is_refused_with_the_firsts_pid_until_that_has_ended(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.alone("actuator-machines"):
        with pytest.raises(SetupFailed, match=f"pid {os.getpid()}"), home.alone("actuator-machines", patience_s=0):
            pass
        with home.alone("actuator-payments", patience_s=0), Home(tmp_path / "other").alone("actuator-machines", patience_s=0):
            pass
    with home.alone("actuator-machines", patience_s=0):
        pass
