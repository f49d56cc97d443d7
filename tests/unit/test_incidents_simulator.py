"""The simulated system: the same every time, symptoms above their cause, and remedies that help where they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from statistics import median
from typing import Any

import pytest

from contracts.domain import load_domain
from contracts.envelope import format_time_ms
from ops.world import Decided, NewFact, Order, load_world
from ops.worlds.incidents import WORLD
from ops.worlds.incidents_remedies import FAILS, is_failing
from ops.worlds.incidents_simulator import (
    CHECK_STEPS,
    PATIENCE,
    QUIET_STEPS,
    SLOT_STEPS,
    START_MS,
    Fault,
    Simulation,
    decision_key,
)
from ops.worlds.incidents_system import HEALTHY, Effects, behave, draw_system, drawn_from

CONTRACT = load_domain("incidents")
COUNT = 24_000
STEP_MS = 60_000


class Loop:
    """Stands in the loop's place: for each story it is asked about it decides the given remedies, in order."""

    def __init__(self, *remedies: tuple[str, Mapping[str, Any]] | None, done: str = "succeeded", took_s: int = 90) -> None:
        self.remedies, self.done, self.took_s = remedies, done, took_s
        self.now_ms = START_MS
        self.asked: list[tuple[str, int]] = []

    def __call__(
        self, key: str, /, *, nth: int | None = None, is_done: bool = False, timeout_s: float | None = None
    ) -> Decided | None:
        assert nth is not None
        if timeout_s:
            self.asked.append((key, self.now_ms))
        waited = sum(asked == key for asked, _ in self.asked)
        if nth >= min(waited, len(self.remedies)) or (remedy := self.remedies[nth]) is None:
            return None
        return Decided("allow", remedy[0], remedy[1], f"c-{nth}", self.done, self.now_ms + self.took_s * 1000)


def play(simulation: Simulation, loop: Loop) -> list[NewFact]:
    facts = []
    for fact in simulation.played(loop):
        if fact is not None:
            facts.append(fact)
            loop.now_ms = max(loop.now_ms, fact.event_ms - (fact.event_ms - START_MS) % STEP_MS)  # its step
    return facts


def series(facts: list[NewFact], node: str, metric: str, from_ms: int, until_ms: int) -> list[float]:
    return [
        fact.data["value"]  # type: ignore[misc]
        for fact in facts
        if fact.type == "incident.metric_measured" and from_ms <= fact.event_ms < until_ms
        and (fact.data["node"], fact.data["metric"]) == (node, metric)
    ]  # fmt: skip


@cache
def story(name: str) -> tuple[Simulation, Fault]:
    """A simulation that is over when the slot of this story is, and its fault."""
    for seed in range(1, 30):
        slot = next((n for n in range(2) if Simulation(seed, 1).slot(n).fault.story == name), None)
        if slot is not None:
            steps = QUIET_STEPS + (slot + 1) * SLOT_STEPS
            whole = [f for f in Simulation(seed, COUNT) if f.event_ms < START_MS + steps * STEP_MS]
            simulation = Simulation(seed, len(whole))
            return simulation, simulation.slot(slot).fault
    raise AssertionError(f"no seed tells {name} early")


def shown(simulation: Simulation, fault: Fault, facts: list[NewFact], from_ms: int, until_ms: int) -> bool:
    """Whether users feel it in this time: latency or failing calls at the entry against the quiet beginning."""
    entry = simulation.system.entry
    usual = median(series(facts, entry, "latency", START_MS, START_MS + QUIET_STEPS * STEP_MS))
    slow = median(series(facts, entry, "latency", from_ms, until_ms)) > 1.3 * usual
    return slow or median(series(facts, entry, "availability", from_ms, until_ms)) < 97


RIGHT: dict[str, Callable[[Fault], tuple[str, Mapping[str, Any]]]] = {
    "slow_deploy": lambda f: ("roll_back", {"node": f.node, "deploy_id": f.deploy_id}),
    "failing_deploy": lambda f: ("roll_back", {"node": f.node, "deploy_id": f.deploy_id}),
    "frozen_deploy": lambda f: ("roll_back", {"node": f.node, "deploy_id": f.deploy_id}),
    "stuck_instance": lambda f: ("restart_service", {"node": f.node, "instances": 1}),
    "overload": lambda f: ("scale_out", {"node": f.node, "instances": 2}),
    "slow_dependency": lambda f: ("shift_traffic", {"node": f.node}),
    "lasting": lambda f: ("page_person", {"node": f.node, "reason": "r"}),
}


# ----------------------------------------------------------------------------------------- the input


