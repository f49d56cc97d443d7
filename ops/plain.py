"""Texts from events on a terminal: as they are, and nothing they hold is obeyed."""

from __future__ import annotations

import unicodedata

from rich.text import Text

# Controls (a terminal obeys them) and what is not seen or turns the direction of writing.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def plain(value: object) -> Text:
    """`str(value)` without rich's markup; line ends stay, other unseen characters are written out."""
    text = str(value)
    if text.isprintable():
        return Text(text)
    return Text("".join(c if c == "\n" or unicodedata.category(c) not in _UNSEEN else repr(c)[1:-1] for c in text))
