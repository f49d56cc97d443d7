"""The agents and policies of payments: every payment gets one decision, and which one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from contracts.domain import load_domain
from contracts.payments import PaymentAssessed
from jobs.settings import ROOT
from ops import models, policies
from ops.worlds.payments_features import FEATURES
from udfs.agents.core import Agents, Situation
from udfs.agents.definition import load_agents
from udfs.agents.onnx_model import LoadedModel, load_model
from udfs.policy.govern import Governor
from udfs.policy.policy_set import PolicySet
from udfs.policy.subject import SubjectState

CONTRACT = load_domain("payments")
AGENTS = Agents(CONTRACT, load_agents(ROOT / "conf" / "payments" / "agents.yaml", CONTRACT))
POLICIES = PolicySet.compile(policies.check_files("payments", policies.policy_files("payments")))
(MODEL,) = map(load_model, models.shipped_models("payments"))

USUAL: dict[str, Any] = {
    **dict.fromkeys(PaymentAssessed.model_fields),
    "transaction_id": "t1", "terminal_id": "m1", "amount_minor": 2_000, "payments_seen": 40,
    "amount_ratio_log": 0.1, "amount_deviation": 0.2, "gap_1_s": 40_000.0, "gap_2_s": 90_000.0,
    "gap_4_s": 200_000.0, "gap_8_s": 500_000.0, "tempo_4": 0.9, "tempo_8": 1.1,
    "account_far_chargebacks": 0.0, "account_near_chargebacks": 0.0, "terminal_chargebacks": 0.0,
    "terminal_confirmations": 0.3, "terminal_recoveries": 1, "terminal_share": 0.0, "band_share": 0.0,
    "band_judged_share": 0.0, "is_terminal_suspected": False,
}  # fmt: skip
BURST = {"gap_1_s": 60.0, "gap_2_s": 130.0, "gap_4_s": 300.0, "gap_8_s": 700.0, "tempo_4": 0.001, "tempo_8": 0.001}
FAR = {"amount_ratio_log": 2.3, "amount_deviation": 5.5}
SUSPECTED = {
    "terminal_chargebacks": 4.0, "terminal_recoveries": 0, "terminal_share": 0.4, "terminal_intensity": 0.8,
    "terminal_fraud_days": 3.0, "terminal_mean_fraud_days": 7.0, "terminal_first_fraud_days": 11.0,
    "terminal_news_days": 0.2, "is_terminal_suspected": True,
}  # fmt: skip


def situation(**features: object) -> Situation:
    known = {**USUAL, **features}
    known.pop("event_time")
    return Situation(
        "s1", PaymentAssessed.event_type, "a1", "2024-01-05T00:00:00Z", "c1", 0, None, None, known
    )


def decide(given: Situation, model: LoadedModel) -> list[dict[str, Any]]:
    """The data of every decision that follows from a situation."""
    governor, state, decided = Governor(CONTRACT, max_hops=6), SubjectState(), []
    for key, proposal in AGENTS.propose(given, {"payment-fraud": model}):
        incoming = governor.read.proposal(key.encode(), proposal)
        decided.append(orjson.loads(governor.decide(state, incoming, POLICIES).decision)["data"])
    return decided


class _Says:
    """Stands in for an ONNX session: always the same score."""

    def __init__(self, score: float) -> None:
        self._score = score

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.array([[self._score]], dtype=np.float32)]


@pytest.mark.parametrize("is_suspected", [False, True])
@pytest.mark.parametrize("score", [0.0, 0.05, 0.0999, 0.1, 0.2, 0.3999, 0.4, 0.7, 0.9799, 0.98, 1.0])
def test_every_payment_gets_one_allowed_decision_whatever_the_score(score: float, is_suspected: bool) -> None:
    (decision,) = decide(situation(is_terminal_suspected=is_suspected), replace(MODEL, session=_Says(score)))
    review_at = 0.1 if is_suspected else 0.4
    expected = "block_payment" if score >= 0.98 else "review_payment" if score >= review_at else "allow_payment"
    assert (decision["verdict"], decision["action"]) == ("allow", expected)
    assert decision["parameters"]["transaction_id"] == "t1"
    assert (decision["command_id"] is None) == (expected == "allow_payment")


@pytest.mark.parametrize(
    ("features", "actions"),
    [
        ({}, {"allow_payment"}),
        (dict.fromkeys(FEATURES) | {"is_terminal_suspected": False}, {"allow_payment"}),
        (BURST, {"review_payment", "block_payment"}),
        (FAR, {"review_payment", "block_payment"}),
        (SUSPECTED, {"review_payment", "block_payment"}),
    ],
    ids=["usual", "nothing known", "burst", "far amount", "suspected terminal"],
)
def test_the_shipped_model_answers_as_people_would(features: dict[str, Any], actions: set[str]) -> None:
    (decision,) = decide(situation(**features), MODEL)
    assert decision["action"] in actions, decision["confidence"]


def test_a_score_never_depends_on_ids_or_the_size_of_the_currency() -> None:
    assert set(FEATURES).isdisjoint({"transaction_id", "terminal_id", "amount_minor"})


def test_the_models_inputs_are_the_features_training_makes() -> None:
    assert MODEL.inputs == FEATURES
    assert set(FEATURES) < set(PaymentAssessed.model_fields)
