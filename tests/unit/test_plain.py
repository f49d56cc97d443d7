"""Texts from events on a terminal obey nothing they hold."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from ops.plain import plain
from ops.trace import as_tree


def shown(thing: object) -> str:
    out = io.StringIO()
    Console(file=out, width=300, color_system=None).print(thing)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("x in [1, 2]", "x in [1, 2]"), ("[/red]", "[/red]"), ("[link=file:///x]a[/link]", "[link=file:///x]a[/link]"), ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x07", "a\\rb\\x07"), ("\u202egnp", "\\u202egnp"), ("\ud800", "\\ud800"), ("größer 😀", "größer 😀"), (None, "None"),
    ],
)  # fmt: skip
def test_a_text_is_shown_as_it_is_and_what_is_unseen_is_written_out(text: object, seen: str) -> None:
    assert shown(plain(text)) == seen + "\n"
    table = Table(box=None, show_header=False, padding=0)
    table.add_row(plain(text))
    assert shown(table).rstrip() == seen


def test_a_chain_is_shown_whatever_its_events_hold() -> None:
    event: dict[str, Any] = {"subject": "[/bold]\x1b[2J", "type": "t", "time": "now", "data": {"status": "failed", "detail": "[/cyan]\x1b]0;x"}}
    told = shown(as_tree([{"id": "i", "noun": "outcome", "event": event, "effects": []}]))
    assert "\x1b" not in told
    assert "failed [/cyan]\\x1b]0;x" in told
