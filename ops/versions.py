"""Versions of what is published as events, by the names `id@version`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from contracts.errors import SetupFailed

Published = TypeVar("Published")


def chosen(found: Mapping[str, Published], name: str) -> Published:
    """The version `name` means: `id@version` that one, an id alone its newest. Raises SetupFailed when there is none."""
    versions = [each for each in found if name in (each, each.rpartition("@")[0])]
    if not versions:
        raise SetupFailed(f"expected one of {sorted(found)}, came {name!r}")
    return found[max(versions, key=lambda each: int(each.rpartition("@")[2]))]
