"""Prompts as files and as events, and `prompt test`: recorded replies, a live server, and what is told when wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from ruamel.yaml import YAML

from contracts.errors import SetupFailed
from contracts.prompt import Prompt
from ops import kafka, prompts
from ops.model_rules import load_rules
from ops.model_server import Behaviour, running
from ops.prompt_tests import live, play, read_table, run
from tests.asking import CONTRACT, FEATURES, PROMPT, agent
from tests.kafka_stand_in import StandInBroker, StandInConsumer, StandInProducer
from udfs.reason.outputs import read_prompt_event

TOPIC = "incidents.prompts"
TABLE = Path(__file__).parents[2] / "conf" / "incidents" / "prompts_test.yaml"
NOW_MS = 1_700_000_000_000


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> StandInBroker:
    found = StandInBroker()
    monkeypatch.setattr(kafka, "consumer", lambda _servers, **_options: StandInConsumer(found, TOPIC))
    monkeypatch.setattr(kafka, "producer", lambda _servers, **_options: StandInProducer(found))
    return found


def publish(*published: Prompt) -> list[str]:
    return prompts.publish("a broker", "incidents", published, now_ms=NOW_MS)


def changed(**changes: Any) -> Prompt:
    return PROMPT.model_copy(update=changes)


def test_a_prompt_is_an_event_under_its_version_when_published(broker: StandInBroker) -> None:
    assert publish(PROMPT, changed(version=4)) == ["remedy@3", "remedy@4"]
    first, _ = broker.topics[TOPIC]
    assert first.key == b"remedy/3"
    assert read_prompt_event(first.value or b"") == PROMPT, "the job reads what was published"
    event = orjson.loads(first.value or b"")
    assert (event["type"], event["subject"], event["source"]) == ("flyball.prompt", "remedy/3", "/flyball/incidents/ops/prompt")
    found = prompts.published("a broker", "incidents")
    assert {name: entry.prompt.version for name, entry in found.items()} == {"remedy@3": 3, "remedy@4": 4}


def test_a_version_never_changes_when_published_again(broker: StandInBroker) -> None:
    publish(PROMPT)
    for other in (changed(sha256="0" * 64, text="other"), changed(model="big")):
        with pytest.raises(SetupFailed, match=r"expected a new version.*remedy@3"):
            publish(changed(version=5), other)
    assert len(broker.topics[TOPIC]) == 1, "all or nothing"
    publish(changed(status="retired"))
    assert prompts.published("a broker", "incidents")["remedy@3"].prompt.status == "retired"


def test_news_is_what_is_not_published_or_says_something_else(broker: StandInBroker) -> None:
    publish(PROMPT)
    known = prompts.published("a broker", "incidents")
    assert not prompts.is_news(PROMPT, known)
    assert prompts.is_news(changed(version=4), known)
    assert prompts.is_news(changed(model="big"), known), "so that publishing refuses it, and does not pass it by"


def test_records_that_are_no_prompts_are_passed_by(broker: StandInBroker) -> None:
    for value in (b"{", b"[]", b'{"type": "flyball.prompt"}', b'{"type": "flyball.prompt", "data": {"version": 1}}', None):
        broker.put(TOPIC, b"x", value)
    publish(PROMPT)
    assert list(prompts.published("a broker", "incidents")) == ["remedy@3"]


def test_the_newest_active_version_asks() -> None:
    versions = [PROMPT, changed(version=5, status="retired"), changed(version=4)]
    assert prompts.newest(versions)["remedy"].version == 4


def written(folder: Path, name: str, text: str = "Be well.", **front: Any) -> Path:
    told = {"prompt_id": "remedy", "version": 1, "model": "small", "schema": "proposal", **front}
    file = folder / name
    file.write_text("---\n" + "".join(f"{key}: {value}\n" for key, value in told.items()) + f"---\n{text}\n")
    return file


def test_files_are_checked_together(tmp_path: Path) -> None:
    first, second = written(tmp_path, "a.md"), written(tmp_path, "b.md", version=2)
    assert [prompts.name_of(p) for p in prompts.check_files([first, second], [agent()])] == ["remedy@1", "remedy@2"]
    with pytest.raises(SetupFailed) as refused:
        prompts.check_files([first, written(tmp_path, "c.md"), written(tmp_path, "d.md", version=0), tmp_path / "none.md"])
    told = str(refused.value)
    assert "c.md: expected each version of a prompt once, remedy@1 came again" in told
    assert "d.md:3: version" in told
    assert "none.md: expected a readable UTF-8 file" in told
    with pytest.raises(SetupFailed, match="agent 'remedy': expected a file with its prompt 'triage'"):
        prompts.check_files([first], [agent(prompt="triage")])


# --- prompt test ---------------------------------------------------------------------------------

REPLY = {
    "action": "restart_service", "parameters": {"node": "db", "instances": 1}, "confidence": 0.8,
    "reason": "db is slow", "evidence": ["f-1"],
}  # fmt: skip


def problems(tmp_path: Path, *cases: dict[str, Any], ask: Any = None, **defaults: Any) -> list[str | None]:
    file = tmp_path / "prompts_test.yaml"
    table = {"defaults": {"agent": "remedy", "subject": "shop", "features": FEATURES, "evidence": ["f-1"], **defaults}, "cases": list(cases)}
    with file.open("w") as stream:
        YAML(typ="safe").dump(table, stream)
    return [result.problem for result in play(CONTRACT, [agent()], [PROMPT], read_table(file), ask=ask)]


def case(expect: dict[str, Any], reply: Any = REPLY, **given: Any) -> dict[str, Any]:
    return {"case": "one", "given": given, "reply": reply, "expect": expect}


def test_a_case_passes_when_the_recorded_reply_is_as_expected(tmp_path: Path) -> None:
    cases = [
        case({"action": "restart_service", "parameters": {"node": "db"}, "confidence": [0.7, 0.9], "evidence": ["f-1"], "reason": "slow$"}),
        case({"action": ["roll_back", "restart_service"]}),
        case({"action": "abstain"}, {**REPLY, "action": "abstain", "parameters": {}}),
        case({"refused": "undeclared_action"}, {**REPLY, "action": "launch"}),
        case({"refused": "unknown_evidence"}, evidence=["f-2"]),
        case({"refused": "not_json"}, "I would restart db."),
        case({}, features={"deviation": 3.0}),
    ]
    assert problems(tmp_path, *cases) == [None] * len(cases)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (case({"action": "roll_back"}), "expected roll_back, came restart_service: db is slow"),
        (case({"parameters": {"node": "front"}}), "expected the parameter node to be 'front', came 'db'"),
        (case({"parameters": {"mode": None}}), "expected the parameter mode"),
        (case({"confidence": [0.9, 1.0]}), "expected a confidence of 0.9 to 1, came 0.8"),
        (case({"evidence": ["f-7"]}), "expected ['f-7'] among the evidence"),
        (case({"reason": "fast"}), "expected a reason like 'fast'"),
        (case({"refused": "not_json"}), "expected the reply to be refused (not_json), came restart_service"),
        (case({"refused": "not_json"}, {**REPLY, "action": "launch"}), "expected not_json, came undeclared_action"),
        (case({}, "words"), "expected a reply that fits, came not_json"),
        (case({}, None), "expected a recorded reply; --live asks"),
        (case({}, agent="nobody"), "not a case: expected an agent of ['remedy'], came 'nobody'"),
        (case({}, features={"colour": "red"}), "not a case: expected features"),
        (case({}, mood="good"), "not a case"),
    ],
)
def test_a_case_fails_with_what_was_expected_and_what_came(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    (problem,) = problems(tmp_path, wrong)
    assert told in (problem or "")


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts_test.yaml"
    for text in ("- 1", "cases: []", "cases: [{case: a}]", "cases: [{case: a, expect: {colour: red}}]", "mood: good"):
        file.write_text(text)
        with pytest.raises(SetupFailed, match=r"prompts_test\.yaml: expected cases"):
            read_table(file)


def test_the_shipped_prompts_do_what_their_table_says() -> None:
    results = run("incidents")
    assert {case["given"]["agent"] for case in YAML(typ="safe").load(TABLE.read_text())["cases"]} == {a.agent for a in prompts.llm_agents("incidents")}
    assert [(r.case, r.problem) for r in results if r.problem is not None] == []


def test_the_script_meets_the_table_when_it_is_asked_live(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Behaviour(latency_ms=0), load_rules([TABLE.with_name("model_rules.yaml")])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        results = run("incidents", ask=live(CONTRACT))
        assert server.stats()["by_rule"].get("default") is None, "each agent's questions have rules"
    assert [(r.case, r.problem) for r in results if r.problem is not None] == []


def test_a_live_server_is_asked_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case({"action": "roll_back", "evidence": ["f-1"]}, None), case({"refused": "not_json"}, "words")]
    with running(Behaviour(latency_ms=0)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert problems(tmp_path, *cases, ask=live(CONTRACT)) == [None, None]
        assert server.stats()["requests"] == 1, "a refused reply is about what a model may wrongly say"
        server.behaviour = Behaviour(latency_ms=0, error_rate=1)
        (problem,) = problems(tmp_path, cases[0], ask=lambda _agent, prompt, situation: live(CONTRACT)(agent(attempts=1), prompt, situation))
        assert (problem or "").startswith("the server gave no reply: HTTP 50")
