"""README.md and docs/: what they name exists, and what they show is taken by the code. No broker is needed."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer

import contracts
from contracts.decision import Reason
from contracts.domain import load_domain
from jobs.settings import Settings
from ops.cli import app
from ops.policies import check_files
from ops.skeleton import lay_out
from udfs.agents.definition import load_agents
from udfs.policy.cel import eval_condition
from udfs.yaml_file import read_yaml

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "deploy" / "kubernetes" / "README.md"]
FOLDERS = ("contracts", "udfs", "jobs", "ops", "sql", "conf", "docs", "deploy", "docker", "tests", "data")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language ("" where none is named) and text of each fenced block, those inside a list too."""
    for _, language, text in re.findall(r"(?ms)^( *)```(\w*)\n(.*?)^\1```$", page.read_text()):
        yield language, textwrap.dedent(text)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"(?ms)^( *)```\w*\n.*?^\1```$", "", page.read_text())


def section(heading: str) -> str:
    """A section of the README, from its heading to the next of the same level."""
    return README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


# ------------------------------------------------------------------------------ what they name


def anchors(page: Path) -> set[str]:
    """The names GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_a_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@each_page
def test_a_path_of_the_checkout_exists(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^`\s:*,]*)(?::\w+)?`", prose(page))
    # Not those with a name to be filled in, nor a domain that the reader is to make; SQL files are called by their number.
    real = [path for path in named if not re.search(r"<|DOMAIN|deliveries|producers\.yaml", path)]
    assert [path for path in real if not (ROOT / path).exists() and not [*ROOT.glob(f"{path}_*.sql")]] == []


@each_page
def test_a_variable_of_the_environment_is_read_somewhere(page: Path) -> None:
    code = [path for folder in ("udfs", "jobs", "ops") for path in (ROOT / folder).rglob("*.py")]
    read = "".join(path.read_text() for path in (*code, ROOT / "flyball", ROOT / "docker-compose.yml"))
    known = {f"FLYBALL_{name.upper()}" for name in Settings.model_fields}
    known |= {f"FLYBALL_{port}_PORT" for port in ("KAFKA", "CONTROLLER", "REST", "JOBMANAGER", "INTERNAL")}
    named = set(re.findall(r"\bFLYBALL_[A-Z_]+[A-Z]", page.read_text()))
    assert {name for name in named - known if name not in read} == set()


def commands(page: Path) -> Iterator[str]:
    """Every `./flyball ...` of a page, without the variables before and the comment behind."""
    lines = [line for _, text in blocks(page) for line in text.splitlines()]
    for line in [*lines, *re.findall(r"`([^`]+)`", prose(page))]:
        if found := re.search(r"(?:^|\s)\./flyball\s+([^#;]+)", line):
            yield " ".join(found[1].split())


def problem(command: str) -> str | None:
    """What of a command the command line does not know; None when it knows all. `a|b` means either."""
    at: Any = typer.main.get_command(app)
    words = shlex.split(re.sub(r"[\[\]]", " ", command))
    while hasattr(at, "commands") and words and words[0] not in ("COMMAND", "..."):
        names, words = words[0].split("|"), words[1:]
        if unknown := set(names) - set(at.commands):
            return f"no command {unknown}"
        at = at.commands[names[0]]
    known = {"--help", *(option for parameter in at.params for option in parameter.opts)}
    unknown = {word for word in words if re.match("--?[a-z]", word)} - known
    return f"no option {unknown}" if unknown else None


def test_an_unknown_command_or_option_is_seen() -> None:
    assert problem("policy move machines cooling@2 active --reason x") is None
    assert problem("policy shove machines") is not None
    assert problem("run machines --fast") is not None


@each_page
def test_a_command_is_known_with_its_options(page: Path) -> None:
    assert {command: wrong for command in commands(page) if (wrong := problem(command)) is not None} == {}


def test_the_readme_names_every_command() -> None:
    assert {"run machines", "test", "sql -f query.sql"} <= set(commands(README))
    named = set(re.findall(r"[a-z][a-z-]+", section("Commands")))
    tree: Any = typer.main.get_command(app)
    assert set(tree.commands) - named == set()


def test_the_readme_gives_every_reason_a_verdict() -> None:
    rows = re.findall(r"(?m)^\| (`[^|]+) \| (\w+) \|", section("Why a decision was made"))
    told = [(reason, verdict) for reasons, verdict in rows for reason in re.findall(r"`(\w+)`", reasons)]
    assert sorted(reason for reason, _ in told) == sorted(Reason)
    assert {verdict for _, verdict in told} == {"allow", "deny", "hold"}


# ------------------------------------------------------------------------------- what they show


@pytest.fixture
def deliveries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a domain `deliveries` as `./flyball new` lays it out, importable as if it were in the checkout."""
    lay_out("deliveries", root=tmp_path)
    monkeypatch.setattr(contracts, "__path__", [*contracts.__path__, str(tmp_path / "contracts")])
    load_domain.cache_clear()
    yield tmp_path
    load_domain.cache_clear()
    sys.modules.pop("contracts.deliveries", None)
    contracts.__dict__.pop("deliveries", None)


def shown(key: str) -> list[str]:
    """The YAML blocks of all pages that begin with `key`."""
    return [text for page in PAGES for language, text in blocks(page) if language == "yaml" and text.startswith(f"{key}:")]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_policy_that_is_shown_is_taken(deliveries: Path) -> None:
    texts = shown("policy_id")
    assert len(texts) == 3
    for text in texts:
        domain = "machines" if "policy_id: cooling" in text else "deliveries"
        assert check_files(domain, [written(deliveries / "policy.yaml", text)])


def test_terms_of_approval_that_are_shown_are_taken(deliveries: Path) -> None:
    (terms,) = shown("verdict")
    policy = 'policy_id: shown\nversion: 1\nstatus: draft\nwhen: "true"\nreason: shown\n' + terms
    (taken,) = check_files("loans", [written(deliveries / "policy.yaml", policy)])
    assert taken.approval is not None and taken.approval.approvers == 2


def test_agents_that_are_shown_are_taken(deliveries: Path) -> None:
    rule, asking = shown("agents")
    assert load_agents(written(deliveries / "agents.yaml", rule), load_domain("deliveries"))

    (triage,) = read_yaml(written(deliveries / "agents.yaml", asking))["agents"]
    shipped = read_yaml(ROOT / "conf" / "incidents" / "agents.yaml")["agents"]
    both = [triage, *(agent for agent in shipped if agent["agent"] != triage["agent"])]
    file = written(deliveries / "agents.yaml", orjson.dumps({"agents": both}).decode())
    assert len(load_agents(file, load_domain("incidents"))) == len(shipped)


def test_a_condition_that_is_tried_answers_as_shown() -> None:
    text = (ROOT / "docs" / "policies.md").read_text()
    tried = re.findall(r"policy eval --when '(.*?)' --vars '(.*?)'\n(.*)\n", text)
    assert len(tried) == 2
    for when, variables, answer in tried:
        assert eval_condition(when, orjson.loads(variables)) == orjson.loads(answer)
