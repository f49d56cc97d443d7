"""The model server over real HTTP, by the real client: replies, faults, cancelling, counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from ruamel.yaml import YAML

from contracts.domain import known_domains, load_domain
from contracts.errors import SetupFailed
from ops.model_rules import Asked, load_rules, read_request
from ops.model_rules import answer as answered
from ops.model_server import Behaviour, ModelServer, running, tokens
from tests.asking import CONTRACT, PROMPT, agent, symptom
from udfs.agents.core import Situation, scalar_columns
from udfs.agents.definition import LlmAgent
from udfs.reason.masking import Mask
from udfs.reason.prompt import messages
from udfs.reason.reply import ABSTAIN, read_reply, response_format

RULES = Path(__file__).parents[2] / "conf" / "incidents" / "model_rules.yaml"
T = TypeVar("T")


def on_server(
    work: Callable[[openai.AsyncOpenAI, ModelServer], Awaitable[T]], *, rules: Any = (), **behaviour: Any
) -> tuple[T, dict[str, Any]]:
    """What `work` gave on a server of its own, and the server's stats."""

    async def run() -> tuple[T, dict[str, Any]]:
        server = ModelServer(Behaviour(**{"latency_ms": 0, **behaviour}), rules)
        await server.start()
        try:
            async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
                return await work(client, server), server.stats()
        finally:
            await server.stop()

    return asyncio.run(run())


def request(situation: Situation | None = None, by: LlmAgent | None = None, **more: Any) -> dict[str, Any]:
    by = by or agent()
    asked = {"model": by.model, "messages": messages(PROMPT, by, situation or symptom(), CONTRACT, ())}
    if by.is_structured:
        asked["response_format"] = response_format(by, CONTRACT)
    return asked | more


def reply_of(situation: Situation, by: LlmAgent, rules: Any = ()) -> Any:
    """The scripted reply, read as `reason` reads it."""
    made = answered(read_request(request(situation, by)), rules)
    return read_reply(made.text, by, CONTRACT, situation, Mask.of(situation, CONTRACT.personal_fields))


def test_a_reply_fits_when_it_comes_over_http() -> None:
    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> Any:
        return await client.chat.completions.create(**request())

    completion, stats = on_server(work)
    text = completion.choices[0].message.content
    situation = symptom()
    reply = read_reply(text, agent(), CONTRACT, situation, Mask.of(situation, CONTRACT.personal_fields))
    assert reply.action == "roll_back", "more of its parameters are features"
    assert reply.parameters == {"node": "front", "deploy_id": "d-7"}
    assert reply.evidence == ("s-1", "f-1", "f-2")
    assert (completion.model, completion.choices[0].finish_reason) == ("small", "stop")
    told = sum(tokens(m["content"]) for m in request()["messages"])
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (told, tokens(text))
    assert (stats["requests"], stats["by_status"], stats["tokens_in"]) == (1, {"200": 1}, told)


def test_a_stream_says_the_same_as_a_whole_reply() -> None:
    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> tuple[str, str, int]:
        whole = await client.chat.completions.create(**request())
        pieces, used = [], 0
        stream = await client.chat.completions.create(**request(stream=True, stream_options={"include_usage": True}))
        async for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            used = chunk.usage.completion_tokens if chunk.usage else used
        assert len(pieces) > 3
        return whole.choices[0].message.content, "".join(pieces), used

    (whole, streamed, used), stats = on_server(work)
    assert streamed == whole
    assert used == tokens(whole)
    assert stats["streamed"] == 1


def test_a_reply_is_cut_when_it_is_longer_than_asked() -> None:
    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> Any:
        return await client.chat.completions.create(**request(max_completion_tokens=16))

    completion, _ = on_server(work)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 16


@pytest.mark.parametrize("domain", known_domains())
def test_the_script_fits_every_domain_without_a_rule(domain: str) -> None:
    contract = load_domain(domain)
    for kind, data in contract.situations.items():
        features = {name: {"STRING": "x", "BIGINT": 3, "DOUBLE": 1.5, "BOOLEAN": True}[t] for name, t in scalar_columns(data).items()}
        situation = Situation("s", kind, "subject", "2026-01-01T00:00:00Z", "c", 0, None, None, features, (), ("f",))
        mask = Mask.of(situation, contract.personal_fields)
        for is_structured in (True, False):
            by = agent(situation=kind, actions=tuple(contract.actions), is_structured=is_structured)
            asked: dict[str, Any] = {"messages": messages(PROMPT, by, situation, contract, ())}
            if is_structured:
                asked["response_format"] = response_format(by, contract)
            reply = read_reply(answered(read_request(asked), ()).text, by, contract, situation, mask)
            assert reply.action in contract.actions
            assert reply.evidence == ("s", "f")


