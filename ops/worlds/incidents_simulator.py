"""A seeded world of incidents: what goes wrong when, and how metrics answer to what is done about it.

Forty steps are quiet (a step is one sampling interval, a minute by default), then come slots of 75, one
story each: it begins at step 6 to 8, and what nobody healed ends by itself 16 steps later. So few of the
samples are bad that the past of a series tells what is usual.

| story | what shows | what heals it |
|---|---|---|
| `slow_deploy`, `failing_deploy` | latency; errors, from a deploy on | `roll_back` of that deploy there |
| `stuck_instance` | errors and some latency | `restart_service` there |
| `overload` | two of four instances are gone: saturation, latency | `scale_out` there, as many as are gone |
| `slow_dependency` | latency of a store or of another's system | `shift_traffic` or `open_circuit` there |
| `lasting` | latency and errors of a store | nothing the loop can do |
| `false_alert` | an alert and nothing else | |
| `silence` | all series of a node stay away for 25 steps | |
| `frozen_deploy` | as `slow_deploy`, in a freeze window | `roll_back`, once a person approved it |

A paged person heals anything, two steps after somebody looks. A remedy counts from its outcome's event time
on, if that says `succeeded`; the wrong one, or the right one at the wrong place, changes nothing of what is
wrong. So the samples follow from seed and decisions alone.

To give the loop time for both, the world waits for the next remedy CHECK_STEPS after something began, and
after a remedy that did not help; remedies take no longer than that (incidents_remedies.py), so what they
changed shows in the samples that come behind their outcome in the log. And before the next story it waits for
the outcomes of what was decided in this one, which would stand in the way of the next one's remedies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from contracts.envelope import parse_time_ms
from contracts.incidents import (
    AlertRaised,
    CallObserved,
    CloseIncident,
    Deployed,
    FreezeDeclared,
    MetricMeasured,
    OpenCircuit,
    PagePerson,
    RestartService,
    RollBack,
    SampleClosed,
    ScaleOut,
    ShiftTraffic,
    TriageIncident,
)
from ops.world import Decided, DecisionOf, NewFact
from ops.worlds.incidents_system import (
    HEALTHY,
    INSTANCES,
    Effects,
    System,
    behave,
    draw_system,
    drawn_from,
    samples,
)

Story = Literal[
    "slow_deploy", "stuck_instance", "slow_dependency", "overload", "false_alert", "failing_deploy", "lasting",
    "silence", "frozen_deploy",
]  # fmt: skip
START_MS = parse_time_ms("2025-03-03T00:00:00Z")
INTERVAL_S = 60
QUIET_STEPS = 40
SLOT_STEPS = 75
LASTS_STEPS = 16  # what nobody healed ends
SILENT_STEPS = 25
CHECK_STEPS = 2
PERSON_STEPS = 2
# A deploy begins its story; harmless ones come at any time, but not so shortly before a story.
QUIET_BEFORE_STEPS = 5
# Wall time one answer of the loop is waited for, and after how many stories in a row that nobody
# answered the world stops waiting: the loop is silent.
PATIENCE_S = 40.0
PATIENCE = 3
ASKS = 2  # so often for one remedy
NO_REMEDY = {TriageIncident.action, CloseIncident.action}


@dataclass(frozen=True)
class Fault:
    """What really happened: for tests, never a fact. Times are event time in ms; `healed_by` are actions.

    `extra_s` (own latency, s), `errors` (share), `lost` (instances) are what it does to its node.
    """

    story: Story
    slot: int
    node: str
    began_ms: int
    ends_ms: int
    healed_by: frozenset[str] = frozenset()
    deploy_id: str | None = None
    extra_s: float = 0.0
    errors: float = 0.0
    lost: int = 0

    @property
    def is_real(self) -> bool:
        """Whether it shows in the metrics, and so in the end at the entry."""
        return bool(self.extra_s or self.errors or self.lost)

    def is_silent(self, at_ms: int, during_ms: int) -> bool:
        """Whether its node's series stay away now."""
        return self.story == "silence" and 0 <= at_ms - self.began_ms < during_ms

    def is_healed_by(self, decided: Decided) -> bool:
        told = decided.parameters
        if decided.done != "succeeded" or not self.is_real:
            return False
        if decided.action == PagePerson.action:  # who is woken finds place and remedy
            return True
        if decided.action not in self.healed_by:
            return False
        if decided.action == RollBack.action and told.get("deploy_id") != self.deploy_id:
            return False
        return told.get("node") == self.node


@dataclass(frozen=True)
class Slot:
    """One slot's story and the facts told with it."""

    fault: Fault
    facts: tuple[NewFact, ...]


