"""What waits for people, and what people say to it: signed events on `<domain>.approvals`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from contracts.access import principal
from contracts.approval import Answer, Override, Signed
from contracts.data import ActionParameters
from contracts.decision import Decision, Noted
from contracts.domain import columns, load_domain
from contracts.envelope import derive_id, format_time_ms, schema_urn
from contracts.errors import SetupFailed
from contracts.topics import topic
from ops import kafka, people
from ops.audit import lines
from ops.home import Home
from udfs.policy.signing import public_text, sign, to_sign
from udfs.serde import write_event

PATIENCE_S = 20.0


@dataclass
class Request:
    """One hold and what became of it. `ended`: the decision that ended it, None while it waits."""

    event: dict[str, Any]
    requires: list[dict[str, Any]]
    answers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return str(self.event["id"])

    def told(self) -> dict[str, Any]:
        """As `approvals list --json` prints it."""
        data = self.event["data"]
        return {
            "id": self.id, "subject": self.event["subject"], "agent": data["agent"], "action": data["action"],
            "parameters": data["parameters"], "action_digest": data["approval"]["action_digest"],
            "reason": data["reason"], "explanation": data["explanation"],
            "proposal_reason": data["proposal_reason"], "asked_at": data["approval"]["asked_at"],
            "requires": self.requires, "answers": self.answers,
            "state": "waiting" if self.ended is None else str(self.ended["data"]["reason"]),
        }  # fmt: skip


def requests(bootstrap_servers: str, domain: str) -> dict[str, Request]:
    """Every approval request there was, oldest first, by its id."""
    found: dict[str, Request] = {}
    for line in lines(bootstrap_servers, domain):
        event = orjson.loads(line.value or b"{}")
        data = event.get("data") or {}
        if event.get("type") == Noted.event_type:
            if (request := found.get(data["about"])) is not None:
                request.notes.append(data)
                request.requires = data["requires"] or request.requires
                if data["what"] == "counted":
                    request.answers.append(data["answer"])
        elif event.get("type") == Decision.event_type and (asked := data["approval"]):
            if data["verdict"] == "hold":
                found[event["id"]] = Request(event, asked["requires"])
                if (replaced := found.get(asked["instead_of"] or "")) is not None and replaced.ended is None:
                    replaced.ended = event
            elif (request := found.get(asked["approval_id"])) is not None:
                request.ended, request.answers = event, asked["answers"]
    return dict(sorted(found.items(), key=lambda item: item[1].event["data"]["approval"]["asked_at"]))


def find(bootstrap_servers: str, domain: str, wanted: str) -> Request:
    """The request whose id is or begins with `wanted`. Raises SetupFailed when there is none, or several."""
    found = [each for name, each in requests(bootstrap_servers, domain).items() if name.startswith(wanted)]
    if len(found) != 1 or len(wanted) < 4:
        waiting = [each.id[:12] for each in found] or "none"
        raise SetupFailed(f"expected the id of one approval request (4 digits or more), came {wanted!r}: {waiting}")
    return found[0]


def has_counted(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything came of what a person said, by what `govern` made of it (`answer`, `override`)."""
    last = entries[-1]["data"]
    if last.get("override") is not None:
        return bool(last["verdict"] == "allow")
    return bool(last.get("what") != "refused")


def _known_action(domain: str, action: str) -> type[ActionParameters]:
    known = load_domain(domain).actions
    if action not in known:
        raise SetupFailed(f"expected an action of {sorted(known)}, came {action!r}")
    return known[action]


def typed(domain: str, action: str, settings: Sequence[str]) -> dict[str, Any]:
    """`k=v` texts as the action's parameters. Raises SetupFailed naming what was expected."""
    kinds = columns(_known_action(domain, action))
    found: dict[str, Any] = {}
    readers: dict[str, Callable[[str], Any]] = {
        "STRING": str, "BIGINT": int, "DOUBLE": float, "BOOLEAN": lambda text: {"true": True, "false": False}[text],
    }  # fmt: skip
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or name not in kinds:
            raise SetupFailed(f"--set: expected NAME=VALUE with a name of {sorted(kinds)}, came {setting!r}")
        try:
            found[name] = readers[kinds[name]](text)
        except (ValueError, KeyError):
            raise SetupFailed(f"--set {name}: expected a {kinds[name]}, came {text!r}") from None
    return found


@dataclass(frozen=True)
class Signer:
    """Who speaks, and with which key."""

    person: str
    key: Path

    @classmethod
    def of(cls, home: Home, domain: str, person: str, key: Path | None) -> Signer:
        return cls(person, key or people.key_file(home, domain, person))


