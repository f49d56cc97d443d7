"""Recorded decisions made again: from the decisions themselves, the outcomes and the policies.

The same core as the job. A decision says which outcomes and which policies were known when it was
made (`Inputs`), so the order in which `govern` happened to read its topics is repeated exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from contracts.decision import Grant, Noted, Reason
from contracts.envelope import parse_time_ms
from contracts.errors import BadInput
from contracts.proposal import Proposal
from udfs.policy.arbitration import Contest
from udfs.policy.audit import Line
from udfs.policy.govern import Governor, NeedsGrant
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Incoming, Reported
from udfs.policy.subject import SubjectState
from udfs.policy.writing import Decided, Place
from udfs.wide_limits.core import as_grant

# What a proposal may say beside its action, and its decision repeats (Writer.decision).
_SAID_BESIDE = ("reasoned", "fallback", "suspects", "evidence")


@dataclass(frozen=True)
class Remade:
    """A recorded entry and what it is now.

    `made`: all that came of its trigger, told with the first entry that names the trigger. Not replayable is
    a note that a proposal contends as long as nothing was decided about it: only decisions tell proposals. Nor, as
    long, is the denial of what came when too many contended: it may follow from what these conflict with.
    """

    recorded: dict[str, Any]
    remade: dict[str, Any]
    is_same: bool
    made: tuple[bytes, ...] = ()
    is_replayable: bool = True


class _StillContends(Exception):
    """The contest that a note tells of, or that a denial follows from, is open at the end of the chain."""


def proposal_in(decision: Mapping[str, Any]) -> Incoming:
    """The proposal a decision was made about, out of the decision's own event.

    Checked as `govern` checks what it reads: a chain proves that nobody changed an entry since, not that
    `govern` could have written it. Raises ValueError, KeyError or TypeError when it could not.
    """
    data = decision["data"]
    proposed = data["proposed"] or data
    expires_at = data["expires_at"]
    event_ms, features_at = parse_time_ms(data["event_time"]), data["features_at"]
    return Incoming(
        id=data["proposal_id"],
        subject=decision["subject"],
        event_ms=event_ms,
        features_ms=event_ms if features_at == data["event_time"] else parse_time_ms(features_at),
        expiry_ms=None if expires_at is None else parse_time_ms(expires_at),
        correlation_id=decision["correlationid"],
        hops=decision["hops"],
        traceparent=decision.get("traceparent"),
        data=Proposal.model_validate(
            {
                "event_time": data["event_time"],
                "agent": data["agent"],
                "agent_version": data["agent_version"],
                "action": proposed["action"],
                "parameters": proposed["parameters"],
                "confidence": data["confidence"],
                "reason": data["proposal_reason"],
                "situation_type": data["situation_type"],
                "features": data["features"],
                "features_at": features_at,
                "model": data["model"],
                **{name: data[name] for name in _SAID_BESIDE if name in data},
            }
        ),
        sha256=data["inputs"]["proposal_sha256"],
    )


def replay(
    governor: Governor,
    chain: Iterable[tuple[Line, dict[str, Any]]],
    lines: Sequence[Line],
    outcomes: Sequence[tuple[int, Reported]],
    answers: Mapping[int, tuple[bytes | None, bytes | None]],
    policies_at: Mapping[int, PolicySet],
) -> Iterator[Remade]:
    """One subject's entries in order, each made again; one that `govern` could not have made comes out as nothing.

    `chain`: the entries, each with what it says, taken one by one; `lines`: all of them at once, for grants
    and proposals that contend, which stand in entries further on. `outcomes`: the subject's, with their offsets,
    in order. `answers`: key and value of the records of its approvals partition, by offset. `policies_at`: the
    policies as they were after the record of each offset that an entry names.
    """
    state = SubjectState()
    settled = 0
    pending: list[bytes] = []
    made_from: object = None
    for number, (line, recorded) in enumerate(chain):
        made: tuple[bytes, ...] = ()
        try:
            inputs = recorded["data"]["inputs"]
            came_from = (inputs["trigger"], inputs["answer_offset"], inputs["wall_time"], inputs["policies_offset"])
            if not (pending and came_from == made_from):
                pending = []
                while settled < len(outcomes) and outcomes[settled][0] <= inputs["outcomes_offset"]:
                    offset, reported = outcomes[settled]
                    state.report(reported, offset)
                    settled += 1
                state.versions.update(inputs["versions"])
                done, state = _with_grants(
                    governor, state, recorded, lines, number, answers, policies_at[inputs["policies_offset"]]
                )
                made = tuple(each.decision for each in done)
                # What the proposal's event time ended has entries of its own.
                pending = list(made[-1:] if inputs["trigger"] == "proposal" else made)
                made_from = came_from
        except _StillContends:
            pending = []
            _pass_over(state, line, recorded)
            yield Remade(recorded, recorded, is_same=True, is_replayable=False)
            continue
        except (KeyError, TypeError, ValueError, AttributeError):  # no entry that `govern` writes
            pending = []
        remade = pending.pop(0) if pending else b"null"
        is_same = remade == line.value
        yield Remade(recorded, recorded if is_same else orjson.loads(remade) or {}, is_same, made)


def _pass_over(state: SubjectState, line: Line, recorded: Mapping[str, Any]) -> None:
    """The state after what cannot be made again."""
    data = recorded["data"]
    if recorded["type"] == Noted.event_type:
        state.go_on_to(parse_time_ms(data["event_time"]))
        state.contests.append(Contest.of_unknown())
    else:
        state.go_on_to(parse_time_ms(data["decided_at_event_time"]))
    state.decisions, state.head = data["entry"]["number"], hashlib.sha256(line.value or b"").hexdigest()


def _follows_from_unknown(state: SubjectState, data: Mapping[str, Any]) -> bool:
    """Whether it was denied because too many contended, and not all of these are known."""
    is_one_too_many = data.get("reason") == Reason.LOST.value and data.get("lost_to") is None
    return is_one_too_many and any(contest.is_unknown for contest in state.contests)


def _with_grants(
    governor: Governor,
    state: SubjectState,
    recorded: Mapping[str, Any],
    lines: Sequence[Line],
    number: int,
    answers: Mapping[int, tuple[bytes | None, bytes | None]],
    policies: PolicySet,
) -> tuple[list[Decided], SubjectState]:
    """The same, wider limits answering as they did; a claim nobody made then (candidates) is granted."""
    data = recorded["data"]
    is_simple = data["inputs"]["trigger"] == "proposal" and not state.contests  # claims before it changes
    before = None if is_simple else state.to_json()
    grants: dict[str, Grant] = {}
    while True:
        try:
            return _again(governor, state, recorded, lines, number, answers, policies, grants), state
        except NeedsGrant as needed:
            grants[needed.claim.claim_id] = _recorded_grant(needed.claim.claim_id, lines[number : number + 256])
            if before is not None:
                state = SubjectState.from_json(before)


def _recorded_grant(claim_id: str, lines: Sequence[Line]) -> Grant:
    for line in lines:
        grant = orjson.loads(line.value or b"{}")["data"].get("grant")
        if grant is not None and grant["claim_id"] == claim_id:
            return as_grant(grant)
    return Grant(claim_id=claim_id, is_granted=True)


def _contender(proposal_id: str, lines: Sequence[Line], number: int) -> Incoming:
    """The proposal that contends, out of the first decision about it. Raises _StillContends while there is none."""
    for later in range(number + 1, len(lines)):
        decision = orjson.loads(lines[later].value or b"{}")
        if decision["data"].get("proposal_id") == proposal_id:
            return proposal_in(decision)
    raise _StillContends


def _again(
    governor: Governor,
    state: SubjectState,
    recorded: Mapping[str, Any],
    lines: Sequence[Line],
    number: int,
    answers: Mapping[int, tuple[bytes | None, bytes | None]],
    policies: PolicySet,
    grants: Mapping[str, Grant],
) -> list[Decided]:
    """What comes of the trigger that a recorded entry names."""
    inputs = recorded["data"]["inputs"]
    wall_ms = parse_time_ms(inputs["wall_time"]) if inputs["wall_time"] else 0
    if inputs["trigger"] == "proposal":
        place = Place(
            inputs["proposal_partition"], inputs["proposal_offset"], inputs["policies_offset"], "proposal", wall_ms,
            grants,
        )  # fmt: skip
        is_note = recorded["type"] == Noted.event_type
        if not is_note and governor.is_full(state) and _follows_from_unknown(state, recorded["data"]):
            raise _StillContends
        proposal = _contender(recorded["data"]["about"], lines, number) if is_note else proposal_in(recorded)
        return governor.decide(state, proposal, policies, place)
    if inputs["trigger"] == "event_time":
        place = Place(policies_offset=inputs["policies_offset"], wall_ms=wall_ms, grants=grants)
        clock_ms = parse_time_ms(recorded["data"]["decided_at_event_time"])
        return governor.pass_event_time(state, clock_ms, policies, place)
    if inputs["trigger"] == "clock":
        place = Place(policies_offset=inputs["policies_offset"], trigger="clock", wall_ms=wall_ms, grants=grants)
        return governor.tick(state, policies, place)
    offset = inputs["answer_offset"]
    try:
        word = governor.read.word(*answers[offset], policies.people)
    except (KeyError, BadInput):  # the answer is gone, or other people are known: nothing comes of it
        return []
    place = Place(inputs["proposal_partition"], offset, inputs["policies_offset"], "answer", wall_ms, grants)
    return governor.hear(state, word, policies, place)