def test_the_same_seed_gives_the_same_facts_and_another_seed_others() -> None:
    first, again, other = (list(WORLD.generate(seed=seed, count=4_000)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_longer_input_begins_like_a_shorter_one_and_holds_at_most_what_was_asked_for() -> None:
    short, long = (list(WORLD.generate(seed=1, count=count)) for count in (5_000, 9_000))
    assert len(short) <= 5_000 < len(long) <= 9_000
    assert long[: len(short)] == short


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_facts_fit_the_contract_calls_first_and_in_order_of_time(seed: int) -> None:
    simulation = Simulation(seed, COUNT)
    facts = list(simulation)
    for fact in facts:
        CONTRACT.facts[fact.type].model_validate(fact.data)
    assert {fact.subject for fact in facts} == {simulation.system.name}
    times = [fact.event_ms for fact in facts]
    assert times == sorted(times)
    calls = sum(len(callees) for callees in simulation.system.calls.values())
    assert [f.type for f in facts].index("incident.metric_measured") == calls


def test_every_kind_of_fact_is_told() -> None:
    told = {fact.type for seed in (1, 2) for fact in Simulation(seed, COUNT)}
    assert told == set(CONTRACT.facts) - {"flyball.outcome", "flyball.clock_ticked"}


def test_each_sample_is_closed_behind_its_last_series() -> None:
    facts = list(Simulation(1, 5_000))
    closed = [n for n, fact in enumerate(facts) if fact.type == "incident.sample_closed"]
    assert len(closed) > 50
    for number in closed:
        at_ms = facts[number].event_ms
        assert facts[number - 1].event_ms == at_ms
        assert all(f.event_ms != at_ms for f in facts[number + 1 :] if f.type == "incident.metric_measured")


@pytest.mark.parametrize("seed", range(1, 40))
def test_a_system_has_some_twelve_to_twenty_nodes_all_of_them_behind_the_entry(seed: int) -> None:
    system = draw_system(seed)
    assert 12 <= len(system.nodes) <= 20
    assert len({node.name for node in system.nodes}) == len(system.nodes)
    assert min(system.calls_a_request().values()) > 0
    order = [node.name for node in system.nodes]
    assert all(order.index(a) < order.index(b) for a, callees in system.calls.items() for b in callees)


def test_every_story_is_told_before_one_is_told_again() -> None:
    simulation = Simulation(5, 1)
    stories = [simulation.slot(number).fault.story for number in range(18)]
    assert stories[0] == stories[9] == "slow_deploy"
    assert len(set(stories[:9])) == len(set(stories[9:])) == 9


def test_texts_that_give_orders_stand_in_alerts_and_nowhere_else() -> None:
    hostile = set(drawn_from()["alerts"]["hostile"])
    told = {f.data["text"] for seed in range(1, 6) for f in Simulation(seed, COUNT) if f.type == "incident.alert_raised"}
    assert hostile & told
    assert told <= hostile | set(drawn_from()["alerts"]["plain"])


# ----------------------------------------------------------------------------------------- symptoms


@pytest.mark.parametrize("seed", range(1, 12))
def test_what_is_wrong_with_a_node_shows_at_all_that_call_it_and_nowhere_else(seed: int) -> None:
    system = draw_system(seed)
    node = system.nodes[-1].name
    before = behave(system, HEALTHY, 40.0)
    after = behave(system, Effects({node: 1.0}, {node: 0.5}, {}), 40.0)
    above, todo = {node}, [node]
    while todo:
        todo = [caller for name in todo for caller in system.callers(name) if caller not in above]
        above.update(todo)
    assert system.entry in above
    for name in before:
        changed = (after[name].latency_s, after[name].errors) != (before[name].latency_s, before[name].errors)
        assert changed is (name in above)
    assert after[node].errors == max(measured.errors for measured in after.values())


@pytest.mark.parametrize("name", [*RIGHT])
def test_a_fault_shows_at_the_entry_and_lasts_when_nobody_acts(name: str) -> None:
    simulation, fault = story(name)
    facts = list(simulation)
    assert fault.node != simulation.system.entry
    assert shown(simulation, fault, facts, fault.began_ms, fault.began_ms + 5 * STEP_MS)
    assert shown(simulation, fault, facts, fault.ends_ms - 5 * STEP_MS, fault.ends_ms)
    assert not shown(simulation, fault, facts, fault.ends_ms, fault.ends_ms + 10 * STEP_MS)


def test_a_false_alert_is_one_and_a_silent_node_tells_nothing_for_a_while() -> None:
    simulation, fault = story("false_alert")
    facts = list(simulation)
    assert any(f.type == "incident.alert_raised" and f.event_ms > fault.began_ms for f in facts)
    assert not shown(simulation, fault, facts, fault.began_ms, fault.ends_ms)
    simulation, fault = story("silence")
    facts = list(simulation)
    assert series(facts, fault.node, "latency", fault.began_ms, fault.began_ms + 25 * STEP_MS) == []
    assert len(series(facts, fault.node, "latency", fault.began_ms + 25 * STEP_MS, fault.began_ms + 40 * STEP_MS)) == 15


# ----------------------------------------------------------------------------------------- remedies


@pytest.mark.parametrize("name", [*RIGHT])
def test_the_right_remedy_at_the_right_place_heals(name: str) -> None:
    simulation, fault = story(name)
    loop = Loop(RIGHT[name](fault))
    facts = play(simulation, loop)
    key = f"{simulation.system.name}|{fault.slot}"
    ((_, asked_ms),) = [each for each in loop.asked if each[0] == key]
    assert asked_ms == fault.began_ms + CHECK_STEPS * STEP_MS
    assert shown(simulation, fault, facts, fault.began_ms, asked_ms + STEP_MS)
    later_ms = asked_ms + (1 + CHECK_STEPS + (5 if name == "lasting" else 0)) * STEP_MS
    assert not shown(simulation, fault, facts, later_ms, later_ms + 5 * STEP_MS)
    assert not shown(simulation, fault, facts, later_ms, fault.ends_ms)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("slow_deploy", lambda f: ("roll_back", {"node": f.node, "deploy_id": "d-other"})),
        ("slow_deploy", lambda f: ("restart_service", {"node": f.node, "instances": 1})),
        ("stuck_instance", lambda _: ("restart_service", {"node": "somewhere-else", "instances": 1})),
        ("overload", lambda _: ("scale_out", {"node": "somewhere-else", "instances": 2})),
        ("slow_dependency", lambda f: ("restart_service", {"node": f.node, "instances": 2})),
        ("lasting", lambda f: ("shift_traffic", {"node": f.node})),
    ],
)
def test_a_wrong_remedy_changes_nothing_and_the_next_is_asked_for(name: str, wrong: Any) -> None:
    simulation, fault = story(name)
    loop = Loop(wrong(fault), RIGHT[name](fault))
    facts = play(simulation, loop)
    key = f"{simulation.system.name}|{fault.slot}"
    first_ms, second_ms = [at_ms for asked, at_ms in loop.asked if asked == key]
    assert second_ms - first_ms == CHECK_STEPS * STEP_MS
    assert shown(simulation, fault, facts, first_ms, second_ms + STEP_MS)
    healed_ms = second_ms + (2 + (5 if name == "lasting" else 0)) * STEP_MS + STEP_MS
    assert not shown(simulation, fault, facts, healed_ms, healed_ms + 5 * STEP_MS)


