"""The pure core of `govern`: one truth table from proposal to decision.

In this order; each step may end it, each end has a reason code (contracts/decision.py):

    1. seen before                       -> nothing
    2. paused (domain, agent, action,
       subject)                          -> deny   paused
    3. past its expirytime               -> deny   stale_expired
       features older than freshness_s   -> deny   stale_features
       the subject has changed since,
       where a policy asks (current_by)  -> deny   stale_version
       the same, and a policy's fallback
       passes steps 2 and 4 to 6         -> allow  stale_fallback
    4. more hops than max_hops           -> deny   hop_limit
       same agent and action again in
       the same chain, a loop later      -> deny   cause_repeated
       same action (on the same resource,
       where it names one), first one's
       outcome is not there
       (outcome_within_s)                -> deny   in_flight
       after a failure (cooldown_s)      -> deny   cooling_down
    5. policies: none matched            -> deny   no_policy_matched
                 a matching forbid       -> deny   forbidden_by_policy
                 one cannot be evaluated -> hold   policy_error
                 not_by names what it does
                 not tell                -> deny   policy_error
                 a matching hold         -> hold   held_by_policy, approval_required
    6. limits, of what was allowed       -> deny   rate_limit
                                                   budget_limit
                                                   in_flight_limit
       the same over all subjects, and
       an agent's action kept failing    -> deny   circuit_open, by a grant (udfs/wide_limits)
    7. proposals that conflict within
       a window: all but the best of
       those not denied                  -> deny   lost_arbitration
    8. people, asked by every hold:
       as many as may wait already       -> deny   hold_limit
       one refuses                       -> deny   refused_by_person
       a deadline, nobody left to ask    -> deny   approval_expired
       one changes the action            -> deny   edited_by_person, and a new decision
       enough approve: steps 2 to 6 again -> as they say, or
                                            allow  approved_by_people
    9. allow                             -> one command
                                            allowed_by_policy

A person who commands directly (override) passes steps 2 and 5 for forbids only; what they command is
in flight, cools down and is counted as what others do:
                                         -> deny   override_not_permitted, paused,
                                                   forbidden_by_policy, policy_error
                                         -> allow  override

`now` is event time: the subject's highest accepted event time, this proposal's included; people have
wall time, which comes in with what is read (`Place`) and moves no subject's clock. Nothing here reads a
clock or makes a random number, so a log of proposals, outcomes, answers, policies and switches gives the
same decisions again (ops/replay.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from contracts.approval import Answer, Override
from contracts.data import Scalar
from contracts.decision import Grant, Reason
from contracts.domain import DomainContract, columns
from contracts.envelope import derive_id, format_time_ms, parse_time_ms
from contracts.limit_claim import Claim, ClaimedLimit, Settlement
from contracts.policy import Arbitration, Limit
from contracts.proposal import Proposal
from udfs.policy.approval import EDITORS, Hold, Requirement
from udfs.policy.arbitration import Contest, conflict, is_concerned, join, renewed
from udfs.policy.limits import cost_of, over_limit
from udfs.policy.policy_set import Judgement, PolicySet, Scope
from udfs.policy.reading import Incoming, Reader, Word
from udfs.policy.subject import SubjectState, deed, deed_of
from udfs.policy.writing import STAGE, Decided, Place, Ruling, Writer
from udfs.wide_limits.core import scope_of

HOUR_MS = 3_600_000
# What CEL sees as allowed_1h and allowed_24h, and the least that is remembered for them.
DAY_MS = 24 * HOUR_MS
# Chains remembered per subject, to see one come round again.
MAX_CHAINS = 32
# Actions of a subject that may wait, for people and for each other; what waits is part of its state.
MAX_HOLDS = 100
# An override's agent and situation, where a proposal has its own.
PERSON = "person"
OVERRIDE = "flyball.override"
Approved = Collection[tuple[str, int]]


class NeedsGrant(Exception):
    """The decision waits for limits wider than the subject: ask them, then begin again with the grant.

    The subject's state may have been changed on the way: go on from a copy, or from what was stored.
    """

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim.claim_id)
        self.claim = claim


class Governor:
    """Decides for one domain under one policy set at a time. `read`: what may be decided about."""

    def __init__(self, contract: DomainContract, *, max_hops: int, max_holds: int = MAX_HOLDS) -> None:
        self._contract = contract
        self._max_hops = max_hops
        self._max_holds = max_holds
        self.read = Reader(contract)
        self._write = Writer(contract.name)
        self._features = {
            kind: {name: f"feature_{name}" for name in columns(situation) if name != "event_time"}
            for kind, situation in contract.situations.items()
        } | {OVERRIDE: {}}
        self._parameters = {
            name: {field: f"parameter_{field}" for field in columns(action)}
            for name, action in contract.actions.items()
        }

    def decide(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet, place: Place = Place()
    ) -> list[Decided]:
        """Steps 2 to 9 for a proposal not seen before; updates `state`.

        The last entry is about this proposal; before it come contests that its event time ended.
        """
        if policies.versioned_by:
            state.see(proposal.data.features, policies.versioned_by)
        done = self.pass_event_time(state, proposal.event_ms, policies, place)
        ruling = self._stale_or_ruled(state, proposal, policies)
        terms = _terms(ruling)
        if terms is not None and ruling.verdict != "deny" and ruling.reason is not Reason.STALE_FALLBACK:
            if not self.is_full(state):
                return [*done, self._contend(state, proposal, ruling, terms, place)]
            variables = self.variables(proposal, ruling.action, ruling.parameters, 0.0, ruling.counters)
            if terms.conflicts_with or is_concerned(state.contests, proposal, terms, variables):
                told = f"{self._max_holds} proposals wait for each other already"
                ruling = ruling._replace(verdict="deny", reason=Reason.LOST, told=told)
        return [*done, self._first(state, proposal, policies, place, ruling, (place.partition, place.offset))]

    def _first(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet, place: Place, ruling: Ruling,
        proposed_at: tuple[int, int],
    ) -> Decided:  # fmt: skip
        """The first decision about a proposal."""
        return self._conclude(
            state, proposal, policies, place, ruling, decision_id=derive_id(proposal.id, STAGE, "decision"),
            cause_id=proposal.id, proposed_at=proposed_at,
        )  # fmt: skip

    def _conclude(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet, place: Place, ruling: Ruling,
        *, decision_id: str, cause_id: str, proposed_at: tuple[int, int], instead_of: Hold | None = None,
    ) -> Decided:  # fmt: skip
        """The decision of a ruling, with all that follows: what is remembered, asked, commanded."""
        command_id, settlement = None, None
        if ruling.verdict == "hold" and (unknown := self._unknown(proposal, ruling)):
            told = f"nobody can tell who may not approve it: it does not tell {', '.join(unknown)} (not_by); {ruling.told}"
            ruling = ruling._replace(verdict="deny", reason=Reason.POLICY_ERROR, told=told)
        if ruling.verdict == "hold" and len(state.holds) >= self._max_holds:
            told = f"{len(state.holds)} actions wait for people already; {ruling.told}"
            ruling = ruling._replace(verdict="deny", reason=Reason.HOLD_LIMIT, told=told)
        if ruling.verdict == "allow" and self._contract.actions[ruling.action].is_commanded:
            command_id = derive_id(decision_id, STAGE, "command")
        claim = self._claim(state, proposal, ruling, decision_id, command_id)
        if claim is not None:
            if (grant := place.grants.get(claim.claim_id)) is None:
                raise NeedsGrant(claim)
            ruling = _granted(ruling, grant)
            if not grant.is_granted:
                command_id = None
            elif command_id is not None:
                assert ruling.judgement is not None  # only what policies allow is claimed
                variables = self.variables(proposal, ruling.action, ruling.parameters, 0.0, ruling.counters)
                takes_cost = len(ruling.judgement.amounts.intersection(variables)) < 2
                state.claim(command_id, claim.claim_id, takes_cost=takes_cost)
        if ruling.verdict == "allow":
            settlement = self._remember(state, proposal, policies, ruling, command_id)
        elif ruling.verdict == "hold":
            hold = self._hold(proposal, ruling, decision_id, place, proposed_at, instead_of)
            state.holds[decision_id] = hold
            ruling = ruling._replace(approval=hold.told())
        decision = self._write.decision(
            state, proposal, ruling, decision_id=decision_id, cause_id=cause_id, command_id=command_id,
            policy_set_digest=policies.digest, place=place, proposed_at=proposed_at,
        )  # fmt: skip
        if command_id is None:
            return Decided(decision, verdict=ruling.verdict)
        command = self._write.command(proposal, ruling, decision_id=decision_id, command_id=command_id)
        return Decided(decision, command, ruling.verdict, settlement)

    def _unknown(self, proposal: Incoming, ruling: Ruling) -> list[str]:
        """What `not_by` names and the proposal does not tell. (Null is told: it is nobody.)"""
        assert ruling.judgement is not None  # only policies hold
        told = {self._features[proposal.data.situation_type].get(name) for name in proposal.data.features}
        parameters = self._contract.actions[ruling.action].model_fields
        told |= {
            variable for name, variable in self._parameters[ruling.action].items()
            if name in ruling.parameters or not parameters[name].is_required()
        }  # fmt: skip
        return sorted({name for *_, terms in ruling.judgement.asks for name in terms.not_by if name not in told})

    def _claim(
        self, state: SubjectState, proposal: Incoming, ruling: Ruling, decision_id: str, command_id: str | None
    ) -> Claim | None:
        """What of step 6 is counted over subjects; None when nothing is."""
        judgement = ruling.judgement
        is_bounded = judgement is not None and (judgement.wide or judgement.circuit)
        if ruling.verdict != "allow" or judgement is None or not is_bounded or ruling.override is not None:
            return None
        values = self.variables(proposal, ruling.action, ruling.parameters, 0.0, ruling.counters)
        limits = tuple(_claimed(name, limit, values) for name, limit in judgement.wide)
        what = orjson.dumps([limit.model_dump() for limit in limits]).decode()
        return Claim(
            claim_id=derive_id(f"{decision_id}/{what}", STAGE, "claim"), command_id=command_id,
            subject=proposal.subject, agent=proposal.data.agent, action=ruling.action,
            at=format_time_ms(state.clock_ms), limits=limits, circuit=judgement.circuit,
            outcome_within_s=judgement.outcome_within_s or None,
        )  # fmt: skip

    def _hold(
        self, proposal: Incoming, ruling: Ruling, approval_id: str, place: Place,
        proposed_at: tuple[int, int], instead_of: Hold | None,
    ) -> Hold:  # fmt: skip
        assert ruling.judgement is not None  # only policies hold
        values = self.variables(proposal, ruling.action, ruling.parameters, 0.0, ruling.counters)
        excluded = instead_of.excluded() if instead_of is not None else ()  # an edit takes nobody's name away
        return Hold(
            approval_id, proposal.to_dict(), None if ruling.replaced is None else dict(ruling.replaced),
            [
                Requirement.ask(policy_id, version, terms, values, place.wall_ms, excluded)
                for policy_id, version, terms in ruling.judgement.asks
            ],
            place.wall_ms, *proposed_at, instead_of.approval_id if instead_of is not None else None,
        )  # fmt: skip

    # ------------------------------------------------------------------------- step 7: arbitration

    def is_full(self, state: SubjectState) -> bool:
        """Whether as many proposals wait for each other as may."""
        return sum(len(contest.members) for contest in state.contests) >= self._max_holds

    def _contend(
        self, state: SubjectState, proposal: Incoming, ruling: Ruling, terms: Arbitration, place: Place
    ) -> Decided:
        variables = self.variables(proposal, ruling.action, ruling.parameters, 0.0, ruling.counters)
        contest = join(
            state.contests, proposal, terms, variables, place.partition, place.offset,
            now_ms=state.clock_ms, wall_ms=place.wall_ms,
        )  # fmt: skip
        others = len(contest.members) - 1
        told = f"{proposal.data.action} waits for what conflicts with it" + (f"; {others} wait with it" if others else "")
        return Decided(
            self._write.note(
                state, event_id=derive_id(proposal.id, STAGE, "contends"), subject=proposal.subject,
                event_ms=proposal.event_ms, correlation_id=proposal.correlation_id, cause_id=proposal.id,
                about=proposal.id, what="contends", told=told, answer=None, requires=[], place=place,
                proposed_at=(place.partition, place.offset), sha256=proposal.sha256,
            )
        )  # fmt: skip

    def pass_event_time(
        self, state: SubjectState, event_ms: int, policies: PolicySet, place: Place
    ) -> list[Decided]:
        """The subject's clock goes on to `event_ms`, if that is later; contests it ends are decided."""
        state.go_on_to(event_ms)
        due = [contest for contest in state.contests if contest.closes_ms <= state.clock_ms]
        return self._close(state, due, policies, place._replace(trigger="event_time")) if due else []

    def tick(self, state: SubjectState, policies: PolicySet, place: Place) -> list[Decided]:
        """Whatever `place.wall_ms` ends: contests, and deadlines of people."""
        due = [contest for contest in state.contests if contest.closes_wall_ms <= place.wall_ms]
        done = self._close(state, due, policies, place) if due else []
        return [*done, *self._pass_deadlines(state, policies, place)]

    def _close(
        self, state: SubjectState, due: list[Contest], policies: PolicySet, place: Place
    ) -> list[Decided]:
        """Every member of the contests is decided, the best first: steps 2 to 6 again; losers name who won.

        Who is denied after all (by a grant, or because too much waits for people) has not won. What conflicts is as
        policies say now: also with what waits apart, which is decided with them.
        """
        if len(state.contests) > 1:
            due = self._regroup(state, due, policies)
        state.contests = [contest for contest in state.contests if contest not in due]
        done = []
        for contest in due:
            ranked = []
            for member in contest.members:
                proposal = Incoming.from_dict(member[0])
                ruling = self._stale_or_ruled(state, proposal, policies)
                terms = _terms(ruling)
                priority = terms.priority if terms is not None else 0
                now = self._as_ruled(member, proposal, ruling)
                ranked.append((-priority, -proposal.data.confidence, proposal.id, proposal, now))
            ranked.sort(key=lambda entry: entry[:3])
            winners: list[tuple[Incoming, list[Any]]] = []
            for _, _, _, proposal, member in ranked:
                ruling = self._stale_or_ruled(state, proposal, policies)
                _, partition, offset, conflicts, resource = member
                won = next(
                    (w for w, its in winners if conflict(its, proposal.data.action, conflicts, resource)), None
                )
                if ruling.verdict != "deny" and won is not None:
                    told = f"{won.data.agent}'s {won.data.action} conflicts with it and came before it"
                    ruling = ruling._replace(verdict="deny", reason=Reason.LOST, told=told, lost_to=won.id)
                decided = self._first(state, proposal, policies, place, ruling, (partition, offset))
                if decided.verdict != "deny":
                    winners.append((proposal, member))
                done.append(decided)
        return done

    def _regroup(self, state: SubjectState, due: list[Contest], policies: PolicySet) -> list[Contest]:
        """The contests that are due, with those that wait apart and, as policies are now, conflict with them."""
        for contest in state.contests:
            if contest.is_unknown:
                continue
            found = [(member, Incoming.from_dict(member[0])) for member in contest.members]
            contest.members = [
                self._as_ruled(member, proposal, self._stale_or_ruled(state, proposal, policies))
                for member, proposal in found
            ]
        for contest in due:
            if contest in state.contests:  # another has not taken it in
                contest.absorb(state.contests)
        return [contest for contest in due if contest in state.contests]

    def _as_ruled(self, member: list[Any], proposal: Incoming, ruling: Ruling) -> list[Any]:
        """A member with what it conflicts with as ruled now; as when it joined, where no policy says."""
        terms = _terms(ruling)
        if terms is None or ruling.reason is Reason.STALE_FALLBACK:
            return member
        variables = self.variables(proposal, ruling.action, ruling.parameters, 0.0, ruling.counters)
        return renewed(member, terms, variables)

    # ------------------------------------------------------------------------------ step 8: people

    def hear(self, state: SubjectState, word: Word, policies: PolicySet, place: Place) -> list[Decided]:
        """What a person's answer or override leads to, after the deadlines that passed before it."""
        done = self.tick(state, policies, place)
        if isinstance(word.data, Override):
            return [*done, self._override(state, word, word.data, policies, place)]
        answer = word.data
        hold = state.holds.get(answer.approval_id)
        if hold is None:
            ended = state.closed.get(answer.approval_id)
            why = f"{answer.approval_id} {ended}" if ended else f"no action {answer.approval_id} is held here"
            return [*done, self._note_refused(state, word, answer, None, why, place)]
        hold.keep_approvers(policies.people)
        if (refused := hold.refuses(word)) is not None:
            return [*done, self._note_refused(state, word, answer, hold, refused, place)]
        match answer.answer:
            case "edit":
                return [*done, *self._edit(state, hold, word, answer, policies, place)]
            case "refuse":
                hold.count(word)
                told = f"{answer.person} refused it" + (f": {answer.reason}" if answer.reason else "")
                return [*done, self._end(state, hold, Reason.REFUSED, told, policies, place, word.id)]
        hold.count(word)
        if hold.is_met():
            return [*done, self._release(state, hold, policies, place, word.id)]
        missing = "; ".join(
            f"{each.approvers - len(each.approved_by)} more of {', '.join(each.roles)}"
            for each in hold.requires
            if not each.is_met()
        )
        told = f"{answer.person} approved it; it waits for {missing}"
        return [*done, self._note(state, hold, "counted", told, place, word.id, hold.answers[-1])]

    def _pass_deadlines(self, state: SubjectState, policies: PolicySet, place: Place) -> list[Decided]:
        """Holds whose deadline `place.wall_ms` has reached: others are asked, or it expires to deny."""
        done = []
        due = [hold for hold in state.holds.values() if hold.deadline_ms() <= place.wall_ms]
        for hold in sorted(due, key=lambda hold: (hold.deadline_ms(), hold.approval_id)):
            for each in hold.requires:
                if each.is_met() or each.deadline_ms > place.wall_ms:
                    continue
                before = ", ".join(each.roles)
                if not each.escalate(place.wall_ms):
                    told = f"{before} did not approve it in time, and nobody else is to be asked"
                    done.append(
                        self._end(state, hold, Reason.EXPIRED, told, policies, place, hold.approval_id)
                    )
                    break
                told = f"{before} did not approve it in time; {', '.join(each.roles)} are asked now"
                done.append(self._note(state, hold, "escalated", told, place, hold.approval_id, None))
        return done

    def _release(
        self, state: SubjectState, hold: Hold, policies: PolicySet, place: Place, cause_id: str
    ) -> Decided:
        """Enough people approved: steps 2 to 6 again, as everything is now."""
        proposal = hold.incoming()
        ruling = self._stale_or_ruled(state, proposal, policies, hold.policies())
        names = ", ".join(hold.approvers())
        if ruling.verdict == "hold" and ruling.reason is not Reason.POLICY_ERROR:
            # Other policies ask now, or other versions: what people said was not said to these.
            told = f"approved by {names}, under policies that have changed since; {ruling.told}"
            state.close(hold.approval_id, "was asked anew: policies have changed")
            return self._conclude(
                state, proposal, policies, place, ruling._replace(told=told, replaced=hold.replaced),
                decision_id=derive_id(hold.approval_id, STAGE, "asked-anew"), cause_id=cause_id,
                proposed_at=(hold.partition, hold.offset), instead_of=hold,
            )  # fmt: skip
        if ruling.verdict == "allow" and ruling.reason is Reason.ALLOWED:
            ruling = ruling._replace(reason=Reason.APPROVED, told=f"approved by {names}; {ruling.told}")
        else:
            ruling = ruling._replace(verdict="allow" if ruling.verdict == "allow" else "deny",
                             told=f"approved by {names}, but: {ruling.told}")  # fmt: skip
        return self._ended(state, hold, ruling, policies, place, cause_id)

    def _edit(
        self, state: SubjectState, hold: Hold, word: Word, answer: Answer, policies: PolicySet, place: Place
    ) -> list[Decided]:
        """The action with some parameters changed: the hold ends, the new action is decided anew."""
        proposal = hold.incoming()
        before = proposal.data.parameters
        parameters = {**before, **answer.parameters}
        try:
            self._contract.actions[proposal.data.action].model_validate(parameters)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place_of = ".".join(str(part) for part in first["loc"])
            why = f"parameters.{place_of}: {first['msg']}"
            return [self._note_refused(state, word, answer, hold, why, place)]
        hold.count(word)
        new_id = derive_id(hold.approval_id, STAGE, "edited")
        changes = ", ".join(
            f"{name} {before.get(name)!r} -> {value!r}" for name, value in answer.parameters.items()
        )
        told = f"{answer.person} changed {changes}; decided anew as {new_id}"
        ended = self._end(state, hold, Reason.EDITED, told, policies, place, word.id)
        edited = proposal._replace(data=proposal.data.model_copy(update={"parameters": parameters}))
        ruling = self._stale_or_ruled(state, edited, policies)
        first_proposed = (hold.replaced or {"parameters": before})["parameters"]
        editors = [each for each in (hold.replaced or {}).get("by", "").split(EDITORS) if each]
        editors += [answer.person] if answer.person not in editors else []
        ruling = ruling._replace(
            told=f"changed by {answer.person}; {ruling.told}",
            replaced=ruling.replaced
            or {"action": proposal.data.action, "parameters": first_proposed, "by": EDITORS.join(editors)},
        )  # fmt: skip
        anew = self._conclude(
            state, edited, policies, place, ruling, decision_id=new_id, cause_id=word.id,
            proposed_at=(hold.partition, hold.offset), instead_of=hold,
        )  # fmt: skip
        return [ended, anew]

    def _override(
        self, state: SubjectState, word: Word, override: Override, policies: PolicySet, place: Place
    ) -> Decided:
        """A person's own command: obeys pauses and forbids unless the glass is broken; counted by limits.

        Where the subject has no clock yet, the event bears the time of signing, which nobody checked: it moves no clock.
        """
        event_ms = state.clock_ms or parse_time_ms(override.signed_at)
        proposal = Incoming(
            id=override_id(word), subject=word.subject, event_ms=event_ms, features_ms=event_ms,
            expiry_ms=None, correlation_id=word.correlation_id, hops=0, traceparent=None,
            data=Proposal(
                event_time=format_time_ms(event_ms), agent=PERSON, agent_version=1, action=override.action,
                parameters=override.parameters, confidence=1.0, reason=override.reason,
                situation_type=OVERRIDE, features={}, features_at=format_time_ms(event_ms),
            ),
            sha256=word.signed_sha256,
        )  # fmt: skip
        counters = self.counters(state, proposal, override.action)
        variables = self.variables(proposal, override.action, override.parameters, 0.0, counters)
        scope = self._scope(state, proposal, policies, override.action)
        judgement = replace(
            scope.judge(variables), outcome_within_s=scope.outcome_within_s, cooldown_s=scope.cooldown_s,
            amounts=scope.amounts,
        )  # fmt: skip
        against = [f"{pid}@{version}" for pid, version, verdict in judgement.matched if verdict == "deny"]
        errors = [error for error in judgement.errors if error.verdict == "deny"]  # might forbid it
        against += [f"{error.policy_id}@{error.version} (error)" for error in errors]
        if is_paused := policies.is_paused(PERSON, override.action, word.subject):
            against.append("pause")
        rights = word.person.may if word.person.is_active else ()
        breaks = override.break_glass and "break_glass" in rights
        told = f"{override.person} commands it: {override.reason}"
        if not {"override", *(["break_glass"] if override.break_glass else [])}.issubset(rights):
            reason = Reason.NOT_PERMITTED
            wanted = "override and break_glass" if override.break_glass else "override"
            told = f"expected a person who may {wanted}, {override.person} may {sorted(rights) or 'neither'}"
        elif not against or breaks:
            reason = Reason.OVERRIDE
        elif is_paused:
            reason, told = Reason.PAUSED, "paused: domain, action or subject; to go on, break the glass"
        elif judgement.reason is Reason.FORBIDDEN:
            reason, told = Reason.FORBIDDEN, f"{judgement.explanation}; to go on, break the glass"
        else:
            reason, told = Reason.POLICY_ERROR, f"{errors[0].told()}; to go on, break the glass"
        ruling = Ruling(
            "allow" if reason is Reason.OVERRIDE else "deny", reason, told, override.action,
            override.parameters, counters, judgement,
            override={
                "person": override.person, "reason": override.reason, "break_glass": override.break_glass,
                "against": against,
            },
        )  # fmt: skip
        return self._conclude(
            state, proposal, policies, place, ruling, decision_id=derive_id(proposal.id, STAGE, "decision"),
            cause_id=word.id, proposed_at=(place.partition, place.offset),
        )  # fmt: skip

    def _end(
        self, state: SubjectState, hold: Hold, reason: Reason, told: str, policies: PolicySet, place: Place,
        cause_id: str,
    ) -> Decided:  # fmt: skip
        """A hold that ends without its action."""
        data = hold.incoming().data
        ruling = Ruling("deny", reason, told, data.action, data.parameters)
        return self._ended(state, hold, ruling, policies, place, cause_id)

    def _ended(
        self,
        state: SubjectState,
        hold: Hold,
        ruling: Ruling,
        policies: PolicySet,
        place: Place,
        cause_id: str,
    ) -> Decided:
        state.close(hold.approval_id, f"ended already: {ruling.reason.value}")
        ruling = ruling._replace(approval=hold.told(), replaced=ruling.replaced or hold.replaced)
        return self._conclude(
            state, hold.incoming(), policies, place, ruling,
            decision_id=derive_id(hold.approval_id, STAGE, "ended"), cause_id=cause_id,
            proposed_at=(hold.partition, hold.offset),
        )  # fmt: skip

    def _note(
        self, state: SubjectState, hold: Hold, what: str, told: str, place: Place, cause_id: str,
        answer: Mapping[str, object] | None,
    ) -> Decided:  # fmt: skip
        proposal = hold.incoming()
        return Decided(
            self._write.note(
                state, event_id=derive_id(f"{hold.approval_id}/{cause_id}", STAGE, what, state.decisions),
                subject=proposal.subject, event_ms=state.clock_ms, correlation_id=proposal.correlation_id,
                cause_id=cause_id, about=hold.approval_id, what=what, told=told, answer=answer,
                requires=[each.told() for each in hold.requires], place=place,
                proposed_at=(hold.partition, hold.offset), sha256=proposal.sha256,
            )
        )  # fmt: skip

    def _note_refused(
        self, state: SubjectState, word: Word, answer: Answer, hold: Hold | None, why: str, place: Place
    ) -> Decided:
        said = {
            "person": answer.person, "answer": answer.answer, "answer_id": word.id,
            "signed_at": answer.signed_at, "reason": answer.reason,
        }  # fmt: skip
        if hold is not None:
            return self._note(state, hold, "refused", why, place, word.id, said)
        return Decided(
            self._write.note(
                state, event_id=derive_id(f"{answer.approval_id}/{word.id}", STAGE, "refused", state.decisions),
                subject=word.subject, event_ms=state.clock_ms or parse_time_ms(answer.signed_at),
                correlation_id=word.correlation_id, cause_id=word.id, about=answer.approval_id,
                what="refused", told=why, answer=said, requires=[], place=place,
                proposed_at=(place.partition, place.offset), sha256=word.signed_sha256,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------------------- steps 2 to 6

    def _stale_or_ruled(
        self, state: SubjectState, proposal: Incoming, policies: PolicySet, approved: Approved = ()
    ) -> Ruling:
        """Steps 2 to 6; beside them 3 to 6 as the scope's candidate would have them."""
        data = proposal.data
        if policies.is_paused(data.agent, data.action, proposal.subject):
            return Ruling(
                "deny", Reason.PAUSED, "paused: domain, agent, action or subject", data.action, data.parameters,
                self.counters(state, proposal, data.action),
            )  # fmt: skip
        scope = self._scope(state, proposal, policies, data.action)
        asked = _Asked(self, state, proposal, data.action, data.parameters)
        ruling = self._ruled(asked, policies, scope, approved)
        if scope.candidate is None:
            return ruling
        would = self._ruled(asked, policies, scope.candidate, approved, ruling.beside)
        return ruling._replace(
            candidate={"verdict": would.verdict, "reason": would.reason.value, "policies": would.matched}
        )

    def _ruled(
        self, asked: _Asked, policies: PolicySet, scope: Scope, approved: Approved, judged: Judgement | None = None
    ) -> Ruling:
        """Steps 3 to 6 under the policies of one scope, with their fallback in the place of a stale proposal's action."""
        state, proposal, data = asked.state, asked.proposal, asked.proposal.data
        stale = self._stale(state, proposal, scope)
        if stale is None:
            return self._rule(asked, scope, approved, judged)
        reason, told = stale
        denied = Ruling("deny", reason, told, data.action, data.parameters, asked.counters)
        fallback = scope.fallback
        if fallback is None:
            return denied
        try:
            self._contract.actions[fallback.action].model_validate(fallback.parameters)
        except (KeyError, ValidationError):  # publishing refuses it, but not everything on the topic came that way
            return denied._replace(told=f"{told}; the fallback {fallback.action} is not in the contract")
        if policies.is_paused(data.agent, fallback.action, proposal.subject):
            return denied._replace(told=f"{told}; the fallback {fallback.action} is paused")
        ruled = self._rule(
            _Asked(self, state, proposal, fallback.action, fallback.parameters),
            self._scope(state, proposal, policies, fallback.action).seen_by(scope.standing),
        )
        if ruled.verdict == "allow":
            return ruled._replace(
                reason=Reason.STALE_FALLBACK, told=f"{told}; instead {ruled.told}", beside=None,
                replaced={"action": data.action, "parameters": data.parameters, "by": ""},
            )  # fmt: skip
        return denied._replace(told=f"{told}; the fallback {fallback.action} was denied: {ruled.told}")

    def _scope(self, state: SubjectState, proposal: Incoming, policies: PolicySet, action: str) -> Scope:
        return policies.scope(
            agent=proposal.data.agent, action=action, situation=proposal.data.situation_type,
            subject=proposal.subject, event_ms=state.clock_ms or proposal.event_ms,
        )  # fmt: skip

    @staticmethod
    def _stale(state: SubjectState, proposal: Incoming, scope: Scope) -> tuple[Reason, str] | None:
        if proposal.expiry_ms is not None and state.clock_ms > proposal.expiry_ms:
            late_s = (state.clock_ms - proposal.expiry_ms) / 1000
            return Reason.STALE_EXPIRED, f"expired {late_s:.1f} s of event time ago"
        age_s = (state.clock_ms - proposal.features_ms) / 1000
        if scope.freshness_s is not None and age_s > scope.freshness_s:
            told = f"features are {age_s:.1f} s old, the policy asks for {scope.freshness_s:g} s"
            return Reason.STALE_FEATURES, told
        for variable in scope.current_by:
            seen, latest = proposal.data.features.get(variable.removeprefix("feature_")), state.versions.get(variable)
            if not isinstance(seen, (int, float)) or (latest is not None and seen < latest):
                told = f"made when {variable} was {seen}; it is {latest:g} now" if latest is not None else (
                    f"it does not tell {variable}, by which a policy tells the subject's version"
                )  # fmt: skip
                return Reason.STALE_VERSION, told
        return None

    @staticmethod
    def counters(state: SubjectState, proposal: Incoming, action: str) -> dict[str, int | float]:
        """What was allowed of the action before, and how often the chain went round."""
        return {
            "allowed_1h": state.count(action, HOUR_MS),
            "allowed_24h": state.count(action, DAY_MS),
            "hops": proposal.hops,
        }

    def _rule(
        self, asked: _Asked, scope: Scope, approved: Approved = (), judged: Judgement | None = None
    ) -> Ruling:
        """Steps 4 to 6 for one action. `judged`: what the policies of the scope say, where they were asked already."""
        action, parameters, counters = asked.action, asked.parameters, dict(asked.counters)
        looped = asked.looped
        if looped and (scope.standing == "decides" or looped[0] not in (Reason.IN_FLIGHT, Reason.COOLING_DOWN)):
            return Ruling("deny", *looped, action, parameters, counters)
        judgement, beside = (
            (judged, None) if judged is not None else scope.judge_both(asked.variables, approved=approved)
        )
        # A candidate that waits for no outcome, or for none that failed, would not have been stopped by one.
        if looped and (judgement.verdict != "allow" or _waits(judgement, looped[0])):
            return Ruling("deny", *looped, action, parameters, counters)
        over = over_limit(asked.state, asked.proposal.data.agent, action, asked.variables, judgement, counters)
        verdict, reason, told = over or (judgement.verdict, judgement.reason, judgement.explanation)
        return Ruling(verdict, reason, told, action, parameters, counters, judgement, beside)

    def looped(
        self, state: SubjectState, proposal: Incoming, action: str, parameters: Mapping[str, Scalar]
    ) -> tuple[Reason, str] | None:
        """Step 4: the loop guard."""
        wanted = deed(self._contract.actions[action], parameters)
        if proposal.hops > self._max_hops:
            told = f"{proposal.hops} times round the loop, at most {self._max_hops}"
            return Reason.HOP_LIMIT, told
        agent = proposal.data.agent
        for _, chain, by, what, hops in state.chains if proposal.hops else ():
            if (chain, by, what) == (proposal.correlation_id, agent, wanted) and proposal.hops > hops:
                told = f"{agent} had {wanted} allowed in this chain before, {proposal.hops - hops} loops ago"
                return Reason.CAUSE_REPEATED, told
        for flight in state.flying():
            if deed_of(flight) == wanted:
                left_s = (flight[1] - state.clock_ms) / 1000
                told = f"{wanted} was commanded and has no outcome; it lapses in {left_s:.1f} s of event time"
                return Reason.IN_FLIGHT, told
        if (until_ms := state.cooling_ms.get(wanted, 0)) > state.clock_ms:
            left_s = (until_ms - state.clock_ms) / 1000
            return Reason.COOLING_DOWN, f"{wanted} failed; it waits for another {left_s:.1f} s of event time"
        return None

    def _remember(
        self,
        state: SubjectState,
        proposal: Incoming,
        policies: PolicySet,
        ruling: Ruling,
        command_id: str | None,
    ) -> Settlement | None:
        """What was allowed, for later limits and the loop guard; what its outcome settles, if that came before."""
        judgement, action = ruling.judgement, ruling.action
        assert judgement is not None  # policies were asked
        age_s = ((state.clock_ms or proposal.event_ms) - proposal.features_ms) / 1000
        detail: tuple[object, ...] = ()
        if policies.counts_in_detail:
            variables = self.variables(proposal, action, ruling.parameters, age_s, ruling.counters)
            values = {name: variables[name] for name in policies.counted_by if name in variables}
            values |= cost_of(judgement.amounts.intersection(variables), values)
            detail = (proposal.data.agent, values, command_id, None)
        keep_ms = max(DAY_MS, policies.looks_back_ms)
        state.remember(action, keep_ms, detail)
        if command_id is None:
            return None
        done = deed(self._contract.actions[action], ruling.parameters)
        if judgement.outcome_within_s:
            lapses_ms = state.clock_ms + judgement.outcome_within_s * 1000
            state.in_flight[command_id] = [action, lapses_ms, judgement.cooldown_s * 1000, done]
        state.chains.append([state.clock_ms, proposal.correlation_id, proposal.data.agent, done, proposal.hops])
        since = state.clock_ms - keep_ms
        state.chains = [chain for chain in state.chains if chain[0] > since][-MAX_CHAINS:]
        if (early := state.early.pop(command_id, None)) is None:
            return None
        has_failed, event_ms, cost = early
        if (settled := state.settle(command_id, has_failed, event_ms, cost)) is None:
            return None
        what: Literal["failed", "succeeded"] = "failed" if has_failed else "succeeded"
        return Settlement(claim_id=settled.claim_id, what=what, at=format_time_ms(event_ms), cost=settled.cost)

    def recorded_variables(self, proposal: Incoming, decision: Mapping[str, Any]) -> dict[str, object]:
        """What the policies saw when a recorded decision was made about its proposal."""
        clock_ms = parse_time_ms(decision["decided_at_event_time"])
        return self.variables(
            proposal, proposal.data.action, proposal.data.parameters,
            (clock_ms - proposal.features_ms) / 1000, decision["counters"],
        )  # fmt: skip

    def variables(
        self,
        proposal: Incoming,
        action: str,
        parameters: Mapping[str, Scalar],
        age_s: float,
        counters: Mapping[str, int | float],
    ) -> dict[str, object]:
        """What CEL sees of an action."""
        data = proposal.data
        variables: dict[str, object] = {
            "action": action,
            "agent": data.agent,
            "subject": proposal.subject,
            "situation": data.situation_type,
            "confidence": data.confidence,
            "hops": proposal.hops,
            "age_s": age_s,
            "allowed_1h": counters["allowed_1h"],
            "allowed_24h": counters["allowed_24h"],
        }
        features = data.features
        for name, variable in self._features[data.situation_type].items():
            if (value := features.get(name)) is not None:
                variables[variable] = value
        for name, variable in self._parameters[action].items():
            if (value := parameters.get(name)) is not None:
                variables[variable] = value
        return variables


class _Asked:
    """One action that a proposal leads to, and what the policies that decide and their candidate see of it alike.

    What is stale needs only the counters. The loop guard looks at its own turn, not before: it forgets commands that have lapsed.
    """

    def __init__(
        self, governor: Governor, state: SubjectState, proposal: Incoming, action: str, parameters: Mapping[str, Scalar]
    ) -> None:
        self._governor = governor
        self.state = state
        self.proposal = proposal
        self.action = action
        self.parameters = parameters
        self.counters: Mapping[str, int | float] = governor.counters(state, proposal, action)

    @cached_property
    def looped(self) -> tuple[Reason, str] | None:
        return self._governor.looped(self.state, self.proposal, self.action, self.parameters)

    @cached_property
    def variables(self) -> Mapping[str, object]:
        age_s = (self.state.clock_ms - self.proposal.features_ms) / 1000
        return self._governor.variables(self.proposal, self.action, self.parameters, age_s, self.counters)


def _terms(ruling: Ruling) -> Arbitration | None:
    return ruling.judgement.arbitration if ruling.judgement else None


def _waits(judgement: Judgement, reason: Reason) -> bool:
    return bool(judgement.cooldown_s if reason is Reason.COOLING_DOWN else judgement.outcome_within_s)


def _claimed(policy: str, limit: Limit, values: Mapping[str, object]) -> ClaimedLimit:
    per = {name: values.get(name) for name in sorted(limit.per)}
    asked = None
    if limit.amount is not None:
        amount = values.get(limit.amount)
        if isinstance(amount, (int, float)) and not isinstance(amount, bool) and amount >= 0:
            asked = float(amount)
    counted = limit.amount or ("in_flight" if limit.max_in_flight is not None else "count")
    return ClaimedLimit(
        policy=policy, scope=scope_of(per, limit.within_s, counted), max_count=limit.max_count,
        max_total=limit.max_total, max_in_flight=limit.max_in_flight, within_s=limit.within_s, asked=asked,
    )  # fmt: skip


def _granted(ruling: Ruling, grant: Grant) -> Ruling:
    """The ruling with what wider limits said to it."""
    recorded = grant.model_dump(mode="json")
    if grant.is_granted or grant.reason is None:
        return ruling._replace(grant=recorded)
    return ruling._replace(grant=recorded, verdict="deny", reason=grant.reason, told=grant.explanation)


def override_id(word: Word) -> str:
    """What stands in a proposal's place: of what was signed, so that a copy is the same override."""
    return derive_id(word.signed_sha256, STAGE, OVERRIDE)
