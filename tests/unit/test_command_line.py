"""The command line as a package: which module has a command, what a start imports, what is printed how."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from kafka.errors import KafkaTimeoutError
from typer.core import TyperGroup
from typer.testing import CliRunner

from contracts.errors import SetupFailed
from contracts.policy import PolicySwitch
from ops import access, approvals, cli, instance, policies, policy_tests, versions
from ops import run as runner
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


# What they print is JSON without being asked for it, or for people's eyes alone.
PRINT_JSON = {"read", "sbom", "policy show", "policy eval", "model train", "dead-letters show", "contracts check-event"}
FOR_PEOPLE = {"sql", "test", "help"}


def test_every_command_has_json_for_programs() -> None:
    def without(group: TyperGroup, path: str = "") -> set[str]:
        found = set()
        for name, each in group.commands.items():
            if isinstance(each, TyperGroup):
                found |= without(each, f"{path}{name} ")
            elif not any("--json" in parameter.opts for parameter in each.params):
                found.add(f"{path}{name}")
        return found

    assert without(typer.main.get_group(cli.app)) == PRINT_JSON | FOR_PEOPLE


def printed(*words: str, code: int = 0) -> Any:
    """The one JSON value on standard output, and nothing else there."""
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be published goes nowhere."""
    monkeypatch.setenv("FLYBALL_BOOTSTRAP_SERVERS", "nowhere:1")
    monkeypatch.setattr(versions, "write", lambda *_, **__: None)
    monkeypatch.setattr(versions, "events", lambda *_: iter(()))
    monkeypatch.setattr(instance, "is_running", lambda _: False)
    monkeypatch.setattr(instance, "stop", lambda _: False)
    monkeypatch.setattr(runner, "bring_up", lambda *_, **__: (None, {"setup": 1.5}))


SWITCH = {"agent": None, "action": "activate_cooling", "subject": None, "reason": "drill", "author": terminal.user()}


@pytest.mark.usefixtures("no_broker")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("pause machines --action activate_cooling --reason drill", {"domain": "machines", "paused": True, **SWITCH}),
        ("resume machines --action activate_cooling --reason drill", {"domain": "machines", "paused": False, **SWITCH}),
        ("policy publish machines conf/machines/policies/cooling.yaml", {"published": ["cooling@1"]}),
        ("up machines", {"domain": "machines", "fresh": True, "seconds": {"setup": 1.5}}),
        ("up machines --resume", {"domain": "machines", "fresh": False, "seconds": {"setup": 1.5}}),
        ("down", {"was_running": False}),
    ],
)
def test_a_program_is_told_what_was_done(words: str, told: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert printed(*words.split(), "--json") == told


@pytest.mark.usefixtures("no_broker")
def test_a_program_is_told_which_models_and_prompts_were_published() -> None:
    (model,) = printed("model", "publish", "machines", "--json")["published"]
    assert model["alias"] == "machine-health" and len(model["sha256"]) == 64
    assert all("@" in name for name in printed("prompt", "publish", "incidents", "--json")["published"])
    assert {each["prompt"] for each in printed("prompt", "check", "incidents", "--json")["prompts"]}


@pytest.mark.usefixtures("no_broker")
def test_a_program_is_told_which_versions_were_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    (cooling,) = policies.check_files("machines", [CHECKOUT / "conf" / "machines" / "policies" / "cooling.yaml"])
    newer = cooling.model_copy(update={"version": 2})
    known = {f"cooling@{p.version}": policies.PublishedPolicy(p, 0, "then") for p in (cooling, newer)}
    monkeypatch.setattr(policies, "published", lambda *_: known)

    moved = printed("policy", "move", "machines", "cooling@2", "canary", "--percent", "5", "--json")
    assert moved == {"policy": "cooling@2", "status": "canary", "canary_percent": 5.0}
    back = printed("policy", "rollback", "machines", "cooling@1", "--json")
    assert back == {"moved": [{"policy": "cooling@1", "status": "active"}, {"policy": "cooling@2", "status": "retired"}]}


@pytest.mark.usefixtures("no_broker")
def test_a_program_is_told_where_new_passwords_and_keys_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYBALL_HOME", str(tmp_path))
    access.made(tmp_path / "secrets", "machines")
    who, file = "machines.producer-gateway", tmp_path / "secrets" / "machines.producer-gateway.properties"

    assert printed("access", "add", "machines", "producer", "gateway", "--json") == {"principal": who, "file": str(file), "in_force": False}
    assert printed("access", "rotate", "machines", "producer-gateway", "--json") == {"principals": [who], "in_force": False}
    assert printed("access", "remove", "machines", "producer", "gateway", "--json") == {"principal": who, "in_force": False}
    assert datetime.fromisoformat(printed("access", "renew", "--json")["not_after"]) > datetime.now(UTC)
    made = printed("producers", "keygen", "machines", "meters", "--output", str(tmp_path / "meters.pem"), "--json")
    assert Path(made["private_key"]).is_file() and "key_id: meters" in made["entry"]


def test_a_program_is_told_each_problem_of_a_policy(tmp_path: Path) -> None:
    good, bad = CHECKOUT / "conf" / "machines" / "policies" / "cooling.yaml", tmp_path / "bad.yaml"
    assert printed("policy", "check", "machines", str(good), "--json") == {"ok": True, "policies": [{"policy": "cooling@1", "examples": 4}]}

    bad.write_text("policy_id: bad\nversion: 1\nstatus: active\nwhen: confidence > 1\nverdict: allow\nreason: none\n")
    told = printed("policy", "check", "machines", str(bad), "--json", code=1)
    assert told["ok"] is False
    assert {(each["file"], each["line"], each["column"], each["got"]) for each in told["problems"]} == {(str(bad), 4, 18, "(double, int)")}


def test_a_program_is_told_which_case_of_policies_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = printed("policy", "test", "machines", "--json")
    assert cases and all(case["problem"] is None for case in cases)

    monkeypatch.setattr(policy_tests, "run", lambda *_: [policy_tests.Result("one", None), policy_tests.Result("two", "row 0: no")])
    assert printed("policy", "test", "machines", "--json", code=1) == [{"case": "one", "problem": None}, {"case": "two", "problem": "row 0: no"}]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("confidence >= 0.8", '{"confidence": 1}'), {"value": True}),
        (("feature_temperature > 2.5", '{"feature_temperature": 3}', "--domain", "machines"), {"value": True}),
        (("x > 1", '{"x": 2}'), {"value": True}),
    ],
)
def test_a_condition_is_tried_with_the_types_that_policies_declare(words: tuple[str, ...], told: object) -> None:
    when, given, *more = words
    assert printed("policy", "eval", "--when", when, "--vars", given, *more) == told


def test_a_feature_that_the_domain_does_not_have_is_refused() -> None:
    said = run("policy", "eval", "--when", "feature_tempo > 1", "--vars", '{"feature_tempo": 3}', "--domain", "machines")
    assert (said.returncode, said.stdout) == (1, "")
    assert "--vars: machines has no variable 'feature_tempo'" in said.stderr


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
