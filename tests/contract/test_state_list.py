"""docs/state.yaml says what the jobs keep. Operators of running jobs are held against it in tests/flink and beside."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from contracts.domain import known_domains
from ops import state_list
from ops.home import CHECKOUT
from udfs.state import SCHEMAS

LISTED = state_list.read()


@pytest.mark.parametrize(("job", "uid"), [("propose", "propose-agents"), ("reason", "reason-ask"), ("govern", "govern-truth-table")])
def test_the_states_of_an_operator_are_listed_as_it_opens_them(job: str, uid: str) -> None:
    (listed,) = [operator for operator in LISTED[job] if operator["uid"] == uid]
    assert listed["states"] == state_list.states(uid), "./flyball state --write, and see 'Upgrading' in docs/operations.md"


def test_every_value_that_is_no_number_has_a_version() -> None:
    found: dict[str, Any] = {f"{job}/{s['state']}": s for job in ("propose", "reason", "govern") for o in LISTED[job] for s in o.get("states", ())}
    assert {name for name, state in found.items() if "version" in state} == set(SCHEMAS)
    numbers = {name for name, state in found.items() if "version" not in state}
    assert numbers == {"govern/seen", "govern/seen_even", "govern/seen_odd", "reason/done"}
    assert all("Long" in found[name]["type"] for name in numbers)


def test_states_are_declared_where_the_list_looks_for_them() -> None:
    """A descriptor made within a function, or in another module, would be in no list."""
    looked_at = {str(module.__file__) for modules in state_list._OPENED.values() for module in modules}
    for path in [*(CHECKOUT / "udfs").rglob("*.py"), *(CHECKOUT / "jobs").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("StateDescriptor")]
        at_top = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        assert all(node in at_top for node in made), path
        assert not made or str(path) in looked_at, path


def test_no_domain_is_listed_that_is_gone() -> None:
    assert set(LISTED["context"]) <= set(known_domains())
