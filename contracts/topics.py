"""The topic table: every topic of a domain as data. Topics, DDL and AsyncAPI are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DAY_MS: Final = 24 * 60 * 60 * 1000
FOREVER: Final = -1
MAX_FACT_BYTES: Final = 2 * 1024 * 1024
MAX_RECORD_BYTES: Final = 4 * 1024 * 1024  # a dead letter wraps a fact in base64


@dataclass(frozen=True)
class Topic:
    """One row of the table. `key` says what the record key is; order holds within one key."""

    name: str
    key: str
    says: str
    written_by: str
    partitions: int
    retention_ms: int
    cleanup: Literal["delete", "compact"] = "delete"
    is_transactional: bool = False
    is_private: bool = False  # read by its writer and auditors alone

    def of(self, domain: str) -> str:
        """The topic's full name in Kafka."""
        return f"{domain}.{self.name}"


_DATA_PARTITIONS: Final = 4

TOPICS: Final[tuple[Topic, ...]] = (
    Topic("facts", "subject", "something happened in the world", "producers", _DATA_PARTITIONS, 30 * DAY_MS),
    Topic("situations", "subject", "a fact or pattern worth deciding on, with its features", "context", _DATA_PARTITIONS, 30 * DAY_MS),
    Topic("proposals", "subject", "an agent would do this, this sure, for this reason", "propose, reason", _DATA_PARTITIONS, 30 * DAY_MS),
    Topic("decisions", "subject", "allow, deny or hold, by which policies, why", "govern", _DATA_PARTITIONS, FOREVER, is_transactional=True),
    Topic("limits", "subject, or 'limits' for claims", "a claim on limits wider than a subject, and its grant", "govern", _DATA_PARTITIONS, FOREVER),
    Topic("commands", "subject", "do this, once", "govern", _DATA_PARTITIONS, FOREVER, is_transactional=True),
    Topic("outcomes", "subject", "what the command did", "actuators", _DATA_PARTITIONS, FOREVER),
    Topic("approvals", "subject", "a person's signed answer to a hold, or override", "people", _DATA_PARTITIONS, FOREVER),
    Topic("policies", "policy id/version, switch scope, or person", "a version of a policy, a switch, or a person", "people", 1, FOREVER),
    Topic("models", "alias/version", "which artefact an alias stands for", "people", 1, FOREVER),
    Topic("prompts", "prompt id/version", "a version of what language models are told", "people", 1, FOREVER),
    Topic("exchanges", "call id/turn", "a call of a language model or of its tool, as it was", "reason", _DATA_PARTITIONS, FOREVER, "compact", is_private=True),
    Topic("audit-heads", "head number", "what every chain of decisions ended with, signed", "sealer", 1, FOREVER),
    Topic("dead-letters", "topic/partition/offset", "a record nobody could use, with its cause", "every job, producers, actuators", 1, FOREVER),
    Topic("late-facts", "subject", "a fact too late for its event-time window (the fast lane used it)", "context", 1, 30 * DAY_MS),
)  # fmt: skip


def topic(name: str) -> Topic:
    """The row named `name`. Raises KeyError with the names there are."""
    for row in TOPICS:
        if row.name == name:
            return row
    raise KeyError(f"no topic {name!r}; there are: {', '.join(t.name for t in TOPICS)}")
