"""What `reason` reads and writes beside the calls: prompt events, proposals, replies that do not fit. Pure."""

from __future__ import annotations

from dataclasses import replace

import orjson
from pydantic import ValidationError

from contracts.data import current
from contracts.dead_letter import Cause
from contracts.domain import DomainContract
from contracts.envelope import format_time_ms
from contracts.errors import BadInput
from contracts.exchange import Concluded, Exchange
from contracts.prompt import Prompt
from udfs.agents.core import Situation, cel_types, write_proposal
from udfs.agents.definition import LlmAgent
from udfs.policy.cel import Condition
from udfs.reason.masking import Mask
from udfs.reason.prompt import without_format
from udfs.reason.recorded import STAGE, digest
from udfs.reason.reply import Reply, read_reply
from udfs.reason.spans import child_of, parent_of


def cel_condition(agent: LlmAgent, contract: DomainContract) -> Condition | None:
    """The agent's `when` over its situation's features."""
    if agent.when is None:
        return None
    return Condition.compile(agent.when, cel_types(contract.situations[agent.situation]))


def read_prompt_event(value: bytes) -> Prompt:
    """The prompt in a record of the prompts topic. Raises BadInput with a dead-letter cause."""
    if not value:
        raise BadInput(Cause.EMPTY, "expected a prompt event, came an empty record")
    try:
        event = orjson.loads(value)
        if not isinstance(event, dict) or event.get("type") != Prompt.event_type:
            raise BadInput(Cause.UNKNOWN_TYPE, f"expected type {Prompt.event_type!r}")
        prompt = Prompt.model_validate_json(orjson.dumps(current(Prompt, {"data": None, **event})))
    except orjson.JSONDecodeError as error:
        raise BadInput(Cause.NOT_JSON, f"expected a prompt event as JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadInput(Cause.DATA_INVALID, f"{first['loc']}: {first['msg']}") from None
    except orjson.JSONEncodeError as error:  # nested too deeply
        raise BadInput(Cause.DATA_INVALID, f"expected a prompt event: {error}") from None
    if digest(prompt.text) != prompt.sha256:
        raise BadInput(Cause.DATA_INVALID, f"prompt {prompt.prompt_id!r}: the text does not have the digest {prompt.sha256}")
    return prompt


def proposal_of(
    contract: DomainContract, agent: LlmAgent, situation: Situation, concluded: Concluded, exchange: Exchange,
    expiry_ms: int | None, reply: Reply | None = None,
) -> tuple[str, bytes]:  # fmt: skip
    """Key and value of the proposal a recorded reply is; the same bytes whenever it is made again.

    `reply`: what the exchange says, where it was read already. Where a cheaper model spoke, it tells why (`fallback`). Raises ReplyRefused when the reply does not fit the agent as it
    is declared now.
    """
    if reply is None:
        mask = Mask.of(situation, contract.personal_fields)
        looked_up = [f"{exchange.call_id}/{turn}" for turn in range(exchange.turn - exchange.turn % 100, exchange.turn)]
        reply = read_reply(exchange.reply, without_format(agent), contract, situation, mask, looked_up)
    assert reply.action is not None
    told: dict[str, object] = {
        "reasoned": {
            "prompt_id": exchange.prompt_id, "prompt_version": exchange.prompt_version,
            "prompt_sha256": exchange.request_sha256, "reply_sha256": exchange.reply_sha256, "model": exchange.name,
            "exchange_id": f"{exchange.call_id}/{exchange.turn}", "asked": max(1, concluded.asked),
            "tokens_in": concluded.tokens_in, "tokens_out": concluded.tokens_out, "cost": concluded.cost,
            "latency_ms": concluded.latency_ms,
        },
        "evidence": reply.evidence,
    }  # fmt: skip
    if concluded.why:
        told["fallback"] = f"{agent.agent}: {concluded.explanation}"[:300]
    parent = parent_of(situation.traceparent, situation.correlation_id)
    situation = replace(situation, traceparent=child_of(parent, f"{exchange.call_id}/{exchange.turn}"))
    return write_proposal(
        contract.name, situation, stage=STAGE, agent=agent.agent, agent_version=agent.version, action=reply.action,
        parameters=reply.parameters, confidence=reply.confidence, reason=reply.reason,
        expiry=None if expiry_ms is None else format_time_ms(expiry_ms), told=told,
    )  # fmt: skip


def not_fitting(told: str) -> BadInput:
    """A dead letter's cause for a reply that no asking again made fit."""
    return BadInput(Cause.REPLY_REFUSED, told)
