"""`propose`'s pure core: rules and models over situations; what cannot be said is not proposed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from onnx import TensorProto, helper
from pyflink.common import Row

from contracts.domain import load_domain
from contracts.envelope import derive_id
from contracts.errors import BadInput, ModelRefused, SetupFailed
from contracts.model import ModelAlias
from contracts.proposal import Proposal
from tests.unit.test_govern_shell import Runtime
from udfs.agents.core import Agents, Situation
from udfs.agents.definition import fill, load_agents
from udfs.agents.flink import Propose
from udfs.agents.onnx_model import LoadedModel, load_model

CONTRACT = load_domain("machines")
RULE = """
  - agent: heat-rule
    version: 3
    kind: rule
    situation: machines.reading_scored
    when: deviation > 2.0
    confidence: 0.9
    propose:
      action: activate_cooling
      parameters: {duration_s: $readings_seen}
      expires_after_s: 60
      reason: "{temperature:.1f} is hot"
"""
MODEL = """
  - agent: health-model
    version: 1
    kind: model
    situation: machines.reading_scored
    model: machine-health
    propose:
      - {from_confidence: 0.5, action: schedule_maintenance, parameters: {priority: normal}, reason: "odd ({confidence:.2f})"}
      - {from_confidence: 0.75, action: schedule_maintenance, parameters: {priority: urgent}, reason: very odd}
"""
FEATURES = {
    "temperature": 71.26, "readings_seen": 300, "level_shift": 0.0, "level_peak": 0.0, "jump": 0.25,
    "jump_peak": 0.0, "deviation": 2.5, "baseline_mean": 20.0,
}  # fmt: skip


def agents_of(folder: Path, text: str) -> Agents:
    file = folder / "agents.yaml"
    file.write_text(f"agents:{text}")
    return Agents(CONTRACT, load_agents(file, CONTRACT))


def record(**features: object) -> bytes:
    return orjson.dumps(
        {"specversion": "1.0", "id": "s-1", "type": "machines.reading_scored", "subject": "m-1", "hops": 1,
         "correlationid": "chain-1", "data": {"event_time": "2014-01-01T00:00:00Z", **FEATURES, **features}}
    )  # fmt: skip


def proposals(agents: Agents, models: dict[str, LoadedModel] | None = None, **features: object) -> list[dict[str, Any]]:
    made = agents.propose(agents.read(b"m-1", record(**features)), models or {})
    return [orjson.loads(event) for _, event in made]


def an_alias(*, inputs: tuple[str, ...] = ("jump",), version: int = 1, **changes: object) -> ModelAlias:
    """A model whose confidence is the mean of its inputs."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["features"], ["confidence"], axes=[1], keepdims=0)], "mean",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(inputs)])],
        [helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [None])],
    )  # fmt: skip
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    ).SerializeToString()
    fields: dict[str, Any] = {
        "alias": "machine-health", "version": version, "sha256": hashlib.sha256(content).hexdigest(),
        "artefact_base64": base64.b64encode(content).decode(), "inputs": inputs, "output": "confidence",
        "trained_on": "nothing",
    }  # fmt: skip
    return ModelAlias(**(fields | changes))


def test_a_rule_proposes_with_its_reason_when_its_condition_holds(tmp_path: Path) -> None:
    (event,) = proposals(agents_of(tmp_path, RULE))
    data = Proposal.model_validate(event["data"])
    assert (data.agent, data.agent_version, data.action) == ("heat-rule", 3, "activate_cooling")
    assert (data.confidence, data.reason, data.model) == (0.9, "71.3 is hot", None)
    assert data.parameters == {"duration_s": 300}
    assert data.features == FEATURES
    assert data.event_time == data.features_at == event["time"] == "2014-01-01T00:00:00Z"
    assert event["expirytime"] == "2014-01-01T00:01:00Z"
    assert event["id"] == derive_id("s-1", "propose", "heat-rule")
    assert (event["causationid"], event["correlationid"], event["hops"]) == ("s-1", "chain-1", 1)


@pytest.mark.parametrize("deviation", [2.0, -3.0, None, "hot"])
def test_a_rule_is_silent_when_its_condition_is_not_true(tmp_path: Path, deviation: object) -> None:
    assert proposals(agents_of(tmp_path, RULE), deviation=deviation) == []


def test_a_model_proposes_by_the_highest_bound_it_reaches(tmp_path: Path) -> None:
    agents, models = agents_of(tmp_path, MODEL), {"machine-health": load_model(an_alias())}
    found = {
        jump: [event["data"]["parameters"]["priority"] for event in proposals(agents, models, jump=jump)]
        for jump in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)
    }
    assert found == {0.0: [], 0.49: [], 0.5: ["normal"], 0.74: ["normal"], 0.75: ["urgent"], 1.0: ["urgent"]}


