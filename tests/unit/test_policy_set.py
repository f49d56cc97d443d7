"""Policy sets: the truth table, scopes, versions in event time, pauses, digest."""

from __future__ import annotations

import itertools
import json
import pickle
from typing import Any

import pytest

from contracts.decision import Reason
from contracts.envelope import parse_time_ms
from contracts.errors import PolicyRefused
from contracts.policy import Policy, PolicySwitch
from udfs.policy.policy_set import Judgement, PolicySet

NOW_MS = parse_time_ms("2014-01-01T00:00:00Z")
TYPES = {"confidence": "double", "hops": "int", "agent": "string"}


def a_policy(policy_id: str = "p", **changes: object) -> Policy:
    fields: dict[str, Any] = {
        "policy_id": policy_id, "version": 1, "status": "active", "when": "true",
        "verdict": "allow", "reason": f"because of {policy_id}", "variables": TYPES,
    }  # fmt: skip
    return Policy.model_validate_json(json.dumps(fields | changes))


def judge(policies: list[Policy], event_ms: int = NOW_MS, **changes: object) -> Judgement:
    variables: dict[str, object] = {"confidence": 0.9, "hops": 1, "agent": "a"}
    return PolicySet.compile(policies).judge(
        variables | changes,
        agent="scorer",
        action="activate_cooling",
        situation="machines.reading_scored",
        event_ms=event_ms,
    )


MATCHING = {verdict: a_policy(verdict, verdict=verdict) for verdict in ("allow", "deny", "hold")}
FAILING = {
    f"failing-{verdict}": a_policy(f"failing-{verdict}", verdict=verdict, when="1 / 0 == hops")
    for verdict in ("allow", "deny", "hold")
}
SILENT = a_policy("silent", verdict="deny", when="hops > 5")

# which policies are in force -> verdict, reason
TRUTH_TABLE = [
    ("", "deny", Reason.NO_POLICY_MATCHED),
    ("silent", "deny", Reason.NO_POLICY_MATCHED),
    ("allow", "allow", Reason.ALLOWED),
    ("silent allow", "allow", Reason.ALLOWED),
    ("hold", "hold", Reason.HELD),
    ("allow hold", "hold", Reason.HELD),
    ("deny", "deny", Reason.FORBIDDEN),
    ("allow deny", "deny", Reason.FORBIDDEN),
    ("hold deny", "deny", Reason.FORBIDDEN),
    ("allow hold deny", "deny", Reason.FORBIDDEN),
    ("failing-allow", "hold", Reason.POLICY_ERROR),
    ("failing-deny", "hold", Reason.POLICY_ERROR),
    ("failing-hold", "hold", Reason.POLICY_ERROR),
    ("failing-allow allow", "hold", Reason.POLICY_ERROR),
    ("failing-deny allow hold", "hold", Reason.POLICY_ERROR),
    ("failing-deny deny", "deny", Reason.FORBIDDEN),
    ("failing-allow allow deny", "deny", Reason.FORBIDDEN),
]


@pytest.mark.parametrize(("names", "verdict", "reason"), TRUTH_TABLE)
def test_the_verdict_follows_the_truth_table_when_policies_meet(
    names: str, verdict: str, reason: Reason
) -> None:
    known = MATCHING | FAILING | {"silent": SILENT}
    for policies in itertools.permutations(known[name] for name in names.split()):
        got = judge(list(policies))
        assert (got.verdict, got.reason) == (verdict, reason)
        assert {p for p, _, _ in got.matched} == set(names.split()) & MATCHING.keys()
        assert {e.policy_id for e in got.errors} == set(names.split()) & FAILING.keys()


def test_limits_apply_when_the_policy_that_has_them_allows() -> None:
    limits = [{"max_count": 2, "within_s": 3600}, {"max_count": 5, "within_s": 86400}]
    limited = a_policy("limited", limits=limits)
    other = a_policy("other", when="hops > 5", limits=limits)
    assert judge([limited, other]).limits == tuple(("limited", lim) for lim in limited.limits)
    assert judge([limited, MATCHING["deny"]]).limits == ()


