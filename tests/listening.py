"""Where a process listens, as the kernel tells it."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

import psutil

LISTEN = "0A"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address(told: str) -> Address:
    """An address of /proc/net/tcp or tcp6: words of 32 bits in the order of this machine's bytes."""
    words = [bytes.fromhex(told[i : i + 8])[::-1] for i in range(0, len(told), 8)]
    packed = b"".join(words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    found = ipaddress.IPv6Address(packed)
    return found.ipv4_mapped or found


def addresses(process: psutil.Process) -> list[Address]:
    """Every address `process` accepts connections at."""
    own = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)):
                own.add(found.group(1))
        except FileNotFoundError:  # closed meanwhile
            continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in own:
                listening.append(address(fields[1].split(":")[0]))
    return listening
