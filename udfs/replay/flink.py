"""The PyFlink shell of `replay`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext

from contracts.domain import load_domain
from contracts.policy import Policy
from contracts.topics import topic
from udfs.policy.audit import Line
from udfs.policy.govern import Governor
from udfs.policy.policy_log import Candidates, PolicyLog
from udfs.policy.policy_set import PolicySet
from udfs.policy.replayed import Replayed, SubjectLog, Terms

FOUND = Types.STRING()
_END_OF_INPUT = 2**63 - 1


class Replay(KeyedProcessFunction):
    """Makes every subject's decisions again at the end of its input; one JSON text (`Replayed.to_dict`) a subject.

    Records (key, value, topic, partition, offset) are kept in this object, not in Flink's state: in batch
    mode records come sorted by subject, so those of one subject are there at a time, and a restart begins
    anew. `policies`: the records of the policies topic; `candidates`: policies as JSON, in their place.
    """

    def __init__(
        self, domain: str, max_hops: int, terms: Terms,
        policies: Sequence[tuple[int, bytes | None]], candidates: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self._domain = domain
        self._max_hops = max_hops
        self._terms = terms
        self._policies = list(policies)
        self._candidates = candidates

    def open(self, runtime_context: RuntimeContext) -> None:
        contract = load_domain(self._domain)
        self._governor = Governor(contract, max_hops=self._max_hops)
        log = PolicyLog(self._policies, contract.policy_variables())
        self._policies_at: Mapping[int, PolicySet] = log
        if self._candidates is not None:
            self._policies_at = Candidates([Policy.model_validate_json(text) for text in self._candidates], log)
        self._names = {topic(name).of(self._domain): name for name in ("decisions", "outcomes", "approvals")}
        self._logs: dict[Any, SubjectLog] = {}

    def process_element(self, value: Row, ctx: Any) -> Iterator[str]:
        key, text, log_topic, partition, offset = value
        subject = _subject(ctx)
        log = self._logs.get(subject)
        if log is None:
            log = self._logs[subject] = SubjectLog()
            ctx.timer_service().register_event_time_timer(_END_OF_INPUT)
        getattr(log, self._names[log_topic]).append(Line(partition, offset, key, text))
        yield from ()

    def on_timer(self, timestamp: int, ctx: Any) -> Iterator[str]:
        log = self._logs.pop(_subject(ctx))
        if not log.decisions:
            return
        for lines in (log.decisions, log.outcomes, log.approvals):
            lines.sort(key=lambda line: (line.partition, line.offset))
        found = Replayed()
        found.replay(self._governor, log, self._policies_at, self._terms)
        yield orjson.dumps(found.to_dict()).decode()


def _subject(ctx: Any) -> str:
    key = ctx.get_current_key()  # a text in thread mode, a row of one text in process mode
    return str(key if isinstance(key, str) else key[0])