def test_the_strictest_freshness_counts_when_several_policies_are_in_scope() -> None:
    policies = [
        a_policy("a", freshness_s=600),
        a_policy("b", freshness_s=60, when="false"),
        a_policy("c", freshness_s=1, scope={"actions": ["other"]}),
        a_policy("d"),
    ]
    assert judge(policies).freshness_s == 60
    assert judge([a_policy("d")]).freshness_s is None


@pytest.mark.parametrize(
    ("scope", "is_covered"),
    [
        ({}, True),
        ({"actions": ["activate_cooling"]}, True),
        ({"actions": ["stop", "activate_cooling"]}, True),
        ({"actions": ["stop"]}, False),
        ({"agents": ["scorer"]}, True),
        ({"agents": ["rule"]}, False),
        ({"situations": ["machines.reading_scored"]}, True),
        ({"situations": ["machines.silence"]}, False),
        ({"actions": ["activate_cooling"], "agents": ["rule"]}, False),
    ],
)
def test_a_policy_speaks_when_the_proposal_is_in_its_scope(
    scope: dict[str, list[str]], is_covered: bool
) -> None:
    assert (judge([a_policy(scope=scope)]).verdict == "allow") is is_covered


@pytest.mark.parametrize("status", ["draft", "shadow", "retired"])
def test_a_policy_is_silent_when_it_is_not_active(status: str) -> None:
    assert judge([a_policy(status=status)]).reason == Reason.NO_POLICY_MATCHED


@pytest.mark.parametrize(
    ("at", "version"),
    [
        ("2013-12-31T23:59:59Z", 1),
        ("2014-01-01T00:00:00Z", 2),
        ("2014-05-31T00:00:00Z", 2),
        ("2014-06-01T00:00:00Z", 4),
    ],
)
def test_the_highest_effective_version_counts_when_event_time_moves(at: str, version: int) -> None:
    policies = [
        a_policy(version=1),
        a_policy(version=2, effective_from="2014-01-01T00:00:00Z"),
        a_policy(version=3, effective_from="2014-01-01T00:00:00Z", status="retired"),
        a_policy(version=4, effective_from="2014-06-01T00:00:00Z"),
    ]
    assert judge(policies, parse_time_ms(at)).matched == (("p", version, "allow"),)


def test_an_older_version_stays_out_when_the_newer_one_narrows_the_scope() -> None:
    policies = [a_policy(version=1), a_policy(version=2, scope={"actions": ["stop"]})]
    assert judge(policies).reason == Reason.NO_POLICY_MATCHED


def test_a_proposal_is_held_when_a_variable_is_missing_or_of_another_type() -> None:
    policy = a_policy(when="confidence > 0.5")
    for value in (None, "0.9", True):
        got = judge([policy], confidence=value)
        assert (got.verdict, got.reason) == ("hold", Reason.POLICY_ERROR)
        assert "confidence" in got.explanation


def test_only_the_policy_that_reads_it_errs_when_a_variable_is_wrong() -> None:
    policies = [a_policy("a", when="confidence > 0.5"), a_policy("b", when="hops > 0")]
    got = judge(policies, confidence="high")
    assert [error.policy_id for error in got.errors] == ["a"]
    assert got.matched == (("b", 1, "allow"),)


def test_a_proposal_is_held_when_a_text_is_not_unicode() -> None:
    got = judge([a_policy("a", when="agent == 'a'"), a_policy("b")], agent="\ud800")
    assert got.reason == Reason.POLICY_ERROR
    assert [error.policy_id for error in got.errors] == ["a"]


def test_each_policy_reads_its_own_type_when_two_were_checked_apart() -> None:
    policies = [
        a_policy("a", when="hops / 2 == 0"),
        a_policy("b", when="hops / 2.0 == 0.5", variables={"hops": "double"}),
    ]
    assert [match[0] for match in judge(policies).matched] == ["a", "b"]


