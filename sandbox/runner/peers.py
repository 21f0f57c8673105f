"""Whose end of a loopback connection is it? TCP has no SO_PEERCRED, so the kernel's tables are read. Standard library only.

The workers of a node share its network, but each has a pid namespace (without that, a Landlock domain): a process whose descriptors can be
seen here is one of this worker's.
"""

from __future__ import annotations

import contextlib
import os
import socket

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def is_ours(connection: socket.socket) -> bool:
    """True when a process of this worker holds the other end."""
    with contextlib.suppress(OSError):
        inode = _inode(connection.getpeername()[1], connection.getsockname()[1])
        return inode != "" and _is_held(f"socket:[{inode}]")
    return False


def _inode(local_port: int, remote_port: int) -> str:
    """Of the loopback socket with these ports; empty when there is none."""
    local, remote = f"0100007F:{local_port:04X}", f"0100007F:{remote_port:04X}"
    for table in _TABLES:  # the second for clients that speak to 127.0.0.1 by an IPv6 socket
        with contextlib.suppress(FileNotFoundError), open(table) as file:
            for line in file:
                fields = line.split()
                if fields[1].endswith(local) and fields[2].endswith(remote):
                    return "" if fields[9] == "0" else fields[9]
    return ""


def _is_held(link: str) -> bool:
    pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        with contextlib.suppress(OSError):  # it has ended, or is not ours to see
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(f"{folder}/{name}") == link:
                        return True
    return False
