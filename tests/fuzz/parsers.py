"""Every parser of what comes from outside, with good inputs to begin from: used whole, or refused on purpose.

Each takes bytes. What it may raise is FlyballError: the declared refusals.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from contracts.approval import Answer, Override, Person
from contracts.domain import load_domain
from contracts.envelope import check_event, parse_json, parse_time_ms
from contracts.exchange import Exchange
from contracts.model import ModelAlias
from contracts.topics import topic
from jobs.settings import ROOT, Settings, load_settings
from ops import (
    approvals,
    audit,
    dead_letters,
    kafka,
    model_rules,
    models,
    people,
    player,
    policies,
    policy_tests,
    prompt_tests,
    redrive,
    trace,
    watch,
)
from ops.commanded import Commanded
from ops.world import Done, NewFact, load_world
from tests.asking import CONTRACT as INCIDENTS
from tests.asking import agent, replied, symptom
from tests.kafka_stand_in import StandInBroker, StandInConsumer
from udfs.agents.core import Agents
from udfs.agents.definition import SqlTool, load_agents
from udfs.agents.flink import read_alias
from udfs.agents.onnx_model import load_model
from udfs.policy import heads, policy_book, policy_file
from udfs.policy.audit import Line
from udfs.policy.audit import read as read_line
from udfs.policy.cel import eval_condition
from udfs.policy.reading import Reader
from udfs.policy.signing import public_text, sign, to_sign
from udfs.reason import converse
from udfs.reason.masking import Mask
from udfs.reason.outputs import read_prompt_event
from udfs.reason.prompt import read_prompt_file
from udfs.reason.recorded import digest, read_exchange
from udfs.reason.reply import read_reply
from udfs.reason.tools import prepare
from udfs.serde import FactReader, dead_letter
from udfs.signed_facts import ProducerKey, SignatureCheck, load_producers, sign_fact
from udfs.wide_limits.flink import read_limits_event
from udfs.yaml_file import read_yaml

MACHINES = load_domain("machines")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NOW_MS = parse_time_ms("2026-01-01T00:00:00Z")
AT = "2014-04-01T00:00:00Z"
VARIABLES = MACHINES.policy_variables()
FOLDER = Path(tempfile.mkdtemp(prefix="flyball-fuzz-"))


@dataclass(frozen=True)
class Parser:
    """`is_json`: its inputs are JSON, so that a tree of values can be changed and not only bytes."""

    name: str
    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    is_json: bool = False


def event(kind: str, data: object, subject: str = "m1", **more: object) -> bytes:
    return json.dumps(
        {"specversion": "1.0", "id": "e1", "source": "/t", "type": kind, "subject": subject, "time": AT, **more, "data": data}
    ).encode()


def key_of(value: bytes) -> bytes | None:
    """The key that the record would have to have."""
    try:
        return str(orjson.loads(value)["subject"]).encode()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return b"m1"


def file_of(value: bytes, name: str = "input") -> Path:
    path = FOLDER / name
    path.write_bytes(value)
    return path


def text(value: bytes) -> str:
    """As a file is read; what is no UTF-8 never gets so far."""
    return value.decode("utf-8", errors="replace")


# --------------------------------------------------------------------------------------- records

FACT = event("machine.temperature_measured", {"temperature": 20.5}, traceparent="00-1-2-03", hops=1)
SIGNED = sign_fact(FACT, key=KEY, key_id="meters", audience="machines.facts", now_ms=NOW_MS)
OUTCOME = event("flyball.outcome", {"event_time": AT, "command_id": "c", "action": "activate_cooling", "status": "failed", "detail": "d", "cost": 1.5})
PROPOSAL = event(
    "flyball.proposal",
    {"event_time": AT, "agent": "a", "agent_version": 1, "action": "activate_cooling", "parameters": {"duration_s": 60},
     "confidence": 0.9, "reason": "r", "situation_type": "machines.reading_scored", "features": {"step": 1.5}, "features_at": AT},
    hops=0, expirytime="2014-05-01T00:00:00Z",
)  # fmt: skip
SITUATION = event("machines.cooling_failed", {"event_time": AT, "command_id": "c", "detail": "d"}, hops=0)
COMMAND = event(
    "flyball.command",
    {"event_time": AT, "command_id": "c", "action": "activate_cooling", "parameters": {"duration_s": 60}, "agent": "a", "decision_id": "d",
     "proposal_id": "p", "reason": "", "obligations": {"dry_run": True}},
    hops=0, expirytime="2014-05-01T00:00:00Z",
)  # fmt: skip
POLICY = event(
    "flyball.policy",
    {"policy_id": "cooling", "version": 9, "status": "active", "when": "confidence >= 0.8 && parameter_duration_s < 60",
     "verdict": "allow", "reason": "r", "variables": {"confidence": "double", "parameter_duration_s": "int"},
     "limits": [{"max_count": 1, "within_s": 60}]},
)  # fmt: skip
SWITCH = event("flyball.switch", {"paused": True, "agent": None, "action": "activate_cooling", "subject": None, "reason": "", "author": "a"})
ADA = Person(person="ada", roles=("approver",), may=("override",), public_key=public_text(KEY))
PERSON = event("flyball.person", ADA.model_dump(mode="json"))


def said(kind: str, data: dict[str, Any]) -> bytes:
    whole = {"person": "ada", "signed_at": AT, **data}
    return event(kind, {**whole, "signature": sign(KEY, to_sign("machines", "m1", kind, whole))})


ANSWER = said(Answer.event_type, {"approval_id": "p", "action_digest": "0" * 64, "answer": "edit", "parameters": {"duration_s": 60}, "reason": "r"})
OVERRIDE = said(Override.event_type, {"action": "activate_cooling", "parameters": {"duration_s": 60}, "reason": "r", "break_glass": False})
ALIAS = event(
    "flyball.model",
    {"alias": "health", "version": 1, "status": "active", "format": "onnx", "sha256": "0" * 64, "artefact_base64": "AAAA", "inputs": ["jump"],
     "output": "confidence", "trained_on": "", "metrics": {"auc": 0.9}},
)  # fmt: skip
PROMPT = event(
    "flyball.prompt",
    {"prompt_id": "triage", "version": 1, "model": "m", "reply_schema": "proposal", "text": "You.", "sha256": digest("You.")},
)
EXCHANGE = event(
    "flyball.exchange",
    {"call_id": "c", "turn": 0, "kind": "model", "agent": "a", "agent_version": 1, "situation_id": "s", "name": "m", "request": "[]",
     "request_sha256": "0" * 64, "reply": "{}", "reply_sha256": "0" * 64, "started_at": AT, "latency_ms": 5, "cost": 0.5},
)  # fmt: skip
CONCLUDED = event("flyball.concluded", {"call_id": "c", "agent": "a", "agent_version": 1, "situation_id": "s", "how": "proposed", "turn": 0})
CLAIM = event(
    "flyball.claim",
    {"claim_id": "c", "command_id": "d", "subject": "m1", "agent": "a", "action": "x", "at": AT, "limits":
     [{"policy": "p@1", "scope": '["count","p"]', "max_count": 1, "within_s": 60}], "circuit": None, "outcome_within_s": 60},
    subject="limits",
)  # fmt: skip
SETTLEMENT = event("flyball.settlement", {"claim_id": "c", "what": "succeeded", "at": AT, "cost": 1.5}, subject="limits")
GRANT = event("flyball.grant", {"claim_id": "c", "is_granted": False, "reason": "rate_limit", "explanation": "", "counters": {"x": 1}})
HEAD = event(
    "flyball.audit_head",
    {"number": 1, "sealed_at": AT, "ends": {"0": 5}, "entries": 5, "subjects": 1, "changed":
     [{"subject": "m1", "number": 1, "sha256": "0" * 64, "partition": 0, "offset": 4}], "root": "0" * 64, "key": public_text(KEY), "signature": "A" * 86},
    subject="1",
)  # fmt: skip
DECISION = event("flyball.decision", {"event_time": AT, "entry": {"number": 1, "previous": None}})

FACTS = FactReader(MACHINES, max_ahead_ms=3_600_000)
SIGNED_FACTS = FactReader(
    MACHINES, max_ahead_ms=3_600_000,
    signatures=SignatureCheck(
        "machines", [ProducerKey(key_id="meters", producer="m", public_key=public_text(KEY), types=("machine.temperature_measured",))],
        mode="required", max_age_ms=86_400_000,
    ),
)  # fmt: skip
READER = Reader(MACHINES)
AGENTS = Agents(MACHINES, load_agents(load_settings("machines").agents_file, MACHINES))
TOOL = SqlTool(kind="sql", name="ledger", description="d", database="a.sqlite", query="SELECT 1", arguments={"node": "[a-z]{1,20}"})
REPLYING, ABOUT = agent(), symptom()


def command(value: bytes) -> object:
    found = Commanded.read(value)
    return found.outcome(found.without_handler(1.0) or Done("succeeded", "done"), "machines")


def head(value: bytes) -> object:
    try:
        return heads.read_head(Line(0, 0, key_of(value), value), domain="machines", public_key=public_text(KEY))
    except heads.BadHead:
        return None


def reply(value: bytes) -> object:
    return read_reply(text(value), REPLYING, INCIDENTS, ABOUT, Mask.of(ABOUT, INCIDENTS.personal_fields))


# ------------------------------------------------------------------- what commands read of topics

LETTER = dead_letter(
    domain="machines", stage="context", cause="not_json", message="m", topic="machines.facts", partition=0, offset=3, key=b"m1", value=b"{nope", now_ms=NOW_MS,
)[1]  # fmt: skip
_LETTER = json.loads(LETTER)
_REFUSED = hashlib.sha256(b"{nope").hexdigest()
REDRIVEN = event(
    "flyball.redriven",
    {"refused_sha256": _REFUSED, "attempt": 1, "is_edited": False, "topic": "machines.facts", "partition": 0, "offset": 7, "sha256": _REFUSED},
    subject=_LETTER["subject"], causationid=_LETTER["id"],
)  # fmt: skip
DECIDED = event(
    "flyball.decision",
    {"event_time": AT, "verdict": "allow", "reason": "allowed_by_policy", "explanation": "x", "action": "activate_cooling", "parameters":
     {"transaction_id": "t"}, "command_id": "c", "reasoned": {"model": "m"}, "fallback": "f"},
    correlationid="e1", causationid="e1", hops=0,
)  # fmt: skip
CAUSED = tuple(each.replace(b'"e1"', b'"e2", "correlationid": "e1"', 1) for each in (FACT, OUTCOME, COMMAND, PROPOSAL, DECIDED))
WORLDS = [load_world(domain) for domain in ("machines", "payments", "loans", "incidents")]


def records_of(names: tuple[str, ...], *values: bytes) -> list[kafka.Record]:
    """The values, in each of these topics."""
    return [kafka.Record(topic(name).of("machines"), 0, at, 1, None, value) for name in names for at, value in enumerate(values)]


def _keyed(decision: Mapping[str, Any]) -> str | None:
    """What any world waits for."""
    return next((key for world in WORLDS if (key := world.decision_key(decision)) is not None), None)


def watched(value: bytes) -> object:
    with patch.object(kafka, "consumer", lambda *_, **__: StandInConsumer(StandInBroker())):
        found = watch.Watch(
            "nowhere:1", "machines", is_committed=False, from_beginning=True,
            decision_key=_keyed,
        )  # fmt: skip
    for record in records_of(watch._WATCHED, FACT, value, value):
        found._take(record)
    found._decided("t", None, True)
    return str(found.seen)


def traced(value: bytes) -> object:
    """`trace` of a known chain, shown and as JSON, whatever else is in the topics."""
    with patch.object(kafka, "read_all", lambda *_: iter(records_of(trace.CHAIN, value, FACT))):
        chain = trace.find_chain("nowhere:1", "machines", "e1")
    assert [link for link in chain if link.noun == "fact"], "the known fact is in its chain"
    told = trace.tree_data(chain)
    Console(file=io.StringIO(), width=100).print(trace.as_tree(told))
    return json.dumps(told)


def lettered(value: bytes) -> object:
    """`dead-letters list` and `show`."""
    found = dead_letters.histories("machines", records_of(("dead-letters",), LETTER, value, REDRIVEN, value), lambda _: "there")
    assert _LETTER["id"] in [each.letter.id for each in found], "the known letter is listed"
    for history in found:
        dead_letters.chain(found, history)
    return json.dumps([dead_letters.told(history, lambda _: True, with_value=True) for history in found])


def completion(value: bytes) -> object:
    """A model server's answer as it is recorded, and the look-ups it asks for."""
    asked: Any = SimpleNamespace(model="m", agent=REPLYING, prices=(1.0, 2.0))
    told = converse._answered(value, "[]", asked)
    exchange = Exchange.model_validate({**json.loads(EXCHANGE)["data"], **told})
    exchange.model_dump_json()
    if exchange.finish_reason == converse._NO_COMPLETION:
        return converse._problem(exchange.reply).encode()
    return converse._tool_calls(exchange.reply)


