"""YAML files as plain values, bounded: no file makes more than it shows, or anything but data."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.nodes import Node

from contracts.errors import SetupFailed

MAX_CHARACTERS: Final = 131_072
# Commas, colons and line ends: what there are values by, and what parsing takes its time over (50 us each).
MAX_MARKS: Final = 12_000
# Written out, aliases and merges included.
MAX_VALUES: Final = 50_000
# Of flow collections in each other: the parser takes seconds to give up on thousands.
MAX_DEPTH: Final = 100
_BRACKET = re.compile(r"[\[\]{}]")
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def read_yaml(path: Path) -> object:
    """The file's content: dicts, lists, texts, numbers of 64 bits, booleans, dates and None.

    Raises SetupFailed with the file, what was expected and what came.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SetupFailed(f"expected the file {path}, found none") from None
    except OSError as error:
        raise SetupFailed(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SetupFailed(f"{path}: not YAML: expected UTF-8, byte {error.start}: {error.reason}") from None
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise SetupFailed(f"{path}: not YAML: {error}") from None


def parse_yaml(text: str) -> object:
    """`read_yaml` for text at hand. Raises ValueError."""
    if expected := too_much(text):
        raise ValueError(f"expected {expected}")
    try:
        if "*" in text and (root := YAML(typ="safe", pure=True).compose(text)) is not None:
            _refuse_bombs(root)
        found = YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise ValueError("expected values nested less deeply") from None
    except Exception as error:  # whatever the parser raises refuses
        raise ValueError(str(error)[:1000]) from None
    _refuse_strange(found)
    return found


def too_much(text: str) -> str | None:
    """What was expected of a text that would take the parser long; None when it is good.

    Marks and brackets inside texts and comments are counted, too.
    """
    if len(text) > MAX_CHARACTERS:
        return f"at most {MAX_CHARACTERS} characters, came {len(text)}"
    if (marks := sum(map(text.count, ",:\n\r\x85\u2028\u2029"))) > MAX_MARKS:
        return f"at most {MAX_MARKS} commas, colons and lines, came {marks}"
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        if depth > MAX_DEPTH:
            return f"brackets nested {MAX_DEPTH} deep at most"
    return None


def _refuse_bombs(root: Node) -> None:
    """Aliases may share a value; written out, all of them are MAX_VALUES at most, and none holds itself."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: Node) -> int:
        if (known := sizes.get(id(node))) is not None:
            return known
        if id(node) in open_:
            raise ValueError("expected values that do not hold themselves")
        open_.add(id(node))
        total = 1
        if isinstance(node.value, list):
            for item in node.value:
                total += sum(map(size, item)) if isinstance(item, tuple) else size(item)
                if total > MAX_VALUES:
                    raise ValueError(f"expected at most {MAX_VALUES} values, came more (aliases written out)")
        open_.discard(id(node))
        sizes[id(node)] = total
        return total

    size(root)


def _refuse_strange(found: object) -> None:
    """What JSON has no form for would fail far from the file."""
    left, waiting = MAX_VALUES, [found]
    while waiting:
        left -= 1
        if left < 0:
            raise ValueError(f"expected at most {MAX_VALUES} values")
        value: Any = waiting.pop()
        match value:
            case None | bool() | float() | date():
                pass
            case int():
                if not _INT_MIN <= value <= _INT_MAX:
                    raise ValueError("expected integers of 64 bits, came a larger one")
            case str():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ValueError("expected text, came a lone surrogate") from None
            case dict():
                waiting += value.keys()
                waiting += value.values()
            case list():
                waiting += value
            case _:
                raise ValueError(f"expected plain values, came a {type(value).__name__}")
