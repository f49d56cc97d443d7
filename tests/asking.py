"""Builders for tests of agents that ask a language model: an agent, a situation, a reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from contracts.domain import DomainContract, load_domain
from contracts.prompt import Prompt
from udfs.agents.core import Situation, scalar_columns
from udfs.agents.definition import LlmAgent
from udfs.reason.prompt import read_prompt_file

CONTRACT: DomainContract = load_domain("incidents")
KIND = "incidents.symptom_found"
PROMPT: Prompt = read_prompt_file(
    "---\nprompt_id: remedy\nversion: 3\nmodel: small\nschema: proposal\n---\nYou keep services well.\n", "remedy.md"
)
FEATURES: dict[str, Any] = {
    "incident_id": "i-1", "node": "front", "metric": "latency", "statistic": "Average", "value": 2.5, "usual": 0.5,
    "deviation": 9.0, "suspect": "db", "suspect_signs": "latency", "deploy_id": "d-7", "deployed_by": "Ada Lovelace", "minutes_since_deploy": 4.0,
    "is_frozen": False, "remedies_tried": 0, "last_remedy": "", "alert_text": "front is slow",
}  # fmt: skip


def agent(**changes: Any) -> LlmAgent:
    told = {
        "kind": "llm", "agent": "remedy", "version": 1, "situation": KIND, "prompt": "remedy", "model": "small",
        "actions": ("restart_service", "roll_back"), **changes,
    }  # fmt: skip
    return LlmAgent.model_validate_json(json.dumps(told))


def symptom(*, suspects: tuple[str, ...] = ("db", "front"), evidence: tuple[str, ...] = ("f-1", "f-2"), **features: Any) -> Situation:
    unknown = set(features) - set(scalar_columns(CONTRACT.situations[KIND]))
    assert not unknown, unknown
    return Situation(
        "s-1", KIND, "shop", "2026-01-01T00:00:00Z", "f-1", 0, None, None, FEATURES | features, suspects, evidence
    )


def named(situation: Situation, **changes: Any) -> Situation:
    return replace(situation, **changes)


def replied(**changes: Any) -> str:
    """The text of a reply that fits, changed."""
    told = {
        "action": "restart_service", "parameters": {"for": "restart_service", "node": "db", "instances": 1},
        "confidence": 0.8, "reason": "db is slow", "evidence": ["s-1", "f-1"], **changes,
    }  # fmt: skip
    return json.dumps(told)


@asynccontextmanager
async def overheard(port: int) -> AsyncIterator[tuple[int, bytearray]]:
    """A wire to 127.0.0.1:`port` that keeps every byte a client sends: its own port, and the bytes."""
    heard = bytearray()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray | None) -> None:
            try:
                while piece := await source.read(65_536):
                    if kept is not None:
                        kept += piece
                    sink.write(piece)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        with suppress(asyncio.CancelledError):
            await asyncio.gather(pump(reader, inner_writer, heard), pump(inner_reader, writer, None))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()
