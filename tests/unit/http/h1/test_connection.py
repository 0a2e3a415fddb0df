"""The server over sockets, with an application of a few lines: order, turns, ends and bounds."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import struct
import time
import weakref
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given, settings, strategies as st

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import LateReply, Reply, Request, StreamWriter
from spotledger.http.h1.server import HttpServer
from spotledger.http.h1.shares import ConnectionShares
from support_framing import REFUSED, cuts, requests
from support_h1 import Echo, Seen, Served, serving

Loop = Callable[[], asyncio.AbstractEventLoop]


def get(path: str, *more: str, version: str = "1.1") -> bytes:
    """Return a GET of *path*."""
    return ("\r\n".join([f"GET {path} HTTP/{version}", "Host: x", *more]) + "\r\n\r\n").encode()


def post(path: str, body: bytes, *more: str) -> bytes:
    """Return a POST with *body*."""
    return get(path, f"Content-Length: {len(body)}", *more).replace(b"GET", b"POST", 1) + body


def bodies(answers: bytes) -> list[tuple[int, bytes]]:
    """Return status and body of each answer."""
    found = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        found.append((int(head.split()[1]), rest[: int(length[1])]))
        answers = rest[int(length[1]) :]
    return found


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Either event loop."""
    made: Loop = request.param
    return made


@pytest.fixture(params=["at once", "after a future", "in a task"])
def app(request: pytest.FixtureRequest) -> Echo:
    """An application that answers at once, once a future is done, or in a task after a turn of the loop."""
    return Echo(is_quick=request.param != "in a task", is_late=request.param == "after a future")


def test_pipelined_requests_are_answered_in_order(loop: Loop, app: Echo) -> None:
    """More requests than may wait at a time, with and without bodies, in one segment, then the end."""

    async def talk(served: Served) -> None:
        sent = b"".join(post(f"/{n}", b"y" * n) if n % 3 else get(f"/{n}") for n in range(100))
        assert bodies(await served.said(sent)) == [(200, b"/%d" % n) for n in range(100)]
        assert [seen.body for seen in app.seen] == [b"y" * n if n % 3 else b"" for n in range(100)]

    assert serving(talk, app=app, loop=loop)


def test_nothing_after_what_cannot_be_read_is_answered(loop: Loop, app: Echo) -> None:
    """The answers before it come, in order; then a refusal; nothing that follows is done."""

    async def talk(served: Served) -> None:
        for name, raw in REFUSED.items():
            app.seen.clear()
            if "endless" in name:
                raw += b"b" * 70_000
            if "long" in name or "many" in name:
                raw = raw.replace(b"A:", b"A: b\r\n" * 100 + b"A:", 1)
            wire = await served.connect()
            await wire.send(post("/1", b"body") + get("/2") + raw + get("/3"))
            assert [(await wire.answer()).body for _ in range(3)] == [b"/1", b"/2", b"refused"], name
            wire.finish()
            assert await wire.ended() == b""
            assert [seen.path for seen in app.seen] == ["/1", "/2"]

    assert serving(talk, app=app, loop=loop)


def test_body_that_breaks_off_or_breaks_is_never_taken_for_whole(loop: Loop, app: Echo) -> None:
    """A half-closed connection ends a body that is not complete with a refusal; so does a malformed chunk."""

    async def talk(served: Served) -> None:
        whole = post("/2", b"z" * 100_000)
        chunked = get("/2", "Transfer-Encoding: chunked").replace(b"GET", b"POST")
        for cut in (whole[:-1], whole[:-70_000], post("/2", b"abc")[:-1], chunked + b"5\r\nabc", chunked + b"1\r\nabc"):
            app.seen.clear()
            assert bodies(await served.said(get("/1") + cut)) == [(200, b"/1"), (400, b"refused")]
            assert app.seen == [Seen("GET", "/1", b"")]

    assert serving(talk, app=app, loop=loop)


