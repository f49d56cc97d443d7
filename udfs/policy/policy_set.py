"""The policies in force, compiled: what `govern` asks about every proposal.

A set is immutable. A change of policies or switches makes a new one, with another digest.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, Literal, Self

import cel as rust
import rfc8785

from contracts.approval import Person
from contracts.data import Scalar
from contracts.decision import PolicyVerdict, Reason, Verdict
from contracts.envelope import parse_time_ms
from contracts.errors import PolicyProblem, PolicyRefused
from contracts.policy import (
    DEFAULT_APPROVAL,
    Approval,
    Arbitration,
    Circuit,
    Fallback,
    Limit,
    Policy,
    PolicySwitch,
)
from udfs.policy.cel import Condition, Evaluation, bind, outcome, outcomes

Standing = Literal["decides", "candidate", "active"]
_ALWAYS: Final = -(2**63)
_MAX_JUDGEMENTS: Final = 4096
_MAX_SCOPES: Final = 4096  # compiled scopes kept; names in proposals come from outside


@dataclass(frozen=True, slots=True)
class PolicyError:
    """A policy that could not be evaluated for a proposal, and why."""

    policy_id: str
    version: int
    verdict: PolicyVerdict
    message: str

    def told(self) -> str:
        return f"{self.policy_id}@{self.version} cannot be evaluated: {self.message}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the policies say of one proposal, before its limits are counted.

    `matched` are the policies whose condition was true, by policy id. `asks`: for a hold, which
    policy asks whom to approve. The rest comes from the matching allow policies (and those people
    approved) and is empty unless the verdict is allow: `limits`, each with its policy id; the
    longest `outcome_within_s` and `cooldown_s` (0: none); `obligations` of all of them; `wide`, the
    limits wider than a subject, each with its policy's name, and the strictest `circuit`; `amounts`, what the
    policies in scope, matching or not, have budgets of. For allow and hold: `arbitration`, of the policy with
    the highest priority, together with what others that name the action ask (`_contending`).
    `freshness_s` is the strictest freshness of all policies in scope, matching or not: None for
    none.
    """

    verdict: Verdict
    reason: Reason
    explanation: str
    matched: tuple[tuple[str, int, PolicyVerdict], ...] = ()
    errors: tuple[PolicyError, ...] = ()
    asks: tuple[tuple[str, int, Approval], ...] = ()
    limits: tuple[tuple[str, Limit], ...] = ()
    wide: tuple[tuple[str, Limit], ...] = ()
    circuit: Circuit | None = None
    arbitration: Arbitration | None = None
    outcome_within_s: int = 0
    cooldown_s: int = 0
    obligations: Mapping[str, Scalar] = field(default_factory=dict)
    freshness_s: float | None = None
    amounts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Entry:
    policy: Policy
    condition: Condition
    effective_ms: int
    reads: frozenset[str]
    match: tuple[str, int, PolicyVerdict]

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


