"""Ports for servers that must be told theirs before they start."""

import random
import socket
from contextlib import suppress
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """One that stays free until it is used: nobody who connects, or who asks for any port, is ever given it."""
    lowest_given = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = random.SystemRandom().randrange(1024, lowest_given)
            probe.bind(("127.0.0.1", port))
            return port
