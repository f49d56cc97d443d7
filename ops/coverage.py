"""What policies did to recorded proposals: which matched, which never, what candidates would change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from contracts.decision import Decision
from contracts.domain import load_domain
from contracts.policy import Policy
from jobs.settings import load_settings
from ops import policies
from ops.audit import lines, read_period
from udfs.policy import cel_subset
from udfs.policy.cel import Condition
from udfs.policy.govern import Governor
from udfs.policy.replay import proposal_in

_EXAMPLES = 3


def _decisions(
    bootstrap_servers: str, domain: str, since: str | None, until: str | None
) -> Iterator[dict[str, Any]]:
    """Every decision about a proposal once, between two event times. Raises SetupFailed for what is no time."""
    seen: set[str] = set()
    period = read_period(since, until)
    for line in lines(bootstrap_servers, domain):
        event = orjson.loads(line.value or b"{}")
        if event.get("type") != Decision.event_type or event["data"]["inputs"]["trigger"] != "proposal":
            continue
        if event.get("id") in seen or not period.covers(event["data"]["event_time"]):
            continue
        seen.add(str(event["id"]))
        yield event


def diff(
    bootstrap_servers: str, domain: str, *, since: str | None = None, until: str | None = None
) -> dict[str, Any]:
    """Decisions that shadow and canary policies would have changed, grouped by what and how."""
    count, changes = 0, dict[tuple[str, ...], dict[str, Any]]()
    for event in _decisions(bootstrap_servers, domain, since, until):
        data = event["data"]
        candidate = data["candidate"]
        if candidate is None:
            continue
        count += 1
        before = f"{data['verdict']} {data['reason']}"
        after = f"{candidate['verdict']} {candidate['reason']}"
        if before == after:
            continue
        spoke = ", ".join(f"{p['policy_id']}@{p['version']}" for p in candidate["policies"]) or "none matched"
        key = (str(data["action"]), before, after, spoke)
        change = changes.setdefault(
            key,
            {"action": key[0], "before": before, "after": after, "policies": spoke, "count": 0, "examples": []},
        )
        change["count"] += 1
        if len(change["examples"]) < _EXAMPLES:
            change["examples"].append(event["id"])
    return {
        "decisions": count,
        "different": sum(change["count"] for change in changes.values()),
        "changes": sorted(changes.values(), key=lambda change: -change["count"]),
    }


def branches(when: str) -> list[str]:
    """The operands of the outermost `||` of a condition; the whole of it when there is none."""
    parts, depth, start = [], 0, 0
    for token in cel_subset.scan(when).tokens:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0 and token.text == "?":
            return [when.strip()]
        if depth == 0 and token.text == "||":
            parts.append(when[start : token.offset].strip())
            start = token.offset + 2
    return [*parts, when[start:].strip()]


class _Tally:
    """One policy over recorded proposals."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.counts = {"in_scope": 0, "true": 0, "false": 0, "error": 0}
        self._whole = Condition.compile(policy.when, policy.variables)
        parts = branches(policy.when)
        self._branches = [
            (part, Condition.compile(part, policy.variables)) for part in parts if len(parts) > 1
        ]
        self._hits = [0] * len(self._branches)

    def count(self, variables: dict[str, object]) -> None:
        scope = self.policy.scope
        for given, name in ((scope.actions, "action"), (scope.agents, "agent"), (scope.situations, "situation")):
            if given and variables[name] not in given:
                return
        self.counts["in_scope"] += 1
        value = self._whole.evaluate(variables).value
        self.counts["error" if value is None else str(value).lower()] += 1
        for number, (_, condition) in enumerate(self._branches):
            self._hits[number] += condition.evaluate(variables).value is True

    def told(self) -> dict[str, Any]:
        return {
            "policy": f"{self.policy.policy_id}@{self.policy.version}",
            "status": self.policy.status,
            **self.counts,
            "branches": [
                {"when": part, "true": hits}
                for (part, _), hits in zip(self._branches, self._hits, strict=True)
            ],
        }


def coverage(
    bootstrap_servers: str, domain: str, *, since: str | None = None, until: str | None = None
) -> dict[str, Any]:
    """How often each published policy (drafts and retired ones left out), and each branch of its
    condition, was true over recorded proposals; evaluated again from what the decisions recorded."""
    governor = Governor(load_domain(domain), max_hops=load_settings(domain).max_hops)
    tallies = [
        _Tally(entry.policy)
        for entry in policies.published(bootstrap_servers, domain).values()
        if entry.policy.status in ("active", "canary", "shadow")
    ]
    count = 0
    for event in _decisions(bootstrap_servers, domain, since, until):
        count += 1
        variables = governor.recorded_variables(proposal_in(event), event["data"])
        for tally in tallies:
            tally.count(variables)
    return {"decisions": count, "policies": [tally.told() for tally in tallies]}
