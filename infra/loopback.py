"""Ports of the loopback interface."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from schemas.errors import PortTaken

if TYPE_CHECKING:
    from collections.abc import Collection

HOST = "127.0.0.1"

# Below Linux's default ephemeral range (32768-60999): while a process is down, nobody's outgoing connection takes its
# port, so it finds it again after a restart.
_RANGE = range(20_000, 32_000)
_TRIES = 200


def is_free(port: int) -> bool:
    """Whether a listener could be opened on the port now. Connections in TIME_WAIT do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(avoid: Collection[int] = ()) -> int:
    """A port that is free now and unlikely to be taken soon; not one of `avoid`."""
    for _ in range(_TRIES):
        port = random.choice(_RANGE)
        if port not in avoid and is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def choose_port(*, asked: int | None, last: int | None, wanted_for: str, avoid: Collection[int] = ()) -> int:
    """The port to listen on: the asked one, else the last used one if free, else any free one.

    Raises:
        PortTaken: the asked port has a listener already.
    """
    if asked is not None:
        if not is_free(asked):
            raise PortTaken(asked, wanted_for=wanted_for)
        return asked
    if last is not None and last not in avoid and is_free(last):
        return last
    return free_port(avoid)


def accepts(port: int, *, timeout_s: float = 0.2) -> bool:
    """Whether something accepts a TCP connection on the port."""
    try:
        with socket.create_connection((HOST, port), timeout_s):
            return True
    except OSError:
        return False
