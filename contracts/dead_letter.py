"""Dead letter: a record nobody could use, with its cause, its place and its bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from contracts.data import Data, Identifier


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


class DeadLetter(Data):
    """`topic`, `partition`, `offset` name the record; for a file, its name, 0 and the line number."""

    event_type: ClassVar[str] = "flyball.dead_letter"

    cause: Cause
    message: str = Field(max_length=2000)
    stage: Identifier
    topic: Identifier
    partition: int
    offset: int
    key_base64: str | None = None
    value_base64: str | None = Field(default=None, description="the original bytes; null: tombstone")
