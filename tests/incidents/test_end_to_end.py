"""`incidents`, from an injected fault to a verified remedy, and with a model that fails."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from contracts.envelope import parse_time_ms
from ops import run as runner
from ops.emit import closing_tick_ms
from ops.player import Emitter
from ops.trace import find_chain, tree_data
from ops.watch import Watch
from ops.world import load_world
from ops.worlds.incidents_simulator import SLOT_STEPS, Fault, Simulation
from tests.loop import Loop

SEED = 2  # slow deploy, false alert, lasting, failing deploy, stuck instance: both rules and models are needed
COUNT = 22_000
FAILING_SEED, FAILING_COUNT = 7, 12_000  # a slow deploy, an overload, and one that nothing heals
REMEDIES = {"restart_service", "roll_back", "scale_out", "shift_traffic", "open_circuit"}
SLOT_MS = SLOT_STEPS * 60_000


@dataclass(frozen=True)
class System:
    """One simulated system, and what the loop says of it."""

    loop: Loop
    subject: str
    faults: list[Fault]

    def events(self, name: str, **data: object) -> list[dict[str, Any]]:
        """Each id once: situations and proposals come at least once (a job that was restarted writes them again)."""
        return list({event["id"]: event for event in self.loop.events(name, self.subject, **data)}.values())

    def fallbacks(self) -> list[str]:
        """Why somebody else spoke in a model's place, for messages: the reply came too late, did not fit, ..."""
        return [e["data"]["fallback"] for e in self.events("proposals") if e["data"].get("fallback")]

    def told(self, *stories: str) -> list[Fault]:
        chosen = [fault for fault in self.faults if fault.story in stories]
        assert chosen, f"{self.subject} tells none of {stories}"
        return chosen

    def exchanges(self, kind: str) -> list[dict[str, Any]]:
        mine = {e["id"] for e in self.events("situations")}
        return [e for e in self.loop.events("exchanges", type_=kind) if e["data"]["situation_id"] in mine]


def played(loop: Loop, seed: int, count: int) -> System:
    """A generated system played through the loop."""
    world = load_world("incidents")
    watch = Watch(
        loop.bootstrap, "incidents", is_committed=True, from_beginning=False, decision_key=world.decision_key
    )
    watch.start()
    try:
        asked = runner.Asked(domain="incidents", seed=seed, count=count)
        emitter = Emitter(loop.contract, loop._writer, file_name=f"seed-{seed}")
        emitter.emit(runner.items(asked, loop.settings, world, watch), rate=None)
        emitter.tick(closing_tick_ms(emitter.emitted, loop.settings))
        loop.settle(timeout_s=300)
    finally:
        watch.stop()
    return System(loop, f"shop-{seed}", Simulation(seed, count).faults())


def behave(loop: Loop, **behaviour: float) -> None:
    """From now on the scripted model server answers like this."""
    _, port = json.loads((loop.home.run / "model_servers" / "incidents.json").read_text())
    httpx.post(f"http://127.0.0.1:{port}/control", json=behaviour).raise_for_status()


@pytest.fixture(scope="module")
def healthy(incidents: Loop) -> System:
    return played(incidents, SEED, COUNT)


@pytest.fixture(scope="module")
def failing(incidents: Loop, healthy: System) -> Iterator[System]:
    """Another system, while the model server fails nine of ten calls."""
    behave(incidents, error_rate=0.5, malformed_rate=0.35, hang_rate=0.05)
    try:
        yield played(incidents, FAILING_SEED, FAILING_COUNT)
    finally:
        behave(incidents, error_rate=0, malformed_rate=0, hang_rate=0)


def course(system: System, fault: Fault) -> str:
    """What the loop did about a fault, a line an event, for messages."""
    lines = [f"{fault.story} from {fault.began_ms}, fallbacks {system.fallbacks()}"]
    for noun in ("situations", "proposals", "decisions", "commands", "outcomes"):
        for event in within(system.events(noun), fault):
            data = event["data"]
            told = [data.get(f) for f in ("agent", "action", "verdict", "reason", "status", "node", "suspect", "remedies_tried")]
            minutes = (parse_time_ms(event["time"]) - fault.began_ms) / 60_000
            lines.append(f"{noun} +{minutes:.1f} min {event['type']}: {[t for t in told if t is not None]}")
    return "\n  ".join(lines)


def within(events: list[dict[str, Any]], fault: Fault) -> list[dict[str, Any]]:
    """What belongs to a fault by event time: from its beginning to the end of its slot."""
    return [e for e in events if fault.began_ms <= parse_time_ms(e["time"]) < fault.began_ms + SLOT_MS - 10 * 60_000]


def test_every_fault_is_found_at_the_entry_within_three_minutes_and_explained(healthy: System) -> None:
    for fault in (f for f in healthy.faults if f.is_real):
        first = within(healthy.events("situations", type_="incidents.symptom_found"), fault)[0]
        assert parse_time_ms(first["time"]) - fault.began_ms <= 3 * 60_000
        assert first["data"]["node"] != fault.node or fault.story == "overload"
        assert fault.node in first["data"]["suspects"][:3]
        triage = [
            e for e in within(healthy.events("proposals", action="triage_incident"), fault) if e["causationid"] == first["id"]
        ]
        assert [e["data"]["suspects"] for e in triage] == [first["data"]["suspects"]]
        known = {e["id"] for e in healthy.events("facts")} | {first["id"]}
        assert set(triage[0]["data"]["evidence"]) <= known


