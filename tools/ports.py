"""TCP ports of this machine, for servers that tests, examples and benchmarks start."""

import random
import socket

_DICE = random.SystemRandom()  # not seeded: parallel workers must not choose the same ports


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system hands to clients meanwhile."""
    while True:
        port = _DICE.randrange(20_000, 32_000)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port


def listens(port: int) -> bool:
    """Tell whether someone listens on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
