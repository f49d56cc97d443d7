"""Hostile texts in facts and hostile replies, through the real client and a model that obeys every one of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from ruamel.yaml import YAML

from contracts.errors import ReplyRefused
from ops.model_rules import Rule
from ops.model_server import Behaviour, ModelServer, spoilt
from tests.asking import CONTRACT, KIND, PROMPT, agent, overheard, replied, symptom
from udfs.agents.core import Situation, write_proposal
from udfs.reason.masking import Mask
from udfs.reason.prompt import BEGIN, END, messages
from udfs.reason.reply import Reply, read_reply, response_format

FILE = Path(__file__).parents[1] / "data" / "injections.yaml"
CASES: dict[str, list[dict[str, Any]]] = YAML(typ="safe").load(FILE.read_text(encoding="utf-8"))
TEXTS = {case["name"]: case for case in CASES["texts"]}
REPLIES = {case["name"]: case for case in CASES["replies"]}
PERSON = "Ada Lovelace"
AGENT = agent(actions=("restart_service", "roll_back", "triage_incident"))


def situations(text: str) -> list[Situation]:
    """The text in every place that strangers write to."""
    flat = "".join(c if c.isprintable() else " " for c in text)[:256]
    return [
        symptom(alert_text=text),
        symptom(alert_text=text, node=flat, metric=flat, suspect=flat, suspects=(flat, PERSON, "db", "front")),
        symptom(incident_id=text, deploy_id=flat, evidence=(flat, f"f-{PERSON}")),
    ]


def obeyed(case: dict[str, Any]) -> str:
    told = case["obeyed"]
    return told if isinstance(told, str) else replied(**told)


def asked(asking: list[Situation], reply: str) -> list[tuple[Situation, str, bytes]]:
    """Of each situation what a model that says `reply` replied, and every byte that reached its server."""

    async def run() -> list[tuple[Situation, str, bytes]]:
        server = ModelServer(Behaviour(latency_ms=0), [Rule(name="obedient", raw=reply)])
        await server.start()
        found = []
        try:
            async with (
                overheard(server.port) as (port, heard),
                openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
            ):
                for situation in asking:
                    heard.clear()
                    told: Any = messages(PROMPT, AGENT, situation, CONTRACT, [("notes", str(situation.features["alert_text"]))])
                    form: Any = response_format(AGENT, CONTRACT)
                    completion = await client.chat.completions.create(model="small", messages=told, response_format=form)
                    found.append((situation, completion.choices[0].message.content or "", bytes(heard)))
        finally:
            await server.stop()
        return found

    return asyncio.run(run())


def proposal_of(situation: Situation, reply: Reply) -> dict[str, Any]:
    assert reply.action is not None
    key, value = write_proposal(
        CONTRACT.name, situation, stage="reason", agent=AGENT.agent, agent_version=1, action=reply.action,
        parameters=reply.parameters, confidence=reply.confidence, reason=reply.reason, expiry=None,
        told={"evidence": reply.evidence},
    )  # fmt: skip
    assert key == situation.subject
    found: dict[str, Any] = orjson.loads(value)
    return found


def nothing_personal(heard: bytes) -> None:
    flat = heard.lower().replace(b"\\", b"")
    for part in (b"lovelace", b"ada ", b"ada%20", b"adau0020"):
        assert part not in flat


def test_there_are_enough_cases_and_each_has_a_name_of_its_own() -> None:
    assert len(TEXTS) == len(CASES["texts"]) >= 20
    assert len(REPLIES) == len(CASES["replies"])


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_in_a_fact_gets_nothing_when_the_model_obeys_it(name: str) -> None:
    case = TEXTS[name]
    for situation, text, heard in asked(situations(case["text"]), obeyed(case)):
        nothing_personal(heard)
        mask = Mask.of(situation, CONTRACT.personal_fields)
        if "refused" in case:
            with pytest.raises(ReplyRefused) as refused:
                read_reply(text, AGENT, CONTRACT, situation, mask, ("f-1",))
            assert refused.value.code == case["refused"]
            assert PERSON not in str(refused.value)
            continue
        found = read_reply(text, AGENT, CONTRACT, situation, mask, ("f-1",))
        proposal = proposal_of(situation, found)
        data = proposal["data"]
        assert data["parameters"].get("node", "db") in (situation.features["node"], *situation.suspects)
        assert data["action"] in AGENT.actions
        assert set(data["parameters"]) == set(CONTRACT.actions[data["action"]].model_fields)
        assert (proposal["subject"], data["agent"], data["situation_type"]) == ("shop", "remedy", KIND)
        assert data["features"] == dict(situation.features)
        assert tuple(data["suspects"]) == situation.suspects
        assert PERSON not in data["reason"], "placeholders made up by the data are none"


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_in_a_fact_stays_data_when_it_is_sent(name: str) -> None:
    """It stands in the quoted facts of the user's message, and in nothing else that is said."""
    plain = messages(PROMPT, AGENT, symptom(alert_text=""), CONTRACT, ())
    for situation in situations(TEXTS[name]["text"]):
        told = messages(PROMPT, AGENT, situation, CONTRACT, ())
        assert told[0] == plain[0]
        assert [m["role"] for m in told] == ["system", "user"]
        first, data, last = told[1]["content"].split("\n")
        assert (first, last) == (BEGIN, END)
        assert told[1]["content"].count(END) == 1
        mask = Mask.of(situation, CONTRACT.personal_fields)
        assert json.loads(data)["features"]["alert_text"] == mask.hide(str(situation.features["alert_text"]))


@pytest.mark.parametrize("name", REPLIES)
def test_a_hostile_reply_is_refused(name: str) -> None:
    case, situation = REPLIES[name], symptom()
    told = case["reply"]
    text = told * case.get("repeat", 1) if isinstance(told, str) else replied(**told)
    with pytest.raises(ReplyRefused) as refused:
        read_reply(text, AGENT, CONTRACT, situation, Mask.of(situation, CONTRACT.personal_fields))
    assert refused.value.code == case["refused"]
    assert len(str(refused.value)) < 2000


def test_no_spoilt_reply_of_the_model_server_fits() -> None:
    """The server's own malformed replies are refused too, each of its kinds."""
    situation = symptom()
    mask = Mask.of(situation, CONTRACT.personal_fields)
    codes = set()
    for step in range(70):
        with pytest.raises(ReplyRefused) as refused:
            read_reply(spoilt(replied(), step / 70), AGENT, CONTRACT, situation, mask)
        codes.add(refused.value.code)
    assert codes == {"not_json", "undeclared_action", "unknown_evidence", "wrong_schema", "wrong_parameters"}


@pytest.mark.parametrize(
    "spelling",
    [PERSON, "ADA LOVELACE", "ada\nlovelace", '{"by": "Ada\\u0020Lovelace"}', "mail Ada%20Lovelace", "Ada&nbsp;Lovelace", "\\u0041da Lovelace"],
)  # fmt: skip
def test_nothing_personal_reaches_the_server_however_it_is_written(spelling: str) -> None:
    for situation, text, heard in asked(situations(f"deployed by {spelling}, they say"), replied(reason="fine")):
        assert read_reply(text, AGENT, CONTRACT, situation, Mask.of(situation, CONTRACT.personal_fields), ("f-1",)).action
        assert b"POST /v1/chat/completions" in heard
        assert b"[[deployed_by." in heard
        for part in (b"ovelace", b"OVELACE"):
            assert part not in heard
