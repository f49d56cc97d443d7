"""One question to one model, from the first message to a reply that fits: retries, look-ups, asking again.

Everything that came is recorded before it is used, and what was recorded before a restart is used instead of asking.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import httpx2
import openai
import orjson
import tenacity
from pydantic import BaseModel, Field, ValidationError

from contracts.domain import DomainContract
from contracts.envelope import format_time_ms
from contracts.errors import ReplyRefused, ToolRefused
from contracts.exchange import Exchange
from contracts.prompt import Prompt
from udfs.agents.core import Situation
from udfs.agents.definition import LlmAgent
from udfs.reason.desk import TURNS, Why
from udfs.reason.masking import Mask
from udfs.reason.prompt import ask_again, messages, quoted, without_format
from udfs.reason.recorded import Recorded, digest
from udfs.reason.reply import MAX_CHARACTERS, Reply, read_reply, response_format
from udfs.reason.spans import Spans, child_of, parent_of, tell
from udfs.reason.tools import HttpRequest, find_tool, prepare, run_http, run_sql, tool_schemas

# So that an exchange fits into a record (contracts/topics.py MAX_RECORD_BYTES), as JSON inside JSON. A reply that is
# cut is longer than any that fits.
_MAX_REQUEST_BYTES = 2_000_000
_MAX_REPLY = 100_000
_MAX_TOKENS = 1_000_000_000
# What a server is told that needs no key.
NO_KEY = "none"
# In place of what a server says of why it stopped, for an answer that is recorded as it came and is no completion.
_NO_COMPLETION = "no_completion"
_NOT_TAKEN = (openai.BadRequestError, openai.UnprocessableEntityError)
_RETRIED = (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, openai.ConflictError)


class _NoAnswer(Exception):
    """What came is no completion, or the question cannot be asked; the message may be told."""


class _Overdrawn(Exception):
    """Another question could take more than is left; the message may be told."""


class AnswerRefused(Exception):
    """A server's answer that is not read: too long, or compressed; the message may be told."""


class Records(Protocol):
    """What was exchanged: read back after a restart, and written before it is used."""

    def exchange(self, call_id: str, turn: int) -> Recorded | None: ...

    async def record(self, exchange: Exchange) -> Recorded: ...


@dataclass(frozen=True)
class Question:
    """Ask `model` about the situation. Times are wall milliseconds, prices for a million tokens.

    `tokens` and `cost` are what the whole conversation may take; its first question was found to fit. `troubles`: why those
    before this model did not answer.
    """

    call_id: str
    agent: LlmAgent
    prompt: Prompt
    situation: Situation
    level: int
    model: str
    prices: tuple[float, float]
    until_ms: int
    arrived_ms: int = 0
    starts: int = 1
    before: Mapping[str, float] = field(default_factory=dict)
    home: str = ""
    tokens: float = math.inf
    cost: float = math.inf
    troubles: tuple[str, ...] = ()

    @property
    def parent(self) -> str:
        """The trace the call belongs to, as a `traceparent`."""
        return parent_of(self.situation.traceparent, self.situation.correlation_id)