def test_a_proposal_names_model_version_and_digest_when_a_model_made_it(tmp_path: Path) -> None:
    alias = an_alias(version=7)
    (event,) = proposals(agents_of(tmp_path, MODEL), {"machine-health": load_model(alias)}, jump=0.625)
    assert event["data"]["model"] == {"name": "machine-health", "version": 7, "sha256": alias.sha256}
    assert (event["data"]["confidence"], event["data"]["reason"]) == (0.625, "odd (0.62)")


def test_a_model_agent_is_silent_when_its_model_is_missing(tmp_path: Path) -> None:
    assert proposals(agents_of(tmp_path, MODEL), {}, jump=1.0) == []


@pytest.mark.parametrize("jump", [1.5, -0.5, None, "much"])
def test_a_model_agent_is_silent_when_its_answer_is_no_confidence(tmp_path: Path, jump: object) -> None:
    models = {"machine-health": load_model(an_alias())}
    assert proposals(agents_of(tmp_path, MODEL), models, jump=jump) == []


def test_every_agent_speaks_in_the_order_of_the_file_when_several_do(tmp_path: Path) -> None:
    models = {"machine-health": load_model(an_alias())}
    found = proposals(agents_of(tmp_path, RULE + MODEL), models, jump=0.75)
    assert [event["data"]["agent"] for event in found] == ["heat-rule", "health-model"]
    assert len({event["id"] for event in found}) == 2


@pytest.mark.parametrize(
    ("features", "tier"),
    [
        ({"deviation": 2.5, "jump": 0.0}, "rule"),
        ({"deviation": 2.5, "jump": 0.75}, "rule"),
        ({"deviation": 0.0, "jump": 0.75}, "model"),
        ({"deviation": 0.0, "jump": 0.0}, "nobody"),
        ({"deviation": None, "jump": None}, "nobody"),
    ],
)
def test_a_situation_is_counted_for_the_first_tier_that_answers(tmp_path: Path, features: dict[str, object], tier: str) -> None:
    (tmp_path / "agents.yaml").write_text(f"agents:{MODEL + RULE}")
    propose, runtime = Propose("machines", str(tmp_path / "agents.yaml"), 0), Runtime()
    runtime.items = list  # type: ignore[attr-defined]
    propose.open(runtime)  # type: ignore[arg-type]
    propose._models(runtime)["machine-health"] = load_model(an_alias())
    for value in (record(**features), record(**features), b"{"):
        list(propose.process_element(Row(b"m-1", value, "machines.situations", 0, 3), runtime))
    expected = {f"answered_by_{each}": 2 if each == tier else 0 for each in ("rule", "model", "nobody")}
    assert {name: counter.count for name, counter in runtime.counters.items()} == expected


def test_the_same_bytes_come_out_when_a_situation_is_answered_twice(tmp_path: Path) -> None:
    models = {"machine-health": load_model(an_alias())}
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        agents = agents_of(tmp_path / name, RULE + MODEL)
        runs.append(list(agents.propose(agents.read(b"m-1", record(jump=0.75)), models)))
    assert runs[0] == runs[1]


