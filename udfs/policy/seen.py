"""Ids of what was decided, kept as long as asked and forgotten many at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol
from zlib import crc32

from udfs.policy.subject import SubjectState

_FOR_EVER = 2**63 - 1


class IdMap(Protocol):
    """Flink's map state of the subject whose turn it is: id -> event time (ms)."""

    def contains(self, key: str) -> bool: ...
    def put(self, key: str, value: int) -> None: ...
    def remove(self, key: str) -> None: ...
    def items(self) -> Iterable[tuple[str, int]]: ...
    def clear(self) -> None: ...


class Seen:
    """Ids of a subject's proposals, known for at least `remember_ms` of its event time; those of overrides for ever.

    Two maps (`even`, `odd`) take turns of `remember_ms` each. An id goes into the one whose turn it is. When the next turn
    begins the other one, whose ids are all older than a turn, is emptied as a whole, in one call: no id is read to be forgotten.
    At which time a subject's turns begin follows from its name, so that not all subjects' are emptied together.

    `always` holds what is never forgotten, and the ids of proposals that were decided before there were turns (state of
    version 1): they count for two turns more.
    """

    def __init__(self, always: IdMap, even: IdMap, odd: IdMap, *, remember_ms: int) -> None:
        self._always = always
        self._maps = (even, odd)
        self._remember_ms = remember_ms

    def has_override(self, name: str) -> bool:
        return self._always.contains(name)

    def add_override(self, name: str) -> None:
        self._always.put(name, _FOR_EVER)

    def has(self, subject: str, state: SubjectState, name: str) -> bool:
        turn = self._turn(subject, state.clock_ms)
        return (
            self._maps[turn % 2].contains(name)
            or (state.has_older_ids and self._maps[(turn + 1) % 2].contains(name))
            or (state.turns_of_untimed > 0 and self._always.contains(name))
        )

    def add(self, subject: str, state: SubjectState, name: str) -> None:
        self._maps[self._turn(subject, state.clock_ms) % 2].put(name, state.clock_ms)

    def forget(self, subject: str, state: SubjectState, was_ms: int) -> None:
        """The subject's clock went from `was_ms` to `state.clock_ms`: empty what is too old now."""
        turn = self._turn(subject, state.clock_ms)
        passed = turn - self._turn(subject, was_ms) if was_ms else 0
        if not passed:
            return
        for emptied in range(min(passed, 2)):
            self._maps[(turn - emptied) % 2].clear()
        state.has_older_ids = passed == 1
        if state.turns_of_untimed:
            state.turns_of_untimed = max(0, state.turns_of_untimed - passed)
            if not state.turns_of_untimed:
                for name in [name for name, at_ms in self._always.items() if at_ms != _FOR_EVER]:
                    self._always.remove(name)

    def _turn(self, subject: str, at_ms: int) -> int:
        begins = crc32(subject.encode()) * self._remember_ms >> 32
        return (at_ms + begins) // self._remember_ms
