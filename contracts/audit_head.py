"""Audit head: what every subject's chain ended with at a moment, signed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from contracts.approval import PublicKey, Signature
from contracts.data import Data, Digest, Identifier, Instant

PartitionNumber = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]


class ChainEnd(Data):
    """The last entry of a subject's chain, and where it lay in the decisions topic."""

    subject: Identifier
    number: int = Field(ge=1)
    sha256: Digest = Field(description="of the entry's record")
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


class AuditHead(Data):
    """What every subject's chain ended with when these records of the decisions topic were there, signed.

    `root` is the Merkle tree hash (RFC 6962, 2.1) over all subjects in the order of their names' bytes; a
    leaf is the canonical JSON (RFC 8785) of {subject, number, sha256} of its last entry. Heads form a chain
    of their own. Signed (Ed25519, RFC 8032, over RFC 8785) are all fields but the signature, with `domain`,
    `subject` and `type` of the event.
    """

    event_type: ClassVar[str] = "flyball.audit_head"

    number: int = Field(ge=1)
    sealed_from: Instant | None = Field(default=None, description="wall time of the head before")
    sealed_at: Instant = Field(description="wall time")
    ends: dict[PartitionNumber, Annotated[int, Field(ge=0)]] = Field(
        description="partition of the decisions topic -> first offset that is not covered"
    )
    entries: int = Field(ge=1, description="records covered by this head and all before it")
    subjects: int = Field(ge=0, description="leaves of the tree")
    changed: tuple[ChainEnd, ...] = Field(description="subjects with entries since the head before, by name")
    root: Digest
    previous: Digest | None = Field(default=None, description="SHA-256 of the record of the head before")
    key: PublicKey
    signature: Signature
