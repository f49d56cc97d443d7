"""People: who they are, what they answer to a held action, and what they command themselves."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from contracts.data import Data, Digest, Identifier, Instant, Scalar, Slug

PersonName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@\-]{0,63}$")]
ParameterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
# base64url without padding of 32 and of 64 bytes (RFC 8032: an Ed25519 key and a signature)
PublicKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_\-]{43}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_\-]{86}$")]
Right = Literal["override", "break_glass"]
Why = Annotated[str, Field(max_length=1000)]


class Person(Data):
    """Somebody who may answer, on the policies topic: `govern` knows people as it knows policies.

    The newest event about a person replaces the one before. `may`: what their roles let them do
    beside approving: command by override, and do so against a forbid (break the glass).
    """

    event_type: ClassVar[str] = "flyball.person"

    person: PersonName
    roles: tuple[Slug, ...] = Field(max_length=32)
    may: tuple[Right, ...] = ()
    public_key: PublicKey
    is_active: bool = True


class Signed(Data):
    """What a person signs with their own key: Ed25519 (RFC 8032) over canonical JSON (RFC 8785).

    Signed are all fields but the signature, with `domain`, `subject` and `type` of the event.
    """

    person: PersonName
    signed_at: Instant = Field(description="wall time")
    signature: Signature


class Answer(Signed):
    """A person's answer to one held action, named by the hold's decision id and the action's digest."""

    event_type: ClassVar[str] = "flyball.answer"

    approval_id: Identifier
    action_digest: Digest
    answer: Literal["approve", "refuse", "edit"]
    parameters: dict[ParameterName, Scalar] = Field(
        default={}, max_length=64, description="those an edit changes"
    )
    reason: Why = ""

    @model_validator(mode="after")
    def _only_an_edit_changes(self) -> Self:
        if (self.answer == "edit") is not bool(self.parameters):
            raise ValueError("parameters go with answer 'edit', and an edit changes some")
        return self


class Override(Signed):
    """A person commands directly: decided like a proposal, recorded like a decision."""

    event_type: ClassVar[str] = "flyball.override"

    action: Slug
    parameters: dict[ParameterName, Scalar] = Field(max_length=64)
    reason: Annotated[str, Field(min_length=1, max_length=1000)]
    break_glass: bool = Field(default=False, description="also against a forbid or a pause")
