"""Step 6 of the truth table: rates, budgets and concurrency of one subject, of what was allowed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from contracts.decision import Reason, Verdict
from contracts.policy import Limit
from udfs.policy.policy_set import Judgement
from udfs.policy.subject import Allowed, SubjectState

# Beside the values of what was allowed, where they do not tell it: which of them its cost is of.
_COST_OF: Final = "cost_of"


def over_limit(
    state: SubjectState,
    agent: str,
    action: str,
    variables: Mapping[str, object],
    judgement: Judgement,
    counters: dict[str, int | float],
) -> tuple[Verdict, Reason, str] | None:
    """The first limit that is used up, as verdict, reason and explanation; None when none is.

    Writes what was counted into `counters`.
    """
    if judgement.verdict != "allow":
        return None
    for policy_id, limit in judgement.limits:
        if limit.max_in_flight is not None:
            flying = [flight for flight in state.flying() if "action" not in limit.per or flight[0] == action]
            counters["in_flight"] = len(flying)
            if len(flying) >= limit.max_in_flight:
                told = f"{len(flying)} without outcome, {policy_id} lets at most {limit.max_in_flight}"
                return "deny", Reason.IN_FLIGHT_LIMIT, told
            continue
        within_s = limit.within_s or 0
        if limit.max_count is not None and limit.per == ("subject", "action"):
            count = state.count(action, within_s * 1000)
        else:
            same = _alike(state, limit, agent, action, variables, within_s * 1000)
            count = len(same)
            if limit.max_total is not None and limit.amount is not None:
                spent = sum(_spent(entry, limit.amount) for entry in same)
                asked = variables.get(limit.amount)
                counters[f"{limit.amount}_within_{within_s}s"] = spent
                if not isinstance(asked, (int, float)) or isinstance(asked, bool) or asked < 0:
                    told = f"{policy_id} budgets {limit.amount}, which this proposal does not name"
                    return "deny", Reason.BUDGET_LIMIT, told
                if spent + asked > limit.max_total:
                    told = (
                        f"{spent:g} of {limit.amount} allowed within {within_s} s, {asked:g} more is over"
                        f" the {limit.max_total:g} of {policy_id}"
                    )
                    return "deny", Reason.BUDGET_LIMIT, told
                continue
        counters[f"allowed_within_{within_s}s"] = count
        if limit.max_count is not None and count >= limit.max_count:
            what = " and ".join(n for n in limit.per if n not in ("subject", "action"))
            told = (
                f"{count} {action} allowed within {within_s} s for this subject"
                f"{f' and {what}' if what else ''}, {policy_id} lets at most {limit.max_count}"
            )
            return "deny", Reason.RATE_LIMIT, told
    return None


def _alike(
    state: SubjectState, limit: Limit, agent: str, action: str, variables: Mapping[str, object],
    within_ms: int,
) -> list[Allowed]:  # fmt: skip
    """What was allowed within `within_ms` and is alike in everything the limit is per.

    Of what was allowed before any limit asked for more than subject and action, only these are
    known: it counts.
    """
    fields = [name for name in limit.per if name not in ("subject", "action", "agent")]

    def is_alike(entry: Allowed) -> bool:
        return isinstance(entry, int) or (
            ("agent" not in limit.per or entry[1] == agent)
            and all(entry[2].get(name, variables.get(name)) == variables.get(name) for name in fields)
        )

    return [
        entry
        for what, entry in state.within(within_ms)
        if ("action" not in limit.per or what == action) and is_alike(entry)
    ]


def _spent(entry: Allowed, amount: str) -> float:
    """What an allowed proposal took of a budget: what its outcome told, else what was reserved."""
    if isinstance(entry, int):
        return 0.0
    _, _, values, _, cost = entry
    if amount not in values:
        return 0.0
    is_told = cost is not None and values.get(_COST_OF, amount) == amount
    return float(cost if is_told else values[amount] or 0)


def cost_of(amounts: Collection[str], values: Mapping[str, object]) -> dict[str, str]:
    """To be remembered beside the `values` of what was allowed under budgets of `amounts`.

    A cost is of one thing, so of none when these are several. Nothing, where the only value is the only amount.
    """
    if len(amounts) < 2 and values.keys() == set(amounts):
        return {}
    return {_COST_OF: next(iter(amounts)) if len(amounts) == 1 else ""}
