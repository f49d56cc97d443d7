"""State that older code wrote is read by this code; state that newer code wrote is refused."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from contracts.approval import Person
from contracts.errors import StateRefused
from contracts.model import ModelAlias
from contracts.prompt import Prompt
from udfs.policy.policy_book import PolicyBook
from udfs.policy.reading import Reported
from udfs.policy.subject import SubjectState
from udfs.reason.desk import Call
from udfs.state import SCHEMAS, StateSchema
from udfs.wide_limits.core import Entry, WideLimits

# v<version>.json: state -> values as the code of that version stored them (records of lists pickled, in base64).
DATA = Path(__file__).parents[1] / "data" / "state"
RECORDED = [
    (name, version, text)
    for name, schema in SCHEMAS.items()
    for version in range(schema.version)
    for text in json.loads((DATA / f"v{version}.json").read_text())[name]
]
READERS: dict[str, Callable[[str], object]] = {
    "govern/subject": lambda text: SubjectState.from_json(text).to_json(),
    "govern/policies": lambda text: PolicyBook.from_json(text).compile(),
    "govern/limits": lambda text: WideLimits.restore(text, []),
    "govern/limit_claims": lambda text: Entry(**SCHEMAS["govern/limit_claims"].load(text)),
    "propose/models": lambda text: ModelAlias.model_validate_json(SCHEMAS["propose/models"].text(text)),
    "reason/calls": lambda text: Call(**SCHEMAS["reason/calls"].load(text)),
    "reason/books": lambda text: SCHEMAS["reason/books"].load(text)["seconds"],
    "reason/control": lambda text: Prompt.model_validate_json(SCHEMAS["reason/control"].text(text)),
}


@pytest.mark.parametrize(("name", "version"), sorted({(name, version) for name, version, _ in RECORDED}))
def test_every_value_of_an_older_version_is_read_as_its_operator_reads_it(name: str, version: int) -> None:
    schema = SCHEMAS[name]
    for text in [text for at, of, text in RECORDED if (at, of) == (name, version)]:
        if name in READERS:
            assert READERS[name](text) is not None
            stored = schema.dump(schema.load(text))
            assert stored.startswith(f"v{schema.version}:") and schema.load(stored) == schema.load(text)
        else:
            record = pickle.loads(base64.b64decode(text))
            assert schema.unpack(record) == record
            assert schema.unpack(schema.pack(record)) == record


def test_every_state_has_recorded_values_of_every_older_version() -> None:
    assert {(name, version) for name, version, _ in RECORDED} == {
        (name, version) for name, schema in SCHEMAS.items() for version in range(schema.version)
    }


def test_a_command_in_flight_of_before_there_were_resources_cools_down_what_it_was_done_to() -> None:
    old = '[60000,{},{"c-1":["restart_service",120000,60000]},{},[],1,null,-1]'
    state = SubjectState.from_json(old)
    assert state.flying() == [["restart_service", 120_000, 60_000, "restart_service"]]
    assert state.report(Reported("m-1", "c-1", True, 60_000, None), 1) is None
    assert state.cooling_ms == {"restart_service": 120_000}


STEPS = StateSchema("test/steps", lambda value: [*value, "one"], lambda value: [*value, "two"])


@pytest.mark.parametrize(("stored", "value"), [("[0]", [0, "one", "two"]), ("v1:[0]", [0, "two"]), ("v2:[0]", [0])])
def test_a_value_is_lifted_step_by_step_when_it_is_older(stored: str, value: list[Any]) -> None:
    assert STEPS.load(stored) == value
    assert orjson.loads(STEPS.text(stored)) == value


def test_a_record_of_a_list_is_lifted_when_it_is_older() -> None:
    assert STEPS.unpack((b"key", 7)) == (b"key", 7, "one", "two")
    assert STEPS.unpack((1, b"key", 7)) == (b"key", 7, "two")
    assert STEPS.unpack(STEPS.pack((b"key", 7))) == (b"key", 7)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_value_of_a_newer_version_is_refused_with_what_to_do(name: str) -> None:
    schema = SCHEMAS[name]
    newer = schema.version + 1
    for read in (lambda: schema.load(f"v{newer}:[]"), lambda: schema.text(f"v{newer}:[]"), lambda: schema.unpack((newer, b""))):
        with pytest.raises(StateRefused, match=f"expected a value of version 0 to {schema.version}, came version {newer}.*newer code"):
            read()


def test_what_has_cooled_down_is_forgotten_when_something_else_fails() -> None:
    state = SubjectState(clock_ms=1000)
    for n in range(100):
        state.in_flight = {"c": ["restart", 10**9, 50, f"restart node-{n}"]}
        state.clock_ms += 10
        state.report(Reported("s", "c", has_failed=True, event_ms=state.clock_ms, cost=None), n)
    assert sorted(state.cooling_ms) == [f"restart node-{n}" for n in range(95, 100)]


def test_an_approval_of_before_keys_were_kept_counts_while_its_person_is_active() -> None:
    old = next(text for name, version, text in RECORDED if (name, version) == ("govern/subject", 2) and "approved_by" in text)
    (hold,) = SubjectState.from_json(old.replace('"approved_by":[]', '"approved_by":["ada"]')).holds.values()
    ada = Person(person="ada", roles=(), public_key="k" * 43)
    hold.keep_approvers({"ada": ada})
    assert [each.person for each in hold.requires[0].approved_by] == ["ada"]
    hold.keep_approvers({"ada": ada.model_copy(update={"is_active": False})})
    assert hold.requires[0].approved_by == []
