"""Limits wider than a subject on the real cluster, where `govern` of `payments` runs as two subtasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from contracts.envelope import parse_time_ms
from contracts.policy import Policy
from tests.loop import Loop, proposal

START_MS = parse_time_ms("2018-01-01T00:00:00Z")
PAYMENT = {"transaction_id": "t", "terminal_id": "w", "amount_minor": 100}
SUBJECTS = [f"wide-{number}" for number in range(40)]


def payment(subject: str, event_ms: int, name: str = "") -> tuple[str, bytes]:
    return proposal(
        subject, event_ms=event_ms, name=name, action="review_payment", parameters=PAYMENT, domain="payments",
        situation_type="payments.payment_assessed", features={}, confidence=0.5,
    )  # fmt: skip


def put(loop: Loop, status: str) -> None:
    policy = Policy.model_validate_json(
        orjson.dumps(
            {
                "policy_id": "wide", "version": 1, "status": status, "when": 'subject.startsWith("wide-")',
                "verdict": "allow", "reason": "a test", "variables": {"subject": "string"},
                "outcome_within_s": 3600,
                "limits": [
                    {"per": ["action"], "max_count": 7, "within_s": 3600},
                    {"per": [], "max_total": 1e9, "amount": "parameter_amount_minor", "within_s": 3600},
                ],
            }
        )
    )  # fmt: skip
    loop.publish("policies", Policy.event_type, "wide/1", policy.model_dump(mode="json"))


def test_a_limit_over_all_subjects_is_exact_whichever_subtask_decides(
    payments: Loop, flyball: Callable[..., Any]
) -> None:
    put(payments, "active")
    try:
        probe = iter(range(1000))

        def is_in_force() -> bool:
            proposal_id, event = payment("wide-probe", START_MS - 10**9 + next(probe) * 4_000_000)
            payments.send("proposals", ("wide-probe", event))
            return payments.decision_of(proposal_id, "wide-probe")["data"]["grant"] is not None

        payments.wait_for("the policy in force", is_in_force)
        asked = {subject: payment(subject, START_MS + n) for n, subject in enumerate(SUBJECTS)}
        payments.send("proposals", *((subject, event) for subject, (_, event) in asked.items()))
        decisions = [
            payments.decision_of(proposal_id, subject) for subject, (proposal_id, _) in asked.items()
        ]
        said = Counter(decision["data"]["reason"] for decision in decisions)
        assert said == {"allowed_by_policy": 7, "rate_limit": 33}
        counts = [c for d in decisions for name, c in d["data"]["grant"]["counters"].items() if "allowed" in name]
        assert sorted(counts) == [0, 1, 2, 3, 4, 5, 6] + [7] * 33
        payments.wait_for(
            "seven outcomes that settle their claims",
            lambda: len({e["data"]["claim_id"] for e in payments.events("limits", "limits", what="succeeded")}) >= 7,
        )
        again = [payment(subject, START_MS + 3_600_100, "later") for subject in SUBJECTS[:8]]
        payments.send("proposals", *((s, event) for s, (_, event) in zip(SUBJECTS, again, strict=False)))
        later = [payments.decision_of(pid, s)["data"] for s, (pid, _) in zip(SUBJECTS, again, strict=False)]
        assert Counter(d["reason"] for d in later) == {"allowed_by_policy": 7, "rate_limit": 1}
    finally:
        put(payments, "retired")
    payments.settle()
    replayed = flyball("replay", "payments", "--json")
    assert orjson.loads(replayed.out)["changes"] == []
