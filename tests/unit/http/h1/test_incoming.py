"""A request and its body as they arrive: what an application may read, and what may follow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spotledger.http.h1.head import CHUNKED, Head, RequestLine
from spotledger.http.h1.incoming import CompleteRequest, IncomingRequest
from spotledger.http.h1.request import BadRequest

AHEAD_BYTES = 10
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PEER = "192.0.2.7:40000"


class Source:
    """A connection: what it was told to send, and the pieces that arrive one by one when the body is read on."""

    def __init__(self, *pieces: bytes) -> None:
        self.sent: list[bytes] = []
        self.pieces = list(pieces)
        self.asked = 0
        self.ends = True
        self.request: IncomingRequest

    def write(self, data: bytes) -> None:
        """Note what is sent."""
        self.sent.append(data)

    def read_on(self) -> None:
        """Let the next piece arrive, or the end."""
        self.asked += 1
        if self.pieces:
            self.request.take(self.pieces.pop(0))
        elif self.ends:
            self.request.end()


def head_of(method: str = "POST", length: int = 5, *, is_http_1_0: bool = False, **more: Any) -> Head:
    """Return a head with a body of *length*, which it announces unless it comes in chunks."""
    line = RequestLine(method, b"/a%20?b", "/a ", "b", is_http_1_0)
    headers = [] if length == CHUNKED else [(b"content-length", b"%d" % length)]
    return Head(line, headers, length=length, **{"keep_alive": True, **more})


def incoming(source: Source, length: int = 5, **more: Any) -> IncomingRequest:
    """Return a request whose body comes from *source*."""
    source.request = IncomingRequest(source, head_of(length=length, **more), PEER, AHEAD_BYTES)
    return source.request


def read(request: IncomingRequest, limit: int = 100) -> bytes:
    """Read the body as an application does."""

    async def bounded() -> bytes:
        async with asyncio.timeout(5):
            return await request.read(limit)

    return asyncio.run(bounded())


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("is_http_1_0", [True, False])
def test_request_has_what_its_head_says(method: str, keep_alive: bool, is_http_1_0: bool) -> None:
    """Method, headers, peer and version are passed on; after CONNECT the connection ends."""
    head = head_of(method, keep_alive=keep_alive, is_http_1_0=is_http_1_0)
    arriving = IncomingRequest(Source(), head, PEER, AHEAD_BYTES)
    complete = CompleteRequest(head, PEER, b"body")
    for request in (complete, arriving):
        assert (request.method, request.headers, request.peer) == (method, head.headers, PEER)
        assert (request.path, request.query) == ("/a ", "b")
        assert request.is_http_1_0 is is_http_1_0
        assert request.keep_alive is (keep_alive and method != "CONNECT")
        assert request.parameters == {}
        assert request.caller is None
    assert complete.body == b"body"
    assert (complete.is_whole, complete.is_ready, complete.is_done) == (True, True, True)
    assert arriving.body is arriving
    assert (arriving.is_whole, arriving.is_ready, arriving.is_done) == (False, False, False)


def test_body_is_read_to_its_end_in_pieces() -> None:
    """All pieces, in their order, asked for one by one; nobody is told to continue who did not ask."""
    source = Source(b"ab", b"", b"cde")
    assert read(incoming(source)) == b"abcde"
    assert (source.sent, source.asked) == ([], 4)


@pytest.mark.parametrize(("limit", "passes"), [(5, True), (4, False)])
def test_announced_length_over_the_limit_is_refused_before_anything_is_read(limit: int, passes: bool) -> None:
    """A length of just the limit passes; the refusal names the limit and asks for nothing."""
    source = Source(b"abcde")
    request = incoming(source, is_offered=True)
    if passes:
        assert read(request, limit) == b"abcde"
        return
    with pytest.raises(BadRequest, match=f"longer than {limit} bytes"):
        read(request, limit)
    assert (source.sent, source.asked) == ([], 0)


@pytest.mark.parametrize(("limit", "passes"), [(5, True), (4, False), (3, False)])
def test_body_without_a_length_is_read_up_to_the_limit(limit: int, passes: bool) -> None:
    """One that comes in chunks is given up as soon as it is longer than the limit."""
    source = Source(b"ab", b"cde", b"never asked for")
    source.pieces.pop() if passes else None
    request = incoming(source, CHUNKED)
    if passes:
        assert read(request, limit) == b"abcde"
        return
    with pytest.raises(BadRequest, match=f"longer than {limit} bytes"):
        read(request, limit)
    assert source.pieces == [b"never asked for"]


def test_complete_body_without_a_length_over_the_limit_is_refused() -> None:
    """It may have arrived before the application asked."""
    source = Source()
    request = incoming(source, CHUNKED)
    request.take(b"x" * (AHEAD_BYTES + 1))
    request.end()
    with pytest.raises(BadRequest, match=f"longer than {AHEAD_BYTES} bytes"):
        read(request, AHEAD_BYTES)
    assert read(request, AHEAD_BYTES + 1) == b"x" * (AHEAD_BYTES + 1)


def test_client_that_waits_is_told_to_continue_once_the_body_is_wanted() -> None:
    """Once, when the application reads, and not if it has begun to send by itself."""
    source = Source(b"abcde")
    request = incoming(source, is_offered=True)
    assert request.is_ready
    assert source.sent == []
    assert read(request) == b"abcde"
    assert source.sent == [CONTINUE]
    begun = Source(b"cde")
    request = incoming(begun, is_offered=True)
    request.take(b"ab")
    assert read(request) == b"abcde"
    assert begun.sent == []


def test_body_that_fails_is_refused_with_its_reason_and_ends_the_connection() -> None:
    """Whether it failed before the application read or while it waits, and more than once."""
    problem = BadRequest("It broke.")
    request = incoming(Source())
    request.fail(problem)
    assert (request.is_ready, request.is_done, request.keep_alive) == (True, False, False)
    with pytest.raises(BadRequest, match=r"It broke\."):
        read(request)

    async def later() -> None:
        source = Source()
        source.ends = False
        waiting = incoming(source)
        reading = asyncio.create_task(waiting.read(100))
        while not source.asked:
            await asyncio.sleep(0)
        waiting.fail(problem)
        waiting.fail(problem)  # a second wake-up finds nobody to wake
        with pytest.raises(BadRequest, match=r"It broke\."):
            async with asyncio.timeout(5):
                await reading

    asyncio.run(later())


@pytest.mark.parametrize(
    ("length", "offered", "arrived", "long"),
    [
        (AHEAD_BYTES, False, AHEAD_BYTES, False),
        (AHEAD_BYTES + 1, False, 0, True),
        (5, True, 0, True),
        (CHUNKED, False, AHEAD_BYTES, False),
        (CHUNKED, False, AHEAD_BYTES + 1, True),
    ],
)
def test_long_body_is_read_by_the_application_and_a_short_one_given(
    length: int, offered: bool, arrived: int, long: bool
) -> None:
    """A long or offered one is ready at once, and has to be read before another request may follow."""
    request = incoming(Source(), length, is_offered=offered)
    for size in (arrived - arrived // 2, arrived // 2):
        if size:
            request.take(b"x" * size)
    assert (request.is_ready, request.is_done) == (long, False)
    request.end()
    assert request.is_ready
    assert request.is_done is not long
    assert request.body is request if long else request.body == b"x" * arrived
    assert read(request, 1_000) == b"x" * arrived
    assert request.is_done


def test_so_much_of_a_body_is_buffered_and_more_once_it_is_read() -> None:
    """Up to the length that is read ahead; beyond that only while the application waits for it."""
    source = Source()
    source.ends = False
    request = incoming(source, CHUNKED)
    wanted = []
    for piece in (b"x" * AHEAD_BYTES, b"y"):
        wanted.append(request.wants_more)
        request.take(piece)
    assert [*wanted, request.wants_more] == [True, True, False]

    async def reading() -> None:
        task = asyncio.create_task(request.read(100))
        while not source.asked:
            await asyncio.sleep(0)
        assert request.wants_more
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not request.wants_more

    asyncio.run(reading())