def answer(
    bootstrap_servers: str, domain: str, request: Request, signer: Signer, kind: str, *,
    parameters: Mapping[str, Any] | None = None, reason: str = "", now_ms: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Sign and send an answer; what `govern` made of it, in order (decisions and notes)."""
    key = _known_key(bootstrap_servers, domain, signer)
    event_id, event = answer_event(
        domain, request, signer.person, key, kind, parameters=parameters, reason=reason, now_ms=now_ms
    )
    return _say(bootstrap_servers, domain, str(request.event["subject"]), event_id, event)


def answer_event(
    domain: str, request: Request, person: str, key: Ed25519PrivateKey, kind: str, *,
    parameters: Mapping[str, Any] | None = None, reason: str = "", now_ms: int,
) -> tuple[str, bytes]:  # fmt: skip
    """An answer signed with `key`: the event's id and the event, ready to be sent under the request's subject."""
    data = {
        "approval_id": request.id, "action_digest": request.event["data"]["approval"]["action_digest"],
        "answer": kind, "parameters": dict(parameters or {}), "reason": reason,
    }  # fmt: skip
    return _signed_event(
        domain, Answer, str(request.event["subject"]), data, person, key, now_ms=now_ms,
        correlation_id=request.event.get("correlationid"), causation_id=request.id,
    )  # fmt: skip


def override(
    bootstrap_servers: str, domain: str, subject: str, action: str, signer: Signer, *,
    parameters: Mapping[str, Any], reason: str, break_glass: bool, now_ms: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Sign and send a person's own command; what `govern` made of it."""
    _known_action(domain, action)
    data = {
        "action": action, "parameters": dict(parameters), "reason": reason, "break_glass": break_glass,
    }  # fmt: skip
    key = _known_key(bootstrap_servers, domain, signer)
    event_id, event = _signed_event(domain, Override, subject, data, signer.person, key, now_ms=now_ms)
    return _say(bootstrap_servers, domain, subject, event_id, event)


def _known_key(bootstrap_servers: str, domain: str, signer: Signer) -> Ed25519PrivateKey:
    """The signer's key. Raises SetupFailed when `govern` does not know the person by it."""
    known = people.published(bootstrap_servers, domain)
    if signer.person not in known:
        raise SetupFailed(f"--as: expected one of {sorted(known)}, came {signer.person!r}")
    key = people.own_key(signer.key)
    if public_text(key) != known[signer.person].public_key:
        raise SetupFailed(f"{signer.key}: expected the key of {signer.person}, came another one")
    return key


def _signed_event(
    domain: str, kind: type[Signed], subject: str, said: dict[str, Any], person: str, key: Ed25519PrivateKey,
    *, now_ms: int, correlation_id: str | None = None, causation_id: str | None = None,
) -> tuple[str, bytes]:  # fmt: skip
    """What was said, signed: the event's id and the event. Raises SetupFailed for what is no valid `kind`."""
    data = {"person": person, "signed_at": format_time_ms(now_ms), **said}
    data["signature"] = sign(key, to_sign(domain, subject, kind.event_type, data))
    try:
        kind.model_validate_json(orjson.dumps(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SetupFailed(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    event_id = derive_id(data["signature"], "approval", person)
    return event_id, write_event(
        event_id=event_id, source=f"/flyball/{domain}/ops/approvals", event_type=kind.event_type,
        subject=subject, time_ms=now_ms, dataschema=schema_urn(domain, kind.event_type, kind.schema_version), data=data,
        correlation_id=correlation_id or event_id, causation_id=causation_id,
    )  # fmt: skip


def _say(
    bootstrap_servers: str, domain: str, subject: str, event_id: str, event: bytes
) -> list[dict[str, Any]]:
    """Send what was signed; what `govern` made of it."""
    reader = kafka.consumer(bootstrap_servers, principal=principal(domain, "people"))
    try:
        where = kafka.partitions(reader, [topic("decisions").of(domain)])
        reader.assign(where)
        reader.seek_to_end(*where)
        for place in where:
            reader.position(place)
        writer = kafka.producer(bootstrap_servers, principal=principal(domain, "people"))
        writer.send(topic("approvals").of(domain), key=subject.encode(), value=event).get(timeout=30)
        writer.close()
        return _what_came(reader, event_id)
    finally:
        reader.close()


def _what_came(reader: Any, event_id: str) -> list[dict[str, Any]]:
    """The entries that this answer caused. Raises SetupFailed when it was a dead letter, or none came."""
    deadline = time.monotonic() + PATIENCE_S
    found: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        for record in kafka.poll(reader, timeout_ms=100):
            entry = orjson.loads(record.value or b"{}")
            if entry.get("causationid") == event_id:
                found.append(entry)
        if found and not (len(found) == 1 and found[0]["data"].get("reason") == "edited_by_person"):
            return found
    raise SetupFailed(
        f"the answer was sent (id {event_id}), but nothing came of it within {PATIENCE_S:.0f} s:"
        " is the domain up ('./flyball status'), or is it a dead letter ('./flyball dead-letters list')?"
    )
