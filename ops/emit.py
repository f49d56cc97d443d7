"""`./flyball emit`: a file's facts into a running domain; and how an input ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from contracts.access import principal
from contracts.domain import load_domain
from jobs.settings import Settings
from ops import kafka
from ops.player import Emitted, Emitter, read_file, with_references
from ops.world import load_world


def emit(
    bootstrap_servers: str, settings: Settings, path: Path | None, *, graph: Path | None, subject: str | None,
    rate: float | None, sign: Callable[[bytes, str], bytes] | None, is_closed: bool,
    on_progress: Callable[[Emitted], None],
) -> Emitted:  # fmt: skip
    """Publish the facts of a file (None: standard input) behind the reference facts of `graph`; returns when Kafka has them.

    `rate`: facts a second; None: as fast as it goes. `sign`: what signs them (ops/producers.py). `is_closed`: a tick at
    the end closes every window. Raises SetupFailed when a file cannot be read.
    """
    domain = settings.domain
    world = load_world(domain)
    writer = kafka.producer(bootstrap_servers, principal=principal(domain, "producer"))
    emitter = Emitter(load_domain(domain), writer, file_name=path.name if path else "stdin", sign=sign)
    facts = read_file(path, world, subject=subject, max_ahead_ms=settings.max_ahead_s * 1000)
    done = emitter.emit(with_references(facts, graph, world, subject=subject), rate=rate, on_progress=on_progress)
    if is_closed and done.last_event_ms:
        close_windows(emitter, bootstrap_servers, settings)
    writer.close()
    return done


def close_windows(emitter: Emitter, bootstrap: str, settings: Settings) -> None:
    """End an input with a tick on facts and outcomes; on the latter only an actuator may write."""
    outcomes = kafka.producer(bootstrap, principal=principal(settings.domain, "actuator"))
    emitter.tick(closing_tick_ms(emitter.emitted, settings), outcomes=outcomes)
    outcomes.close()


def closing_tick_ms(emitted: Emitted, settings: Settings) -> int:
    """Far enough behind the last fact that every open window closes; never ahead of wall time."""
    wanted = emitted.last_event_ms + (settings.watermark_delay_s + settings.largest_window_s) * 1000
    latest = int(time.time() * 1000) + settings.max_ahead_s * 1000 - 1000
    return max(emitted.last_event_ms, min(wanted, latest))
