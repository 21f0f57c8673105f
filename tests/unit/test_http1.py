"""Bytes of a client, cut into requests: whatever the pieces, and nothing without a bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.runner.http1 import HEAD_BYTES, BadRequest, Parser, Request, answer_head

PLAIN = b"POST /runtime/invocation/response?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nhe\r\n\r\n1\r\n!\r\n0\r\nTrailer: 1\r\n\r\n"
GET = b"GET /next HTTP/1.1\r\nConnection: close\r\n\r\n"


def parsed(data: bytes, *cuts: int, limit: int = 100) -> list[Request]:
    parser, found = Parser(limit), []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        parser.feed(data[start:end])
        while (request := parser.next()) is not None:
            found.append(request)
    assert parser.buffered == 0
    return found


@given(st.lists(st.integers(0, len(PLAIN + CHUNKED + GET)), max_size=12))
def test_requests_are_the_same_in_whatever_pieces_they_arrive(cuts: list[int]) -> None:
    plain, chunked, get = parsed(PLAIN + CHUNKED + GET, *cuts)
    assert (plain.method, plain.path, plain.body, plain.keep_alive) == (
        "POST",
        "/runtime/invocation/response",
        b"hello",
        True,
    )
    assert (chunked.path, chunked.body) == ("/a", b"he\r\n!")
    assert (get.method, get.body, get.keep_alive) == ("GET", b"", False)


@pytest.mark.parametrize("limit", [4, 5])
@pytest.mark.parametrize("data", [PLAIN, CHUNKED])
def test_of_a_body_over_the_limit_nothing_is_kept_and_what_follows_is_read(data: bytes, limit: int) -> None:
    first, second = parsed(data + GET, limit=limit)
    assert (first.body is None) == (limit == 4)
    assert second.path == "/next"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nname : x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000, 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES, 431),
    ],
)
def test_what_is_no_request_has_its_status(data: bytes, status: int) -> None:
    parser = Parser(100)
    parser.feed(data)
    with pytest.raises(BadRequest) as caught:
        parser.next()
    assert caught.value.status == status


def test_a_client_that_waits_to_be_told_to_go_on_is_seen() -> None:
    parser = Parser(100)
    parser.feed(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
    assert parser.next() is None
    assert parser.wants_continue
    parser.feed(b"ab")
    request = parser.next()
    assert request is not None
    assert request.body == b"ab"
    assert not parser.wants_continue


def test_a_header_of_an_answer_can_not_begin_another() -> None:
    head = answer_head(200, {"request_id": "a\r\nx: y"}, length=3, keep_alive=True)
    assert b"request_id: a x: y\r\n" in head
    assert head.endswith(b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\n")
