"""The operator listener over real sockets: nothing is waited for, or kept, without a bound."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings, strategies as st

from spotledger.http.h1.limits import Limits
from spotledger.http.operator import calls as operator_calls
from support_listener import DEPOSIT, Listener
from support_operator import operator_api


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def listener(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Listener]:
    """A listener over a ledger with some coins and customers, in either event loop."""
    with operator_api(tmp_path / "data", loop=request.param) as api, socket.create_server(("127.0.0.1", 0)) as bound:
        api.set_up()
        yield Listener(api, bound)


def test_body_is_asked_for_only_when_it_will_be_read(listener: Listener) -> None:
    """A client that waits for 100 Continue gets it, unless the call is refused before its body is read."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        whole = listener.post("awaited", DEPOSIT, "Expect: 100-continue")
        await wire.send(whole.removesuffix(DEPOSIT))
        assert await wire.head() == (100, {})
        await wire.send(DEPOSIT)
        assert (await wire.answer()).status == 200
        for refused in (
            whole.removesuffix(DEPOSIT).replace(listener.api.token.encode(), b"0" * 64),
            listener.post("long", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 262145"),
        ):
            wire = await listener.connect()
            await wire.send(refused)
            said = await wire.answer()
            assert said.status in (400, 401)
            assert said.headers["connection"] == "close"

    listener.run(talk)


def test_caller_refused_while_he_sends_gets_his_answer(listener: Listener) -> None:
    """An answer before the end of the body reaches a client that is still sending; then the connection ends."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        head = b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n"
        await wire.send(head)
        for _ in range(40):
            await wire.send(b"x" * 100_000)
        said = await wire.answer()
        assert (said.status, said.headers["connection"]) == (401, "close")
        wire.finish()
        assert await wire.ended() == b""

    assert listener.run(talk)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused_before_it_was_all_sent(listener: Listener, chunked: bool) -> None:
    """More than the limit of a body is neither read nor kept, whether or not its length is announced."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        size = operator_calls.BODY_LIMIT_BYTES * 8
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        await wire.send(listener.head("POST", "/v1/deposits", "Idempotency-Key: k", framing))
        if chunked:
            await wire.send(b"%x\r\n" % size + b" " * (operator_calls.BODY_LIMIT_BYTES + 2))
        said = await wire.answer()
        assert said.status == 400
        assert "longer than 262144 bytes" in said.json["detail"]

    listener.run(talk)


@pytest.mark.parametrize("length", [100, 100_000])
def test_body_that_does_not_come_is_given_up(listener: Listener, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops half-way is refused after the time limit, and nothing is booked."""
    monkeypatch.setattr(operator_calls, "BODY_TIMEOUT_SECONDS", 0.05)
    listener.limits = Limits(body_seconds=0.05, check_seconds=0.02)

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.post("never", b" " * length)[:-3])
        said = await wire.answer()
        assert said.status == 400
        assert "was not complete" in said.json["detail"]
        assert listener.api.seq == 8

    listener.run(talk)


def test_caller_who_goes_in_the_midst_of_a_body_books_nothing(listener: Listener) -> None:
    """A lost connection is not an error: nothing is booked, and other connections are answered."""

    async def talk(listener: Listener) -> None:
        for cut in (-1, -len(DEPOSIT), -len(DEPOSIT) - 10):
            wire = await listener.connect()
            await wire.send(listener.post("gone")[:cut])
            await asyncio.sleep(0.01)
            wire.writer.transport.abort()
        wire = await listener.connect()
        await wire.send(listener.head("GET", "/v1/coins"))
        assert (await wire.answer()).json["seq"] == 8

    assert listener.run(talk)


def test_caller_who_goes_while_his_write_is_done_has_it_booked(listener: Listener) -> None:
    """A complete request is executed even if nobody waits for its answer; the same again is a repeat."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.post("whole"))
        wire.writer.transport.abort()
        async with asyncio.timeout(20):
            while listener.api.seq == 8:
                await asyncio.sleep(0.01)
        wire = await listener.connect()
        await wire.send(listener.post("whole"))
        assert (await wire.answer()).headers["idempotency-replayed"] == "true"

    assert listener.run(talk)


def test_silent_connections_are_closed(listener: Listener) -> None:
    """A head that does not end, no head at all, and idleness after an answer all end in a timeout."""
    listener.limits = Limits(head_seconds=0.05, idle_seconds=0.05, check_seconds=0.02)

    async def talk(listener: Listener) -> None:
        wires = [await listener.connect() for _ in range(3)]
        await wires[1].send(b"GET / HT")
        await wires[2].send(listener.head("GET", "/v1/coins"))
        assert (await wires[2].answer()).status == 200
        for wire in wires:
            assert await wire.ended() == b""

    assert listener.run(talk)


def test_reader_who_takes_nothing_of_his_answers_is_cut_off(listener: Listener) -> None:
    """A client that asks for much and reads nothing loses its connection, and its answers are dropped."""
    listener.limits = Limits(slow_reader_seconds=0.2, check_seconds=0.02)

    async def talk(listener: Listener) -> None:
        api = listener.api
        operations = [
            {"op": "deposit", "key": f"w{number}", "customer": "alice", "coin": "usdt", "amount": "1"}
            for number in range(1000)
        ]
        said = await api.http.post("/v1/batches", json={"operations": operations}, headers=api.headers())
        assert said.status_code == 200
        wire = await listener.connect(limit=1)
        await wire.send(listener.head("GET", "/v1/entries") * 100)
        async with asyncio.timeout(20):
            while not listener.server._state.connections:
                await asyncio.sleep(0.01)
            while listener.server._state.connections:
                await asyncio.sleep(0.01)

    listener.run(talk)


def test_connections_beyond_the_limit_are_turned_away(listener: Listener) -> None:
    """The number of open connections is limited; one that ends makes room."""
    listener.limits = Limits(connections_per_address=1)

    async def talk(listener: Listener) -> None:
        first = await listener.connect()
        await first.send(listener.head("GET", "/v1/coins"))
        assert (await first.answer()).status == 200
        assert await (await listener.connect()).ended() == b""
        await first.send(listener.head("GET", "/v1/coins", "Connection: close"))
        assert (await first.answer()).status == 200
        assert await first.ended() == b""
        first.writer.transport.abort()
        await asyncio.sleep(0.05)
        third = await listener.connect()
        await third.send(listener.head("GET", "/v1/coins"))
        assert (await third.answer()).status == 200

    assert listener.run(talk)


@pytest.mark.parametrize("header", ["Connection: close", "Connection: keep-alive"])
def test_long_answer_reaches_a_slow_reader_whole(listener: Listener, header: str) -> None:
    """An answer larger than all buffers is kept until it is read, also if the connection ends with it."""

    async def talk(listener: Listener) -> None:
        operations = [
            {"op": "deposit", "key": f"w{number}", "customer": "alice", "coin": "usdt", "amount": "1"}
            for number in range(6000)
        ]
        body = json.dumps({"operations": operations}).encode()
        wire = await listener.connect(limit=1024)
        head = listener.head("POST", "/v1/batches", f"Content-Length: {len(body)}", header)
        await wire.send(head + body + listener.head("GET", "/v1/coins"))
        await asyncio.sleep(0.5)
        said = await wire.answer()
        assert len(said.json["results"]) == 6000
        if header.endswith("close"):
            assert await wire.ended() == b""
        else:
            assert (await wire.answer()).status == 200

    assert listener.run(talk)


def test_answer_that_is_not_taken_is_given_up_at_the_end(listener: Listener) -> None:
    """A client that reads nothing of its answer delays a stop no longer than the limit."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect(limit=1)
        await wire.send(listener.head("GET", "/openapi.json") * 400)
        async with asyncio.timeout(20):
            while not listener.server._state.unread.total_bytes:
                await asyncio.sleep(0.01)

    assert not listener.run(talk)


def test_feed_to_a_reader_who_does_not_read_is_held_back(listener: Listener) -> None:
    """What a reader has not taken stays in the journal, not in memory, and a stop does not wait for the reader."""
    api = listener.api

    async def talk(listener: Listener) -> None:
        slow, quick = await listener.connect(limit=1), await listener.connect()
        for wire in (slow, quick):
            await wire.send(listener.head("GET", "/v1/entries", "Accept: text/event-stream"))
        status, headers = await quick.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        count = 0
        for start in range(0, 20_000, 1000):
            operations = [
                {"op": "deposit", "key": f"w{number}", "customer": "alice", "coin": "usdt", "amount": "1"}
                for number in range(start, start + 1000)
            ]
            said = await api.http.post("/v1/batches", json={"operations": operations}, headers=api.headers())
            assert said.status_code == 200
            while count < start:
                async with asyncio.timeout(20):
                    count += (await quick.reader.readuntil(b"\n\n")).count(b"id: ")
        assert api.app.feed.open == 2
        buffered = max(
            connection._transport.get_write_buffer_size() for connection in listener.server._state.connections
        )
        assert buffered < 2**20

    listener.run(talk)
    assert api.app.feed.open == 0


def test_feed_of_a_reader_who_goes_is_closed(listener: Listener) -> None:
    """The stream ends when its reader disconnects, even if there is nothing to send."""
    api = listener.api

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.head("GET", "/v1/entries", "Accept: text/event-stream", version="1.0"))
        status, headers = await wire.head()
        assert (status, headers["connection"]) == (200, "close")
        assert api.app.feed.open == 1
        wire.writer.close()
        async with asyncio.timeout(20):
            while api.app.feed.open:
                await asyncio.sleep(0.01)

    assert listener.run(talk)


many = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(
    pieces=st.lists(
        st.binary(max_size=60)
        | st.sampled_from([b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\n", b"\r\n"])
        | st.sampled_from([b"Content-Length: 5\r\n", b"Content-Length: 70000\r\n"])
        | st.sampled_from(
            [b"Transfer-Encoding: chunked\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n", b"5\r\nabcde\r\n"]
        ),
        max_size=8,
    )
)
def test_any_bytes_on_a_connection_are_survived(listener: Listener, pieces: list[bytes]) -> None:
    """Whatever comes, in whatever pieces, the next caller is answered and nothing was booked."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0)
        wire.finish()
        await wire.ended()
        other = await listener.connect()
        await other.send(listener.head("GET", "/v1/coins"))
        assert (await other.answer()).json["seq"] == 8

    listener.run(talk)
