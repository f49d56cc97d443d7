"""The causal tree around an event: every record of its chain, each under what caused it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from rich.text import Text
from rich.tree import Tree

from contracts.errors import SetupFailed
from contracts.topics import topic
from ops import kafka
from ops.plain import plain

CHAIN = ("facts", "situations", "proposals", "decisions", "approvals", "commands", "outcomes")

NOUNS = {"approvals": "answer"}
SHORT_ID = 12  # so many characters of an id are shown


@dataclass(frozen=True)
class Link:
    """One event of a chain and where it lies."""

    noun: str
    place: str
    event: dict[str, Any]


def _scan(bootstrap_servers: str, domain: str, needle: bytes) -> list[Link]:
    links = []
    topics = {topic(name).of(domain): NOUNS.get(name, name.rstrip("s")) for name in CHAIN}
    for record in kafka.read_all(bootstrap_servers, list(topics)):
        if record.value is not None and needle in record.value:
            try:
                event = orjson.loads(record.value)
            except orjson.JSONDecodeError:
                continue
            if isinstance(event, dict):
                place = f"{record.topic}/{record.partition}/{record.offset}"
                links.append(Link(topics[record.topic], place, event))
    return links


def find_chain(bootstrap_servers: str, domain: str, wanted: str) -> list[Link]:
    """Every event of the chain that `wanted` belongs to: an event id, a correlation id, or how one begins.

    Empty when no topic of the domain holds it. A record that was written twice appears once. Raises SetupFailed
    when events of several chains begin like this.
    """
    near = _scan(bootstrap_servers, domain, wanted.encode())
    chains = _correlations(near, lambda name: name == wanted)
    if not chains and len(wanted) >= SHORT_ID:
        chains = _correlations(near, lambda name: name.startswith(wanted))
    if not chains:
        return []
    if len(chains) > 1:
        raise SetupFailed(f"expected an id of one chain, but {wanted!r} begins ids of {', '.join(sorted(chains))}")
    (correlation,) = chains
    if correlation != wanted:
        near = _scan(bootstrap_servers, domain, correlation.encode())
    chain: dict[str, Link] = {}
    for link in near:
        if correlation in (link.event.get("correlationid"), link.event.get("id")):
            chain.setdefault(str(link.event["id"]), link)
    return list(chain.values())


def _correlations(links: list[Link], is_named: Callable[[str], bool]) -> set[str]:
    """The chains of those events whose id or correlation id is asked for."""
    names = ((str(link.event.get("id")), str(link.event.get("correlationid") or link.event.get("id"))) for link in links)
    return {correlation for name, correlation in names if is_named(name) or is_named(correlation)}


def tree_data(chain: list[Link]) -> list[dict[str, Any]]:
    """The chain as nested {id, noun, place, event, effects}; several roots when a cause is gone."""
    nodes = {
        str(link.event["id"]): {
            "id": link.event["id"], "noun": link.noun, "place": link.place,
            "event": link.event, "effects": [],
        }
        for link in chain
    }  # fmt: skip
    roots = []
    for link in chain:
        node = nodes[str(link.event["id"])]
        parent = nodes.get(str(link.event.get("causationid")))
        if parent is None or parent is node:
            roots.append(node)
        else:
            parent["effects"].append(node)
    return roots


def _line(node: dict[str, Any]) -> Text:
    event, data = node["event"], node["event"].get("data") or {}
    told = {
        "fact": lambda: f"{event['type']} {_short(data)}",
        "situation": lambda: f"{event['type']} {_short(data)}",
        "proposal": lambda: f"{data['agent']} proposes {data['action']} (confidence"
        f" {data['confidence']:.4f}): {data['reason']}",
        "decision": lambda: f"{data['verdict']} {data['action']}: {data['reason']}"
        f" ({data['explanation']})" if "verdict" in data else f"{data['what']}: {data['explanation']}",
        "answer": lambda: f"{data['person']}: {data.get('answer', 'override')} {data['reason']}",
        "command": lambda: f"{data['action']} {_short(data['parameters'])}",
        "outcome": lambda: f"{data['status']} {data['detail']}",
    }
    try:
        text = told[node["noun"]]()
    except (KeyError, TypeError, ValueError):
        text = str(event.get("type"))
    told_text = plain(text)
    if node["noun"] == "decision" and "verdict" in data:
        told_text.stylize("bold", 0, len(str(data["verdict"])))
    where = plain(f" {str(node['id'])[:SHORT_ID]} {event.get('time')} ")
    where.stylize("dim")
    return Text.assemble((f"{node['noun']:<9}", "cyan"), where, told_text)


def _short(data: dict[str, Any]) -> str:
    shown = {
        k: (round(v, 3) if isinstance(v, float) else v) for k, v in data.items() if k != "event_time"
    }
    text = ", ".join(f"{k}={v}" for k, v in shown.items())
    return text if len(text) < 140 else text[:137] + "..."


def as_tree(roots: list[dict[str, Any]]) -> Tree:
    """The same for people."""
    subject = roots[0]["event"].get("subject") if roots else ""
    tree = Tree(Text.assemble("chain of ", plain(subject)), guide_style="dim")

    def grow(branch: Tree, node: dict[str, Any]) -> None:
        twig = branch.add(_line(node))
        for effect in sorted(node["effects"], key=lambda n: str(n["event"].get("time"))):
            grow(twig, effect)

    for root in roots:
        grow(tree, root)
    return tree
