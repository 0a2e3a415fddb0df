"""The transport for a client in the same process: a request reaches the application, and its answer the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from spotledger.http.h1.request import BadRequest, LateReply, Reply, Request, Stream, StreamWriter
from spotledger.http.h1.transport import InProcessTransport

HUNG_SECONDS = 5


class Answering:
    """Answers each request with the same reply, at once or not."""

    def __init__(self, reply: Reply, *, is_quick: bool = True) -> None:
        self.reply = reply
        self.is_quick = is_quick
        self.asked: list[Request] = []
        #: Those of them that were answered in a task.
        self.in_tasks: list[Request] = []

    def at_once(self, request: Request) -> Reply | LateReply | None:
        """Answer if that is quick."""
        if not self.is_quick:
            return None
        self.asked.append(request)
        return self.reply

    async def answer(self, request: Request) -> Reply:
        """Answer."""
        self.asked.append(request)
        self.in_tasks.append(request)
        return self.reply

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Refuse."""
        return self.reply


class AnsweringLate(Answering):
    """Answers with what a future brings, which is not there yet; with an empty one, in a task."""

    def __init__(self, brought: bytes) -> None:
        super().__init__(Reply(200, b"in a task"))
        self.brought = brought

    def at_once(self, request: Request) -> LateReply:
        """Answer once the future is done."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(loop.call_soon, future.set_result, self.brought)
        return LateReply(future, self.make)

    def make(self, future: asyncio.Future[bytes]) -> Reply | None:
        """Make the answer of what the future brought."""
        return Reply(200, future.result()) if future.result() else None


def run(app: Answering, talk: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    """Run *talk* with a client of *app*."""

    async def serve() -> None:
        transport = InProcessTransport(app)
        async with asyncio.timeout(HUNG_SECONDS), httpx2.AsyncClient(transport=transport, base_url="http://a") as http:
            await talk(http)

    asyncio.run(serve())


def streamed(stream: Stream) -> Answering:
    """Return an application that answers with *stream*."""
    reply = Reply(200, b"", [(b"b", b"2")], stream)
    reply.lines = b"a: 1\r\n"
    return Answering(reply, is_quick=False)


@pytest.mark.parametrize("is_quick", [True, False])
def test_request_reaches_the_application_as_it_would_over_a_socket(is_quick: bool) -> None:
    """The path decoded, the query as it was, the names of headers in lower case, the body whole, and no peer."""
    app = Answering(Reply(200, b""), is_quick=is_quick)

    async def talk(http: httpx2.AsyncClient) -> None:
        await http.post("/a%20b?c=%20d&e=\xe9", content=b"body", headers={"X-Name": "Value"})

    run(app, talk)
    [asked] = app.asked
    assert app.in_tasks == ([] if is_quick else [asked])
    assert (asked.method, asked.path, asked.query, asked.body, asked.peer) == (
        "POST",
        "/a b",
        "c=%20d&e=%C3%A9",
        b"body",
        "",
    )
    assert asked.header(b"x-name") == b"Value"
    assert asked.header(b"host") == b"a"
    assert all(name == name.lower() for name, _ in asked.headers)


@pytest.mark.parametrize(("brought", "body"), [(b"late", b"late"), (b"", b"in a task")])
def test_answer_that_waits_for_a_future_is_made_of_it(brought: bytes, body: bytes) -> None:
    """Or in a task, if what the future brings is not enough for it."""
    app = AnsweringLate(brought)

    async def talk(http: httpx2.AsyncClient) -> None:
        assert (await http.get("/")).content == body

    run(app, talk)
    assert len(app.in_tasks) == (0 if brought else 1)


def test_answer_reaches_the_client_with_its_headers() -> None:
    """Those that are ready as lines, the others, and the length."""
    reply = Reply(404, b"body", [(b"c", b"3: 4")])
    reply.lines = b"a: 1\r\nb: 2: 2\r\n"

    async def talk(http: httpx2.AsyncClient) -> None:
        said = await http.get("/")
        assert (said.status_code, said.content) == (404, b"body")
        assert said.headers.raw == [(b"a", b"1"), (b"b", b"2: 2"), (b"c", b"3: 4"), (b"content-length", b"4")]

    run(Answering(reply), talk)


def test_head_has_the_length_and_no_body() -> None:
    """As over a socket."""

    async def talk(http: httpx2.AsyncClient) -> None:
        said = await http.head("/")
        assert (said.content, said.headers["content-length"]) == (b"", "4")

    run(Answering(Reply(200, b"body")), talk)


def test_stream_is_read_to_its_end() -> None:
    """With its status and its headers, and without a length."""

    async def stream(writer: StreamWriter) -> bool:
        for piece in (b"a", b"b", b"c"):
            await writer.send(piece)
        return True

    async def talk(http: httpx2.AsyncClient) -> None:
        async with http.stream("GET", "/") as said:
            assert said.status_code == 200
            assert said.headers.raw == [(b"a", b"1"), (b"b", b"2")]
            assert [piece async for piece in said.aiter_raw()] == [b"a", b"b", b"c"]

    run(streamed(stream), talk)


def test_stream_sends_no_more_than_its_reader_takes() -> None:
    """One piece is on the way; the next one waits until it was taken."""
    sent: list[int] = []

    async def stream(writer: StreamWriter) -> bool:
        for number in range(9):
            await writer.send(b"%d" % number)
            sent.append(number)
        return True

    async def talk(http: httpx2.AsyncClient) -> None:
        async with http.stream("GET", "/") as said:
            pieces = said.aiter_raw()
            for number in range(3):
                assert await anext(pieces) == b"%d" % number
                for _ in range(20):
                    await asyncio.sleep(0)
                assert len(sent) == number + 2

    run(streamed(stream), talk)


@pytest.mark.parametrize("is_begun", [True, False])
def test_stream_learns_that_its_reader_has_left(is_begun: bool) -> None:
    """In the middle; one that was never read is not begun."""
    found: list[str] = []

    async def stream(writer: StreamWriter) -> bool:
        await writer.send(b"a")
        try:
            await writer.gone()
            found.append("gone")
            await writer.send(b"b")
            await writer.send(b"c")
        except asyncio.CancelledError:
            found.append("cancelled")
            raise
        return False

    async def talk(http: httpx2.AsyncClient) -> None:
        async with http.stream("GET", "/") as said:
            if is_begun:
                pieces = said.aiter_raw()
                assert await anext(pieces) == b"a"
                await pieces.aclose()
        for _ in range(20):
            await asyncio.sleep(0)

    run(streamed(stream), talk)
    assert found == (["cancelled"] if is_begun else [])


def test_stream_that_its_reader_closes_while_it_waits_ends() -> None:
    """Closing alone tells it, before anything is cancelled."""
    found: list[str] = []

    async def stream(writer: StreamWriter) -> bool:
        await writer.send(b"a")
        await writer.gone()
        found.append("gone")
        return False

    async def talk(http: httpx2.AsyncClient) -> None:
        async with http.stream("GET", "/") as said:
            pieces = said.aiter_raw()
            assert await anext(pieces) == b"a"
            await said.stream.aclose()  # type: ignore[union-attr]
            for _ in range(20):
                await asyncio.sleep(0)
            assert found == ["gone"]

    run(streamed(stream), talk)