@dataclass
class Taken:
    """What a question took so far."""

    asked: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    retries: int = 0
    timeouts: int = 0
    malformed: int = 0

    def to_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def with_before(self, before: Mapping[str, float]) -> Taken:
        """This and what the levels before took."""
        return Taken(**{name: before.get(name, 0) + value for name, value in vars(self).items()})  # type: ignore[arg-type]

    def assume(self, tokens_in: int, tokens_out: int, prices: tuple[float, float]) -> None:
        """A question that was cut off: the server may bill all it could have taken."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.cost += _cost(tokens_in, tokens_out, prices)

    def add(self, exchange: Exchange) -> None:
        self.asked += exchange.kind == "model"
        self.tokens_in += exchange.tokens_in
        self.tokens_out += exchange.tokens_out
        self.cost += exchange.cost


@dataclass(frozen=True)
class Result:
    """What came of a question: a reply that fits, or why there is none. `last`: the last reply read."""

    question: Question
    taken: Taken
    reply: Reply | None = None
    last: Recorded | None = None
    why: Why | None = None
    explanation: str = ""


@dataclass
class _Talk:
    """The messages so far, masked; what the server has said and what it may cite. `is_structured`: it gets the schema apart."""

    said: list[dict[str, Any]]
    turn: int
    is_structured: bool
    look_ups: int = 0
    evidence: set[str] = field(default_factory=set)


async def converse(
    question: Question, client: openai.AsyncOpenAI, records: Records, contract: DomainContract, spans: Spans,
    now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
) -> Result:  # fmt: skip
    """Ask until a reply fits, at most `asks` times, within deadline and budget; a call past the deadline is cancelled."""
    agent, taken = question.agent, Taken()
    mask = Mask.of(question.situation, contract.personal_fields)
    talk = _Talk([*messages(question.prompt, agent, question.situation, contract, (), mask)], question.level * TURNS, agent.is_structured)
    # A server may have been asked without the schema apart, before a restart too.
    reader = without_format(agent)
    last: Recorded | None = None
    refused = ""
    try:
        async with asyncio.timeout(max(0.0, (question.until_ms - now_ms()) / 1000)):
            for _ in range(agent.asks):
                last = await _ask(question, talk, client, records, taken, now_ms, mask, contract, spans)
                if last.exchange.finish_reason == _NO_COMPLETION:
                    taken.malformed += 1
                    refused = _problem(last.exchange.reply)
                    continue
                try:
                    reply = read_reply(last.exchange.reply, reader, contract, question.situation, mask, talk.evidence)
                    return Result(question, taken, reply, last)
                except ReplyRefused as error:
                    taken.malformed += 1
                    refused = f"{error.code}: {error}"
                    talk.said = ask_again(talk.said, last.exchange.reply[:MAX_CHARACTERS], error)
        # A server that answers no completions is not well: its circuit counts that.
        why: Why = "failed" if last is not None and last.exchange.finish_reason == _NO_COMPLETION else "malformed"
        return Result(question, taken, None, last, why, f"{question.model}: {refused}" if why == "failed" else refused)
    except _Overdrawn as error:
        return Result(question, taken, None, last, "budget", "; ".join(filter(None, (f"{question.model}: {error}", refused))))
    except TimeoutError:
        taken.timeouts += 1
        return Result(question, taken, None, last, "deadline", f"{question.model}: no reply that fits within {agent.deadline_s:g} s")
    except openai.APITimeoutError as error:
        if not _ran_out(error):
            return Result(question, taken, None, last, "failed", f"{question.model}: no connection")
        taken.timeouts += 1
        return Result(question, taken, None, last, "failed", f"{question.model}: no answer within {agent.attempt_timeout_s:g} s")
    except openai.OpenAIError as error:
        return Result(question, taken, None, last, "failed", f"{question.model}: {_told(error)}")
    except _NoAnswer as error:
        return Result(question, taken, None, last, "failed", f"{question.model}: {error}")


async def _ask(
    question: Question, talk: _Talk, client: openai.AsyncOpenAI, records: Records, taken: Taken,
    now_ms: Callable[[], int], mask: Mask, contract: DomainContract, spans: Spans,
) -> Recorded:  # fmt: skip
    """The model's next reply that is no look-up, recorded; its look-ups made and answered before."""
    while True:
        may_look_up = bool(question.agent.tools) and talk.look_ups < question.agent.tool_calls
        recorded = records.exchange(question.call_id, talk.turn)
        if recorded is None or recorded.exchange.kind != "model":  # a tool's answer never stands for a model's
            if taken.asked:
                _keep_within(question, talk.said, taken)
            with spans.asked(question.model, "chat", question.parent, f"{question.call_id}/{talk.turn}", question.agent.agent) as span:
                exchange = await _request(question, talk, client, taken, now_ms, mask, contract, may_look_up)
                tell(span, exchange)
            taken.add(exchange)  # it is paid, whatever comes of recording it
            recorded = await records.record(exchange)
        else:
            taken.add(recorded.exchange)
            taken.retries += recorded.exchange.retries
        talk.turn += 1
        if recorded.exchange.finish_reason == _NO_COMPLETION:
            return recorded
        # Those past the bound are left out: turns of one level stay far below TURNS.
        wanted = _tool_calls(recorded.exchange.reply)[: question.agent.tool_calls - talk.look_ups] if may_look_up else []
        if not wanted:
            return recorded
        talk.said.append({"role": "assistant", "content": None, "tool_calls": wanted})
        if records.exchange(question.call_id, talk.turn) is None:  # else it is paid already
            _keep_within(question, talk.said, taken)  # what is looked up would never be told
        for call in wanted:
            await _look_up(question, talk, records, call, now_ms, mask, spans)


