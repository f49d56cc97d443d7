"""The causal tree around an event: every record of its chain, each under what caused it.

A record that is no event is left out; whatever events name as their causes, each of a chain is shown, and once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from rich.text import Text
from rich.tree import Tree

from contracts.access import principal
from contracts.domain import known_domains
from contracts.errors import SetupFailed
from contracts.topics import topic
from ops import kafka
from ops.plain import plain
from udfs import broker_access

CHAIN = ("facts", "situations", "proposals", "decisions", "approvals", "commands", "outcomes")

NOUNS = {"approvals": "answer"}
SHORT_ID = 12  # so many characters of an id are shown
# Deeper than chains that the loop guard lets grow; what is caused further down is shown as a root again.
MAX_DEPTH = 100
_GOVERNED = ("decision", "command")


@dataclass(frozen=True)
class Link:
    """One event of a chain and where it lies."""

    noun: str
    place: str
    event: dict[str, Any]


def _scan(bootstrap_servers: str, domain: str, needle: bytes) -> list[Link]:
    topics = {topic(name).of(domain): NOUNS.get(name, name.rstrip("s")) for name in CHAIN}
    return links(kafka.read_all(bootstrap_servers, list(topics)), topics, needle)


def links(records: Iterable[kafka.Record], nouns: dict[str, str], needle: bytes) -> list[Link]:
    """The events among records (`nouns`: by topic) in which `needle` stands: what has an id, and can be shown."""
    found = []
    for record in records:
        if record.value is not None and needle in record.value:
            try:
                event = orjson.loads(record.value)
                orjson.dumps(event)  # refuses what is nested too deeply to be shown
            except (orjson.JSONDecodeError, TypeError):
                continue
            if isinstance(event, dict) and _text(event, "id"):
                found.append(Link(nouns[record.topic], f"{record.topic}/{record.partition}/{record.offset}", event))
    return found


def _text(of: dict[str, Any], name: str) -> str:
    return found if isinstance(found := of.get(name), str) else ""


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
    chain: dict[tuple[str, str], Link] = {}
    for link in near:
        if correlation in (_text(link.event, "correlationid"), link.event["id"]):
            chain.setdefault((link.noun, link.event["id"]), link)
    return list(chain.values())


def _correlations(links: list[Link], is_named: Callable[[str], bool]) -> set[str]:
    """The chains of those events whose id or correlation id is asked for."""
    names = ((link.event["id"], _text(link.event, "correlationid") or link.event["id"]) for link in links)
    return {correlation for name, correlation in names if is_named(name) or is_named(correlation)}


def find_anywhere(bootstrap_servers: str, wanted: str) -> list[Link]:
    """The chain in the first domain that has it, of those that were ever up. Raises SetupFailed when none has."""
    secrets = broker_access.folder()
    for domain in known_domains():
        if secrets is not None and not broker_access.password_file(secrets, principal(domain, "reader")).exists():
            continue  # never up here
        if f"{domain}.facts" not in kafka.existing_topics(bootstrap_servers, domain):
            continue
        if chain := find_chain(bootstrap_servers, domain, wanted):
            return chain
    raise SetupFailed(f"no event and no chain {wanted!r} in any topic of this instance")


def tree_data(chain: list[Link]) -> list[dict[str, Any]]:
    """The chain as nested {id, noun, place, event, effects}; several roots when a cause is gone, or causes go round."""
    nodes = [{"id": link.event["id"], "noun": link.noun, "place": link.place, "event": link.event, "effects": []} for link in chain]
    # Who may write facts may take the id of a decision; what only `govern` writes is meant.
    by_id = {nodes[number]["id"]: number for number in sorted(range(len(nodes)), key=lambda number: nodes[number]["noun"] in _GOVERNED)}
    named = [by_id.get(_text(node["event"], "causationid")) for node in nodes]
    causes: dict[int, int | None] = {}
    depths: dict[int, int] = {}
    for number in range(len(nodes)):
        way: dict[int, None] = {}  # up to where the place in the tree is known, or the causes go round
        at: int | None = number
        while at is not None and at not in depths and at not in way:
            way[at] = None
            at = named[at]
        for below in reversed(way):
            cause = named[below]
            depth = MAX_DEPTH if cause is None else depths.get(cause, MAX_DEPTH) + 1
            causes[below], depths[below] = (cause, depth) if depth < MAX_DEPTH else (None, 0)
    roots: list[dict[str, Any]] = []
    for number, node in enumerate(nodes):
        above = causes[number]
        (roots if above is None else nodes[above]["effects"]).append(node)
    return roots


def _line(node: dict[str, Any]) -> Text:
    event = node["event"]
    data = event["data"] if isinstance(event.get("data"), dict) else {}
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
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        text = _text(event, "type")
    told_text = plain(text)
    if node["noun"] == "decision" and "verdict" in data:
        told_text.stylize("bold", 0, len(_text(data, "verdict")))
    where = plain(f" {str(node['id'])[:SHORT_ID]} {_text(event, 'time')} ")
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
    subject = _text(roots[0]["event"], "subject") if roots else ""
    tree = Tree(Text.assemble("chain of ", plain(subject)), guide_style="dim")

    def grow(branch: Tree, node: dict[str, Any]) -> None:
        twig = branch.add(_line(node))
        for effect in sorted(node["effects"], key=lambda n: _text(n["event"], "time")):
            grow(twig, effect)

    for root in roots:
        grow(tree, root)
    return tree