def test_a_remedy_that_failed_changes_nothing() -> None:
    simulation, fault = story("stuck_instance")
    facts = play(simulation, Loop(RIGHT["stuck_instance"](fault), done="failed"))
    assert shown(simulation, fault, facts, fault.ends_ms - 10 * STEP_MS, fault.ends_ms)


def test_half_of_the_instances_heal_half_of_an_overload() -> None:
    simulation, fault = story("overload")
    one = ("scale_out", {"node": fault.node, "instances": 1})
    facts = play(simulation, Loop(one, one))
    latencies = [
        median(series(facts, fault.node, "latency", from_ms, from_ms + 2 * STEP_MS))
        for from_ms in (fault.began_ms, fault.began_ms + 4 * STEP_MS, fault.began_ms + 8 * STEP_MS)
    ]
    assert latencies[0] > 1.5 * latencies[1] > 2 * latencies[2]


def test_samples_follow_from_seed_and_decisions_alone() -> None:
    simulation, fault = story("slow_deploy")
    played = [play(simulation, Loop(RIGHT["slow_deploy"](fault))) for _ in range(2)]
    assert played[0] == played[1]
    alone = list(simulation)
    healed_ms = fault.began_ms + (CHECK_STEPS + 2) * STEP_MS
    assert [f for f in played[0] if f.event_ms < healed_ms] == [f for f in alone if f.event_ms < healed_ms]


def test_a_silent_loop_is_asked_twice_a_story_and_not_for_ever() -> None:
    loop = Loop(None)
    play(Simulation(1, 30_000), loop)
    assert len(loop.asked) <= 2 * PATIENCE


