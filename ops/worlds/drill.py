"""The world of `drill`: numbered amounts, and a till that notes every settlement it makes.

The till is what a fault is measured by: `settled` tells from outside how often each command was carried out. A fault may
stop it between doing and reporting, by the file `hold_file`.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from contracts.errors import BadInput, SetupFailed
from ops.csv_time import parse_loose_time_ms
from ops.home import Home
from ops.world import DecisionOf, Done, Handler, NewFact, Order

SUBJECTS = 10
STARTS_MS = parse_loose_time_ms("2025-01-01T00:00:00Z")
STEP_MS = 10_000
HELD_AT_MOST_S = 60.0


def till_file(home: Home) -> Path:
    return home.run / "drill" / "till.sqlite"


def hold_file(home: Home) -> Path:
    """While it is there, the till does not come back from what it has done; it notes in it what that was."""
    return home.run / "drill" / "hold"


def settled(home: Home) -> dict[str, int]:
    """Command id -> how often the till was asked to settle it. What it did is one entry for each, however often."""
    if not till_file(home).exists():
        return {}
    with closing(sqlite3.connect(till_file(home), timeout=10)) as till:
        return dict(till.execute("SELECT command_id, asked FROM settled"))


class DrillWorld:
    """Amounts of ten subjects, one each ten seconds."""

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        """CSV `time,subject,number,amount`; without the column `subject`, --subject or the file's name."""
        try:
            number, amount = int(row["number"]), int(row["amount"])
        except (KeyError, ValueError):
            raise BadInput(
                "row_invalid", f"expected whole numbers in the columns number and amount, came {dict(row)!r:.200}"
            ) from None
        about = row.get("subject") or subject or "subject"
        return counted(about, parse_loose_time_ms(row.get("time")), number, amount)

    def generate(self, *, seed: int, count: int) -> Iterator[NewFact]:
        draw = random.Random(seed)
        for n in range(count):
            number = n // SUBJECTS + 1
            yield counted(f"subject-{n % SUBJECTS + 1}", STARTS_MS + number * STEP_MS, number, draw.randint(0, 100))

    def played(self, facts: Iterable[NewFact | None], decision_of: DecisionOf) -> Iterator[NewFact | None]:
        return iter(facts)

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        return None

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        home = Home.default()
        till_file(home).parent.mkdir(parents=True, exist_ok=True)
        till = sqlite3.connect(till_file(home), isolation_level=None)
        till.execute("CREATE TABLE IF NOT EXISTS settled (command_id TEXT PRIMARY KEY, asked INTEGER NOT NULL)")

        def settle(order: Order) -> Done:
            till.execute(
                "INSERT INTO settled VALUES (?, 1) ON CONFLICT (command_id) DO UPDATE SET asked = asked + 1",
                (order.command_id,),
            )
            hold, until = hold_file(home), time.monotonic() + HELD_AT_MOST_S
            while hold.exists() and time.monotonic() < until:
                hold.write_text(order.command_id)
                time.sleep(0.02)
            return Done("succeeded")

        return {"settle": settle}

    def train(self, folder: Path) -> Mapping[str, Any]:
        raise SetupFailed("drill has no model")


def counted(subject: str, event_ms: int, number: int, amount: int) -> NewFact:
    return NewFact(
        "drill.counted", subject, event_ms, {"number": number, "amount": amount},
        identity=f"{subject}|{number}|{event_ms}|{amount}",
    )  # fmt: skip


WORLD = DrillWorld()