def test_what_a_remedy_heals_is_remedied_verified_and_closed(healthy: System) -> None:
    for fault in healthy.told("slow_deploy", "failing_deploy", "stuck_instance", "overload", "slow_dependency"):
        commands = [e["data"] for e in within(healthy.events("commands"), fault) if e["data"]["action"] in REMEDIES]
        assert [c for c in commands if c["action"] in fault.healed_by and c["parameters"]["node"] == fault.node], commands
        assert within(healthy.events("situations", type_="incidents.remedy_verified"), fault)
        assert within(healthy.events("commands", action="close_incident"), fault)


def test_one_chain_leads_from_the_fact_to_the_closed_incident(healthy: System) -> None:
    fault = healthy.told("slow_deploy")[0]
    closed = within(healthy.events("commands", action="close_incident"), fault)[0]
    (root,) = tree_data(find_chain(healthy.loop.bootstrap, "incidents", closed["correlationid"]))
    path = _path_to(root, closed["id"])
    assert [node["noun"] for node in path] == [
        "fact", "situation", "proposal", "decision", "command", "outcome", "situation", "proposal", "decision", "command",
    ]  # fmt: skip
    for cause, effect in itertools.pairwise(path):
        assert effect["event"]["causationid"] == cause["id"]


def test_after_two_remedies_that_do_not_help_a_person_is_paged(healthy: System) -> None:
    fault = healthy.told("lasting")[0]
    commands = [e["data"] for e in within(healthy.events("commands"), fault)]
    assert sum(c["action"] in REMEDIES for c in commands) == 2, course(healthy, fault)
    assert [c["agent"] for c in commands if c["action"] == "page_person"] == ["page-rule"]
    assert len(within(healthy.events("situations", type_="incidents.remedy_failed"), fault)) == 2


def test_one_remedy_at_a_time(healthy: System) -> None:
    done = {e["data"]["command_id"]: parse_time_ms(e["time"]) for e in healthy.events("outcomes")}
    flights = sorted(
        (parse_time_ms(e["data"]["event_time"]), done[e["data"]["command_id"]])
        for e in healthy.events("commands") if e["data"]["action"] in REMEDIES
    )  # fmt: skip
    assert all(ends <= begins for (_, ends), (begins, _) in itertools.pairwise(flights))


def test_nothing_is_changed_on_the_word_of_an_alert(healthy: System) -> None:
    fault = healthy.told("false_alert")[0]
    assert [e for e in within(healthy.events("commands"), fault) if e["data"]["action"] in REMEDIES] == []
    for event in healthy.events("proposals"):
        assert event["data"]["action"] in healthy.loop.contract.actions
        assert event["subject"] == f"shop-{SEED}"


def test_every_proposal_of_a_model_tells_what_it_was_asked_and_cost(healthy: System) -> None:
    reasoned = [e["data"] for e in healthy.events("proposals") if e["data"].get("reasoned")]
    assert {each["agent"] for each in reasoned} >= {"triage", "next-remedy"}, course(healthy, healthy.told("lasting")[0])
    exchanges = {f"{e['data']['call_id']}/{e['data']['turn']}": e["data"] for e in healthy.exchanges("flyball.exchange")}
    for each in reasoned:
        told = each["reasoned"]
        assert told["tokens_in"] > 0
        assert told["cost"] > 0
        assert exchanges[told["exchange_id"]]["reply_sha256"] == told["reply_sha256"]


def test_nothing_is_lost_when_nearly_all_calls_fail(failing: System) -> None:
    situations = {e["id"] for e in failing.events("situations", type_="incidents.symptom_found")}
    triaged = Counter(
        e["causationid"] for e in failing.events("proposals", situation_type="incidents.symptom_found", action="triage_incident")
    )
    assert triaged == Counter(situations), "each situation is triaged once, by whom ever"
    concluded = [e["data"] for e in failing.exchanges("flyball.concluded")]
    assert len({c["call_id"] for c in concluded}) == len(concluded)
    fallbacks = [e["data"] for e in failing.events("proposals") if e["data"].get("fallback")]
    assert fallbacks
    assert all(each["fallback"].split(":")[0] in {"triage", "remediation", "next-remedy", "deploy-verification"} for each in fallbacks)
    for fault in (f for f in failing.faults if f.is_real and f.story != "frozen_deploy"):
        acted = [e["data"]["action"] for e in within(failing.events("commands"), fault)]
        assert REMEDIES & set(acted) or "page_person" in acted
    open_commands = {e["data"]["command_id"] for e in failing.events("commands")}
    assert open_commands == {e["data"]["command_id"] for e in failing.events("outcomes")}


def _path_to(node: dict[str, Any], wanted: str) -> list[dict[str, Any]]:
    if node["id"] == wanted:
        return [node]
    for effect in node["effects"]:
        if below := _path_to(effect, wanted):
            return [node, *below]
    return []


def test_running_jobs_keep_what_the_list_of_state_says(incidents: Loop) -> None:
    incidents.assert_jobs_keep_what_is_listed()
