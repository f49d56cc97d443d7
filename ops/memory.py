"""What a program that acts on commands knows after a restart: one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path


class Memory:
    """Which commands were done, what came of it, and what was tried. Every write is on disk when its call returns.

    Programs on one machine may share a file; on another machine a program knows only what its group committed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS done (command_id TEXT PRIMARY KEY, subject TEXT NOT NULL,"
            " outcome BLOB NOT NULL, is_published INTEGER NOT NULL DEFAULT 0)"
        )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS attempts"
            " (command_id TEXT NOT NULL, failed_at_ms INTEGER NOT NULL, error TEXT NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS attempts_of ON attempts (command_id)")

    def outcome_of(self, command_id: str) -> tuple[bytes, bool] | None:
        """The stored outcome and whether it was reported; None for a command not done."""
        row = self._db.execute(
            "SELECT outcome, is_published FROM done WHERE command_id = ?", (command_id,)
        ).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def store(self, command_id: str, subject: str, outcome: bytes) -> None:
        self._db.execute(
            "INSERT INTO done (command_id, subject, outcome) VALUES (?, ?, ?)", (command_id, subject, outcome)
        )

    def mark_published(self, command_ids: Sequence[str]) -> None:
        """Their outcomes were reported; what was tried for them is forgotten."""
        names = [(command_id,) for command_id in command_ids]
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:  # commits, or rolls back when it raises
            self._db.executemany("UPDATE done SET is_published = 1 WHERE command_id = ?", names)
            self._db.executemany("DELETE FROM attempts WHERE command_id = ?", names)

    def note_attempt(self, command_id: str, failed_at_ms: int, error: str) -> None:
        self._db.execute("INSERT INTO attempts VALUES (?, ?, ?)", (command_id, failed_at_ms, error))

    def attempts_of(self, command_id: str) -> list[tuple[int, str]]:
        """When (wall time, ms) and how each attempt failed so far, in order."""
        return self._db.execute(
            "SELECT failed_at_ms, error FROM attempts WHERE command_id = ? ORDER BY rowid", (command_id,)
        ).fetchall()

    def close(self) -> None:
        self._db.close()
