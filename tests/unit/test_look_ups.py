"""Look-ups: only what is declared, only reading, within bounds, and nothing private in an error."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from contracts.errors import ToolRefused
from tests.asking import agent
from udfs.agents.definition import HttpTool, SqlTool
from udfs.reason.masking import Mask
from udfs.reason.tools import HttpRequest, find_tool, prepare, run_http, run_sql, select, tool_schemas

QUERY = "SELECT status, count(*) AS n FROM commands WHERE node = :node GROUP BY status ORDER BY status"


def sql(query: str = QUERY, **changes: Any) -> SqlTool:
    told = {"kind": "sql", "name": "ledger", "description": "what was done", "database": "run/ledger.sqlite",
            "query": query, "arguments": {"node": "[a-z0-9'; -]{1,40}"}, **changes}  # fmt: skip
    return SqlTool.model_validate(told)


def http(url: str = "http://catalogue.internal/v1/{node}/owners?of={node}", **changes: Any) -> HttpTool:
    told = {"kind": "http", "name": "owners", "description": "who owns a node", "url": url, "arguments": {"node": ".{1,40}"}, **changes}
    return HttpTool.model_validate(told)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    connection = sqlite3.connect(tmp_path / "run" / "ledger.sqlite")
    connection.execute("CREATE TABLE commands (node TEXT, status TEXT, secret BLOB)")
    connection.executemany("INSERT INTO commands VALUES (?, ?, x'00ff')", [("db", "succeeded")] * 3 + [("db", "failed"), ("web", "failed")])
    connection.execute("CREATE VIEW failures AS SELECT node, status FROM commands WHERE status = 'failed'")
    connection.commit()
    connection.close()
    return tmp_path


def found(home: Path, tool: SqlTool, node: str = "db") -> dict[str, Any]:
    request = prepare(tool, json.dumps({"node": node} if tool.arguments else {}))
    assert not isinstance(request, HttpRequest)
    told: dict[str, Any] = json.loads(select(request, home))
    return told


def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(ToolRefused) as refused:
        call()
    return refused.value.code, str(refused.value)


def test_rows_come_when_a_query_is_asked(home: Path) -> None:
    assert found(home, sql()) == {"rows": [{"status": "failed", "n": 1}, {"status": "succeeded", "n": 3}], "is_cut": False}
    assert found(home, sql("SELECT node FROM failures", arguments={}))["rows"] == [{"node": "db"}, {"node": "web"}]
    assert found(home, sql("SELECT secret FROM commands LIMIT 1", arguments={}))["rows"] == [{"secret": "00ff"}]


def test_rows_are_cut_when_there_are_too_many(home: Path) -> None:
    assert found(home, sql("SELECT node FROM commands", arguments={}, max_rows=2)) == {"rows": [{"node": "db"}] * 2, "is_cut": True}
    wide = found(home, sql(f"SELECT {'hex(' * 14}node{')' * 14} AS x FROM commands", arguments={}))
    assert wide["is_cut"]
    assert len(json.dumps(wide)) <= 65_536


def test_an_argument_is_data_when_it_looks_like_sql(home: Path) -> None:
    assert found(home, sql(), node="db' or 1; --")["rows"] == []


@pytest.mark.parametrize(
    "query",
    [
        "SELECT load_extension('x')",
        "SELECT * FROM pragma_database_list",
        "SELECT writefile('x', 'y')",
        "SELECT zeroblob(1000000000)",
        "SELECT 1 FROM no_such_table",
        "SELECT printf('%.1000000000c', 'x')",
    ],
)
def test_only_reading_passes_when_a_query_does_more(home: Path, query: str) -> None:
    assert code_of(lambda: found(home, sql(query, arguments={})))[0] == "tool_failed"


@pytest.mark.parametrize(
    "statement", ["DELETE FROM commands", "ATTACH 'x' AS y", "PRAGMA writable_schema=1", "INSERT INTO commands VALUES (1,2,3)"]
)
def test_a_statement_that_writes_is_refused_by_the_connection_too(home: Path, statement: str) -> None:
    """The contract takes one SELECT only; even so the connection could do no other."""
    tool = sql(arguments={}).model_copy(update={"query": statement})
    before = (home / "run" / "ledger.sqlite").read_bytes()
    assert code_of(lambda: found(home, tool))[0] == "tool_failed"
    assert (home / "run" / "ledger.sqlite").read_bytes() == before


def test_a_query_ends_when_its_time_is_over(home: Path) -> None:
    endless = "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)"
    assert code_of(lambda: found(home, sql(endless, arguments={}, timeout_s=0.2)))[0] == "tool_timeout"


def test_a_database_is_below_the_home_or_none(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "ledger.sqlite"
    elsewhere.write_bytes((home / "run" / "ledger.sqlite").read_bytes())
    (home / "run" / "link.sqlite").symlink_to(elsewhere)
    for database in ("run/link.sqlite", "run/none.sqlite"):
        assert code_of(lambda d=database: found(home, sql(database=d)))[0] == "tool_failed"
    assert not (home / "run" / "none.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("{", "not_json"), ("[]", "wrong_arguments"), ("null", "wrong_arguments"), ("{}", "wrong_arguments"),
        ('{"node": "db", "more": "x"}', "wrong_arguments"), ('{"node": "DROP TABLE"}', "wrong_arguments"),
        ('{"node": null}', "wrong_arguments"), ('{"node": ["db"]}', "wrong_arguments"), ('{"node": "db\\n"}', "wrong_arguments"),
        ('{"node": "\\ud800"}', "wrong_arguments"), ("[" * 100_000, "not_json"),
    ],
)  # fmt: skip
def test_arguments_are_refused_when_they_are_not_the_declared(arguments: str, code: str) -> None:
    got, message = code_of(lambda: prepare(sql(), arguments))
    assert got == code
    assert "DROP" not in message


def test_arguments_are_encoded_when_they_stand_in_a_url() -> None:
    request = prepare(http(), json.dumps({"node": "a/b?c=d&e#f ü"}))
    assert isinstance(request, HttpRequest)
    assert request.url == "http://catalogue.internal/v1/a%2Fb%3Fc%3Dd%26e%23f%20%C3%BC/owners?of=a%2Fb%3Fc%3Dd%26e%23f%20%C3%BC"


@pytest.mark.parametrize("value", ["../../admin", "@evil.org/", "//evil.org", "\\evil.org", "http://evil.org", "a\r\nHost: evil.org", "%2e%2e"])
def test_an_argument_changes_neither_host_nor_path(value: str) -> None:
    request = prepare(http(arguments={"node": "(?s).{1,40}"}), json.dumps({"node": value}))
    assert isinstance(request, HttpRequest)
    assert request.url.startswith("http://catalogue.internal/v1/")
    assert request.url.split("?")[0].count("/") == 5


@pytest.mark.parametrize("value", [".", ".."])
def test_a_step_up_the_path_is_refused(value: str) -> None:
    assert code_of(lambda: prepare(http(), json.dumps({"node": value})))[0] == "wrong_arguments"


def test_a_url_that_names_unknown_arguments_is_refused() -> None:
    assert code_of(lambda: prepare(http("http://h/{other}"), '{"node": "x"}'))[0] == "wrong_tool"


def test_a_masked_value_is_looked_up_as_what_it_is() -> None:
    mask = Mask({"person": 'Zoë "Z" O\'Hara'})
    request = prepare(http("http://h/{node}"), json.dumps({"node": mask.hide('Zoë "Z" O\'Hara')}), mask)
    assert isinstance(request, HttpRequest)
    assert request.url == "http://h/Zo%C3%AB%20%22Z%22%20O%27Hara"
    assert code_of(lambda: prepare(sql(), json.dumps({"node": mask.hide('Zoë "Z" O\'Hara')}), mask))[0] == "wrong_arguments"


def test_an_undeclared_tool_is_refused() -> None:
    by = agent(tools=[sql().model_dump()])
    assert find_tool(by, "ledger").name == "ledger"
    assert code_of(lambda: find_tool(by, "shell"))[0] == "undeclared_tool"


def test_the_server_is_told_of_each_tool_in_strict_form() -> None:
    (schema,) = tool_schemas(agent(tools=[sql().model_dump()]))
    function = schema["function"]
    assert (schema["type"], function["name"], function["strict"]) == ("function", "ledger", True)
    assert function["parameters"]["required"] == ["node"]
    assert function["parameters"]["additionalProperties"] is False


@asynccontextmanager
async def site() -> AsyncIterator[tuple[str, list[str]]]:
    """A host of owners, its address, and the requests that came."""
    came: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        came.append(f"{request.method} {request.raw_path}")
        match request.match_info["how"]:
            case "big":
                return web.Response(text="x" * 100_000)
            case "moved":
                raise web.HTTPFound("/ok")
            case "slow":
                await asyncio.sleep(30)
            case "broken":
                return web.Response(status=500, text="the secret cause")
        return web.json_response({"owner": "team-db"})

    app = web.Application()
    app.router.add_route("*", "/{how}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address: Any = next(iter(runner.addresses))
    try:
        yield f"http://127.0.0.1:{address[1]}", came
    finally:
        await runner.cleanup()


def asked(how: str, **changes: Any) -> tuple[str, list[str]]:
    """What a GET of /<how> gave, or the refusal's code and message; and the requests that came."""

    async def run() -> tuple[str, list[str]]:
        async with site() as (base, came):
            request = prepare(http(base + "/{node}", **{"arguments": {"node": "[a-z]+"}, **changes}), json.dumps({"node": how}))
            assert isinstance(request, HttpRequest)
            try:
                return await run_http(request), came
            except ToolRefused as refused:
                return f"{refused.code}: {refused}", came

    return asyncio.run(run())


