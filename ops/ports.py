"""Free ports: configured ones are checked, the others are chosen."""

from __future__ import annotations

import socket

from contracts.errors import SetupFailed


def is_listening(port: int) -> bool:
    """True when something accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def choose(configured: dict[str, int]) -> dict[str, int]:
    """A port for each name: 0 means any free one. Raises SetupFailed when a configured one is taken."""
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name, port in configured.items():
            probe = socket.socket()
            held.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise SetupFailed(
                    f"port {port} for {name} is not free ({error.strerror}). Stop what listens"
                    f" there, or set FLYBALL_{name.upper()}_PORT to another one (0: any free port)."
                ) from None
            chosen[name] = probe.getsockname()[1]
    finally:
        for probe in held:
            probe.close()
    return chosen
