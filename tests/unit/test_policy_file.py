"""Policy files: what is accepted, and that every problem says where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import PolicyRefused
from udfs.policy.policy_file import load, parse

VARIABLES = {
    "action": "string", "agent": "string", "confidence": "double", "hops": "int",
    "feature_temperature": "double", "feature_count": "int",
}  # fmt: skip

GOOD = """\
policy_id: cool-when-hot
version: 1
status: active
effective_from: 2013-12-02T00:00:00Z
scope: {actions: [activate_cooling], situations: [machines.reading_scored]}
when: |
  feature_temperature > 90.0
  && confidence >= 0.8
verdict: allow
limits: [{max_count: 2, within_s: 3600}]
freshness_s: 600
examples:
  - given: {feature_temperature: 95.5, confidence: 0.9}
    expect: true
  - given: {feature_temperature: 95, confidence: 0.2}
    expect: false
  - given: {confidence: 0.9}
    expect: error
reason: hot and sure
"""


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyRefused) as refused:
        parse(text, VARIABLES, file="p.yaml")
    return [str(problem) for problem in refused.value.problems]


def test_a_policy_knows_what_it_reads_when_its_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "cool-when-hot.yaml"
    path.write_text(GOOD, encoding="utf-8")
    policy = load(path, VARIABLES)
    assert policy.variables == {"confidence": "double", "feature_temperature": "double"}
    assert policy.effective_from == "2013-12-02T00:00:00Z"
    assert policy.limits[0].within_s == 3600
    assert [example.expect for example in policy.examples] == [True, False, "error"]


def test_all_problems_are_told_when_a_file_has_several() -> None:
    text = (
        GOOD.replace("version: 1", "version: 0\nowner: me")
        .replace("confidence >= 0.8", "confidence >= 8 && fature_count > 1")
        .replace("verdict: allow", "verdict: alow")
    )
    assert problems(text) == [
        "p.yaml:2:10: expected version: greater than or equal to 1, got 0",
        "p.yaml:3:1: expected a field of a policy, got 'owner'",
        "p.yaml:9:17: expected operands that '>=' takes (it converts no types), got (double, int)",
        "p.yaml:9:25: expected a declared variable (like 'feature_count'), got 'fature_count'",
        "p.yaml:10:10: expected verdict: 'allow', 'deny', 'hold' or 'require_approval', got \"alow\"",
    ]


@pytest.mark.parametrize(
    ("when", "place"),
    [
        ("when: confidence > 8", "6:18"),
        ("when: 'confidence > 8'", "6:19"),
        ("when: '\"it''s\" == agent && confidence > 8'", "6:39"),
        ('when: "confidence > 8"', "6:19"),
        ('when: "\\"a\\" == agent && confidence > 8"', "6:37"),
        ("when: |\n  hops > 1 &&\n  confidence > 8", "8:14"),
        ("when: |-\n     hops > 1 &&\n\n     confidence > 8", "9:17"),
        ("when: >\n  hops > 1 &&\n  confidence > 8", "8:14"),
        ("when: >-\n    hops > 1\n    && confidence > 8", "8:19"),
        ("when: hops > 1 &&\n  confidence > 8", "7:14"),
    ],
)
def test_the_place_in_the_file_is_told_when_the_condition_is_written_in_any_style(
    when: str, place: str
) -> None:
    text = GOOD[: GOOD.index("when: |")] + when + "\nverdict: allow\nreason: hot\n"
    (problem,) = problems(text)
    assert problem.startswith(f"p.yaml:{place}: expected operands that '>' takes"), problem


@pytest.mark.parametrize(
    ("old", "new", "expect"),
    [
        ("expect: false", "expect: true", "p.yaml:16:13: expected true, got false"),
        (
            "expect: error",
            "expect: false",
            "p.yaml:18:13: expected false, got error (Run",
        ),
        ("95,", "hot,", "p.yaml:15:34: expected double, got string"),
        (
            "{confidence",
            "{confidense",
            "p.yaml:17:13: expected a declared variable, got 'confid",
        ),
        ("expect: error", "expect: maybe", "p.yaml:18:13: expected"),
        (
            "reason: hot and sure\n",
            "",
            "p.yaml:1:1: expected the field 'reason', got none",
        ),
        ("version: 1", "version: 1\nversion: 2", "p.yaml:3:1: expected each key once"),
        ("version: 1", "version: &v 1", "p.yaml:2:10: expected values written out"),
        (
            "version: 1",
            "version: !!python/name:os.system ''",
            "p.yaml:2:10: expected a plain",
        ),
        ("version: 1", "version: [1", "p.yaml:3:7: expected YAML"),
        ("version: 1", "version: 1\n1: 2", "p.yaml:3:1: expected a name as key"),
        (
            "version: 1",
            "version: 1\nvariables: {}",
            "p.yaml:3:12: expected no variables",
        ),
        ("version: 1", "version: .nan", "p.yaml:2:10: expected version"),
        ("freshness_s: 600", "freshness_s: soon", "p.yaml:11:14: expected freshness_s"),
        (
            "verdict: allow",
            "verdict: deny",
            "expected a policy: limits: bounds what is allowed",
        ),
    ],
)
def test_a_file_is_refused_when_one_thing_is_wrong(old: str, new: str, expect: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(expect in problem for problem in found), found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a",
        "--- 1\n--- 2\n",
        "[" * 5000,
        "a: " + "x" * 300_000,
        "\x00",
        "{1: 2}",
    ],
)
def test_a_file_is_refused_when_it_is_no_policy_at_all(text: str) -> None:
    assert problems(text)


def test_a_file_is_refused_when_it_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    for file in (path, tmp_path / "none.yaml"):
        with pytest.raises(PolicyRefused, match="a readable UTF-8 file"):
            load(file, VARIABLES)
