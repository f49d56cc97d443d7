"""Metrics of `reason`, by agent, in Flink's own registry (group `agent`): names as operators read them."""

from __future__ import annotations

from typing import Any

from contracts.exchange import Concluded
from udfs.reason.converse import Taken

_COUNTED = (
    "answered_before", "taken", "proposed", "fell_back", "abstained", "asked", "tokens_in", "tokens_out",
    "cost_millionths", "retries", "timeouts", "malformed", "begun_again",
)  # fmt: skip


class Meters:
    """Counters and gauges of one operator. `cost_millionths`: of the agent's currency, since counters are whole.

    `fell_back`: a cheaper model or a rule spoke in the place of the agent's own model.
    """

    def __init__(self, runtime_context: Any) -> None:
        self._root = runtime_context.get_metrics_group()
        self._counters: dict[str, dict[str, Any]] = {}
        self._standing: dict[str, list[int]] = {}

    def _of(self, agent: str) -> dict[str, Any]:
        found = self._counters.get(agent)
        if found is None:
            group = self._root.add_group("agent", agent)
            found = self._counters[agent] = {name: group.counter(name) for name in _COUNTED}
            standing = self._standing[agent] = [0, 0]
            group.gauge("in_flight", lambda: standing[0])
            group.gauge("waiting", lambda: standing[1])
        return found

    def answered_before(self, agent: str) -> None:
        """A rule or a model spoke, so the language model is not asked."""
        self._of(agent)["answered_before"].inc()

    def taken(self, agent: str) -> None:
        self._of(agent)["taken"].inc()

    def standing(self, agent: str, in_flight: int, waiting: int) -> None:
        self._of(agent)
        self._standing[agent][:] = [in_flight, waiting]

    def took(self, agent: str, taken: Taken) -> None:
        counters = self._of(agent)
        for name in ("asked", "tokens_in", "tokens_out", "retries", "timeouts", "malformed"):
            if value := getattr(taken, name):
                counters[name].inc(int(value))
        counters["cost_millionths"].inc(round(taken.cost * 1e6))

    def concluded(self, agent: str, concluded: Concluded) -> None:
        counters = self._of(agent)
        is_cheaper = concluded.how == "proposed" and concluded.why != ""
        counters["fell_back" if is_cheaper else concluded.how].inc()
        if concluded.starts > 1:
            counters["begun_again"].inc(concluded.starts - 1)
