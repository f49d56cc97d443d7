"""The command line against a running instance, and without one."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from contracts.envelope import parse_time_ms
from contracts.topics import MAX_FACT_BYTES
from jobs.settings import ROOT
from ops.home import CHECKOUT
from tests.loop import Loop, Said, proposal, reading

Flyball = Callable[..., Said]
START_MS = parse_time_ms("2014-09-01T00:00:00Z")


def json_of(said: Said) -> Any:
    assert said.code == 0, said.err
    return orjson.loads(said.out)


def refused(said: Said, *told: str) -> None:
    """The command failed with one clear line, not a trace."""
    assert said.code != 0, said.out
    assert "Traceback" not in said.err
    flat = " ".join(said.err.split())
    for text in told:
        assert text in flat, said.err


def test_status_shows_processes_jobs_their_load_lag_and_checkpoints(machines: Loop, flyball: Flyball) -> None:
    found = json_of(flyball("status", "--json"))
    assert found["state"] == "ready"
    names = {p["name"] for p in found["processes"]}
    assert {"broker", "jobmanager", "taskmanager-0", "actuator-machines", "sealer-machines"} <= names
    jobs = {j["name"]: j for j in found["jobs"]}
    for name in ("context", "propose", "govern"):
        assert jobs[f"machines.{name}"]["state"] == "RUNNING"
        assert jobs[f"machines.{name}"]["checkpoints_completed"] > 0
        assert jobs[f"machines.{name}"]["last_checkpoint"]
        assert 0 <= jobs[f"machines.{name}"]["busy"] <= 1
        assert 0 <= jobs[f"machines.{name}"]["back_pressured"] <= 1
    assert set(found["lag"]["machines"]) == {"context", "propose", "govern", "actuator"}
    text = flyball("status")
    assert text.code == 0
    assert "machines.govern" in text.out


def test_facts_are_published_from_standard_input_in_every_form(machines: Loop, flyball: Flyball) -> None:
    csv = "timestamp,value\n2014-09-01T00:00:00Z,1\nnonsense,2\n"
    found = json_of(flyball("emit", "machines", "-", "--subject", "cli-csv", "--json", stdin=csv))
    assert found == {"facts": 1, "refused": 1, "not_sent": []}
    bare = '{"timestamp": "2014-09-01T00:00:00Z", "value": 2}\n'
    assert json_of(flyball("emit", "machines", "-", "--subject", "cli-bare", "--json", stdin=bare))["facts"] == 1
    (event,) = machines.encode(reading("cli-event", START_MS, 3.0))
    assert json_of(flyball("emit", "machines", "-", "--json", stdin=event + b"\n"))["facts"] == 1
    for subject, temperature in (("cli-csv", 1.0), ("cli-bare", 2.0), ("cli-event", 3.0)):
        (found,) = machines.wait_for(
            subject, lambda s=subject: machines.situations("reading_scored", s)
        )
        assert found["data"]["temperature"] == temperature

    big = b'{"specversion":"1.0","subject":"cli-big","note":"' + b"x" * MAX_FACT_BYTES + b'"}\n'
    refused(flyball("emit", "machines", "-", stdin=event + b"\n" + big), f"at most {MAX_FACT_BYTES} bytes", "line 2")
    refused(flyball("emit", "machines", "/no/such/file.csv"), "cannot read")
    refused(flyball("emit", "machines", "-", "--rate", "fast", stdin=csv), "--rate")


def test_topics_chains_and_dead_letters_are_read_back(machines: Loop, flyball: Flyball) -> None:
    proposal_id, event = proposal("cli-read", event_ms=START_MS)
    machines.send("proposals", ("cli-read", event))
    machines.decision_of(proposal_id, "cli-read")
    machines.wait_for("its outcome", lambda: machines.events("outcomes", "cli-read"))

    said = flyball("read", "machines", "decisions", "--from-beginning")
    assert said.code == 0, said.err
    lines = [orjson.loads(line) for line in said.out.splitlines()]
    assert all(set(line) == {"partition", "offset", "key", "value"} for line in lines)
    about = [x["value"]["data"]["proposal_id"] for x in lines if x["key"] == "cli-read"]
    assert about.count(proposal_id) == 1
    some = flyball("read", "machines", "facts", "--from-beginning", "--max", "2")
    assert len(some.out.splitlines()) == 2
    refused(flyball("read", "machines", "nonsense"), "expected a topic of", "nonsense")

    (root,) = json_of(flyball("trace", proposal_id, "--json"))
    assert (root["noun"], root["effects"][0]["noun"]) == ("proposal", "decision")
    shown = flyball("trace", proposal_id)
    assert "allow activate_cooling" in shown.out
    refused(flyball("trace", "0" * 32), "no event and no chain")

    (place,) = machines.send("facts", ("cli-bad", b"{nope"))
    machines.dead_letter(place)
    (row,) = [r for r in json_of(flyball("dead-letters", "list", "machines", "--json")) if r["place"] == place]
    assert (row["cause"], row["stage"], row["bytes"]) == ("not_json", "context", 5)
    whole = json_of(flyball("dead-letters", "show", "machines", place))
    assert whole["value"] == "{nope"
    assert whole["id"] == row["id"]
    refused(flyball("dead-letters", "show", "machines", "no-such-id"), "no dead letter")


POLICY = """\
policy_id: cli-policy
version: 1
status: active
when: subject == "cli-ruled" && confidence > 0.5
verdict: deny
reason: a test
examples:
  - {given: {subject: cli-ruled, confidence: 0.9}, expect: true}
