"""The audit over the topics themselves: verify the chains, tell one subject's story."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from contracts.topics import topic
from jobs.settings import load_settings
from ops import kafka
from ops.trace import CHAIN
from udfs.policy.audit import Audit, Line, audit


def lines(bootstrap_servers: str, domain: str) -> Iterator[Line]:
    """The domain's decisions as a read_committed reader sees them, partition by partition."""
    found = [
        Line(r.partition, r.offset, r.key, r.value)
        for r in kafka.read_all(bootstrap_servers, [topic("decisions").of(domain)])
    ]
    yield from sorted(found, key=lambda line: (line.partition, line.offset))


def verify(bootstrap_servers: str, domain: str) -> Audit:
    """Check every subject's chain. Repeats are superseded under at_least_once, bad otherwise."""
    delivery = load_settings(domain).delivery
    return audit(lines(bootstrap_servers, domain), allows_repeats=delivery == "at_least_once")


def told(found: Audit) -> dict[str, Any]:
    """The audit as `audit verify --json` prints it."""
    first = found.bad[0] if found.bad else None
    return {
        "ok": not found.bad,
        "entries": found.entries,
        "subjects": len(found.chains),
        "superseded": found.superseded,
        "bad": len(found.bad),
        "first_bad": first and {
            "partition": first.partition, "offset": first.offset, "subject": first.subject,
            "entry": first.entry, "what": first.what,
        },
    }  # fmt: skip


def story(bootstrap_servers: str, domain: str, subject: str) -> list[dict[str, Any]]:
    """Every event about `subject`, in the order of their event time and then of the loop."""
    topics = {topic(name).of(domain): n for n, name in enumerate(CHAIN)}
    found: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for record in kafka.read_all(bootstrap_servers, list(topics)):
        if record.key != subject.encode() or record.value is None:
            continue
        try:
            event = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            continue
        if isinstance(event, dict) and "id" in event:
            found[f"{record.topic}/{event['id']}"] = (str(event.get("time")), topics[record.topic], event)
    return [event for _, _, event in sorted(found.values(), key=lambda item: item[:2])]


def readable(events: list[dict[str, Any]]) -> Iterator[str]:
    """The decisions of a story and what came of them, a line each, for people."""
    for event in events:
        data, at = event.get("data") or {}, event.get("time")
        match event.get("type"):
            case "flyball.decision":
                by = ", ".join(f"{p['policy_id']}@{p['version']} ({p['verdict']})" for p in data["policies"])
                model = data.get("model")
                using = f" with {model['name']}@{model['version']}" if model else ""
                yield (
                    f"{at} #{data['entry']['number']} {data['verdict']} {data['action']}: {data['reason']} -"
                    f" {data['explanation']}. {data['agent']}@{data['agent_version']}{using} proposed it"
                    f" (confidence {data['confidence']:.4f}): {data['proposal_reason']}. Policies: {by or 'none'},"
                    f" set {data['policy_set_digest'][:12]}. Counters: {data['counters']}"
                )
                if data.get("override"):
                    given = data["override"]
                    against = f", against {', '.join(given['against'])}" if given["against"] else ""
                    yield f"{at}    OVERRIDE by {given['person']}{against}: {given['reason']}"
                for said in (data.get("approval") or {}).get("answers") or ():
                    yield f"{at}    {said['person']}: {said['answer']} {said['reason']}".rstrip()
            case "flyball.approval_noted":
                yield f"{at} #{data['entry']['number']} {data['what']}: {data['explanation']}"
            case "flyball.command":
                yield f"{at}    command {data['command_id'][:12]} {data['action']} {data['parameters']}"
            case "flyball.outcome":
                yield f"{at}    outcome of {data['command_id'][:12]}: {data['status']} {data.get('detail') or ''}".rstrip()
