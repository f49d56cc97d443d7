"""An OpenAI-compatible model server for tests and the demo: HTTP for real, replies by script, faults by dice.

The dice are a hash of seed, request bytes and how often these bytes came, so a run repeats itself. Tokens
are counted as four bytes of UTF-8 each, rounded up: of all messages' texts in, of the reply's text out.

    POST /v1/chat/completions   GET /v1/models   GET /health   GET /stats   POST /control (a Behaviour's fields)

It listens on this machine only and asks for no key.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contracts.errors import SetupFailed
from jobs.settings import load_settings
from ops.home import Home
from ops.model_rules import Answer, Rule, answer, content_text, load_rules, read_request

HOST: Final = "127.0.0.1"
MAX_BODY: Final = 4 * 1024 * 1024
HANG_S: Final = 3600.0
BYTES_A_TOKEN: Final = 4
CHUNK_CHARACTERS: Final = 24


class Behaviour(BaseModel):
    """How the server answers. Rates are shares of requests, 0 to 1; together they are at most 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_ms: float = Field(default=1000, ge=0, description="from the request to its answer")
    jitter_ms: float = Field(default=0, ge=0, description="added or taken off, evenly")
    error_rate: float = Field(default=0, ge=0, le=1, description="answered 500, 502 or 503, after the latency")
    malformed_rate: float = Field(default=0, ge=0, le=1, description="replies that do not fit")
    rate_limit_rate: float = Field(default=0, ge=0, le=1, description="answered 429 at once")
    retry_after_s: float = Field(default=1, ge=0, description="Retry-After of a 429")
    hang_rate: float = Field(default=0, ge=0, le=1, description="never answered")
    seed: int = 1

    @model_validator(mode="after")
    def _shares(self) -> Behaviour:
        if self.error_rate + self.malformed_rate + self.rate_limit_rate + self.hang_rate > 1 + 1e-9:
            raise ValueError("expected error, malformed, rate-limit and hang rates of together at most 1")
        return self


class _Dice:
    """Numbers of [0, 1) that depend on what is thrown for, and on nothing else."""

    def __init__(self, seed: int, digest: bytes, attempt: int) -> None:
        self._base = f"{seed}/{attempt}/".encode() + digest

    def throw(self, what: str) -> float:
        return int.from_bytes(hashlib.blake2b(self._base + what.encode(), digest_size=7).digest(), "big") / 2**56


