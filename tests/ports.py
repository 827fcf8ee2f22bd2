"""TCP ports for servers that tests start."""

import random
import socket

# Below those that Linux gives to outgoing connections: one of these would sooner or later take a server's place.
FIRST, LAST = 10_000, 30_000
_random = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A port that nothing listens on, another one each time."""
    while True:
        port = _random.randrange(FIRST, LAST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        _given.add(port)
        return port
