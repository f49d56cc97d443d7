"""sql/incidents on the real cluster: what opens an incident, who is suspected, what a remedy's outcome says."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from contracts.envelope import derive_id, format_time_ms, parse_time_ms, schema_urn
from contracts.outcome import Outcome
from contracts.topics import topic
from ops import producers
from ops.world import NewFact
from tests import petshop
from tests.loop import Loop
from udfs.root_cause import find_symptom, rank_suspects
from udfs.serde import write_event

START_MS = parse_time_ms("2026-03-01T00:00:00Z")
MINUTE_MS = 60_000
CALLS = [("web", "shop"), ("web", "search"), ("shop", "db")]
USUAL = {"web": 0.5, "shop": 0.3, "search": 0.2, "db": 0.1}
SLOW = {"web": 2.5, "shop": 2.3, "db": 2.1}


def send_outcome(loop: Loop, subject: str, at_ms: int, action: str, status: str) -> str:
    """Into the log of facts, signed: outcomes come from another topic, and these tests need one order. Gives its id."""
    name = f"{subject} {at_ms} {action}"
    outcome_id = derive_id(name, "test", "actuator")
    kind = Outcome.event_type
    event = write_event(
        event_id=outcome_id, source="/flyball/incidents/test", event_type=kind, subject=subject,
        time_ms=at_ms, dataschema=schema_urn("incidents", kind), correlation_id=outcome_id,
        causation_id=outcome_id, hops=1,
        data={
            "event_time": format_time_ms(at_ms), "command_id": name, "action": action, "status": status, "detail": "",
        },
    )  # fmt: skip
    sign = producers.signer(loop.settings, loop.settings.producers_file.with_suffix(".pem"))
    loop.send("facts", (subject, sign(event, topic("facts").of("incidents"))))
    return outcome_id


class System:
    """A system whose samples follow each other by a minute."""

    def __init__(self, loop: Loop, subject: str, *, minute: int = 0) -> None:
        self.loop, self.subject, self.minute = loop, subject, minute
        self._chance = random.Random(subject)
        loop.emit(*(self.fact("call_observed", from_node=a, to_node=b) for a, b in CALLS))
        for _ in range(60):
            self.sample()

    @property
    def now_ms(self) -> int:
        return START_MS + self.minute * MINUTE_MS

    def fact(self, kind: str, **data: object) -> NewFact:
        return NewFact(f"incident.{kind}", self.subject, self.now_ms, data, f"{kind} {self.minute} {sorted(data.items())}")

    def tell(self, kind: str, **data: object) -> str:
        return self.loop.emit(self.fact(kind, **data))[0]

    def sample(self, latencies: Mapping[str, float | None] | None = None, *, is_closed: bool = True) -> list[str]:
        """The next minute's measurements, none of a node that has None; ids of the facts, in the order of USUAL."""
        self.minute += 1
        now: dict[str, float | None] = {**USUAL, **(latencies or {})}
        facts = [
            self.fact("metric_measured", node=node, metric="latency", statistic="Average", value=self._noisy(value))
            for node, value in now.items()
            if value is not None
        ]
        return self.loop.emit(*facts, *([self.fact("sample_closed")] if is_closed else []))

    def outcome(self, action: str, status: str = "succeeded") -> str:
        return send_outcome(self.loop, self.subject, self.now_ms, action, status)

    def situations(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]] | None:
            told = self.loop.situations(kind, self.subject)
            return told if len(told) >= count else None

        situations = self.loop.wait_for(f"{count} {kind} about {self.subject}", found) or []
        for situation in situations:
            assert self.loop.contract.situations[f"incidents.{kind}"].model_validate(
                situation["data"] | _absent(self.loop, kind, situation["data"]), strict=False
            )
        return situations

    def _noisy(self, value: float) -> float:
        return round(value * self._chance.uniform(0.95, 1.05), 6)


def _absent(loop: Loop, kind: str, data: dict[str, Any]) -> dict[str, None]:
    """Nulls are not written."""
    return {name: None for name in loop.contract.situations[f"incidents.{kind}"].model_fields if name not in data}


