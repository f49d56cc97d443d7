"""The command line: `./flyball help`. `COMMANDS` says which module here has a command; each is a thin front of ops/.

A module is imported when one of its commands is asked for, so a start costs one of them, and `help` all.
"""

from __future__ import annotations

from collections import UserDict
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

# What is typed first -> the module that has it, in the order of the help.
COMMANDS = {
    "run": "instance",
    "up": "instance",
    "down": "instance",
    "upgrade": "jobs",
    "state": "jobs",
    "status": "instance",
    "emit": "topics",
    "read": "topics",
    "replay": "replay",
    "trace": "topics",
    "pause": "switches",
    "resume": "switches",
    "approve": "approvals",
    "refuse": "approvals",
    "edit": "approvals",
    "override": "approvals",
    "model-server": "model",
    "sql": "topics",
    "sbom": "checkout",
    "new": "checkout",
    "bench": "checkout",
    "torture": "checkout",
    "test": "checkout",
    "help": "checkout",
    "policy": "policy",
    "approvals": "approvals",
    "model": "model",
    "prompt": "prompt",
    "dead-letters": "dead_letters",
    "contracts": "contracts",
    "audit": "audit",
    "producers": "producers",
    "access": "access",
}


@cache
def commands_of(module: str) -> TyperGroup:
    """Every command of a module of this package, as its `app` has them."""
    return get_group(import_module(f"ops.cli.{module}").app)


class _Commands(UserDict[str, Any]):
    """Name -> command, made of name -> module."""

    def __getitem__(self, name: str) -> Any:
        return commands_of(self.data[name]).commands[name]


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(COMMANDS)


app = typer.Typer(
    name="flyball", cls=_Group, callback=lambda: None,  # typer makes a group only of what has a callback or commands
    help="Runs autonomous agents on live event streams; none acts until a versioned policy allows it.",
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip
