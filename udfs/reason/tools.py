"""Look-ups a model may ask for: checked against what the agent declares, then made, read-only."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from contracts.errors import ToolRefused
from udfs.agents.definition import HttpTool, LlmAgent, SqlTool
from udfs.reason.masking import Mask

MAX_ARGUMENT = 1000
MAX_ANSWER = 65_536
_HOLE = re.compile(r"\{([a-z][a-z0-9_\-]*)\}")
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
# What reaches outside, and what makes much out of nothing faster than its time limit is looked at.
_FUNCTIONS_REFUSED = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "randomblob", "zeroblob", "printf", "format"}
_OPCODES_A_CHECK = 1000
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "flyball"}


@dataclass(frozen=True)
class HttpRequest:
    """A GET that may be made. `url` is complete and on the configured host."""

    tool: HttpTool
    url: str


@dataclass(frozen=True)
class SqlRequest:
    """A SELECT that may be made, with its bound arguments."""

    tool: SqlTool
    arguments: Mapping[str, str]


def tool_schemas(agent: LlmAgent) -> list[dict[str, Any]]:
    """`tools` of a chat completion: one function a look-up, every argument a text."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {
                        name: {"type": "string", "description": f"matches {pattern}"}
                        for name, pattern in tool.arguments.items()
                    },
                    "required": list(tool.arguments),
                    "additionalProperties": False,
                },
            },
        }
        for tool in agent.tools
    ]


def find_tool(agent: LlmAgent, name: str) -> HttpTool | SqlTool:
    """The declared tool `name`. Raises ToolRefused for any other."""
    for tool in agent.tools:
        if tool.name == name:
            return tool
    known = ", ".join(tool.name for tool in agent.tools) or "none"
    raise ToolRefused("undeclared_tool", f"expected a tool of {known}; came {name[:64]!r}")


def prepare(tool: HttpTool | SqlTool, arguments: str, mask: Mask | None = None) -> HttpRequest | SqlRequest:
    """The look-up a model asked for, `arguments` being the JSON it wrote. Raises ToolRefused.

    With a mask, personal values are put back in each argument: look-ups are ours, and not the model's server's.
    Each argument fully matches its declared pattern; an argument's value is never part of an error.
    """
    given = _arguments(tool, arguments, mask)
    if isinstance(tool, SqlTool):
        return SqlRequest(tool, given)
    template = tool.url
    if unknown := set(_HOLE.findall(template)) - set(tool.arguments):
        raise ToolRefused("wrong_tool", f"tool {tool.name!r}: its url names arguments it does not declare: {sorted(unknown)}")
    url = _HOLE.sub(lambda hole: quote(given[hole[1]], safe=""), template)
    try:
        asked, base = httpx.URL(url), httpx.URL(_HOLE.sub("x", template))
    except httpx.InvalidURL:
        raise ToolRefused("wrong_arguments", f"tool {tool.name!r}: its arguments make no URL") from None
    if (asked.scheme, asked.host, asked.port, asked.userinfo) != (base.scheme, base.host, base.port, base.userinfo):
        raise ToolRefused("wrong_arguments", f"tool {tool.name!r}: an argument would change the host")
    if asked.raw_path.count(b"/") != base.raw_path.count(b"/") or _has_dots(asked) != _has_dots(base):
        raise ToolRefused("wrong_arguments", f"tool {tool.name!r}: an argument would change the path")
    return HttpRequest(tool, url)


def _has_dots(url: httpx.URL) -> bool:
    return any(part in (b".", b"..") for part in url.raw_path.split(b"?")[0].lower().replace(b"%2e", b".").split(b"/"))


