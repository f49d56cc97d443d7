"""A contract may change only so that old events stay readable: what was published, what breaks, what lifts."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any, ClassVar, Literal

import jsonschema
import orjson
import pytest
from pydantic import Field

from contracts import published
from contracts.catalogue import EventType
from contracts.compatibility import breaks
from contracts.data import Data, FactData, current, unchanged
from contracts.domain import DomainContract, known_domains
from contracts.errors import BadInput, SetupFailed
from contracts.json_schema import data_schema
from ops.home import CHECKOUT
from udfs.serde import FactReader

DOMAINS = known_domains()


# --- what was published ----------------------------------------------------------------------------


def test_every_contract_is_published_and_may_follow_what_was_published_before() -> None:
    missing = [event for event in published.unpublished(DOMAINS) if published.folder_of(event).parent.exists()]
    assert missing == [], "a domain that is published is published whole: './flyball contracts publish'"
    assert (published.FOLDER / "flyball").exists()
    assert [str(one) for one in published.check(DOMAINS)] == []


def test_every_event_says_its_version_when_it_is_written() -> None:
    """`schema_urn` without a version would name the first for ever."""
    for layer in ("contracts", "udfs", "jobs", "ops"):
        for path in (CHECKOUT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "schema_urn":
                    assert len(node.args) == 3, f"{path}:{node.lineno}"


class Filled(FactData):
    """A tank was filled."""

    event_type: ClassVar[str] = "tank.filled"

    litres: int = Field(ge=0, le=1000)
    by: Literal["pump", "hand"]
    remark: str | None = Field(default=None, max_length=10)


def as_version(model: type[Data], version: int, *upcasts: Any) -> EventType:
    changed = type(model.__name__, (model,), {"schema_version": version, "upcasts": upcasts, "__module__": __name__, "__doc__": "x"})
    return EventType("machines", "facts", changed)


class WithPlace(Filled):
    place: str


class WithRemark(Filled):
    remark: str | None = Field(default=None, max_length=20)


class WithNarrower(FactData):
    event_type: ClassVar[str] = "tank.filled"

    litres: int = Field(ge=1, le=500)
    by: Literal["pump"]


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published: version 1 of Filled, alone."""
    published.publish(EventType("machines", "facts", Filled), tmp_path)
    return tmp_path


def found(below: Path, event: EventType, compatibility: Any = "backward") -> list[str]:
    return [f"{one.path}: {one.what}" if one.path else one.what for one in published._check(event, compatibility, below)]


def test_a_changed_contract_of_the_same_version_is_named_with_each_break(below: Path) -> None:
    assert found(below, EventType("machines", "facts", Filled)) == []
    told = found(below, as_version(WithNarrower, 1))
    assert told[0] == "differs from version 1 as published"
    assert told[1:] == [
        "data.litres: minimum is 1, was 0",
        "data.litres: maximum is 500, was 1000",
        "data.by: may be 'hand', expected one of ['pump']",
        "data.remark: is unknown, and may be there",
    ]
    assert found(below, as_version(WithRemark, 1)) == ["differs from version 1 as published"]


def test_the_next_version_needs_a_function_when_it_refuses_what_the_last_one_took(below: Path) -> None:
    assert found(below, as_version(WithRemark, 2, unchanged)) == []
    assert found(below, as_version(WithPlace, 2, unchanged)) == [
        "data.place: is required, and was unknown; events of version 1 would be refused"
    ]
    assert found(below, as_version(WithPlace, 2, lambda data: {**data, "place": "?"})) == []
    assert found(below, as_version(WithPlace, 2)) == ["version 2 has 0 upcasts, expected 1"]
    assert found(below, as_version(WithPlace, 3, unchanged, unchanged)) == ["is of version 3, and 1 is the last published"]


def test_what_old_readers_refuse_is_named_when_compatibility_is_forward_or_full(below: Path) -> None:
    longer = as_version(WithRemark, 2, unchanged)
    for compatibility in ("forward", "full"):
        assert found(below, longer, compatibility) == [
            "data.remark: maxLength is 10, was 20; what reads version 1 would refuse events of 2"
        ]


def test_a_type_that_is_gone_is_named(tmp_path: Path) -> None:
    published.publish(EventType("machines", "facts", Filled), tmp_path)
    (gone,) = published.check(["machines"], below=tmp_path)
    assert (gone.event_type, "in no contract any more" in gone.what) == ("tank.filled", True)


def test_a_version_is_published_once_and_again_only_when_its_type_is_named(tmp_path: Path) -> None:
    written = published.publish_new(["machines"], below=tmp_path)

    assert len(written) == sum(1 for _ in published.types_of(["machines"]))
    assert published.publish_new(["machines"], below=tmp_path) == []
    assert published.publish_new(["machines"], again={written[0].parent.name}, below=tmp_path) == [written[0]]
    with pytest.raises(SetupFailed, match="--replace: expected event types, came tank"):
        published.publish_new(["machines"], again={"tank.filled"}, below=tmp_path)


