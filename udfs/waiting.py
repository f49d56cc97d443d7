"""The time after an operator began, while records that could not be taken yet may wait in its state."""

from __future__ import annotations

from typing import Any


class StartPhase:
    """Tells at a key's first record whether others of it may wait in state: those come before it.

    Whatever waits has a processing-time timer at most `within_ms` away, also after a restart. So one later than all of
    these, set at the first record that need not wait, ends the phase when it fires: timers fire in the order of their
    times. Until then the keys that had a record are kept, of some 20 ms; after it nothing is kept or asked, because one
    look into state from Python takes longer than half a decision.
    """

    def __init__(self, within_ms: int) -> None:
        self.is_over = False
        self._within_ms = within_ms
        self._ends_ms: int | None = None
        self._asked: set[bytes] = set()

    def may_wait(self, key: bytes, timers: Any) -> bool:
        """Whether records of `key` may wait; once a key. `timers`: Flink's, as this record sees them."""
        if self._ends_ms is None:
            self._ends_ms = timers.current_processing_time() + self._within_ms + 1
            timers.register_processing_time_timer(self._ends_ms)
        if key in self._asked:
            return False
        self._asked.add(key)
        return True

    def fired(self, timestamp: int) -> None:
        """A timer fired, of whichever key."""
        if self._ends_ms is not None and timestamp >= self._ends_ms:
            self.is_over = True
            self._asked.clear()