def _arguments(tool: HttpTool | SqlTool, arguments: str, mask: Mask | None) -> dict[str, str]:
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        raise ToolRefused("not_json", f"tool {tool.name!r}: expected its arguments as a JSON object") from None
    if not isinstance(given, dict) or set(given) != set(tool.arguments):
        raise ToolRefused("wrong_arguments", f"tool {tool.name!r}: expected exactly the arguments {sorted(tool.arguments)}")
    found = {}
    for name, pattern in tool.arguments.items():
        value = given[name]
        if type(value) is int:
            value = str(value)
        if mask is not None:
            value = mask.restore(value)
        if not isinstance(value, str) or len(value) > MAX_ARGUMENT or not re.fullmatch(pattern, value):
            raise ToolRefused("wrong_arguments", f"tool {tool.name!r}: expected {name} to match {pattern}")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ToolRefused("wrong_arguments", f"tool {tool.name!r}: expected {name} to be text")
        found[name] = value
    return found


@cache
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


async def run_http(request: HttpRequest) -> str:
    """The body of the answer, cut at `max_bytes`. Raises ToolRefused; its message holds no argument.

    No redirects, no proxies or passwords from the environment, nothing compressed.
    """
    tool = request.tool
    try:
        async with (
            asyncio.timeout(tool.timeout_s),
            httpx.AsyncClient(follow_redirects=False, trust_env=False, verify=_trusted(), headers=_HEADERS) as client,
            client.stream("GET", request.url, timeout=tool.timeout_s) as answer,
        ):
            if answer.status_code != 200:
                raise ToolRefused("tool_failed", f"tool {tool.name!r}: expected HTTP 200, came {answer.status_code}")
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) >= tool.max_bytes:
                    break
            return bytes(body[: tool.max_bytes]).decode("utf-8", "ignore")
    except TimeoutError:
        raise ToolRefused("tool_timeout", f"tool {tool.name!r}: no answer within {tool.timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ToolRefused("tool_failed", f"tool {tool.name!r}: {type(error).__name__}") from None


async def run_sql(request: SqlRequest, home: Path) -> str:
    """The rows as JSON, on a thread of its own: `{"rows": [...], "is_cut": bool}`. Raises ToolRefused.

    The database is below `home`, opened read-only; nothing but reading passes, and not for longer than
    `timeout_s`.
    """
    try:
        async with asyncio.timeout(request.tool.timeout_s + 1):
            return await asyncio.to_thread(select, request, home)
    except TimeoutError:
        raise ToolRefused("tool_timeout", f"tool {request.tool.name!r}: no answer in time") from None


def select(request: SqlRequest, home: Path) -> str:
    """`run_sql` on this thread."""
    tool = request.tool
    path = (home / tool.database).resolve()
    if not path.is_relative_to(home.resolve()) or not path.is_file():
        raise ToolRefused("tool_failed", f"tool {tool.name!r}: expected a database {tool.database!r}, found none")
    ends = time.monotonic() + tool.timeout_s
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=tool.timeout_s)
    except sqlite3.Error as error:
        raise ToolRefused("tool_failed", f"tool {tool.name!r}: {type(error).__name__}") from None
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_progress_handler(lambda: time.monotonic() > ends, _OPCODES_A_CHECK)
        connection.set_authorizer(_only_reads)
        cursor = connection.execute(tool.query, dict(request.arguments))
        names = [column[0] for column in cursor.description or ()]
        rows = cursor.fetchmany(tool.max_rows + 1)
    except (sqlite3.Error, sqlite3.Warning) as error:
        if time.monotonic() > ends:
            raise ToolRefused("tool_timeout", f"tool {tool.name!r}: no answer within {tool.timeout_s:g} s") from None
        raise ToolRefused("tool_failed", f"tool {tool.name!r}: {type(error).__name__}") from None
    finally:
        connection.close()
    found = [dict(zip(names, map(_scalar, row), strict=True)) for row in rows[: tool.max_rows]]
    is_cut = len(rows) > tool.max_rows
    while len(text := json.dumps({"rows": found, "is_cut": is_cut}, ensure_ascii=False)) > MAX_ANSWER:
        is_cut = True
        found = found[: len(found) // 2]
    return text


def _only_reads(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action not in _READS or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS_REFUSED):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _scalar(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value
