"""The PyFlink shell of `reason`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyflink.common import Row, Time, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import FlatMapFunction, KeyedBroadcastProcessFunction
from pyflink.datastream.state import (
    ListStateDescriptor,
    MapStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)

from contracts.dead_letter import Cause
from contracts.domain import load_domain
from contracts.envelope import derive_id, parse_time_ms
from contracts.errors import BadInput, ReplyRefused
from contracts.exchange import Concluded
from contracts.model import ModelAlias
from contracts.prompt import Prompt
from contracts.topics import DAY_MS, topic
from udfs.agents.core import Agents, Situation
from udfs.agents.definition import LlmAgent, asking, load_agents
from udfs.agents.flink import read_alias
from udfs.agents.onnx_model import LoadedModel, load_model
from udfs.heap import settle
from udfs.policy.cel import Condition
from udfs.reason.caller import Back, Caller, GaveUp
from udfs.reason.converse import Question, Result
from udfs.reason.desk import TURNS, Call, Conclude, Desk, Start
from udfs.reason.metrics import Meters
from udfs.reason.outputs import cel_condition, not_fitting, proposal_of, read_prompt_event
from udfs.reason.recorded import STAGE, Exchanges, Recorded
from udfs.serde import dead_letter, internal
from udfs.state import BOOKS, CALLS, CONTROL, REASON_WAITING

# How often replies are collected, while there is something to wait for.
COLLECT_MS = 25
_WAIT_MS = 20
RECORD = Types.ROW([Types.STRING(), Types.STRING(), Types.STRING()])
_BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
# Agent, then the record: key, value, topic, partition, offset, when the broker appended it (ms).
ROUTED = Types.ROW([Types.STRING(), _BYTES, _BYTES, Types.STRING(), Types.LONG(), Types.LONG(), Types.LONG()])
CONTROL_STATE = MapStateDescriptor("control", Types.STRING(), Types.STRING())
CALLS_STATE = MapStateDescriptor("calls", Types.STRING(), Types.STRING())
BOOKS_STATE = ValueStateDescriptor("books", Types.STRING())
DONE_STATE = MapStateDescriptor("done", Types.STRING(), Types.LONG())
WAITING_STATE = ListStateDescriptor("waiting", Types.PICKLED_BYTE_ARRAY())
_READ_UP_TO = "\x00offset/"
# Ids of what was concluded are remembered this long (wall time): a situation that `context` repeats is not asked again.
# It repeats what came of facts that are still there, and Kafka keeps the first ones of a segment up to a week longer.
REMEMBERED_MS = topic("facts").retention_ms + 8 * DAY_MS
DONE_STATE.enable_time_to_live(StateTtlConfig.new_builder(Time.milliseconds(REMEMBERED_MS)).build())


class Route(FlatMapFunction):
    """A situation to the agents it may concern, by type and condition: most go no further. Keeps no state."""

    def __init__(self, domain: str, agents_file: str) -> None:
        self._domain, self._agents_file = domain, agents_file

    def open(self, runtime_context: RuntimeContext) -> None:
        contract = load_domain(self._domain)
        agents = load_agents(Path(self._agents_file), contract)
        self._agents = Agents(contract, agents)
        self._of: dict[str, list[tuple[str, Condition | None]]] = {}
        for agent in agents:
            if isinstance(agent, LlmAgent):
                self._of.setdefault(agent.situation, []).append((agent.agent, cel_condition(agent, contract)))

    def flat_map(self, value: Row) -> Iterator[Row]:
        try:
            situation = self._agents.read(bytes(value[0] or b""), bytes(value[1] or b""))
        except Exception as error:
            if not isinstance(error, BadInput):
                internal(error)
            return  # `propose` reads the same topic the same way and keeps it in dead letters
        for name, when in self._of.get(situation.type, ()):
            if when is None or when.evaluate(situation.features).value is True:
                yield Row(name, *value)


class Reason(KeyedBroadcastProcessFunction):
    """Situations routed to agents, keyed by agent; prompt and model events as broadcast state.

    State per agent: its calls, waiting or in flight, one entry each; its books (tokens, cost, circuits); ids of
    what it concluded; records that wait until the prompts and models known at start are loaded. A processing-time
    timer, one an agent, collects replies every 25 ms while there are calls.
    Restart: calls in flight are made again, unless their replies were recorded on `<domain>.exchanges`; a
    conclusion that was recorded is written again as it was. Calls of an agent that agents.yaml declares no more,
    or whose situation the contract no longer fits, go to dead letters.
    """

    def __init__(
        self, domain: str, agents_file: str, bootstrap_servers: str, ready_at: dict[str, int], largest_in_flight: int,
        models_url: str, model: str = "",
    ) -> None:  # fmt: skip
        self._domain = domain
        self._agents_file = agents_file
        self._bootstrap = bootstrap_servers
        self._ready_at = ready_at
        self._room = largest_in_flight
        self._models_url = models_url
        self._model = model

    def open(self, runtime_context: RuntimeContext) -> None:
        self._contract = load_domain(self._domain)
        listed = load_agents(Path(self._agents_file), self._contract)
        self._agents = Agents(self._contract, listed)
        self._llm = {agent.agent: asking(agent, self._model) for agent in listed if isinstance(agent, LlmAgent)}
        self._calls = runtime_context.get_map_state(CALLS_STATE)
        self._books = runtime_context.get_state(BOOKS_STATE)
        self._done = runtime_context.get_map_state(DONE_STATE)
        self._waiting = runtime_context.get_list_state(WAITING_STATE)
        self._desks: dict[str, Desk] = {}
        self._settling: dict[str, dict[str, Call]] = {}
        self._prompts: dict[str, Prompt] | None = None
        self._models: dict[str, LoadedModel] = {}
        self._is_ready = not any(self._ready_at.values())
        self._exchanges = Exchanges(self._domain, self._bootstrap)
        self._caller = Caller(self._contract, self._exchanges, self._models_url)
        self._meters = Meters(runtime_context)
        self._home = os.environ.get("FLYBALL_HOME", "")
        settle()

    def close(self) -> None:
        self._caller.close()
        self._exchanges.close()

    def process_element(self, value: Row, ctx: Any) -> Iterator[Row]:
        agent, *record = value
        self._load(ctx)
        if not self._is_ready:
            self._waiting.add(REASON_WAITING.pack(record))
            self._wake(ctx, _WAIT_MS)
            return
        yield from self._opened(agent)
        yield from self._take(agent, record)
        yield from self._collect(agent)
        self._wake(ctx, COLLECT_MS)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Row]:
        key = ctx.get_current_key()
        agent = key if isinstance(key, str) else str(key[0])
        self._load(ctx)
        if not self._is_ready:
            self._wake(ctx, _WAIT_MS)
            return
        waiting = [REASON_WAITING.unpack(record) for record in self._waiting.get() or ()]
        if waiting:
            self._waiting.clear()
        if agent not in self._llm:
            yield from self._gone(agent, waiting)
            return
        yield from self._opened(agent)
        for record in waiting:
            yield from self._take(agent, list(record))
        yield from self._collect(agent)
        if self._desks[agent].calls or self._settling[agent]:
            self._wake(ctx, COLLECT_MS)

    def _wake(self, ctx: Any, within_ms: int) -> None:
        """At the next multiple of `within_ms`: however many ask, one timer fires."""
        timers = ctx.timer_service()
        now_ms = timers.current_processing_time()
        timers.register_processing_time_timer(now_ms - now_ms % within_ms + within_ms)

    def _opened(self, agent: str) -> Iterator[Row]:
        """Makes the agent's desk, once; after a restart from state, and what was concluded meanwhile is written."""
        if agent in self._desks:
            return
        calls = []
        for text in list(self._calls.values()):
            call = CALLS.load(text)
            key, value, *_ = call["record"]
            try:
                self._agents.read(key.encode(), value.encode())
            except BadInput as refused:  # the contract is another since
                self._calls.remove(call["call_id"])
                yield self._letter_of(refused, call["record"])
                continue
            calls.append(call)
        desk = self._desks[agent] = Desk(self._llm[agent], BOOKS.load(self._books.value() or "{}"), calls)
        self._settling[agent] = {}
        if not calls:
            return
        self._exchanges.since(desk.unknown_since_ms())
        # Into state too: what they had reserved is given back once, however often the job is restarted.
        self._books.update(BOOKS.dump(desk.to_dict()))
        for made in list(desk.calls.values()):
            is_over = self._knows(made)
            self._calls.put(made.call_id, CALLS.dump(made.to_dict()))
            if is_over:
                yield from self._write_again(agent, made)

    def _gone(self, agent: str, waiting: list[Any]) -> Iterator[Row]:
        """Calls and waiting records of an agent that is declared no more, to dead letters; its state is cleared."""
        refused = BadInput(Cause.AGENT_GONE, f"no agent {agent!r} is declared any more; its call was given up")
        for text in list(self._calls.values()):
            yield self._letter_of(refused, CALLS.load(text)["record"])
        for record in waiting:
            yield self._letter_of(refused, record)
        self._calls.clear()
        self._books.clear()

    def _knows(self, call: Call) -> bool:
        """Whether the call was concluded before a restart; a reply that was recorded is used again.

        Unless it is of a level that was given up already.
        """
        level = self._exchanges.levels(call.call_id, TURNS)
        if level is not None and level >= call.level:
            if level > call.level:
                call.troubles.append("failed: given up before a restart")
            call.level, call.is_answered = level, True
        return self._exchanges.concluded(call.call_id) is not None

    def _take(self, agent: str, record: list[Any]) -> Iterator[Row]:
        """One situation for one agent: asked before, answered by those before it, or a new call."""
        key, value, log_topic, partition, offset, appended_ms = record
        asked = self._llm[agent]
        try:
            situation = self._agents.read(bytes(key or b""), bytes(value or b""))
            is_answered = bool(asked.after) and self._agents.would_propose(situation, self._models, asked.after)
        except Exception as error:  # it waited, and the contract is another since; or nobody foresaw it
            yield self._letter_of(error if isinstance(error, BadInput) else internal(error), record)
            return
        call_id = derive_id(situation.id, STAGE, agent)
        desk = self._desks[agent]
        if self._done.contains(call_id):
            self._exchanges.forget(call_id)
            return
        if call_id in desk.calls or call_id in self._settling[agent]:
            return
        if is_answered:
            self._meters.answered_before(agent)
            return
        self._exchanges.since(appended_ms)
        prompt = (self._prompts or {}).get(asked.prompt)
        event_ms = parse_time_ms(situation.event_time)
        expires = [parse_time_ms(situation.expiry)] if situation.expiry else []
        if asked.expires_after_s is not None:
            expires.append(event_ms + asked.expires_after_s * 1000)
        call = Call(
            call_id=call_id, situation_id=situation.id, subject=situation.subject, event_ms=event_ms,
            expiry_ms=min(expires, default=None), arrived_ms=_wall_ms(), appended_ms=appended_ms,
            record=[bytes(key or b"").decode(), bytes(value or b"").decode(), log_topic, partition, offset],
            size=(len(value or b"") + len(prompt.text if prompt else "") + 2000) // 3,
        )  # fmt: skip
        self._meters.taken(agent)
        desk.take(call)
        is_over = self._knows(call)
        self._calls.put(call_id, CALLS.dump(call.to_dict()))
        if is_over:
            yield from self._write_again(agent, call)

    def _write_again(self, agent: str, call: Call) -> Iterator[Row]:
        """What was concluded before a restart, written as it was; nothing is asked."""
        concluded = self._exchanges.concluded(call.call_id)
        assert concluded is not None
        self._desks[agent].give_up(call)
        last = None if concluded.turn is None else self._exchanges.exchange(call.call_id, concluded.turn)
        yield from self._write(agent, call, concluded, last)

    def _collect(self, agent: str) -> Iterator[Row]:
        """What came back, and what is to be asked now."""
        desk = self._desks[agent]
        has_changed = False
        for back in self._caller.done(agent):
            has_changed = True
            yield from self._back(agent, desk, back)
        now_ms = _wall_ms()
        room = self._room - sum(other.in_flight for other in self._desks.values())
        if any(other.agent.priority < desk.agent.priority and other.waiting for other in self._desks.values()):
            room = 0 if room < self._room // 10 else room  # the last tenth is for those before it
        prompt = (self._prompts or {}).get(desk.agent.prompt)
        for order in desk.orders(now_ms, room=room, has_prompt=prompt is not None):
            has_changed = True
            if isinstance(order, Start):
                assert prompt is not None
                self._ask(order, prompt, desk)
            else:
                self._conclude(agent, order)
        if has_changed:
            self._books.update(BOOKS.dump(desk.to_dict()))
        self._meters.standing(agent, desk.in_flight, desk.waiting + len(self._settling[agent]))

    def _back(self, agent: str, desk: Desk, back: Back) -> Iterator[Row]:
        if isinstance(back, BaseException):
            raise back
        now_ms = _wall_ms()
        if isinstance(back, GaveUp):
            result = back.result
            call = desk.calls[result.question.call_id]
            assert result.why is not None
            desk.spent(call, now_ms, result.taken.tokens_in + result.taken.tokens_out, result.taken.cost)
            call.taken = result.taken.with_before(call.taken).to_dict()
            self._meters.took(agent, result.taken)
            desk.ended(call, now_ms, (result.why, result.explanation))
            if result.last is not None:
                call.last_turn = result.last.exchange.turn
                yield self._letter_of_reply(result.last, result.explanation)
            self._calls.put(call.call_id, CALLS.dump(call.to_dict()))
            return
        if back.call_id in self._settling[agent]:
            call = self._settling[agent].pop(back.call_id)
        else:
            call = desk.calls[back.call_id]
            assert back.result is not None
            desk.spent(call, now_ms, back.result.taken.tokens_in + back.result.taken.tokens_out, back.result.taken.cost)
            self._meters.took(agent, back.result.taken)
            desk.ended(call, now_ms, None)
        yield from self._write(agent, call, back.concluded, back.last, back.result)

    def _ask(self, order: Start, prompt: Prompt, desk: Desk) -> None:
        call = order.call
        self._calls.put(call.call_id, CALLS.dump(call.to_dict()))
        self._caller.ask(
            Question(
                call_id=call.call_id, agent=desk.agent, prompt=prompt, situation=self._situation(call), level=call.level,
                model=order.model, prices=desk.prices(call.level), until_ms=order.until_ms, arrived_ms=call.arrived_ms,
                starts=call.starts, before=call.taken, home=self._home, tokens=order.tokens, cost=order.cost,
                troubles=tuple(call.troubles),
            )
        )  # fmt: skip

    def _situation(self, call: Call) -> Situation:
        key, value, *_ = call.record
        return self._agents.read(key.encode(), value.encode())

    def _conclude(self, agent: str, order: Conclude) -> None:
        """Nobody else is asked: recorded first, written when that is acknowledged."""
        call, taken = order.call, order.call.taken
        self._settling[agent][call.call_id] = call
        self._caller.conclude(
            Concluded(
                call_id=call.call_id, agent=agent, agent_version=self._llm[agent].version,
                situation_id=call.situation_id, how="abstained" if order.agent is None else "fell_back", why=order.why,
                explanation=order.explanation, by=order.agent or "", turn=call.last_turn,
                asked=int(taken.get("asked", 0)), tokens_in=int(taken.get("tokens_in", 0)),
                tokens_out=int(taken.get("tokens_out", 0)), cost=taken.get("cost", 0.0),
                latency_ms=max(0, _wall_ms() - call.arrived_ms), starts=call.starts,
            ), None,
        )  # fmt: skip

    def _write(
        self, agent: str, call: Call, concluded: Concluded, last: Recorded | None, result: Result | None = None
    ) -> Iterator[Row]:
        """What is concluded, out; the call is over. `result`: what was read of the last reply, if that was in this run."""
        self._calls.remove(call.call_id)
        self._done.put(call.call_id, call.arrived_ms)
        self._exchanges.forget(call.call_id)
        self._meters.concluded(agent, concluded)
        situation = self._situation(call) if result is None else result.question.situation
        asked = self._llm[agent]
        written: tuple[str, bytes] | None = None
        if concluded.how == "proposed" and last is None:
            missing = not_fitting(f"reply {concluded.turn} of call {call.call_id} counted, and is not on the exchanges topic")
            yield self._letter_of(missing, call.record)
        elif concluded.how == "proposed" and last is not None:
            try:
                reply = None if result is None else result.reply
                written = proposal_of(self._contract, asked, situation, concluded, last.exchange, call.expiry_ms, reply)
            except ReplyRefused as error:  # recorded under another version of the agent
                yield self._letter_of_reply(last, f"{error.code}: {error}")
            except BadInput as refused:
                yield self._letter_of(refused, call.record)
        elif concluded.how == "fell_back":
            told = concluded.explanation or concluded.why
            try:
                written = self._agents.fall_back(situation, concluded.by, instead_of=agent, why=told)
            except BadInput as refused:
                yield self._letter_of(refused, call.record)
        if written is not None:
            yield Row("proposals", written[0], written[1].decode())

    def _load(self, ctx: Any) -> None:
        """Prompts and models out of the broadcast state, once after a start; ready when all known then are read."""
        if self._prompts is None or not self._is_ready:
            state = ctx.get_broadcast_state(CONTROL_STATE)
            if self._prompts is None:
                self._prompts = {}
                for name, text in state.items():
                    kind, _, rest = name.partition("/")
                    if kind == "prompt":
                        self._prompts[rest] = Prompt.model_validate_json(CONTROL.text(text))
                    elif kind == "model":
                        self._models[rest] = load_model(ModelAlias.model_validate_json(CONTROL.text(text)))
            self._is_ready = all(
                int(state.get(_READ_UP_TO + name) or -1) >= until - 1 for name, until in self._ready_at.items()
            )

    def process_broadcast_element(self, value: Row, ctx: Any) -> Iterator[Row]:
        key, text, log_topic, partition, offset = value
        self._load(ctx)
        state = ctx.get_broadcast_state(CONTROL_STATE)
        try:
            if log_topic == topic("prompts").of(self._domain):
                prompt = read_prompt_event(bytes(text or b""))
                self._keep_prompt(state, prompt)
            else:
                alias, model = read_alias(bytes(text or b""))
                name = f"model/{alias.alias}"
                if alias.status == "active":
                    self._models[alias.alias] = model
                    state.put(name, CONTROL.mark(alias.model_dump_json()))
                elif (current := self._models.get(alias.alias)) and current.used.sha256 == alias.sha256:
                    del self._models[alias.alias]
                    state.remove(name)
        except BadInput as refused:
            yield self._letter(refused, log_topic, partition, offset, key, text)
        state.put(_READ_UP_TO + log_topic, str(offset))

    def _keep_prompt(self, state: Any, prompt: Prompt) -> None:
        assert self._prompts is not None
        name, current = f"prompt/{prompt.prompt_id}", self._prompts.get(prompt.prompt_id)
        if prompt.status == "active":
            self._prompts[prompt.prompt_id] = prompt
            state.put(name, CONTROL.mark(prompt.model_dump_json()))
        elif current is not None and current.version == prompt.version:
            del self._prompts[prompt.prompt_id]
            state.remove(name)

    def _letter_of_reply(self, last: Recorded, told: str) -> Row:
        """The raw reply that did not fit, under its place on the exchanges topic."""
        exchange = last.exchange
        return self._letter(
            not_fitting(told), topic("exchanges").of(self._domain), last.partition, last.offset,
            f"{exchange.call_id}/{exchange.turn}".encode(), exchange.reply.encode(),
        )  # fmt: skip

    def _letter_of(self, refused: BadInput, record: Sequence[Any]) -> Row:
        """A situation's record nobody could be asked about: key and value (text or bytes), topic, partition, offset."""
        key, value, log_topic, partition, offset, *_ = record
        raw = (part.encode() if isinstance(part, str) else part for part in (key, value))
        return self._letter(refused, log_topic, partition, offset, *raw)

    def _letter(self, refused: BadInput, log_topic: str, partition: int, offset: int, key: Any, value: Any) -> Row:
        place, letter = dead_letter(
            domain=self._domain, stage=STAGE, cause=refused.code, message=str(refused), topic=log_topic,
            partition=partition, offset=offset, key=None if key is None else bytes(key),
            value=None if value is None else bytes(value), now_ms=_wall_ms(),
        )  # fmt: skip
        return Row("dead-letters", place, letter.decode())


def _wall_ms() -> int:
    return int(time.time() * 1000)

