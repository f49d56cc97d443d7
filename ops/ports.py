"""Free ports: configured ones are checked, the others are chosen."""

from __future__ import annotations

import random
import socket

from contracts.errors import SetupFailed

# Below the range that outgoing connections take their ports from (32768 and up on Linux): a port chosen
# there could be gone again before the process that is to listen on it has started.
_CHOICE = range(20_000, 32_000)


def is_listening(port: int) -> bool:
    """True when something accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _bound(port: int) -> socket.socket:
    probe = socket.socket()
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.close()
        raise
    return probe


def choose(configured: dict[str, int]) -> dict[str, int]:
    """A port for each name: 0 means any free one. Raises SetupFailed when a configured one is taken."""
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name, port in configured.items():
            try:
                probe = _bound(port) if port else _any_free(set(chosen.values()) | set(configured.values()))
            except OSError as error:
                raise SetupFailed(
                    f"port {port} for {name} is not free ({error.strerror}). Stop what listens"
                    f" there, or set FLYBALL_{name.upper()}_PORT to another one (0: any free port)."
                ) from None
            held.append(probe)
            chosen[name] = probe.getsockname()[1]
    finally:
        for probe in held:
            probe.close()
    return chosen


def _any_free(taken: set[int]) -> socket.socket:
    """A free port that is none of `taken`: Linux lets two sockets with SO_REUSEADDR be bound to one port."""
    candidates = random.SystemRandom().sample(_CHOICE, 200)
    for port in candidates:
        if port in taken:
            continue
        try:
            return _bound(port)
        except OSError:
            continue
    raise SetupFailed(f"200 ports of {_CHOICE.start}-{_CHOICE.stop} tried, none is free")
