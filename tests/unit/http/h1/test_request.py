"""A request as applications see it: headers asked for once."""

from __future__ import annotations

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