GOOD = orjson.loads(record())
MALFORMED: dict[str, tuple[dict[str, object], str]] = {
    "a type nobody knows": ({"type": "machines.exploded"}, "unknown_type"),
    "another subject than its key": ({"subject": "m-2"}, "key_mismatch"),
    "subject is no text": ({"subject": 5}, "envelope_invalid"),
    "id is no text": ({"id": {}}, "envelope_invalid"),
    "hops is no count": ({"hops": 1e30}, "envelope_invalid"),
    "hops is true": ({"hops": True}, "envelope_invalid"),
    "data is a list": ({"data": []}, "envelope_invalid"),
    "an unknown field": ({"data": {**GOOD["data"], "x": 1}}, "data_invalid"),
    "a feature is an object": ({"data": {**GOOD["data"], "jump": {"a": 1}}}, "data_invalid"),
    "a feature is a list": ({"data": {**GOOD["data"], "jump": [1, 2]}}, "data_invalid"),
    "event time is prose": ({"data": {**GOOD["data"], "event_time": "now"}}, "envelope_invalid"),
    "event time is none": ({"data": {**GOOD["data"], "event_time": None}}, "envelope_invalid"),
    "event time is before all calendars": ({"data": {**GOOD["data"], "event_time": "0000-01-01T00:00:00Z"}}, "envelope_invalid"),
    "expiry is prose": ({"expirytime": "soon"}, "envelope_invalid"),
    "expiry is a number": ({"expirytime": 5}, "envelope_invalid"),
    "expiry is at the end of all calendars": ({"expirytime": "9999-12-31T23:59:59Z"}, "envelope_invalid"),
    "id is longer than any": ({"id": "x" * 257}, "envelope_invalid"),
    "id holds what nobody sees": ({"id": "x\0"}, "envelope_invalid"),
    "correlation is no text": ({"correlationid": 7}, "envelope_invalid"),
    "trace is no text": ({"traceparent": ["00"]}, "envelope_invalid"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_situation_is_refused_when_it_is_malformed(tmp_path: Path, name: str) -> None:
    changes, cause = MALFORMED[name]
    with pytest.raises(BadInput) as refused:
        agents_of(tmp_path, RULE).read(b"m-1", orjson.dumps({**GOOD, **changes}))
    assert refused.value.code == cause


@pytest.mark.parametrize(("value", "cause"), [(None, "empty"), (b"", "empty"), (b"{", "not_json"), (b"[]", "envelope_invalid")])
def test_a_record_is_refused_when_it_is_no_situation(tmp_path: Path, value: bytes | None, cause: str) -> None:
    with pytest.raises(BadInput) as refused:
        agents_of(tmp_path, RULE).read(b"m-1", value)
    assert refused.value.code == cause


def test_features_the_situation_lacks_are_null_when_it_is_read(tmp_path: Path) -> None:
    event = {**GOOD, "data": {"event_time": "2014-01-01T00:00:00Z"}}
    situation = agents_of(tmp_path, RULE).read(b"m-1", orjson.dumps(event))
    assert isinstance(situation, Situation)
    assert set(situation.features.values()) == {None}
    assert "event_time" not in situation.features


# what is changed in the rule -> what the refusal says
WRONG_AGENTS = {
    ("situation: machines.reading_scored", "situation: machines.exploded"): "expected a situation of",
    ("action: activate_cooling", "action: launch"): "expected an action of",
    ("{duration_s: $readings_seen}", "{}"): "takes the parameters",
    ("$readings_seen", "$deviation"): "is BIGINT",
    ("$readings_seen", "$nonsense"): "unknown",
    ("$readings_seen", "0"): "parameters",
    ("{temperature:.1f} is hot", "{nonsense} is hot"): "unknown features",
    ("confidence: 0.9", "confidence: 1.9"): "confidence",
    ("kind: rule", "kind: oracle"): "kind",
    ("version: 3", "versions: 3"): "version",
}


@pytest.mark.parametrize("change", WRONG_AGENTS, ids=lambda change: change[1])
def test_an_agents_file_is_refused_when_it_does_not_fit_the_contract(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    assert change[0] in RULE
    with pytest.raises(SetupFailed, match=r"agents\.yaml") as refused:
        agents_of(tmp_path, RULE.replace(*change))
    assert WRONG_AGENTS[change] in str(refused.value)


def test_an_agents_file_is_refused_when_two_agents_share_a_name(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="a name of its own"):
        agents_of(tmp_path, RULE + RULE)


# what is wrong with the model -> changes of its alias, what the refusal says
WRONG_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "another digest": ({"sha256": "0" * 64}, "expected SHA-256"),
    "no base64": ({"artefact_base64": "%%%"}, "not base64"),
    "another output": ({"output": "verdict"}, "no output"),
    "more inputs": ({"inputs": ("jump", "deviation")}, "does not load or run"),
}


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_a_model_is_refused_when_it_is_not_what_its_event_says(name: str) -> None:
    changes, told = WRONG_MODELS[name]
    with pytest.raises(ModelRefused, match="machine-health") as refused:
        load_model(an_alias().model_copy(update=changes))
    assert told in str(refused.value)


def test_a_model_is_refused_when_its_bytes_are_no_model() -> None:
    junk = b"not a model"
    changes = {"sha256": hashlib.sha256(junk).hexdigest(), "artefact_base64": base64.b64encode(junk).decode()}
    with pytest.raises(ModelRefused, match="does not load"):
        load_model(an_alias().model_copy(update=changes))


def test_a_model_is_refused_when_its_numbers_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would show what is in the file, below the folder the operator runs in, by its confidence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(np.array([0.25], dtype=np.float32).tobytes())
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="secret")
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1], keepdims=0), helper.make_node("Mul", ["mean", "weight"], ["confidence"])],
        "peeps", [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [None])], [weight],
    )  # fmt: skip
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    changes = {"sha256": hashlib.sha256(content).hexdigest(), "artefact_base64": base64.b64encode(content).decode()}
    with pytest.raises(ModelRefused, match="does not load"):
        load_model(an_alias().model_copy(update=changes))


def test_a_missing_feature_is_nan_to_a_model() -> None:
    with pytest.raises(ModelRefused, match="nan"):
        load_model(an_alias()).confidence({"jump": None})
    assert load_model(an_alias(inputs=("jump", "deviation"))).confidence({"jump": 0.5, "deviation": np.float64(0.25)}) == 0.375


def test_nothing_but_placeholders_is_interpreted_when_a_reason_is_filled() -> None:
    features = {"level": 1.25, "name": "{confidence}"}
    assert fill("100 % {{}} $level {0}", features) == "100 % {{}} $level {0}"
    assert fill("{level:.1f}", features) == "1.2"
    assert fill("{name}", features) == "{confidence}"
    assert fill("{name:.1f}", features) == "{confidence}", "a format that does not fit is left out"
