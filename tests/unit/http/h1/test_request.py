"""A request as applications see it, and an answer as it is sent."""

from __future__ import annotations

import pytest

from spotledger.http.h1.request import Reply, Request, StreamWriter, too_long


def test_header_that_came_twice_is_not_taken_for_one() -> None:
    """Where it matters that a header is unambiguous, two of them, even equal ones, are as good as none."""
    request = Request("GET", "/", "", [(b"a", b"1"), (b"b", b"2"), (b"a", b"1")])
    assert (request.header(b"a"), request.header_once(b"a")) == (b"1", None)
    assert (request.header(b"b"), request.header_once(b"b")) == (b"2", b"2")
    assert (request.header(b"c"), request.header_once(b"c")) == (None, None)
    assert Request("GET", "/", "", [(b"a", b"")]).header_once(b"a") == b""


def test_request_and_reply_have_what_they_were_made_with() -> None:
    """Nothing is set that was not given: no body, no peer, no caller, no parameters, no stream, no lines."""
    request = Request("GET", "/a", "b=c", [(b"a", b"1")])
    assert (request.method, request.path, request.query) == ("GET", "/a", "b=c")
    assert (request.headers, request.body, request.peer, request.parameters) == ([(b"a", b"1")], b"", "", {})
    assert request.caller is None
    headers = ((b"a", b"1"),)
    reply = Reply(200, b"body", headers)
    assert (reply.status, reply.body, reply.headers, reply.stream, reply.lines) == (200, b"body", [*headers], None, b"")

    async def stream(writer: StreamWriter) -> bool:
        return True

    assert Reply(200, b"", stream=stream).stream is stream
    assert Request("POST", "/", "", [], b"x").body == b"x"


def test_refusal_of_a_long_body_names_the_limit() -> None:
    """It says what was found and what would pass, as every reason does."""
    problem = too_long(7)
    assert (str(problem), problem.reason) == ("The body is longer than 7 bytes; that many would pass.",) * 2


@pytest.mark.parametrize(
    ("keep_alive", "is_http_1_0", "option"),
    [
        (True, False, b""),
        (True, True, b"connection: keep-alive\r\n"),
        (False, False, b"connection: close\r\n"),
        (False, True, b"connection: close\r\n"),
    ],
)
def test_answer_says_whether_the_connection_stays_open(keep_alive: bool, is_http_1_0: bool, option: bytes) -> None:
    """Unless it does anyway; its body follows the head, and is left out for HEAD though its length is told."""
    reply = Reply(404, b"body", [(b"a", b"1"), (b"b", b"2")])
    reply.lines = b"c: 3\r\n"
    head = b"HTTP/1.1 404 Not Found\r\nc: 3\r\na: 1\r\nb: 2\r\ncontent-length: 4\r\n" + option + b"date: x\r\n\r\n"
    end = b"date: x\r\n\r\n"
    assert reply.whole(end, keep_alive=keep_alive, is_http_1_0=is_http_1_0) == head + b"body"
    assert reply.whole(end, keep_alive=keep_alive, is_http_1_0=is_http_1_0, is_head=True) == head


def test_answer_is_one_to_a_request_of_http_1_1_unless_told_otherwise() -> None:
    """Its connection stays open without a word; nothing but the length is sent beside the end of the head."""
    sent = Reply(200, b"body").whole(b"\r\n", keep_alive=True)
    assert sent == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"


@pytest.mark.parametrize(
    ("is_chunked", "keep_alive", "options"),
    [
        (True, True, b"transfer-encoding: chunked\r\n"),
        (True, False, b"transfer-encoding: chunked\r\nconnection: close\r\n"),
        (False, True, b""),
        (False, False, b"connection: close\r\n"),
    ],
)
def test_stream_begins_with_how_it_ends(is_chunked: bool, keep_alive: bool, options: bytes) -> None:
    """In chunks or with the connection; it has no length."""
    reply = Reply(200, b"", [(b"a", b"1")])
    sent = reply.beginning(b"date: x\r\n\r\n", is_chunked=is_chunked, keep_alive=keep_alive)
    assert sent == b"HTTP/1.1 200 OK\r\na: 1\r\n" + options + b"date: x\r\n\r\n"
