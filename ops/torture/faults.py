"""The faults: one function each. It starts a load, breaks something, and gives what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ops.torture.bed import Bed, Load, Result
from ops.worlds import drill

Play = Callable[[Bed, str], Result]


@dataclass(frozen=True)
class Fault:
    """`says` is one line for people; `is_short`: among the four that matter most."""

    name: str
    says: str
    play: Play
    is_short: bool = False
    delivery: str = "exactly_once"


def _kill(bed: Bed, part: str) -> float:
    """`kill -9`; gives when (time.monotonic)."""
    process = bed.process(part)
    at = time.monotonic()
    process.send_signal(signal.SIGKILL)
    return at


def _killed(part: str) -> Play:
    def play(bed: Bed, name: str) -> Result:
        load = bed.start_load(bed.rounds(name))
        return bed.finish(name, load, since=_kill(bed, part))

    return play


def actuator_killed(bed: Bed, name: str) -> Result:
    """Between doing and reporting: the till has settled a command, and is not let back to say so."""
    hold = drill.hold_file(bed.home)
    load: Load | None = None
    try:
        load = bed.start_load(bed.rounds(name))
        hold.touch()
        interrupted = bed.wait_until(hold.read_text, "a command in the hands of the actuator", timeout_s=60)
        at = _kill(bed, bed.part("actuator"))
    finally:
        hold.unlink(missing_ok=True)
    result = bed.finish(name, load, since=at)
    asked = drill.settled(bed.home).get(interrupted)
    if asked != 2:
        result.findings.object(f"the settlement that was cut off was asked for {asked} times, not twice")
    return result


FAULTS: tuple[Fault, ...] = (
    Fault("none", "nothing is broken", lambda bed, name: bed.finish(name, bed.start_load(bed.rounds(name)), since=None)),
    Fault("taskmanager_killed", "kill -9 of the TaskManager", _killed("taskmanager-0"), is_short=True),
    Fault("jobmanager_killed", "kill -9 of the JobManager", _killed("jobmanager"), is_short=True),
    Fault("actuator_killed", "kill -9 of the actuator between doing and reporting", actuator_killed, is_short=True),
    Fault("broker_killed", "kill -9 of the broker", _killed("broker"), is_short=True),
)
