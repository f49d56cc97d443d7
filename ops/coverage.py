"""What policies did to recorded proposals: which matched, which never, what candidates would change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from contracts.access import principal
from contracts.decision import Decision, Reason
from contracts.domain import load_domain
from contracts.envelope import parse_time_ms
from contracts.policy import DEFAULT_APPROVAL, Policy
from contracts.topics import topic
from jobs.settings import load_settings
from ops import kafka, policies
from ops.audit import lines, read_period
from ops.policies import PublishedPolicy
from udfs.policy import cel_subset
from udfs.policy.cel import Condition
from udfs.policy.govern import Governor
from udfs.policy.policy_log import PolicyLog
from udfs.policy.policy_set import PolicySet
from udfs.policy.replay import proposal_in
from udfs.policy.replayed import decided_first

_EXAMPLES = 3
# With a grant that was refused: where decisions end later than what is judged beside them.
_LATER = {Reason.LOST, Reason.HOLD_LIMIT, Reason.POLICY_ERROR}


def _decisions(
    bootstrap_servers: str, domain: str, since: str | None, until: str | None
) -> Iterator[dict[str, Any]]:
    """The first decision about every proposal, once, between two event times; of those that contended, when that ended.

    Raises SetupFailed for what is no time.
    """
    seen: set[str] = set()
    period = read_period(since, until)
    for line in lines(bootstrap_servers, domain):
        event = orjson.loads(line.value or b"{}")
        proposal_id = decided_first(event) if event.get("type") == Decision.event_type else None
        if proposal_id is None or proposal_id in seen or not period.covers(event["data"]["event_time"]):
            continue
        seen.add(proposal_id)
        yield event


def diff(
    bootstrap_servers: str, domain: str, *, since: str | None = None, until: str | None = None
) -> dict[str, Any]:
    """Decisions that shadow and canary policies would have changed or did change, grouped by what and how.

    `before` is what active policies say, `after` what shadows and canaries do: `is_decided` where a canary decided so.
    Of two holds, how many of which roles are asked is compared too.
    """
    known, policies_at = policies.published(bootstrap_servers, domain), _policies_at(bootstrap_servers, domain)
    count, changes = 0, dict[tuple[str | bool, ...], dict[str, Any]]()
    for event in _decisions(bootstrap_servers, domain, since, until):
        data = event["data"]
        candidate = data["candidate"]
        if candidate is None:
            continue
        count += 1
        is_decided = _canary_decided(event, policies_at)
        active, other = (candidate, data) if is_decided else (data, candidate)
        before, after = _said(active), _said(other)
        if active["verdict"] == other["verdict"] == "hold":
            before, after = (f"{said}{_asked(one, known)}" for said, one in ((before, active), (after, other)))
        if before == after or (_ended_later(data) and candidate["verdict"] != "deny"):
            continue
        spoke = ", ".join(_names(other)) or "none matched"
        change = changes.setdefault(
            (data["action"], before, after, spoke, is_decided),
            {
                "action": data["action"], "before": before, "after": after, "policies": spoke, "is_decided": is_decided,
                "count": 0, "examples": [],
            },
        )  # fmt: skip
        change["count"] += 1
        if len(change["examples"]) < _EXAMPLES:
            change["examples"].append(event["id"])
    return {
        "decisions": count,
        "different": sum(change["count"] for change in changes.values()),
        "changes": sorted(changes.values(), key=lambda change: -change["count"]),
    }


def _policies_at(bootstrap_servers: str, domain: str) -> Mapping[int, PolicySet]:
    """The policies as they were after the record of each offset."""
    reader = kafka.BulkReader(bootstrap_servers, principal=principal(domain, "reader"))
    try:
        records = [(offset, value) for offset, _, value in reader.read(topic("policies").of(domain), 0)]
    finally:
        reader.close()
    return PolicyLog(records, load_domain(domain).policy_variables())


def _canary_decided(decision: Mapping[str, Any], policies_at: Mapping[int, PolicySet]) -> bool:
    """Whether a canary was among the policies that decided, so that active versions were judged beside them."""
    data = decision["data"]
    scope = policies_at[data["inputs"]["policies_offset"]].scope(
        agent=data["agent"], action=(data["proposed"] or data)["action"], situation=data["situation_type"],
        subject=decision["subject"], event_ms=parse_time_ms(data["decided_at_event_time"]),
    )  # fmt: skip
    return scope.candidate is not None and scope.candidate.standing == "active"


def _said(data: Mapping[str, Any]) -> str:
    return f"{data['verdict']} {data['reason']}"


def _names(data: Mapping[str, Any]) -> list[str]:
    return [f"{p['policy_id']}@{p['version']}" for p in data["policies"]]


def _asked(data: Mapping[str, Any], known: Mapping[str, PublishedPolicy]) -> str:
    """Whom the policies that hold ask, as text that follows: ": 2 of approver"."""
    holding = [known[name].policy for name in _names(data) if name in known]
    terms = [each.approval or DEFAULT_APPROVAL for each in holding if each.verdict in ("hold", "require_approval")]
    return ": " + "; ".join(sorted(f"{each.approvers} of {', '.join(sorted(each.roles))}" for each in terms)) if terms else ""


def _ended_later(data: Mapping[str, Any]) -> bool:
    """Whether a decision had passed all that is judged beside it: what denied it then says nothing of its policies."""
    is_refused = data["grant"] is not None and not data["grant"]["is_granted"]
    return data["verdict"] == "deny" and (is_refused or data["reason"] in _LATER)


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