# ----------------------------------------------------------------------------------------- files


def onnx(value: bytes) -> object:
    card = json.loads(_conf("machines/models/machine-health.json"))
    return load_model(
        ModelAlias(
            alias="health", version=1, status="active", format="onnx", sha256=hashlib.sha256(value).hexdigest(),
            artefact_base64=base64.b64encode(value).decode(), inputs=tuple(card["inputs"]), output=card["output"], trained_on="", metrics={},
        )
    )  # fmt: skip


@cache
def _checked_policies() -> Any:
    return policies.check_files("machines", policies.policy_files("machines"))


def policy_table(value: bytes) -> object:
    checked = _checked_policies()
    with patch.object(policies, "check_files", lambda *_: checked):
        return policy_tests.run("machines", file_of(value))


def environment(value: bytes) -> object:
    """`NAME=VALUE` as the process gets it; without a name: the value for every setting."""
    name, equals, rest = value.replace(b"\x00", b"").decode("utf-8", errors="surrogateescape").rpartition("=")
    given = {name: rest} if equals else {f"FLYBALL_{field.upper()}": rest for field in Settings.model_fields}
    with patch.dict(os.environ, {name: rest for name, rest in given.items() if name.startswith("FLYBALL_")}):
        return load_settings("machines")


def model_card(value: bytes) -> object:
    file_of((ROOT / "conf/machines/models/machine-health.onnx").read_bytes(), "card.onnx")
    return models.read_model(file_of(value, "card.json"))


