"""Job `propose` on the real cluster: rule agents, and models that change while it runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
from onnx import TensorProto, helper

from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.model import ModelAlias
from contracts.proposal import Proposal
from ops import models
from tests.loop import Loop
from udfs.serde import write_event

START_MS = parse_time_ms("2014-06-01T00:00:00Z")
FEATURES = {
    "temperature": 20.0, "readings_seen": 5000, "level_shift": 0.0, "level_peak": 0.0, "jump": 0.0,
    "jump_peak": 0.0, "deviation": 0.0, "baseline_mean": 20.0,
}  # fmt: skip


def a_model(version: int, confidence: float) -> ModelAlias:
    """A model under the shipped alias that is always as sure as told."""
    names = models.shipped_models("machines")[0].inputs
    nodes = [
        helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sure"], ["confidence"]),
    ]
    graph = helper.make_graph(
        nodes, "constant",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(names)])],
        [helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [None])],
        [helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
         helper.make_tensor("sure", TensorProto.FLOAT, [1], [confidence])],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(made)
    content = made.SerializeToString()
    return ModelAlias(
        alias="machine-health", version=version, sha256=hashlib.sha256(content).hexdigest(),
        artefact_base64=base64.b64encode(content).decode(), inputs=names, output="confidence",
        trained_on="nothing",
    )  # fmt: skip


def situation(kind: str, subject: str, ordinal: int, **data: object) -> bytes:
    event_ms = START_MS + ordinal * 86_400_000
    return write_event(
        event_id=derive_id(subject, "test", kind, ordinal), source="/flyball/machines/test",
        event_type=kind, subject=subject, time_ms=event_ms, dataschema=schema_urn("machines", kind),
        correlation_id=f"chain-{subject}", causation_id=f"chain-{subject}",
        data={"event_time": format_time_ms(event_ms), **data},
    )  # fmt: skip


class Showing:
    """Situations about one subject, each with one behind it that is always answered."""

    def __init__(self, loop: Loop, subject: str) -> None:
        self._loop, self._subject, self._ordinal = loop, subject, 0

    def proposals(self, **features: object) -> list[dict[str, Any]]:
        """The data of every proposal about one more reading."""
        self._ordinal += 2
        shown = situation(
            "machines.reading_scored", self._subject, self._ordinal, **{**FEATURES, **features}
        )
        behind = situation(
            "machines.cooling_failed", self._subject, self._ordinal + 1, command_id="c", detail="d"
        )
        self._loop.send("situations", (self._subject, shown), (self._subject, behind))
        last = derive_id(self._subject, "test", "machines.cooling_failed", self._ordinal + 1)
        cause = derive_id(self._subject, "test", "machines.reading_scored", self._ordinal)
        self._loop.wait_for("the answer behind it", lambda: self._caused_by(last))
        return [dict(event["data"]) for event in self._caused_by(cause)]

    def _caused_by(self, cause: str) -> list[dict[str, Any]]:
        found = self._loop.events("proposals", self._subject)
        return [event for event in found if event["causationid"] == cause]


@contextmanager
def shipped_model_again(loop: Loop) -> Iterator[None]:
    """Whatever a test publishes, the shipped model answers afterwards."""
    try:
        yield
    finally:
        models.publish(loop.bootstrap, loop.domain, models.shipped_models(loop.domain), now_ms=1)
        showing = Showing(loop, "model-restored")
        loop.wait_for("the shipped model", lambda: not showing.proposals())


def test_agents_propose_with_their_reasons_when_a_situation_meets_their_conditions(machines: Loop) -> None:
    showing = Showing(machines, "rule-1")
    assert showing.proposals() == []
    found = showing.proposals(deviation=4.0, level_shift=3.0, level_peak=3.0, temperature=99.5)
    (rule,) = (p for p in found if p["agent"] == "heat-rule")
    assert Proposal.model_validate(rule)
    assert (rule["action"], rule["parameters"]) == ("activate_cooling", {"duration_s": 1800})
    assert (rule["confidence"], rule.get("model")) == (0.9, None)
    assert "99.5 is 4.0 deviations above" in rule["reason"]
    assert rule["features"] == {**FEATURES, "deviation": 4.0, "level_shift": 3.0, "level_peak": 3.0, "temperature": 99.5}


def test_the_next_proposal_names_the_new_model_when_one_is_published_while_the_job_runs(machines: Loop) -> None:
    showing = Showing(machines, "model-1")
    assert showing.proposals() == [], "the shipped model sees nothing in a quiet reading"
    started = machines.restarts()
    second = a_model(2, 0.99)
    with shipped_model_again(machines):
        machines.publish("models", ModelAlias.event_type, "machine-health/2", second.model_dump(mode="json"))
        (found,) = machines.wait_for("the second model", showing.proposals)
        assert found["model"] == {"name": "machine-health", "version": 2, "sha256": second.sha256}
        assert round(found["confidence"], 4) == 0.99

        broken = second.model_dump(mode="json") | {"version": 3, "sha256": "0" * 64}
        letter = machines.dead_letter(
            machines.publish("models", ModelAlias.event_type, "machine-health/3", broken)
        )["data"]
        assert (letter["cause"], letter["stage"]) == ("model_refused", "propose")
        assert "SHA-256" in letter["message"]
        (found,) = showing.proposals()
        assert found["model"]["version"] == 2, "the model before stays"

        sure = a_model(4, 7.0)  # no confidence: what a model cannot say is no proposal
        machines.publish("models", ModelAlias.event_type, "machine-health/4", sure.model_dump(mode="json"))
        machines.wait_for("no answer", lambda: not showing.proposals())
    assert machines.restarts() == started
