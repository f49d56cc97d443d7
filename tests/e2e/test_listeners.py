"""Who can reach an instance that nobody secured: only this machine, and its files only who runs it."""

from __future__ import annotations

import psutil

from tests.listening import addresses
from tests.loop import Loop


def test_every_process_listens_on_this_machine_only(machines: Loop) -> None:
    state = machines.home.read_state()
    parts = state["processes"]
    assert isinstance(parts, dict)
    found = {}
    for name, part in parts.items():
        process = psutil.Process(part["pid"])
        found[name] = [a for each in (process, *process.children(recursive=True)) for a in addresses(each)]
    for name, least in {"broker": 2, "jobmanager": 3, "taskmanager-0": 2}.items():
        assert len(found[name]) >= least, f"{name}: {found[name]}"
    assert {name: strange for name, each in found.items() if (strange := [str(a) for a in each if not a.is_loopback])} == {}


def test_nobody_else_on_this_machine_reads_what_an_instance_keeps(machines: Loop) -> None:
    found = {folder.name: oct(folder.stat().st_mode & 0o777) for folder in (machines.home.run, machines.home.logs)}
    assert found == {"run": "0o700", "logs": "0o700"}