def read_settings(value: bytes) -> object:
    found = read_yaml(file_of(value))
    given = {name: value for name, value in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}
    given.pop("domain", None)
    return load_settings("machines", **given)


@cache
def _world(domain: str) -> Any:
    return load_world(domain)


def facts_of(domain: str, *, is_graph: bool = False) -> Callable[[bytes], object]:
    """A file as `emit` publishes it, and each of its facts as `context` reads it."""
    contract = load_domain(domain)
    reader = FactReader(contract, max_ahead_ms=3_600_000)

    def read(value: bytes) -> object:
        world = _world(domain)
        if is_graph:
            first = file_of(b"ts,node,metric,statistic,value\n2014-04-01T00:00:00Z,front,latency,Average,1.5\n", "first.csv")
            items = player.read_file(first, world, subject=None, max_ahead_ms=3_600_000)
            items = player.with_references(items, file_of(value, "graph.csv"), world, subject=None)
        else:
            items = player.read_file(file_of(value, "facts.csv"), world, subject=None, max_ahead_ms=3_600_000)
        emitter = player.Emitter(contract, None, file_name="f")  # type: ignore[arg-type]
        found = []
        for item in items:
            if isinstance(item, NewFact):
                written = emitter.encode(item)
                try:
                    found.append(reader.read(item.subject.encode(), written, NOW_MS))
                except player.BadInput as refused:
                    found.append(refused.code)
        return found

    return read


