"""The PyFlink shell of `govern`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import KeyedBroadcastProcessFunction
from pyflink.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    ValueStateDescriptor,
)

from contracts.approval import Override
from contracts.domain import load_domain
from contracts.errors import BadInput
from contracts.topics import topic
from udfs.policy.govern import Governor, override_id
from udfs.policy.policy_book import PolicyBook
from udfs.policy.policy_set import PolicySet
from udfs.policy.reading import Reported
from udfs.policy.subject import SubjectState
from udfs.policy.writing import STAGE, Decided, Place
from udfs.serde import dead_letter

WAIT_MS = 20
# Topic, key and value of what is written. One stream for all: in thread mode PyFlink 2.2.1 cannot give
# side outputs from on_timer of a keyed broadcast function.
RECORD = Types.ROW([Types.STRING(), Types.STRING(), Types.STRING()])
POLICIES_STATE = MapStateDescriptor("policies", Types.STRING(), Types.STRING())
_BOOK = "book"
_READ_UP_TO = "read_up_to"
# Forget ids of proposals this often (in proposals of a subject): a scan of its map state.
_PRUNE_EVERY = 5000
# Subjects whose state is kept at hand in Python, some hundred bytes each.
_KNOWN_SUBJECTS = 20_000


class Govern(KeyedBroadcastProcessFunction):
    """Proposals, outcomes, people's answers (key, value, topic, partition, offset); policies as broadcast state.

    State per subject: its clock, what was allowed, is in flight and waits for people (SubjectState),
    and the ids of proposals seen, kept for `remember_s` of event time; records that wait until the
    policies known at start (`policies_until`, the end offset of the policies topic at submission) are
    loaded. A processing-time timer stands at each deadline of people.
    Restart: all of it comes back from the checkpoint; what earlier stages repeat is dropped by id.
    A policy event that is malformed goes to dead letters and the policies before it stay in force.
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
        self._subject = runtime_context.get_state(ValueStateDescriptor("subject", Types.STRING()))
        self._seen = runtime_context.get_map_state(MapStateDescriptor("seen", Types.STRING(), Types.LONG()))
        self._waiting = runtime_context.get_list_state(
            ListStateDescriptor("waiting", Types.PICKLED_BYTE_ARRAY())
        )
        self._outcomes = topic("outcomes").of(self._domain)
        self._approvals = topic("approvals").of(self._domain)
        self._known: dict[str, SubjectState] = {}
        self._policies: PolicySet | None = None
        self._policies_offset = -1
        self._is_ready = self._policies_until == 0

    def process_element(self, value: Row, ctx: Any) -> Iterator[Any]:
        if not self._is_ready and not self._policies_ready(ctx):
            self._waiting.add(tuple(value))
            self._wake_later(ctx)
            return
        yield from self._govern(value, ctx)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        if not self._policies_ready(ctx):
            self._wake_later(ctx)
            return
        waiting = list(self._waiting.get())
        self._waiting.clear()
        for value in waiting:
            yield from self._govern(value, ctx)
        yield from self._pass_deadlines(timestamp, ctx)

    def _pass_deadlines(self, timestamp: int, ctx: Any) -> Iterator[Row]:
        (subject,) = ctx.get_current_key()
        state = self._state_of(subject)
        due_ms = state.next_deadline_ms()
        if due_ms is None or due_ms > timestamp:
            return
        policies = self._policies_now(ctx)
        place = Place(policies_offset=self._policies_offset, trigger="clock", wall_ms=timestamp)
        done = self._governor.pass_deadlines(state, policies, place)
        yield from self._keep(subject, state, done, ctx)

    def _wake_later(self, ctx: Any) -> None:
        timers = ctx.timer_service()
        timers.register_processing_time_timer(timers.current_processing_time() + WAIT_MS)

    def _policies_ready(self, ctx: Any) -> bool:
        reached = ctx.get_broadcast_state(POLICIES_STATE).get(_READ_UP_TO)
        self._is_ready = reached is not None and int(reached) >= self._policies_until - 1
        return self._is_ready

    def _govern(self, record: Any, ctx: Any) -> Iterator[Any]:
        key, value, log_topic, partition, offset = record
        if log_topic == self._outcomes:
            if reported := self._governor.read.outcome(key, value):
                self._settle(reported, offset)
            return
        try:
            if log_topic == self._approvals:
                yield from self._hear(key, value, partition, offset, ctx)
                return
            proposal = self._governor.read.proposal(key, value)
        except BadInput as refused:
            yield _letter(self._domain, refused, log_topic, partition, offset, key, value)
            return
        if self._seen.contains(proposal.id):
            return
        policies = self._policies_now(ctx)
        state = self._state_of(proposal.subject)
        place = Place(partition, offset, self._policies_offset, "proposal", _wall_ms())
        decided = self._governor.decide(state, proposal, policies, place)
        self._seen.put(proposal.id, proposal.event_ms)
        if state.decisions % _PRUNE_EVERY == 0:
            self._forget(state.clock_ms - self._remember_ms)
        yield from self._keep(proposal.subject, state, [decided], ctx)

    def _hear(
        self, key: bytes | None, value: bytes | None, partition: int, offset: int, ctx: Any
    ) -> Iterator[Row]:
        policies = self._policies_now(ctx)
        word = self._governor.read.word(key, value, policies.people)
        if isinstance(word.data, Override) and self._seen.contains(override_id(word)):
            return
        state = self._state_of(word.subject)
        place = Place(partition, offset, self._policies_offset, "answer", _wall_ms())
        done = self._governor.hear(state, word, policies, place)
        if isinstance(word.data, Override):
            self._seen.put(override_id(word), state.clock_ms)
        yield from self._keep(word.subject, state, done, ctx)

    def _keep(
        self, subject: str, state: SubjectState, done: list[Decided], ctx: Any
    ) -> Iterator[Row]:
        """The state into Flink, a timer at the next deadline, and what was decided out."""
        self._subject.update(state.to_json())
        if state.holds and (due_ms := state.next_deadline_ms()) is not None:
            ctx.timer_service().register_processing_time_timer(due_ms)
        for decided in done:
            yield Row("decisions", subject, decided.decision.decode())
            if decided.command is not None:
                yield Row("commands", subject, decided.command.decode())

    def _settle(self, reported: Reported, offset: int) -> None:
        state = self._state_of(reported.subject)
        state.report(reported, offset)
        self._subject.update(state.to_json())

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

    def _forget(self, horizon_ms: int) -> None:
        for old in [name for name, at in self._seen.items() if at < horizon_ms]:
            self._seen.remove(old)

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
