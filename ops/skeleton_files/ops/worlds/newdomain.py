"""The world of `newdomain`: where its facts come from and what its commands do."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from contracts.errors import BadInput, SetupFailed
from ops.csv_time import parse_loose_time_ms
from ops.world import DecisionOf, Done, Handler, NewFact, Order

TANKS = 5
STARTS_MS = parse_loose_time_ms("2025-01-01T00:00:00Z")
REFILLS_FAIL = 0.2  # share, by a hash of seed and command id


class NewdomainWorld:
    """Five tanks that empty minute by minute, and a simulated crew that answers commands."""

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        """CSV `time,tank,level_percent`; without the column `tank`, --subject or the file's name."""
        if missing := {"time", "level_percent"} - set(row):
            raise BadInput("row_invalid", f"expected the columns {sorted(missing)} too, came {sorted(row)}")
        try:
            level_percent = float(row["level_percent"])
        except ValueError:
            level_percent = math.nan
        if not math.isfinite(level_percent):
            raise BadInput(
                "row_invalid", f"level_percent: expected a number, came {row['level_percent'][:40]!r}"
            )
        tank = row.get("tank") or subject or "tank"
        return _level_measured(tank, parse_loose_time_ms(row["time"]), level_percent)

    def generate(self, *, seed: int, count: int) -> Iterator[NewFact]:
        """A reading a minute and tank; a tank that is nearly empty gets a delivery."""
        draw = random.Random(seed)
        levels = [draw.uniform(5, 100) for _ in range(TANKS)]
        for n in range(count):
            tank = n % TANKS
            levels[tank] = levels[tank] - draw.uniform(0, 4) if levels[tank] > 4 else 100.0
            minute_ms = STARTS_MS + (n // TANKS) * 60_000
            yield _level_measured(f"tank-{tank + 1}", minute_ms, round(levels[tank], 3))

    def played(
        self, facts: Iterable[NewFact | None], decision_of: DecisionOf
    ) -> Iterator[NewFact | None]:
        """As they come. A world that answers decisions puts its answers in between here."""
        return iter(facts)

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        return None

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        """One handler an action. A real one calls something, with `order.command_id` to be idempotent by."""

        def refill(order: Order) -> Done:
            digest = hashlib.sha256(f"{seed}|{order.command_id}".encode()).digest()
            if int.from_bytes(digest[:8]) / 2**64 < REFILLS_FAIL:
                return Done("failed", "the valve is stuck", took_s=30)
            return Done("succeeded", took_s=30)

        def inspect(order: Order) -> Done:
            return Done("succeeded", took_s=600)

        return {"refill": refill, "inspect": inspect}

    def train(self, folder: Path) -> Mapping[str, Any]:
        raise SetupFailed("newdomain has no model yet; see ops/world.py and conf/machines/models")


def _level_measured(tank: str, event_ms: int, level_percent: float) -> NewFact:
    return NewFact(
        "newdomain.level_measured",
        tank,
        event_ms,
        {"level_percent": level_percent},
        identity=f"{tank}|{event_ms}|{level_percent!r}",  # stable, so a file played twice repeats itself
    )


WORLD = NewdomainWorld()
