"""Dead letter: a record nobody could use, with its cause, its place and its bytes; and its way back."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from contracts.data import Data, Digest, Identifier, Instant, Upcast, unchanged


class Cause(StrEnum):
    """Every cause code; the message beside it says what was expected and what came."""

    EMPTY = "empty"
    TOMBSTONE = "tombstone"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    DUPLICATE_KEY = "duplicate_key"
    ENVELOPE_INVALID = "envelope_invalid"
    UNKNOWN_TYPE = "unknown_type"
    WRONG_VERSION = "wrong_version"
    DATA_INVALID = "data_invalid"
    KEY_MISMATCH = "key_mismatch"
    TIME_AHEAD = "time_ahead"
    TIME_ABSURD = "time_absurd"
    TOO_LARGE = "too_large"
    ROW_INVALID = "row_invalid"
    MODEL_REFUSED = "model_refused"
    POLICY_REFUSED = "policy_refused"
    REPLY_REFUSED = "reply_refused"
    AGENT_GONE = "agent_gone"
    SIGNATURE_INVALID = "signature_invalid"
    SIGNATURE_MISSING = "signature_missing"
    SIGNATURE_MISPLACED = "signature_misplaced"
    SIGNATURE_EXPIRED = "signature_expired"
    PRODUCER_UNKNOWN = "producer_unknown"
    PRODUCER_NOT_PERMITTED = "producer_not_permitted"
    REPLAYED = "replayed"
    HANDLER_FAILED = "handler_failed"
    INTERNAL = "internal"


class Attempt(BaseModel):
    """One try that failed for a passing reason. `failed_at` is wall time."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    failed_at: Instant
    error: str = Field(max_length=500)


# Topics that a redrive may write: what only govern may write, or is published by a command of its own, is not put back.
PUT_BACK: Final = ("facts", "outcomes", "situations", "proposals", "approvals")
Attempts = Annotated[tuple[Attempt, ...], Field(max_length=100, strict=False)]


class DeadLetter(Data):
    """`topic`, `partition`, `offset` name the record; for a file, its name, 0 and the line number."""

    event_type: ClassVar[str] = "flyball.dead_letter"
    schema_version: ClassVar[int] = 2  # since then there is the cause `internal`
    upcasts: ClassVar[tuple[Upcast, ...]] = (unchanged,)

    cause: Cause
    message: str = Field(max_length=2000)
    stage: Identifier
    topic: Identifier
    partition: int
    offset: int
    key_base64: str | None = None
    value_base64: str | None = Field(default=None, description="the original bytes; null: tombstone")
    attempts: Attempts = Field(default=(), description="what was tried before it was given up, in order")


class Redriven(Data):
    """A dead letter's record was put back into its topic: written in one transaction with that record.

    Under the key of the letter (`causationid`), so that a letter with such an event is not redriven again. `topic`,
    `partition` and `offset` are where the record lies now; a dead letter about that place continues the history.
    """

    event_type: ClassVar[str] = "flyball.redriven"

    refused_sha256: Digest = Field(description="of the record as it was refused; of nothing: a tombstone")
    attempt: int = Field(ge=1, description="how often the record was put back, this time included")
    is_edited: bool
    topic: Identifier
    partition: int
    offset: int
    sha256: Digest = Field(description="of the record as it was put back")
