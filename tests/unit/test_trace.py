"""The tree around an event, whatever else is written into the topics it stands in."""

from __future__ import annotations

import io
import json
from typing import Any

import orjson
import pytest
from rich.console import Console

from contracts.errors import SetupFailed
from ops import kafka, trace
from ops.trace import MAX_DEPTH, Link, as_tree, find_chain, tree_data
from tests.kafka_stand_in import StandInBroker, StandInConsumer


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StandInBroker:
    found = StandInBroker()
    monkeypatch.setattr(kafka, "consumer", lambda *_, **__: StandInConsumer(found))
    return found


def an_event(event_id: object, *, cause: object = None, chain: object = None, **fields: Any) -> bytes:
    return orjson.dumps({"id": event_id, "type": "t", "subject": "m", "time": "2014-04-01T00:00:00Z", "causationid": cause, "correlationid": chain, "data": {}, **fields})


def a_loop(broker: StandInBroker) -> None:
    """A fact, a situation, a proposal and a decision."""
    broker.put("machines.facts", b"m", an_event("fact"))
    for name, event_id, cause in (("situations", "situation", "fact"), ("proposals", "proposal", "situation"), ("decisions", "decision", "proposal")):
        broker.put(f"machines.{name}", b"m", an_event(event_id, cause=cause, chain="fact"))


def shape(nodes: list[dict[str, Any]]) -> list[Any]:
    return [(node["noun"], node["id"], shape(node["effects"])) for node in nodes]


WHOLE = [("fact", "fact", [("situation", "situation", [("proposal", "proposal", [("decision", "decision", [])])])])]


def told(chain: list[Link]) -> str:
    roots, out = tree_data(chain), io.StringIO()
    Console(file=out, width=500, color_system=None).print(as_tree(roots))
    assert json.dumps(roots)
    return out.getvalue()


@pytest.mark.parametrize("wanted", ["fact", "situation", "decision"])
def test_every_event_of_a_chain_is_found_by_any_of_its_ids(broker: StandInBroker, wanted: str) -> None:
    a_loop(broker)
    broker.put("machines.facts", b"m", an_event("other"))
    broker.put("machines.facts", b"m", an_event("fact"))
    assert shape(tree_data(find_chain("nowhere", "machines", wanted))) == WHOLE


def test_there_is_no_chain_when_nothing_is_named_so(broker: StandInBroker) -> None:
    a_loop(broker)
    assert find_chain("nowhere", "machines", "no-such") == []


def test_a_short_id_is_refused_when_events_of_two_chains_begin_so(broker: StandInBroker) -> None:
    for name in ("a" * 12 + "1", "a" * 12 + "2"):
        broker.put("machines.facts", b"m", an_event(name))
    with pytest.raises(SetupFailed, match="one chain"):
        find_chain("nowhere", "machines", "a" * 12)


@pytest.mark.parametrize(
    "value",
    [
        b'{"correlationid": "fact"}', b'["fact"]', b'"fact"', b'{"fact', an_event(["fact"], chain="fact"), an_event(7, chain="fact"), an_event("", chain="fact"),
        an_event("fact", chain=["fact"])[:-1], b'{"id": "x", "correlationid": "fact", "data": ' + b"[" * 300 + b"]" * 300 + b"}",
        an_event("x", chain={"fact": "fact"}),
    ],
)  # fmt: skip
def test_a_chain_is_whole_when_records_that_are_no_events_name_it(broker: StandInBroker, value: bytes) -> None:
    broker.put("machines.facts", b"m", value)
    a_loop(broker)
    assert shape(tree_data(find_chain("nowhere", "machines", "fact"))) == WHOLE


@pytest.mark.parametrize("data", [None, [1], 7, "text", {"parameters": None}, {"verdict": [], "action": {}}, {"confidence": "high"}])
def test_an_event_is_shown_whatever_it_holds(broker: StandInBroker, data: Any) -> None:
    a_loop(broker)
    for name in trace.CHAIN:
        broker.put(f"machines.{name}", b"m", an_event(f"bad {name}", cause="fact", chain="fact", data=data, time=[1], subject={}))
    chain = find_chain("nowhere", "machines", "fact")
    assert len(chain) == 4 + len(trace.CHAIN)
    assert "bad facts" in told(chain)


def test_a_decision_stays_where_it_is_when_a_fact_has_taken_its_id(broker: StandInBroker) -> None:
    broker.put("machines.facts", b"m", an_event("decision", cause="proposal", chain="fact"))
    a_loop(broker)
    broker.put("machines.commands", b"m", an_event("command", cause="decision", chain="fact"))
    (root,) = tree_data(find_chain("nowhere", "machines", "fact"))
    (situation,) = root["effects"]
    (proposal,) = situation["effects"]
    assert shape(proposal["effects"]) == [("fact", "decision", []), ("decision", "decision", [("command", "command", [])])]


def test_each_event_is_shown_once_when_causes_go_round_or_on_without_end() -> None:
    def chained(causes: dict[str, str | None]) -> list[Link]:
        return [Link("fact", "", orjson.loads(an_event(name, cause=cause))) for name, cause in causes.items()]

    assert shape(tree_data(chained({"a": "a", "b": None}))) == [("fact", "a", []), ("fact", "b", [])]
    assert shape(tree_data(chained({"c": "b", "b": "a", "a": "b"}))) == [("fact", "a", [("fact", "b", [("fact", "c", [])])])]
    line: dict[str, str | None] = {str(n): str(n - 1) for n in range(3000)}
    roots = tree_data(chained(line))
    assert len(roots) == 3000 // MAX_DEPTH
    assert told(chained(line)).count("fact ") == 3000
