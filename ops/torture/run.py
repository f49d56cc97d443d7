"""Fault after fault, and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from contracts.errors import FlyballError, SetupFailed
from ops.home import Home
from ops.torture.bed import Bed, Kind, Result
from ops.torture.checker import Findings
from ops.torture.faults import FAULTS, Fault

RATE = 60.0


def chosen(names: Sequence[str], *, is_short: bool, at_least_once: bool = False) -> list[Fault]:
    """The faults to play; `at_least_once`: in that delivery, all that need no transaction. Raises SetupFailed for a name there is not."""
    faults = FAULTS
    if at_least_once:
        plain = [fault for fault in FAULTS if fault.kind.delivery == "exactly_once" and not fault.needs_transactions]
        faults = tuple(replace(fault, kind=replace(fault.kind, delivery="at_least_once")) for fault in plain)
    known = {fault.name: fault for fault in faults}
    if unknown := [name for name in names if name not in known]:
        raise SetupFailed(f"--fault: no fault {unknown[0]!r}; there are: {', '.join(known)}")
    if names:
        return [fault for fault in faults if fault.name in names]
    return [fault for fault in faults if fault.is_short or not is_short]


def torture(home: Home, faults: Sequence[Fault], console: Console, *, rate: float = RATE) -> list[Result]:
    """Play the faults, on one instance for each kind; an instance that did not survive a fault is made anew."""
    results: list[Result] = []
    for kind, group in groupby(faults, key=lambda fault: fault.kind):
        left = list(group)
        while left:
            began = time.monotonic()
            bed, was_up = Bed(home, kind, rate=rate), False
            try:
                with bed.up():
                    console.print(f"an instance is up after {time.monotonic() - began:.0f} s ({kind.delivery})", style="dim")
                    is_alive = was_up = True
                    while left and is_alive:
                        fault = left.pop(0)
                        result, is_alive = _play(bed, fault, console, is_last=not left)
                        results.append(result)
            except Exception as error:  # an instance that does not come up, or down: what was found before stays told
                name = results[-1].fault if was_up else left.pop(0).name
                console.print(f"bad {name}: {error}", markup=False, highlight=False, style="red")
                results.append(_failed(name, kind, error))
    return results


def _failed(name: str, kind: Kind, error: Exception) -> Result:
    findings = Findings()
    findings.object(str(error) if isinstance(error, FlyballError) else repr(error))
    return Result(name, kind.delivery, 0, findings, None)


def _play(bed: Bed, fault: Fault, console: Console, *, is_last: bool) -> tuple[Result, bool]:
    """The fault's row, and whether the instance can take another one; the last row also tells what came late."""
    began = time.monotonic()
    is_alive = True
    with console.status(f"{fault.name}: {fault.says}"):
        try:
            result = fault.play(bed, fault.name)
            if is_last:
                bed.check_repeats(result.findings)
        except Exception as error:  # whatever a broken instance does to us is the fault's finding
            is_alive = False
            result = _failed(fault.name, fault.kind, error)
    result.seconds = time.monotonic() - began
    seconds = result.seconds_to_next_decision
    console.print(
        f"{'[green]ok[/green] ' if result.is_green else '[red]bad[/red]'} {fault.name}: {result.facts} facts,"
        f" lost {result.findings.lost}, repeated {result.findings.repeated}, wrong {result.findings.wrong},"
        f" next decision {'-' if seconds is None else f'after {seconds:.1f} s'} ({result.seconds:.0f} s)"
    )
    for line in result.findings.told:
        console.print(f"    {line}", markup=False, highlight=False)
    if result.notes:
        console.print(f"    {result.notes}", markup=False, highlight=False, style="dim")
    return result, is_alive


def table(results: Sequence[Result]) -> Table:
    found = Table(box=None)
    for column in ("fault", "delivery", "facts", "lost", "repeated", "wrong", "next decision"):
        found.add_column(column, justify="left" if column in ("fault", "delivery") else "right")
    for result in results:
        told: dict[str, Any] = result.told()
        seconds = told["seconds_to_next_decision"]
        found.add_row(
            told["fault"], told["delivery"], str(told["facts"]), str(told["lost"]), str(told["repeated"]),
            str(told["wrong"]), "-" if seconds is None else f"{seconds:.1f} s",
        )  # fmt: skip
    return found
