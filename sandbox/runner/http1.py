"""HTTP/1.1 as a small server needs it: bytes to requests, answers to bytes. Pure, standard library only; runs inside nodes.

Sizes are bounded: a head has at most `HEAD_BYTES`; of a body that is over the limit nothing is kept, but it is read to its end, for a
client hears an answer only after it has sent its request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HEAD_BYTES = 16 * 1024
_CHUNK_LINE_BYTES = 1024
_HEX = b"0123456789abcdefABCDEF"
_REASONS = {
    100: "Continue",
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Payload Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BadRequest(Exception):
    """The bytes are no request that can be answered in sequence: say `status`, then close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """One request. `path` has no query; header names are lower case; `body` is None when it was over the limit."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None
    keep_alive: bool


class Parser:
    """Cuts the bytes of one connection into requests."""

    def __init__(self, body_limit: int) -> None:
        self._limit = body_limit
        self._data = bytearray()
        self._head: tuple[str, str, dict[str, str], bool] | None = None
        self._body = bytearray()
        self._over = False
        self._left = 0
        """Bytes still to come of the body, or of the chunk."""
        self._chunked = False
        self._in_chunk = False
        self._trailer = False
        self.wants_continue = False
        """The client waits for `CONTINUE` before it sends the body; whoever says it sets this to False."""

    def feed(self, data: bytes) -> None:
        """Take in what arrived."""
        self._data += data

    @property
    def buffered(self) -> int:
        """Bytes that belong to no request taken so far."""
        return len(self._data)

    def next(self) -> Request | None:
        """The next whole request, or None until more arrives; raises BadRequest."""
        if self._head is None and not self._take_head():
            return None
        if not (self._take_chunks() if self._chunked else self._take_body()):
            return None
        assert self._head is not None
        method, path, headers, keep_alive = self._head
        body = None if self._over else bytes(self._body)
        self._head, self._body = None, bytearray()
        self.wants_continue = False
        return Request(method, path, headers, body, keep_alive)

    def _take_head(self) -> bool:
        while self._data.startswith(b"\r\n"):
            del self._data[:2]
        end = self._data.find(b"\r\n\r\n")
        if end > HEAD_BYTES or (end < 0 and len(self._data) > HEAD_BYTES):
            raise BadRequest(431, f"the head of a request has at most {HEAD_BYTES} bytes")
        if end < 0:
            return False
        first, *lines = bytes(self._data[:end]).decode("latin-1").split("\r\n")
        del self._data[: end + 4]
        try:
            method, target, version = first.split(" ")
        except ValueError:
            raise BadRequest(400, "the request line is not METHOD PATH HTTP/1.1") from None
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise BadRequest(400, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        headers = _headers(lines)
        said = headers.get("connection", "").lower()
        keep_alive = "close" not in said if version == "HTTP/1.1" else "keep-alive" in said
        self._expect_body(headers)
        self._head = (method, target.partition("?")[0], headers, keep_alive)
        return True

    def _expect_body(self, headers: Mapping[str, str]) -> None:
        coding = headers.get("transfer-encoding", "").lower()
        if coding not in ("", "identity", "chunked"):
            raise BadRequest(501, f"transfer coding {coding[:40]} is not spoken here")
        self._chunked, self._in_chunk, self._trailer = coding == "chunked", False, False
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise BadRequest(400, "Content-Length is no number")
        if self._chunked and "content-length" in headers:
            raise BadRequest(400, "a request has Content-Length or a transfer coding, not both")
        self._left = 0 if self._chunked else int(length)
        self._over = self._left > self._limit
        self.wants_continue = headers.get("expect", "").lower() == "100-continue"

    def _take_body(self) -> bool:
        part = self._data[: self._left]
        del self._data[: len(part)]
        self._left -= len(part)
        self._keep(part)
        return not self._left

    def _keep(self, part: bytearray) -> None:
        if len(self._body) + len(part) > self._limit:
            self._over = True
        if self._over:
            self._body.clear()
        else:
            self._body += part

    def _take_chunks(self) -> bool:
        while True:
            if self._in_chunk and not self._take_chunk():
                return False
            line = self._line()
            if line is None:
                return False
            if self._trailer:
                if not line:
                    return True
                continue
            size = line.partition(b";")[0].strip()
            if not 0 < len(size) < 16 or size.strip(_HEX):
                raise BadRequest(400, "a chunk has no size")
            self._left = int(size, 16)
            self._trailer, self._in_chunk = not self._left, bool(self._left)

    def _take_chunk(self) -> bool:
        if not self._take_body() or len(self._data) < 2:
            return False
        if self._data[:2] != b"\r\n":
            raise BadRequest(400, "a chunk does not end where it says")
        del self._data[:2]
        self._in_chunk = False
        return True

    def _line(self) -> bytes | None:
        end = self._data.find(b"\r\n", 0, _CHUNK_LINE_BYTES)
        if end < 0:
            if len(self._data) >= _CHUNK_LINE_BYTES:
                raise BadRequest(400, "a line of a chunked body is too long")
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 2]
        return line


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip():
            raise BadRequest(400, "a header is not NAME: VALUE")
        if name == "content-length" and headers.get(name, value.strip()) != value.strip():
            raise BadRequest(400, "two different Content-Length")
        headers[name] = value.strip()
    return headers


def answer_head(status: int, headers: Mapping[str, str], *, length: int, keep_alive: bool) -> bytes:
    """Status line and headers of an answer whose body has `length` bytes. Line ends in values become spaces."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
    lines += [f"{name}: {' '.join(value.split())}" for name, value in headers.items()]
    lines += [f"Content-Length: {length}", "Connection: keep-alive" if keep_alive else "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")