# ---------------------------------------------------------------------------------- command line


def evaluate(value: bytes) -> object:
    """`policy eval --when LINE --vars REST`."""
    when, _, given = value.partition(b"\n")
    variables = parse_json(given)
    return eval_condition(text(when), variables) if isinstance(variables, dict) else None


def edit(value: bytes) -> object:
    """`edit --set LINE --set LINE`, signed and ready to be sent."""
    parameters = approvals.typed("machines", "activate_cooling", text(value).split("\n"))
    request = approvals.Request({"id": "p", "subject": "m1", "data": {"approval": {"action_digest": "0" * 64}}}, [])
    return approvals.answer_event("machines", request, "ada", KEY, "edit", parameters=parameters, now_ms=NOW_MS)


def period(value: bytes) -> object:
    first, _, last = text(value).partition(" ")
    return audit.read_period(first, last)


CSV = b"timestamp,value\n2014-04-01T00:00:00Z,73.5\n2014-04-01T00:05:00Z,74.5\n2014-04-01 00:10:00,75\n"
JSONL = b'{"timestamp": "2014-04-01T00:00:00Z", "value": 1.5}\n' + FACT + b'\n{"type": "machine.temperature_measured", "subject": "m1", "time": "2014-04-01T00:00:00Z", "data": {"temperature": 1}}\n'
PRODUCERS = f'keys:\n  - {{key_id: m, producer: p, public_key: {public_text(KEY)}, types: [machine.temperature_measured], not_after: "{AT}"}}\n'.encode()
PROMPT_FILE = b"---\nprompt_id: remedy\nversion: 3\nmodel: small\nschema: proposal\n---\nYou keep services well.\n"
POLICY_FILE = (ROOT / "conf/machines/policies/cooling.yaml").read_bytes()
RULES = (ROOT / "conf/incidents/model_rules.yaml").read_bytes()


