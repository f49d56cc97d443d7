"""The command line as a package: which module has a command, what a start imports, what is printed how."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from kafka.errors import KafkaTimeoutError
from typer.core import TyperGroup

from contracts.errors import SetupFailed
from contracts.policy import PolicySwitch
from ops import approvals, cli, policies
from ops.cli import terminal
from ops.home import CHECKOUT
from ops.versions import chosen

MODULES = {path.stem for path in (CHECKOUT / "ops" / "cli").glob("*.py")} - {"__init__", "__main__", "terminal", "options"}


def test_every_command_is_in_the_module_the_table_says_and_no_module_has_others() -> None:
    found = {name: module for module in MODULES for name in cli.commands_of(module).commands}

    assert found == cli.COMMANDS


def test_every_command_tells_what_it_does() -> None:
    def silent(group: TyperGroup, path: str = "") -> list[str]:
        found = []
        for name, each in group.commands.items():
            found += [f"{path} {name}"] if not each.help else []
            found += silent(each, f"{path} {name}") if isinstance(each, TyperGroup) else []
        return found

    assert silent(typer.main.get_group(cli.app)) == []


def run(*words: str, code: str = "from ops.cli import app; app()") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_a_start_imports_the_module_of_the_command_and_no_other() -> None:
    said = run(
        "policy", "eval", "--when", "a > 1", "--vars", '{"a": 2}',
        code="import atexit, sys; from ops.cli import app; atexit.register(lambda: print(*sorted(sys.modules))); app()",
    )  # fmt: skip

    assert said.stdout.startswith('{"value": true}\n')
    imported = {name.removeprefix("ops.cli.") for name in said.stdout.split() if name.startswith("ops.cli.")}
    assert imported & MODULES == {"policy"}


def test_a_command_mistyped_is_answered_with_its_neighbours() -> None:
    said = run("polcy")

    assert said.returncode == 2
    assert "No such command 'polcy'. Did you mean 'policy'?" in said.stderr


def test_what_events_hold_is_not_obeyed_when_printed(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table(("what", "n"), [("[red]x[/red]\x1b[2J", 3)])

    assert "[red]x[/red]\\x1b[2J" in capsys.readouterr().out


@pytest.mark.parametrize("error", [httpx.ConnectError("nobody is there"), KafkaTimeoutError("nobody is there")])
def test_it_is_one_line_that_broker_or_flink_did_not_answer(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), terminal.told():
        raise error
    told = " ".join(capsys.readouterr().err.split())
    assert re.fullmatch(r"error: broker or Flink did not answer \((KafkaTimeoutError: )?nobody is there\); './flyball status' tells why", told)


def test_a_table_of_cases_fails_when_one_did(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_cases([("one", None, False), ("two", None, True)])
    assert capsys.readouterr().out.splitlines() == ["ok one", "left out two", "1 cases passed, 1 left out"]

    with pytest.raises(SetupFailed, match="1 of 2 cases failed"):
        terminal.print_cases([("one", None, False), ("two", "expected [a], came b", False)])
    assert "failed two\n   expected [a], came b\n" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match=re.escape(f"cannot read '{tmp_path}': Is a directory")):
        terminal.read_bytes(str(tmp_path))


VERSIONS = {"cooling@9": 9, "cooling@10": 10, "cool@3": 3}


@pytest.mark.parametrize(("name", "version"), [("cooling", 10), ("cooling@9", 9), ("cool", 3)])
def test_an_id_alone_means_its_newest_version(name: str, version: int) -> None:
    assert chosen(VERSIONS, name) == version


@pytest.mark.parametrize("name", ["cooling@2", "coo", ""])
def test_a_version_that_is_not_published_is_refused(name: str) -> None:
    with pytest.raises(SetupFailed, match="expected one of"):
        chosen(VERSIONS, name)


def asked(**scope: str) -> PolicySwitch:
    given = dict.fromkeys(("agent", "action", "subject")) | scope
    return policies.switch("machines", is_paused=True, reason="drill", author="kim", **given)


def test_a_switch_is_of_what_the_domain_has() -> None:
    assert asked(agent="heat-rule", action="activate_cooling", subject="m-1").model_dump() == {
        "paused": True, "agent": "heat-rule", "action": "activate_cooling", "subject": "m-1", "reason": "drill",
        "author": "kim",
    }  # fmt: skip
    with pytest.raises(SetupFailed, match=r"--agent: expected one of .*'heat-rule'.*, came 'heat'"):
        asked(agent="heat")
    with pytest.raises(SetupFailed, match=r"--action: expected one of .*, came 'cool'"):
        asked(action="cool")


def test_parameters_of_an_action_the_domain_has_not_are_refused() -> None:
    with pytest.raises(SetupFailed, match=r"expected an action of .*, came 'cool'"):
        approvals.typed("machines", "cool", ())


@pytest.mark.parametrize(
    ("last", "is_counted"),
    [
        ({"what": "counted"}, True),
        ({"what": "refused"}, False),
        ({"verdict": "allow", "reason": "approved"}, True),
        ({"verdict": "deny", "reason": "rate_limit", "override": None}, True),
        ({"verdict": "allow", "reason": "override", "override": {}}, True),
        ({"verdict": "deny", "reason": "override_not_permitted", "override": {}}, False),
        ({"verdict": "deny", "reason": "paused", "override": {}}, False),
        ({"verdict": "deny", "reason": "forbidden_by_policy", "override": {}}, False),
        ({"verdict": "deny", "reason": "policy_error", "override": {}}, False),
    ],
)
def test_an_answer_has_counted_unless_govern_refused_it_and_an_override_when_it_commands(
    last: dict[str, object], is_counted: bool
) -> None:
    assert approvals.has_counted([{"data": {"what": "counted"}}, {"data": last}]) is is_counted
