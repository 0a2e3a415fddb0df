"""The server itself: what it accepts and when, the times it keeps, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from spotledger.http.h1 import server as server_module
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import Reply, Request
from spotledger.http.h1.server import HttpServer
from spotledger.http.h1.shares import ConnectionShares
from spotledger.http.h1.tls import Certificate
from support_h1 import Echo, trusting, write_certificate

HUNG_SECONDS = 5
REQUEST = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"


class Peers(Echo):
    """Answers with who asks."""

    def at_once(self, request: Request) -> Reply | None:
        """Answer with the peer."""
        return Reply(200, request.peer.encode())


class Scripted(socket.socket):
    """A listening socket that raises what a test says before it accepts, and counts what is accepted."""

    problems: list[OSError]
    accepted: int

    def dup(self) -> Scripted:
        """Return a socket with the same script."""
        made = super().dup()
        assert isinstance(made, Scripted)
        made.problems, made.accepted = self.problems, 0
        self.copy = made
        return made

    def accept(self) -> tuple[socket.socket, Any]:
        """Raise the next problem, or accept."""
        if self.problems:
            raise self.problems.pop(0)
        accepted = super().accept()
        self.accepted += 1
        return accepted


def listening(*problems: OSError) -> Scripted:
    """Return a listening socket with a script."""
    made = Scripted()
    made.problems = [*problems]
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


class Clients:
    """Clients of a server; they are closed at the end."""

    def __init__(self, server: HttpServer, listener: Scripted) -> None:
        self.server = server
        self.listener = listener
        self.opened: list[asyncio.StreamWriter] = []

    async def connect(self, **how: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        wire = await asyncio.open_connection(*self.listener.getsockname(), **how)
        self.opened.append(wire[1])
        return wire

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Ask once; return the answer."""
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        return head + await reader.readexactly(int(length[1]))

    async def said(self) -> bytes:
        """Connect and ask once; return the answer."""
        return await self.ask(*await self.connect())


@asynccontextmanager
async def serving(*problems: OSError, app: Echo | None = None, **more: Any) -> AsyncIterator[Clients]:
    """Serve for a while."""
    with listening(*problems) as listener:
        server = HttpServer(app or Echo(), listener, **more)
        await server.start()
        clients = Clients(server, listener)
        try:
            yield clients
        finally:
            if not server._state.stopping:
                await server.stop(0)
            for writer in clients.opened:
                writer.transport.abort()
            await asyncio.sleep(0)