class ModelServer:
    """One server. `start` and `stop` belong to one event loop; `behaviour` may change while it runs.

    State: what it counts, and per distinct request a digest and how often it came, for as long as it runs.
    """

    def __init__(self, behaviour: Behaviour, rules: Sequence[Rule] = (), *, log: BinaryIO | None = None) -> None:
        self.behaviour = behaviour
        self.port = 0
        self._rules = tuple(rules)
        self._log = log
        self._counts: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._by_rule: Counter[str] = Counter()
        self._attempts: dict[bytes, int] = {}
        self._answered: set[bytes] = set()
        self._in_flight = 0
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """What `OPENAI_BASE_URL` is to be."""
        return f"http://{HOST}:{self.port}/v1"

    async def start(self, port: int = 0) -> None:
        """Listen; 0 chooses a port. Raises SetupFailed when the port is taken."""
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes([
            web.post("/v1/chat/completions", self._complete),
            web.get("/v1/models", self._models),
            web.get("/health", self._health),
            web.get("/stats", self._stats),
            web.post("/control", self._control),
        ])  # fmt: skip
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port, backlog=1024).start()
        except OSError as error:
            await runner.cleanup()
            raise SetupFailed(f"--port: expected a free port, {port} is taken ({error.strerror})") from None
        self._runner = runner
        address: Any = next(iter(runner.addresses))
        self.port = address[1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def stats(self) -> dict[str, Any]:
        """What came and what was answered since the start.

        `repeated`: requests whose bytes had come before; `paid_again`: replies to bytes that had been
        answered before; `cancelled`: the client left before its answer.
        """
        names = ("requests", "cancelled", "malformed", "hung", "streamed", "tool_calls", "repeated", "paid_again",
                 "tokens_in", "tokens_out", "in_flight_max")  # fmt: skip
        return {
            **{name: self._counts[name] for name in names},
            "in_flight": self._in_flight,
            "distinct": len(self._attempts),
            "by_status": dict(sorted(self._statuses.items())),
            "by_rule": dict(sorted(self._by_rule.items())),
        }

    # ---------------------------------------------------------------------------------- endpoints

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _stats(self, request: web.Request) -> web.Response:
        return _json(self.stats())

    async def _models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [{"id": "scripted", "object": "model", "created": 0, "owned_by": "flyball"}]})

    async def _control(self, request: web.Request) -> web.Response:
        """Change how it behaves from the next request on; gives what is in force."""
        if request.content_type != "application/json":  # so that no web page can
            return _error(415, "expected application/json")
        try:
            wanted = orjson.loads(await request.read())
            self.behaviour = Behaviour.model_validate({**self.behaviour.model_dump(), **wanted})
        except (orjson.JSONDecodeError, TypeError, ValidationError) as error:
            return _error(400, str(error)[:500])
        return _json(self.behaviour.model_dump())

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        came_at = time.monotonic()
        self._counts["requests"] += 1
        self._in_flight += 1
        self._counts["in_flight_max"] = max(self._counts["in_flight_max"], self._in_flight)
        told: dict[str, Any] = {"at_ms": int(time.time() * 1000)}
        try:
            return await self._answer(request, came_at, told)
        except (asyncio.CancelledError, ConnectionResetError):
            self._counts["cancelled"] += 1
            told["is_cancelled"] = True
            raise
        finally:
            self._in_flight -= 1
            if self._log is not None:
                told["seconds"] = round(time.monotonic() - came_at, 3)
                self._log.write(orjson.dumps(told) + b"\n")
                self._log.flush()

    async def _answer(self, request: web.Request, came_at: float, told: dict[str, Any]) -> web.StreamResponse:
        raw = await request.read()
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        attempt = self._attempts[digest] = self._attempts.get(digest, 0) + 1
        self._counts["repeated"] += attempt > 1
        told |= {"request": digest.hex(), "attempt": attempt, "body": raw.decode("utf-8", "replace")}
        behaviour = self.behaviour
        dice = _Dice(behaviour.seed, digest, attempt)
        try:
            body = orjson.loads(raw)
            asked = read_request(body)
        except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError):
            return self._failed(400, "expected a chat completion as JSON", told)
        fault = _fault(behaviour, dice.throw("fault"))
        if fault == "rate_limit":
            return self._failed(429, "rate limit reached", told, {"Retry-After": f"{behaviour.retry_after_s:g}"})
        if fault == "hang":
            self._counts["hung"] += 1
            await asyncio.sleep(HANG_S)
        wait_s = (behaviour.latency_ms + (2 * dice.throw("jitter") - 1) * behaviour.jitter_ms) / 1000
        if (left := wait_s - (time.monotonic() - came_at)) > 0:
            await asyncio.sleep(left)
        if fault == "error":
            return self._failed((500, 502, 503)[int(dice.throw("status") * 3)], "the model is not well", told)
        made = answer(asked, self._rules)
        self._by_rule[made.rule] += 1
        told["rule"] = made.rule
        if made.status != 200:
            return self._failed(made.status, f"by the rule {made.rule}", told)
        text = made.text
        if fault == "malformed" and made.tool is None:
            self._counts["malformed"] += 1
            text = spoilt(text, dice.throw("spoil"))
        return await self._completion(request, body, made, text, digest, attempt, told)

    def _failed(
        self, status: int, message: str, told: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> web.Response:
        self._statuses[str(status)] += 1
        told["status"] = status
        return _error(status, message, headers)

    async def _completion(
        self, request: web.Request, body: Mapping[str, Any], made: Answer, text: str, digest: bytes,
        attempt: int, told: dict[str, Any],
    ) -> web.StreamResponse:  # fmt: skip
        calls: list[dict[str, Any]] = []
        if made.tool is not None:
            name, arguments = made.tool
            calls = [{"id": f"call_{digest.hex()}", "type": "function", "function": {"name": name, "arguments": arguments}}]
            self._counts["tool_calls"] += 1
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        finish = "tool_calls" if calls else "stop"
        if isinstance(limit, int) and tokens(text) > limit:
            text, finish = text.encode()[: limit * BYTES_A_TOKEN].decode("utf-8", "ignore"), "length"
        tokens_in = sum(tokens(content_text(m.get("content"))) for m in body["messages"])
        tokens_out = tokens(text + "".join(c["function"]["arguments"] for c in calls))
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        common = {"id": f"chatcmpl-{digest.hex()}-{attempt}", "created": int(time.time()), "model": str(body.get("model"))}
        told |= {"status": 200, "reply": text, "tool": made.tool}
        if body.get("stream"):
            response = await self._stream(request, body, common, text, calls, finish, usage)
        else:
            message = {"role": "assistant", "content": None if calls else text, **({"tool_calls": calls} if calls else {})}
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            response = _json({**common, "object": "chat.completion", "choices": [choice], "usage": usage})
        self._statuses["200"] += 1
        self._counts["tokens_in"] += tokens_in
        self._counts["tokens_out"] += tokens_out
        self._counts["paid_again"] += digest in self._answered
        self._answered.add(digest)
        return response

    async def _stream(
        self, request: web.Request, body: Mapping[str, Any], common: Mapping[str, Any], text: str,
        calls: Sequence[Mapping[str, Any]], finish: str, usage: Mapping[str, int],
    ) -> web.StreamResponse:  # fmt: skip
        self._counts["streamed"] += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)

        async def send(delta: dict[str, Any] | None, ends: str | None = None, **more: Any) -> None:
            choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": ends}]
            chunk = {**common, "object": "chat.completion.chunk", "choices": choices, **more}
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")

        await send({"role": "assistant", "content": None if calls else ""})
        if calls:
            await send({"tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]})
        else:
            for at in range(0, len(text), CHUNK_CHARACTERS):
                await send({"content": text[at : at + CHUNK_CHARACTERS]})
        await send({}, finish)
        if (body.get("stream_options") or {}).get("include_usage"):
            await send(None, usage=usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def tokens(text: str) -> int:
    """How many tokens the server says a text has: one for four bytes of UTF-8, rounded up."""
    return -(-len(text.encode()) // BYTES_A_TOKEN)


def _fault(behaviour: Behaviour, thrown: float) -> str:
    for name, share in (
        ("hang", behaviour.hang_rate), ("rate_limit", behaviour.rate_limit_rate),
        ("error", behaviour.error_rate), ("malformed", behaviour.malformed_rate),
    ):  # fmt: skip
        if thrown < share:
            return name
        thrown -= share
    return ""


def spoilt(text: str, thrown: float) -> str:
    """One of the ways in which replies go wrong."""
    try:
        reply = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text[: len(text) // 2]
    ways: tuple[Callable[[], str], ...] = (
        lambda: text[: max(1, len(text) // 2)],
        lambda: "Certainly! Here is what I would do: restart everything.",
        lambda: _dumped({**reply, "action": "do_as_i_say"}),
        lambda: _dumped({**reply, "evidence": [*reply.get("evidence", ()), "an-event-that-never-was"]}),
        lambda: _dumped({**reply, "subject": "somebody-else"}),
        lambda: _dumped({**reply, "parameters": {"for": reply.get("action"), "everything": True}}),
        lambda: _dumped({**reply, "confidence": 7}),
    )
    return ways[int(thrown * len(ways))]()


def _dumped(value: object) -> str:
    return orjson.dumps(value).decode()


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json", headers=headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    kind = {429: "rate_limit_error", 400: "invalid_request_error"}.get(status, "server_error")
    return _json({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, headers)


def serve(
    behaviour: Behaviour, rules: Sequence[Rule], *, port: int, log: Path | None, ready: Callable[[ModelServer], None]
) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM; gives the stats. `ready` is called when it listens."""

    async def run() -> dict[str, Any]:
        stream = log.open("ab") if log is not None else None
        server = ModelServer(behaviour, rules, log=stream)
        ended = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, ended.set)
        try:
            await server.start(port)
            ready(server)
            await ended.wait()
        finally:
            await server.stop()
            if stream is not None:
                stream.close()
        return server.stats()

    return asyncio.run(run())


@contextmanager
def running(behaviour: Behaviour, rules: Sequence[Rule] = (), *, port: int = 0, log: Path | None = None) -> Iterator[ModelServer]:
    """A server on a thread of its own, for as long as the block lasts."""
    started: Future[tuple[ModelServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stream = log.open("ab") if log is not None else None
        server, ended = ModelServer(behaviour, rules, log=stream), asyncio.Event()
        try:
            await server.start(port)
            started.set_result((server, asyncio.get_running_loop(), ended))
            await ended.wait()
        except SetupFailed as error:
            started.set_exception(error)
        finally:
            await server.stop()
            if stream is not None:
                stream.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="model-server", daemon=True)
    thread.start()
    server, loop, ended = started.result(timeout=30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(timeout=30)


def main() -> None:
    """The embedded instance's own server for a domain (ops/supervisor.py).

    It has the domain's script (conf/<domain>/model_rules.yaml) and behaves as FLYBALL_MODEL_SERVER says:
    a YAML mapping of Behaviour's fields, for instance `{error_rate: 0.5}`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("domain")
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    home = Home.default()
    try:
        told = YAML(typ="safe").load(os.environ.get("FLYBALL_MODEL_SERVER", "{}"))
        behaviour = Behaviour.model_validate(told or {})
    except (YAMLError, ValidationError) as error:
        raise SystemExit(f"FLYBALL_MODEL_SERVER: expected a YAML mapping of {', '.join(Behaviour.model_fields)}: {error}") from None
    script = load_settings(asked.domain).conf_dir / "model_rules.yaml"
    rules = load_rules([script] if script.exists() else [])
    ready = home.run / "model_servers" / f"{asked.domain}.ready"
    serve(behaviour, rules, port=asked.port, log=None, ready=lambda _: ready.touch())


if __name__ == "__main__":
    main()