def _conf(path: str) -> bytes:
    return (ROOT / "conf" / path).read_bytes()


TOOL_CALLS = b'{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "ledger", "arguments": "{\\"node\\": \\"front\\"}"}}]}'.replace(b'": [', b'":[', 1)
COMPLETIONS = tuple(
    json.dumps({"model": "m", "choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}}).encode()
    for message in ({"content": "{}"}, {"content": None, **json.loads(TOOL_CALLS)})
)
POLICY_TABLE = b"""defaults: {subject: m, agent: heat-rule, action: activate_cooling, situation: machines.reading_scored, features: {readings_seen: 5000}}
people: {ada: {roles: [approver]}}
cases:
  - case: a
    given: [{parameters: {duration_s: 1800}}, {at: 60, outcome_of: 0, status: failed}]
    expect: [{verdict: allow, matched: [cooling]}]
"""


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("fact", lambda v: FACTS.read(key_of(v), v, NOW_MS, "machines.facts"), (FACT, OUTCOME), True),
        Parser("signed fact", lambda v: SIGNED_FACTS.read(key_of(v), v, NOW_MS, "machines.facts"), (SIGNED,), True),
        Parser("check-event", check_event, (FACT, b"[" + FACT + b"]"), True),
        Parser("outcome", lambda v: READER.outcome(key_of(v), v), (OUTCOME,), True),
        Parser("situation in govern", lambda v: READER.situation(key_of(v), v), (SITUATION,), True),
        Parser("situation", lambda v: list(AGENTS.propose(AGENTS.read(key_of(v), v), {})), (SITUATION,), True),
        Parser("proposal", lambda v: READER.proposal(key_of(v), v), (PROPOSAL,), True),
        Parser("approval", lambda v: READER.word(key_of(v), v, {"ada": ADA}), (ANSWER, OVERRIDE), True),
        Parser("policy event", lambda v: policy_book.read_policy_event(v, VARIABLES), (POLICY, SWITCH, PERSON), True),
        Parser("model event", read_alias, (ALIAS,), True),
        Parser("prompt event", read_prompt_event, (PROMPT,), True),
        Parser("exchange", read_exchange, (EXCHANGE, CONCLUDED), True),
        Parser("limits", lambda v: read_limits_event(key_of(v), v), (CLAIM, SETTLEMENT, GRANT), True),
        Parser("command", command, (COMMAND,), True),
        Parser("audit head", head, (HEAD,), True),
        Parser("chain", lambda v: read_line(Line(0, 0, key_of(v), v)), (DECISION,), True),
        Parser("reply", reply, (replied().encode(), replied(action="abstain", parameters={}).encode()), True),
        Parser("tool arguments", lambda v: prepare(TOOL, text(v)), (b'{"node": "front"}',), True),
        Parser("watcher", watched, (FACT, OUTCOME, DECIDED, COMMAND, LETTER, REDRIVEN), True),
        Parser("trace", traced, CAUSED, True),
        Parser("dead letters", lettered, (LETTER, REDRIVEN), True),
        Parser("corrected lines", lambda v: redrive.corrected_lines(v.splitlines()), (b'{"id": "a", "value": ' + FACT + b'}\n{"id": "b", "value": "{}"}',)),
        Parser("completion", completion, COMPLETIONS, True),
        Parser("tool calls", lambda v: converse._tool_calls(text(v)), (TOOL_CALLS,), True),
        Parser("model", onnx, (_conf("machines/models/machine-health.onnx"),)),
        Parser("policies_test.yaml", policy_table, (POLICY_TABLE, _conf("machines/policies_test.yaml"))),
        Parser("FLYBALL_*", environment, (b"FLYBALL_MAX_HOPS=6", b"FLYBALL_SEAL_EVERY_S=1.5", b"FLYBALL_MODELS_URL=http://127.0.0.1:1/v1", b"1")),
        Parser("model card", model_card, (_conf("machines/models/machine-health.json"),), True),
        Parser("policy file", lambda v: policy_file.parse(text(v), VARIABLES), (POLICY_FILE,)),
        Parser("prompt file", lambda v: read_prompt_file(text(v), "p.md"), (PROMPT_FILE,)),
        Parser("agents.yaml", lambda v: load_agents(file_of(v), MACHINES), (_conf("machines/agents.yaml"),)),
        Parser("people.yaml", lambda v: people.read_people(file_of(v)), (_conf("machines/people.yaml"),)),
        Parser("producers.yaml", lambda v: load_producers(file_of(v), MACHINES), (PRODUCERS,)),
        Parser("domain.yaml", read_settings, (_conf("machines/domain.yaml"),)),
        Parser("model_rules.yaml", lambda v: model_rules.load_rules([file_of(v)]), (RULES,)),
        Parser("prompts_test.yaml", lambda v: prompt_tests.read_table(file_of(v)), (b"cases:\n  - {case: a, given: {}, reply: x, expect: {}}\n",)),
        Parser("machines CSV", facts_of("machines"), (CSV, JSONL)),
        Parser("payments CSV", facts_of("payments"), (b"ts,transaction_id,customer_id,terminal_id,amount,is_fraud\n2018-04-01 00:00:31,0,596,3156,57.16,0\n",)),
        Parser("loans CSV", facts_of("loans"), (b"case_id,activity,lifecycle,resource,ts,amount\n173688,A_SUBMITTED,COMPLETE,112,2011-10-01T00:38:44Z,20000\n",)),
        Parser("incidents CSV", facts_of("incidents"), (b"ts,node,metric,statistic,value\n2014-04-01T00:00:00Z,front,latency,Average,1.5\n",)),
        Parser("graph CSV", facts_of("incidents", is_graph=True), (b"from_node,to_node\nfront,db\ndb,disk\n",)),
        Parser("policy eval", evaluate, (b'confidence >= 0.8 && feature_x in [1.5, 2.5]\n{"confidence": 0.9, "feature_x": 1.5}',)),
        Parser("edit --set", edit, (b"duration_s=60",)),
        Parser("--from --to", period, (f"{AT} {AT}".encode(),)),
    )
}  # fmt: skip
