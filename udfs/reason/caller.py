"""The thread that talks to models: an asyncio loop beside the operator, its results in a queue.

The operator never waits for it: it submits, and collects what is done at its next timer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai

from contracts.domain import DomainContract
from contracts.errors import BrokerUnavailable, SetupFailed, named
from contracts.exchange import Concluded
from udfs.reason.converse import NO_KEY, AnswerRefused, Question, Result, Taken, converse
from udfs.reason.desk import first_why
from udfs.reason.recorded import Exchanges, Recorded
from udfs.reason.spans import Spans

_log = logging.getLogger(__name__)
# The client's own default.
_HOSTED = "https://api.openai.com/v1"
# Many times the longest reply that is read (udfs/reason/converse.py), escaped and with all that a server says beside it.
_MAX_ANSWER_BYTES = 1_000_000


@dataclass(frozen=True)
class Settled:
    """A call's conclusion, recorded: now it may be written out. `last`: the reply it rests on, if any."""

    call_id: str
    concluded: Concluded
    last: Recorded | None
    result: Result | None = None


@dataclass(frozen=True)
class GaveUp:
    """A model gave no reply that fits; the call's next level is due."""

    result: Result


Back = Settled | GaveUp | BaseException


def client(base_url: str = "") -> openai.AsyncOpenAI:
    """The client of the server at `base_url`, or OPENAI_BASE_URL; its key from the environment only, OPENAI_API_KEY.

    Retries are ours (udfs/reason/converse.py). A server of one's own may need no key. Over aiohttp: the other
    transport looks at every open connection for each request, which at 500 in flight is most of its work. Redirects are not
    followed: a prompt goes where it was configured to go.
    """
    return openai.AsyncOpenAI(
        api_key=os.environ.get("OPENAI_API_KEY") or NO_KEY,
        base_url=base_url or os.environ.get("OPENAI_BASE_URL") or _HOSTED,  # an empty variable is none
        max_retries=0,
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=2000, max_keepalive_connections=500), follow_redirects=False,
            event_hooks={"response": [_bound]},
        ),
    )  # fmt: skip


async def _bound(answer: httpx2.Response) -> None:
    """Called with an answer whose body was not read yet. Raises AnswerRefused, then or while it is read.

    Of an error only status and headers are used, whatever its body is: that one is not read.
    """
    assert isinstance(answer.stream, httpx2.AsyncByteStream)
    if answer.status_code >= 400:
        answer.stream = _Unread(answer.stream)
        return
    if (encoding := answer.headers.get("content-encoding", "identity").lower()) != "identity":
        raise AnswerRefused(f"expected an answer that is not compressed, came one in {encoding[:20]!r}")
    answer.stream = _Bounded(answer.stream)


class _Unread(httpx2.AsyncByteStream):
    """Nothing of a body; closing it closes that one."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._body:
            size += len(chunk)
            if size > _MAX_ANSWER_BYTES:
                raise AnswerRefused(f"expected an answer of at most {_MAX_ANSWER_BYTES} bytes, came more")
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


class Caller:
    """Runs conversations and records conclusions. Ends with `close`, which cancels what is in flight."""

    def __init__(self, contract: DomainContract, exchanges: Exchanges, models_url: str) -> None:
        self._models_url = models_url
        self._contract = contract
        self._exchanges = exchanges
        self._spans = Spans(contract.name)
        self._back: dict[str, queue.SimpleQueue[Back]] = {}
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()
        if not self._is_up.wait(30):
            raise SetupFailed("the thread that calls models did not start within 30 s")

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        for name in ("openai", "httpx", "httpx2", "httpcore2"):  # a line for each request, a look-up's with its arguments
            logging.getLogger(name).setLevel(logging.WARNING)
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        async with client(self._models_url) as self._client:
            self._is_up.set()
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._spans.close()

    def ask(self, question: Question) -> None:
        """Have the question asked; `done` gives Settled or GaveUp for it."""
        self._start(question.agent.agent, self._ask(question))

    def conclude(self, concluded: Concluded, last: Recorded | None) -> None:
        """Have a conclusion recorded; `done` gives it as Settled."""
        self._start(concluded.agent, self._conclude(concluded, last))

    def done(self, agent: str) -> list[Back]:
        """What came back for the agent since the last time."""
        back = self._queue(agent)
        found: list[Back] = []
        while True:
            try:
                found.append(back.get_nowait())
            except queue.Empty:
                return found

    def _queue(self, agent: str) -> queue.SimpleQueue[Back]:
        return self._back.setdefault(agent, queue.SimpleQueue())

    def _start(self, agent: str, work: Coroutine[Any, Any, Back]) -> None:
        back = self._queue(agent)

        async def run() -> None:
            try:
                back.put(await work)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # the operator raises it: the job fails with this cause
                back.put(error)

        def begin() -> None:
            task = self._loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    async def _ask(self, question: Question) -> Back:
        try:
            result = await converse(question, self._client, self._exchanges, self._contract, self._spans)
        except BrokerUnavailable:
            raise  # the job fails and starts again: what cannot be recorded may not be used
        except Exception as error:
            # Unforeseen: failing the job would ask, and pay, the same again at each restart. The next one is asked instead.
            _log.error("call %s of %s: %s", question.call_id, question.agent.agent, named(error))
            taken = Taken()
            taken.assume(len(question.prompt.text) // 3, question.agent.max_tokens, question.prices)
            told = f"{question.model}: internal error, {named(error)}"
            return GaveUp(Result(question, taken, None, None, "failed", told))
        if result.reply is None:
            return GaveUp(result)
        if result.reply.action is None:
            how, why, told = "abstained", "abstained", result.reply.reason
        else:  # what stood in the way of the models before this one
            how, why, told = "proposed", first_why(question.troubles) if question.troubles else "", "; ".join(question.troubles)[:1000]
        assert result.last is not None
        taken = result.taken.with_before(question.before)
        concluded = Concluded(
            call_id=question.call_id, agent=question.agent.agent, agent_version=question.agent.version,
            situation_id=question.situation.id, how=how, why=why,  # type: ignore[arg-type]
            explanation=told, by=result.last.exchange.name,
            turn=result.last.exchange.turn, asked=taken.asked, tokens_in=taken.tokens_in, tokens_out=taken.tokens_out,
            cost=taken.cost, latency_ms=max(0, int(time.time() * 1000) - question.arrived_ms), starts=question.starts,
        )  # fmt: skip
        settled = await self._conclude(concluded, result.last)
        return replace(settled, result=result)

    async def _conclude(self, concluded: Concluded, last: Recorded | None) -> Settled:
        await self._exchanges.conclude(concluded)
        return Settled(concluded.call_id, concluded, last)

