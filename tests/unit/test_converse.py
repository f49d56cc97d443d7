"""A question to a model over real HTTP: tried again, asked again, looked up, cancelled, never paid twice."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest
import tenacity
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from contracts.domain import load_domain
from contracts.envelope import parse_time_ms
from contracts.exchange import Exchange
from contracts.prompt import Prompt
from contracts.topics import MAX_RECORD_BYTES
from ops.model_rules import Rule
from ops.model_server import Behaviour, ModelServer, running
from tests import asking
from udfs.agents.core import Situation
from udfs.agents.definition import LlmAgent
from udfs.reason.caller import client
from udfs.reason.converse import Question, Result, _retry_after_s, _url, converse
from udfs.reason.recorded import Recorded, digest
from udfs.reason.spans import Spans, child_of, parent_of

CONTRACT = load_domain("machines")
TEXT = "Decide whether the machine needs maintenance."
PROMPT = Prompt(prompt_id="care", version=3, model="m", text=TEXT, sha256=digest(TEXT))
SITUATION = Situation(
    "situation-1", "machines.cooling_failed", "machine-1", "2026-01-01T00:00:00Z", "c", 0, None, None,
    {"command_id": "command-1", "detail": "valve"},
)  # fmt: skip
SPANS = Spans("machines")
GOOD = {"action": "schedule_maintenance", "parameters": {"priority": "urgent"}}


class Kept:
    """Records of one test: what a broker would have acknowledged."""

    def __init__(self, before: Sequence[Recorded] = ()) -> None:
        self.recorded = {(r.exchange.call_id, r.exchange.turn): r for r in before}

    def exchange(self, call_id: str, turn: int) -> Recorded | None:
        return self.recorded.get((call_id, turn))

    async def record(self, exchange: Exchange) -> Recorded:
        found = Recorded(exchange, 0, len(self.recorded))
        self.recorded[exchange.call_id, exchange.turn] = found
        return found

    @property
    def kinds(self) -> list[tuple[int, str, str]]:
        return [(r.exchange.turn, r.exchange.kind, r.exchange.name) for r in self.recorded.values()]


def agent(**changes: Any) -> LlmAgent:
    declared = {
        "kind": "llm", "agent": "carer", "version": 1, "situation": SITUATION.type, "prompt": "care", "model": "m",
        "actions": ["schedule_maintenance"], "attempt_timeout_s": 5.0, "deadline_s": 20.0,
    }  # fmt: skip
    return LlmAgent.model_validate_json(orjson.dumps(declared | changes))


def rule(**answer: Any) -> Rule:
    return Rule.model_validate_json(orjson.dumps({"name": "only", **answer}))


def ask(
    server: ModelServer, kept: Kept, *, within_s: float = 20, home: str = "", situation: Situation = SITUATION,
    key: str = "k", tokens: float = math.inf, cost: float = math.inf, **changes: Any,
) -> Result:  # fmt: skip
    question = Question(
        "call-1", agent(**changes), PROMPT, situation, 0, "m", (2.0, 10.0), int((time.time() + within_s) * 1000), home=home,
        tokens=tokens, cost=cost,
    )  # fmt: skip

    async def talk() -> Result:
        async with client(server.base_url).with_options(api_key=key) as asked:
            return await converse(question, asked, kept, CONTRACT, SPANS)

    return asyncio.run(talk())


def test_a_reply_that_fits_is_recorded_with_what_it_took() -> None:
    kept = Kept()
    with running(Behaviour(latency_ms=0), [rule(reply=GOOD)]) as server:
        result = ask(server, kept)

    assert result.reply is not None
    assert (result.reply.action, result.reply.parameters) == ("schedule_maintenance", {"priority": "urgent"})
    exchange = kept.recorded["call-1", 0].exchange
    assert (exchange.prompt_id, exchange.prompt_version, exchange.retries) == ("care", 3, 0)
    assert exchange.tokens_in > 100
    assert exchange.cost == pytest.approx((exchange.tokens_in * 2 + exchange.tokens_out * 10) / 1e6)
    assert digest(exchange.request) == exchange.request_sha256


def test_what_was_recorded_before_a_restart_is_not_asked_again() -> None:
    kept = Kept()
    with running(Behaviour(latency_ms=0), [rule(reply=GOOD)]) as server:
        first = ask(server, kept)
        again = ask(server, Kept(list(kept.recorded.values())))
        assert server.stats()["requests"] == 1
    assert again.reply == first.reply


def test_a_reply_that_does_not_fit_is_told_why_and_asked_for_again() -> None:
    kept = Kept()
    bad = rule(reply={"action": "schedule_maintenance", "parameters": {"priority": "whenever"}})
    with running(Behaviour(latency_ms=0), [bad]) as server:
        result = ask(server, kept, asks=3)

    assert (result.reply, result.why, result.taken.malformed) == (None, "malformed", 3)
    assert [turn for turn, _, _ in kept.kinds] == [0, 1, 2]
    second = orjson.loads(kept.recorded["call-1", 1].exchange.request)
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"]
    assert "priority" in second[-1]["content"]
    assert result.last is not None
    assert "whenever" in result.last.exchange.reply


def test_a_server_that_fails_is_tried_again_so_often_and_no_more() -> None:
    with running(Behaviour(latency_ms=0), [rule(status=503)]) as server:
        result = ask(server, Kept(), attempts=2)
        assert server.stats()["requests"] == 2
    assert (result.why, result.explanation, result.taken.retries) == ("failed", "m: HTTP 503", 1)


@pytest.mark.parametrize(
    ("base_url", "asked"),
    [
        ("http://h/v1", "/v1/chat/completions"),
        ("http://h/v1/", "/v1/chat/completions"),
        ("http://h", "/chat/completions"),
        ("http://[::1]:8/a%2Fb/v1", "/a%2Fb/v1/chat/completions"),
        ("http://h/a%3Fb/v1/", "/a%3Fb/v1/chat/completions"),
        ("http://h/v1?api-version=2", "/v1/chat/completions?api-version=2"),
    ],
)
def test_a_base_url_keeps_its_escapes_and_its_query(base_url: str, asked: str) -> None:
    assert httpx2.URL(_url(client(base_url).base_url)).raw_path.decode() == asked


def test_a_refusal_for_good_is_not_tried_again() -> None:
    with running(Behaviour(latency_ms=0), [rule(status=401)]) as server:
        result = ask(server, Kept(), attempts=5)
        assert server.stats()["requests"] == 1
    assert (result.why, result.explanation) == ("failed", "m: HTTP 401")


def test_a_server_that_asks_to_wait_is_waited_for() -> None:
    with running(Behaviour(latency_ms=0, rate_limit_rate=1, retry_after_s=0.3)) as server:
        began = time.monotonic()
        result = ask(server, Kept(), attempts=3)
        taken_s = time.monotonic() - began
        assert server.stats()["requests"] == 3
    assert result.why == "failed"
    assert taken_s >= 0.6


def test_a_server_that_asks_for_more_time_than_there_is_is_given_up_at_once() -> None:
    with running(Behaviour(latency_ms=0, rate_limit_rate=1, retry_after_s=120)) as server:
        result = ask(server, Kept(), attempts=5, within_s=30)
        assert server.stats()["requests"] == 1
    assert (result.why, result.explanation) == ("failed", "m: HTTP 429")


@pytest.mark.parametrize(
    ("told", "asked_s"),
    [
        ("7", 7.0), ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0), ("Thu, 01 Jan 2026 00:00:30 -0000", 30.0),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0.0), ("soon", None), ("", None), ("Thu, 99 Jan 2026 00:00:30 GMT", None),
    ],
)  # fmt: skip
def test_a_server_may_ask_for_seconds_or_name_a_date(told: str, asked_s: float | None) -> None:
    request = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")
    state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
    answer = httpx2.Response(429, request=request, headers={"Retry-After": told})
    state.set_exception((openai.RateLimitError, openai.RateLimitError("m", response=answer, body=None), None))  # type: ignore[arg-type]
    assert _retry_after_s(state, parse_time_ms("2026-01-01T00:00:00Z")) == asked_s


def test_a_call_past_its_deadline_is_cancelled_at_the_server() -> None:
    with running(Behaviour(latency_ms=60_000)) as server:
        result = ask(server, Kept(), within_s=0.5)
        assert result.why == "deadline"
        assert result.taken.tokens_in > 100 and result.taken.tokens_out == agent().max_tokens  # it may be billed
        assert result.taken.cost == pytest.approx((result.taken.tokens_in * 2 + result.taken.tokens_out * 10) / 1e6)
        deadline = time.monotonic() + 10
        while server.stats()["cancelled"] != 1:
            assert time.monotonic() < deadline, f"expected the server to see it leave: {server.stats()}"
            time.sleep(0.02)
        assert server.stats()["in_flight"] == 0


def test_an_attempt_that_hangs_is_a_time_out_and_tried_again() -> None:
    with running(Behaviour(latency_ms=0, hang_rate=1)) as server:
        result = ask(server, Kept(), attempts=2, attempt_timeout_s=1.0)
        assert server.stats()["requests"] == 2
    assert (result.why, result.taken.retries, result.taken.timeouts) == ("failed", 1, 1)
    assert result.taken.tokens_out == 2 * agent().max_tokens


def test_a_server_that_is_not_there_is_a_failure_not_a_crash() -> None:
    with running(Behaviour(latency_ms=0)) as server:
        pass
    result = ask(server, Kept(), attempts=2)
    assert (result.why, result.explanation) == ("failed", "m: no connection")
    assert (result.taken.timeouts, result.taken.tokens_in, result.taken.cost) == (0, 0, 0.0)


def test_look_ups_are_made_recorded_and_bounded() -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    asks = rule(tool={"name": "done", "arguments": {}})
    kept = Kept()
    with running(Behaviour(latency_ms=0), [asks, rule(reply=GOOD)]) as server:
        result = ask(server, kept, tools=[tool], tool_calls=1)

    assert result.reply is not None
    assert [(turn, kind) for turn, kind, _ in kept.kinds] == [(0, "model"), (1, "tool"), (2, "model")]
    assert kept.recorded["call-1", 1].exchange.reply.startswith("refused (")  # there is no such database


def test_a_look_ups_answer_is_recorded_as_it_leaves_with_placeholders(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        ledger.execute("CREATE TABLE deploys (who TEXT)")
        ledger.execute("INSERT INTO deploys VALUES ('ADA lovelace')")
    tool = {"kind": "sql", "name": "who", "description": "d", "database": "ledger.sqlite", "query": "SELECT who FROM deploys"}
    question = Question(
        "call-1", asking.agent(tools=[tool]), asking.PROMPT, asking.symptom(), 0, "m", (0, 0), int(time.time() * 1000) + 20_000,
        home=str(tmp_path),
    )  # fmt: skip
    kept = Kept()

    async def talk(url: str) -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client:
            await converse(question, client, kept, asking.CONTRACT, SPANS)

    with running(Behaviour(latency_ms=0), [rule(tool={"name": "who", "arguments": {}}), rule(reply=GOOD)]) as server:
        asyncio.run(talk(server.base_url))
    told = kept.recorded["call-1", 1].exchange.reply
    assert "[[deployed_by." in told
    assert "lovelace" not in " ".join(r.exchange.model_dump_json() for r in kept.recorded.values()).casefold()


def test_spans_tell_of_each_call_in_the_trace_of_its_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent by OTLP over HTTP to whoever listens, with ids that the call derives; no text of prompt or reply."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    spans = Spans("machines")
    question = Question("call-1", agent(), PROMPT, SITUATION, 0, "m", (2.0, 10.0), int((time.time() + 20) * 1000))

    async def talk(base_url: str) -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0) as client:
            await converse(question, client, Kept(), CONTRACT, spans)

    with running(Behaviour(latency_ms=0), [rule(reply=GOOD)]) as server:
        asyncio.run(talk(server.base_url))
    spans.close()
    collector.shutdown()

    sent = ExportTraceServiceRequest.FromString(b"".join(received)).resource_spans[0].scope_spans[0].spans[0]
    told = {a.key: a.value for a in sent.attributes}
    parent = parent_of(SITUATION.traceparent, SITUATION.correlation_id)
    assert sent.name == "chat m"
    assert child_of(parent, "call-1/0") == f"00-{sent.trace_id.hex()}-{sent.span_id.hex()}-01"
    assert sent.parent_span_id.hex() == parent.split("-")[2]
    assert told["gen_ai.operation.name"].string_value == "chat"
    assert told["gen_ai.agent.name"].string_value == "carer"
    assert told["gen_ai.usage.input_tokens"].int_value > 100
    assert b"valve" not in b"".join(received)


def test_a_trace_that_a_fact_began_goes_on() -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert parent_of(given, "c") == given
    assert child_of(given, "k").split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert child_of(given, "k") == child_of(given, "k") != given
    assert parent_of("nonsense", "c") == parent_of(None, "c") != parent_of(None, "d")


class Hostile(BaseHTTPRequestHandler):
    """Answers every question with the server's `answer`: content type and bytes, with `status` and the headers `says`.

    Keeps what was `heard`: headers and body.
    """

    def do_POST(self) -> None:
        asked = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append((dict(self.headers), asked))  # type: ignore[attr-defined]
        kind, body = self.server.answer  # type: ignore[attr-defined]
        self.server.asked = self.server.asked + 1  # type: ignore[attr-defined]
        is_refused = any(name in asked for name in self.server.refuses)  # type: ignore[attr-defined]
        self.send_response(400 if is_refused else 307 if kind == "redirect" else self.server.status)  # type: ignore[attr-defined]
        for name, value in self.server.says.items():  # type: ignore[attr-defined]
            self.send_header(name, value)
        if kind == "redirect":
            self.send_header("Location", body.decode())
        if kind == "gzip":
            self.send_header("Content-Encoding", kind)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.server.was_left = True  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(
    body: bytes, kind: str = "application/json", *, refuses: Sequence[str] = (), status: int = 200, says: Mapping[str, str] | None = None
) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.answer, server.asked, server.was_left = (kind, body), 0, False  # type: ignore[attr-defined]
    server.heard, server.refuses, server.status, server.says = [], refuses, status, says or {}  # type: ignore[attr-defined]
    server.base_url = f"http://127.0.0.1:{server.server_port}/v1"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def completion(message: object, **more: object) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], **more}).encode()


NO_COMPLETION = {
    "no JSON": b"{",
    "deeper than any": b"[" * 100_000,
    "null": b"null",
    "a text": b'"hello"',
    "a list": b"[]",
    "an error in place of an answer": b'{"error": {"message": "busy"}}',
    "no choices": completion("x").replace(b'"choices"', b'"chosen"'),
    "choices of another type": b'{"choices": {"a": 1}}',
    "a choice that is null": b'{"choices": [null]}',
    "a message that is a text": completion("yes"),
    "content in parts": completion({"role": "assistant", "content": [{"type": "text", "text": "{}"}]}),
    "content that is a number": completion({"role": "assistant", "content": 5}),
    "a lone surrogate": completion({"role": "assistant", "content": "\ud800"}),
    "tool calls that are texts": completion({"role": "assistant", "content": None, "tool_calls": ["x"]}),
}


@pytest.mark.parametrize("name", NO_COMPLETION)
def test_an_answer_that_is_no_completion_is_recorded_as_it_came_and_asked_for_again(name: str) -> None:
    kept = Kept()
    with answering(NO_COMPLETION[name]) as server:
        result = ask(server, kept)
    assert (result.reply, result.why, result.taken.malformed, server.asked) == (None, "failed", 2, 2)
    assert result.explanation.startswith("m: no completion came")
    assert [r.exchange.reply for r in kept.recorded.values()] == [NO_COMPLETION[name].decode()[:100_000]] * 2
    assert result.last == kept.recorded["call-1", 1], "for the dead letter"
    assert result.taken.tokens_out == 2 * agent().max_tokens, "it may be billed"
    assert server.heard[0][1] == server.heard[1][1], "nothing was said that could be answered"


def test_a_page_in_place_of_a_completion_is_kept_whatever_its_bytes() -> None:
    with answering(b"<html>caf\xe9</html>", "text/html") as server:
        result = ask(server, Kept(), asks=1)
    assert result.why == "failed"
    assert result.last is not None
    assert result.last.exchange.reply == "<html>caf\ufffd</html>"


def test_no_proposal_comes_of_an_answer_that_is_no_completion_though_its_words_would_fit() -> None:
    reply = {"action": "schedule_maintenance", "parameters": {"priority": "urgent"}, "confidence": 1, "reason": "r", "evidence": []}
    kept = Kept()
    with answering(orjson.dumps(reply)) as server:
        assert ask(server, kept).reply is None
        assert ask(server, Kept(list(kept.recorded.values()))).reply is None
        assert server.asked == 2, "the recorded ones are not asked for again"


def test_no_look_up_is_made_for_an_answer_that_is_no_completion() -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    kept = Kept()
    call = {"id": "c", "type": "function", "function": {"name": "done", "arguments": "{}"}}
    with answering(orjson.dumps({"tool_calls": [call]})) as server:
        ask(server, kept, tools=[tool])
    assert [kind for _, kind, _ in kept.kinds] == ["model", "model"]


BAD = {"action": "schedule_maintenance", "parameters": {"priority": "whenever"}}


def test_a_conversation_takes_no_more_tokens_than_are_left() -> None:
    with running(Behaviour(latency_ms=0), [rule(reply=BAD)]) as server:
        result = ask(server, Kept(), asks=5, max_tokens=100, tokens=1500)
        told = server.stats()
    assert (result.why, result.reply) == ("budget", None)
    assert 1 < told["requests"] < 5
    assert told["tokens_in"] + told["tokens_out"] <= 1500
    assert "of 1500 tokens that were left are taken" in result.explanation
    assert "wrong_parameters" in result.explanation, "it says too what was wrong with the last reply"
    assert result.last is not None


def test_a_conversation_costs_no_more_than_is_left() -> None:
    with running(Behaviour(latency_ms=0), [rule(reply=BAD)]) as server:
        result = ask(server, Kept(), asks=5, max_tokens=100, cost=0.005)
    assert result.why == "budget"
    assert 0 < result.taken.cost <= 0.005
    assert "of 0.005 cost that was left is taken" in result.explanation


def test_a_time_out_is_not_tried_again_when_it_may_have_taken_what_was_left() -> None:
    with running(Behaviour(latency_ms=0, hang_rate=1)) as server:
        result = ask(server, Kept(), attempts=5, attempt_timeout_s=0.5, tokens=1200)
        assert server.stats()["requests"] == 1
    assert (result.why, result.taken.retries) == ("budget", 0)


def test_nothing_is_looked_up_when_the_model_could_not_be_told() -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    kept = Kept()
    with running(Behaviour(latency_ms=0), [rule(tool={"name": "done", "arguments": {}}), rule(reply=GOOD)]) as server:
        result = ask(server, kept, tools=[tool], tokens=700)
    assert result.why == "budget"
    assert [kind for _, kind, _ in kept.kinds] == ["model"]


def test_what_was_paid_before_a_restart_is_used_whatever_is_left() -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    kept = Kept()
    with running(Behaviour(latency_ms=0), [rule(tool={"name": "done", "arguments": {}}), rule(reply=GOOD)]) as server:
        first = ask(server, kept, tools=[tool])
        again = ask(server, Kept(list(kept.recorded.values())), tools=[tool], tokens=0)
    assert first.reply is not None and first.reply == again.reply


def test_an_exchange_tells_how_often_it_was_tried_again() -> None:
    kept = Kept()
    behaviour = Behaviour(latency_ms=0, rate_limit_rate=0.6, retry_after_s=0, seed=5)
    with running(behaviour, [rule(reply=GOOD)]) as server:
        result = ask(server, kept, attempts=10)
        retries = server.stats()["requests"] - 1
        assert retries > 0, "the test needs a seed that refuses the first"
        again = ask(server, Kept(list(kept.recorded.values())))
    assert kept.recorded["call-1", 0].exchange.retries == result.taken.retries == again.taken.retries == retries


def test_the_trace_of_the_fact_goes_on_at_the_server() -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with answering(completion({"role": "assistant", "content": "no"})) as server:
        ask(server, Kept(), situation=replace(SITUATION, traceparent=given), asks=2)
    assert [headers["traceparent"] for headers, _ in server.heard] == [child_of(given, "call-1/0"), child_of(given, "call-1/1")]


@pytest.mark.parametrize(("settings", "said"), [
    ({}, {"max_completion_tokens": 500, "temperature": 0}),
    ({"token_limit_field": "max_tokens", "temperature": None}, {"max_tokens": 500}),
    ({"temperature": 0.7}, {"max_completion_tokens": 500, "temperature": 0.7}),
])  # fmt: skip
def test_a_server_is_told_temperature_and_limit_as_it_takes_them(settings: dict[str, Any], said: dict[str, Any]) -> None:
    with answering(completion({"role": "assistant", "content": "no"})) as server:
        ask(server, Kept(), asks=1, **settings)
    _, body = server.heard[0]
    assert {name: body[name] for name in ("max_completion_tokens", "max_tokens", "temperature") if name in body} == said


FENCED = """```json
{"action": "schedule_maintenance", "parameters": {"priority": "urgent"}, "confidence": 1, "reason": "r", "evidence": []}
```"""


def test_a_server_that_takes_no_response_format_is_asked_without_it_and_told_the_schema() -> None:
    kept = Kept()
    with answering(completion({"role": "assistant", "content": FENCED}), refuses=["response_format"]) as server:
        result = ask(server, kept, attempts=2)
        again = ask(server, Kept(list(kept.recorded.values())))
    assert result.reply is not None and result.reply == again.reply
    (_, first), (_, second) = server.heard
    assert "response_format" in first and "Reply schema: " not in first["messages"][0]["content"]
    assert "response_format" not in second and "Reply schema: " in second["messages"][0]["content"]
    exchange = kept.recorded["call-1", 0].exchange
    assert (orjson.loads(exchange.request), exchange.retries) == (second["messages"], 1)


def test_it_is_not_asked_with_it_again_in_the_same_conversation() -> None:
    with answering(completion({"role": "assistant", "content": "no"}), refuses=["response_format"]) as server:
        assert ask(server, Kept(), asks=2).why == "malformed"
    assert ["response_format" in body for _, body in server.heard] == [True, False, False]


def test_a_server_that_refuses_all_is_asked_once_more_and_no_more_often_than_attempts_allow() -> None:
    with answering(b"{}", refuses=["messages"]) as server:
        assert ask(server, Kept(), attempts=3).explanation == "m: HTTP 400"
        assert server.asked == 2
        assert ask(server, Kept(), attempts=1).explanation == "m: HTTP 400"
        assert server.asked == 3


def test_a_server_that_takes_no_schemas_is_told_the_schema_in_the_prompt() -> None:
    with answering(completion({"role": "assistant", "content": FENCED})) as server:
        assert ask(server, Kept(), is_structured=False).reply is not None
    ((_, body),) = server.heard
    assert "response_format" not in body and "Reply schema: " in body["messages"][0]["content"]


def test_a_question_goes_nowhere_else_when_the_server_redirects_it() -> None:
    with answering(completion({"content": "x"})) as elsewhere, answering(f"{elsewhere.base_url}/chat/completions".encode(), "redirect") as server:
        assert ask(server, Kept()).why == "failed"
    assert (server.asked > 0, elsewhere.asked) == (True, 0)


ODD_MESSAGES: dict[str, object] = {
    "nothing": {"role": "assistant", "content": None},
    "NUL": {"role": "assistant", "content": "\0"},
    "tool calls nobody may make": {"role": "assistant", "content": '{"tool_calls":[{"id":"x","function":{}}]}'},
    "a function that is no object": {"role": "assistant", "content": '{"tool_calls":[{"id":"x","function":5}]}'},
    "an integer no event can hold": {"role": "assistant", "content": json.dumps({
        "action": "schedule_maintenance", "parameters": {"priority": 10**30}, "confidence": 1, "reason": "r", "evidence": [],
    })},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_MESSAGES)
def test_a_message_of_any_kind_is_recorded_and_refused(name: str) -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    kept = Kept()
    with answering(completion(ODD_MESSAGES[name])) as server:
        result = ask(server, kept, tools=[tool])
    assert (result.reply, result.why) == (None, "malformed")
    assert [kind for _, kind, _ in kept.kinds] == ["model", "model"]


def test_a_huge_reply_is_cut_recorded_and_refused() -> None:
    kept = Kept()
    with answering(completion({"role": "assistant", "content": "\1" * 150_000})) as server:
        result = ask(server, kept)
    assert (result.why, result.explanation.partition(":")[0]) == ("malformed", "too_long")
    for recorded in kept.recorded.values():
        assert len(orjson.dumps(recorded.exchange.model_dump())) < MAX_RECORD_BYTES - 10_000


def test_an_answer_without_end_is_left_where_it_is_and_not_asked_for_again() -> None:
    with answering(completion({"role": "assistant", "content": "x" * 50_000_000})) as server:
        result = ask(server, Kept())
    assert (result.why, server.asked, server.was_left) == ("failed", 1, True)
    assert result.explanation == "m: expected an answer of at most 1000000 bytes, came more"
    assert result.taken.tokens_out == agent().max_tokens  # it may be billed


def test_an_answer_that_is_compressed_unasked_is_not_unpacked() -> None:
    with answering(gzip.compress(completion({"role": "assistant", "content": "x" * 50_000_000})), "gzip") as server:
        result = ask(server, Kept())
    assert (result.why, server.asked) == ("failed", 1)
    assert result.explanation == "m: expected an answer that is not compressed, came one in 'gzip'"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br"])
def test_an_error_takes_its_usual_way_though_its_body_is_compressed(encoding: str) -> None:
    says = {"Content-Encoding": encoding, "Retry-After": "0"}
    with answering(b"no gzip at all", status=503, says=says) as server:
        result = ask(server, Kept(), attempts=3)
    assert (result.why, result.explanation, result.taken.retries, server.asked) == ("failed", "m: HTTP 503", 2, 3)
    assert result.taken.tokens_in + result.taken.tokens_out == 0, "nothing was answered"


def test_an_error_takes_its_usual_way_though_its_body_has_no_end() -> None:
    with answering(b"x" * 50_000_000, status=429, says={"Retry-After": "0.2"}) as server:
        began = time.monotonic()
        result = ask(server, Kept(), attempts=2)
    assert (result.why, result.explanation, server.asked, server.was_left) == ("failed", "m: HTTP 429", 2, True)
    assert time.monotonic() - began >= 0.2, "it asked to wait"


def test_an_answer_that_is_compressed_is_not_unpacked_in_whatever_case_it_says_so() -> None:
    with answering(gzip.compress(b"{}"), says={"Content-Encoding": "GZip"}) as server:
        assert ask(server, Kept()).explanation == "m: expected an answer that is not compressed, came one in 'gzip'"
    with answering(completion({"role": "assistant", "content": FENCED}), says={"Content-Encoding": "Identity"}) as server:
        assert ask(server, Kept(), is_structured=False).reply is not None


@pytest.mark.parametrize("status", [429, 503])
def test_a_first_question_that_took_nothing_is_tried_again_however_little_is_left(status: int) -> None:
    with answering(b"{}", status=status, says={"Retry-After": "0"}) as server:
        result = ask(server, Kept(), attempts=2, tokens=1, cost=0.0)
    assert (result.why, result.explanation, server.asked) == ("failed", f"m: HTTP {status}", 2)


KEY = 'sk-"secret"/1'


@pytest.mark.parametrize("body", [
    f"<pre>Authorization: Bearer {KEY}</pre>".encode(),
    b"x" * 99_990 + KEY.encode(),
    json.dumps({"headers": {"authorization": f"Bearer {KEY}"}}).encode(),
    completion({"role": "assistant", "content": f"you said {KEY}"}, model=KEY),
    completion({"role": "assistant", "content": None, "tool_calls": [
        {"id": KEY, "type": "function", "function": {"name": "done", "arguments": json.dumps({"key": KEY})}},
    ]}),
])  # fmt: skip
def test_an_api_key_that_a_server_says_back_is_not_recorded(body: bytes) -> None:
    kept = Kept()
    with answering(body) as server:
        result = ask(server, kept, key=KEY, asks=1)
        assert server.heard[0][0]["authorization"] == f"Bearer {KEY}"
    assert result.reply is None
    assert kept.recorded
    for recorded in kept.recorded.values():
        exchange = recorded.exchange
        assert "secret" not in exchange.model_dump_json() + result.explanation
        assert exchange.reply.count("[key]") == (2 if "tool_calls" in exchange.reply else 1)
        assert digest(exchange.reply) == exchange.reply_sha256


def test_a_word_for_no_key_is_left_in_what_a_server_says() -> None:
    kept = Kept()
    with answering(b"none of that") as server:
        ask(server, kept, key="none", asks=1)
    assert kept.recorded["call-1", 0].exchange.reply == "none of that"


def test_what_came_in_place_of_a_completion_is_recorded_with_placeholders() -> None:
    question = Question("call-1", asking.agent(asks=1), asking.PROMPT, asking.symptom(), 0, "m", (0, 0), int(time.time() * 1000) + 20_000)
    kept = Kept()

    async def talk(url: str) -> None:
        async with client(url) as asked:
            await converse(question, asked, kept, asking.CONTRACT, SPANS)

    with answering(b"<p>ADA lovelace</p>" + b"x" * 150_000 + b"Ada Lovelace") as server:
        asyncio.run(talk(server.base_url))
    told = kept.recorded["call-1", 0].exchange.reply
    assert told.startswith("<p>[[deployed_by.") and len(told) == 100_000
    assert "lovelace" not in told.casefold()


def test_a_server_that_says_it_stopped_as_no_completion_does_is_heard_all_the_same() -> None:
    message = {"role": "assistant", "content": FENCED}
    choice = {"index": 0, "message": message, "finish_reason": "no_completion"}
    kept = Kept()
    with answering(orjson.dumps({"model": "m", "choices": [choice]})) as server:
        result = ask(server, kept, is_structured=False)
        again = ask(server, Kept(list(kept.recorded.values())), is_structured=False)
    assert result.reply is not None and result.reply == again.reply
    assert kept.recorded["call-1", 0].exchange.finish_reason == ""


def test_a_question_that_no_record_could_hold_is_not_asked() -> None:
    situation = replace(SITUATION, features={**SITUATION.features, "detail": "x" * 2_500_000})
    with running(Behaviour(latency_ms=0)) as server:
        result = ask(server, Kept(), situation=situation)
        assert server.stats()["requests"] == 0
    assert result.why == "failed"
    assert "can be recorded" in result.explanation


@pytest.mark.parametrize("usage", [
    None, "many", {}, {"prompt_tokens": -5, "completion_tokens": -1}, {"prompt_tokens": None, "completion_tokens": 10**30},
    {"prompt_tokens": 1.5, "completion_tokens": True},
])  # fmt: skip
def test_tokens_are_estimated_when_the_server_counts_none(usage: object) -> None:
    kept = Kept()
    with answering(completion({"role": "assistant", "content": "no answer at all"}, usage=usage)) as server:
        taken = ask(server, kept, asks=1).taken
    exchange = kept.recorded["call-1", 0].exchange
    assert (taken.tokens_in, taken.tokens_out) == (len(exchange.request) // 3, 5)


def test_look_ups_past_the_bound_are_left_out_when_many_are_asked_for_at_once() -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "done", "arguments": "{}"}} for n in range(500)]
    kept = Kept()
    with answering(completion({"role": "assistant", "content": None, "tool_calls": calls})) as server:
        assert ask(server, kept, tools=[tool], tool_calls=3, asks=1).why == "malformed"
    assert [kind for _, kind, _ in kept.kinds] == ["model", "tool", "tool", "tool", "model"]


def test_a_key_that_no_header_can_hold_is_a_failed_call_and_is_not_told() -> None:
    with running(Behaviour(latency_ms=0), [rule(reply=GOOD)]) as server:
        result = ask(server, Kept(), attempts=1, key="se\u2019cret\n")
    assert result.why == "failed"
    assert "cret" not in result.explanation


def test_a_tools_answer_never_stands_for_a_models_when_the_agent_changed_meanwhile() -> None:
    tool = {"kind": "sql", "name": "done", "description": "d", "database": "ledger/none.sqlite", "query": "SELECT 1"}
    kept = Kept()
    with running(Behaviour(latency_ms=0), [rule(tool={"name": "done", "arguments": {}}), rule(reply=GOOD)]) as server:
        ask(server, kept, tools=[tool])
        looked_up = kept.recorded["call-1", 1]
        told = replace(looked_up, exchange=looked_up.exchange.model_copy(update={"turn": 0}))
        again = Kept([told])
        assert ask(server, again).reply is not None
    assert again.recorded["call-1", 0].exchange.kind == "model"
