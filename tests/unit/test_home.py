"""Where an instance lives: who is alone there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from contracts.errors import SetupFailed
from ops.home import Home
from ops.run import bring_up
from ops.upgrade import upgrade


def test_a_second_process_of_a_kind_is_refused_with_the_firsts_pid_until_that_has_ended(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.alone("actuator-machines"):
        with pytest.raises(SetupFailed, match=f"pid {os.getpid()}"), home.alone("actuator-machines", patience_s=0):
            pass
        with home.alone("actuator-payments", patience_s=0), Home(tmp_path / "other").alone("actuator-machines", patience_s=0):
            pass
    with home.alone("actuator-machines", patience_s=0):
        pass


def test_a_job_is_not_upgraded_while_another_upgrade_of_its_domain_goes_on(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.alone("upgrade-machines"), pytest.raises(SetupFailed, match="another upgrade-machines"):
        upgrade(home, "machines", "govern", Console(quiet=True))
    with pytest.raises(SetupFailed, match="nothing runs"):
        upgrade(home, "machines", "govern", Console(quiet=True))


def test_a_domain_is_not_brought_up_while_another_command_brings_it_up(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.alone("up-machines"), pytest.raises(SetupFailed, match=f"another up-machines of {tmp_path} runs, pid"):
        bring_up(home, "machines", is_fresh=True, console=Console(quiet=True))
    assert not home.state_file.exists()
