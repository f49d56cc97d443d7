"""Imports point one way: contracts <- udfs <- jobs <- ops; and nothing general knows a domain."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.domain import known_domains

ROOT = Path(__file__).parents[2]
LAYERS = ("contracts", "udfs", "jobs", "ops")
FILES = {
    str(path.relative_to(ROOT)): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))
}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every package imported anywhere in a file (in functions too), with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield (node.module or "").split(".")[0], node.lineno


def of_layer(*layers: str) -> list[str]:
    return [name for name in FILES if name.split("/")[0] in layers]


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_no_higher_layer_when_read(name: str) -> None:
    allowed = LAYERS[: LAYERS.index(name.split("/")[0]) + 1]
    # `./flyball bench` is the one way into benchmarks/, which stands on top of everything.
    above = {"tests"} if name == "ops/cli/checkout.py" else {"tests", "benchmarks"}
    forbidden = {*LAYERS, *above} - {*allowed}
    assert [found for found in imported(FILES[name]) if found[0] in forbidden] == []


@pytest.mark.parametrize("name", of_layer("contracts"))
def test_contracts_import_pydantic_only_when_read(name: str) -> None:
    allowed = {*sys.stdlib_module_names, "contracts", "pydantic", "pydantic_core"}
    assert [found for found in imported(FILES[name]) if found[0] not in allowed] == []


@pytest.mark.parametrize("name", of_layer("udfs"))
def test_only_shells_import_pyflink_when_in_udfs(name: str) -> None:
    is_shell = Path(name).name in ("flink.py", "sql_functions.py")
    assert is_shell or "pyflink" not in {package for package, _ in imported(FILES[name])}


def code_words(path: Path) -> set[str]:
    """Words of a file's names and strings, without its docstrings: there a domain may be an example."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, holders) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            texts.append(node.value)
        elif isinstance(node, ast.Name):
            texts.append(node.id)
        elif isinstance(node, ast.Attribute):
            texts.append(node.attr)
        elif isinstance(node, ast.alias):
            texts.append(node.name)
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


@pytest.mark.parametrize("name", of_layer("jobs", "udfs"))
def test_no_domain_is_named_when_the_code_is_for_all_of_them(name: str) -> None:
    assert code_words(FILES[name]) & set(known_domains()) == set()


@pytest.mark.parametrize("name", of_layer("jobs"))
def test_a_job_does_not_connect_or_load_when_imported(name: str) -> None:
    """At module level only definitions, constants and the main guard."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    calls = [
        node.lineno for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    assert calls == []


@pytest.mark.parametrize("name", of_layer("udfs", "jobs"))
def test_no_operator_gives_side_outputs(name: str) -> None:
    """PyFlink 2.2.1 fails on them in on_timer in thread mode, so what waited at start stopped a job."""
    assert "OutputTag" not in FILES[name].read_text(encoding="utf-8"), "write one stream (jobs/environment.py)"
