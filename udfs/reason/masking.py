"""Personal values leave as placeholders and come back in replies: nothing of them reaches a model."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from urllib.parse import quote

from udfs.agents.core import Situation

# Shorter values stand in too many other words: they are replaced only where they are a whole text.
SAFE_LENGTH = 3
_MARKED = re.compile(r"\[\[([a-z][a-z0-9_]*)\]\]")
_LOOKS_MARKED = re.compile(r"\[(\s*)\[(\s*[a-z][a-z0-9_]*\s*)\](\s*)\]", re.IGNORECASE)


class Mask:
    """One situation's personal values: field -> value.

    A value's placeholder is `[[field]]`, the same wherever the value stands; of two fields with one value
    the first speaks for both. Longer values are replaced before shorter ones. Text in the data that looks
    like a placeholder is broken up (`[ [field] ]`), so `restore` puts back only what `hide` took.
    Hide a text once: a second time would break up its placeholders.
    """

    def __init__(self, personal: Mapping[str, str], known: Collection[str] = ()) -> None:
        """`known`: texts that a reply may name as a whole; they come back exactly as they were."""
        self._values: dict[str, str] = {}  # placeholder -> value
        by_value: dict[str, str] = {}
        for field, value in personal.items():
            if value and value not in by_value:
                by_value[value] = f"[[{field}]]"
                self._values[f"[[{field}]]"] = value
        self._exact = by_value
        self._folded: dict[str, str] = {}
        for value, placeholder in by_value.items():
            self._folded.setdefault(value.casefold(), placeholder)
        self._patterns = [
            (re.compile(_spellings(value), re.IGNORECASE), by_value[value])
            for value in sorted(by_value, key=lambda v: (-len(v), v))
            if len(value) >= SAFE_LENGTH
        ]
        self._whole: dict[str, str] = {}
        twice = set()
        for text in known:
            hidden = self.hide(text)
            if self._whole.setdefault(hidden, text) != text:
                twice.add(hidden)
        for hidden in twice:
            del self._whole[hidden]

    @classmethod
    def of(cls, situation: Situation, personal_fields: Collection[str]) -> Mask:
        """The mask of a situation: the values of its personal fields, by the fields' names."""
        personal = {
            name: _as_text(situation.features[name])
            for name in sorted(personal_fields)
            if situation.features.get(name) is not None
        }
        texts = [value for value in situation.features.values() if isinstance(value, str)]
        known = {situation.id, situation.subject, *situation.suspects, *situation.evidence, *texts}
        return cls(personal, sorted(known))

    def __repr__(self) -> str:
        return f"Mask({', '.join(self._values)})"  # never the values

    def hide(self, text: str) -> str:
        """The text as it may leave."""
        whole = self._exact.get(text) or self._folded.get(text.casefold())
        if whole is not None:
            return whole
        parts: list[tuple[str, bool]] = [(text, False)]
        for pattern, placeholder in self._patterns:
            parts = [part for old in parts for part in _replaced(old, pattern, placeholder)]
        return "".join(part if is_done else _LOOKS_MARKED.sub(r"[ \1[\2]\3 ]", part) for part, is_done in parts)

    def hide_field(self, name: str, value: object) -> object:
        """A field's value as it may leave: personal ones whole, whatever their type; texts by `hide`.

        A number elsewhere that reads like a personal value of three characters or more goes too.
        """
        if value is None:
            return None
        if f"[[{name}]]" in self._values:
            return f"[[{name}]]"
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list | tuple):
            return [self.hide_field(name, item) for item in value]
        text = _as_text(value)
        found = self._exact.get(text) if len(text) >= SAFE_LENGTH and not isinstance(value, bool) else None
        return value if found is None else found

    def restore(self, value: object) -> object:
        """What came back, with the values in their places: in every text of lists and objects, not in keys.

        One pass: a value that itself looks like a placeholder is left as it is.
        """
        if isinstance(value, str):
            if (whole := self._whole.get(value)) is not None:
                return whole
            return _MARKED.sub(lambda found: self._values.get(found[0], found[0]), value)
        if isinstance(value, Mapping):
            return {key: self.restore(inner) for key, inner in value.items()}
        if isinstance(value, Sequence):
            return [self.restore(inner) for inner in value]
        return value


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _spellings(value: str) -> str:
    """A pattern of the ways a value is written inside other text: Unicode forms, JSON, URL; any white space."""

    def written() -> Iterator[str]:
        for form in ("NFC", "NFD", "NFKC"):
            plain = unicodedata.normalize(form, value)
            for cased in (plain, plain.upper(), plain.lower(), plain.casefold()):
                yield cased
                for is_ascii in (True, False):
                    once = json.dumps(cased, ensure_ascii=is_ascii)[1:-1]
                    yield once
                    yield json.dumps(once)[1:-1]
                yield quote(cased, safe="")
                yield quote(cased, safe="@:+,").replace("%20", "+")

    found = {value, *(text for text in written() if len(text) >= SAFE_LENGTH)}
    longest_first = sorted(found, key=lambda text: (-len(text), text))
    return "|".join(re.sub(r"(?:\\?\s)+", r"\\s+", re.escape(text)) for text in longest_first)


def _replaced(part: tuple[str, bool], pattern: re.Pattern[str], placeholder: str) -> Iterator[tuple[str, bool]]:
    text, is_done = part
    if is_done:
        yield part
        return
    end = 0
    for found in pattern.finditer(text):
        if found.start() > end:
            yield text[end : found.start()], False
        yield placeholder, True
        end = found.end()
    if end < len(text):
        yield text[end:], False


