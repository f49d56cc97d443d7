"""The CEL conformance cases: what is admitted is answered as the specification says, or held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from udfs.policy.cel import eval_condition

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/cel/conformance_sample.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


def plain(value: dict[str, Any]) -> object:
    """A typed value of the cases as JSON has it (bytes as text: no variable holds bytes)."""
    match value["type"]:
        case "list":
            return [plain(element) for element in value["value"]]
        case "map":
            return {plain(key): plain(element) for key, element in value["entries"]}
        case "bytes":
            return value["value_b64"]
        case _:
            return value.get("value")


def answer(case: dict[str, Any]) -> dict[str, bool | str]:
    variables = {name: plain(value) for name, value in case["bindings"].items()}
    return eval_condition(case["expr"], variables)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_value_is_the_specified_one_when_a_case_is_admitted(
    case: dict[str, Any],
) -> None:
    got = answer(case)
    if "value" in got:
        assert case["expect"]["kind"] == "value"
        assert case["expect"]["value"] == {"type": "bool", "value": got["value"]}


def test_nearly_all_bools_are_answered_when_the_sample_is_played() -> None:
    bools = [
        case
        for case in CASES
        if case["expect"]["kind"] == "value" and case["expect"]["value"]["type"] == "bool"
    ]
    refused = {case["expr"] for case in bools if "value" not in answer(case)}
    assert refused == {
        # mixed types, which the type check is there to refuse
        "1.0 == 1", "2u != 2", "'horses' && false", "true || 32",
        # variables of types that JSON does not have
        "999u == x",
        # NUL in the text
        "x > b'\x00'", "b'' >= b'\x00'", "b'\x01\x00' <= b'\x01'", "b'\x00' > b''",
        # 1 and 1u are one key to the specification, two to the Rust engine
        "{1: 1.0, 2u: 3u} == {1u: 1, 2: 3.0}",
    }  # fmt: skip
