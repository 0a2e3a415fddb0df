"""The bound on all connections: it is kept, and whoever takes them all loses them, and nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.state import ListenerState
from spotledger.http.h1.tls import Certificate
from support_h1 import Echo, Served, serving, trusting, write_certificate

Loop = Callable[[], asyncio.AbstractEventLoop]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
#: What a client has sent when it goes silent.
SILENCES = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nX: ",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    "what cannot be read": b"\r\n",
    "more than it reads": b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n" * 40,
}


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Either event loop."""
    made: Loop = request.param
    return made


@pytest.mark.parametrize("sent", SILENCES.values(), ids=SILENCES)
def test_one_address_cannot_shut_out_others(loop: Loop, sent: bytes) -> None:
    """Its connections make room, whatever they wait for; the open connection of another address stays open."""

    async def talk(served: Served) -> None:
        honest = await served.connect("127.0.0.1")
        await honest.send(REQUEST)
        assert (await honest.answer()).status == 200
        for _ in range(12):
            greedy = await served.connect("127.0.0.9", limit=1024)
            greedy.writer.write(sent)
        await asyncio.sleep(0.2)
        late = await served.connect("127.0.0.2")
        for wire in (late, honest):
            await wire.send(REQUEST)
            assert (await wire.answer()).status == 200
        assert served.server.open_connections <= 8

    serving(talk, loop=loop, limits=Limits(connections=8))


def test_connections_that_come_at_once_do_not_pass_the_bound(loop: Loop) -> None:
    """A crowd of them makes room one for one; none of it is open and uncounted."""

    async def talk(served: Served) -> None:
        for _ in range(4):
            await asyncio.gather(*(served.connect("127.0.0.9") for _ in range(50)))
            await asyncio.sleep(0.01)
            assert served.server.open_connections == 8
            assert len(served.server._state.connections) == 8
        async with asyncio.timeout(5):
            while len([wire for wire in served.wires if not _is_closed(wire.reader)]) > 8:
                await asyncio.sleep(0.01)

    assert serving(talk, loop=loop, limits=Limits(connections=8))


def test_handshakes_that_do_not_end_make_room(loop: Loop, tmp_path: Path) -> None:
    """A client that speaks no TLS takes no place from one that does."""
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_certificate(*files, "one")

    async def talk(served: Served) -> None:
        for _ in range(8):
            await served.connect("127.0.0.9")
        async with asyncio.timeout(5):
            while served.server.open_connections < 4:
                await asyncio.sleep(0.01)
        wire = await served.connect("127.0.0.1", ssl=trusting(files[0]))
        await wire.send(REQUEST)
        assert (await wire.answer()).status == 200
        assert served.server.open_connections <= 4

    serving(talk, loop=loop, limits=Limits(connections=4), tls=Certificate(*files))


class _Answered:
    """A connection that is being answered all the time."""

    is_counted = True
    is_idle = False
    is_settled = False

    def __init__(self, address: bytes | None) -> None:
        self.address = address
        self.looks = 0

    @property
    def waits_since(self) -> None:
        """Note that it was looked at."""
        self.looks += 1

    def check_timeouts(self) -> None:
        """Do nothing."""

    def close_when_idle(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


def test_a_crowd_is_not_looked_through_for_each_connection_turned_away() -> None:
    """While nothing can be closed, refusing a connection costs no look at the others."""
    state = ListenerState(Echo(), Limits(connections=10))
    answered = []
    for number in range(10):
        admitted = state.admit(f"127.0.0.{number}")
        assert admitted is not None
        answered.append(_Answered(admitted.address))
    state.connections.update(answered)
    began = time.monotonic()
    assert [state.admit("127.0.1.1") for _ in range(1_000)] == [None] * 1_000
    assert max(connection.looks for connection in answered) <= 1 + (time.monotonic() - began) / 0.05
    assert state.open == 10


def _is_closed(reader: asyncio.StreamReader) -> bool:
    return reader.at_eof() or reader.exception() is not None
