"""The operator listener over real sockets: whatever comes, however slowly, is answered in order and bounded."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spotledger.http import operator_calls, operator_connection, operator_server
from spotledger.http.operator_server import OperatorServer
from support_operator import Api, operator_api

DEPOSIT = json.dumps({"customer": "alice", "coin": "usdt", "amount": "1"}).encode()


class Said(NamedTuple):
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class Wire:
    """One connection to the listener, on which a test sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of an answer."""
        async with asyncio.timeout(20):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.strip().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)

    async def answer(self, method: str = "POST") -> Said:
        """Read one answer that has a length."""
        status, headers = await self.head()
        length = 0 if method == "HEAD" else int(headers["content-length"])
        async with asyncio.timeout(20):
            return Said(status, headers, await self.reader.readexactly(length))

    async def ended(self) -> bytes:
        """Return what still comes until the connection is closed."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


class Listener:
    """The operator API of a test, on a socket."""

    def __init__(self, api: Api, loop_socket: socket.socket) -> None:
        self.api = api
        self.socket = loop_socket
        self.wires: list[Wire] = []

    def run(self, talk: Callable[[Listener], Awaitable[None]]) -> bool:
        """Serve while *talk* goes on; return whether all was answered at the end."""

        async def serve() -> bool:
            self.server = OperatorServer(self.api.app, self.socket)
            await self.server.start()
            try:
                async with asyncio.timeout(60):
                    await talk(self)
            finally:
                whole = await self.server.stop(0.5)
                for wire in self.wires:
                    wire.writer.close()
            return whole

        return self.api.run(serve())

    async def connect(self, limit: int = 2**22) -> Wire:
        """Open a connection."""
        wire = Wire(*await asyncio.open_connection(*self.socket.getsockname(), limit=limit))
        self.wires.append(wire)
        return wire

    def post(self, key: str, body: bytes = DEPOSIT, *more: str) -> bytes:
        """Return a deposit as bytes."""
        return (
            self.head("POST", "/v1/deposits", f"Idempotency-Key: {key}", f"Content-Length: {len(body)}", *more) + body
        )

    def head(self, method: str, target: str, *more: str, version: str = "1.1") -> bytes:
        """Return the head of a request with a good token."""
        lines = [f"{method} {target} HTTP/{version}", "Host: x", f"Authorization: Bearer {self.api.token}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """A listener over a ledger with some coins and customers."""
    with operator_api(tmp_path / "data") as api, socket.create_server(("127.0.0.1", 0)) as bound:
        api.set_up()
        yield Listener(api, bound)


def test_requests_sent_at_once_are_answered_in_their_order(listener: Listener) -> None:
    """Twenty writes and reads in one piece: each is answered whole, in order, on the one connection."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        before = listener.api.seq
        each = [listener.post(f"k{number}") + listener.head("GET", "/v1/entries?limit=1") for number in range(10)]
        await wire.send(b"".join(each))
        for number in range(10):
            written, read = await wire.answer(), await wire.answer()
            assert (written.status, written.json["entry"]["key"]) == (200, f"k{number}")
            assert (written.json["seq"], read.json["seq"]) == (before + number + 1, before + number + 1)

    assert listener.run(talk)


def test_request_sent_byte_by_byte_is_read_whole(listener: Listener) -> None:
    """It makes no difference in how many pieces a request comes, nor where they end."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        for byte in listener.post("slow", DEPOSIT, "Idempotency-Key2: x"):
            await wire.send(bytes([byte]))
            await asyncio.sleep(0)
        said = await wire.answer()
        assert (said.status, said.json["entry"]["key"]) == (200, "slow")

    assert listener.run(talk)


def test_body_in_chunks_is_read_whole_and_a_broken_one_refused(listener: Listener) -> None:
    """Chunks are put together; one that is none is said, nothing is booked, and the connection ends."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        head = listener.head("POST", "/v1/deposits", "Idempotency-Key: chunks", "Transfer-Encoding: chunked")
        await wire.send(head + b"5\r\n" + DEPOSIT[:5] + b"\r\n")
        await asyncio.sleep(0.01)
        await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DEPOSIT) - 5, DEPOSIT[5:]))
        assert (await wire.answer()).status == 200
        seq = listener.api.seq
        await wire.send(head.replace(b"chunks", b"broken") + b"5\r\n" + DEPOSIT[:5] + b"\r\n")
        await asyncio.sleep(0.01)
        await wire.send(b"zz\r\n")
        said = await wire.answer()
        assert (said.status, said.json["code"]) == (400, "malformed_request")
        assert said.headers["connection"] == "close"
        wire.writer.write_eof()
        assert await wire.ended() == b""
        assert listener.api.seq == seq

    assert listener.run(talk)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /v1/coins HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c: d\r\nB : c\r\n\r\n",
        b"POST /v1/deposits HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/deposits HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/deposits HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * (operator_connection.HEAD_LIMIT_BYTES + 1) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * (operator_connection.HEAD_LIMIT_BYTES * 3),
        b"GET /" + b"y" * (operator_connection.HEAD_LIMIT_BYTES + 1),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (operator_connection.HEADERS_LIMIT + 1) + b"\r\n",
    ],
    ids=lambda raw: repr(raw[:24]) + str(len(raw)),
)
def test_what_is_no_request_is_refused_in_the_one_shape(listener: Listener, raw: bytes) -> None:
    """What cannot be read, or has too large a head, is told so after what was asked before it; then the end."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.head("GET", "/v1/coins") + raw)
        assert (await wire.answer()).status == 200
        said = await wire.answer()
        assert (said.status, said.json["code"]) == (400, "malformed_request")
        assert said.json["request_id"] == said.headers["x-request-id"]
        assert said.headers["connection"] == "close"
        wire.writer.write_eof()
        assert await wire.ended() == b""

    listener.run(talk)


def test_offer_to_change_the_protocol_is_passed_over(listener: Listener) -> None:
    """A client that offers HTTP/2 is answered in HTTP/1.1, its body read, and its next request too."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        await wire.send(listener.post("offered", DEPOSIT, *offer) + listener.post("next"))
        assert [(await wire.answer()).json["entry"]["key"] for _ in range(2)] == ["offered", "next"]
        chunked = listener.head("POST", "/v1/deposits", "Idempotency-Key: c", "Transfer-Encoding: chunked", *offer)
        await wire.send(chunked + b"5\r\n" + DEPOSIT[:5] + b"\r\n")
        await asyncio.sleep(0.01)
        await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DEPOSIT) - 5, DEPOSIT[5:]))
        assert (await wire.answer()).json["entry"]["key"] == "c"
        await wire.send(listener.head("GET", "/v1/coins", *offer) + listener.post("after"))
        assert [(await wire.answer()).status for _ in range(2)] == [200, 200]
        await wire.send(listener.post("websocket", DEPOSIT, "Connection: Upgrade", "Upgrade: websocket"))
        assert (await wire.answer()).status == 200

    assert listener.run(talk)


