"""The world of `incidents`: metrics of services in, a call graph beside them, a simulated system that answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from contracts.errors import BadInput, SetupFailed
from ops.csv_time import parse_loose_time_ms
from ops.world import DecisionOf, Handler, NewFact
from ops.worlds.incidents_remedies import handlers
from ops.worlds.incidents_simulator import Simulation, decision_key

MEASURED, CLOSED, CALLS = "incident.metric_measured", "incident.sample_closed", "incident.call_observed"


class IncidentsWorld:
    """One system a file: CSV `ts,node,metric,statistic,value`; --graph: CSV `from_node,to_node`."""

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        _expect(row, ("ts", "node", "metric", "statistic", "value"))
        try:
            value = float(row["value"])
        except (TypeError, ValueError):
            raise BadInput("row_invalid", f"value: expected a number, came {str(row['value'])[:40]!r}") from None
        if not math.isfinite(value):
            raise BadInput("row_invalid", f"value: expected a finite number, came {row['value']!r}")
        event_ms = parse_loose_time_ms(row["ts"])
        data = {name: row[name] for name in ("node", "metric", "statistic")}
        identity = "|".join((str(event_ms), *data.values(), repr(value)))
        return NewFact(MEASURED, subject or "system", event_ms, {**data, "value": value}, identity)

    def reference_row_to_fact(self, row: Mapping[str, str], subject: str | None, event_ms: int) -> NewFact:
        _expect(row, ("from_node", "to_node"))
        data = {name: row[name] for name in ("from_node", "to_node")}
        return NewFact(CALLS, subject or "system", event_ms, data, "|".join(data.values()))

    def played(self, facts: Iterable[NewFact | None], decision_of: DecisionOf) -> Iterator[NewFact | None]:
        """A file's facts with each sample closed behind its last row; a simulated system answers to the loop."""
        if isinstance(facts, Simulation):
            return facts.played(decision_of)
        return _closing_samples(facts)

    def generate(self, *, seed: int, count: int) -> Iterable[NewFact]:
        return Simulation(seed, count)

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        return decision_key(decision)

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        return handlers(seed)

    def train(self, folder: Any) -> Mapping[str, Any]:
        raise SetupFailed("incidents has no model to train: its ranking is fitted on nothing")


def _expect(row: Mapping[str, str], columns: tuple[str, ...]) -> None:
    if set(columns) - set(row):
        raise BadInput("row_invalid", f"expected the columns {', '.join(columns)}, came {sorted(map(str, row))}")


def _closing_samples(facts: Iterable[NewFact | None]) -> Iterator[NewFact | None]:
    """The same facts; after the last measurement of a time comes the fact that closes the sample."""
    last: NewFact | None = None
    for fact in facts:
        if fact is None:
            yield None
            continue
        if fact.type == CLOSED:
            last = None
        elif fact.type == MEASURED:
            if last is not None and (last.event_ms, last.subject) != (fact.event_ms, fact.subject):
                yield _closed(last)
            last = fact
        yield fact
    if last is not None:
        yield _closed(last)


def _closed(fact: NewFact) -> NewFact:
    return NewFact(CLOSED, fact.subject, fact.event_ms, {}, str(fact.event_ms))


WORLD = IncidentsWorld()
