"""The versions of every event type that were published, and whether the contract as it is now may follow them.

`contracts/published/<domain>/<event type>/<version>.json` is the JSON Schema of the data of one version; Flyball's own
types, the same in every domain, are under `flyball`. A published version never changes: whoever has events of it, or
code that reads them, relies on it. A changed contract is the next version (`schema_version`), with an upcast from the one
before (contracts/data.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from contracts.catalogue import EventType, event_types
from contracts.compatibility import breaks
from contracts.data import unchanged
from contracts.errors import SetupFailed
from contracts.json_schema import DIALECT, data_schema

FOLDER: Final = Path(__file__).parent / "published"
Compatibility = Literal["backward", "forward", "full"]
_SAYS_ONLY = ("title", "description", "examples", "$schema", "$id")


@dataclass(frozen=True)
class Finding:
    """One thing to change: in which event type, where in its data, what is wrong, what to do."""

    event_type: str
    path: str
    what: str
    remedy: str

    def told(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.event_type}: {self.path + ': ' if self.path else ''}{self.what}. {self.remedy}"


def folder_of(event: EventType, below: Path = FOLDER) -> Path:
    owner = "flyball" if event.name.startswith("flyball.") else event.domain
    return below / owner / event.name


def schema_now(event: EventType) -> dict[str, Any]:
    """What would be published."""
    return {"$schema": DIALECT, "$id": event.urn if _is_domains(event) else event.name, **data_schema(event.data)}


def _is_domains(event: EventType) -> bool:
    return not event.name.startswith("flyball.")


def published(event: EventType, below: Path = FOLDER) -> dict[int, dict[str, Any]]:
    """Version -> schema, in order."""
    files = folder_of(event, below).glob("*.json")
    return {version: json.loads(path.read_text()) for version, path in sorted((int(p.stem), p) for p in files)}


def types_of(domains: Iterable[str]) -> Iterator[EventType]:
    """Every event type of `domains`, Flyball's own once."""
    seen = set()
    for domain in domains:
        for event in event_types(domain):
            if (name := folder_of(event)) not in seen:
                seen.add(name)
                yield event


def unpublished(domains: Iterable[str], below: Path = FOLDER) -> list[EventType]:
    """Types whose version now is not published."""
    return [event for event in types_of(domains) if event.data.schema_version not in published(event, below)]


def publish(event: EventType, below: Path = FOLDER) -> Path:
    """Write the type's version now."""
    path = folder_of(event, below) / f"{event.data.schema_version}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schema_now(event), indent=1) + "\n")
    return path


def publish_new(domains: Iterable[str], *, again: Collection[str] = (), below: Path = FOLDER) -> list[Path]:
    """Write each type's version that is not published yet, and of the types `again` the one that is, as it is now.

    Raises SetupFailed, having written nothing, when any may not follow what is published, or is none.
    """
    domains = list(domains)
    if unknown := set(again) - {event.name for event in types_of(domains)}:
        raise SetupFailed(f"--replace: expected event types, came {', '.join(sorted(unknown))}")
    if wrong := [one for one in check(domains, below=below) if one.event_type not in again]:
        raise SetupFailed("\n".join(["not published:", *map(str, wrong)]))
    wanted = {event.name for event in unpublished(domains, below)} | set(again)
    return [publish(event, below) for event in types_of(domains) if event.name in wanted]


def check(
    domains: Iterable[str], compatibility: Compatibility = "backward", below: Path = FOLDER
) -> list[Finding]:
    """What stands in the way of the contracts as they are now; empty: nothing.

    backward: what reads the version now reads old events, as they are or lifted by upcasts. forward: what reads the version
    before reads new events as they are. full: both.
    """
    domains = list(domains)
    found = [finding for event in types_of(domains) for finding in _check(event, compatibility, below)]
    known = {folder_of(event, below) for event in types_of(domains)}
    for owner in ("flyball", *domains):
        for folder in sorted((below / owner).glob("*/")):
            if folder not in known:
                found.append(
                    Finding(folder.name, "", "was published and is in no contract any more: its events cannot be read",
                            f"Keep it, or delete {folder.name}/ below contracts/published/{owner} if no log holds one")
                )  # fmt: skip
    return found


def _check(event: EventType, compatibility: Compatibility, below: Path) -> Iterator[Finding]:
    kind, version, before = event.data, event.data.schema_version, published(event, below)
    if len(kind.upcasts) != version - 1:
        yield Finding(
            event.name, "", f"version {version} has {len(kind.upcasts)} upcasts, expected {version - 1}",
            "Give `upcasts` a function for each version but the first",
        )  # fmt: skip
        return
    if not before:
        return
    newest = max(before)
    now = schema_now(event)
    if version in before:
        if version < newest:
            yield Finding(event.name, "", f"is of version {version}, and {newest} is published", f"Make `schema_version` {newest + 1}")
        elif _judged(now) != _judged(before[version]):
            remedy = (
                f"Make `schema_version` {version + 1}, add an upcast from {version} (`unchanged`, where it takes all that"
                f" {version} took), then './flyball contracts publish'"
            )
            refused = breaks(now, before[version])
            yield Finding(event.name, "", f"differs from version {version} as published", remedy)
            yield from (Finding(event.name, one.path, one.why, "So a function must lift what is older") for one in refused)
        return
    if version != newest + 1:
        yield Finding(event.name, "", f"is of version {version}, and {newest} is the last published", f"Make `schema_version` {newest + 1}")
        return
    if compatibility in ("backward", "full") and kind.upcasts[-1] is unchanged:
        for one in breaks(now, before[newest]):
            yield Finding(
                event.name, one.path, f"{one.why}; events of version {newest} would be refused",
                f"Write an upcast from {newest} to {version} instead of `unchanged`, or let it take both",
            )  # fmt: skip
    if compatibility in ("forward", "full"):
        for one in breaks(before[newest], now):
            yield Finding(
                event.name, one.path, f"{one.why}; what reads version {newest} would refuse events of {version}",
                "Leave it as it was, or make a new event type beside the old one",
            )  # fmt: skip


def _judged(schema: Any) -> Any:
    """A schema without what only tells people something."""
    if isinstance(schema, dict):
        return {
            name: {key: _judged(one) for key, one in inner.items()} if name in ("properties", "$defs") else _judged(inner)
            for name, inner in schema.items()
            if name not in _SAYS_ONLY
        }
    return [_judged(one) for one in schema] if isinstance(schema, list) else schema
