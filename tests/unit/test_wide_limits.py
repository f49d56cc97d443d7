"""Limits over all subjects: what nobody needs any more is not kept."""

from __future__ import annotations

import pytest

from contracts.envelope import format_time_ms
from contracts.limit_claim import Claim, ClaimedLimit
from udfs.wide_limits import core
from udfs.wide_limits.core import WideLimits, scope_of


def test_a_scope_is_forgotten_when_its_last_claim_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "REMEMBERED", 10)
    limits, stored = WideLimits(), dict[str, None]()
    for number in range(200):
        rate = ClaimedLimit(policy="p@1", scope=scope_of({"x": number}, 10, "count"), max_count=3, within_s=10)
        flight = ClaimedLimit(policy="p@1", scope=scope_of({"x": number}, None, "in_flight"), max_in_flight=3)
        done = limits.claim(
            Claim(
                claim_id=f"c{number}", command_id=f"k{number}", subject="s", agent="a", action="b",
                at=format_time_ms(number * 1000), limits=(rate, flight), outcome_within_s=5,
            )
        )  # fmt: skip
        assert done.grant is not None
        assert done.grant.is_granted
        stored.update(dict.fromkeys(entry.claim_id for entry in done.changed))
        for name in done.forgotten:
            del stored[name]
    assert len(stored) == len(limits._windows) == len(limits._flights) <= 12
