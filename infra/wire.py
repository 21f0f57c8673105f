"""Framed connections between Penstock processes: mutual authentication, batched reads, coalesced writes.

Addresses are `unix:@NAME` (abstract socket), `unix:/PATH` (at most 107 bytes) or `tcp:HOST:PORT`. The handshake of
`schemas.handshake` runs first, bounded by a time-out, on both ends; only then does a connection exist for its user.

A connection's callbacks run on the event loop. `send` never blocks: frames of one loop turn leave in one write. What bounds the memory
is the user's own window (how much it lets be outstanding); `writable` tells when the other end is slow.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from schemas.errors import AgentUnavailable, WireError
from schemas.frames import Splitter
from schemas.handshake import NONCE_BYTES, PROOF_BYTES, is_proof, proof

HANDSHAKE_TIMEOUT_S = 5.0
_IDENTITY_LIMIT = 4096
_LENGTH = struct.Struct("!H")

FramesCallback = Callable[["FrameConnection", list[tuple[int, bytes]]], None]
ClosedCallback = Callable[["FrameConnection", BaseException | None], None]


class FrameConnection(asyncio.Protocol):
    """One authenticated connection.

    `peer` is the other end's identity as it announced it. `on_frames` gets every complete frame of one read at once, in order;
    `on_closed` is called exactly once, with the error or None.
    """

    def __init__(self, peer: dict[str, Any], on_frames: FramesCallback, on_closed: ClosedCallback) -> None:
        self.peer = peer
        self.writable = True
        self._on_frames = on_frames
        self._on_closed = on_closed
        self._splitter = Splitter()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._error: BaseException | None = None

    @property
    def closed(self) -> bool:
        """True when nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def send(self, frame: bytes) -> None:
        """Queue one whole frame; it leaves at the end of this loop turn. Ignored when closed."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)

    def close(self, error: BaseException | None = None) -> None:
        """Flush what is queued and close; `on_closed` follows."""
        self._error = self._error or error
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._transport.write(data)
        self._out.clear()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=4 * 1024 * 1024)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._splitter.feed(data)
            if frames:
                self._on_frames(self, frames)
        except WireError as exc:
            self.close(exc)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._out.clear()
        self._on_closed(self, self._error or exc)


async def connect(
    address: str,
    key: bytes,
    identity: dict[str, Any],
    on_frames: FramesCallback,
    on_closed: ClosedCallback,
    *,
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> FrameConnection:
    """Open and authenticate a connection.

    Raises:
        AgentUnavailable: nobody listens there, or no answer within `timeout_s`.
        WireError: the other end does not know the fabric's key.
    """
    loop = asyncio.get_running_loop()
    sock = _socket_for(address)
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, _target(address))
            peer = await _greet(loop, sock, key, identity)
            _, protocol = await loop.create_connection(lambda: FrameConnection(peer, on_frames, on_closed), sock=sock)
    except (OSError, TimeoutError) as exc:
        sock.close()
        raise AgentUnavailable(f"no connection to {address}: {exc!r}") from exc
    except BaseException:  # a refused handshake, or cancelled: the socket must not outlive us
        sock.close()
        raise
    return protocol


class Server:
    """A listening address. Each authenticated connection is handed to `on_open`, which returns its two callbacks.

    At most 64 handshakes run at once; a peer that fails or dawdles is dropped without harm to the others.
    """

    def __init__(
        self,
        address: str,
        key: bytes,
        identity: dict[str, Any],
        on_open: Callable[[dict[str, Any]], tuple[FramesCallback, ClosedCallback]],
    ) -> None:
        self.address = address
        self._key, self._identity, self._on_open = key, identity, on_open
        self._sock = _socket_for(address)
        self._handshakes = asyncio.Semaphore(64)
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[FrameConnection] = set()

    def start(self) -> None:
        """Bind and accept; raises OSError when the address is taken. With `tcp:HOST:0` `address` then holds the port."""
        if self.address.startswith("tcp:"):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif self.address.startswith("unix:/") and os.path.exists(self.address[5:]):
            os.unlink(self.address[5:])
        self._sock.bind(_target(self.address))
        self._sock.listen(128)
        if self.address.startswith("tcp:"):
            host, port = self._sock.getsockname()[:2]
            self.address = f"tcp:{host}:{port}"
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Stop accepting and close every connection."""
        if self._accepting is not None:
            self._accepting.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*([self._accepting] if self._accepting else []), *self._tasks, return_exceptions=True)
        self._sock.close()
        for connection in list(self._connections):
            connection.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError:  # out of descriptors: let some go first
                await asyncio.sleep(0.1)
                continue
            await self._handshakes.acquire()
            sock.setblocking(False)
            task = loop.create_task(self._admit(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _admit(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                peer = await _welcome(loop, sock, self._key, self._identity)
            on_frames, on_closed = self._on_open(peer)

            def forget(connection: FrameConnection, error: BaseException | None) -> None:
                self._connections.discard(connection)
                on_closed(connection, error)

            _, connection = await loop.connect_accepted_socket(lambda: FrameConnection(peer, on_frames, forget), sock)
            self._connections.add(connection)
        except (WireError, OSError, TimeoutError, ValueError):
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise
        finally:
            self._handshakes.release()


def _socket_for(address: str) -> socket.socket:
    family = socket.AF_INET if address.startswith("tcp:") else socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _target(address: str) -> Any:
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest.startswith("@"):
        return "\0" + rest[1:]
    if kind == "unix" and rest.startswith("/"):
        return rest
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdigit():
        return (host, int(port))
    raise WireError(f"address {address!r} is none of unix:@NAME, unix:/PATH, tcp:HOST:PORT")


async def _greet(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, key: bytes, identity: dict[str, Any]
) -> dict[str, Any]:
    theirs = await _exactly(loop, sock, NONCE_BYTES)
    ours = os.urandom(NONCE_BYTES)
    await loop.sock_sendall(sock, ours + proof(key, "connect", theirs, ours) + _identity(identity))
    if not is_proof(key, "accept", theirs, ours, await _exactly(loop, sock, PROOF_BYTES)):
        raise WireError("the other end does not hold this fabric's key")
    return await _read_identity(loop, sock)


async def _welcome(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, key: bytes, identity: dict[str, Any]
) -> dict[str, Any]:
    ours = os.urandom(NONCE_BYTES)
    await loop.sock_sendall(sock, ours)
    theirs = await _exactly(loop, sock, NONCE_BYTES)
    if not is_proof(key, "connect", ours, theirs, await _exactly(loop, sock, PROOF_BYTES)):
        raise WireError("a peer without this fabric's key was refused")
    peer = await _read_identity(loop, sock)
    await loop.sock_sendall(sock, proof(key, "accept", ours, theirs) + _identity(identity))
    return peer


def _identity(identity: dict[str, Any]) -> bytes:
    data = json.dumps(identity).encode()
    return _LENGTH.pack(len(data)) + data


async def _read_identity(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(await _exactly(loop, sock, 2))
    if length > _IDENTITY_LIMIT:
        raise WireError("identity too long")
    peer = json.loads(await _exactly(loop, sock, length))
    if not isinstance(peer, dict):
        raise WireError("identity is no object")
    return peer


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = await loop.sock_recv(sock, count - len(data))
        if not chunk:
            raise WireError("the other end closed during the handshake")
        data += chunk
    return data
