"""Job `reason` on the real cluster: calls as state, recorded before use, lost with nobody."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson

from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.exchange import Concluded, Exchange
from ops.world import NewFact
from tests.loop import Loop
from udfs.serde import write_event

AT_MS = parse_time_ms("2026-02-01T00:00:00Z")  # before the other tests of the domain: their clock must not be behind
KIND = "incidents.symptom_found"


def situation(subject: str, number: int, **features: object) -> tuple[str, bytes]:
    """Key and value of a symptom that no rule has an answer for, as `context` writes it."""
    event_ms = AT_MS + number * 60_000
    name = derive_id(f"{subject}|{number}", "test", "situation")
    data: dict[str, object] = {
        "event_time": format_time_ms(event_ms), "incident_id": f"i-{subject}-{number}", "node": "web", "metric": "latency",
        "statistic": "Average", "value": 2.0, "usual": 0.5, "deviation": 20.0, "suspect": "db", "suspect_signs": "latency",
        "is_frozen": False, "remedies_tried": 0, "last_remedy": "", "alert_text": "", "suspects": ["db", "web"],
        "evidence": [f"fact-{subject}-{number}"],
    }  # fmt: skip
    event = write_event(
        event_id=name, source="/flyball/incidents/test", event_type=KIND, subject=subject, time_ms=event_ms,
        dataschema=schema_urn("incidents", KIND), data=data | features, correlation_id=name, causation_id=name, hops=0,
    )  # fmt: skip
    return subject, event


def by_situation(loop: Loop, subjects: list[str], agent: str) -> dict[str, set[bytes]]:
    """Situation id -> the distinct proposals of an agent about it."""
    found: dict[str, set[bytes]] = {}
    for subject in subjects:
        for record in loop.records("proposals", subject):
            event = orjson.loads(record.value or b"{}")
            if event["data"]["agent"] == agent:
                found.setdefault(event["causationid"], set()).add(record.value or b"")
    return found


def exchanged(loop: Loop, kind: str, situations: set[str], agent: str) -> list[dict[str, Any]]:
    return [e for e in loop.events("exchanges", type_=kind, agent=agent) if e["data"]["situation_id"] in situations]


@contextmanager
def slow_model(loop: Loop, latency_ms: float) -> Iterator[httpx.Client]:
    """The scripted model server takes so long for what is asked within the block."""
    _, port = json.loads((loop.home.run / "model_servers" / "incidents.json").read_text())
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as server:
        usual = server.post("/control", json={}).raise_for_status().json()
        server.post("/control", json={"latency_ms": latency_ms}).raise_for_status()
        try:
            yield server
        finally:
            server.post("/control", json={"latency_ms": usual["latency_ms"]}).raise_for_status()


def test_a_proposal_tells_what_was_asked_and_answered_and_the_exchange_is_kept(incidents: Loop) -> None:
    subject = "reason-told"
    incidents.send("situations", situation(subject, 1, deployed_by="Ada Lovelace", deploy_id="d-1", minutes_since_deploy=200.0))

    (proposal,) = incidents.wait_for(
        "the triage's proposal", lambda: incidents.events("proposals", subject, agent="triage")
    )
    reasoned, call_id = proposal["data"]["reasoned"], proposal["id"]
    (exchange,) = incidents.wait_for("its exchange", lambda: incidents.events("exchanges", f"{call_id}/0"))
    decision = incidents.decision_of(proposal["id"], subject)

    assert (reasoned["prompt_id"], reasoned["exchange_id"]) == ("triage", f"{call_id}/0")
    assert (reasoned["prompt_sha256"], reasoned["reply_sha256"]) == (
        exchange["data"]["request_sha256"], exchange["data"]["reply_sha256"],
    )  # fmt: skip
    assert reasoned["tokens_in"] > 100 < exchange["data"]["tokens_in"]
    assert proposal["data"]["suspects"] == decision["data"]["suspects"] == ["db", "web"]
    assert set(proposal["data"]["evidence"]) <= {f"fact-{subject}-1", proposal["causationid"]}
    assert decision["data"]["reasoned"]["prompt_id"] == "triage"
    assert proposal["traceparent"] == decision["traceparent"]
    assert "Lovelace" not in exchange["data"]["request"], "personal values do not leave"


def test_a_facts_trace_runs_through_the_call_of_the_model_to_the_outcome(incidents: Loop) -> None:
    subject, trace = "reason-traced", "0af7651916cd43dd8448eb211c80319c"
    (alert,) = incidents.encode(NewFact("incident.alert_raised", subject, AT_MS, {"node": "web", "text": "slow"}, "alert"))
    traced = orjson.loads(alert) | {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    incidents.send("facts", (subject, orjson.dumps(traced)))

    (outcome,) = incidents.wait_for(
        "the triage's outcome", lambda: incidents.events("outcomes", subject, action="triage_incident")
    )
    for noun in ("situations", "proposals", "decisions", "commands", "outcomes"):
        told = [e.get("traceparent", "none") for e in incidents.events(noun, subject)]
        assert {parent.split("-")[1] for parent in told if parent != "none"} == {trace}, (noun, told)
        assert "none" not in told, (noun, told)
    (proposal,) = incidents.events("proposals", subject, agent="triage")
    assert outcome["traceparent"] == proposal["traceparent"] != traced["traceparent"], "the call's own span lies between"


def test_each_situation_has_one_proposal_when_the_taskmanager_is_killed_with_calls_in_flight(incidents: Loop) -> None:
    """What was recorded is used, what was not is asked again, nothing is answered in two ways."""
    subjects = [f"reason-killed-{n}" for n in range(60)]
    sent = dict(situation(subject, 1) for subject in subjects)
    ids = {orjson.loads(event)["id"] for event in sent.values()}
    processes: Any = incidents.home.read_state()["processes"]
    victim = int(processes["taskmanager-0"]["pid"])
    with slow_model(incidents, 2000) as server:
        incidents.send("situations", *sent.items())
        incidents.wait_for("some replies", lambda: len(exchanged(incidents, Exchange.event_type, ids, "triage")) >= 5)
        incidents.wait_for("the next calls, for two seconds", lambda: server.get("/stats").json()["in_flight"])
        os.kill(victim, signal.SIGKILL)
        recorded = exchanged(incidents, Exchange.event_type, ids, "triage")
    assert len(recorded) < 60, "not all replies were recorded at the blow"

    incidents.wait_for(
        "a proposal about each", lambda: len(by_situation(incidents, subjects, "triage") | fallbacks(incidents, subjects)) == 60
    )
    incidents.settle()
    proposals = by_situation(incidents, subjects, "triage")
    assert all(len(ways) == 1 for ways in proposals.values()), "never two answers to one situation"
    assert not proposals.keys() & fallbacks(incidents, subjects).keys()
    turns = [(e["data"]["call_id"], e["data"]["turn"]) for e in exchanged(incidents, Exchange.event_type, ids, "triage")]
    assert len(turns) == len(set(turns)), "a recorded reply is not paid again"
    concluded = {e["data"]["situation_id"] for e in exchanged(incidents, Concluded.event_type, ids, "triage")}
    assert concluded == ids


def fallbacks(loop: Loop, subjects: list[str]) -> dict[str, set[bytes]]:
    return by_situation(loop, subjects, "triage-fallback")


def test_rules_answer_first_and_a_model_is_asked_for_the_rest(incidents: Loop) -> None:
    ruled, left = "reason-ruled", "reason-left"
    incidents.send(
        "situations", situation(ruled, 1, deploy_id="d-2", minutes_since_deploy=3.0), situation(left, 1)
    )

    incidents.wait_for("the rule's", lambda: incidents.events("proposals", ruled, agent="rollback-rule"))
    incidents.wait_for("the model's", lambda: incidents.events("proposals", left, agent="remediation"))
    incidents.wait_for("the triage of both", lambda: incidents.events("proposals", ruled, agent="triage"))
    incidents.settle()
    assert not incidents.events("proposals", ruled, agent="remediation")


def test_a_situation_that_comes_twice_is_asked_about_once(incidents: Loop) -> None:
    subject = "reason-twice"
    incidents.send("situations", situation(subject, 1))
    incidents.wait_for("its proposal", lambda: incidents.events("proposals", subject, agent="triage"))
    incidents.send("situations", situation(subject, 1))
    incidents.send("situations", situation(subject, 2))
    incidents.wait_for(
        "the next one's", lambda: len({e["id"] for e in incidents.events("proposals", subject, agent="triage")}) == 2
    )
    situation_id = orjson.loads(situation(subject, 1)[1])["id"]
    assert len(exchanged(incidents, Exchange.event_type, {situation_id}, "triage")) == 1
