"""A domain's contract, found by name: `contracts/<domain>.py` lists FACTS, SITUATIONS and ACTIONS."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

from contracts.data import ActionParameters, FactData, SituationData
from contracts.errors import SetupFailed
from contracts.fact import ClockTicked
from contracts.outcome import Outcome

_SQL_TYPES: dict[object, str] = {str: "STRING", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}
_CEL_TYPES = {"STRING": "string", "BIGINT": "int", "DOUBLE": "double", "BOOLEAN": "bool"}


def sql_type(annotation: object) -> str:
    """The Flink SQL type of a scalar field; `X | None` is the (nullable) type of X.

    `tuple[X, ...]` is an ARRAY of it. Raises TypeError for a type that does not cross from Python to SQL
    safely.
    """
    if annotation in _SQL_TYPES:
        return _SQL_TYPES[annotation]
    if get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,):
        return f"ARRAY<{sql_type(get_args(annotation)[0])}>"
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = (arg for arg in get_args(annotation) if arg is not type(None))
        return sql_type(inner)
    if get_args(annotation):  # Annotated[...] and Literal[...]
        first = get_args(annotation)[0]
        return sql_type(first if not isinstance(first, str) else str)
    raise TypeError(f"expected a scalar field (str, int, float, bool), came {annotation!r}")


def columns(data: type[FactData] | type[SituationData] | type[ActionParameters]) -> dict[str, str]:
    """Field name -> Flink SQL type, in the order of declaration."""
    return {name: sql_type(field.annotation) for name, field in data.model_fields.items()}


def things_named(action: type[ActionParameters]) -> dict[str, tuple[str, ...]]:
    """Parameter -> the situation's fields one of whose values it must have; without those that name no such thing."""
    marks = ((name, field.json_schema_extra) for name, field in action.model_fields.items())
    return {name: tuple(mark["of_situation"]) for name, mark in marks if isinstance(mark, dict) and "of_situation" in mark}  # type: ignore[arg-type]


@dataclass(frozen=True)
class DomainContract:
    """What a domain's events look like."""

    name: str
    facts: Mapping[str, type[FactData]]
    situations: Mapping[str, type[SituationData]]
    actions: Mapping[str, type[ActionParameters]]

    def fact_columns(self) -> dict[str, str]:
        """Column -> type over all fact types: one wide row that any of them fits.

        Raises SetupFailed when two fact types use a name with two types.
        """
        wide: dict[str, str] = {}
        for fact in self.facts.values():
            for name, kind in columns(fact).items():
                if wide.setdefault(name, kind) != kind:
                    raise SetupFailed(
                        f"contracts/{self.name}.py: field {name!r} is {wide[name]} in one fact and"
                        f" {kind} in {fact.__name__}; give one of them another name"
                    )
        return wide

    @cached_property
    def personal_fields(self) -> frozenset[str]:
        """Names of situation fields that the contract marks as personal (contracts/data.py `Personal`)."""
        return frozenset(
            name
            for situation in self.situations.values()
            for name, field in situation.model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("personal")
        )

    def policy_variables(self) -> dict[str, str]:
        """Every flat variable a policy's `when` may read, with its CEL type.

        A variable that a given proposal does not have (a feature of another situation) is an
        evaluation error there, and so a hold.
        """
        found = {
            "action": "string",
            "agent": "string",
            "subject": "string",
            "situation": "string",
            "confidence": "double",
            "hops": "int",
            "age_s": "double",
            "allowed_1h": "int",
            "allowed_24h": "int",
        }
        sources = [("feature", s) for s in self.situations.values()]
        sources += [("parameter", a) for a in self.actions.values()]  # type: ignore[misc]
        for prefix, model in sources:
            for name, kind in columns(model).items():
                if name == "event_time" and prefix == "feature":
                    continue
                if kind not in _CEL_TYPES:  # lists explain, they decide nothing
                    continue
                variable = f"{prefix}_{name}"
                if found.setdefault(variable, _CEL_TYPES[kind]) != _CEL_TYPES[kind]:
                    raise SetupFailed(
                        f"contracts/{self.name}.py: {variable!r} has two types; give one of the"
                        " fields another name"
                    )
        return found


def short_name(event_type: str) -> str:
    """SQL name of an event type: `machine.temperature_measured` -> `machine_temperature_measured`."""
    return event_type.replace(".", "_").replace("-", "_")


def known_domains() -> tuple[str, ...]:
    """Every domain there is, sorted: the modules of contracts/ that define FACTS (none is imported)."""
    return tuple(
        sorted(
            path.stem
            for path in Path(__file__).parent.glob("*.py")
            if re.search(r"(?m)^FACTS\b", path.read_text(encoding="utf-8"))
        )
    )


@cache
def load_domain(name: str) -> DomainContract:
    """The contract of the domain `name`. Raises SetupFailed when there is none."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
        raise SetupFailed(f"expected a domain name like 'machines', came {name[:64]!r}")
    try:
        module = importlib.import_module(f"{__package__}.{name}")
        facts, situations, actions = module.FACTS, module.SITUATIONS, module.ACTIONS
    except (ModuleNotFoundError, AttributeError) as error:
        raise SetupFailed(
            f"no domain {name!r}: contracts/{name}.py with FACTS, SITUATIONS and ACTIONS is needed"
            f" ({error}); './flyball new {name}' lays one out"
        ) from None
    return DomainContract(
        name,
        {fact.event_type: fact for fact in (*facts, Outcome, ClockTicked)},
        {situation.event_type: situation for situation in situations},
        {action.action: action for action in actions},
    )
