"""Ports for servers that start later than their port is chosen."""

import secrets
import socket

#: Below those that Linux gives out by itself (from 32768) and above those of Ray's workers (10002 to 19999), so that
#: nothing takes a port between its choice and the start of its server.
FIRST, COUNT = 20_000, 12_000


def free_port() -> int:
    """Return a port of this machine that nothing listens on, and that no other program gets by chance."""
    while True:
        port = FIRST + secrets.randbelow(COUNT)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
