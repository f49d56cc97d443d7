"""The PyFlink shell of `govern`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import KeyedBroadcastProcessFunction
from pyflink.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ValueStateDescriptor,
)

from contracts.approval import Override
from contracts.dead_letter import Cause
from contracts.decision import Grant
from contracts.domain import load_domain
from contracts.envelope import derive_id, format_time_ms
from contracts.errors import BadInput
from contracts.limit_claim import LIMITS_KEY, Claim, Settlement
from contracts.topics import MAX_RECORD_BYTES, topic
from udfs.heap import settle
from udfs.policy.govern import Governor, NeedsGrant, override_id
from udfs.policy.policy_book import PolicyBook
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Reported
from udfs.policy.seen import Seen
from udfs.policy.subject import SubjectState
from udfs.policy.writing import STAGE, Decided, Place
from udfs.serde import dead_letter, internal
from udfs.state import GOVERN_WAITING
from udfs.waiting import StartPhase
from udfs.wide_limits.core import as_grant
from udfs.wide_limits.flink import WideCounter, limits_row, read_limits_event

T = TypeVar("T")
WAIT_MS = 20
# Topic, key and value of what is written. One stream for all: in thread mode PyFlink 2.2.1 cannot give
# side outputs from on_timer of a keyed broadcast function.
RECORD = Types.ROW([Types.STRING(), Types.STRING(), Types.STRING()])
POLICIES_STATE = MapStateDescriptor("policies", Types.STRING(), Types.STRING())
SUBJECT_STATE = ValueStateDescriptor("subject", Types.STRING())
# Ids that are never forgotten, and those that are in turns (udfs/policy/seen.py).
SEEN_STATE = MapStateDescriptor("seen", Types.STRING(), Types.LONG())
SEEN_EVEN_STATE = MapStateDescriptor("seen_even", Types.STRING(), Types.LONG())
SEEN_ODD_STATE = MapStateDescriptor("seen_odd", Types.STRING(), Types.LONG())
WAITING_STATE = ListStateDescriptor("waiting", Types.PICKLED_BYTE_ARRAY())
_BOOK = "book"
_READ_UP_TO = "read_up_to"
# A claim that has no grant after this long is made again.
_ASK_AGAIN_MS = 30_000
# Stands in a record's place when a window or a deadline has passed.
_CLOCK = "clock"
# What of a decision or command fits MAX_RECORD_BYTES: beside it lie a key of 256 characters and what Kafka adds.
_MAX_WRITTEN_BYTES = MAX_RECORD_BYTES - 4096
# Subjects whose state is kept at hand in Python, some hundred bytes each.
_KNOWN_SUBJECTS = 20_000


class Govern(KeyedBroadcastProcessFunction):
    """Proposals, outcomes, people's answers (key, value, topic, partition, offset); policies as broadcast state.

    State per subject: its clock, what was allowed, is in flight and waits for people (SubjectState),
    and the ids of proposals seen, kept for at least `remember_s` of event time; records that wait, in order:
    until the policies known at start (`policies_until`, the end offset of the policies topic at
    submission) are loaded, or until a claim on limits wider than the subject is granted. Claims and
    grants go through the limits topic; under its key `limits` this operator counts them (WideCounter).
    A processing-time timer stands at each deadline of people.
    Restart: all of it comes back from the checkpoint; what earlier stages repeat is dropped by id.
    A policy event that is malformed goes to dead letters and the policies before it stay in force. So does a record over
    which the core fails as nobody foresaw (`internal`), or whose decision Kafka would not take (`too_large`): nothing is
    decided, nothing commanded, its id is not remembered.
    """

    def __init__(self, domain: str, max_hops: int, remember_s: int, policies_until: int) -> None:
        self._domain = domain
        self._max_hops = max_hops
        self._remember_ms = remember_s * 1000
        self._policies_until = policies_until

    def open(self, runtime_context: RuntimeContext) -> None:
        contract = load_domain(self._domain)
        self._variables = contract.policy_variables()
        self._governor = Governor(contract, max_hops=self._max_hops)
        self._subject = runtime_context.get_state(SUBJECT_STATE)
        self._seen = Seen(
            runtime_context.get_map_state(SEEN_STATE), runtime_context.get_map_state(SEEN_EVEN_STATE),
            runtime_context.get_map_state(SEEN_ODD_STATE), remember_ms=self._remember_ms,
        )  # fmt: skip
        self._waiting = runtime_context.get_list_state(WAITING_STATE)
        self._outcomes = topic("outcomes").of(self._domain)
        self._situations = topic("situations").of(self._domain)
        self._approvals = topic("approvals").of(self._domain)
        self._limits_topic = topic("limits").of(self._domain)
        self._wide = WideCounter(self._domain, runtime_context)
        self._known: dict[str, SubjectState] = {}
        self._policies: PolicySet | None = None
        self._policies_offset = -1
        self._is_ready = self._policies_until == 0
        self._start = StartPhase(WAIT_MS)
        settle()

    def process_element(self, value: Row, ctx: Any) -> Iterator[Any]:
        if not self._is_ready and not self._policies_ready(ctx):
            self._waiting.add(GOVERN_WAITING.pack(value))
            self._wake_later(ctx)
            return
        if not self._start.is_over and self._start.may_wait(bytes(value[0] or b""), ctx.timer_service()):
            yield from self._drain(ctx)
        yield from self._govern(value, ctx)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        if not self._policies_ready(ctx):
            self._wake_later(ctx)
            return
        self._start.fired(timestamp)
        yield from self._ask_again(timestamp, ctx)
        yield from self._drain(ctx)
        yield from self._pass_deadlines(timestamp, ctx)

    def _drain(self, ctx: Any) -> Iterator[Row]:
        """Everything of the subject that waited; what still has to wait goes back, in order."""
        waiting = list(self._waiting.get())
        self._waiting.clear()
        for value in waiting:
            yield from self._govern(GOVERN_WAITING.unpack(value), ctx)

    def _pass_deadlines(self, timestamp: int, ctx: Any) -> Iterator[Row]:
        subject = _subject_of(ctx)
        state = self._state_of(subject)
        due_ms = state.next_deadline_ms()
        if due_ms is not None and due_ms <= timestamp and not state.waits_for:
            try:
                yield from self._take(subject, (subject.encode(), None, _CLOCK, 0, 0), timestamp, ctx)
            except BadInput as refused:  # what waits goes on waiting; the next record of the subject tries again
                yield _letter(self._domain, refused, _CLOCK, 0, timestamp, subject.encode(), None)

    def _wake_later(self, ctx: Any) -> None:
        timers = ctx.timer_service()
        timers.register_processing_time_timer(timers.current_processing_time() + WAIT_MS)

    def _policies_ready(self, ctx: Any) -> bool:
        if not self._is_ready:
            reached = ctx.get_broadcast_state(POLICIES_STATE).get(_READ_UP_TO)
            self._is_ready = reached is not None and int(reached) >= self._policies_until - 1
        return self._is_ready

    def _govern(self, record: Any, ctx: Any) -> Iterator[Row]:
        """One record; it waits while the subject waits for a grant, so that their order is kept."""
        key, value, log_topic, partition, offset = record
        try:
            if log_topic == self._limits_topic:
                event = read_limits_event(key, value)
                if isinstance(event, Grant):
                    yield from self._go_on(key.decode(), event, ctx)
                else:
                    yield from self._wide.take(event)
                return
            subject = (key or b"").decode(errors="replace")
            if self._state_of(subject).waits_for:
                self._waiting.add(GOVERN_WAITING.pack(record))
                return
            yield from self._take(subject, record, _wall_ms(), ctx)
        except BadInput as refused:
            yield _letter(self._domain, refused, log_topic, partition, offset, key, value)

    def _take(self, subject: str, record: Any, wall_ms: int, ctx: Any) -> Iterator[Row]:
        """One record, or a look at the clock, whose turn it is."""
        key, value, log_topic, partition, offset = record
        if log_topic == self._outcomes:
            if reported := self._governor.read.outcome(key, value):
                yield from self._settle(reported, offset)
            return
        policies = self._policies_now(ctx)
        state = self._state_of(subject)
        if log_topic == self._situations:
            features = self._governor.read.situation(key, value) if policies.versioned_by else None
            if features and state.see(features, policies.versioned_by):
                self._subject.update(state.to_json())
            return
        used: set[str] = set()
        grants = _Grants(state.grants, used)
        place = Place(partition, offset, self._policies_offset, "proposal", wall_ms, grants)
        was_ms, proposal_id, overriding = state.clock_ms, "", ""
        try:
            if log_topic == _CLOCK:
                done = self._pure(subject, self._governor.tick, state, policies, place._replace(trigger="clock"))
            elif log_topic == self._approvals:
                word = self._pure(subject, self._governor.read.word, key, value, policies.people)
                overriding = override_id(word) if isinstance(word.data, Override) else ""
                if overriding and self._seen.has_override(overriding):
                    return
                done = self._pure(subject, self._governor.hear, state, word, policies, place._replace(trigger="answer"))
            else:
                proposal = self._pure(subject, self._governor.read.proposal, key, value)
                proposal_id = proposal.id
                if self._seen.has(subject, state, proposal_id):
                    return
                done = self._pure(subject, self._governor.decide, state, proposal, policies, place)
        except NeedsGrant as needed:
            yield self._ask(subject, record, needed.claim, wall_ms, ctx)
            return
        self._refuse_large(subject, done)
        for claim_id, grant in state.grants.items():
            if grant["is_granted"] and claim_id not in used:  # policies changed meanwhile
                yield self._settlement(claim_id, "unused", state.clock_ms, None)
        state.grants = {}
        self._seen.forget(subject, state, was_ms)
        if proposal_id:
            self._seen.add(subject, state, proposal_id)
        if overriding:  # its signature is good for ever, and people say little
            self._seen.add_override(overriding)
        yield from self._keep(subject, state, done, ctx)

    def _pure(self, subject: str, call: Callable[..., T], *arguments: Any) -> T:
        """What the pure core gives. When it fails as nobody foresaw, nothing is decided and the stored state counts.

        Raises BadInput and NeedsGrant as the core does, and BadInput `internal` in place of all else.
        """
        try:
            return call(*arguments)
        except (BadInput, NeedsGrant):
            raise
        except Exception as error:
            self._known.pop(subject, None)  # changed on the way
            raise internal(error) from None

    def _refuse_large(self, subject: str, done: list[Decided]) -> None:
        """Raises BadInput when something of it would make the sink fail, and the job for ever; the stored state counts.

        Of a record that was read only policies make so much, by what they add or have told twice (`not_by`), and actions
        whose contract bounds no text.
        """
        for each in done:
            if (largest := max(len(each.decision), len(each.command or b""))) > _MAX_WRITTEN_BYTES:
                self._known.pop(subject, None)
                told = f"expected a decision of at most {_MAX_WRITTEN_BYTES} bytes, came one of {largest}"
                raise BadInput(Cause.TOO_LARGE, told)

    def _ask(self, subject: str, record: Any, claim: Claim, wall_ms: int, ctx: Any) -> Row:
        """Claim, and let the subject wait: this record first, then all that comes for it."""
        del self._known[subject]  # changed on the way; what is stored counts
        state = self._state_of(subject)
        timers = ctx.timer_service()
        state.waits_for, state.waits_since_ms = claim.claim_id, wall_ms
        state.asked_ms = timers.current_processing_time()
        self._subject.update(state.to_json())
        self._waiting.update([GOVERN_WAITING.pack(record), *self._waiting.get()])
        timers.register_processing_time_timer(state.asked_ms + _ASK_AGAIN_MS)
        return limits_row(
            self._domain, LIMITS_KEY, Claim, claim.model_dump(mode="json"), event_id=claim.claim_id, cause_id=None,
            at=claim.at,
        )  # fmt: skip

    def _ask_again(self, timestamp: int, ctx: Any) -> Iterator[Row]:
        """A claim without a grant for long (lost with its topic, say) is made again; a repeat does no harm."""
        subject = _subject_of(ctx)
        state = self._state_of(subject)
        if not state.waits_for or timestamp < state.asked_ms + _ASK_AGAIN_MS:
            return
        state.waits_for = ""
        self._subject.update(state.to_json())
        yield from self._take_first(subject, state.waits_since_ms, ctx)

    def _take_first(self, subject: str, wall_ms: int, ctx: Any) -> Iterator[Row]:
        """The record that waited for a grant, decided again; refused now if, say, its person's key was changed."""
        first, *others = self._waiting.get()
        self._waiting.update(others)
        first = GOVERN_WAITING.unpack(first)
        key, value, log_topic, partition, offset = first
        try:
            yield from self._take(subject, first, wall_ms, ctx)
        except BadInput as refused:
            yield _letter(self._domain, refused, log_topic, partition, offset, key, value)

    def _go_on(self, subject: str, grant: Grant, ctx: Any) -> Iterator[Row]:
        """The grant the subject waits for is there (another one is a repeat): everything in its order."""
        state = self._state_of(subject)
        if state.waits_for != grant.claim_id:
            return
        state.waits_for = ""
        state.grants[grant.claim_id] = grant.model_dump(mode="json")
        self._subject.update(state.to_json())
        yield from self._take_first(subject, state.waits_since_ms, ctx)
        yield from self._drain(ctx)
        yield from self._pass_deadlines(_wall_ms(), ctx)

    def _keep(
        self, subject: str, state: SubjectState, done: list[Decided], ctx: Any
    ) -> Iterator[Row]:
        """The state into Flink, a timer at the next deadline, and what was decided out."""
        self._subject.update(state.to_json())
        if (due_ms := state.next_deadline_ms()) is not None:
            ctx.timer_service().register_processing_time_timer(due_ms)
        for decided in done:
            yield Row("decisions", subject, decided.decision.decode())
            if decided.command is not None:
                yield Row("commands", subject, decided.command.decode())
            if decided.settlement is not None:
                yield self._settled(decided.settlement)

    def _settle(self, reported: Reported, offset: int) -> Iterator[Row]:
        state = self._state_of(reported.subject)
        settled = state.report(reported, offset)
        self._subject.update(state.to_json())
        if settled is not None:
            how: Literal["failed", "succeeded"] = "failed" if reported.has_failed else "succeeded"
            yield self._settlement(settled.claim_id, how, reported.event_ms, settled.cost)

    def _settlement(
        self, claim_id: str, what: Literal["succeeded", "failed", "unused"], at_ms: int, cost: float | None
    ) -> Row:
        return self._settled(Settlement(claim_id=claim_id, what=what, at=format_time_ms(at_ms), cost=cost))

    def _settled(self, data: Settlement) -> Row:
        return limits_row(
            self._domain, LIMITS_KEY, Settlement, data.model_dump(mode="json"),
            event_id=derive_id(data.claim_id, STAGE, data.what), cause_id=data.claim_id, at=data.at,
        )  # fmt: skip

    def _policies_now(self, ctx: Any) -> PolicySet:
        """The policies as far as they were read; compiled once, after a start or restart."""
        if self._policies is None:
            stored = ctx.get_broadcast_state(POLICIES_STATE)
            self._policies = PolicyBook.from_json(stored.get(_BOOK)).compile()
            self._policies_offset = int(stored.get(_READ_UP_TO) or -1)
        return self._policies

    def _state_of(self, subject: str) -> SubjectState:
        """The subject's state; reading it back from Flink costs as much as deciding, so it is kept.

        Written through at each decision; a restart begins with none kept.
        """
        state = self._known.get(subject)
        if state is None:
            if len(self._known) >= _KNOWN_SUBJECTS:
                self._known.clear()
            state = self._known[subject] = SubjectState.from_json(self._subject.value())
        return state

    def process_broadcast_element(self, value: Row, ctx: Any) -> Iterator[Any]:
        key, text, log_topic, partition, offset = value
        state = ctx.get_broadcast_state(POLICIES_STATE)
        book = PolicyBook.from_json(state.get(_BOOK))
        try:
            book.take(text, self._variables)
            self._policies = book.compile()
            state.put(_BOOK, book.to_json())
        except BadInput as refused:
            yield _letter(self._domain, refused, log_topic, partition, offset, key, text)
        self._policies_offset = offset
        state.put(_READ_UP_TO, str(offset))


class _Grants(Mapping[str, Grant]):
    """The grants a subject holds for the record whose turn it is; `used` tells which it needed."""

    def __init__(self, raw: Mapping[str, Any], used: set[str]) -> None:
        self._raw, self._used = raw, used

    def __getitem__(self, claim_id: str) -> Grant:
        grant = self._raw[claim_id]
        self._used.add(claim_id)
        return as_grant(grant)

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def _subject_of(ctx: Any) -> str:
    """The key of a timer: a text in thread mode, a row of one text in process mode."""
    key = ctx.get_current_key()
    return key if isinstance(key, str) else str(key[0])


def _wall_ms() -> int:
    return int(time.time() * 1000)


def _letter(
    domain: str, refused: BadInput, topic: str, partition: int, offset: int, key: Any, value: Any
) -> Row:
    place, letter = dead_letter(
        domain=domain, stage=STAGE, cause=refused.code, message=str(refused), topic=topic,
        partition=partition, offset=offset, key=key, value=value, now_ms=_wall_ms(),
    )  # fmt: skip
    return Row("dead-letters", place, letter.decode())