async def _look_up(
    question: Question, talk: _Talk, records: Records, call: dict[str, Any], now_ms: Callable[[], int], mask: Mask,
    spans: Spans,
) -> None:  # fmt: skip
    name, arguments = call["function"]["name"][:200], call["function"]["arguments"]
    recorded = records.exchange(question.call_id, talk.turn)
    if recorded is None or (recorded.exchange.name, recorded.exchange.request_sha256) != (name, digest(arguments)):
        began_ms = now_ms()
        with spans.asked(name, "execute_tool", question.parent, f"{question.call_id}/{talk.turn}", question.agent.agent):
            found = mask.hide(await _found(question, name, arguments, mask))  # as it leaves: nothing else is kept
        recorded = await records.record(
            Exchange(
                call_id=question.call_id, turn=talk.turn, kind="tool", agent=question.agent.agent,
                agent_version=question.agent.version, situation_id=question.situation.id, name=name,
                request=arguments, request_sha256=digest(arguments), reply=found, reply_sha256=digest(found),
                started_at=format_time_ms(began_ms), latency_ms=max(0, now_ms() - began_ms),
            )
        )  # fmt: skip
    talk.look_ups += 1
    talk.turn += 1
    talk.evidence.add(f"{question.call_id}/{recorded.exchange.turn}")
    answer = {"evidence_id": f"{question.call_id}/{recorded.exchange.turn}", "found": mask.hide(recorded.exchange.reply)}
    talk.said.append({"role": "tool", "tool_call_id": call["id"], "content": quoted(answer)})


async def _found(question: Question, name: str, arguments: str, mask: Mask) -> str:
    """What the look-up gives, or why it gives nothing: the model may be told either."""
    try:
        request = prepare(find_tool(question.agent, name), arguments, mask)
        if not isinstance(request, HttpRequest):
            return await run_sql(request, Path(question.home))
        return await run_http(request)
    except ToolRefused as refused:
        return f"refused ({refused.code}): {refused}"


async def _request(
    question: Question, talk: _Talk, client: openai.AsyncOpenAI, taken: Taken, now_ms: Callable[[], int],
    mask: Mask, contract: DomainContract, may_look_up: bool,
) -> Exchange:  # fmt: skip
    """One question over HTTP, tried again while that may help. Raises openai.OpenAIError, _NoAnswer or _Overdrawn."""
    agent = question.agent
    retries_before, began_ms = taken.retries, now_ms()
    try:
        request, answer = await _post(question, talk, client, taken, now_ms, contract, may_look_up, agent.attempts)
    except _NOT_TAKEN:
        attempts = agent.attempts - 1 - (taken.retries - retries_before)
        if not talk.is_structured or attempts < 1:
            raise
        # Perhaps it is `response_format` that it does not take.
        system, *_ = messages(question.prompt, without_format(agent), question.situation, contract, (), mask)
        talk.said[0], talk.is_structured = system, False
        taken.retries += 1
        request, answer = await _post(question, talk, client, taken, now_ms, contract, may_look_up, attempts)
    return Exchange(
        call_id=question.call_id, turn=talk.turn, kind="model", agent=agent.agent, agent_version=agent.version,
        situation_id=question.situation.id, prompt_id=question.prompt.prompt_id, prompt_version=question.prompt.version,
        request=request, request_sha256=digest(request), retries=taken.retries - retries_before,
        started_at=format_time_ms(began_ms), latency_ms=max(0, now_ms() - began_ms),
        **_answered(answer.content, request, question, client.api_key, mask),
    )  # fmt: skip


