"""Whether what was valid under one JSON Schema is valid under another: the part of JSON Schema our contracts use.

`breaks` is sound, not complete: it finds no break only where every valid value stays valid; what it does not know it
reports. Libraries that judge this give a verdict without saying where, or miss breaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
# They tell people something and refuse no value. (`format` too: nobody here checks it.)
_SAY_ONLY = frozenset(
    {"title", "description", "default", "examples", "deprecated", "format", "personal", "$defs", "$schema", "$id", "discriminator"}
)
# What a value must be at least / at most.
_AT_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_AT_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_JUDGED = frozenset(
    {"type", "const", "enum", "anyOf", "oneOf", "$ref", "properties", "required", "additionalProperties", "items", "prefixItems",
     "patternProperties", *_AT_LEAST, *_AT_MOST}
)  # fmt: skip


@dataclass(frozen=True)
class Break:
    """A value that `writer` allows and `reader` refuses: where (`data.amount`, `data.items[]`) and why."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def breaks(reader: Schema, writer: Schema, path: str = "data") -> list[Break]:
    """Everything that is valid under `writer` and may be refused by `reader`; empty: nothing is."""
    return list(dict.fromkeys(_Judge(reader, writer).compare(reader, writer, path)))


class _Judge:
    def __init__(self, reader: Schema, writer: Schema) -> None:
        self._definitions = (reader.get("$defs", {}), writer.get("$defs", {}))
        self._under_way: set[tuple[int, int]] = set()

    def compare(self, reader: Any, writer: Any, path: str) -> Iterator[Break]:
        yield from self._compare_one_of(self._choices(reader, 0), self._choices(writer, 1), path)

    def _choices(self, schema: Any, side: int) -> list[Schema]:
        """The schema as a list of which any may fit, each without references."""
        if schema is True:
            return [{}]
        if schema is False:
            return []
        if name := _ref(schema):
            return self._choices(self._definitions[side][name], side)
        found: list[Schema] = []
        for word in ("anyOf", "oneOf"):
            if word in schema:
                rest = {key: value for key, value in schema.items() if key not in (word, *_SAY_ONLY)}
                for choice in schema[word]:
                    found += [{**rest, **one} for one in self._choices(choice, side)]
                return found
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return [{**schema, "type": kind} for kind in kinds]
        return [schema]

    def _compare_one_of(self, readers: list[Schema], writers: list[Schema], path: str) -> Iterator[Break]:
        for writer in writers:
            tried = [list(self._compare(reader, writer, path)) for reader in readers]
            if not all(tried):
                continue  # one of them found no break
            alike = [
                found for found, reader in zip(tried, readers, strict=True)
                if _told(reader) == _told(writer) or len(readers) == len(writers) == 1
            ]  # fmt: skip
            if alike:
                yield from min(alike, key=len)
            else:
                yield Break(path, f"may be {_told(writer)}, expected {' or '.join(map(_told, readers)) or 'nothing'}")

    def _compare(self, reader: Schema, writer: Schema, path: str) -> Iterator[Break]:
        if not set(reader) - _SAY_ONLY:
            return  # anything is right
        for word in sorted({*reader, *writer} - _JUDGED - _SAY_ONLY):
            if word in reader and reader[word] != writer.get(word):
                yield Break(path, f"{word} is {reader[word]!r}, was {writer.get(word, 'not asked for')!r}")
        if (values := _values(writer)) is not None:
            yield from self._compare_values(reader, values, path)
            return
        if (listed := _values(reader)) is not None:
            yield Break(path, f"may be any {_told(writer)}, expected one of {listed!r}")
            return
        kind, its = reader.get("type"), writer.get("type")
        if its is None:
            yield Break(path, f"may be anything, expected {_told(reader)}")
            return
        if kind is not None and kind != its and (kind, its) != ("number", "integer"):
            yield Break(path, f"may be {_told(writer)}, expected {_told(reader)}")
            return
        yield from _compare_bounds(reader, writer, path)
        if its == "object":
            both = id(reader.get("properties", path)), id(writer.get("properties", path))
            if both not in self._under_way:  # a type within itself is being compared already
                self._under_way.add(both)
                yield from self._compare_objects(reader, writer, path)
                self._under_way.discard(both)
        if its == "array":
            yield from self._compare_lists(reader, writer, path)

    def _compare_values(self, reader: Schema, values: list[Any], path: str) -> Iterator[Break]:
        listed = _values(reader)
        for value in values:
            if listed is not None:
                if not any(_same(value, one) for one in listed):
                    yield Break(path, f"may be {value!r}, expected one of {listed!r}")
            elif not _is(value, reader.get("type")):
                yield Break(path, f"may be {value!r}, expected {_told(reader)}")
            elif bounded := sorted(set(reader) - _SAY_ONLY - {"type"}):
                yield Break(path, f"may be {value!r}, which {', '.join(bounded)} may refuse")

    def _compare_objects(self, reader: Schema, writer: Schema, path: str) -> Iterator[Break]:
        ours, theirs = reader.get("properties", {}), writer.get("properties", {})
        others, their_others = reader.get("additionalProperties", True), writer.get("additionalProperties", True)
        for name in reader.get("required", ()):
            if name not in writer.get("required", ()):
                yield Break(f"{path}.{name}", "is required, and may be missing" if name in theirs else "is required, and was unknown")
        for name, its in theirs.items():
            if name in ours:
                yield from self.compare(ours[name], its, f"{path}.{name}")
            elif others is False:
                yield Break(f"{path}.{name}", "is unknown, and may be there")
            else:
                yield from self.compare(others, its, f"{path}.{name}")
        patterns, their_patterns = reader.get("patternProperties", {}), writer.get("patternProperties", {})
        for pattern in sorted({*patterns, *their_patterns}):
            if pattern in patterns and pattern in their_patterns:
                yield from self.compare(patterns[pattern], their_patterns[pattern], f"{path}.*")
            else:
                yield Break(path, f"names like {pattern!r} are {'asked for' if pattern in patterns else 'unknown'}")
        if their_others is False:
            return
        for name in ours:
            if name not in theirs:
                yield from self.compare(ours[name], their_others, f"{path}.{name}")
        if others is False:
            yield Break(path, "may have any other field, expected none")
        else:
            yield from self.compare(others, their_others, f"{path}.*")

    def _compare_lists(self, reader: Schema, writer: Schema, path: str) -> Iterator[Break]:
        ours, theirs = reader.get("prefixItems", []), writer.get("prefixItems", [])
        rest, their_rest = reader.get("items", True), writer.get("items", True)
        for number in range(max(len(ours), len(theirs))):
            mine = ours[number] if number < len(ours) else rest
            its = theirs[number] if number < len(theirs) else their_rest
            if its is not False and number < writer.get("maxItems", number + 1):
                yield from self.compare(mine, its, f"{path}[{number}]")
        if their_rest is not False and writer.get("maxItems", len(theirs) + 1) > max(len(ours), len(theirs)):
            yield from self.compare(rest, their_rest, f"{path}[]")


def _compare_bounds(reader: Schema, writer: Schema, path: str) -> Iterator[Break]:
    for word in (*_AT_LEAST, *_AT_MOST):
        if word not in reader:
            continue
        ours, its = reader[word], writer.get(word)
        if its is None or (ours > its if word in _AT_LEAST else ours < its):
            yield Break(path, f"{word} is {ours!r}, was {'not asked for' if its is None else repr(its)}")


def _ref(schema: Any) -> str:
    found = schema.get("$ref") if isinstance(schema, Mapping) else None
    return str(found).rpartition("/")[2] if found else ""


def _values(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else [None] if schema.get("type") == "null" else None


def _told(schema: Schema) -> str:
    kind = schema.get("type")
    if kind is None and (values := _values(schema)) is not None:
        return f"one of {values!r}"
    return {"object": "an object", "array": "a list", "integer": "an integer", None: "anything"}.get(kind, str(kind))


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is(value: Any, kind: str | None) -> bool:
    match kind:
        case None:
            return True
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "null":
            return value is None
        case _:
            return False