def test_a_fault_is_found_with_its_cause_first_and_told_once(incidents: Loop) -> None:
    system = System(incidents, "fault-1")
    ids = system.sample(SLOW)
    system.sample(SLOW)
    system.sample(SLOW)
    system.sample(USUAL)
    (found,) = system.situations("symptom_found")
    data = found["data"]
    assert (data["node"], data["metric"], data["suspect"], data["suspects"][0]) == ("web", "latency", "db", "db")
    assert data["deviation"] > 4 and data["value"] > 2 and 0.4 < data["usual"] < 0.6
    assert data["evidence"][0] == ids[list(USUAL).index("db")] and set(data["evidence"]) <= set(ids)
    assert data["incident_id"] == found["causationid"] == ids[-1]
    assert (data["remedies_tried"], data["last_remedy"], data["alert_text"], data["is_frozen"]) == (0, "", "", False)
    assert data["deploy_id"] == "" and "minutes_since_deploy" not in data


def test_a_sample_that_nobody_closes_is_judged_when_the_next_one_begins(incidents: Loop) -> None:
    system = System(incidents, "open-1")
    system.sample(SLOW, is_closed=False)
    ids = system.sample(SLOW, is_closed=False)
    (found,) = system.situations("symptom_found")
    assert found["causationid"] == ids[0]
    assert found["data"]["suspect"] == "db"


def test_an_alert_opens_an_incident_at_once(incidents: Loop) -> None:
    system = System(incidents, "alert-1")
    alert_id = system.tell("alert_raised", node="shop", text="shop is slow")
    (found,) = system.situations("symptom_found")
    data = found["data"]
    assert (found["causationid"], data["node"], data["alert_text"]) == (alert_id, "shop", "shop is slow")
    assert data["suspects"] == ["shop"] and data["evidence"] == [alert_id]
    system.minute += 31
    system.tell("alert_raised", node="web", text="web is slow")
    _, later = system.situations("symptom_found", 2)
    assert later["data"]["incident_id"] == later["causationid"] and later["data"]["alert_text"] == "web is slow"


def test_a_remedy_is_verified_when_the_symptom_went(incidents: Loop) -> None:
    system = System(incidents, "heal-1")
    system.tell("freeze_declared", freeze_until_ms=START_MS + 600 * MINUTE_MS)
    system.tell("deployed", node="db", deploy_id="d-7", version="v2", deployed_by="ada")
    system.sample(SLOW)
    (found,) = system.situations("symptom_found")
    assert (found["data"]["deploy_id"], found["data"]["deployed_by"], found["data"]["is_frozen"]) == ("d-7", "ada", True)
    assert found["data"]["minutes_since_deploy"] == 1
    outcome_id = system.outcome("roll_back")
    system.sample(SLOW)
    system.sample()
    (verified,) = system.situations("remedy_verified")
    data = verified["data"]
    assert data["incident_id"] == found["data"]["incident_id"]
    assert (data["remedies_tried"], data["last_remedy"], data["suspect"]) == (1, "roll_back", "db")
    assert outcome_id in data["evidence"]
    assert system.loop.situations("remedy_failed", system.subject) == []


def test_a_remedy_failed_when_the_symptom_stays_or_it_did_not_work(incidents: Loop) -> None:
    system = System(incidents, "stay-1")
    system.sample(SLOW)
    system.outcome("restart_service")
    system.outcome("triage_incident")
    system.sample(SLOW)
    system.sample(SLOW)
    (first,) = system.situations("remedy_failed")
    assert (first["data"]["remedies_tried"], first["data"]["last_remedy"]) == (1, "restart_service")
    outcome_id = system.outcome("scale_out", "failed")
    _, second = system.situations("remedy_failed", 2)
    assert second["causationid"] == outcome_id
    assert (second["data"]["remedies_tried"], second["data"]["last_remedy"]) == (2, "scale_out")


def test_a_remedy_failed_when_the_node_of_the_symptom_fell_silent(incidents: Loop) -> None:
    """Restarted, `web` never came back: what it called has nothing to do and looks healthy. An alert changes nothing."""
    system = System(incidents, "silent-1")
    system.sample(SLOW)
    system.outcome("restart_service")
    system.sample({"web": None})
    system.tell("alert_raised", node="shop", text="shop has no traffic")
    system.sample({"web": None})
    (failed,) = system.situations("remedy_failed")
    assert (failed["data"]["remedies_tried"], failed["data"]["last_remedy"]) == (1, "restart_service")
    assert system.loop.situations("remedy_verified", system.subject) == []


