"""What every command prints with: tables, JSON, progress, errors as one line; and where it finds what runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console

from contracts.errors import FlyballError, SetupFailed
from ops.home import Home
from ops.plain import plain

Command = TypeVar("Command", bound=Callable[..., None])


class _Out(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # told() ends it; rich would exit with 1


out = _Out(width=None if sys.stdout.isatty() else 180)
err = Console(stderr=True)


@contextmanager
def told() -> Iterator[None]:
    """Errors Flyball raises on purpose become one clear line and exit code 1."""
    try:
        yield
        sys.stdout.flush()
    except FlyballError as error:
        err.print("[red]error:[/red]", end=" ")
        err.print(plain(error))
        raise typer.Exit(1) from None
    except _unreachable() as error:
        err.print("[red]error:[/red]", end=" ")
        err.print(plain(f"broker or Flink did not answer ({error or type(error).__name__}); './flyball status' tells why"))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `| head` has read enough; Python flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _unreachable() -> tuple[type[Exception], ...]:
    """What the clients of broker and Flink raise. Looked up when something was raised: to import them takes long."""
    found: list[type[Exception]] = []
    if "httpx" in sys.modules:
        found.append(sys.modules["httpx"].HTTPError)
    if "kafka.errors" in sys.modules:
        found.append(sys.modules["kafka.errors"].KafkaError)
    return tuple(found)


def command(group: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Register a command whose Flyball errors are told, not traced."""

    def register(function: Command) -> Command:
        @wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> None:
            with told():
                function(*arguments, **options)

        group.command(name)(wrapped)
        return function

    return register


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None,
    style: Callable[[Sequence[object]], str | None] = lambda _: None,
) -> None:  # fmt: skip
    """A table without lines. What events hold is shown as it is, never obeyed. `style` is a row's."""
    from rich.table import Table

    table = Table(box=None, title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(plain, row), style=style(row))
    out.print(table)


def print_columns(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """The same, of rows as `--json` prints them."""
    print_table(columns, ([row[column] for column in columns] for row in rows))


def print_cases(results: Sequence[tuple[str, str | None, bool]]) -> None:
    """A given/expect table that was played: case, what is wrong with it, whether it was left out.

    Raises SetupFailed when anything is wrong.
    """
    for case, problem, is_left_out in results:
        state = "[dim]left out[/dim]" if is_left_out else "[green]ok[/green]" if problem is None else "[red]failed[/red]"
        out.print(f"{state} {case}")
        if problem is not None:
            out.print(plain(f"   {problem}"))
    failed = sum(problem is not None for _, problem, _ in results)
    left_out = sum(is_left_out for *_, is_left_out in results)
    if failed:
        raise SetupFailed(f"{failed} of {len(results)} cases failed")
    out.print(f"{len(results) - left_out} cases passed" + (f", {left_out} left out" if left_out else ""))


@contextmanager
def progress(description: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error while something long is done; what it gives changes the line."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task(description)
        yield lambda text: bar.update(task, description=text)


def pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def read_bytes(file: str) -> bytes:
    """A file, or `-` for standard input. Raises SetupFailed."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SetupFailed(f"cannot read {file!r}: {error.strerror}") from None


def bootstrap() -> str:
    """The running instance's broker, or FLYBALL_BOOTSTRAP_SERVERS for one elsewhere. Raises SetupFailed."""
    if given := os.environ.get("FLYBALL_BOOTSTRAP_SERVERS"):
        return given
    from ops import instance

    return instance.bootstrap_servers(Home.default())


def user() -> str:
    """Who types."""
    import getpass

    return getpass.getuser()


def now_ms() -> int:
    return int(time.time() * 1000)