def test_a_set_is_refused_when_a_condition_does_not_compile() -> None:
    with pytest.raises(PolicyRefused, match="p@1:1:"):
        PolicySet.compile([a_policy(when="1 +")])


def test_a_set_is_refused_when_one_version_has_two_texts() -> None:
    with pytest.raises(PolicyRefused, match="p@1"):
        PolicySet.compile([a_policy(), a_policy(when="false")])


SWITCHES = {
    "domain": PolicySwitch(paused=True),
    "agent": PolicySwitch(paused=True, agent="scorer"),
    "action": PolicySwitch(paused=True, action="stop"),
    "both": PolicySwitch(paused=True, agent="rule", action="cool"),
    "resumed": PolicySwitch(paused=False),
}


@pytest.mark.parametrize(
    ("names", "agent", "action", "is_paused"),
    [
        ("", "scorer", "stop", False),
        ("domain", "scorer", "stop", True),
        ("agent", "scorer", "cool", True),
        ("agent", "rule", "cool", False),
        ("action", "rule", "stop", True),
        ("action", "rule", "cool", False),
        ("both", "rule", "cool", True),
        ("both", "rule", "stop", False),
        ("resumed", "rule", "stop", False),
        ("resumed agent", "scorer", "stop", True),
        ("resumed domain", "rule", "stop", True),
    ],
)
def test_an_action_is_paused_when_a_switch_covers_it(
    names: str, agent: str, action: str, is_paused: bool
) -> None:
    policies = PolicySet.compile([], [SWITCHES[name] for name in names.split()])
    assert policies.is_paused(agent, action) is is_paused


def test_the_digest_stays_when_only_the_order_or_the_silent_parts_change() -> None:
    policies = [a_policy("a"), a_policy("b"), a_policy("b", version=2)]
    switches = [SWITCHES["agent"], SWITCHES["action"]]
    digest = PolicySet.compile(policies, switches).digest
    assert len(digest) == 64
    assert PolicySet.compile(policies[::-1], switches[::-1]).digest == digest
    assert PolicySet.compile([*policies, a_policy("c", status="draft")], switches).digest == digest
    described = [a_policy("a", description="new words"), *policies[1:]]
    assert PolicySet.compile(described, switches).digest == digest


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"when": "false"}, {"verdict": "deny"}, {"reason": "other"},
        {"freshness_s": 5}, {"scope": {"agents": ["x"]}}, {"variables": {}},
        {"limits": [{"max_count": 1, "within_s": 60}]},
        {"effective_from": "2014-01-01T00:00:00Z"},
    ],
    ids=str,
)  # fmt: skip
def test_the_digest_changes_when_anything_that_decides_does(
    change: dict[str, Any],
) -> None:
    assert PolicySet.compile([a_policy()]).digest != PolicySet.compile([a_policy(**change)]).digest


def test_a_set_judges_alike_when_it_was_pickled_or_rebuilt() -> None:
    examples = [{"given": {"hops": 2**62}, "expect": True}]
    policies = PolicySet.compile(
        [
            a_policy("a", when="hops > 0", examples=examples),
            a_policy("b", verdict="hold"),
        ],
        [SWITCHES["both"]],
    )
    scope = {"agent": "rule", "action": "cool", "situation": "s"}
    for copy in (
        pickle.loads(pickle.dumps(policies)),
        PolicySet.from_source(policies.to_source()),
    ):
        assert copy.digest == policies.digest
        assert copy.is_paused("rule", "cool")
        assert copy.judge({"hops": 1}, event_ms=NOW_MS, **scope) == policies.judge(
            {"hops": 1}, event_ms=NOW_MS, **scope
        )


def test_memory_stays_bounded_when_names_never_repeat() -> None:
    policies = PolicySet.compile([a_policy()])
    for number in range(10_000):
        policies.judge({}, agent="a", action="b", situation=f"s{number}", event_ms=NOW_MS)
    assert len(policies._scopes) <= 4096