def run(talk: Callable[[], Awaitable[None]], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run *talk* in a loop of its own."""

    async def bounded() -> None:
        async with asyncio.timeout(HUNG_SECONDS):
            await talk()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    while not condition():
        await asyncio.sleep(0.001)


# --- accepting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_connection_is_answered_and_counted(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """As long as it is open; nothing of its answer waits for more to be written."""

    async def talk() -> None:
        async with serving(app=Peers()) as clients:
            assert clients.server.open_connections == 0
            reader, writer = await clients.connect()
            host, port = writer.get_extra_info("sockname")
            assert (await clients.ask(reader, writer)).endswith(f"\r\n\r\n{host}:{port}".encode())
            assert clients.server.open_connections == 1
            [connection] = clients.server._state.connections
            accepted = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            await until(lambda: clients.server.open_connections == 0)
            await until(lambda: not clients.server._opening)

    run(talk, loop)


def test_address_of_ipv6_is_told_from_its_port() -> None:
    """In brackets; it is counted as the network that it is in."""

    async def talk() -> None:
        async with serving(app=Peers()) as clients:
            clients.listener.copy.accept = lambda: (  # type: ignore[method-assign]
                lambda accepted: (accepted[0], ("2001:db8::1", 9, 0, 0))
            )(Scripted.accept(clients.listener.copy))
            assert (await clients.said()).endswith(b"\r\n\r\n[2001:db8::1]:9")
            [connection] = clients.server._state.connections
            assert connection.address == bytes.fromhex("20010db800000000")

    run(talk)


def test_connection_without_a_place_is_closed() -> None:
    """It is neither counted nor answered."""

    async def talk() -> None:
        async with serving(limits=Limits(connections_per_address=1)) as clients:
            await clients.said()
            reader, _ = await clients.connect()
            assert await reader.read() == b""
            assert (clients.server.open_connections, len(clients.server._state.connections)) == (1, 1)

    run(talk)


@pytest.mark.parametrize("problem", [OSError(errno.ENOTCONN, "gone"), RuntimeError("unexpected")])
def test_client_that_does_not_come_to_its_turn_is_not_counted(problem: Exception) -> None:
    """What was accepted is closed; an error that nobody expected is reported."""
    reported: list[Any] = []

    async def talk() -> None:
        async with serving() as clients:
            accepted: list[socket.socket] = []

            async def connect(factory: Any, sock: socket.socket, **more: Any) -> None:
                accepted.append(sock)
                raise problem

            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))
            loop.connect_accepted_socket = connect  # type: ignore[assignment, method-assign]
            reader, _ = await clients.connect()
            assert await reader.read() == b""
            assert accepted[0].fileno() == -1
            assert (clients.server.open_connections, clients.server._state.connections) == (0, set())
        gc.collect()

    run(talk)
    assert reported == [problem] * isinstance(problem, RuntimeError)


def test_crowd_is_accepted_in_parts() -> None:
    """Others have a turn after so many connections; a worker that shares the socket takes one at a time."""

    async def talk() -> None:
        for shares, parts in ((None, [0, 32, 40]), (ConnectionShares(1), [0, 1, 2, 3])):
            if shares is not None:
                shares.start_as(0)
            async with serving(shares=shares) as clients:
                loop = asyncio.get_running_loop()
                loop.remove_reader(clients.listener.copy)
                made = [socket.create_connection(clients.listener.getsockname()) for _ in range(40)]
                for number, before in enumerate(parts):
                    assert clients.listener.copy.accepted == before
                    if number < len(parts) - 1:
                        clients.server._accept()
                assert clients.server.open_connections == parts[-1]
                for one in made:
                    one.close()

    run(talk)


@pytest.mark.parametrize("problem", [BlockingIOError, InterruptedError, ConnectionAbortedError])
def test_connection_that_is_gone_when_it_is_accepted_is_no_error(problem: type[OSError]) -> None:
    """The next one is accepted."""

    async def talk() -> None:
        async with serving(problem(), problem()) as clients:
            assert (await clients.said()).endswith(b"/1")
            assert clients.listener.problems == []

    run(talk)


def test_error_that_is_not_known_is_not_passed_over() -> None:
    """The loop reports it."""

    async def talk() -> None:
        reported: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        problem = OSError(errno.EBADF, "bad")
        async with serving(problem) as clients:
            assert (await clients.said()).endswith(b"/1")
        assert reported == [problem]

    run(talk)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_system_that_is_exhausted_is_left_alone_for_a_while(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, nothing is accepted meanwhile, and then it goes on."""
    monkeypatch.setattr(server_module, "EXHAUSTED_SECONDS", 60)

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        async with serving(OSError(number, "none left")) as clients:
            began = loop.time()
            asking = asyncio.create_task(clients.said())
            await until(lambda: not clients.listener.problems)
            assert loop.remove_reader(clients.listener.copy) is False
            resuming = clients.server._resuming
            assert resuming is not None
            assert 60 <= resuming.when() - began <= 60 + HUNG_SECONDS
            clients.server._pause(0)
            assert resuming.cancelled()
            assert (await asking).endswith(b"/1")

    with caplog.at_level(logging.WARNING, "spotledger.http"):
        run(talk)
    assert caplog.messages == ["no connection could be accepted: none left"]


def test_worker_that_has_more_connections_leaves_one_to_another() -> None:
    """For a moment; one that is not taken by then it accepts itself, and listens again."""

    async def talk() -> None:
        shares = ConnectionShares(2)
        shares.start_as(1)
        shares.start_as(0)
        async with serving(shares=shares) as clients:
            await clients.said()
            loop = asyncio.get_running_loop()
            loop.remove_reader(clients.listener.copy)
            made = [socket.create_connection(clients.listener.getsockname()) for _ in range(3)]
            began = loop.time()
            clients.server._accept()
            assert clients.listener.copy.accepted == 1
            resuming = clients.server._resuming
            assert resuming is not None
            assert 0.002 <= resuming.when() - began < HUNG_SECONDS
            assert not loop.remove_reader(clients.listener.copy)
            while clients.server._resuming is not None:
                await asyncio.sleep(0)
            assert clients.listener.copy.accepted == 2
            assert loop.remove_reader(clients.listener.copy)
            shares.end(1)
            clients.server._accept()
            assert clients.listener.copy.accepted == 3
            for one in made:
                one.close()

    run(talk)


def test_worker_that_accepts_late_and_finds_the_system_exhausted_waits() -> None:
    """It does not listen before the time for that is over."""

    async def talk() -> None:
        async with serving() as clients:
            clients.listener.problems.append(OSError(errno.EMFILE, "none left"))
            clients.server._accept_late()
            assert clients.server._resuming is not None
            assert not asyncio.get_running_loop().remove_reader(clients.listener.copy)

    run(talk)


def test_server_that_stops_accepts_nothing_late() -> None:
    """Neither what it left to another worker, nor what it would have accepted after an exhaustion."""

    async def talk() -> None:
        async with serving() as clients:
            clients.server._pause(60)
            resuming = clients.server._resuming
            assert resuming is not None
            await clients.server.stop(0)
            assert resuming.cancelled()
            assert clients.server._resuming is None
            copy = clients.listener.copy
            assert copy.fileno() == -1
            clients.server._accept_late()
            clients.server._resume()
            assert copy.accepted == 0
            assert clients.listener.fileno() != -1

    run(talk)


# --- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a certificate and its key."""
    made = (tmp_path / "cert.pem", tmp_path / "key.pem")
    write_certificate(*made, "one")
    return made


def test_handshake_is_bounded_and_can_be_ended(files: tuple[Path, Path]) -> None:
    """A client that says nothing is counted; it ends after its time, or when the server needs its place."""

    async def talk() -> None:
        certificate = Certificate(*files)
        async with serving(limits=Limits(handshake_seconds=0.05), tls=certificate) as clients:
            reader, _ = await clients.connect()
            assert await reader.read() == b""
            await until(lambda: clients.server.open_connections == 0)
            assert clients.server._state.connections == set()
        async with serving(limits=Limits(handshake_seconds=60), tls=certificate) as clients:
            reader, _ = await clients.connect()
            await until(lambda: clients.server.open_connections == 1)
            [connection] = clients.server._state.connections
            await until(lambda: connection.handshake is not None)  # type: ignore[attr-defined]
            connection.abort()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            await until(lambda: clients.server.open_connections == 0)

    run(talk)


def test_end_of_tls_is_bounded(files: tuple[Path, Path]) -> None:
    """A client that does not answer the end is not waited for."""

    async def talk() -> None:
        async with serving(limits=Limits(handshake_seconds=1), tls=Certificate(*files)) as clients:
            held: list[ssl.SSLSocket] = []

            def ask() -> None:
                plain = socket.create_connection(clients.listener.getsockname(), timeout=HUNG_SECONDS)
                wire = trusting(files[0]).wrap_socket(plain, server_hostname="127.0.0.1")
                held.append(wire)
                wire.sendall(REQUEST)
                assert wire.recv(1_000).startswith(b"HTTP/1.1 200")

            await asyncio.to_thread(ask)
            [connection] = clients.server._state.connections
            await until(lambda: connection.is_idle)
            connection.close_when_idle()
            await until(lambda: clients.server.open_connections == 0)
            held[0].close()

    run(talk)


# --- times ---------------------------------------------------------------------------------------------------


def test_time_and_date_are_renewed() -> None:
    """At the start and at each check; the date is in the form of HTTP."""

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        async with serving(limits=Limits(check_seconds=0.01)) as clients:
            state = clients.server._state
            assert 0 <= loop.time() - state.now < HUNG_SECONDS
            assert re.fullmatch(rb"date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n\r\n", state.head_end)
            head_end, state.now, state.head_end = state.head_end, 0, b""
            await until(lambda: state.now > 0)
            assert 0 <= loop.time() - state.now < HUNG_SECONDS
            assert len(state.head_end) == len(head_end)

    run(talk)


class Checked:
    """A connection that notes what is done to it."""

    address = None
    is_counted = False
    is_idle = True
    waits_since = None

    def __init__(self, done: list[str], *, is_settled: bool = True) -> None:
        self.done = done
        self.is_settled = is_settled

    def check_timeouts(self) -> None:
        """Note it."""
        self.done.append("check")

    def close_when_idle(self) -> None:
        """Note it."""
        self.done.append("close")

    def abort(self) -> None:
        """Note it."""
        self.done.append("abort")


def test_timeouts_of_a_crowd_are_checked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have a turn after so many connections; each is checked once in a round."""
    monkeypatch.setattr(server_module, "_CHECKED_AT_ONCE", 3)

    async def talk() -> None:
        done: list[str] = []
        async with serving(limits=Limits(check_seconds=0.05)) as clients:
            clients.server._state.connections.update(Checked(done) for _ in range(7))
            while done.count("check") < 7:
                await asyncio.sleep(0)
                done.append(" ")
            assert "".join(done).replace("check", "x").strip() == "xxx xxx x"
            clients.server._state.connections.clear()

    run(talk)


# --- the end -------------------------------------------------------------------------------------------------


def test_stop_closes_idle_connections_and_waits_for_the_others() -> None:
    """An answer that is being made reaches its client; then everything has ended."""

    async def talk() -> None:
        app = Echo()
        async with serving(app=app) as clients:
            idle, busy = await clients.connect(), await clients.connect()
            for wire in (idle, busy):
                await clients.ask(*wire)
            released = asyncio.Event()

            async def answer(request: Request) -> Reply:
                await released.wait()
                return Reply(200, b"late")

            app.is_quick = False
            app.answer = answer  # type: ignore[method-assign]
            busy[1].write(REQUEST)
            await until(lambda: any(not connection.is_idle for connection in clients.server._state.connections))
            stopping = asyncio.create_task(clients.server.stop(HUNG_SECONDS))
            assert await idle[0].read() == b""
            assert not stopping.done()
            checking = clients.server._checking
            released.set()
            said = await busy[0].read()
            assert b"\r\nconnection: close\r\n" in said
            assert said.endswith(b"\r\n\r\nlate")
            assert await stopping is True
            assert checking.cancelled()
            assert clients.listener.copy.fileno() == -1

    run(talk)


@pytest.mark.parametrize(
    ("seconds", "goodbye_seconds", "is_settled", "is_answered"),
    [(0, 60, True, True), (0, 60, False, False), (0.03, 60, False, False), (60, 0.03, True, True)],
)
def test_stop_cuts_off_what_has_not_ended_in_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, goodbye_seconds: float, is_settled: bool, is_answered: bool
) -> None:
    """Whoever was not answered counts; one that was and does not say goodbye is not waited for so long."""
    monkeypatch.setattr(server_module, "GOODBYE_SECONDS", goodbye_seconds)

    async def talk() -> None:
        async with serving() as clients:
            done: list[str] = []
            clients.server._state.connections.add(Checked(done, is_settled=is_settled))
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await clients.server.stop(seconds) is is_answered
            assert loop.time() - began >= min(seconds, goodbye_seconds)
            assert done == ["close", "abort"]
            assert clients.server._state.stopping

    run(talk)


def test_stop_waits_for_those_that_are_not_answered_beside_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not say goodbye ends nobody else's time."""
    monkeypatch.setattr(server_module, "GOODBYE_SECONDS", 0.01)

    async def talk() -> None:
        async with serving() as clients:
            done: list[str] = []
            connections = clients.server._state.connections
            late = Checked(done, is_settled=False)
            connections.update({late, Checked(done)})
            stopping = asyncio.create_task(clients.server.stop(HUNG_SECONDS))
            await asyncio.sleep(0.05)
            assert not stopping.done()
            late.is_settled = True
            assert await stopping is True

    run(talk)