def test_faults_are_the_same_when_the_same_is_asked_again() -> None:
    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> list[str]:
        seen = []
        for number in range(40):
            asked = request(symptom(incident_id=f"i-{number}"))
            try:
                completion = await client.chat.completions.create(**asked)
                seen.append(completion.choices[0].message.content)
            except openai.APIStatusError as error:
                seen.append(f"{error.status_code} {error.response.headers.get('retry-after')}")
        return seen

    rates = {"error_rate": 0.25, "rate_limit_rate": 0.25, "malformed_rate": 0.25, "retry_after_s": 0.5}
    first, stats = on_server(work, **rates)
    again, _ = on_server(work, **rates)
    other, _ = on_server(work, **rates, seed=2)
    assert first == again != other
    statuses = stats["by_status"]
    assert statuses["429"] > 3 and statuses["200"] > 10 and sum(n for s, n in statuses.items() if s >= "500") > 3
    assert stats["malformed"] > 3
    assert "429 0.5" in first


def test_another_attempt_of_the_same_bytes_may_go_well() -> None:
    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> None:
        for _ in range(20):
            try:
                await client.chat.completions.create(**request())
                return
            except openai.InternalServerError:
                pass
        pytest.fail("20 attempts at a rate of a half")

    _, stats = on_server(work, error_rate=0.5)
    assert stats["distinct"] == 1
    assert stats["repeated"] == stats["requests"] - 1


def test_a_call_is_counted_as_cancelled_when_the_client_leaves() -> None:
    async def work(client: openai.AsyncOpenAI, server: ModelServer) -> None:
        calls = [asyncio.create_task(client.chat.completions.create(**request(symptom(incident_id=str(n))))) for n in range(5)]
        await until(lambda: server.stats()["in_flight"] == 5)
        for call in calls[:3]:
            call.cancel()
        await until(lambda: server.stats()["cancelled"] == 3)
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**request(), timeout=0.2)
        await until(lambda: server.stats()["cancelled"] == 4)
        for call in calls[3:]:
            call.cancel()
        await until(lambda: server.stats()["in_flight"] == 0)

    _, stats = on_server(work, hang_rate=1.0)
    assert (stats["cancelled"], stats["hung"], stats["by_status"]) == (6, 6, {})


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def test_calls_wait_side_by_side_when_there_are_many() -> None:
    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(client.chat.completions.create(**request(symptom(incident_id=str(n)))) for n in range(50)))
        return asyncio.get_running_loop().time() - began

    seconds, stats = on_server(work, latency_ms=500, jitter_ms=100)
    assert stats["in_flight_max"] == 50
    assert 0.4 <= seconds < 25 * 0.5


def test_behaviour_changes_while_it_runs_when_told() -> None:
    with running(Behaviour(latency_ms=0)) as server, httpx.Client(base_url=server.base_url.removesuffix("/v1")) as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/v1/models").json()["data"][0]["id"] == "scripted"
        assert http.post("/control", json={"error_rate": 1}).json()["error_rate"] == 1
        assert http.post("/v1/chat/completions", json=request()).status_code in (500, 502, 503)
        assert http.post("/control", json={"error_rate": 2}).status_code == 400
        assert http.post("/control", json={"colour": 2}).status_code == 400
        assert http.post("/control", json=[]).status_code == 400
        assert http.post("/control", content='{"error_rate": 0}').status_code == 415
        assert http.post("/control", json={"error_rate": 0}).json()["error_rate"] == 0
        assert http.post("/v1/chat/completions", json=request()).status_code == 200
        assert http.post("/v1/chat/completions", content="{").status_code == 400
        assert http.post("/v1/chat/completions", json=[]).status_code == 400
        assert http.get("/stats").json()["by_status"]["400"] == 2


def test_every_request_is_logged_when_asked(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with running(Behaviour(latency_ms=0), log=log) as server:
        httpx.post(f"{server.base_url}/chat/completions", json=request())
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["status"], line["attempt"], line["rule"]) == (200, 1, "default")
    assert json.loads(line["body"]) == request()


def test_a_taken_port_is_told() -> None:
    with running(Behaviour()) as server, pytest.raises(SetupFailed, match="--port"), running(Behaviour(), port=server.port):
        pass


def test_rates_over_one_together_are_refused() -> None:
    with pytest.raises(ValueError, match="together at most 1"):
        Behaviour(error_rate=0.6, hang_rate=0.6)


# --- rules ---------------------------------------------------------------------------------------


def rules_of(tmp_path: Path, *rules: dict[str, Any]) -> Any:
    file = tmp_path / "rules.yaml"
    with file.open("w") as stream:
        YAML().dump({"rules": list(rules)}, stream)
    return load_rules([file])