def test_client_that_closes_its_side_gets_its_answers(loop: Loop, app: Echo) -> None:
    """Long ones too; then the connection is closed."""

    async def talk(served: Served) -> None:
        assert bodies(await served.said(get("/long") * 3 + post("/1", b"x" * 200_000)))[3] == (200, b"/1")
        assert app.seen[-1] == Seen("POST", "/1", b"x" * 200_000)
        assert await served.said(b"") == b""
        assert await served.said(b"GET /") == b""

    assert serving(talk, app=app, loop=loop)


def test_others_have_a_turn_between_two_answers(loop: Loop) -> None:
    """Thousands of pipelined requests that are answered at once do not keep another connection waiting."""
    app = Echo()

    async def talk(served: Served) -> None:
        greedy, other = await served.connect(), await served.connect()
        greedy.writer.write(get("/greedy") * 20_000)
        reading = asyncio.create_task(greedy.reader.readexactly(100_000))
        while not app.seen:
            await asyncio.sleep(0)
        await other.send(get("/other"))
        assert (await other.answer()).body == b"/other"
        assert len(app.seen) < 2_000
        await reading

    serving(talk, app=app, loop=loop)


def test_one_byte_chunks_do_not_stall_the_loop(loop: Loop) -> None:
    """A body in chunks of one byte is read in bounded pieces."""

    async def talk(served: Served) -> None:
        wire = await served.connect()
        sent = get("/", "Transfer-Encoding: chunked").replace(b"GET", b"POST") + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
        wire.writer.write(sent)
        answering = asyncio.create_task(wire.answer())
        turns = 0
        while not answering.done():
            await asyncio.sleep(0)
            turns += 1
        assert served.app.seen == [Seen("POST", "/", b"x" * 100_000)]
        assert turns > 90, "others have a turn after 1,024 chunks"

    assert serving(talk, loop=loop, limits=Limits(check_seconds=60))


def test_body_that_was_not_read_ends_the_connection_only_if_it_is_long(loop: Loop) -> None:
    """Wherever the bytes are cut: a short body is here before the application is asked, a long one is not."""
    app = Echo(is_quick=False)

    async def talk(served: Served) -> None:
        for size, count in ((1_000, 2), (65_536, 2), (65_537, 1), (300_000, 1)):
            for cut in (1, 65_600, None):
                wire = await served.connect()
                sent = post("/unread", b"x" * size) + get("/next")
                await wire.send(sent[:cut])
                if cut is not None:
                    await asyncio.sleep(0.01)
                    await wire.send(sent[cut:])
                wire.finish()
                assert len(bodies(await wire.ended())) == count, (size, cut)

    assert serving(talk, app=app, loop=loop)


