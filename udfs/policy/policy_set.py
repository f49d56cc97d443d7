"""The policies in force, compiled: what `govern` asks about every proposal.

A set is immutable. A change of policies or switches makes a new one, with another digest.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import cel as rust
import rfc8785

from contracts.decision import Reason, Verdict
from contracts.envelope import parse_time_ms
from contracts.errors import PolicyProblem, PolicyRefused
from contracts.policy import Limit, Policy, PolicySwitch
from udfs.policy.cel import Condition, Evaluation, bind, outcome

_ALWAYS: Final = -(2**63)
_MAX_SCOPES: Final = 4096  # compiled scopes kept; names in proposals come from outside


@dataclass(frozen=True, slots=True)
class PolicyError:
    """A policy that could not be evaluated for a proposal, and why."""

    policy_id: str
    version: int
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the policies say of one proposal, before its limits are counted.

    `matched` are the policies whose condition was true, by policy id. `limits` are those of the
    matching allow policies, each with its policy id; none unless the verdict is allow.
    `freshness_s` is the strictest freshness of all policies in scope, matching or not: None for
    none.
    """

    verdict: Verdict
    reason: Reason
    explanation: str
    matched: tuple[tuple[str, int, Verdict], ...] = ()
    errors: tuple[PolicyError, ...] = ()
    limits: tuple[tuple[str, Limit], ...] = ()
    freshness_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    policy: Policy
    condition: Condition
    effective_ms: int
    reads: frozenset[str]
    match: tuple[str, int, Verdict]

    @classmethod
    def compile(cls, policy: Policy) -> Self:
        try:
            condition = Condition.compile(policy.when, policy.variables)
        except PolicyRefused as refused:
            name = f"{policy.policy_id}@{policy.version}"
            raise PolicyRefused.of(
                [PolicyProblem(p.expected, p.got, p.line, p.column, name) for p in refused.problems]
            ) from None
        since = policy.effective_from
        return cls(
            policy,
            condition,
            _ALWAYS if since is None else parse_time_ms(since),
            frozenset(condition.variables),
            (policy.policy_id, policy.version, policy.verdict),
        )

    def covers(self, agent: str, action: str, situation: str) -> bool:
        scope = self.policy.scope
        return (
            (not scope.actions or action in scope.actions)
            and (not scope.agents or agent in scope.agents)
            and (not scope.situations or situation in scope.situations)
        )


@dataclass(frozen=True, slots=True)
class _Scope:
    """The policies that speak about one action of one agent on one situation."""

    entries: tuple[_Entry, ...]
    variables: dict[str, str]
    # Two policies were checked with different types for one variable: each reads its own.
    is_mixed: bool
    freshness_s: float | None

    @classmethod
    def of(cls, entries: tuple[_Entry, ...]) -> Self:
        variables: dict[str, str] = {}
        is_mixed = False
        for entry in entries:
            for name, kind in entry.condition.variables.items():
                is_mixed |= variables.setdefault(name, kind) != kind
        limits = [e.policy.freshness_s for e in entries if e.policy.freshness_s is not None]
        return cls(entries, variables, is_mixed, min(limits, default=None))

    def reader(self, values: Mapping[str, object]) -> Callable[[_Entry], Evaluation]:
        """Converts the variables once, for all policies; the conversion costs most of the time."""
        if self.is_mixed:
            return lambda entry: entry.condition.evaluate(values)
        bindings = bind(values, self.variables)
        try:
            context = rust.Context(bindings.given)
        except Exception:  # text it cannot take: an error for who reads it
            return lambda entry: entry.condition.evaluate(values)
        if not bindings.wrong:
            return lambda entry: outcome(entry.condition.program, context)

        def read(entry: _Entry) -> Evaluation:
            bad = sorted(entry.reads & bindings.wrong.keys())
            if bad:
                return Evaluation(None, bindings.wrong[bad[0]])
            return outcome(entry.condition.program, context)

        return read