def test_connect_opens_no_tunnel(listener: Listener) -> None:
    """CONNECT is refused, and what follows it is not read as a request."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.head("CONNECT", "example.org:443") + listener.post("tunnelled"))
        said = await wire.answer()
        assert said.status == 404
        assert said.headers["connection"] == "close"
        assert await wire.ended() == b""
        assert listener.api.seq == 8

    listener.run(talk)


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive", True),
        ("1.1", "Connection: close", False),
        ("1.1", "", True),
    ],
)
def test_connection_is_kept_as_the_caller_asks(listener: Listener, version: str, header: str, kept: bool) -> None:
    """Both versions, with and without a word about it; the answer says which."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        request = listener.head("GET", "/v1/coins", *filter(None, [header]), version=version)
        await wire.send(request)
        said = await wire.answer()
        assert said.headers.get("connection", "keep-alive") == ("keep-alive" if kept else "close")
        assert ("connection" in said.headers) == (not kept or version == "1.0")
        if kept:
            await wire.send(request)
            assert (await wire.answer()).status == 200
        else:
            assert await wire.ended() == b""

    assert listener.run(talk)


def test_head_has_the_length_and_no_body(listener: Listener) -> None:
    """HEAD says what GET would, without the body, and the connection goes on."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.head("HEAD", "/v1/coins") + listener.head("GET", "/v1/coins"))
        first, second = await wire.answer("HEAD"), await wire.answer()
        assert first.headers["content-length"] == second.headers["content-length"] == str(len(second.body))
        assert first.headers["cache-control"] == "no-store"
        assert second.headers["date"].endswith(" GMT")

    assert listener.run(talk)


def test_body_is_asked_for_only_when_it_will_be_read(listener: Listener) -> None:
    """Who waits for 100 Continue gets it, unless the call is refused before its body would be read."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        whole = listener.post("awaited", DEPOSIT, "Expect: 100-continue")
        await wire.send(whole.removesuffix(DEPOSIT))
        assert await wire.head() == (100, {})
        await wire.send(DEPOSIT)
        assert (await wire.answer()).status == 200
        for refused in (
            whole.removesuffix(DEPOSIT).replace(listener.api.token.encode(), b"0" * 64),
            listener.post("long", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 1048577"),
        ):
            wire = await listener.connect()
            await wire.send(refused)
            said = await wire.answer()
            assert said.status in (400, 401)
            assert said.headers["connection"] == "close"

    listener.run(talk)


def test_caller_refused_while_he_sends_gets_his_answer(listener: Listener) -> None:
    """An answer before the body has come is not lost to a caller who is still sending it; then the connection ends."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        head = b"POST /v1/deposits HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n"
        await wire.send(head)
        for _ in range(40):
            await wire.send(b"x" * 100_000)
        said = await wire.answer()
        assert (said.status, said.headers["connection"]) == (401, "close")
        wire.writer.write_eof()
        assert await wire.ended() == b""

    assert listener.run(talk)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused_before_it_was_all_sent(listener: Listener, chunked: bool) -> None:
    """More than a body may have is neither waited for nor kept, whether its length is announced or not."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        size = operator_calls.BODY_LIMIT_BYTES * 8
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        await wire.send(listener.head("POST", "/v1/deposits", "Idempotency-Key: k", framing))
        if chunked:
            await wire.send(b"%x\r\n" % size + b" " * (operator_calls.BODY_LIMIT_BYTES + 2))
        said = await wire.answer()
        assert said.status == 400
        assert "longer than 1048576 bytes" in said.json["detail"]

    listener.run(talk)


def test_body_that_does_not_come_is_given_up(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops half-way is refused after the time limit, and nothing is booked."""
    monkeypatch.setattr(operator_calls, "BODY_TIMEOUT_SECONDS", 0.05)

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.post("never")[:-3])
        said = await wire.answer()
        assert said.status == 400
        assert "did not come whole" in said.json["detail"]
        assert listener.api.seq == 8

    listener.run(talk)


def test_caller_who_goes_in_the_midst_of_a_body_books_nothing(listener: Listener) -> None:
    """A connection that breaks off is no error: nothing is booked, and others are answered."""

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
    """A whole request is done, whoever waits for its answer; the same again is a repeat."""

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


def test_header_values_are_taken_without_blanks_around_them(listener: Listener) -> None:
    """Blanks and tabs around a value are not part of it; other bytes are, and are refused by name."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.post(" \t blank \t "))
        assert (await wire.answer()).json["entry"]["key"] == "blank"
        await wire.send(listener.post("\xe9"))
        said = await wire.answer()
        assert (said.status, said.json["field"]) == (422, "Idempotency-Key")
        await wire.send(listener.post("once", DEPOSIT, "idempotency-key: twice"))
        assert (await wire.answer()).status == 422
        await wire.send(listener.head("GET", "/v1/coins", f"authorization: Bearer {listener.api.token}"))
        assert (await wire.answer()).status == 401

    assert listener.run(talk)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/customers/%61lice/balances", 200),
        ("/v1/customers/al%2Fice/balances", 404),
        ("http://elsewhere/v1/coins?min_seq=1", 200),
        ("http://elsewhere", 404),
        ("/v1/coins#part", 200),
        ("/v1/coins?x=%ff", 422),
        ("/v1/%ff%fe", 404),
        ("*", 404),
    ],
)
def test_target_in_any_form_is_read(listener: Listener, target: str, status: int) -> None:
    """Encoded, as to a proxy, with a fragment, or wrong: each is read as what it means."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.head("OPTIONS" if target == "*" else "GET", target))
        assert (await wire.answer()).status == status

    assert listener.run(talk)


def test_silent_connections_are_closed(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a head that does not end, nor none at all, nor idleness after an answer keeps a connection for ever."""
    monkeypatch.setattr(operator_connection, "HEAD_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(operator_connection, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(operator_server, "LOOK_SECONDS", 0.02)

    async def talk(listener: Listener) -> None:
        wires = [await listener.connect() for _ in range(3)]
        await wires[1].send(b"GET / HT")
        await wires[2].send(listener.head("GET", "/v1/coins"))
        assert (await wires[2].answer()).status == 200
        for wire in wires:
            assert await wire.ended() == b""

    assert listener.run(talk)


def test_connections_beyond_the_limit_are_turned_away(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many may be open and no more; one that ends makes room."""
    monkeypatch.setattr(operator_server, "OPEN_CONNECTIONS", 1)

    async def talk(listener: Listener) -> None:
        first = await listener.connect()
        await first.send(listener.head("GET", "/v1/coins"))
        assert (await first.answer()).status == 200
        assert await (await listener.connect()).ended() == b""
        await first.send(listener.head("GET", "/v1/coins", "Connection: close"))
        assert (await first.answer()).status == 200
        assert await first.ended() == b""
        third = await listener.connect()
        await third.send(listener.head("GET", "/v1/coins"))
        assert (await third.answer()).status == 200

    assert listener.run(talk)


def test_feed_to_a_reader_who_does_not_read_is_held_back(listener: Listener) -> None:
    """What he has not taken stays in the journal, not in memory; he is not waited for at the end."""
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
        buffered = max(connection._transport.get_write_buffer_size() for connection in listener.server._hub.connections)
        assert buffered < 2**20

    listener.run(talk)
    assert api.app.feed.open == 0


def test_feed_of_a_reader_who_goes_is_closed(listener: Listener) -> None:
    """The stream ends when its reader has gone, though there is nothing to send to him."""
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
        | st.sampled_from([b"GET / HTTP/1.1\r\n", b"POST /v1/deposits HTTP/1.1\r\n", b"\r\n", b"Content-Length: 5\r\n"])
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
        wire.writer.write_eof()
        await wire.ended()
        other = await listener.connect()
        await other.send(listener.head("GET", "/v1/coins"))
        assert (await other.answer()).json["seq"] == 8

    listener.run(talk)
