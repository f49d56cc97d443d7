"""Times as people write them in files: RFC 3339, or without offset (then UTC), or counted since 1970."""

from __future__ import annotations

import re
from typing import Final

from contracts.envelope import parse_time_ms
from contracts.errors import BadInput

# Seconds or milliseconds since 1970, told apart by their length: either is a time of 2001 to 2286.
_SINCE_1970: Final = re.compile(r"[1-9]\d{9}(\d{3})?", re.ASCII)


def parse_loose_time_ms(text: object) -> int:
    """Milliseconds since 1970-01-01 UTC. Raises BadInput (`row_invalid`) with what came.

    Taken are `2026-01-31T12:00:00Z` (any RFC 3339), the same with a blank for the T, without seconds or without offset (UTC),
    a date (its midnight in UTC), and whole seconds (10 digits) or milliseconds (13 digits) since 1970.
    """
    given = str(text).strip()
    if found := _SINCE_1970.fullmatch(given):
        return int(given) * (1 if found[1] else 1000)
    candidate = given.replace(" ", "T", 1)
    if len(candidate) == 10 and candidate.count("-") == 2:
        candidate += "T00:00:00"
    if len(candidate) == 16 and candidate[13] == ":":
        candidate += ":00"
    for attempt in (candidate, candidate + "Z"):
        try:
            return parse_time_ms(attempt)
        except ValueError:
            continue
    raise BadInput(
        "row_invalid",
        f"time: expected a time like 2026-01-31T12:00:00Z, or seconds (10 digits) or milliseconds (13) since 1970, came {given[:40]!r}",
    )
