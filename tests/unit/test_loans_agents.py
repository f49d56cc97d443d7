"""The agents of loans: a case that is due gets exactly one proposal, whatever the analysis said."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from contracts.data import current
from contracts.domain import load_domain
from jobs.settings import ROOT
from udfs.agents.core import Agents, Situation
from udfs.agents.definition import load_agents
from udfs.yaml_file import read_yaml

CONTRACT = load_domain("loans")
AGENTS = Agents(CONTRACT, load_agents(ROOT / "conf" / "loans" / "agents.yaml", CONTRACT))
STANDING: dict[str, Any] = {
    "amount": 10_000.0, "rating": "B", "first_handled_by": None, "handled_by": None, "handled_by_all": None, "touches": 0, "hand_overs": 0,
    "hours_so_far": 2.0, "submissions": 1, "amount_changes": 0, "amount_deviation": None, "is_suspicious": False,
    "is_cancelled": False, "offer_amount": 7_000.0, "decline_reason": "", "is_fraud_confirmed": False,
}  # fmt: skip


def proposals(kind: str, **features: object) -> list[dict[str, Any]]:
    wanted = [name for name in CONTRACT.situations[f"loans.{kind}"].model_fields if name != "event_time"]
    known = {**STANDING, **features}
    situation = Situation(
        "s1", f"loans.{kind}", "c1", "2025-03-03T00:00:00Z", "c1", 1, None, None,
        {name: known[name] for name in wanted},
    )  # fmt: skip
    return [orjson.loads(event)["data"] for _, event in AGENTS.propose(situation, {})]


@pytest.mark.parametrize(
    ("first", "last", "everybody"),
    [("ada", "grace", "ada\ngrace"), ("ada", "ada", "ada"), (None, None, None), (None, "grace", "grace")],
)
@pytest.mark.parametrize("kind", ["application_received", "fraud_suspected", "application_analysed", "offer_accepted"])
def test_a_situation_from_before_everybody_was_told_names_who_was_told(
    kind: str, first: str | None, last: str | None, everybody: str | None
) -> None:
    contract = CONTRACT.situations[f"loans.{kind}"]
    before = f"urn:flyball:loans:{contract.event_type}:{contract.schema_version - 1}"
    lifted = current(contract, {"dataschema": before, "data": {"first_handled_by": first, "handled_by": last}})
    assert lifted["handled_by_all"] == everybody


@pytest.mark.parametrize("name", ["accepted-offer", "approve-large", "approve-largest"])
def test_whoever_handled_a_case_may_not_approve_it_by_any_policy(name: str) -> None:
    policy = read_yaml(ROOT / "conf" / "loans" / "policies" / f"{name}.yaml")
    assert policy["approval"]["not_by"] == ["feature_handled_by_all"]


@pytest.mark.parametrize("is_fraud", [False, True])
@pytest.mark.parametrize(
    ("rating", "action", "parameters"),
    [
        ("A", "approve_application", {"amount": 10_000.0}),
        ("B", "approve_application", {"amount": 10_000.0}),
        ("C", "make_offer", {"amount": 7_000.0}),
        ("D", "decline_application", {"amount": 10_000.0, "decline_reason": "affordability"}),
        ("", "decline_application", {"amount": 10_000.0, "decline_reason": ""}),
    ],
)
def test_a_case_that_is_due_gets_one_proposal(
    rating: str, action: str, parameters: dict[str, object], is_fraud: bool
) -> None:
    reason = "fraud" if is_fraud else "affordability" if rating == "D" else ""
    (made,) = proposals(
        "application_analysed", rating=rating, is_fraud_confirmed=is_fraud, decline_reason=reason
    )
    if is_fraud:
        action, parameters = "decline_application", {"amount": 10_000.0, "decline_reason": "fraud"}
    assert (made["action"], made["parameters"]) == (action, parameters)


def test_a_case_is_analysed_unless_its_customer_withdrew() -> None:
    (made,) = proposals("application_received")
    assert made["action"] == "analyse_application"
    assert proposals("application_received", is_cancelled=True) == []


@pytest.mark.parametrize(
    ("kind", "features", "action", "parameters"),
    [
        ("fraud_suspected", {"suspicion": "resubmitted"}, "check_fraud", {"suspicion": "resubmitted"}),
        ("offer_accepted", {"offered_amount": 6_000.0}, "approve_application", {"amount": 6_000.0}),
        ("bouncing", {"one_resource": "ada", "other_resource": "grace", "bouncing_hours": 30.0},
         "reassign_case", {"one_resource": "ada", "other_resource": "grace"}),
        ("offer_unanswered", {"waited_days": 10}, "remind_customer", {"channel": "letter"}),
    ],
)  # fmt: skip
def test_each_other_situation_is_answered(
    kind: str, features: dict[str, object], action: str, parameters: dict[str, object]
) -> None:
    (made,) = proposals(kind, **features)
    assert (made["action"], made["parameters"]) == (action, parameters)
