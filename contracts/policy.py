"""Policy: what agents may do, as a versioned event; and the switch that pauses them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from contracts.data import Data, Instant, Scalar, Slug
from contracts.decision import Verdict

Status = Literal["draft", "shadow", "canary", "active", "retired"]
SituationType = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_\-]*(\.[a-z][a-z0-9_\-]*)*$", max_length=128)
]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
CelType = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\([a-z_, ()]*\))?$", max_length=128)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Scope(Data):
    """Which proposals a policy speaks about. An empty list means any."""

    actions: tuple[Slug, ...] = Field(default=(), max_length=64)
    agents: tuple[Slug, ...] = Field(default=(), max_length=64)
    situations: tuple[SituationType, ...] = Field(default=(), max_length=64)


class Limit(Data):
    """At most `max_count` allowed proposals within any `within_s` seconds of event time.

    Counted on what was allowed, for each `per` key apart.
    """

    per: Literal["subject_and_action"] = "subject_and_action"
    max_count: int = Field(ge=1, le=1_000_000)
    within_s: int = Field(ge=1, le=366 * 86_400, description="seconds of event time")


class Example(Data):
    """A row of a policy's own test: what `when` must say, given these variables.

    "error" is a condition that cannot be evaluated, which `govern` holds.
    """

    given: dict[VariableName, Scalar] = Field(max_length=256)
    expect: bool | Literal["error"]


class Policy(Data):
    """One version of one policy. A version never changes; a change is the next version.

    `variables` holds the CEL type of every variable `when` reads, as it was checked at publish;
    `govern` enforces it on every reading. Authors leave it out, the checker fills it in.
    """

    event_type: ClassVar[str] = "flyball.policy"

    policy_id: Slug
    version: int = Field(ge=1, le=2**31 - 1)
    status: Status
    effective_from: Instant | None = Field(default=None, description="event time; none: always")
    scope: Scope = Scope()
    when: Text = Field(description="CEL over the domain's policy variables; must give a bool")
    verdict: Verdict
    limits: tuple[Limit, ...] = Field(default=(), max_length=16)
    freshness_s: float | None = Field(
        default=None, gt=0, le=366 * 86_400, description="features older than this are stale"
    )
    examples: tuple[Example, ...] = Field(default=(), max_length=256)
    reason: str = Field(min_length=1, max_length=300, description="for people, one sentence")
    description: str = Field(default="", max_length=4000)
    variables: dict[VariableName, CelType] = Field(default={}, max_length=256)

    @model_validator(mode="after")
    def _only_allow_has_limits(self) -> Self:
        if self.limits and self.verdict != "allow":
            raise ValueError(f"limits count what is allowed; verdict {self.verdict!r} has none")
        return self


class PolicySwitch(Data):
    """Pauses or resumes an agent, an action, one agent's action, or (neither named) the domain.

    The newest switch for the same agent and action replaces the one before. Pauses add up: a
    proposal is paused while any switch that covers it is.
    """

    event_type: ClassVar[str] = "flyball.switch"

    paused: bool
    agent: Slug | None = None
    action: Slug | None = None
    reason: str = Field(default="", max_length=300)
    author: str = Field(default="", max_length=128)
