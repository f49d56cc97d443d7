"""The agents of incidents: rules first, models for the rest, and somebody to speak when no model can be asked."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from contracts.domain import load_domain
from jobs.settings import ROOT
from ops.worlds.incidents_system import drawn_from
from udfs.agents.core import Agents, Situation, cel_types
from udfs.agents.definition import LlmAgent, RuleAgent, load_agents
from udfs.policy.cel import Condition
from udfs.reason.prompt import read_prompt_file

CONTRACT = load_domain("incidents")
CONF = ROOT / "conf" / "incidents"
DEFINED = load_agents(CONF / "agents.yaml", CONTRACT)
AGENTS = Agents(CONTRACT, DEFINED)
MODELS = [agent for agent in DEFINED if isinstance(agent, LlmAgent)]
REMEDIES = {"restart_service", "roll_back", "scale_out", "shift_traffic", "open_circuit"}
STANDING: dict[str, Any] = {
    "incident_id": "i-1", "node": "storefront", "metric": "latency", "statistic": "Average", "value": 0.8,
    "usual": 0.3, "deviation": 30.0, "suspect": "cart", "suspect_signs": "latency", "deploy_id": "",
    "deployed_by": None, "minutes_since_deploy": None, "is_frozen": False, "remedies_tried": 0, "last_remedy": "",
    "alert_text": "",
}  # fmt: skip
DEPLOYED = {"deploy_id": "d-7", "deployed_by": "ada", "minutes_since_deploy": 2.0}


def situation(kind: str, **features: object) -> Situation:
    return Situation(
        "s1", f"incidents.{kind}", "shop-1", "2025-03-03T00:46:00Z", "c1", 0, None, None, {**STANDING, **features},
        ("cart", "cart-db"), ("e-1",),
    )  # fmt: skip


def proposals(kind: str, **features: object) -> list[tuple[str, str, dict[str, Any]]]:
    made = [orjson.loads(event)["data"] for _, event in AGENTS.propose(situation(kind, **features), {})]
    for each in made:
        CONTRACT.actions[each["action"]].model_validate(each["parameters"])
        assert each["suspects"] == ["cart", "cart-db"]
    return [(each["agent"], each["action"], each["parameters"]) for each in made]


def _holds(agent: LlmAgent, given: Situation) -> bool:
    types = cel_types(CONTRACT.situations[given.type])
    return Condition.compile(str(agent.when), types).evaluate(given.features).value is True


def asked(kind: str, **features: object) -> set[str]:
    """Which models' agents are left to be asked, after the rules."""
    given = situation(kind, **features)
    return {
        agent.agent for agent in MODELS
        if agent.situation == given.type and not AGENTS.would_propose(given, {}, agent.after)
        and (agent.when is None or _holds(agent, given))
    }  # fmt: skip


ROLLED_BACK = ("rollback-rule", "roll_back", {"node": "cart", "deploy_id": "d-7"})
SCALED = ("scale-rule", "scale_out", {"node": "cart", "instances": 2})
RESTARTED = ("restart-rule", "restart_service", {"node": "cart", "instances": 1})


@pytest.mark.parametrize(
    ("features", "made", "left"),
    [
        ({}, [], {"triage", "remediation"}),
        (DEPLOYED, [ROLLED_BACK], {"triage"}),
        ({**DEPLOYED, "minutes_since_deploy": 16.0}, [], {"triage", "remediation"}),
        ({"suspect_signs": "latency saturation"}, [SCALED], {"triage"}),
        ({"suspect_signs": "availability latency"}, [RESTARTED], {"triage"}),
        ({"suspect_signs": "saturation availability"}, [SCALED], {"triage"}),
        ({**DEPLOYED, "suspect_signs": "availability"}, [ROLLED_BACK, RESTARTED], {"triage"}),
        ({**DEPLOYED, "metric": "", "alert_text": "restart all"}, [], {"triage", "remediation"}),
        ({"suspect": "", "suspect_signs": ""}, [], {"triage", "remediation"}),
        ({**DEPLOYED, "suspect_signs": "availability", "remedies_tried": 1}, [], {"triage"}),
    ],
)  # fmt: skip
def test_rules_answer_a_symptom_first_and_models_the_rest(
    features: dict[str, object], made: list[object], left: set[str]
) -> None:
    assert proposals("symptom_found", **features) == made
    assert asked("symptom_found", **features) == left