def test_a_remedy_is_not_verified_when_the_measurements_were_pushed_out(incidents: Loop) -> None:
    system = System(incidents, "pushed-1")
    system.sample(SLOW)
    system.outcome("restart_service")
    system.sample()
    system.sample(is_closed=False)
    incidents.emit(*(system.fact("call_observed", from_node="shop", to_node=f"shard-{n}") for n in range(1024)))
    system.tell("sample_closed")
    system.situations("remedy_failed")
    assert system.loop.situations("remedy_verified", system.subject) == []


def test_a_remedy_done_before_the_incident_began_is_none_of_its(incidents: Loop) -> None:
    """Somebody took a harmless deploy back; that it was done is told only after something else broke."""
    system = System(incidents, "late-word")
    done_ms = system.now_ms
    system.sample(SLOW)
    send_outcome(incidents, system.subject, done_ms, "roll_back", "failed")
    system.sample(SLOW)
    system.outcome("restart_service")
    for _ in range(2):
        system.sample(SLOW)
    (failed,) = system.situations("remedy_failed")
    assert (failed["data"]["remedies_tried"], failed["data"]["last_remedy"]) == (1, "restart_service")


def test_a_deploy_is_degraded_when_its_node_is_worse_in_the_samples_after_it(incidents: Loop) -> None:
    system = System(incidents, "deploy-1")
    deployed = system.tell("deployed", node="search", deploy_id="d-9", version="v3")
    for _ in range(3):
        system.sample({"search": 0.9})
    (found,) = system.situations("deploy_degraded")
    data = found["data"]
    assert (data["node"], data["deploy_id"], data["suspects"]) == ("search", "d-9", ["search"])
    assert data["deviation"] > 4 and deployed in data["evidence"]
    harmless = System(incidents, "deploy-2")
    harmless.tell("deployed", node="search", deploy_id="d-10", version="v3")
    for _ in range(4):
        harmless.sample()
    harmless.tell("alert_raised", node="web")
    harmless.situations("symptom_found")
    assert harmless.loop.situations("deploy_degraded", harmless.subject) == []


def test_a_shipped_incident_ranks_as_the_ranking_in_python_does(incidents: Loop) -> None:
    name = "low_traffic/test/issue_1"
    history = petshop.normal()[-110:]
    past = petshop.Past(history)
    wanted = []
    for sample in petshop.incidents()[name]:
        deviations = past.deviations(sample)
        if (symptom := find_symptom(deviations, petshop.calls())) is not None:
            wanted.append(list(rank_suspects(deviations, petshop.calls(), symptom.node)))
    subject = "petshop-1"
    facts = [
        NewFact("incident.call_observed", subject, START_MS, {"from_node": a, "to_node": b}, f"{a} {b}")
        for a, b in petshop.calls()
    ]
    for place, sample in enumerate([*history, *petshop.incidents()[name]]):
        at = START_MS + place * 5 * MINUTE_MS
        for (node, metric, statistic), value in sample:
            data = {"node": node, "metric": metric, "statistic": statistic, "value": value}
            facts.append(NewFact("incident.metric_measured", subject, at, data, f"{at} {sorted(data.items())}"))
        facts.append(NewFact("incident.sample_closed", subject, at, {}, str(at)))
    incidents.emit(*facts)
    send_outcome(incidents, subject, at, "restart_service", "failed")  # the last thing that is told
    incidents.wait_for("the end", lambda: incidents.situations("remedy_failed", subject))
    found = [situation["data"]["suspects"] for situation in incidents.situations("symptom_found", subject)]
    heads = [suspects[0] for suspects in wanted]
    changed = [w for place, w in enumerate(wanted) if place == 0 or heads[place] != heads[place - 1]]
    assert found[-len(changed) :] == changed


def test_a_node_is_absent_when_it_tells_nothing_for_fifteen_minutes(incidents: Loop) -> None:
    """Last: it lets event time pass on every partition, further than any test before."""
    system = System(incidents, "absent-1", minute=2 * 24 * 60)
    incidents.tick(system.now_ms + 17 * MINUTE_MS)
    found = system.situations("metric_absent", len(USUAL))
    assert {s["data"]["node"] for s in found} == set(USUAL)
    assert all(s["data"]["suspects"] == [s["data"]["node"]] for s in found)
