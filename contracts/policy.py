"""Policy: what agents may do, as a versioned event; and the switch that pauses them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from contracts.data import Data, Identifier, Instant, Scalar, Slug
from contracts.decision import PolicyVerdict

Status = Literal["draft", "shadow", "canary", "active", "retired"]
SituationType = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_\-]*(\.[a-z][a-z0-9_\-]*)*$", max_length=128)
]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
CelType = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\([a-z_, ()]*\))?$", max_length=128)]
_FIELDS = ("feature_", "parameter_")
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Scope(Data):
    """Which proposals a policy speaks about. An empty list means any."""

    actions: tuple[Slug, ...] = Field(default=(), max_length=64)
    agents: tuple[Slug, ...] = Field(default=(), max_length=64)
    situations: tuple[SituationType, ...] = Field(default=(), max_length=64)


class Limit(Data):
    """What may be allowed of one thing, counted on what was allowed, for each combination of `per` apart.

    One of three, told by what it names:
    a rate: `max_count` proposals within any `within_s` seconds of event time;
    a budget: `max_total` of the number `amount` (a variable) within any `within_s`; reserved when
    allowed, corrected when an outcome reports its `cost`, unless the command's budgets are of several amounts;
    concurrency: `max_in_flight` commands whose outcome has neither come nor lapsed.
    """

    per: tuple[VariableName, ...] = Field(
        default=("subject", "action"), max_length=8,
        description="of: subject, action, agent, a feature_... or parameter_...; nothing: the domain",
    )  # fmt: skip
    max_count: int | None = Field(default=None, ge=1, le=1_000_000)
    max_total: float | None = Field(default=None, gt=0, le=1e15)
    amount: VariableName | None = Field(default=None, description="feature_... or parameter_...")
    max_in_flight: int | None = Field(default=None, ge=1, le=100_000)
    within_s: int | None = Field(default=None, ge=1, le=366 * 86_400, description="seconds of event time")

    @model_validator(mode="after")
    def _is_one_of_three(self) -> Self:
        kinds = [k for k in ("max_count", "max_total", "max_in_flight") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected one of max_count, max_total, max_in_flight, came {kinds}")
        if (self.within_s is None) is not (self.max_in_flight is not None):
            raise ValueError("within_s goes with max_count and max_total, not with max_in_flight")
        if (self.amount is None) is (self.max_total is not None):
            raise ValueError("amount goes with max_total: the variable that is summed")
        for name in (*self.per, *((self.amount,) if self.amount else ())):
            if name not in ("subject", "action", "agent") and not name.startswith(_FIELDS):
                raise ValueError(
                    f"expected subject, action, agent, feature_... or parameter_..., came {name!r}"
                )
        narrow = self.max_in_flight is not None and not self.is_wide
        if narrow and not {"subject", "action"}.issuperset(self.per):
            raise ValueError(f"per: max_in_flight of a subject counts by action only, came {self.per}")
        return self

    @property
    def is_wide(self) -> bool:
        """Whether it counts over subjects. It then counts what was allowed by policies that name it."""
        return "subject" not in self.per


class Circuit(Data):
    """A circuit breaker for each agent and action, fed by outcomes; times are event time.

    `failures` failed outcomes within `within_s` open it: everything is denied for `open_s`; then one
    probe is let through, whose outcome closes it or opens it again.
    """

    failures: int = Field(ge=1, le=10_000)
    within_s: int = Field(ge=1, le=366 * 86_400)
    open_s: int = Field(ge=1, le=366 * 86_400)


class Arbitration(Data):
    """Proposals that pass wait `window_s` for others that conflict; the best of them goes on.

    A proposal conflicts with one of the actions named here about the same subject and the same
    `resource`, whether the other's policy names it too or not. The window is event time of the
    subject, or as long on the wall clock, whichever ends first. Highest `priority` first, then confidence, then the smallest proposal id.
    """

    conflicts_with: tuple[Slug, ...] = Field(min_length=1, max_length=64)
    resource: VariableName | None = Field(
        default=None, description="feature_... or parameter_...; none: the whole subject"
    )
    window_s: float = Field(gt=0, le=86_400)
    priority: int = Field(default=0, ge=-1000, le=1000)


class Fallback(Data):
    """What is done instead when a proposal is stale: a conservative action, itself under the policies."""

    action: Slug
    parameters: dict[VariableName, Scalar] = Field(default={}, max_length=64)


class Deadline(Data):
    """So long people have, on the wall clock: `within_s` seconds, or working days (Monday to Friday, UTC)."""

    roles: tuple[Slug, ...] = Field(min_length=1, max_length=32, description="any of these may answer")
    within_s: int | None = Field(default=None, ge=1, le=366 * 86_400)
    within_working_days: int | None = Field(default=None, ge=1, le=250)

    @model_validator(mode="after")
    def _has_one_deadline(self) -> Self:
        if (self.within_s is None) is (self.within_working_days is None):
            raise ValueError("expected one of within_s, within_working_days")
        return self


class Approval(Deadline):
    """Who must approve, how many of them, how soon; and who is asked when the deadline passes."""

    approvers: int = Field(default=1, ge=1, le=16, description="different people")
    escalate: tuple[Deadline, ...] = Field(
        default=(), max_length=8, description="one after the other; after the last it expires to deny"
    )
    not_by: tuple[VariableName, ...] = Field(
        default=(), max_length=8, description="variables that name people who may not approve, one a line"
    )

    @model_validator(mode="after")
    def _knows_its_variables(self) -> Self:
        for name in self.not_by:
            if not name.startswith(_FIELDS):
                raise ValueError(f"not_by: expected feature_... or parameter_..., came {name!r}")
        return self


# Where a policy holds, or cannot be evaluated, and names none.
DEFAULT_APPROVAL = Approval(roles=("approver",), within_s=86_400)


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
    verdict: PolicyVerdict
    approval: Approval | None = Field(
        default=None, description="with require_approval and hold; none: one approver within a day"
    )
    limits: tuple[Limit, ...] = Field(default=(), max_length=16)
    freshness_s: float | None = Field(
        default=None, gt=0, le=366 * 86_400, description="features older than this are stale"
    )
    current_by: VariableName | None = Field(
        default=None,
        description="feature_...: a number that grows when the subject changes; stale when a higher one was seen",
    )
    fallback: Fallback | None = Field(default=None, description="instead of denying what is stale")
    outcome_within_s: int | None = Field(
        default=None,
        ge=1,
        le=366 * 86_400,
        description="the same action waits for the outcome, so long at most, in event time",
    )
    cooldown_s: int | None = Field(
        default=None,
        ge=1,
        le=366 * 86_400,
        description="the same action waits so long after a failed outcome, in event time",
    )
    circuit: Circuit | None = Field(default=None, description="stops an agent's action that keeps failing")
    arbitration: Arbitration | None = Field(default=None, description="one winner among conflicting actions")
    obligations: dict[VariableName, Scalar] = Field(
        default={}, max_length=16, description="what the command carries: dry_run, notify, ..."
    )
    canary_percent: float = Field(
        default=10.0, gt=0, le=100, description="share of subjects a canary applies to, by hash"
    )
    author: str = Field(default="", max_length=128, description="who gave it this status")
    moved_because: str = Field(default="", max_length=300, description="why it has this status")
    examples: tuple[Example, ...] = Field(default=(), max_length=256)
    reason: str = Field(min_length=1, max_length=300, description="for people, one sentence")
    description: str = Field(default="", max_length=4000)
    variables: dict[VariableName, CelType] = Field(default={}, max_length=256)

    @model_validator(mode="after")
    def _only_allow_is_bounded(self) -> Self:
        bounds = ("limits", "outcome_within_s", "cooldown_s", "obligations", "circuit", "arbitration")
        if self.verdict == "deny" and (named := [n for n in bounds if getattr(self, n)]):
            raise ValueError(f"{', '.join(named)}: bounds what is allowed; verdict {self.verdict!r} has none")
        if self.current_by is not None and not self.current_by.startswith("feature_"):
            raise ValueError(f"current_by: expected feature_..., came {self.current_by!r}")
        if self.approval is not None and self.verdict not in ("require_approval", "hold"):
            raise ValueError(f"approval: goes with require_approval, not with {self.verdict!r}")
        if self.outcome_within_s is None and any(limit.max_in_flight for limit in self.limits):
            raise ValueError("max_in_flight needs outcome_within_s: when a command without outcome lapses")
        if self.outcome_within_s is None and self.cooldown_s is not None:
            raise ValueError("cooldown_s needs outcome_within_s: how long a failed outcome is waited for")
        if self.outcome_within_s is None and self.circuit is not None:
            raise ValueError("circuit needs outcome_within_s: when a probe without outcome lapses")
        return self


class PolicySwitch(Data):
    """Pauses or resumes what it names of agent, action and subject; the domain when it names nothing.

    The newest switch for the same agent, action and subject replaces the one before. Pauses add up: a
    proposal is paused while any switch that covers it is.
    """

    event_type: ClassVar[str] = "flyball.switch"

    paused: bool
    agent: Slug | None = None
    action: Slug | None = None
    subject: Identifier | None = None
    reason: str = Field(default="", max_length=300)
    author: str = Field(default="", max_length=128)