def _answered(content: bytes, request: str, question: Question, key: str = "", mask: Mask | None = None) -> dict[str, Any]:
    """What an exchange tells of its answer: a completion's words, or what came in place of one, which may be billed all the same.

    Without the API key, which a server may say back; and what is no completion as it leaves, with placeholders.
    """
    try:
        completion = _read_completion(content)
    except _NoAnswer:
        text, finish_reason, name = _without(key, content.decode(errors="replace")), _NO_COMPLETION, question.model
        text = mask.hide(text[: 2 * _MAX_REPLY]) if mask else text
        tokens_in, tokens_out = len(request) // 3, question.agent.max_tokens
    else:
        text, finish_reason, name = (_without(key, told) for told in (completion.text, completion.finish_reason, completion.model or question.model))
        finish_reason = "" if finish_reason == _NO_COMPLETION else finish_reason  # ours, whoever else says it
        tokens_in = _tokens(completion.usage, "prompt_tokens", request)
        tokens_out = _tokens(completion.usage, "completion_tokens", text[:_MAX_REPLY])
    text = text[:_MAX_REPLY]
    return {
        "name": name[:200], "reply": text, "reply_sha256": digest(text), "finish_reason": finish_reason[:64], "tokens_in": tokens_in,
        "tokens_out": tokens_out, "cost": _cost(tokens_in, tokens_out, question.prices),
    }  # fmt: skip


def _without(key: str, text: str) -> str:
    """The text without the API key, as it is or inside JSON (of JSON); a server that needs none is told a word that is no secret."""
    if key in ("", NO_KEY):
        return text
    in_json = json.dumps(key)[1:-1]
    for spelling in (json.dumps(in_json)[1:-1], in_json, key):
        text = text.replace(spelling, "[key]")
    return text


