"""The ranking of suspects: what it promises of any graph, and how far it gets on the shipped incidents."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests import petshop
from udfs.root_cause import FAR, Deviation, find_symptom, rank_suspects

# web calls shop and search; shop calls pay, which calls db; search calls index.
CALLS = [("web", "shop"), ("web", "search"), ("shop", "pay"), ("pay", "db"), ("search", "index")]


def slow(node: str, score: float, excess: float = 1.0, **more: object) -> Deviation:
    return Deviation(node, "latency", "Average", score, excess, **more)  # type: ignore[arg-type]


def calm(*nodes: str) -> list[Deviation]:
    return [slow(node, 0.3, 0.01) for node in nodes]


def test_the_deepest_deviating_node_comes_first_when_it_explains_its_callers() -> None:
    found = [slow("web", 9), slow("shop", 20), slow("pay", 30), slow("db", 12), *calm("search", "index")]
    assert rank_suspects(found, CALLS, "web")[0] == "db"


def test_a_caller_comes_first_when_what_it_calls_explains_little_of_it() -> None:
    found = [slow("web", 9, 1.0), slow("shop", 20, 1.0), slow("pay", 30, 1.0), slow("db", 12, 0.1)]
    assert rank_suspects(found, CALLS, "web")[:2] == ("pay", "db")


def test_a_deviation_that_no_caller_shows_comes_behind_one_that_reaches_the_symptom() -> None:
    found = [slow("web", 6, 1.0), slow("shop", 8, 1.0), slow("index", 40, 1.0), *calm("search", "pay", "db")]
    assert rank_suspects(found, CALLS, "web")[0] == "shop"


def test_a_metric_is_explained_only_by_the_same_metric() -> None:
    failing = Deviation("shop", "availability", "Average", 20, 10.0)
    assert rank_suspects([slow("web", 6), failing, slow("pay", 8, 10.0)], CALLS, "web")[0] == "shop"


def test_traffic_says_little_of_its_own_node() -> None:
    busy = Deviation("db", "requests", "Sum", 40, 500.0, is_weak=True)
    assert rank_suspects([slow("web", 6), slow("shop", 9), busy, slow("pay", 3, 0.1)], CALLS, "web")[0] == "shop"
    assert find_symptom([busy, *calm("web", "shop", "pay")], CALLS) is None


def test_nobody_is_suspected_when_nothing_deviates() -> None:
    assert rank_suspects(calm("web", "shop", "pay", "db"), CALLS, "web") == ()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_change_nothing(scale: float) -> None:
    found = [slow("web", 9, 3.0), slow("shop", 20, 2.0), slow("pay", 30, 1.5), slow("db", 12, 0.5)]
    scaled = [slow(d.node, d.score, d.excess * scale) for d in found]
    assert rank_suspects(scaled, CALLS, "web") == rank_suspects(found, CALLS, "web")


def test_the_order_of_rows_and_calls_changes_nothing() -> None:
    found = [slow("web", 9), slow("shop", 20), slow("pay", 30), slow("db", 12), slow("index", 12)]
    wanted = rank_suspects(found, CALLS, "web")
    for seed in range(20):
        chance = random.Random(seed)
        assert rank_suspects(chance.sample(found, len(found)), chance.sample(CALLS, len(CALLS)), "web") == wanted


def test_calls_in_a_circle_come_to_an_end() -> None:
    circle = [("a", "b"), ("b", "c"), ("c", "a"), ("b", "b")]
    found = [slow("a", 9), slow("b", 9, score_before=9), slow("c", 9)]
    assert find_symptom(found, circle) is not None
    assert set(rank_suspects(found, circle, "a")) <= {"a", "b", "c"}


def test_a_symptom_is_what_users_feel_and_nearest_to_them() -> None:
    found = [slow("web", 3), slow("shop", 9), slow("pay", 30), *calm("search", "index")]
    symptom = find_symptom(found, CALLS)
    assert symptom is not None and symptom.node == "shop"


SILENT: dict[str, Callable[[], list[Deviation]]] = {
    "a deep node deviates and its callers do not": lambda: [slow("db", 40), *calm("web", "shop", "pay")],
    "one sample of what nobody calls is odd": lambda: [slow("web", 40), *calm("shop", "search")],
    "nothing is far enough off": lambda: [slow("web", FAR - 0.1), slow("shop", FAR - 0.1)],
    "there are no measurements": list,
}


@pytest.mark.parametrize("name", SILENT)
def test_there_is_no_symptom_when(name: str) -> None:
    assert find_symptom(SILENT[name](), CALLS) is None


def test_what_nobody_calls_is_a_symptom_when_it_is_far_off_twice() -> None:
    assert find_symptom([slow("web", 9, score_before=9), *calm("shop")], CALLS) is not None


def test_a_caller_that_tells_nothing_hides_no_symptom() -> None:
    symptom = find_symptom([slow("shop", 9), slow("pay", 9), *calm("search")], [("outside", "web"), *CALLS])
    assert symptom is not None and symptom.node == "shop"


def ranks(name: str, past_samples: int = petshop.WINDOW + petshop.GAP) -> list[int]:
    """The place of the true cause at each sample of a shipped incident that has a symptom; 0: not listed."""
    past = petshop.Past(petshop.normal()[-past_samples:])
    found = []
    for sample in petshop.incidents()[name]:
        deviations = past.deviations(sample)
        if (symptom := find_symptom(deviations, petshop.calls())) is not None:
            suspects = rank_suspects(deviations, petshop.calls(), symptom.node)
            cause = petshop.causes()[name]
            found.append(suspects.index(cause) + 1 if cause in suspects else 0)
    return found


def test_every_shipped_incident_is_noticed_and_its_cause_is_found() -> None:
    """Wanted: among the first three in 6 of 9, first in 4 of 9. Reached: 9 of 9, and first in 8 at once, 9 at the end."""
    found = {name: ranks(name) for name in petshop.incidents()}
    assert len(found) == 9 and all(found.values()), found
    assert sum(1 <= places[0] <= 3 for places in found.values()) == 9, found
    assert sum(places[0] == 1 for places in found.values()) >= 8, found
    assert sum(places[-1] == 1 for places in found.values()) >= 8, found


@pytest.mark.parametrize("past_samples", [90, 150])
def test_a_shorter_past_is_enough(past_samples: int) -> None:
    found = {name: ranks(name, past_samples) for name in petshop.incidents()}
    assert sum(bool(places) and 1 <= places[-1] <= 3 for places in found.values()) >= 8, found


def test_few_symptoms_are_seen_when_nothing_was_injected() -> None:
    """A day of the shipped normal operation against the day before it."""
    past = petshop.Past(petshop.normal()[:-240])
    symptoms = [find_symptom(past.deviations(sample), petshop.calls()) for sample in petshop.normal()[-240:]]
    assert sum(symptom is not None for symptom in symptoms) <= 4