@dataclass
class _Course:
    """What became of a slot's story so far: remedies that came back, until when it lasts, when to ask next."""

    until_ms: int
    ask_step: int | None
    taken: int = 0
    asked: int = 0
    is_healed: bool = False
    added: list[tuple[int, str, int]] = field(default_factory=list)  # from when, node, instances

    def lacks(self, fault: Fault, at_ms: int) -> int:
        """How many of the instances that the fault took are not there again."""
        more = sum(instances for from_ms, node, instances in self.added if node == fault.node and from_ms <= at_ms)
        return max(0, fault.lost - more)


class Simulation:
    """An input: iterate it for what happens when nobody acts, `played` for what happens when the loop does.

    At most `count` facts are made, in whole steps.
    """

    def __init__(self, seed: int, count: int, *, interval_s: int = INTERVAL_S) -> None:
        self.seed, self.interval_s, self._count = seed, interval_s, count
        self.system: System = draw_system(seed)
        self._slots: dict[int, Slot] = {}

    def __iter__(self) -> Iterator[NewFact]:
        """The whole course of facts when nobody acts."""
        return (fact for fact in self.played(None) if fact is not None)

    def played(self, decision_of: DecisionOf | None) -> Iterator[NewFact | None]:
        """All facts, with what remedies change; `decision_of` is asked as the loop goes on."""
        made, silent = 0, 0
        courses: dict[int, _Course] = {}
        for fact in self._calls():
            made += 1
            yield fact
        step = 0
        while True:
            number = self._slot_of(step)
            if number is not None and number not in courses:
                for before, course in courses.items():
                    if decision_of is not None and silent < PATIENCE:
                        yield None
                        self._come_to_rest(before, course, decision_of)
                fault = self.slot(number).fault
                first = self._step_of(fault.began_ms) + CHECK_STEPS if fault.is_real else None
                courses = {number: _Course(fault.ends_ms, first)}  # the one before is over
            facts = self._facts(step, courses.get(number) if number is not None else None)
            made += len(facts)
            if made > self._count:
                return
            yield from facts
            if decision_of is not None and number is not None:
                course = courses[number]
                if course.ask_step == step and silent < PATIENCE:
                    yield None
                    silent = 0 if self._ask(number, course, step, decision_of, PATIENCE_S) else silent + 1
                else:
                    self._ask(number, course, step, decision_of, 0.0)
            step += 1

    def faults(self) -> list[Fault]:
        """The truth: every story that begins within `count` facts when nobody acts. For tests."""
        last_ms = max((fact.event_ms for fact in self), default=0)
        found: list[Fault] = []
        while (fault := self.slot(len(found)).fault).began_ms <= last_ms:
            found.append(fault)
        return found

    # ------------------------------------------------------------------------- what the loop did

    def _ask(
        self, number: int, course: _Course, step: int, decision_of: DecisionOf, patience_s: float
    ) -> bool:
        """Take in every remedy that was decided and came back; waits for the first of them."""
        fault, found = self.slot(number).fault, False
        key = f"{self.system.name}|{number}"
        while decided := decision_of(key, nth=course.taken, is_done=True, timeout_s=0.0 if found else patience_s):
            found = True
            course.taken += 1
            course.asked = 0
            self._take(fault, course, decided, step)
        if not found and course.ask_step == step:
            course.asked += 1
            course.ask_step = step + CHECK_STEPS if course.asked < ASKS else None
        return found

    def _come_to_rest(self, number: int, course: _Course, decision_of: DecisionOf) -> None:
        """Wait for what was decided in a slot and has no outcome yet: it would stand in the way of the next story's remedy."""
        key = f"{self.system.name}|{number}"
        while decision_of(key, nth=course.taken, timeout_s=0.0):
            if decision_of(key, nth=course.taken, is_done=True, timeout_s=PATIENCE_S) is None:
                return
            course.taken += 1

    def _take(self, fault: Fault, course: _Course, decided: Decided, step: int) -> None:
        done_ms = decided.done_ms
        if done_ms is None:  # held: people are asked, or nothing was commanded
            course.ask_step = None
            return
        if decided.action == ScaleOut.action and decided.done == "succeeded":
            course.added.append((done_ms, str(decided.parameters["node"]), int(decided.parameters["instances"])))
        if fault.is_healed_by(decided) and (decided.action != ScaleOut.action or not course.lacks(fault, done_ms)):
            course.is_healed = True
            if decided.action == PagePerson.action:
                done_ms += PERSON_STEPS * self.interval_s * 1000
            if decided.action != ScaleOut.action:  # what lacks instances has them back with the outcome
                course.until_ms = min(course.until_ms, done_ms)
        if course.ask_step is not None:
            later = max(course.ask_step, step + CHECK_STEPS)
            course.ask_step = None if course.is_healed or later >= self._step_of(fault.ends_ms) else later

    # ------------------------------------------------------------------------------ what happens

    def slot(self, number: int) -> Slot:
        """The story of slot `number`, with the facts told about it."""
        if number not in self._slots:
            self._slots[number] = self._tell(number)
        return self._slots[number]

    def _tell(self, number: int) -> Slot:
        draw = random.Random(f"{self.seed}|slot|{number}")
        story = self._story(number)
        begins = QUIET_STEPS + number * SLOT_STEPS
        at = begins + draw.randrange(6, 9)
        node = self._place(draw, story)
        how = _HOW[story](self.system, node) if story in _HOW else {}
        fault = Fault(story, number, node, self._ms(at), self._ms(at + LASTS_STEPS), **how)
        told: list[NewFact] = []
        if "deploy" in story:
            told.append(self._deploy(draw, number, node, self._ms(at) - 1000, "main"))
            fault = Fault(**{**fault.__dict__, "deploy_id": told[0].data["deploy_id"]})
        if story == "frozen_deploy":
            until_ms = self._ms(begins + SLOT_STEPS)
            told.append(self._fact(FreezeDeclared.event_type, self._ms(begins), {"freeze_until_ms": until_ms}))
        for which in ("other", "late"):  # somebody else deploys too: harmless, but there
            other = draw.choice([n.name for n in self.system.nodes if n.kind == "service" and n.name != node])
            low, high = (0, at - begins - QUIET_BEFORE_STEPS) if which == "other" else (SLOT_STEPS // 2, SLOT_STEPS)
            told.append(self._deploy(draw, number, other, self._ms(begins + draw.randrange(low, high)) + 500, which))
        if story == "false_alert" or draw.random() < 0.6:
            texts = drawn_from()["alerts"]
            is_hostile = story in ("false_alert", "slow_dependency") or draw.random() < 0.2
            text = draw.choice(texts["hostile" if is_hostile else "plain"])
            data = {"node": self.system.entry, "metric": "latency", "text": text}
            told.append(self._fact(AlertRaised.event_type, self._ms(at + 2) + 1000, data))
        return Slot(fault, tuple(sorted(told, key=lambda fact: fact.event_ms)))

    def _story(self, number: int) -> Story:
        """Every story comes before one comes again; a slow deploy is the first."""
        first, *others = get_args(Story)
        turn, place = divmod(number, len(others) + 1)
        random.Random(f"{self.seed}|stories|{turn}").shuffle(others)
        story: Story = [first, *others][place]
        return story

    def _place(self, draw: random.Random, story: Story) -> str:
        """Where it happens: below the entry, and asked often enough to be felt there."""
        calls = self.system.calls_a_request()
        kinds = {"slow_dependency": ("store", "external"), "lasting": ("store",)}.get(story, ("service",))
        nodes = [n.name for n in self.system.nodes[1:] if n.kind in kinds]
        felt = [name for name in nodes if calls[name] >= 0.25]
        return draw.choice(felt or [max(nodes, key=lambda name: calls[name])])

    def _deploy(self, draw: random.Random, number: int, node: str, event_ms: int, which: str) -> NewFact:
        version = f"{1 + number}.{draw.randrange(20)}.{draw.randrange(10)}"
        data = {
            "node": node, "deploy_id": f"d-{self.seed}-{number}-{which}", "version": version,
            "previous_version": f"{number}.{draw.randrange(20)}.{draw.randrange(10)}",
            "deployed_by": draw.choice(drawn_from()["people"]),
        }  # fmt: skip
        return self._fact(Deployed.event_type, event_ms, data)

    # ------------------------------------------------------------------------------------- facts

    def _calls(self) -> Iterator[NewFact]:
        for caller, callees in self.system.calls.items():
            for callee in callees:
                yield self._fact(CallObserved.event_type, START_MS - 1000, {"from_node": caller, "to_node": callee})

    def _facts(self, step: int, course: _Course | None) -> list[NewFact]:
        """All facts of one step, in order of event time; the sample is closed after its last series."""
        at_ms = self._ms(step)
        number = self._slot_of(step)
        slot = self.slot(number) if number is not None else None
        silent = ""
        if slot is not None and slot.fault.is_silent(at_ms, SILENT_STEPS * self.interval_s * 1000):
            silent = slot.fault.node
        effects = HEALTHY if slot is None or course is None else _effects(slot.fault, course, at_ms)
        draw = random.Random(f"{self.seed}|step|{step}")
        found = [
            self._fact(
                MetricMeasured.event_type, at_ms,
                {"node": node, "metric": metric, "statistic": statistic, "value": value},
            )
            for node, metric, statistic, value in samples(
                self.system, effects, draw, at_s=at_ms / 1000, interval_s=self.interval_s
            )
            if node != silent
        ]  # fmt: skip
        others = slot.facts if slot is not None else ()
        until_ms = at_ms + self.interval_s * 1000
        # What was told since the step before comes first: a deploy a second before the step begins.
        near = [fact for fact in others if at_ms <= fact.event_ms + 1000 < until_ms]
        found.append(self._fact(SampleClosed.event_type, at_ms, {}))
        return sorted([*near, *found], key=lambda fact: fact.event_ms)

    def _fact(self, kind: str, event_ms: int, data: Mapping[str, Any]) -> NewFact:
        identity = "|".join(str(value) for value in (event_ms, *data.values()))
        return NewFact(kind, self.system.name, event_ms, data, identity)

    def _ms(self, step: int) -> int:
        return START_MS + step * self.interval_s * 1000

    def _step_of(self, event_ms: int) -> int:
        return (event_ms - START_MS) // (self.interval_s * 1000)

    @staticmethod
    def _slot_of(step: int) -> int | None:
        return None if step < QUIET_STEPS else (step - QUIET_STEPS) // SLOT_STEPS


def _effects(fault: Fault, course: _Course, at_ms: int) -> Effects:
    is_on = fault.began_ms <= at_ms < course.until_ms
    instances: dict[str, int] = {}
    if is_on and fault.lost:
        instances[fault.node] = -fault.lost
    for from_ms, node, more in course.added:
        # Extra instances are taken back when the story would have ended anyway.
        if from_ms <= at_ms < fault.ends_ms:
            instances[node] = instances.get(node, 0) + more
    if not is_on:
        return Effects({}, {}, instances)
    extra_s = fault.extra_s * (course.lacks(fault, at_ms) / fault.lost if fault.lost else 1)
    return Effects({fault.node: extra_s}, {fault.node: fault.errors}, instances)


def _slower(system: System, node: str, times: float) -> float:
    """So much more own latency of the node that the entry gets `times` as slow."""
    usual = behave(system, HEALTHY, 40.0)
    return round((times - 1) * usual[system.entry].latency_s / system.calls_a_request()[node], 4)


def _failing(system: System, node: str, share: float) -> float:
    """So many own errors of the node that `share` of the requests at the entry fail, at least 20 %."""
    reached = behave(system, Effects({}, {node: 1.0}, {}), 40.0)[system.entry].errors
    return round(min(0.95, max(0.2, share / reached)), 4)


def _deploy_heals(system: System, node: str) -> dict[str, Any]:
    return {"extra_s": _slower(system, node, 2.5), "healed_by": frozenset({RollBack.action})}


_HOW: dict[Story, Callable[[System, str], dict[str, Any]]] = {
    "slow_deploy": _deploy_heals,
    "frozen_deploy": _deploy_heals,
    "failing_deploy": lambda system, node: {
        "errors": _failing(system, node, 0.1), "healed_by": frozenset({RollBack.action}),
    },
    "stuck_instance": lambda system, node: {
        "errors": _failing(system, node, 0.08), "extra_s": _slower(system, node, 1.6),
        "healed_by": frozenset({RestartService.action}),
    },
    "overload": lambda system, node: {
        "lost": INSTANCES // 2, "extra_s": _slower(system, node, 2.5), "healed_by": frozenset({ScaleOut.action}),
    },
    "slow_dependency": lambda system, node: {
        "extra_s": _slower(system, node, 2.5),
        "healed_by": frozenset({ShiftTraffic.action, OpenCircuit.action}),
    },
    "lasting": lambda system, node: {
        "extra_s": _slower(system, node, 2.0), "errors": _failing(system, node, 0.1),
    },
}  # fmt: skip


# ---------------------------------------------------------------------------------- the world's part


def decision_key(decision: Mapping[str, Any]) -> str | None:
    """The slot a remedy was decided in; the simulation waits for it. Denied ones change nothing."""
    if decision.get("action") in NO_REMEDY or decision.get("verdict") == "deny":
        return None
    step = (parse_time_ms(str(decision.get("event_time"))) - START_MS) // (INTERVAL_S * 1000)
    return f"{decision.get('subject')}|{(step - QUIET_STEPS) // SLOT_STEPS}"