def test_a_held_remedy_heals_once_a_person_approved_it() -> None:
    simulation, fault = story("frozen_deploy")

    class Slow(Loop):
        def __call__(self, key: str, /, **how: Any) -> Decided | None:
            if self.now_ms < fault.began_ms + CHECK_STEPS * STEP_MS or key != f"{simulation.system.name}|{fault.slot}":
                return None
            if how["nth"] == 0:
                return Decided("hold", "roll_back", {})
            if how["nth"] == 1 and self.now_ms > fault.began_ms + 8 * STEP_MS:
                return Decided("allow", *RIGHT["frozen_deploy"](fault), "c-1", "succeeded", fault.began_ms + 90_000)
            return None

    facts = play(simulation, Slow())
    at_ms = fault.began_ms + 8 * STEP_MS
    assert shown(simulation, fault, facts, at_ms - 5 * STEP_MS, at_ms)
    assert not shown(simulation, fault, facts, at_ms + 3 * STEP_MS, fault.ends_ms)


def test_the_next_story_waits_for_the_outcome_of_what_was_decided_in_this_one() -> None:
    """A second remedy was decided after the first had healed; its outcome comes only when it is waited for."""
    simulation = Simulation(1, 10_000)
    fault = simulation.slot(0).fault
    waited: list[int] = []

    class Late(Loop):
        def __call__(self, key: str, /, **how: Any) -> Decided | None:
            if key != f"{simulation.system.name}|0" or self.now_ms < fault.began_ms or how["nth"] > 1:
                return None
            if how["nth"] == 0:
                return Decided("allow", *RIGHT["slow_deploy"](fault), "c-0", "succeeded", fault.began_ms + 90_000)
            if not how.get("is_done"):
                return Decided("allow", "scale_out", {}, "c-1")
            if how["timeout_s"]:
                waited.append(self.now_ms)
                return Decided("allow", "scale_out", {"node": fault.node, "instances": 1}, "c-1", "succeeded", self.now_ms)
            return None

    play(simulation, Late())
    assert waited == [START_MS + (QUIET_STEPS + SLOT_STEPS - 1) * STEP_MS]


# ---------------------------------------------------------------------------------------- the world


def test_a_decision_is_told_by_the_slot_it_falls_in_and_only_remedies_that_may_come() -> None:
    fault = Simulation(1, 1).slot(3).fault
    decision = {
        "subject": "shop-1", "action": "restart_service", "verdict": "allow",
        "event_time": format_time_ms(fault.began_ms + STEP_MS),
    }  # fmt: skip
    assert WORLD.decision_key(decision) == decision_key(decision) == "shop-1|3"
    assert decision_key({**decision, "verdict": "hold"}) == "shop-1|3"
    assert decision_key({**decision, "verdict": "deny"}) is None
    assert decision_key({**decision, "action": "triage_incident"}) is None


PARAMETERS: dict[str, Mapping[str, Any]] = {
    "triage_incident": {"severity": "high", "suspected_cause": "cart"},
    "restart_service": {"node": "cart", "instances": 1},
    "roll_back": {"node": "cart", "deploy_id": "d-1"},
    "scale_out": {"node": "cart", "instances": 3},
    "shift_traffic": {"node": "cart"},
    "open_circuit": {"node": "cart"},
    "page_person": {"node": "cart", "reason": "r"},
    "close_incident": {"incident_id": "i-1"},
}


def order(action: str, command_id: str) -> Order:
    return Order(command_id, action, "shop-1", PARAMETERS[action], "2025-03-03T00:00:00Z")


def test_there_are_hands_for_every_action_and_the_same_command_ends_the_same_way() -> None:
    handlers = load_world("incidents").handlers(1)
    assert set(handlers) == set(CONTRACT.actions)
    for action, handler in handlers.items():
        done = [handler(order(action, f"c-{n}")) for n in range(200)]
        assert done == [handler(order(action, f"c-{n}")) for n in range(200)]
        failed = sum(each.status == "failed" for each in done)
        assert failed == (0 if action in ("triage_incident", "page_person", "close_incident") else
                          sum(is_failing(1, f"c-{n}") for n in range(200)))  # fmt: skip
        assert all(each.took_s <= CHECK_STEPS * 60 or action == "page_person" for each in done)
    assert 0 < sum(is_failing(1, f"c-{n}") for n in range(1000)) / 1000 < 2 * FAILS


def test_scaling_tells_what_it_cost() -> None:
    scale = WORLD.handlers(1)["scale_out"]
    costs = {scale(order("scale_out", f"c-{n}")).cost for n in range(200)}
    assert costs == {0.0, 2.7}