def test_a_tool_is_asked_for_once_and_its_answer_may_be_cited(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        {"name": "look", "tool": {"name": "owners", "arguments": {"node": "$features.node"}}},
        {"name": "done", "facts": {"lookups.0.answer.owner": "team"}, "reply": {"action": "restart_service",
         "parameters": {"node": "$lookups.0.answer.owner", "instances": 1}, "reason": "ask {lookups.0.answer.owner}"}},
    )  # fmt: skip
    tool = {"kind": "http", "name": "owners", "description": "d", "url": "http://h/{node}", "arguments": {"node": ".*"}}
    by = agent(tools=[tool])
    body = request(by=by, tools=[{"type": "function", "function": {"name": "owners", "parameters": {}}}])

    async def work(client: openai.AsyncOpenAI, _: ModelServer) -> tuple[Any, Any]:
        first = (await client.chat.completions.create(**body)).choices[0]
        call = first.message.tool_calls[0]
        body["messages"] += [
            {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": '{"evidence_id": "c/1", "found": "{\\"owner\\": \\"team-db\\"}"}'},
        ]
        return first, json.loads((await client.chat.completions.create(**body)).choices[0].message.content)

    (first, reply), stats = on_server(work, rules=rules)
    assert first.finish_reason == "tool_calls"
    assert json.loads(first.message.tool_calls[0].function.arguments) == {"node": "front"}
    assert reply["parameters"] == {"for": "restart_service", "node": "team-db", "instances": 1}
    assert reply["reason"] == "ask team-db"
    assert reply["evidence"][-1] == "c/1"
    assert stats["tool_calls"] == 1


def test_a_rule_answers_as_it_says_when_it_is_raw_or_a_status(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        {"name": "words", "facts": {"features.node": "^front$"}, "raw": "no thanks"},
        {"name": "ill", "agents": ["remedy"], "status": 503},
    )
    assert answered(read_request(request()), rules).text == "no thanks"
    assert answered(read_request(request(symptom(node="back"))), rules).status == 503
    assert answered(read_request(request(symptom(node="back"), agent(agent="other"))), rules).rule == "default"
    assert answered(Asked(), rules).text == "understood"


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "two", "raw": "x", "status": 500}, {"name": "none"}, {"name": "regex", "facts": {"a": "("}, "raw": "x"},
        {"name": "Name!", "raw": "x"}, {"name": "more", "raw": "x", "colour": "red"}, {"name": "ok", "status": 200},
    ],
)  # fmt: skip
def test_a_rule_is_refused_when_it_is_none(tmp_path: Path, rule: dict[str, Any]) -> None:
    with pytest.raises(SetupFailed, match=r"rules\.yaml: expected rules"):
        rules_of(tmp_path, rule)


REMEDIES = ("restart_service", "roll_back", "scale_out", "shift_traffic", "page_person")


@pytest.mark.parametrize(
    ("features", "action", "parameters"),
    [
        ({}, "roll_back", {"node": "db", "deploy_id": "d-7"}),
        ({"minutes_since_deploy": 500.0}, "shift_traffic", {"node": "db"}),
        ({"deploy_id": "", "suspect_signs": "availability latency"}, "restart_service", {"node": "db", "instances": 1}),
        ({"deploy_id": "", "suspect_signs": "latency saturation"}, "scale_out", {"node": "db", "instances": 2}),
        ({"remedies_tried": 1, "last_remedy": "roll_back"}, "shift_traffic", {"node": "db"}),
        ({"deploy_id": "", "remedies_tried": 1, "last_remedy": "shift_traffic"}, "restart_service", {"node": "db", "instances": 1}),
        ({"deploy_id": "", "remedies_tried": 1, "last_remedy": "scale_out", "suspect_signs": "saturation"}, "restart_service",
         {"node": "db", "instances": 1}),
        ({"remedies_tried": 2, "last_remedy": "restart_service"}, "page_person", {"node": "front", "reason": "two remedies did not help"}),
        ({"suspect": "", "deploy_id": ""}, "page_person", {"node": "front", "reason": "nobody stands out as the cause"}),
        ({"metric": ""}, None, {}),
    ],
)
def test_the_scripted_remedy_makes_sense(features: dict[str, Any], action: str | None, parameters: dict[str, Any]) -> None:
    reply = reply_of(symptom(**features), agent(actions=REMEDIES), load_rules([RULES]))
    assert (reply.action, reply.parameters) == (action, parameters)


@pytest.mark.parametrize(
    ("features", "severity"),
    [({"deviation": 30.0}, "critical"), ({"deviation": -30.0}, "critical"), ({}, "high"), ({"deviation": -9.0}, "high"),
     ({"deviation": 3.0}, "medium"), ({"deviation": 3.0, "suspect": ""}, "low")],
)  # fmt: skip
def test_the_scripted_triage_makes_sense(features: dict[str, Any], severity: str) -> None:
    reply = reply_of(symptom(**features), agent(actions=("triage_incident",)), load_rules([RULES]))
    assert reply.parameters["severity"] == severity


def test_the_scripted_model_abstains_when_there_is_nothing_to_take_back() -> None:
    reply = reply_of(symptom(deploy_id=""), agent(actions=("roll_back",)), load_rules([RULES]))
    assert (reply.action or ABSTAIN) == ABSTAIN


def test_a_masked_value_comes_back_in_the_scripted_reason() -> None:
    reply = reply_of(symptom(), agent(actions=REMEDIES), load_rules([RULES]))
    assert "Ada Lovelace should know" in reply.reason