class PolicySet:
    """Active policies and switches, ready to judge. Pickles as its source and compiles on load.

    `digest` is the SHA-256 (hexadecimal) of the RFC 8785 canonical JSON of everything that can
    change a judgement: active policies without examples and description, and pauses. It does not
    depend on the order they came in.
    """

    def __init__(self, policies: Sequence[Policy], switches: Sequence[PolicySwitch]) -> None:
        self._policies = tuple(policies)
        self._switches = tuple(switches)
        self._paused = frozenset((switch.agent, switch.action) for switch in switches)
        self._entries = tuple(map(_Entry.compile, policies))
        self._starts = sorted({entry.effective_ms for entry in self._entries})
        self._scopes: dict[tuple[int, str, str, str], _Scope] = {}
        self.digest = hashlib.sha256(rfc8785.dumps(self._canonical())).hexdigest()

    @classmethod
    def compile(cls, policies: Iterable[Policy], switches: Iterable[PolicySwitch] = ()) -> Self:
        """The set made of `policies` (only active ones count) and `switches` (only pauses count).

        Order does not matter. Where two switches name the same agent and action, the pause wins;
        pass the newest only. Raises PolicyRefused when a condition does not compile, or when two
        different policies carry the same id and version.
        """
        by_version: dict[tuple[str, int], Policy] = {}
        for policy in policies:
            if policy.status != "active":
                continue
            key = (policy.policy_id, policy.version)
            if by_version.setdefault(key, policy) != policy:
                expected = f"one policy {policy.policy_id}@{policy.version}"
                raise PolicyRefused.of([PolicyProblem(expected, "two that differ")])
        pauses = {
            (s.agent or "", s.action or "", s.author, s.reason): s for s in switches if s.paused
        }
        return cls(
            [by_version[key] for key in sorted(by_version)],
            [pauses[k] for k in sorted(pauses)],
        )

    def to_source(self) -> str:
        """The set as JSON; `from_source` gives an equal one back, with the same digest."""
        return json.dumps(
            {
                "policies": [policy.model_dump(mode="json") for policy in self._policies],
                "switches": [switch.model_dump(mode="json") for switch in self._switches],
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_source(cls, source: str) -> Self:
        """The set that `to_source` wrote. Raises PolicyRefused for a condition that is refused."""
        raw: dict[str, list[Any]] = json.loads(source)
        return cls.compile(
            [Policy.model_validate_json(json.dumps(policy)) for policy in raw["policies"]],
            [PolicySwitch.model_validate_json(json.dumps(switch)) for switch in raw["switches"]],
        )

    def __reduce__(self) -> tuple[Callable[[str], PolicySet], tuple[str]]:
        return type(self).from_source, (self.to_source(),)

    def _canonical(self) -> dict[str, Any]:
        spoken = {"examples", "description"}
        return {
            "policies": [p.model_dump(mode="json", exclude=spoken) for p in self._policies],
            "switches": [switch.model_dump(mode="json") for switch in self._switches],
        }

    def is_paused(self, agent: str, action: str) -> bool:
        """Whether the domain, the agent, the action or this agent's action is paused."""
        paused = self._paused
        return bool(paused) and not paused.isdisjoint(
            ((None, None), (agent, None), (None, action), (agent, action))
        )

    def freshness_s(
        self, *, agent: str, action: str, situation: str, event_ms: int
    ) -> float | None:
        """The strictest freshness of the policies in scope, in seconds of event time."""
        return self._scope(agent, action, situation, event_ms).freshness_s

    def judge(
        self,
        variables: Mapping[str, object],
        *,
        agent: str,
        action: str,
        situation: str,
        event_ms: int,
    ) -> Judgement:
        """What the policies in force at `event_ms` (event time) say of one proposal.

        Policies in scope are evaluated one by one; what they say together:

        | a deny matches | one has an error | a hold matches | an allow matches | verdict        |
        |----------------|------------------|----------------|------------------|----------------|
        | yes            | any              | any            | any              | deny           |
        | no             | yes              | any            | any              | hold (error)   |
        | no             | no               | yes            | any              | hold           |
        | no             | no               | no             | yes              | allow          |
        | no             | no               | no             | no               | deny (default) |

        Row 1: a forbid is certain whatever else would have been said, so an error cannot soften
        it into a hold that a person might release. Row 2: the policy in error may have been a
        forbid, so nothing is allowed; it holds, whatever its verdict. Row 3: asking beats going
        ahead. Row 4: somebody allowed it and nobody objected. Row 5: nobody allowed it.

        Of each policy id the highest version already effective counts, and only that one, also
        where its scope is narrower than its predecessor's. Never raises for bad variables.
        """
        scope = self._scope(agent, action, situation, event_ms)
        fresh = scope.freshness_s
        denies: list[_Entry] = []
        holds: list[_Entry] = []
        allows: list[_Entry] = []
        errors: list[PolicyError] = []
        matched: list[tuple[str, int, Verdict]] = []
        if scope.entries:
            read = scope.reader(variables)
            for entry in scope.entries:
                evaluation = read(entry)
                if evaluation.value:
                    matched.append(entry.match)
                    match entry.policy.verdict:
                        case "deny":
                            denies.append(entry)
                        case "hold":
                            holds.append(entry)
                        case "allow":
                            allows.append(entry)
                elif evaluation.value is None:
                    policy = entry.policy
                    message = evaluation.error or "no value"
                    errors.append(PolicyError(policy.policy_id, policy.version, message))

        def say(
            verdict: Verdict, reason: Reason, why: str, limited: Sequence[_Entry] = ()
        ) -> Judgement:
            limits = tuple(
                (e.policy.policy_id, limit) for e in limited for limit in e.policy.limits
            )
            return Judgement(verdict, reason, why, tuple(matched), tuple(errors), limits, fresh)

        if denies:
            return say("deny", Reason.FORBIDDEN, _why(denies))
        if errors:
            first = errors[0]
            why = f"{first.policy_id}@{first.version} cannot be evaluated: {first.message}"
            return say("hold", Reason.POLICY_ERROR, why)
        if holds:
            return say("hold", Reason.HELD, _why(holds))
        if allows:
            return say("allow", Reason.ALLOWED, _why(allows), allows)
        return say("deny", Reason.NO_POLICY_MATCHED, "no policy allows it")

    def _scope(self, agent: str, action: str, situation: str, event_ms: int) -> _Scope:
        """The policies that speak here, found once for each scope and span between two starts."""
        key = (bisect_right(self._starts, event_ms), agent, action, situation)
        scope = self._scopes.get(key)
        if scope is None:
            in_force: dict[str, _Entry] = {}
            for entry in self._entries:  # sorted by id and version: the last one effective stays
                if entry.effective_ms <= event_ms:
                    in_force[entry.policy.policy_id] = entry
            covering = [e for e in in_force.values() if e.covers(agent, action, situation)]
            scope = _Scope.of(tuple(covering))
            if len(self._scopes) >= _MAX_SCOPES:
                self._scopes.clear()
            self._scopes[key] = scope
        return scope


def _why(entries: Sequence[_Entry]) -> str:
    first = entries[0].policy
    return f"{first.policy_id}@{first.version}: {first.reason}"