async def _post(
    question: Question, talk: _Talk, client: openai.AsyncOpenAI, taken: Taken, now_ms: Callable[[], int],
    contract: DomainContract, may_look_up: bool, attempts: int,
) -> tuple[str, httpx2.Response]:  # fmt: skip
    """What was said, as it is recorded, and the answer. What a question takes that is cut off, or whose answer is not read, is assumed."""
    agent = question.agent
    request = orjson.dumps(talk.said, option=orjson.OPT_SORT_KEYS).decode()
    if (size := len(orjson.dumps(request))) > _MAX_REQUEST_BYTES:
        raise _NoAnswer(f"not asked, {size} bytes are more than the {_MAX_REQUEST_BYTES} that can be recorded")
    body: dict[str, Any] = {"model": question.model, "messages": talk.said, agent.token_limit_field: agent.max_tokens}
    if agent.temperature is not None:
        body["temperature"] = agent.temperature
    if talk.is_structured:
        body["response_format"] = response_format(agent, contract)
    if may_look_up:
        body["tools"] = tool_schemas(agent)
    content, traceparent = orjson.dumps(body), child_of(question.parent, f"{question.call_id}/{talk.turn}")
    tries = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_RETRIED),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), _NoTimeLeft(question.until_ms, now_ms)),
        wait=_Wait(now_ms), reraise=True,
    )  # fmt: skip
    try:
        async for attempt in tries:
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    _keep_within(question, talk.said, taken)
                    taken.retries += 1
                answer = await _once(question, content, traceparent, client, taken, len(request) // 3)
    finally:
        vars(tries).clear()  # it refers to itself: the garbage collector would go through all that calls in flight hold
    return request, answer


async def _once(
    question: Question, content: bytes, traceparent: str, client: openai.AsyncOpenAI, taken: Taken, tokens_in: int
) -> httpx2.Response:
    agent = question.agent
    try:
        # Not `chat.completions.create`: to type the request and its answer costs as much as sending both.
        return await client.post(
            _url(client.base_url), cast_to=httpx2.Response, content=content,
            options={"timeout": agent.attempt_timeout_s, "headers": {"traceparent": traceparent}},
        )  # fmt: skip
    except asyncio.CancelledError:
        taken.assume(tokens_in, agent.max_tokens, question.prices)
        raise
    except openai.OpenAIError as error:
        if isinstance(error, openai.APITimeoutError) and _ran_out(error):
            taken.assume(tokens_in, agent.max_tokens, question.prices)
        raise
    except AnswerRefused as refused:
        taken.assume(tokens_in, agent.max_tokens, question.prices)
        raise _NoAnswer(str(refused)) from None
    except Exception as error:  # the client's own, over what is asked or came: a key no header can hold, say
        raise _NoAnswer(f"no completion came, {type(error).__name__}") from None


@lru_cache
def _url(base_url: httpx2.URL) -> str:
    """Whole: the client would take its base apart for each request. A query stays behind the path, escapes stay escapes."""
    path, mark, query = base_url.raw_path.partition(b"?")
    return str(base_url.copy_with(raw_path=path.rstrip(b"/") + b"/chat/completions" + mark + query))


def _keep_within(question: Question, said: list[dict[str, Any]], taken: Taken) -> None:
    """Raises _Overdrawn when another question could take more than the conversation may; the first was found to fit."""
    if taken.tokens_in + taken.tokens_out == 0:
        return
    tokens_in, tokens_out = len(orjson.dumps(said)) // 3, question.agent.max_tokens
    cost = _cost(tokens_in, tokens_out, question.prices)
    if taken.tokens_in + taken.tokens_out + tokens_in + tokens_out > question.tokens:
        told = f"{taken.tokens_in + taken.tokens_out} of {question.tokens:.0f} tokens"
        raise _Overdrawn(f"{told} that were left are taken, another question may take {tokens_in + tokens_out}")
    if taken.cost + cost > question.cost:
        raise _Overdrawn(f"{taken.cost:g} of {question.cost:g} cost that was left is taken, another question may take {cost:g}")


def _cost(tokens_in: int, tokens_out: int, prices: tuple[float, float]) -> float:
    return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6


class _Function(BaseModel):
    name: str
    arguments: str


class _ToolCall(BaseModel):
    id: str
    type: str = "function"
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    """A chat completion, as far as it is used; a server may say more."""

    model: str | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: object = None

    @property
    def text(self) -> str:
        """The reply's words, or the look-ups it asks for, as `_tool_calls` reads them."""
        message = self.choices[0].message
        if message.tool_calls:
            return orjson.dumps({"tool_calls": [call.model_dump() for call in message.tool_calls]}).decode()
        return message.content or message.refusal or ""

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason or ""


def _read_completion(content: bytes) -> _Completion:
    try:
        return _Completion.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _NoAnswer(f"no completion came, {place}: {first['msg']}"[:200]) from None


def _problem(recorded: str) -> str:
    """Why an answer that is recorded as it came is no completion."""
    try:
        _read_completion(recorded.encode())
    except _NoAnswer as error:
        return str(error)
    return "no completion came, it was no text in UTF-8"


def _tokens(usage: object, name: str, text: str) -> int:
    """What the server counted; where it told nothing of use, one for three characters, so that budgets hold."""
    told = usage.get(name) if isinstance(usage, dict) else None
    return told if type(told) is int and 0 <= told <= _MAX_TOKENS else len(text) // 3


def _tool_calls(reply: str) -> list[dict[str, Any]]:
    """The look-ups a recorded reply asks for; none when it is an answer."""
    if not reply.startswith('{"tool_calls":'):
        return []
    try:
        found = orjson.loads(reply)["tool_calls"]
        return [c for c in found if _is_tool_call(c)]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []


def _is_tool_call(found: object) -> bool:
    if not isinstance(found, dict) or not isinstance(function := found.get("function"), dict):
        return False
    return all(isinstance(text, str) for text in (found.get("id"), function.get("name"), function.get("arguments")))


def _retry_after_s(state: tenacity.RetryCallState, now_ms: int) -> float | None:
    """What the server asks for, as seconds or as a date (RFC 9110, 10.2.3); nonsense counts as nothing."""
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, openai.APIStatusError):
        return None
    told = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(told)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_ms / 1000)


class _Wait(tenacity.wait.wait_base):
    """As long as the server asks for; else longer each time, with jitter."""

    _backoff = tenacity.wait_exponential_jitter(initial=0.5, max=10, jitter=0.5)

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms

    def __call__(self, state: tenacity.RetryCallState) -> float:
        asked = _retry_after_s(state, self._now_ms())
        return asked if asked is not None else self._backoff(state)


class _NoTimeLeft(tenacity.stop.stop_base):
    """Give up at once when the server asks for more time than there is."""

    def __init__(self, until_ms: int, now_ms: Callable[[], int]) -> None:
        self._until_ms, self._now_ms = until_ms, now_ms

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        asked = _retry_after_s(state, self._now_ms())
        return asked is not None and self._now_ms() + asked * 1000 >= self._until_ms


def _ran_out(error: BaseException) -> bool:
    """Whether time ran out: the transport over aiohttp calls a refused connection a time-out too."""
    while error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, TimeoutError)


def _told(error: openai.OpenAIError) -> str:
    """What the server said, without request or headers: no key, no fact may reach a log by it."""
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    return type(error).__name__
