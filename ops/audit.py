"""The audit over the topics themselves: verify chains and heads, tell one subject's story."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from contracts.access import principal
from contracts.envelope import parse_time_ms
from contracts.errors import SetupFailed
from contracts.topics import topic
from jobs.settings import load_settings
from ops import kafka
from ops.home import Home
from ops.people import AUDIT_KEY, key_file, own_key
from ops.trace import CHAIN
from udfs.policy.audit import ALWAYS, Audit, Bad, Line, Period, audit
from udfs.policy.heads import Anchor, Seals, check
from udfs.policy.signing import public_text


def lines(bootstrap_servers: str, domain: str) -> Iterator[Line]:
    """The domain's decisions as a read_committed reader sees them, partition by partition; none is kept."""
    reader, name = kafka.BulkReader(bootstrap_servers, principal=principal(domain, "reader")), topic("decisions").of(domain)
    try:
        for partition in reader.partitions(name):
            for offset, key, value in reader.read(name, partition):
                yield Line(partition, offset, key, value)
    finally:
        reader.close()


@dataclass(frozen=True)
class Verified:
    """What `audit verify` found: chains, heads, and everything bad in them, decisions first."""

    audit: Audit
    seals: Seals
    bad: list[Bad]

    def told(self) -> dict[str, Any]:
        """As `--json` prints it."""
        first, last = self.bad[0] if self.bad else None, self.seals.last
        return {
            "ok": not self.bad,
            "entries": self.audit.entries,
            "subjects": len(self.audit.subjects),
            "superseded": self.audit.superseded,
            "heads": self.seals.heads,
            "unsealed": self.seals.unsealed,
            "last_head": last and {
                "number": last.data.number, "sha256": last.sha256, "sealed_at": last.data.sealed_at,
                "public_key": last.data.key,
            },
            "bad": len(self.bad),
            "first_bad": first and asdict(first),
        }  # fmt: skip


def verify(
    bootstrap_servers: str,
    domain: str,
    *,
    public_key: str | None,
    period: Period = ALWAYS,
    anchor: Anchor | None = None,
) -> Verified:
    """Check every subject's chain and every head, over the topics themselves.

    Repeats are superseded under at_least_once, bad otherwise. `public_key`: what all heads must be signed
    with. Raises SetupFailed when there are heads and it is None.
    """
    delivery = load_settings(domain).delivery
    sealed_in = topic("audit-heads").of(domain)
    heads: list[Line] = []
    # Before the decisions: what a head covers was there when it was written.
    if sealed_in in kafka.existing_topics(bootstrap_servers, domain):
        heads = [Line(r.partition, r.offset, r.key, r.value) for r in kafka.read_all(bootstrap_servers, [sealed_in])]
    if heads and public_key is None:
        raise SetupFailed(
            f"{sealed_in} has {len(heads)} heads and this home has no key to hold them against: give the public key"
            " of their sealer with --public-key"
        )
    found = audit(
        lines(bootstrap_servers, domain), allows_repeats=delivery == "at_least_once", period=period, keeps="places"
    )
    broken = {bad.subject for bad in found.bad}
    seals = check(
        heads, found.records, domain=domain, public_key=public_key or "", broken=broken, anchor=anchor
    )
    bad = sorted(
        [*found.bad, *seals.bad], key=lambda b: (b.topic != "decisions", b.partition, b.offset, b.entry)
    )
    return Verified(found, seals, bad)


def key_of_home(home: Home, domain: str) -> str | None:
    """The public key that this home's sealer signs with; None where it has none."""
    path = key_file(home, domain, AUDIT_KEY)
    return public_text(own_key(path)) if path.exists() else None


def read_period(since: str | None, until: str | None) -> Period:
    """Event time from `since` (included) to `until` (not). Raises SetupFailed for what is no RFC 3339 time."""
    try:
        return Period(
            None if since is None else parse_time_ms(since), None if until is None else parse_time_ms(until)
        )
    except ValueError as error:
        raise SetupFailed(f"--from, --to: {error}") from None


def read_anchor(text: str) -> Anchor:
    """`NUMBER:SHA256`, as `audit verify` prints its last head. Raises SetupFailed otherwise."""
    found = re.fullmatch(r"([1-9][0-9]{0,15}):([0-9a-f]{64})", text)
    if found is None:
        raise SetupFailed(f"--anchor: expected NUMBER:SHA256 of a head, came {text[:100]!r}")
    return Anchor(int(found[1]), found[2])


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
            case "flyball.noted":
                yield f"{at} #{data['entry']['number']} {data['what']}: {data['explanation']}"
            case "flyball.command":
                yield f"{at}    command {data['command_id'][:12]} {data['action']} {data['parameters']}"
            case "flyball.outcome":
                yield f"{at}    outcome of {data['command_id'][:12]}: {data['status']} {data.get('detail') or ''}".rstrip()
