"""What is asked of a broker that has just come back, which does not know yet who coordinates what."""

from __future__ import annotations

import pytest
from kafka import TopicPartition
from kafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    MetadataEmptyBrokerList,
    NotCoordinatorError,
)
from kafka.structs import OffsetAndMetadata

from ops import kafka

PLACE = TopicPartition("machines.facts", 0)


class Returning:
    """Fails with each of `errors` in turn, then answers."""

    def __init__(self, *errors: KafkaError) -> None:
        self._errors = list(errors)

    def _answer(self) -> None:
        if self._errors:
            raise self._errors.pop(0)

    def partitions_for_topic(self, topic: str) -> set[int]:
        self._answer()
        return {0}

    def list_group_offsets(self, group: str) -> dict[str, dict[TopicPartition, OffsetAndMetadata]]:
        self._answer()
        return {group: {PLACE: OffsetAndMetadata(7, "", -1)}}

    def close(self) -> None:
        pass


def test_partitions_are_asked_for_again_while_no_broker_is_named() -> None:
    reader = Returning(MetadataEmptyBrokerList(), MetadataEmptyBrokerList())
    assert kafka.partitions(reader, [PLACE.topic]) == [PLACE]  # type: ignore[arg-type]


def test_offsets_are_asked_for_again_while_nobody_coordinates_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "_admin", lambda *_: Returning(NotCoordinatorError()))
    assert kafka.committed("here:1", "machines-context") == {PLACE: 7}


def test_what_does_not_pass_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "_admin", lambda *_: Returning(GroupAuthorizationFailedError()))
    with pytest.raises(GroupAuthorizationFailedError):
        kafka.committed("here:1", "machines-context")
