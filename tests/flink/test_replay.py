"""What `govern` recorded on the real cluster: whole chains, decisions that come out the same, candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from contracts.envelope import parse_time_ms
from contracts.policy import Policy
from ops import replay
from tests.loop import Loop, proposal

START_MS = parse_time_ms("2014-09-01T00:00:00Z")
DAY_MS = 86_400_000


def policy_file(folder: Path, policy_id: str, version: int, status: str, subject: str, verdict: str = "deny") -> Path:
    file = folder / f"{policy_id}-{version}.yaml"
    file.write_text(
        f"policy_id: {policy_id}\nversion: {version}\nstatus: {status}\n"
        f"scope: {{actions: [activate_cooling]}}\nwhen: subject == \"{subject}\"\nverdict: {verdict}\nreason: a test\n"
    )
    return file


def test_a_policy_goes_from_shadow_to_force_and_back_while_the_job_runs(
    machines: Loop, flyball: Callable[..., Any], tmp_path: Path
) -> None:
    subject, days = "lifecycle-1", iter(range(10_000))

    def decision() -> dict[str, Any]:
        proposal_id, event = proposal(subject, event_ms=START_MS + next(days) * 2 * DAY_MS)
        machines.send("proposals", (subject, event))
        return dict(machines.decision_of(proposal_id, subject)["data"])

    def until(what: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            found = decision()
            return found if is_so(found) else None

        found = machines.wait_for(what, probe)
        assert found is not None
        return found

    def done(*command: object) -> str:
        said = flyball(*command)
        assert said.code == 0, said.err
        return str(said.out)

    assert decision()["candidate"] is None
    done("policy", "publish", "machines", policy_file(tmp_path, "lifecycle", 1, "shadow", subject))
    shadowed = until("a decision with the shadow policy", lambda d: d["candidate"] is not None)
    assert (shadowed["verdict"], shadowed["candidate"]["reason"]) == ("allow", "forbidden_by_policy")
    told = orjson.loads(done("policy", "diff", "machines", "--json"))
    change = next(c for c in told["changes"] if "lifecycle@1" in c["policies"])
    assert (change["before"], change["after"]) == ("allow allowed_by_policy", "deny forbidden_by_policy")

    done("policy", "move", "machines", "lifecycle@1", "canary", "--percent", 100, "--reason", "a test")
    until("the canary in force", lambda d: d["reason"] == "forbidden_by_policy")
    done("policy", "move", "machines", "lifecycle@1", "active")
    done("policy", "publish", "machines", policy_file(tmp_path, "lifecycle", 2, "active", "nobody"))
    until("version 2 in force", lambda d: d["verdict"] == "allow")
    rolled = done("policy", "rollback", "machines", "lifecycle@1", "--reason", "a test")
    assert rolled.split() == ["lifecycle@1", "active", "lifecycle@2", "retired"]
    until("version 1 in force again", lambda d: d["reason"] == "forbidden_by_policy")
    coverage = orjson.loads(done("policy", "coverage", "machines", "--json"))
    counted = {row["policy"]: row for row in coverage["policies"]}
    assert counted["lifecycle@1"]["true"] >= 3
    assert counted["lifecycle@1"]["error"] == 0
    done("policy", "move", "machines", "lifecycle@1", "retired")
    moved = next(
        event["data"] for event in machines.events("policies", "lifecycle/1") if event["data"]["status"] == "canary"
    )
    assert (moved["moved_because"], moved["canary_percent"]) == ("a test", 100)
    assert Policy.model_validate_json(orjson.dumps(moved)).author


def test_outcomes_reach_govern_and_are_named_by_the_next_decision(machines: Loop) -> None:
    subject = "settled-1"
    first_id, first = proposal(subject, event_ms=START_MS)
    machines.send("proposals", (subject, first))
    machines.decision_of(first_id, subject)
    machines.wait_for("the outcome", lambda: machines.events("outcomes", subject))
    (outcome,) = machines.records("outcomes", subject)
    days = iter(range(1, 10_000))

    def is_named() -> bool:
        proposal_id, event = proposal(subject, event_ms=START_MS + next(days) * 2 * DAY_MS)
        machines.send("proposals", (subject, event))
        inputs = machines.decision_of(proposal_id, subject)["data"]["inputs"]
        return bool(inputs["outcomes_offset"] >= outcome.offset)

    machines.wait_for("a decision that knows the outcome", is_named)


def test_every_chain_is_whole_and_every_decision_comes_out_the_same_again(
    machines: Loop, flyball: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over everything that tests did to this domain so far: policies, switches, a killed TaskManager."""
    machines.settle()
    said = flyball("audit", "verify", "machines", "--json")
    audit = orjson.loads(said.out)
    assert (said.code, audit["ok"], audit["first_bad"], audit["superseded"]) == (0, True, None, 0)
    assert audit["entries"] == len(machines.records("decisions")) > 0
    assert audit["heads"] >= 1

    said = flyball("replay", "machines", "--json")
    replayed = orjson.loads(said.out)
    assert replayed["changes"] == []
    assert (said.code, replayed["decisions"], replayed["different"]) == (0, audit["entries"], 0)
    assert on_flink(flyball) == reported(replayed)
    assert in_two_processes(machines, monkeypatch) == reported(replayed)