def test_nothing_is_published_when_one_type_may_not_follow(tmp_path: Path) -> None:
    (missing, *_) = published.publish_new(["machines"], below=tmp_path)
    missing.unlink()
    published.publish(EventType("machines", "facts", Filled), tmp_path)

    with pytest.raises(SetupFailed, match="not published:\ntank"):
        published.publish_new(["machines"], below=tmp_path)
    assert not missing.exists()


# --- what breaks -----------------------------------------------------------------------------------

TEXT, WHOLE, FLAG, NONE = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}


def an_object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


BREAKS: dict[str, tuple[Any, Any, list[str]]] = {
    # name: reader, writer, what breaks
    "a wider number": ({"type": "number"}, WHOLE, []),
    "a narrower number": (WHOLE, {"type": "number"}, ["data: may be number, expected an integer"]),
    "null allowed": ({"anyOf": [TEXT, NONE]}, TEXT, []),
    "null no longer": (TEXT, {"anyOf": [TEXT, NONE]}, ["data: may be null, expected string"]),
    "a type list": ({"type": ["string", "null"]}, {"anyOf": [NONE, TEXT]}, []),
    "an enum grows": ({"enum": ["a", "b"]}, {"const": "a"}, []),
    "an enum instead of any": ({"enum": ["a"], "type": "string"}, TEXT, ["data: may be any string, expected one of ['a']"]),
    "1 is not true": ({"enum": [True]}, {"enum": [1]}, ["data: may be 1, expected one of [True]"]),
    "a new bound": ({**WHOLE, "minimum": 1}, WHOLE, ["data: minimum is 1, was not asked for"]),
    "a pattern": ({**TEXT, "pattern": "a"}, {**TEXT, "pattern": "b"}, ["data: pattern is 'a', was 'b'"]),
    "a pattern taken away": (TEXT, {**TEXT, "pattern": "b"}, []),
    "a new optional field": (an_object(a=TEXT), an_object(), []),
    "a field less": (an_object(), an_object(a=TEXT), ["data.a: is unknown, and may be there"]),
    "a field renamed": (an_object("b", b=TEXT), an_object("a", a=TEXT), ["data.b: is required, and was unknown", "data.a: is unknown, and may be there"]),
    "required now": (an_object("a", a=TEXT), an_object(a=TEXT), ["data.a: is required, and may be missing"]),
    "deep": ({"type": "array", "items": an_object(a=WHOLE)}, {"type": "array", "items": an_object(a=TEXT)}, ["data[].a: may be string, expected an integer"]),
    "by reference": (
        {"$ref": "#/$defs/x", "$defs": {"x": an_object(a=FLAG)}}, {"$ref": "#/$defs/y", "$defs": {"y": an_object(a=WHOLE)}},
        ["data.a: may be an integer, expected boolean"],
    ),
    "within itself": (
        {"$ref": "#/$defs/x", "$defs": {"x": an_object(a={"anyOf": [{"$ref": "#/$defs/x"}, NONE]})}},
        {"$ref": "#/$defs/x", "$defs": {"x": an_object(a={"anyOf": [{"$ref": "#/$defs/x"}, NONE]})}}, [],
    ),
    "any value": ({}, {"anyOf": [TEXT, WHOLE]}, []),
    "no longer any value": (TEXT, {}, ["data: may be anything, expected string"]),
    "any other field": ({"type": "object", "additionalProperties": TEXT}, {"type": "object", "additionalProperties": WHOLE}, ["data.*: may be an integer, expected string"]),
    "fields of fields": (
        {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": TEXT}},
        {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": WHOLE}},
        ["data.*.*: may be an integer, expected string"],
    ),
    "an unknown word": ({**TEXT, "not": {"const": "a"}}, TEXT, ["data: not is {'const': 'a'}, was 'not asked for'"]),
    "words for people": ({**TEXT, "title": "A", "description": "b"}, {**TEXT, "title": "C"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_is_named_with_its_place(name: str) -> None:
    reader, writer, expected = BREAKS[name]
    assert [str(one) for one in breaks(reader, writer)] == expected


def a_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    """Any schema of the words our contracts use."""
    kind = rng.choice(["string", "integer", "number", "boolean", "null", "enum", "anyOf", "object", "array"][: 9 if depth else 6])
    match kind:
        case "string":
            return {"type": kind, **({"maxLength": rng.randint(1, 3)} if rng.random() < 0.5 else {})}
        case "integer" | "number":
            bound = rng.choice(["minimum", "maximum", "exclusiveMinimum", None])
            return {"type": kind, **({bound: rng.randint(-2, 2)} if bound else {})}
        case "enum":
            return {"enum": rng.sample([1, "a", "b", True, None, 2], rng.randint(1, 3))}
        case "anyOf":
            return {"anyOf": [a_schema(rng, depth - 1) for _ in range(2)]}
        case "object":
            names = rng.sample(["a", "b", "c"], rng.randint(0, 3))
            return {
                "type": kind, "properties": {name: a_schema(rng, depth - 1) for name in names},
                "required": [name for name in names if rng.random() < 0.5],
                "additionalProperties": rng.choice([False, True, a_schema(rng, 0)]),
            }  # fmt: skip
        case "array":
            return {"type": kind, "items": a_schema(rng, depth - 1), **({"maxItems": rng.randint(0, 2)} if rng.random() < 0.5 else {})}
        case _:
            return {"type": kind}


def a_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randint(0, 7 if depth else 5)
    if kind == 6:
        return {name: a_value(rng, depth - 1) for name in rng.sample(["a", "b", "c", "d"], rng.randint(0, 3))}
    if kind == 7:
        return [a_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return [rng.randint(-3, 3), rng.choice([0.5, 2.0, -1.5]), rng.choice(["", "a", "b", "aaaa"]), rng.random() < 0.5, None, "a"][kind]


def test_whatever_was_valid_stays_valid_when_no_break_is_found() -> None:
    """Against the JSON Schema library, over schemas and values made by chance, the same ones every time."""
    rng = random.Random(6)
    values = [a_value(rng, 2) for _ in range(150)]
    passed = refused = 0
    for _ in range(1500):
        writer, reader = a_schema(rng, 2), a_schema(rng, 2)
        if rng.random() < 0.5:
            reader = {**writer, "maxLength": 9} if rng.random() < 0.2 else {"anyOf": [reader, writer]}
        judges = [jsonschema.Draft202012Validator(schema) for schema in (writer, reader)]
        lost = [value for value in values if judges[0].is_valid(value) and not judges[1].is_valid(value)]
        if breaks(reader, writer):
            refused += 1
        else:
            passed += 1
            assert lost == [], (reader, writer)
    assert passed > 300 and refused > 300


# --- what lifts ------------------------------------------------------------------------------------


class Emptied(FactData):
    """Version 3: litres instead of gallons since 2, and who did it since 3."""

    event_type: ClassVar[str] = "tank.emptied"
    schema_version: ClassVar[int] = 3
    upcasts: ClassVar[Any] = (
        lambda data: {"litres": data["gallons"] * 4},
        lambda data: {**data, "by": "hand"},
    )

    litres: int
    by: Literal["pump", "hand"]


CONTRACT = DomainContract("tanks", {"tank.emptied": Emptied}, {}, {})


def read(data: object, version: object) -> Any:
    schema = None if version is None else f"urn:flyball:tanks:tank.emptied:{version}"
    event = {
        "specversion": "1.0", "id": "1", "source": "/x", "type": "tank.emptied", "subject": "t", "time": "2024-01-01T00:00:00Z",
        "dataschema": schema, "data": data,
    }  # fmt: skip
    return FactReader(CONTRACT, max_ahead_ms=0).read(b"t", orjson.dumps(event), 10**13).data


@pytest.mark.parametrize(
    ("version", "data", "litres"),
    [(1, {"gallons": 2}, 8), (2, {"litres": 5}, 5), (3, {"litres": 5, "by": "hand"}, 5), (None, {"litres": 5, "by": "hand"}, 5)],
)
def test_a_fact_of_an_older_version_is_read_as_one_of_now(version: int, data: dict[str, Any], litres: int) -> None:
    assert read(data, version) == Emptied(litres=litres, by="hand")


@pytest.mark.parametrize(
    ("version", "data", "code"),
    [
        (4, {"litres": 5, "by": "hand"}, "wrong_version"),
        ("x", {"litres": 5, "by": "hand"}, "wrong_version"),
        (0, {"litres": 5, "by": "hand"}, "wrong_version"),
        (1, {"litres": 5}, "data_invalid"),
        (1, {"gallons": 2, "other": 1}, None),
        (1, [], "data_invalid"),
        (2, {"litres": "5"}, "data_invalid"),
        (3, {"litres": 5}, "data_invalid"),
    ],
)
def test_a_fact_is_refused_when_its_version_is_none_or_its_data_cannot_be_lifted(version: object, data: object, code: str | None) -> None:
    if code is None:
        assert read(data, version) == Emptied(litres=8, by="hand"), "an upcast takes what it knows"
        return
    with pytest.raises(BadInput) as refused:
        read(data, version)
    assert refused.value.code == code


OLD_EVENTS = Path(__file__).parents[1] / "data" / "old_events"


def test_an_old_event_of_every_upcast_there_is_fits_its_contract_now() -> None:
    """tests/data/old_events/<event type>/<version>.json holds the data of an event of each older version."""
    upcast = {event.name: event.data for event in published.types_of(DOMAINS) if event.data.upcasts} | {"tank.emptied": Emptied}
    for name, kind in upcast.items():
        for version in range(1, kind.schema_version):
            data = json.loads((OLD_EVENTS / name / f"{version}.json").read_text())
            lifted = current(kind, {"dataschema": f"urn:flyball:any:{name}:{version}", "data": data})
            assert kind.model_validate_json(json.dumps(lifted))
            jsonschema.Draft202012Validator(data_schema(kind)).validate(lifted)
