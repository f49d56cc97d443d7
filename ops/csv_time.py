"""Times as people write them in files: RFC 3339, or without offset (then UTC)."""

from __future__ import annotations

from contracts.envelope import parse_time_ms
from contracts.errors import BadInput


def parse_loose_time_ms(text: object) -> int:
    """Milliseconds since 1970-01-01 UTC. Raises BadInput (`row_invalid`) with what came."""
    given = str(text).strip()
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
        "row_invalid", f"time: expected a time like 2026-01-31T12:00:00Z, came {given[:40]!r}"
    )