def reported(told: dict[str, Any]) -> dict[str, Any]:
    """What a replay found, without how fast it was."""
    return {name: value for name, value in told.items() if name != "decisions_per_s"}


def on_flink(flyball: Callable[..., Any], *options: object) -> dict[str, Any]:
    """The report of the bounded job."""
    said = flyball("replay", "machines", "--flink", "--json", *options, timeout_s=300)
    assert said.code == 0, said.err
    return reported(orjson.loads(said.out))


def in_two_processes(
    machines: Loop, monkeypatch: pytest.MonkeyPatch, candidates: Sequence[Policy] | None = None
) -> dict[str, Any]:
    """The report of a replay that shares the partitions out, however little there is to do."""
    monkeypatch.setattr(replay, "_LITTLE", 0)
    shared: list[object] = []
    side_by_side = replay._side_by_side
    monkeypatch.setattr(replay, "_side_by_side", lambda *asked: shared.append(found := side_by_side(*asked)) or found)
    made: list[int] = []
    done = replay.run(machines.bootstrap, "machines", candidates=candidates, on_progress=made.append, processes=2)
    assert made == sorted(made), "progress goes on"
    assert None not in shared, "no subject lies in two partitions"
    assert shared, "the partitions were shared out"
    return reported(done.told())


def test_heads_are_signed_while_the_domain_runs(machines: Loop, flyball: Callable[..., Any]) -> None:
    subject = "sealed-1"
    proposal_id, event = proposal(subject, event_ms=START_MS)
    machines.send("proposals", (subject, event))
    machines.decision_of(proposal_id, subject)
    (decision,) = machines.records("decisions", subject)

    def head_over_it() -> dict[str, Any] | None:
        heads = [orjson.loads(record.value or b"")["data"] for record in machines.records("audit-heads")]
        return next((h for h in heads if subject in [end["subject"] for end in h["changed"]]), None)

    head = machines.wait_for("a head over the decision", head_over_it)
    assert head is not None
    (end,) = (end for end in head["changed"] if end["subject"] == subject)
    assert (end["number"], end["partition"], end["offset"]) == (1, decision.partition, decision.offset)
    assert head["ends"][str(decision.partition)] > decision.offset

    found = orjson.loads(flyball("audit", "verify", "machines", "--json").out)
    assert (found["ok"], found["first_bad"]) == (True, None)
    assert found["heads"] >= head["number"]
    noted = f"{found['last_head']['number']}:{found['last_head']['sha256']}"
    said = flyball("audit", "verify", "machines", "--anchor", noted, "--public-key", head["key"])
    assert (said.code, noted in said.out) == (0, True), said.err
    said = flyball("audit", "verify", "machines", "--public-key", "A" * 43)
    assert (said.code, "forged: signed with the key" in said.err) == (1, True), said.err


def test_a_replay_under_candidates_tells_what_they_would_change(
    machines: Loop, flyball: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = "candidate-1"
    proposal_id, event = proposal(subject, event_ms=START_MS)
    machines.send("proposals", (subject, event))
    decision = machines.decision_of(proposal_id, subject)
    machines.wait_for("the outcome", lambda: machines.events("outcomes", subject))
    machines.settle()
    policy_file(tmp_path, "open", 1, "active", "somebody else", verdict="allow")

    said = flyball("replay", "machines", "--policies", tmp_path, "--json")
    assert said.code == 0, said.err
    told = orjson.loads(said.out)
    assert on_flink(flyball, "--policies", tmp_path) == reported(told), "in a process and on Flink"
    assert in_two_processes(machines, monkeypatch, replay.read_candidates("machines", tmp_path)) == reported(told)
    change = next(
        c for c in told["changes"]
        if (c["action"], c["before"], c["after"]) == ("activate_cooling", "allow allowed_by_policy", "deny no_policy_matched")
    )  # fmt: skip
    assert sum(change["outcomes"].values()) == change["count"], "each lost command had an outcome, or has none yet"
    story = flyball("audit", "export", "machines", "--subject", subject)
    assert "#1 allow activate_cooling: allowed_by_policy" in story.out
    assert str(decision["data"]["command_id"])[:12] in story.out