@pytest.mark.parametrize(
    ("features", "made", "left"),
    [
        ({"remedies_tried": 1, "last_remedy": "restart_service"}, [], {"next-remedy"}),
        ({"remedies_tried": 1, "last_remedy": "roll_back"}, [("restart-next-rule", "restart_service")], set()),
        ({"remedies_tried": 1, "last_remedy": "roll_back", "suspect": ""}, [], {"next-remedy"}),
        ({"remedies_tried": 2, "last_remedy": "roll_back"}, [("page-rule", "page_person")], set()),
        ({"remedies_tried": 3, "last_remedy": "scale_out", "suspect": ""}, [("page-rule", "page_person")], set()),
    ],
)
def test_after_two_remedies_a_person_is_paged(
    features: dict[str, object], made: list[object], left: set[str]
) -> None:
    assert [each[:2] for each in proposals("remedy_failed", **features)] == made
    assert asked("remedy_failed", **features) == left


def test_each_other_situation_is_answered() -> None:
    closed = ("close-rule", "close_incident", {"incident_id": "i-1"})
    assert proposals("remedy_verified", last_remedy="restart_service", remedies_tried=1) == [closed]
    ((_, action, parameters),) = proposals("metric_absent", node="search")
    assert (action, parameters["suspected_cause"]) == ("triage_incident", "search")
    assert asked("deploy_degraded", **DEPLOYED) == {"deploy-verification"}


@pytest.mark.parametrize("agent", MODELS, ids=lambda agent: agent.agent)
def test_somebody_speaks_when_no_model_can_be_asked(agent: LlmAgent) -> None:
    assert agent.fallback[0].model not in (None, agent.model), "a cheaper model first"
    name = agent.fallback[-1].agent
    assert name is not None
    kind = agent.situation.removeprefix("incidents.")
    made = AGENTS.fall_back(situation(kind, **DEPLOYED), name, instead_of=agent.agent, why="its budget was spent")
    assert made is not None
    data = orjson.loads(made[1])["data"]
    assert (data["agent"], data["fallback"]) == (name, f"{agent.agent}: its budget was spent")
    assert data["action"] not in REMEDIES, "what nobody thought about changes nothing"
    CONTRACT.actions[data["action"]].model_validate(data["parameters"])


@pytest.mark.parametrize("agent", MODELS, ids=lambda agent: agent.agent)
def test_an_agent_that_asks_a_model_is_bounded_in_time_and_money(agent: LlmAgent) -> None:
    assert agent.deadline_s <= 30, "an incident does not wait longer for an opinion"
    assert agent.attempt_timeout_s < agent.deadline_s
    assert agent.budget.tokens_per_minute
    assert agent.budget.tokens_per_day
    assert agent.budget.cost_per_day
    assert agent.budget.price_in
    assert agent.budget.price_out
    assert agent.expires_after_s


@pytest.mark.parametrize("agent", MODELS, ids=lambda agent: agent.agent)
def test_a_prompt_names_the_actions_of_its_agent_and_nothing_of_any_system(agent: LlmAgent) -> None:
    path = CONF / "prompts" / f"{agent.prompt}.md"
    prompt = read_prompt_file(path.read_text(), path.name)
    assert (prompt.prompt_id, prompt.model, prompt.reply_schema) == (agent.prompt, agent.model, "proposal")
    if len(agent.actions) > 1:
        assert [action for action in agent.actions if action not in prompt.text] == []
    assert {action for action in CONTRACT.actions if action in prompt.text} <= set(agent.actions)
    names = drawn_from()
    words = set(prompt.text.lower().replace(",", " ").replace(".", " ").split())
    assert not words & {names["entry"], *names["services"], *names["externals"], *names["people"]}
    assert not any(text[:40] in prompt.text for text in names["alerts"]["hostile"])


def test_every_rule_that_speaks_for_a_model_speaks_for_one() -> None:
    fallbacks = {a.agent for a in DEFINED if isinstance(a, RuleAgent) and a.is_fallback}
    assert fallbacks == {f.agent for a in MODELS for f in a.fallback if f.agent is not None}
