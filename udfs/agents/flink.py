"""The PyFlink shell of `propose`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import ValidationError
from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.functions import KeyedBroadcastProcessFunction
from pyflink.datastream.state import ListStateDescriptor, MapStateDescriptor

from contracts.data import current
from contracts.dead_letter import Cause
from contracts.domain import load_domain
from contracts.errors import BadInput, ModelRefused
from contracts.model import ModelAlias
from udfs.agents.core import STAGE, TIERS, Agents, tier_of
from udfs.agents.definition import load_agents
from udfs.agents.onnx_model import LoadedModel, load_model
from udfs.heap import settle
from udfs.serde import dead_letter, internal
from udfs.state import MODELS, PROPOSE_WAITING
from udfs.waiting import StartPhase

WAIT_MS = 20
# Topic, key and value of what is written. One stream for all: in thread mode PyFlink 2.2.1 cannot give
# side outputs from on_timer of a keyed broadcast function.
RECORD = Types.ROW([Types.STRING(), Types.STRING(), Types.STRING()])
# alias -> the latest good alias event; "\x00offset" -> how far the models topic was read.
MODELS_STATE = MapStateDescriptor("models", Types.STRING(), Types.STRING())
WAITING_STATE = ListStateDescriptor("waiting", Types.PICKLED_BYTE_ARRAY())
_READ_UP_TO = "\x00offset"


class Propose(KeyedBroadcastProcessFunction):
    """Situations (key, value, topic, partition, offset) with model events as broadcast state.

    State per key: the situations that wait until the models known at start (`models_until`, the end
    offset of the models topic when the job was submitted) are loaded; empty from then on. A key's next
    situation comes after those that wait. Restart: models and waiting situations come back from the
    checkpoint; repeated situations give proposals with the same ids. A model that does not match its
    digest or does not load goes to dead letters and the one before stays.

    Counters: situations by who answered them, `answered_by_rule`, `_model` or `_nobody` (left to language models).
    """

    def __init__(self, domain: str, agents_file: str, models_until: int) -> None:
        self._domain = domain
        self._agents_file = agents_file
        self._models_until = models_until

    def open(self, runtime_context: RuntimeContext) -> None:
        from pathlib import Path

        contract = load_domain(self._domain)
        self._agents = Agents(contract, load_agents(Path(self._agents_file), contract))
        metrics = runtime_context.get_metrics_group()
        self._answered = {tier: metrics.counter(f"answered_by_{tier}") for tier in TIERS}
        self._waiting = runtime_context.get_list_state(WAITING_STATE)
        self._loaded: dict[str, LoadedModel] | None = None
        self._is_ready = self._models_until == 0
        self._start = StartPhase(WAIT_MS)
        settle()

    def process_element(self, value: Row, ctx: Any) -> Iterator[Any]:
        if not self._is_ready and not self._models_ready(ctx):
            self._waiting.add(PROPOSE_WAITING.pack(value))
            timers = ctx.timer_service()
            timers.register_processing_time_timer(timers.current_processing_time() + WAIT_MS)
            return
        if not self._start.is_over and self._start.may_wait(bytes(value[0] or b""), ctx.timer_service()):
            yield from self._drain(ctx)
        yield from self._propose(value, ctx)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[Any]:
        if not self._models_ready(ctx):
            timers = ctx.timer_service()
            timers.register_processing_time_timer(timers.current_processing_time() + WAIT_MS)
            return
        self._start.fired(timestamp)
        yield from self._drain(ctx)

    def _drain(self, ctx: Any) -> Iterator[Any]:
        """Everything of the key that waited."""
        waiting = list(self._waiting.get())
        self._waiting.clear()
        for value in waiting:
            yield from self._propose(PROPOSE_WAITING.unpack(value), ctx)

    def _models_ready(self, ctx: Any) -> bool:
        if not self._is_ready:
            reached = ctx.get_broadcast_state(MODELS_STATE).get(_READ_UP_TO)
            self._is_ready = reached is not None and int(reached) >= self._models_until - 1
        return self._is_ready

    def _propose(self, record: Any, ctx: Any) -> Iterator[Any]:
        key, value, topic, partition, offset = record
        models = self._models(ctx)
        try:
            situation = self._agents.read(key, value)
            answers = self._agents.answers(situation, models)
            made = [self._agents.write(situation, answer) for answer in answers]
        except Exception as error:
            refused = error if isinstance(error, BadInput) else internal(error)
            yield _letter(self._domain, refused, topic, partition, offset, key, value)
            return
        self._answered[tier_of(answers)].inc()
        for subject, proposal in made:
            yield Row("proposals", subject, proposal.decode())

    def _models(self, ctx: Any) -> dict[str, LoadedModel]:
        """The models of the broadcast state; loaded from it once, after a start or restart."""
        if self._loaded is None:
            self._loaded = {
                alias: load_model(ModelAlias.model_validate_json(MODELS.text(text)))
                for alias, text in ctx.get_broadcast_state(MODELS_STATE).items()
                if alias != _READ_UP_TO
            }
        return self._loaded

    def process_broadcast_element(self, value: Row, ctx: Any) -> Iterator[Any]:
        key, text, topic, partition, offset = value
        state = ctx.get_broadcast_state(MODELS_STATE)
        try:
            alias, model = read_alias(text)
            loaded = self._models(ctx)
            current = loaded.get(alias.alias)
            if alias.status == "active":
                loaded[alias.alias] = model
                state.put(alias.alias, MODELS.mark(alias.model_dump_json()))
            elif current is not None and current.used.sha256 == alias.sha256:
                del loaded[alias.alias]
                state.remove(alias.alias)
        except BadInput as refused:
            yield _letter(self._domain, refused, topic, partition, offset, key, text)
        state.put(_READ_UP_TO, str(offset))


def read_alias(text: bytes | None) -> tuple[ModelAlias, LoadedModel]:
    """The alias in a record of the models topic, and the model behind it, ready to answer.

    Raises BadInput with a dead-letter cause.
    """
    if not text:
        raise BadInput(Cause.EMPTY, "expected a model event, came an empty record")
    try:
        event = orjson.loads(text)
        if not isinstance(event, dict) or event.get("type") != ModelAlias.event_type:
            raise BadInput(Cause.UNKNOWN_TYPE, f"expected type {ModelAlias.event_type!r}")
        alias = ModelAlias.model_validate_json(orjson.dumps(current(ModelAlias, {"data": None, **event})))
        return alias, load_model(alias)
    except orjson.JSONDecodeError as error:
        raise BadInput(Cause.NOT_JSON, f"expected a model event as JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadInput(Cause.MODEL_REFUSED, f"{first['loc']}: {first['msg']}") from None
    except orjson.JSONEncodeError as error:  # nested too deeply
        raise BadInput(Cause.MODEL_REFUSED, f"expected a model event: {error}") from None
    except ModelRefused as error:
        raise BadInput(Cause.MODEL_REFUSED, str(error)) from None


def _letter(
    domain: str, refused: BadInput, topic: str, partition: int, offset: int, key: Any, value: Any
) -> Row:
    place, letter = dead_letter(
        domain=domain, stage=STAGE, cause=refused.code, message=str(refused), topic=topic,
        partition=partition, offset=offset, key=key, value=value, now_ms=int(time.time() * 1000),
    )  # fmt: skip
    return Row("dead-letters", place, letter.decode())