def test_an_answer_comes_by_get() -> None:
    assert asked("ok") == ('{"owner": "team-db"}', ["GET /ok"])


def test_an_answer_is_cut_when_it_is_too_long() -> None:
    assert asked("big", max_bytes=100)[0] == "x" * 100


def test_a_redirect_is_not_followed() -> None:
    told, came = asked("moved")
    assert told == "tool_failed: tool 'owners': expected HTTP 200, came 302"
    assert came == ["GET /moved"]


def test_an_error_tells_its_status_and_nothing_of_its_body() -> None:
    assert asked("broken")[0] == "tool_failed: tool 'owners': expected HTTP 200, came 500"


def test_a_look_up_ends_when_its_time_is_over() -> None:
    assert asked("slow", timeout_s=0.2)[0] == "tool_timeout: tool 'owners': no answer within 0.2 s"


def test_an_error_holds_no_argument_when_nobody_answers() -> None:
    request = prepare(http("http://127.0.0.1:9/{node}"), '{"node": "private-name"}')
    assert isinstance(request, HttpRequest)
    code, message = code_of(lambda: asyncio.run(run_http(request)))
    assert code == "tool_failed"
    assert "private-name" not in message


def test_a_query_runs_beside_the_loop_when_awaited(home: Path) -> None:
    request = prepare(sql(), '{"node": "web"}')
    assert not isinstance(request, HttpRequest)
    assert json.loads(asyncio.run(run_sql(request, home)))["rows"] == [{"status": "failed", "n": 1}]
