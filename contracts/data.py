"""What every payload (`data`) has in common: frozen, typed strictly, unknown fields refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from contracts.errors import BadInput

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_\-]{0,63}$")]
Identifier = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Instant = Annotated[str, Field(max_length=40, pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Several of them, in order; a JSON list where Python has a tuple.
Identifiers = Annotated[tuple[Identifier, ...], Field(max_length=100, strict=False)]
Scalar = str | bool | int | float | None
# `Field(json_schema_extra=PERSONAL)`: a placeholder stands in the value's place in every prompt that leaves.
PERSONAL: dict[str, JsonValue] = {"personal": True}


def of_situation(*fields: str, may_be_empty: bool = False) -> dict[str, JsonValue]:
    """`Field(json_schema_extra=of_situation("node", "suspects"))`: a parameter that names a thing of the situation.

    Its value must be that of one of these fields of the situation (or one of those listed there): a model that names
    another is refused (udfs/reason/reply.py). `may_be_empty`: it may also name none, as ''.
    """
    return {"of_situation": list(fields), "may_be_empty": may_be_empty}


Upcast = Callable[[dict[str, Any]], dict[str, Any]]


class Data(BaseModel):
    """The `data` of one event type. `event_type` is its CloudEvents `type`, `schema_version` its version.

    `upcasts[n]` makes data of version n + 2 out of data of version n + 1: pure, one for each version but the first, so
    that an old event stays readable (`current`). Where nothing was taken away that is `unchanged`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="null"
    )

    event_type: ClassVar[str]
    schema_version: ClassVar[int] = 1
    upcasts: ClassVar[tuple[Upcast, ...]] = ()


def unchanged(data: dict[str, Any]) -> dict[str, Any]:
    """The upcast of a version that takes everything the one before took."""
    return data


def current(kind: type[Data], event: Mapping[str, Any]) -> Any:
    """The event's data as of the contract's version: what is older is lifted.

    Without a `dataschema` of ours (`urn:flyball:...:<version>`) it is taken as it is.

    Raises BadInput for a version there is not (yet) or data no upcast can lift, KeyError without data.
    """
    named = event.get("dataschema")
    if named is None:
        return event["data"]
    if not isinstance(named, str):
        raise BadInput("envelope_invalid", f"attribute 'dataschema': expected a string, came {type(named).__name__}")
    version = named.rpartition(":")[2]
    if version == str(kind.schema_version) or not named.startswith("urn:flyball:"):
        return event["data"]
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version) or int(version) > kind.schema_version:
        raise BadInput(
            "wrong_version",
            f"expected a dataschema of {kind.event_type} with a version of 1 to {kind.schema_version}, came {named[:128]!r}",
        )
    data = event["data"]
    try:
        for upcast in kind.upcasts[int(version) - 1 :]:
            data = upcast(dict(data))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInput(
            "data_invalid", f"no data of version {version} of {kind.event_type}: {type(error).__name__} {str(error)[:500]}"
        ) from None
    return data


class FactData(Data):
    """The `data` of a fact: what happened in the world."""


class SituationData(Data):
    """The `data` of a situation: flat, typed features (STRING, BIGINT, DOUBLE, BOOLEAN in SQL).

    `event_time` is the event time of the fact that caused it and is filled in by `context`. A situation may
    also declare `suspects` (what may have caused it, the likeliest first) and `evidence` (ids of events it
    rests on), tuples of texts: they go with every proposal and decision about it, and are no features.
    """

    event_time: Instant


class ActionParameters(Data):
    """The parameters of one action a domain knows. `is_commanded` is False for "let it be".

    `resource` names the parameter that says what is acted on, where a subject has several such things: the
    loop guard then tells the same action on another of them apart.
    """

    event_type: ClassVar[str] = "flyball.action"
    action: ClassVar[str]
    is_commanded: ClassVar[bool] = True
    resource: ClassVar[str | None] = None