"""


def test_policies_are_published_listed_shown_and_moved(machines: Loop, flyball: Flyball, tmp_path: Path) -> None:
    file = tmp_path / "cli-policy.yaml"
    file.write_text(POLICY)
    assert flyball("policy", "publish", "machines", file).code == 0
    try:
        rows = {r["policy"]: r for r in json_of(flyball("policy", "list", "machines", "--json"))["policies"]}
        assert rows["cli-policy@1"]["status"] == "active"
        assert "cooling@1" in rows
        for name in ("cli-policy", "cli-policy@1"):
            shown = json_of(flyball("policy", "show", "machines", name))
            assert (shown["policy_id"], shown["variables"]) == ("cli-policy", {"subject": "string", "confidence": "double"})
        refused(flyball("policy", "show", "machines", "cli-policy@2"), "cooling@1", "cli-policy@2")

        def reason(n: int) -> str:
            proposal_id, event = proposal("cli-ruled", event_ms=START_MS + n * 2 * 86_400_000)
            machines.send("proposals", ("cli-ruled", event))
            return str(machines.decision_of(proposal_id, "cli-ruled")["data"]["reason"])

        days = iter(range(1000))
        machines.wait_for("the policy", lambda: reason(next(days)) == "forbidden_by_policy")

        file.write_text(POLICY.replace("0.5", "0.6"))
        refused(flyball("policy", "publish", "machines", file), "a new version")
        file.write_text(POLICY.replace("confidence > 0.5", "confidence > 'high'").replace("version: 1", "version: 2"))
        refused(flyball("policy", "publish", "machines", file), "cli-policy.yaml:4")
        file.write_text(POLICY.replace("expect: true", "expect: false").replace("version: 1", "version: 2"))
        refused(flyball("policy", "publish", "machines", file), "cli-policy.yaml:8")
        assert "cli-policy@2" not in flyball("policy", "list", "machines").out
        assert reason(next(days)) == "forbidden_by_policy", "the one before stays in force"
        refused(flyball("policy", "move", "machines", "cli-policy@1", "gone"), "a status of")
        refused(flyball("policy", "move", "machines", "nobody@1", "retired"), "nobody@1")
    finally:
        moved = flyball("policy", "move", "machines", "cli-policy@1", "retired")
    assert moved.code == 0, moved.err
    machines.wait_for("its end", lambda: reason(next(days)) == "allowed_by_policy")


def test_an_agent_is_paused_and_resumed(machines: Loop, flyball: Flyball) -> None:
    refused(flyball("pause", "machines", "--agent", "nobody"), "heat-rule", "nobody")
    refused(flyball("pause", "machines", "--action", "nothing"), "activate_cooling", "nothing")
    days = iter(range(1000))

    def reason() -> str:
        proposal_id, event = proposal(
            "cli-paused", event_ms=START_MS + next(days) * 2 * 86_400_000, agent="escalation-rule"
        )
        machines.send("proposals", ("cli-paused", event))
        return str(machines.decision_of(proposal_id, "cli-paused")["data"]["reason"])

    assert reason() == "allowed_by_policy"
    paused = flyball("pause", "machines", "--agent", "escalation-rule", "--reason", "a test")
    try:
        assert paused.code == 0, paused.err
        machines.wait_for("the pause", lambda: reason() == "paused")
        switches = json_of(flyball("policy", "list", "machines", "--json"))["switches"]
        assert [s["paused"] for s in switches if s["agent"] == "escalation-rule"] == [True]
    finally:
        resumed = flyball("resume", "machines", "--agent", "escalation-rule")
    assert resumed.code == 0, resumed.err
    machines.wait_for("the end of the pause", lambda: reason() == "allowed_by_policy")


def test_models_are_listed_with_their_digests(machines: Loop, flyball: Flyball) -> None:
    rows = json_of(flyball("model", "list", "machines", "--json"))
    assert (rows[-1]["alias"], rows[-1]["version"], rows[-1]["status"]) == ("machine-health", 1, "active")
    assert len(rows[-1]["sha256"]) == 64


def test_statements_run_in_the_sql_client_over_the_domains_tables(
    machines: Loop, flyball: Flyball, tmp_path: Path
) -> None:
    file = tmp_path / "count.sql"
    file.write_text("SELECT 'found' AS told, COUNT(*) AS policies_told FROM policies;\nSELECT nonsense FROM policies;\n")
    said = flyball("sql", "-f", file, "--domain", "machines", timeout_s=300)
    assert "found" in said.out, said.out[-2000:] + said.err[-2000:]
    assert said.code != 0, "the second statement is wrong"
    assert "nonsense" in said.out + said.err


def test_every_view_for_people_answers_in_the_sql_client(
    machines: Loop, payments: Loop, flyball: Flyball, tmp_path: Path
) -> None:
    domains = ("machines", "payments")
    views = {name: re.findall(r"CREATE VIEW (\w+)", (ROOT / "sql" / name / "views.sql").read_text()) for name in domains}
    assert all(views.values())

    def ask(domain: str) -> Said:
        file = tmp_path / f"{domain}.sql"
        file.write_text("".join(f"SELECT * FROM {view} LIMIT 1;\n" for view in views[domain]))
        return flyball("sql", "-f", file, "--domain", domain, timeout_s=300)

    with ThreadPoolExecutor() as beside:
        answers = dict(zip(domains, beside.map(ask, domains), strict=True))
    for domain, said in answers.items():
        assert said.code == 0, said.out[-2000:] + said.err[-2000:]
        assert len(re.findall(r"rows? in set|Empty set", said.out)) == len(views[domain]), said.out[-2000:]


def test_a_second_instance_is_refused_in_the_same_home(machines: Loop, flyball: Flyball) -> None:
    refused(flyball("run", "machines"), "already runs")


def alone(*arguments: str, stdin: bytes = b"", home: Path) -> Said:
    """`./flyball` where nothing runs."""
    done = subprocess.run(
        [str(CHECKOUT / "flyball"), *arguments], input=stdin, capture_output=True, cwd=home, timeout=120,
        check=False, env={**os.environ, "FLYBALL_HOME": str(home), "COLUMNS": "200"},
    )  # fmt: skip
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("read", "machines", "facts"), "nothing runs in"),
        (("policy", "list", "machines"), "nothing runs in"),
        (("emit", "nonsense", "-"), "no domain 'nonsense'"),
        (("run", "nonsense"), "no domain 'nonsense'"),
        (("run", "machines", "--input", "/no/such/file.csv"), "expected a file"),
        (("contracts",), "expected one of"),
        (("policy", "check", "machines", "/no/such.yaml"), "/no/such.yaml"),
        (("policy", "eval", "--when", "true", "--vars", "[1]"), "expected a JSON object"),
        (("nonsense",), "No such command"),
    ],
)
def test_a_command_fails_with_a_clear_line_when_it_cannot_do_its_work(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    refused(alone(*arguments, home=tmp_path), told)


def test_what_needs_no_broker_works_without_one(tmp_path: Path) -> None:
    assert "policy" in alone("help", home=tmp_path).out
    checked = alone("policy", "check", "machines", home=tmp_path)
    assert checked.code == 0, checked.err
    assert "ok cooling@1" in checked.out
    for when, variables, wanted in [
        ("confidence > 0.5", '{"confidence": 0.75}', {"value": True}),
        ("hops > 2 || agent == 'a'", '{"hops": 2, "agent": "b"}', {"value": False}),
    ]:
        assert json_of(alone("policy", "eval", "--when", when, "--vars", variables, home=tmp_path)) == wanted
    assert "error" in json_of(alone("policy", "eval", "--when", "1 / 0 > 1", home=tmp_path))
    assert json_of(alone("contracts", "--asyncapi", home=tmp_path))["asyncapi"].startswith("3.")
    assert "machine.temperature_measured" in alone("contracts", "--json-schema", home=tmp_path).out
    assert "CREATE" in alone("contracts", "--ddl", home=tmp_path).out
    good = b'{"specversion":"1.0","id":"1","source":"/s","type":"t"}'
    assert json_of(alone("contracts", "check-event", "-", stdin=good, home=tmp_path)) == {"valid": True, "error": None}
    assert json_of(alone("contracts", "check-event", "-", stdin=b"{}", home=tmp_path))["valid"] is False
    assert alone("status", home=tmp_path).code == 1
    assert alone("down", home=tmp_path).code == 0
