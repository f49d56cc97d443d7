"""Ids of proposals: known for as long as asked, then forgotten, whatever the clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from udfs.policy.seen import Seen
from udfs.policy.subject import SubjectState

REMEMBER_MS = 1000
SUBJECT = "m-1"


class Ids(dict[str, int]):
    """A map state of one key."""

    contains = dict.__contains__
    put = dict.__setitem__
    remove = dict.__delitem__


class Subject:
    """One subject whose proposals are decided at event times; `decide` tells whether an id was new."""

    def __init__(self, state: SubjectState | None = None, always: Ids | None = None) -> None:
        self.state = state or SubjectState()
        self.always, self.even, self.odd = always if always is not None else Ids(), Ids(), Ids()
        self.seen = Seen(self.always, self.even, self.odd, remember_ms=REMEMBER_MS)

    def decide(self, name: str, at_ms: int) -> bool:
        if self.seen.has(SUBJECT, self.state, name):
            return False
        was_ms, self.state.clock_ms = self.state.clock_ms, max(self.state.clock_ms, at_ms)
        self.seen.forget(SUBJECT, self.state, was_ms)
        self.seen.add(SUBJECT, self.state, name)
        return True

    @property
    def kept(self) -> int:
        return len(self.even) + len(self.odd)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 1500)), max_size=60))
def test_an_id_is_known_until_the_clock_is_as_much_later_as_asked(steps: list[tuple[int, int]]) -> None:
    subject, decided, now = Subject(), dict[str, int](), 1_388_534_400_000
    for number, later_ms in steps:
        now += later_ms
        name = f"p-{number}"
        last = decided.get(name)
        is_new = subject.decide(name, now)
        assert is_new or last is not None, f"{name} was never decided"
        if is_new and last is not None:
            assert subject.state.clock_ms - last > REMEMBER_MS, f"{name} was forgotten too soon"
        if is_new:
            decided[name] = subject.state.clock_ms


def test_no_more_ids_are_kept_than_two_turns_bring() -> None:
    subject = Subject()
    most = 0
    for number in range(500):
        assert subject.decide(f"p-{number}", 1_388_534_400_000 + number * 100)
        most = max(most, subject.kept)
    assert 10 <= most <= 20


def test_a_late_repeat_is_known_where_the_clock_went_far_ahead_since() -> None:
    subject = Subject()
    subject.decide("p-1", 10_000)
    assert not subject.decide("p-1", 10_000 + REMEMBER_MS)
    assert subject.decide("p-2", 10_000 + 5 * REMEMBER_MS)
    assert subject.decide("p-1", 10_000)


def test_ids_decided_before_there_were_turns_count_for_two_turns_more_and_overrides_for_ever() -> None:
    always = Ids({"old": 9_000})
    subject = Subject(SubjectState(clock_ms=10_000, decisions=1, turns_of_untimed=2), always)
    subject.seen.add_override("word")
    assert not subject.decide("old", 10_001)
    assert subject.decide("new", 10_000 + REMEMBER_MS)
    assert not subject.decide("old", 10_001)
    assert subject.decide("newer", 10_000 + 2 * REMEMBER_MS)
    assert set(always) == {"word"} and subject.seen.has_override("word")
    assert subject.decide("old", 10_001)


def test_the_turns_of_subjects_are_spread() -> None:
    seen = Seen(Ids(), Ids(), Ids(), remember_ms=REMEMBER_MS)
    first = [seen._turn(f"machine-{n}", 1_000_000) != seen._turn(f"machine-{n}", 1_000_500) for n in range(2000)]
    assert 800 < sum(first) < 1200, "half of the subjects should begin a turn within half of one"
