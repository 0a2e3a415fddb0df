"""A request as applications see it: headers asked for once."""

from __future__ import annotations

from spotledger.http.h1.request import Request


def test_header_that_came_twice_is_not_taken_for_one() -> None:
    """Where it matters that a header is unambiguous, two of them, even equal ones, are as good as none."""
    request = Request("GET", "/", "", [(b"a", b"1"), (b"b", b"2"), (b"a", b"1")])
    assert (request.header(b"a"), request.header_once(b"a")) == (b"1", None)
    assert (request.header(b"b"), request.header_once(b"b")) == (b"2", b"2")
    assert (request.header(b"c"), request.header_once(b"c")) == (None, None)
    assert Request("GET", "/", "", [(b"a", b"")]).header_once(b"a") == b""