@settings(max_examples=60, deadline=None)
@given(sent=requests(), data=st.data())
def test_any_cut_gives_the_same_answers(sent: bytes, data: st.DataObject) -> None:
    """The answers, their order and what was done do not depend on how the bytes arrive."""
    pieces = data.draw(cuts(sent))
    app = Echo(is_quick=data.draw(st.booleans()), is_late=data.draw(st.booleans()))

    async def talk(served: Served) -> None:
        results = []
        for parts in ([sent], pieces):
            app.seen.clear()
            wire = await served.connect()
            for part in parts:
                wire.writer.write(part)
                await asyncio.sleep(0.001)
            wire.finish()
            said = re.sub(rb"date: .*", b"", (await wire.ended()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
            results.append((said, [*app.seen]))
        assert results[0] == results[1]

    serving(talk, app=app, loop=uvloop.new_event_loop)


def test_connections_of_one_address_are_bounded_and_those_of_a_proxy_are_not(loop: Loop) -> None:
    """One address may have so many; another one is let in; a trusted proxy counts in all only."""
    limits = Limits(connections=8, connections_per_address=2, proxies=("127.0.0.9/32",))

    async def talk(served: Served) -> None:
        for host, most in (("127.0.0.1", 2), ("127.0.0.2", 2), ("127.0.0.9", 4)):
            wires = [await served.connect(host) for _ in range(most)]
            for wire in wires:
                await wire.send(get("/"))
                assert (await wire.answer()).status == 200
            if most == 2:
                assert await (await served.connect(host)).ended() == b""
        assert served.server.open_connections == 8

    assert serving(talk, limits=limits, loop=loop)


def test_idle_connections_make_room_for_a_new_one(loop: Loop) -> None:
    """Once all are taken, the one that has been idle for longest is closed, and not one that is being answered."""
    limits = Limits(connections=3, check_seconds=0.02)

    async def talk(served: Served) -> None:
        wires = [await served.connect(f"127.0.0.{number}") for number in range(1, 4)]
        await wires[0].send(b"GET /half")
        for wire in wires[1:]:
            await wire.send(get("/"))
            assert (await wire.answer()).status == 200
            await asyncio.sleep(0.05)
        late = await served.connect("127.0.0.4")
        assert await wires[1].ended() == b""
        await late.send(get("/late"))
        assert (await late.answer()).body == b"/late"
        await wires[0].send(b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wires[0].answer()).body == b"/half"

    assert serving(talk, limits=limits, loop=loop)


def test_head_that_drips_is_given_up_in_time(loop: Loop) -> None:
    """The time for a head counts from its first byte, whatever comes meanwhile."""

    async def talk(served: Served) -> None:
        wire = await served.connect()
        began = time.monotonic()
        for byte in get("/" + "x" * 5_000):
            wire.writer.write(bytes([byte]))
            await asyncio.sleep(0.005)
            if wire.reader.at_eof() or wire.reader.exception() is not None:
                break
        assert 0.15 < time.monotonic() - began < 5
        assert await wire.ended() == b""

    serving(talk, limits=Limits(head_seconds=0.2, check_seconds=0.02), loop=loop)


def test_slow_reader_keeps_his_answer_and_a_stopped_one_loses_it(loop: Loop) -> None:
    """Whoever takes enough of a long answer in time gets all of it; whoever takes nearly nothing is cut off."""
    limits = Limits(slow_reader_seconds=0.5, slow_reader_bytes=10_000, check_seconds=0.02)

    def received(port: int, first_pause: float) -> int:
        """Ask for 24 MB, and return how much of it came after a pause, slowly."""
        total = 0
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(get("/long") * 60)
            time.sleep(first_pause)
            try:
                while total < 24_000_000 and (piece := connection.recv(1_000_000)):
                    total += len(piece)
                    time.sleep(0.03)
            except ConnectionResetError:
                pass
        return total

    async def talk(served: Served) -> None:
        assert await asyncio.to_thread(received, served.port, 0) >= 24_000_000
        assert await asyncio.to_thread(received, served.port, 2) < 24_000_000

    serving(talk, limits=limits, loop=loop)


def test_clients_who_read_nothing_cannot_fill_the_memory(loop: Loop) -> None:
    """Together they leave no more unread than the limit; a client at another address is answered meanwhile."""
    limits = Limits(unread_total_bytes=3_000_000)

    async def talk(served: Served) -> None:
        stubborn = [await served.connect("127.0.0.9", limit=1) for _ in range(40)]
        for wire in stubborn:
            await wire.send(get("/long") * 16)
        slow = await served.connect("127.0.0.8", limit=1024)
        await slow.send(get("/long") * 2 + get("/after"))
        async with asyncio.timeout(20):
            while len(served.server._state.connections) == 41:
                await asyncio.sleep(0.01)
        assert served.server._state.unread.total_bytes <= 3_000_000
        honest = await served.connect("127.0.0.8")
        await honest.send(get("/"))
        assert (await honest.answer("GET")).status == 200
        assert [len((await slow.answer("GET")).body) for _ in range(2)] == [400_000, 400_000]
        assert (await slow.answer("GET")).body == b"/after"

    serving(talk, limits=limits, loop=loop)


def test_client_who_reads_nothing_cannot_send_ahead(loop: Loop, app: Echo) -> None:
    """Of its long requests only a few are kept while an answer waits, and they count as unread, too."""
    sent = get("/long") * 16 + post("/" + "p" * 50_000, b"b" * 60_000) * 20

    async def talk(served: Served) -> None:
        stubborn = await served.connect(limit=1)
        stubborn.writer.write(sent)
        await asyncio.sleep(0.5)
        (connection,) = served.server._state.connections
        kept = sum(len(request.body) for request in connection._waiting) + len(connection._reader._data)
        assert kept < 600_000
        assert served.server._state.unread.total_bytes > kept
        async with asyncio.timeout(20):
            while len(app.seen) < 36:
                await stubborn.reader.read(1_000_000)

    assert serving(talk, app=app, loop=loop)


def test_bytes_that_were_read_are_not_kept_while_a_connection_idles(loop: Loop) -> None:
    """A client that sent a long body and is silent then takes up no room for it."""

    async def talk(served: Served) -> None:
        wire = await served.connect()
        await wire.send(post("/", b"x" * 60_000))
        assert (await wire.answer()).status == 200
        (connection,) = served.server._state.connections
        async with asyncio.timeout(20):
            while connection._reader._data:
                await asyncio.sleep(0.01)

    serving(talk, limits=Limits(check_seconds=0.02), loop=loop)


@pytest.mark.parametrize(
    "sent",
    [
        get("/"),
        get("/long") * 40,
        get("/")[:-3],
        post("/", b"x" * 9)[:-3],
        post("/", b"x" * 90_000)[:-3],
        post("/", b"x" * 90_000) + b"\0",
        post("/unread", b"x" * 90_000) + get("/"),
        post("/", b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"") + b"5\r\nabcdefg",
        b"\r\n",
    ],
    ids=["head", "unread", "half head", "half body", "half a long body", "garbage", "unread body", "chunk", "refused"],
)
def test_connection_that_has_ended_leaves_nothing_behind(loop: Loop, app: Echo, sent: bytes) -> None:
    """It is in no reference cycle: a service looks for those only once an hour, and it held all that was sent."""

    async def talk(served: Served) -> None:
        wire = await served.connect(limit=1024)
        wire.writer.write(sent)
        await asyncio.sleep(0.1)
        left = [weakref.ref(connection) for connection in served.server._state.connections]
        assert len(left) == 1
        wire.writer.transport.abort()
        async with asyncio.timeout(5):
            while any(ref() for ref in left):
                await asyncio.sleep(0.01)

    gc.collect()
    gc.disable()
    try:
        serving(talk, app=app, loop=loop)
    finally:
        gc.enable()


class Held(Echo):
    """Begins every request and leaves it to the test when, and with what, it is answered."""

    def __init__(self) -> None:
        super().__init__(is_late=True)
        self.futures: list[asyncio.Future[None]] = []
        self.made: list[bool] = []
        self.reply: Callable[[], Reply | None] = lambda: Reply(200, b"made")

    def at_once(self, request: Request) -> LateReply:
        """Begin it."""
        self.futures.append(asyncio.get_running_loop().create_future())
        return LateReply(self.futures[-1], self.make)

    def make(self, future: asyncio.Future[None]) -> Reply | None:
        """Answer it."""
        self.made.append(future.done())
        return self.reply()

    async def begun(self, count: int) -> None:
        """Wait until *count* requests were begun."""
        async with asyncio.timeout(5):
            while len(self.futures) < count:
                await asyncio.sleep(0)


def test_answer_that_waits_for_a_future_is_made_when_that_is_done(loop: Loop) -> None:
    """Not before; the next request of the connection is not begun before, but those of other connections are."""
    app = Held()

    async def talk(served: Served) -> None:
        first, second = await served.connect(), await served.connect()
        await first.send(get("/1") + get("/2"))
        await app.begun(1)
        await second.send(get("/3"))
        await app.begun(2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(app.futures), app.made) == (2, [])
        app.futures[1].set_result(None)
        assert (await second.answer()).body == b"made"
        app.futures[0].set_result(None)
        assert (await first.answer()).body == b"made"
        await app.begun(3)
        app.futures[2].set_result(None)
        assert (await first.answer()).body == b"made"
        assert app.made == [True] * 3

    assert serving(talk, app=app, loop=loop)


def test_answer_that_waits_for_a_future_may_turn_out_to_need_a_task(loop: Loop) -> None:
    """Then the application is asked again, or streams it; the request behind it comes after that."""
    app = Held()

    async def pieces(writer: StreamWriter) -> bool:
        await writer.send(b"piece")
        return True

    async def talk(served: Served) -> None:
        wire = await served.connect()
        await wire.send(get("/1") + get("/2") + get("/3"))
        replies: list[Callable[[], Reply | None]] = [lambda: None, lambda: Reply(200, b"", stream=pieces)]
        for count, reply in enumerate([*replies, app.reply], 1):
            await app.begun(count)
            app.reply = reply
            app.futures[-1].set_result(None)
        assert (await wire.answer()).body == b"/1"
        assert (await wire.head())[1]["transfer-encoding"] == "chunked"
        assert await wire.reader.readexactly(15) == b"5\r\npiece\r\n0\r\n\r\n"
        assert (await wire.answer()).body == b"made"

    assert serving(talk, app=app, loop=loop)


def test_answer_that_cannot_be_made_ends_its_connection_only(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the error is told but its class; another connection goes on."""
    app = Held()
    secret = "what was sent"

    def failing() -> Reply:
        raise ValueError(secret)

    async def talk(served: Served) -> None:
        wire, other = await served.connect(), await served.connect()
        await wire.send(get("/1") + get("/2"))
        await app.begun(1)
        await other.send(get("/3"))
        await app.begun(2)
        app.reply = failing
        app.futures[0].set_result(None)
        assert await wire.ended() == b""
        app.reply = lambda: Reply(200, b"made")
        app.futures[1].set_result(None)
        assert (await other.answer()).body == b"made"
        assert len(app.futures) == 2

    assert serving(talk, app=app, loop=loop)
    assert "unexpected ValueError" in caplog.text
    assert secret not in caplog.text


def test_answer_is_made_although_its_client_has_gone(loop: Loop) -> None:
    """What was begun is counted, like what was answered; nothing is sent, and the connection is let go."""
    app = Held()

    async def talk(served: Served) -> None:
        wire = await served.connect()
        await wire.send(get("/1") + get("/2"))
        await app.begun(1)
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.writer.transport.abort()  # with a reset: the client does not read any more either
        async with asyncio.timeout(5):
            while served.server.open_connections:
                await asyncio.sleep(0)
        app.futures[0].set_result(None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert (app.made, len(app.futures)) == ([True], 1)

    assert serving(talk, app=app, loop=loop)


def test_future_of_an_answer_is_cancelled_when_a_stop_cuts_its_connection_off(loop: Loop) -> None:
    """The stop says that not everything was answered, and no answer is made."""
    app = Held()

    async def talk(served: Served) -> None:
        await (await served.connect()).send(get("/1"))
        await app.begun(1)

    assert not serving(talk, app=app, loop=loop)
    assert app.futures[0].cancelled()
    assert app.made == []


def test_workers_share_the_connections(loop: Loop) -> None:
    """Of two that accept from one socket each gets about half, and all of them if the other one is down."""

    async def talk(served: Served) -> None:
        shares[1].start_as(1)
        second = HttpServer(Echo(), served.server._listener, shares=shares[1])
        await second.start()
        wires = [await served.connect() for _ in range(40)]
        for wire in wires:
            await wire.send(get("/"))
            assert (await wire.answer()).status == 200
        assert served.server.open_connections + second.open_connections == 40
        assert abs(served.server.open_connections - second.open_connections) <= 4
        await second.stop(0.1)
        shares[0].end(1)
        for _ in range(10):
            wire = await served.connect()
            await wire.send(get("/"))
            assert (await wire.answer()).status == 200

    first = ConnectionShares(2)
    second = ConnectionShares(2)
    second._memory = first._memory  # as after a fork
    shares = (first, second)
    first.start_as(0)
    serving(talk, loop=loop, shares=first)