class Scope:
    """The policies that speak about one action of one agent on one situation, for some subjects.

    `candidate` are those judged beside them, None where they are the same; as they stand: `candidate`, with shadow and
    canary policies as if they were active; where a canary is among those that decide: `active`, without shadows and
    canaries. `outcome_within_s`, `cooldown_s`: the longest of any policy in force about the action, whoever
    proposes it and on what: so long a person's own command is waited for (0: not at all). `amounts`: what these
    have budgets of, those wider than a subject included. `named_by`: the arbitration of any policy in force that names the
    action as one it conflicts with.
    """

    def __init__(
        self, entries: tuple[_Entry, ...], candidate: Scope | None = None, *, standing: Standing = "decides",
        outcome_within_s: int = 0, cooldown_s: int = 0, amounts: frozenset[str] = frozenset(),
        named_by: Sequence[Arbitration] = (),
    ) -> None:  # fmt: skip
        self.candidate = candidate
        self.standing = standing
        self.outcome_within_s = outcome_within_s
        self.cooldown_s = cooldown_s
        self.amounts = amounts
        self._amounts = _amounts(entry.policy for entry in entries)
        self._named_by = tuple(named_by)
        self._entries = entries
        # A judgement follows from which policies matched: found once for each combination.
        self._judgements: dict[tuple[bool, ...], Judgement] = {}
        others = candidate._entries if candidate is not None else ()
        self._union = (*entries, *(entry for entry in others if entry not in entries))
        self._others = tuple(self._union.index(entry) for entry in others)
        self._programs = [entry.condition.program for entry in self._union]
        self._variables: dict[str, str] = {}
        # Two policies were checked with different types for one variable: each reads its own.
        self._is_mixed = False
        for entry in self._union:
            for name, kind in entry.condition.variables.items():
                self._is_mixed |= self._variables.setdefault(name, kind) != kind
        self.current_by = tuple(sorted({e.policy.current_by for e in entries if e.policy.current_by}))
        limits = [e.policy.freshness_s for e in entries if e.policy.freshness_s is not None]
        self.freshness_s: float | None = min(limits, default=None)
        # The first by policy id, so that it does not depend on the order they came in.
        self.fallback: Fallback | None = next(
            (e.policy.fallback for e in entries if e.policy.fallback is not None), None
        )

    def judge(
        self, variables: Mapping[str, object], *, approved: Collection[tuple[str, int]] = ()
    ) -> Judgement:
        """What these policies say together. Never raises for bad variables.

        "A hold" is a policy with verdict hold or require_approval. When every one that matches is in
        `approved` (policy id and version), people said yes to it and it counts as an allow.

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
        """
        return self._say(self._evaluate(variables)[: len(self._entries)], approved)

    def judge_both(
        self, variables: Mapping[str, object], *, approved: Collection[tuple[str, int]] = ()
    ) -> tuple[Judgement, Judgement | None]:
        """What these policies say, and what the candidate would; each policy is evaluated once."""
        said = self._evaluate(variables)
        real = self._say(said[: len(self._entries)], approved)
        if self.candidate is None:
            return real, None
        return real, self.candidate._say([said[number] for number in self._others], approved)

    def seen_by(self, standing: Standing) -> Scope:
        """The policies here for those that stand so in another scope: the candidate where it does too."""
        return self.candidate if self.candidate is not None and self.candidate.standing == standing else self

    def _say(self, said: Sequence[Evaluation], approved: Collection[tuple[str, int]]) -> Judgement:
        values = tuple([evaluation.value for evaluation in said])
        if approved or None in values:
            return self._conclude(said, approved)
        judgement = self._judgements.get(values)  # type: ignore[arg-type]
        if judgement is None:
            if len(self._judgements) >= _MAX_JUDGEMENTS:
                self._judgements.clear()
            judgement = self._judgements[values] = self._conclude(said, approved)  # type: ignore[index]
        return judgement

    def _conclude(self, said: Sequence[Evaluation], approved: Collection[tuple[str, int]]) -> Judgement:
        """The table of `judge`, from what each policy said."""
        by_verdict: dict[PolicyVerdict, list[_Entry]] = {
            "deny": [], "hold": [], "require_approval": [], "allow": [],
        }  # fmt: skip
        errors: list[PolicyError] = []
        asks_for_errors: list[tuple[str, int, Approval]] = []
        matched: list[tuple[str, int, PolicyVerdict]] = []
        for entry, evaluation in zip(self._entries, said, strict=True):
            if evaluation.value:
                matched.append(entry.match)
                by_verdict[entry.policy.verdict].append(entry)
            elif evaluation.value is None:
                policy = entry.policy
                message = evaluation.error or "no value"
                errors.append(PolicyError(policy.policy_id, policy.version, policy.verdict, message))
                asks_for_errors.append((policy.policy_id, policy.version, policy.approval or DEFAULT_APPROVAL))

        passing = by_verdict["allow"] + by_verdict["require_approval"] + by_verdict["hold"]
        own = max(
            (e.policy.arbitration for e in passing if e.policy.arbitration is not None),
            key=lambda terms: terms.priority, default=None,
        )  # fmt: skip
        arbitration = _contending(own, self._named_by)

        def say(
            verdict: Verdict, reason: Reason, why: str, asks: tuple[tuple[str, int, Approval], ...] = ()
        ) -> Judgement:
            return Judgement(
                verdict, reason, why, tuple(matched), tuple(errors), asks, freshness_s=self.freshness_s,
                arbitration=arbitration if verdict == "hold" else None,
            )  # fmt: skip

        if denies := by_verdict["deny"]:
            return say("deny", Reason.FORBIDDEN, _why(denies))
        if errors:
            return say("hold", Reason.POLICY_ERROR, errors[0].told(), tuple(asks_for_errors))
        asking = by_verdict["require_approval"] + by_verdict["hold"]
        if any((e.policy.policy_id, e.policy.version) not in approved for e in asking):
            reason = Reason.APPROVAL_REQUIRED if by_verdict["require_approval"] else Reason.HELD
            asks = tuple(
                (e.policy.policy_id, e.policy.version, e.policy.approval or DEFAULT_APPROVAL) for e in asking
            )
            return say("hold", reason, _why(asking), asks)
        allowing = by_verdict["allow"] + asking
        allows = [entry.policy for entry in allowing]
        if not allows:
            return say("deny", Reason.NO_POLICY_MATCHED, "no policy allows it")
        return Judgement(
            "allow",
            Reason.ALLOWED,
            _why(allowing),
            tuple(matched),
            limits=tuple((p.policy_id, limit) for p in allows for limit in p.limits if not limit.is_wide),
            wide=tuple(
                (f"{p.policy_id}@{p.version}", limit) for p in allows for limit in p.limits if limit.is_wide
            ),
            circuit=min(
                (p.circuit for p in allows if p.circuit is not None), key=lambda c: c.failures, default=None
            ),
            outcome_within_s=max(p.outcome_within_s or 0 for p in allows),
            cooldown_s=max(p.cooldown_s or 0 for p in allows),
            arbitration=arbitration,
            obligations=_together(p.obligations for p in allows),
            freshness_s=self.freshness_s,
            amounts=self._amounts,
        )

    def _evaluate(self, values: Mapping[str, object]) -> list[Evaluation]:
        """What each policy of this scope and its candidate says.

        Converts the variables once, for all policies; the conversion costs most of the time.
        """
        if not self._union:
            return []
        if self._is_mixed:
            return [entry.condition.evaluate(values) for entry in self._union]
        bindings = bind(values, self._variables)
        try:
            context = rust.Context(bindings.given)
        except Exception:  # text it cannot take: an error for who reads it
            return [entry.condition.evaluate(values) for entry in self._union]
        if not bindings.wrong:
            return outcomes(self._programs, context)

        def read(entry: _Entry) -> Evaluation:
            bad = sorted(entry.reads & bindings.wrong.keys())
            if bad:
                return Evaluation(None, bindings.wrong[bad[0]])
            return outcome(entry.condition.program, context)

        return [read(entry) for entry in self._union]


