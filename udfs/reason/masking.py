"""Personal values leave as placeholders and come back in replies: nothing of them reaches a model."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import overload

from udfs.agents.core import Situation

# Shorter values stand in too many other words: they are replaced only where they are a whole text.
SAFE_LENGTH = 3
_PLACEHOLDER = re.compile(r"\[\[[a-z][a-z0-9_]*\.[0-9a-f]{10}\]\]")


class Mask:
    """One situation's personal values: field -> value.

    A value's placeholder is `[[field.tag]]`, the same wherever the value stands, in whatever case or spelling;
    of two fields with one value the first speaks for both. Longer values are replaced before shorter ones.
    The tag is a digest of the situation's texts as they leave: no text among them can hold it, so `restore`
    puts back only what `hide` took, and it tells nothing of the values. Hiding twice changes nothing more.
    """

    def __init__(self, personal: Mapping[str, str], known: Collection[str] = ()) -> None:
        """`known`: texts that a reply may name as a whole; they come back exactly as they were."""
        self._fields = {field: value for field, value in personal.items() if value}
        self._use("")
        untagged = sorted(self.hide(text) for text in known)
        self._use("." + hashlib.sha256(json.dumps([sorted(self._fields), untagged]).encode()).hexdigest()[:10])
        self._whole: dict[str, str] = {}
        twice = set()
        for text in known:
            hidden = self.hide(text)
            if self._whole.setdefault(hidden, text) != text:
                twice.add(hidden)
        for hidden in twice:
            del self._whole[hidden]

    def _use(self, tag: str) -> None:
        self._exact: dict[str, str] = {}  # value -> placeholder
        self._folded: dict[str, str] = {}
        for field, value in self._fields.items():
            placeholder = self._exact.setdefault(value, f"[[{field}{tag}]]")
            self._folded.setdefault(value.casefold(), placeholder)
        self._values = {placeholder: value for value, placeholder in self._exact.items()}
        longest_first = sorted(self._exact.items(), key=lambda pair: (-len(pair[0]), pair))
        self._inside = [pair for pair in longest_first if len(pair[0]) >= SAFE_LENGTH]

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
        if not self._inside:
            return text
        parts = list(self._taken_apart(text))
        for value, placeholder in self._inside:
            pattern = _plain(value) if text.isascii() and not _CODED.search(text) else _pattern(value)
            parts = [part for old in parts for part in _replaced(old, pattern, placeholder)]
        return "".join(part for part, _ in parts)

    def hide_field(self, name: str, value: object) -> object:
        """A field's value as it may leave: personal ones whole, whatever their type; texts by `hide`.

        A number elsewhere that reads like a personal value of three characters or more goes too.
        """
        if value is None:
            return None
        if name in self._fields:
            return self._exact[self._fields[name]]
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list | tuple):
            return [self.hide_field(name, item) for item in value]
        text = _as_text(value)
        if isinstance(value, bool) or len(text) < SAFE_LENGTH:
            return value
        return self._exact.get(text, value)

    @overload
    def restore(self, value: str) -> str: ...
    @overload
    def restore(self, value: object) -> object: ...
    def restore(self, value: object) -> object:
        """What came back, with the values in their places: in every text of lists and objects, not in keys.

        One pass: what a value itself holds is left as it is.
        """
        if isinstance(value, str):
            if (whole := self._whole.get(value)) is not None:
                return whole
            return _PLACEHOLDER.sub(lambda found: self._values.get(found[0], found[0]), value)
        if isinstance(value, Mapping):
            return {key: self.restore(inner) for key, inner in value.items()}
        if isinstance(value, Sequence):
            return [self.restore(inner) for inner in value]
        return value

    def _taken_apart(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text's parts, and whether each is one of this mask's placeholders."""
        end = 0
        for found in _PLACEHOLDER.finditer(text):
            if found[0] in self._values:
                yield text[end : found.start()], False
                yield found[0], True
                end = found.end()
        yield text[end:], False


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_CODED = re.compile(r"[\\%&+]")


@lru_cache(maxsize=4096)
def _plain(value: str) -> re.Pattern[str]:
    """`_pattern` for a text of ASCII in which nothing is coded: that one takes long to compile."""
    folded = unicodedata.normalize("NFKC", value).strip() or value
    spellings = dict.fromkeys(r"\s+".join(map(re.escape, c.split())) or re.escape(c) for c in (folded, folded.upper()))
    return re.compile("|".join(spellings), re.IGNORECASE)


@lru_cache(maxsize=1024)
def _pattern(value: str) -> re.Pattern[str]:
    """Finds a value however it is written inside other text.

    In any case and Unicode form, with any white space, and character by character also as JSON (of JSON), in a
    URL or in HTML. A value of over 256 characters is found as it stands only.
    """
    text = unicodedata.normalize("NFC", value).strip() or value
    if len(text) > _MAX_SPELT:
        return re.compile(r"\s+".join(re.escape(word) for word in text.split()), re.IGNORECASE)
    parts = [_SPACE if piece.isspace() else "".join(map(_character, piece)) for piece in re.split(r"(\s+)", text)]
    return re.compile("".join(parts), re.IGNORECASE)


_MAX_SPELT = 256
_ESCAPE = r"\\{1,8}"  # JSON in JSON in JSON, and bounded: a run of backslashes costs no more than its length
_PERCENT = "%(?:25){0,2}"
_SPACE = rf"(?:\s|{_ESCAPE}[nrtfvb]|{_ESCAPE}u(?:00(?:20|a0|09|0[a-d])|202[89])|{_PERCENT}(?:20|09|0a|0d)|\+|&nbsp;|&#(?:32|x20|160|xa0);)+"
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}


@lru_cache(maxsize=4096)
def _character(character: str) -> str:
    """A pattern of the ways one character is written."""
    cased = (character, character.upper(), character.lower(), character.casefold())
    forms = dict.fromkeys(unicodedata.normalize(form, c) for c in cased for form in ("NFC", "NFD", "NFKC"))
    return "(?:" + "|".join(dict.fromkeys("".join(map(_code_point, form)) for form in forms)) + ")"


def _code_point(c: str) -> str:
    plain = re.escape(c) if c.isalnum() else rf"\\{{0,8}}{re.escape(c)}"
    units = c.encode("utf-16-be")
    as_json = "".join(f"{_ESCAPE}u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    in_url = "".join(f"{_PERCENT}{byte:02x}" for byte in c.encode())
    in_html = rf"&\#(?:0{{0,5}}{ord(c)}|x0{{0,5}}{ord(c):x});"
    named = [re.escape(_NAMED[c])] if c in _NAMED else []
    return f"(?:{'|'.join([plain, as_json, in_url, in_html, *named])})"


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
