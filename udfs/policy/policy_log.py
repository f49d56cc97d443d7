"""The policies topic as it was at any of its offsets: what `govern` knew when it decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from contracts.approval import Person
from contracts.errors import BadInput
from contracts.policy import Policy, PolicySwitch
from udfs.policy.policy_book import PolicyBook, read_policy_event
from udfs.policy.policy_set import PolicySet


class PolicyLog(Mapping[int, PolicySet]):
    """The policies and people as they were after the record of an offset; compiled once for each.

    `records`: offset and value of each record of the topic, in order. What is no policy event is left
    out, as `govern` left it out: it went to dead letters.
    """

    def __init__(self, records: Sequence[tuple[int, bytes | None]], variables: dict[str, str]) -> None:
        self._events: list[tuple[int, Policy | PolicySwitch | Person]] = []
        for offset, value in records:
            with suppress(BadInput):
                self._events.append((offset, read_policy_event(value, variables)))
        self._sets: dict[int, PolicySet] = {}

    def switches(self, offset: int) -> list[PolicySwitch]:
        """The switches as they were after the record of an offset."""
        found = [event for place, event in self._events if place <= offset and isinstance(event, PolicySwitch)]
        return list({(each.agent, each.action, each.subject): each for each in found}.values())

    def __getitem__(self, offset: int) -> PolicySet:
        if offset not in self._sets:
            book = PolicyBook()
            for place, event in self._events:
                if place <= offset:
                    book.enter(event)
            self._sets[offset] = book.compile()
        return self._sets[offset]

    def __iter__(self) -> Iterator[int]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)


class Candidates(Mapping[int, PolicySet]):
    """The same policies, all of them active, whatever the offset; pauses and people as they were."""

    def __init__(self, policies: Sequence[Policy], recorded: PolicyLog) -> None:
        self._policies = [policy.model_copy(update={"status": "active"}) for policy in policies]
        self._recorded = recorded
        self._sets: dict[int, PolicySet] = {}

    def __getitem__(self, offset: int) -> PolicySet:
        if offset not in self._sets:
            people = self._recorded[offset].people.values()
            self._sets[offset] = PolicySet.compile(self._policies, self._recorded.switches(offset), people)
        return self._sets[offset]

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0
