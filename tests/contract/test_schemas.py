"""The generated contracts: JSON Schema, AsyncAPI and Flink DDL say what the pydantic models say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import jsonschema
import pytest

from contracts import asyncapi, ddl, json_schema
from contracts.catalogue import EventType, event_types
from contracts.data import Data
from contracts.domain import known_domains
from contracts.topics import TOPICS

DOMAINS = known_domains()
SCHEMAS = json_schema.document(DOMAINS)
ASYNCAPI = asyncapi.document(DOMAINS)
EVENTS = {event.urn: event for domain in DOMAINS for event in event_types(domain)}
SCRIPTS = {domain: ddl.script(domain, "broker:9092") for domain in DOMAINS}

AT = "2013-12-02T20:15:00Z"
DIGEST = "0" * 64
INPUTS = {
    "trigger": "proposal", "proposal_partition": 0, "proposal_offset": 1, "proposal_sha256": DIGEST,
    "outcomes_offset": -1, "policies_offset": 3,
}  # fmt: skip
PROPOSED: dict[str, Any] = {
    "event_time": AT, "agent": "rule", "agent_version": 1, "action": "cool", "parameters": {"s": 1},
    "confidence": 0.9, "situation_type": "machines.hot", "features": {"a": 1.5, "b": None, "c": "x"},
}  # fmt: skip
EXAMPLES: dict[str, dict[str, Any]] = {
    "machine.temperature_measured": {"temperature": 73.5},
    "flyball.clock_ticked": {},
    "flyball.proposal": {
        **PROPOSED, "reason": "hot", "features_at": AT, "suspects": ["db", "shop"], "evidence": ["f1"],
        "reasoned": {
            "prompt_id": "triage", "prompt_version": 2, "prompt_sha256": DIGEST, "reply_sha256": DIGEST,
            "model": "small", "exchange_id": "c/0", "asked": 1, "tokens_in": 10, "tokens_out": 1, "cost": 0.5,
            "latency_ms": 1000,
        },
    },
    "flyball.decision": {
        **PROPOSED, "decided_at_event_time": AT, "verdict": "deny", "reason": "rate_limit",
        "explanation": "", "proposal_id": "p", "policy_set_digest": DIGEST, "counters": {"n": 1},
        "features_at": AT, "proposal_reason": "hot",
        "inputs": INPUTS,
        "entry": {"number": 2, "previous": DIGEST},
        "policies": [{"policy_id": "cooling", "version": 1, "verdict": "allow"}],
        "model": {"name": "m", "version": 1, "sha256": DIGEST},
    },
    "flyball.noted": {
        "event_time": AT, "what": "escalated", "explanation": "", "about": "d", "inputs": INPUTS,
        "entry": {"number": 3, "previous": DIGEST},
        "requires": [{"policy_id": "big", "version": 1, "roles": ["head"], "approvers": 2, "deadline": AT}],
    },
    "flyball.answer": {
        "person": "ada", "signed_at": AT, "signature": "A" * 86, "approval_id": "d",
        "action_digest": DIGEST, "answer": "approve", "reason": "fine",
    },
    "flyball.override": {
        "person": "ada", "signed_at": AT, "signature": "A" * 86, "action": "cool", "parameters": {},
        "reason": "smoke", "break_glass": True,
    },
    "flyball.claim": {
        "claim_id": "c", "command_id": None, "subject": "m1", "agent": "rule", "action": "cool", "at": AT,
        "limits": [{"policy": "p@1", "scope": "[]", "max_count": 1, "within_s": 60}],
        "circuit": {"failures": 1, "within_s": 60, "open_s": 60},
    },
    "flyball.settlement": {"claim_id": "c", "what": "failed", "at": AT, "cost": 1.5},
    "flyball.grant": {"claim_id": "c", "is_granted": False, "reason": "circuit_open", "counters": {"n": 1}},
    "flyball.circuit_moved": {
        "agent": "rule", "action": "cool", "before": "closed", "after": "open", "because": "3 failures",
        "claim_id": "c", "at": AT,
    },
    "flyball.person": {"person": "ada", "roles": ["approver"], "may": ["override"], "public_key": "A" * 43},
    "flyball.command": {
        "event_time": AT, "command_id": "c", "action": "cool", "parameters": {}, "agent": "rule",
        "decision_id": "d", "proposal_id": "p", "reason": "hot",
    },
    "flyball.outcome": {"event_time": AT, "command_id": "c", "action": "cool", "status": "failed"},
    "flyball.policy": {
        "policy_id": "cooling", "version": 1, "status": "active", "when": "true", "verdict": "allow",
        "reason": "harmless", "limits": [{"max_count": 1, "within_s": 60}],
        "examples": [{"given": {"confidence": 0.5}, "expect": "error"}],
    },
    "flyball.switch": {"paused": True, "agent": "rule"},
    "flyball.model": {
        "alias": "health", "version": 1, "sha256": DIGEST, "artefact_base64": "AAAA",
        "inputs": ["a"], "output": "output", "trained_on": "x",
    },
    "flyball.prompt": {
        "prompt_id": "triage", "version": 2, "model": "small", "text": "You are on call.", "sha256": DIGEST,
    },
    "flyball.exchange": {
        "call_id": "c", "turn": 0, "kind": "model", "agent": "triage", "agent_version": 1, "situation_id": "s",
        "name": "small", "prompt_id": "triage", "prompt_version": 2, "request": "[]", "request_sha256": DIGEST,
        "reply": "{}", "reply_sha256": DIGEST, "finish_reason": "stop", "tokens_in": 10, "tokens_out": 1,
        "cost": 0.5, "started_at": AT, "latency_ms": 1000,
    },
    "flyball.concluded": {
        "call_id": "c", "agent": "triage", "agent_version": 1, "situation_id": "s", "how": "fell_back",
        "why": "budget", "explanation": "tokens of this minute", "by": "careful-rule", "latency_ms": 3,
    },
    "flyball.audit_head": {
        "number": 2, "sealed_from": AT, "sealed_at": AT, "ends": {"0": 7, "3": 1}, "entries": 8, "subjects": 5,
        "changed": [{"subject": "m1", "number": 3, "sha256": DIGEST, "partition": 0, "offset": 6}],
        "root": DIGEST, "previous": DIGEST, "key": "A" * 43, "signature": "A" * 86,
    },
    "flyball.dead_letter": {
        "cause": "not_json", "message": "m", "stage": "context", "topic": "machines.facts",
        "partition": 0, "offset": 1, "value_base64": None,
        "attempts": [{"failed_at": AT, "error": "ConnectionRefusedError: no"}],
    },
    "flyball.redriven": {
        "refused_sha256": DIGEST, "attempt": 1, "is_edited": False, "topic": "machines.facts", "partition": 0,
        "offset": 7, "sha256": DIGEST,
    },
    "flyball.late_fact": {
        "event_time": AT, "fact_id": "f", "fact_type": "t.u", "topic": "machines.facts",
        "partition": 0, "offset": 1, "watermark": "2013-12-02 21:00:00.000",
    },
}  # fmt: skip


def urn_of(kind: str) -> str:
    """The dataschema of a type as it is now."""
    return next((urn for urn, each in EVENTS.items() if (each.domain, each.name) == ("machines", kind)), f"urn:flyball:machines:{kind}:1")


def event(kind: str, data: object, **changes: object) -> dict[str, object]:
    envelope = {
        "specversion": "1.0", "id": "1", "source": "/x", "type": kind, "subject": "m1", "time": AT,
        "datacontenttype": "application/json", "dataschema": urn_of(kind), "hops": 0,
    }  # fmt: skip
    return {**envelope, "data": data, **changes}


def is_valid(kind: str, candidate: object) -> bool:
    schema = SCHEMAS[urn_of(kind)]
    return bool(jsonschema.Draft202012Validator(schema).is_valid(candidate))


def fits_model(kind: str, data: object) -> bool:
    model = EVENTS[urn_of(kind)].data
    try:
        model.model_validate_json(json.dumps(data))
    except ValueError:
        return False
    return True


# --- JSON Schema ---------------------------------------------------------------------------------


def test_every_domain_is_found_when_its_contract_lists_facts() -> None:
    assert "machines" in DOMAINS
    assert not {"data", "domain", "envelope", "fact", "outcome"} & set(DOMAINS)


@pytest.mark.parametrize("urn", SCHEMAS)
def test_a_schema_is_2020_12_and_named_by_its_urn_when_generated(urn: str) -> None:
    schema = SCHEMAS[urn]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert (schema["$schema"], schema["$id"]) == (json_schema.DIALECT, urn)
    assert set(schema["$defs"]["data"]["properties"]) == set(EVENTS[urn].data.model_fields)


def test_every_event_type_of_flyball_has_an_example_when_counted() -> None:
    own = {found.name for found in EVENTS.values() if found.name.startswith("flyball.")}
    assert own == {kind for kind in EXAMPLES if kind.startswith("flyball.")}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_fits_both_schema_and_model_when_it_is_right(kind: str) -> None:
    assert is_valid(kind, event(kind, EXAMPLES[kind]))
    assert fits_model(kind, EXAMPLES[kind])


@pytest.mark.parametrize("kind", EXAMPLES)
def test_schema_and_model_agree_when_a_field_is_missing_or_of_another_type(kind: str) -> None:
    data = EXAMPLES[kind]
    for name in data:
        without = {key: value for key, value in data.items() if key != name}
        candidates = [without, *({**data, name: other} for other in (None, 1, 1.5, "", "x", True, [], {}))]
        for candidate in candidates:
            assert is_valid(kind, event(kind, candidate)) == fits_model(kind, candidate), candidate


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_unknown_field_of_data_is_refused_when_checked(kind: str) -> None:
    candidate = {**EXAMPLES[kind], "unknown": 1}
    assert not is_valid(kind, event(kind, candidate))
    assert not fits_model(kind, candidate)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"myextension": "x"}, True),
        ({"myextension": 5}, True),
        ({"correlationid": None, "dataschema": None, "hops": None}, True),
        ({"myextension": 1.5}, False),
        ({"myextension": 2**31}, False),
        ({"myextension": {}}, False),
        ({"my_extension": "x"}, False),
        ({"myExtension": "x"}, False),
        ({"data_base64": "e30="}, False),
        ({"specversion": "0.3"}, False),
        ({"id": ""}, False),
        ({"subject": None}, False),
        ({"type": "flyball.command"}, False),
        ({"dataschema": "urn:flyball:machines:machine.temperature_measured:2"}, False),
        ({"datacontenttype": "text/xml"}, False),
        ({"hops": -1}, False),
    ],
)
def test_an_envelope_is_judged_by_the_schema_when_an_attribute_changes(
    changes: dict[str, object], expected: bool
) -> None:
    kind = "machine.temperature_measured"
    assert is_valid(kind, event(kind, {"temperature": 1.0}, **changes)) == expected


# --- AsyncAPI ------------------------------------------------------------------------------------


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = ASYNCAPI
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def test_every_reference_resolves_when_asyncapi_is_generated() -> None:
    found = set(references(ASYNCAPI))
    assert len(found) > 20
    for reference in found:
        assert resolve(reference) is not None


def test_the_document_has_what_asyncapi_3_requires_when_generated() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(ASYNCAPI["info"])
    assert set(ASYNCAPI) <= {
        "asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components",
    }  # fmt: skip
    for section in ASYNCAPI["components"].values():
        assert all(re.fullmatch(r"[A-Za-z0-9.\-_]+", key) for key in section)


def test_every_topic_is_a_channel_as_the_table_says_when_generated() -> None:
    assert set(ASYNCAPI["channels"]) == {row.of(domain) for domain in DOMAINS for row in TOPICS}
    for domain in DOMAINS:
        for row in TOPICS:
            channel = ASYNCAPI["channels"][row.of(domain)]
            kafka = channel["bindings"]["kafka"]
            assert (channel["address"], kafka["partitions"]) == (row.of(domain), row.partitions)
            assert kafka["topicConfiguration"]["retention.ms"] == row.retention_ms
            assert kafka["topicConfiguration"]["cleanup.policy"] == [row.cleanup]
            carried = {found.name for found in event_types(domain) if found.topic == row.name}
            assert set(channel["messages"]) == carried


def test_an_operation_names_messages_of_its_own_channel_when_generated() -> None:
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert len(operation["messages"]) == len(resolve(channel)["messages"])
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")


def test_only_govern_sends_commands_when_operations_are_listed() -> None:
    senders = [
        name for name, found in ASYNCAPI["operations"].items()
        if found["action"] == "send" and found["channel"]["$ref"] == "#/channels/machines.commands"
    ]  # fmt: skip
    assert senders == ["machines.govern.send.commands"]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_message_payload_judges_as_the_json_schema_when_played(kind: str) -> None:
    found = EVENTS[urn_of(kind)]
    name = f"machines.{found.topic}.{kind}.{found.data.schema_version}"
    payload = {**ASYNCAPI["components"]["messages"][name]["payload"], "components": ASYNCAPI["components"]}
    validator = jsonschema.Draft7Validator(payload)
    assert validator.is_valid(event(kind, EXAMPLES[kind]))
    assert not validator.is_valid(event(kind, {**EXAMPLES[kind], "unknown": 1}))
    assert not validator.is_valid(event("other.type", EXAMPLES[kind]))
    assert not validator.is_valid(event(kind, EXAMPLES[kind], my_extension=1))


def test_schemas_keep_to_draft_07_when_asyncapi_takes_it_for_default() -> None:
    text = json.dumps(ASYNCAPI)
    for newer in ("$defs", "prefixItems", "unevaluatedProperties", "$dynamicRef", "dependentRequired"):
        assert f'"{newer}"' not in text


# --- Flink DDL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_topic_is_a_table_and_every_type_a_view_when_ddl_is_generated(domain: str) -> None:
    script = SCRIPTS[domain]
    assert re.findall(r"^CREATE TABLE `(\w+)`", script, re.M) == [
        row.name.replace("-", "_") for row in TOPICS
    ]
    views = re.findall(r"^CREATE VIEW `(\w+)`", script, re.M)
    assert views == [re.sub(r"[.-]", "_", found.name) for found in event_types(domain)]
    assert script.index(f"USE `{domain}`") < script.index("CREATE TABLE")


@pytest.mark.parametrize("urn", EVENTS)
def test_a_view_has_a_column_for_every_field_when_generated(urn: str) -> None:
    view = ddl.event_view(EVENTS[urn])
    columns = re.findall(r"'\$\.(\w+)'", view)
    assert columns == list(EVENTS[urn].data.model_fields)
    assert f"WHERE `type` = '{EVENTS[urn].name}'" in view


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_query_ends_and_sees_only_committed_records_when_a_topic_is_read(domain: str) -> None:
    tables = SCRIPTS[domain].count("CREATE TABLE")
    for option in (
        "'scan.bounded.mode' = 'latest-offset'",
        "'scan.startup.mode' = 'earliest-offset'",
        "'properties.isolation.level' = 'read_committed'",
        "'value.json.ignore-parse-errors' = 'true'",
        "'properties.bootstrap.servers' = 'broker:9092'",
    ):
        assert SCRIPTS[domain].count(option) == tables


class Everything(Data):
    """It's a type with a field of each kind; and some named like the envelope."""

    event_type: ClassVar[str] = "x.everything"

    id: str
    hops: int
    data_id: float
    flag: bool
    text: str | None
    number: int | None
    names: tuple[str, ...]
    table: dict[str, str]
    mixed: str | int


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("data_data_id", "JSON_VALUE(`data`, '$.id')"),
        ("data_hops", "TRY_CAST(JSON_VALUE(`data`, '$.hops') AS BIGINT)"),
        ("data_id", "JSON_VALUE(`data`, '$.data_id' RETURNING DOUBLE)"),
        ("flag", "JSON_VALUE(`data`, '$.flag' RETURNING BOOLEAN)"),
        ("text", "JSON_VALUE(`data`, '$.text')"),
        ("number", "TRY_CAST(JSON_VALUE(`data`, '$.number') AS BIGINT)"),
        ("names", "JSON_QUERY(`data`, '$.names')"),
        ("table", "JSON_QUERY(`data`, '$.table')"),
        ("mixed", "JSON_QUERY(`data`, '$.mixed')"),
    ],
)
def test_a_field_is_unpacked_by_its_type_when_a_view_is_made(name: str, expression: str) -> None:
    view = ddl.event_view(EventType("machines", "facts", Everything))
    assert f"{expression} AS `{name}`" in view
    assert "COMMENT 'It''s a type" in view
