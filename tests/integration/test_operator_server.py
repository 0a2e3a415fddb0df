"""The operator listener over real sockets: whatever comes over a connection is answered, in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from spotledger.http.h1.limits import Limits
from support_listener import DEPOSIT, Listener
from support_operator import operator_api


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def listener(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Listener]:
    """A listener over a ledger with some coins and customers, in either event loop."""
    with operator_api(tmp_path / "data", loop=request.param) as api, socket.create_server(("127.0.0.1", 0)) as bound:
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
    """Chunks are joined; a malformed chunk is refused, nothing is booked, and the connection ends."""

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
        wire.finish()
        assert await wire.ended() == b""
        assert listener.api.seq == seq

    assert listener.run(talk)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BR{W /v1/coins HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/coins\r\n\r\n",
        b"GET /v1/coins HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /v1/coins HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c: d\r\nB : c\r\n\r\n",
        b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (Limits().head_bytes + 1) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (Limits().head_bytes * 3),
        b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"y" * (Limits().head_bytes + 1),
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * (Limits().headers + 1) + b"\r\n",
    ],
    ids=lambda raw: repr(raw[:24]) + str(len(raw)),
)
def test_what_is_no_request_is_refused_in_the_one_shape(listener: Listener, raw: bytes) -> None:
    """A malformed request, or one with too large a head, is answered after earlier ones; then the connection ends."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.head("GET", "/v1/coins"))
        assert (await wire.answer()).status == 200
        await wire.send(raw)
        said = await wire.answer()
        assert (said.status, said.json["code"]) == (400, "malformed_request")
        assert said.json["request_id"] == said.headers["x-request-id"]
        assert said.headers["connection"] == "close"
        wire.finish()
        assert await wire.ended() == b""

    listener.run(talk)


def test_what_is_no_request_is_refused_after_what_was_asked_before(listener: Listener) -> None:
    """Valid requests that arrived with it are executed and answered first."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(
            listener.post("good") + listener.head("GET", "/v1/coins") + b"\x00\r\n\r\n" + listener.post("never")
        )
        assert [(await wire.answer()).status for _ in range(3)] == [200, 200, 400]
        assert listener.api.seq == 9

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


def test_requests_are_counted_by_path_and_status(listener: Listener) -> None:
    """What was answered, and what could not be read at all, is in the metrics; no caller's text is."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        paths = ("/v1/coins", "/v1/coins", "/v1/entries/1", "/v1/secret")
        await wire.send(b"".join(listener.head("GET", path) for path in paths) + listener.head("GET", "/metrics"))
        *_, metrics = [await wire.answer() for _ in range(5)]
        text = metrics.body.decode()
        for path, status, count in (("/v1/coins", 200, 2), ("/v1/entries/{seq}", 200, 1), ("other", 404, 1)):
            line = f'spotledger_operator_requests_total{{method="GET",path="{path}",status="{status}"}} {count}.0'
            assert line in text.splitlines()
        assert "secret" not in text
        await wire.send(b"\x00\r\n\r\n")
        assert (await wire.answer()).status == 400
        assert 'method="other",path="other",status="400"' in listener.api.app.metrics.text().decode()

    listener.run(talk)


def test_what_follows_the_last_request_is_passed_over(listener: Listener) -> None:
    """After a request with Connection: close nothing more is read or executed, whatever the client sends."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        await wire.send(listener.post("last", DEPOSIT, "Connection: close") + listener.post("later") + b"\x00")
        said = await wire.answer()
        assert (said.status, said.headers["connection"]) == (200, "close")
        assert await wire.ended() == b""
        assert listener.api.seq == 9

    assert listener.run(talk)


def test_headers_after_a_body_are_no_headers(listener: Listener) -> None:
    """What comes behind the chunks of a body can neither give a token nor a key; without an end it is refused."""

    async def talk(listener: Listener) -> None:
        wire = await listener.connect()
        body = b"%x\r\n%b\r\n0\r\n" % (len(DEPOSIT), DEPOSIT)
        chunked = b"Transfer-Encoding: chunked\r\n"
        head = b"POST /v1/deposits HTTP/1.1\r\nHost: x\r\n"
        token = f"Authorization: Bearer {listener.api.token}\r\n".encode()
        await wire.send(head + chunked + b"\r\n" + body + token + b"Idempotency-Key: k\r\n\r\n")
        assert (await wire.answer()).status == 401
        await wire.send(head + chunked + token + b"\r\n" + body + b"Idempotency-Key: k\r\n\r\n")
        assert (await wire.answer()).status == 422
        await wire.send(head + chunked + token + b"Idempotency-Key: k\r\n\r\n" + body + b"Idempotency-Key: l\r\n\r\n")
        assert (await wire.answer()).json["entry"]["key"] == "k"
        await wire.send(head + chunked + token + b"Idempotency-Key: m\r\n\r\n" + body + b"X: ")
        for _ in range(5):
            await asyncio.sleep(0.01)
            await wire.send(b"y" * 50_000)
        assert (await wire.answer()).status == 400
        assert listener.api.seq == 9

    listener.run(talk)


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