def _contending(own: Arbitration | None, named_by: Sequence[Arbitration]) -> Arbitration | None:
    """On what terms an action contends: its own, and those of the policies that name it as one they conflict with.

    It waits as long as any of them says, and is about its resource; about the whole subject where several
    variables name one, as these are not comparable. Without terms of its own it names nothing that it conflicts
    with, has priority 0, and its resource is what the others name.
    """
    terms = named_by if own is None else (own, *named_by)
    if not terms:
        return None
    resources = {each.resource for each in terms if each.resource is not None}
    resource = next(iter(resources), None) if own is None else own.resource
    changes: dict[str, object] = {
        "window_s": max(each.window_s for each in terms), "resource": resource if len(resources) < 2 else None,
    }  # fmt: skip
    if own is None:
        changes |= {"conflicts_with": (), "priority": 0}
    return terms[0].model_copy(update=changes)


def _amounts(policies: Iterable[Policy]) -> frozenset[str]:
    """What the policies have budgets of, those wider than a subject included."""
    return frozenset(limit.amount for policy in policies for limit in policy.limits if limit.amount is not None)


def _together(given: Iterable[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """The obligations of several policies: the stricter of two numbers, true over false, both texts."""
    found: dict[str, Scalar] = {}
    for obligations in given:
        for name, value in obligations.items():
            before = found.get(name)
            if before is None or before == value:
                found[name] = value
            elif isinstance(before, bool) and isinstance(value, bool):
                found[name] = True
            elif isinstance(before, (int, float)) and isinstance(value, (int, float)):
                found[name] = min(before, value)
            elif value is not None:
                found[name] = f"{before}, {value}"
    return found


def canary_covers(policy: Policy, subject: str) -> bool:
    """Whether the canary applies to `subject`: a fixed share, by hash of policy id and subject.

    The same subjects for every version, and a larger share covers all of a smaller one's.
    """
    digest = hashlib.sha256(f"{policy.policy_id}|{subject}".encode()).digest()
    return int.from_bytes(digest[:8]) < policy.canary_percent / 100 * 2**64


class PolicySet:
    """Active policies, switches and people, ready to judge. Pickles as its source, compiles on load.

    `digest` is the SHA-256 (hexadecimal) of the RFC 8785 canonical JSON of everything that can
    change what is decided or recorded: active, canary and shadow policies without examples and
    description, pauses, and people with their roles and keys. It does not depend on the order they
    came in. `people`: by name.
    """

    def __init__(
        self, policies: Sequence[Policy], switches: Sequence[PolicySwitch], people: Sequence[Person] = ()
    ) -> None:
        self.people = {person.person: person for person in people}
        self._policies = tuple(policies)
        self._switches = tuple(switches)
        self._paused = frozenset((s.agent, s.action, s.subject) for s in switches)
        self._entries = tuple(map(_Entry.compile, policies))
        self._starts = sorted({entry.effective_ms for entry in self._entries})
        self._scopes: dict[tuple[object, ...], Scope] = {}
        self._canaries = tuple(p for p in self._policies if p.status == "canary")
        limits = [limit for policy in self._policies for limit in policy.limits if not limit.is_wide]
        self.counts_in_detail = any(
            limit.amount is not None or not {"subject", "action"}.issuperset(limit.per) for limit in limits
        )
        # The longest window of any policy's, whomever it is about: what others do must not shorten it.
        self.looks_back_ms = max((limit.within_s or 0 for limit in limits), default=0) * 1000
        self.versioned_by = tuple(sorted({p.current_by for p in self._policies if p.current_by}))
        # The variables limits count by: remembered with whatever is allowed.
        self.counted_by = tuple(
            sorted(
                {
                    name
                    for limit in limits
                    for name in (*limit.per, limit.amount)
                    if name is not None and name not in ("subject", "action", "agent")
                }
            )
        )
        self.digest = hashlib.sha256(rfc8785.dumps(self._canonical())).hexdigest()

    @classmethod
    def compile(
        cls, policies: Iterable[Policy], switches: Iterable[PolicySwitch] = (), people: Iterable[Person] = ()
    ) -> Self:
        """The set made of `policies` (draft and retired ones left out), `switches` (pauses only), `people`.

        Order does not matter. Where two switches name the same agent and action, the pause wins;
        pass the newest only. Raises PolicyRefused when a condition does not compile, or when two
        different policies carry the same id and version.
        """
        by_version: dict[tuple[str, int], Policy] = {}
        for policy in policies:
            if policy.status in ("draft", "retired"):
                continue
            key = (policy.policy_id, policy.version)
            if by_version.setdefault(key, policy) != policy:
                expected = f"one policy {policy.policy_id}@{policy.version}"
                raise PolicyRefused.of([PolicyProblem(expected, "two that differ")])
        pauses = {
            (s.agent or "", s.action or "", s.subject or "", s.author, s.reason): s
            for s in switches
            if s.paused
        }
        return cls(
            [by_version[key] for key in sorted(by_version)],
            [pauses[k] for k in sorted(pauses)],
            sorted(people, key=lambda person: person.person),
        )

    def to_source(self) -> str:
        """The set as JSON; `from_source` gives an equal one back, with the same digest."""
        return json.dumps(
            {
                "policies": [policy.model_dump(mode="json") for policy in self._policies],
                "switches": [switch.model_dump(mode="json") for switch in self._switches],
                "people": [person.model_dump(mode="json") for person in self.people.values()],
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
            [Person.model_validate_json(json.dumps(person)) for person in raw["people"]],
        )

    def __reduce__(self) -> tuple[Callable[[str], PolicySet], tuple[str]]:
        return type(self).from_source, (self.to_source(),)

    def _canonical(self) -> dict[str, Any]:
        spoken = {"examples", "description", "author", "moved_because"}
        return {
            "policies": [p.model_dump(mode="json", exclude=spoken) for p in self._policies],
            "switches": [switch.model_dump(mode="json") for switch in self._switches],
            "people": [person.model_dump(mode="json") for person in self.people.values()],
        }

    def is_paused(self, agent: str, action: str, subject: str = "") -> bool:
        """Whether a switch pauses the domain, the agent, the action, the subject, or some of them together."""
        paused = self._paused
        return bool(paused) and not paused.isdisjoint(product((None, agent), (None, action), (None, subject)))

    def scope(self, *, agent: str, action: str, situation: str, subject: str, event_ms: int) -> Scope:
        """The policies that speak about such a proposal at `event_ms` (event time).

        Of each policy id the highest active version already effective counts, and only that one,
        also where its scope is narrower than its predecessor's; a canary takes its place for the
        subjects it covers, and what the active ones say is judged beside it. Found once for each
        scope and span between two starts.
        """
        canaries = tuple(canary_covers(policy, subject) for policy in self._canaries)
        key = (bisect_right(self._starts, event_ms), agent, action, situation, canaries)
        scope = self._scopes.get(key)
        if scope is None:
            covered = {
                (p.policy_id, p.version) for p, is_in in zip(self._canaries, canaries, strict=True) if is_in
            }
            in_force: dict[str, dict[str, _Entry]] = {"active": {}, "canary": {}, "shadow": {}}
            for entry in self._entries:  # sorted by id and version: the last one effective stays
                if entry.effective_ms <= event_ms:
                    in_force[entry.policy.status][entry.policy.policy_id] = entry
            real = in_force["active"] | {
                name: entry for name, entry in in_force["canary"].items()
                if (entry.policy.policy_id, entry.policy.version) in covered
            }  # fmt: skip
            candidate = in_force["active"] | in_force["canary"] | in_force["shadow"]

            def covering(entries: Mapping[str, _Entry]) -> tuple[_Entry, ...]:
                return tuple(
                    entries[name]
                    for name in sorted(entries)
                    if entries[name].covers(agent, action, situation)
                )

            decide, active = covering(real), covering(in_force["active"])
            standing: Standing = "candidate" if decide == active else "active"
            beside = covering(candidate) if decide == active else active
            of_action = [
                entry.policy for entry in real.values()
                if not entry.policy.scope.actions or action in entry.policy.scope.actions
            ]  # fmt: skip
            scope = Scope(
                decide, Scope(beside, standing=standing) if beside != decide else None,
                outcome_within_s=max((p.outcome_within_s or 0 for p in of_action), default=0),
                cooldown_s=max((p.cooldown_s or 0 for p in of_action), default=0),
                amounts=_amounts(of_action),
                named_by=[
                    entry.policy.arbitration for entry in real.values()
                    if entry.policy.arbitration is not None and action in entry.policy.arbitration.conflicts_with
                ],
            )  # fmt: skip
            if len(self._scopes) >= _MAX_SCOPES:
                self._scopes.clear()
            self._scopes[key] = scope
        return scope

    def judge(
        self, variables: Mapping[str, object], *, agent: str, action: str, situation: str,
        event_ms: int, subject: str = "",
    ) -> Judgement:  # fmt: skip
        """What the policies in force at `event_ms` say of one proposal (`Scope.judge`)."""
        return self.scope(
            agent=agent, action=action, situation=situation, subject=subject, event_ms=event_ms
        ).judge(variables)


def _why(entries: Sequence[_Entry]) -> str:
    first = entries[0].policy
    return f"{first.policy_id}@{first.version}: {first.reason}"
