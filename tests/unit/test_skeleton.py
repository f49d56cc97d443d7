"""`./flyball new`: what is laid out fits together, and nothing that exists is touched."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import contracts
import ops.worlds
from contracts.data import Data
from contracts.domain import DomainContract, columns, load_domain
from contracts.errors import BadInput, SetupFailed
from ops.policies import check_files
from ops.skeleton import SKELETON, lay_out
from ops.world import Order, World, load_world
from udfs.agents.definition import load_agents

NAME = "trial_domain"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the skeleton laid out in it, importable as if it were the checkout."""
    lay_out(NAME, root=tmp_path)
    for package, folder in ((contracts, "contracts"), (ops.worlds, "ops/worlds")):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    load_domain.cache_clear()
    yield tmp_path
    load_domain.cache_clear()
    for package, attribute in ((contracts, f"contracts.{NAME}"), (ops.worlds, f"ops.worlds.{NAME}")):
        sys.modules.pop(attribute, None)
        package.__dict__.pop(NAME, None)


@pytest.fixture
def contract(root: Path) -> DomainContract:
    return load_domain(NAME)


@pytest.fixture
def world(root: Path) -> World:
    return load_world(NAME)


def test_the_placeholder_is_gone_from_every_path_and_file(root: Path) -> None:
    files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]

    assert len(files) == len([p for p in SKELETON.rglob("*") if p.is_file() and p.suffix != ".pyc"])
    for path in files:
        assert "newdomain" not in f"{path.relative_to(root)} {path.read_text()}".lower()


def test_paths_come_back_relative_to_the_root(tmp_path: Path) -> None:
    written = lay_out("deliveries", root=tmp_path)

    assert Path("contracts/deliveries.py") in written
    assert all((tmp_path / path).is_file() for path in written)


def test_the_contract_loads_with_a_variable_for_every_feature_and_parameter(
    contract: DomainContract,
) -> None:
    variables = contract.policy_variables()

    assert variables["feature_level_percent"] == "double"
    assert variables["feature_readings_seen"] == "int"
    assert variables["parameter_amount_percent"] == "double"


def test_policies_pass_the_checks_of_publishing(root: Path) -> None:
    policies = check_files(NAME, sorted((root / "conf" / NAME / "policies").glob("*.yaml")))

    assert {policy.verdict for policy in policies} == {"allow", "deny", "hold"}
    assert all(policy.examples for policy in policies)


def test_agents_fit_the_contract(root: Path, contract: DomainContract) -> None:
    agents = load_agents(root / "conf" / NAME / "agents.yaml", contract)

    assert {agent.situation for agent in agents} <= set(contract.situations)


def test_every_situation_has_its_view_with_its_columns(
    root: Path, contract: DomainContract
) -> None:
    sql = "\n".join(path.read_text() for path in (root / "sql" / NAME).glob("[0-9]*.sql"))

    for kind, situation in contract.situations.items():
        view = re.search(rf"CREATE VIEW {kind.split('.')[1]} AS(.*?);\n", sql, re.DOTALL)
        assert view, kind
        for column in (*columns(situation), "subject", "cause_id", "event_ms", "correlation_id", "hops"):
            assert column == "event_time" or re.search(rf"\b{column}\b", view[1]), (kind, column)


def test_the_sql_shows_each_kind_of_query(root: Path) -> None:
    sql = "\n".join(path.read_text() for path in (root / "sql" / NAME).glob("[0-9]*.sql"))

    assert re.search(r"OVER \(\s*PARTITION BY subject ORDER BY arrival ROWS", sql)
    assert "MATCH_RECOGNIZE (" in sql
    assert "FROM TUMBLE(" in sql


def test_generated_facts_fit_the_contract_and_repeat_with_their_seed(
    world: World, contract: DomainContract
) -> None:
    facts = list(world.generate(seed=7, count=200))

    assert facts == list(world.generate(seed=7, count=200))
    assert facts != list(world.generate(seed=8, count=200))
    for fact in facts:
        model: type[Data] = contract.facts[fact.type]
        model.model_validate(fact.data)


def test_a_csv_row_becomes_a_fact_about_its_tank(world: World) -> None:
    row = {"time": "2025-06-01 12:00:00", "tank": "north", "level_percent": "41.5"}

    fact = world.row_to_fact(row, None)

    assert (fact.subject, fact.data) == ("north", {"level_percent": 41.5})


@pytest.mark.parametrize(
    "row",
    [
        {"time": "2025-06-01", "tank": "north"},
        {"time": "2025-06-01", "level_percent": "much"},
        {"time": "2025-06-01", "level_percent": "nan"},
        {"time": "yesterday", "level_percent": "1"},
    ],
)
def test_a_csv_row_that_is_no_fact_is_refused(world: World, row: dict[str, str]) -> None:
    with pytest.raises(BadInput) as refused:
        world.row_to_fact(row, "north")

    assert refused.value.code == "row_invalid"


def test_every_action_has_a_handler(world: World, contract: DomainContract) -> None:
    handlers = world.handlers(1)

    assert set(handlers) == set(contract.actions)
    for action, handler in handlers.items():
        order = Order("c-1", action, "tank-1", {}, "2025-01-01T00:00:00Z")
        assert handler(order) == handler(order)


@pytest.mark.parametrize(
    "name",
    [
        *("", "x", "1st", "Caps", "with-dash", "with.dot", "with space", "../up", "naïve", "a" * 41, "end\n"),
        *("class", "match", "json", "email", "flyball", "contracts", "newdomain"),
    ],
)
def test_a_name_that_cannot_be_a_domain_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetupFailed, match="expected a domain name"):
        lay_out(name, root=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_the_domain_exists(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.yaml")}
    (root / "conf" / NAME / "agents.yaml").unlink()

    with pytest.raises(SetupFailed, match="nothing was written"):
        lay_out(NAME, root=root)

    assert not (root / "conf" / NAME / "agents.yaml").exists()
    assert all(path.read_bytes() == text for path, text in before.items() if path.exists())


@pytest.mark.parametrize("taken", ["machines", "payments", "envelope", "topics"])
def test_a_module_of_the_checkout_is_never_taken(taken: str) -> None:
    with pytest.raises(SetupFailed, match=rf"expected no domain '{taken}' yet, found .*{taken}"):
        lay_out(taken)
