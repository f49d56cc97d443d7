"""The world of `loans`: event logs and generated cases in, the customers' answers, a simulated back office."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.errors import BadInput, SetupFailed
from contracts.loans import ActivityRecorded, ApplicationAnalysed
from ops.csv_time import parse_loose_time_ms
from ops.world import DecisionOf, Handler, NewFact
from ops.worlds.loans_customers import with_customers
from ops.worlds.loans_generator import generate
from ops.worlds.loans_office import office

COLUMNS = ("case_id", "activity", "ts")
# How tools write that a cell holds nothing; a bare JSON null comes as "null".
_EMPTY = frozenset({"", "null", "none", "nan"})


class LoansWorld:
    """Files are CSV `case_id,activity,lifecycle,resource,ts,amount`: one row an activity of one case.

    The subject is the case. Only case_id, activity and ts must be filled; the other columns may be
    missing. Rows may stand in any order: they are played by event time, equal times as written.
    """

    plays_by_time = True

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        if missing := set(COLUMNS) - set(row):
            raise BadInput("row_invalid", f"expected the columns {COLUMNS}; {sorted(missing)} missing")
        event_ms = parse_loose_time_ms(row["ts"])
        if event_ms < 0:
            raise BadInput("row_invalid", f"ts: expected a time after 1970, came {row['ts'][:40]!r}")
        case = row["case_id"].strip()
        if not case or len(case) > 256 or not case.isprintable():
            raise BadInput(
                "row_invalid", f"case_id: expected 1 to 256 printable characters, came {case[:80]!r}"
            )
        told = {
            "activity": row["activity"].strip(),
            "lifecycle": filled(row.get("lifecycle")),
            "resource": filled(row.get("resource")),
            "amount": amount(row.get("amount")),
        }
        data = {name: value for name, value in told.items() if value is not None}
        try:
            ActivityRecorded.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problem = f"{first['loc'][0]}: {first['msg']}, came {str(first['input'])[:80]!r}"
            raise BadInput("row_invalid", problem) from None
        identity = "|".join(str(value) for value in (event_ms, *told.values()))
        return NewFact(ActivityRecorded.event_type, case, event_ms, data, identity)

    def played(
        self, facts: Iterable[NewFact | None], decision_of: DecisionOf
    ) -> Iterator[NewFact | None]:
        return with_customers(facts, decision_of, until_ms=time.time() * 1000)

    def generate(self, *, seed: int, count: int) -> Iterator[NewFact]:
        return generate(seed, count)

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        """The case whose decision was due; customers wait for it."""
        if decision.get("situation_type") != ApplicationAnalysed.event_type:
            return None
        subject = decision.get("subject")
        return subject if isinstance(subject, str) else None

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        return office(seed)

    def train(self, folder: Path) -> Mapping[str, Any]:
        raise SetupFailed("loans has no model yet: its agents are rules (conf/loans/agents.yaml)")


def filled(text: str | None) -> str | None:
    """What a cell says; None when it is empty."""
    stripped = (text or "").strip()
    return None if stripped.lower() in _EMPTY else stripped


def amount(text: str | None) -> float | None:
    """A requested or offered amount; None when the row tells none."""
    told = filled(text)
    if told is None:
        return None
    try:
        found = float(told)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadInput("row_invalid", f"amount: expected a number or nothing, came {told[:40]!r}")
    return found


WORLD = LoansWorld()
