"""The client of the operator API: what it sends, and what it makes of each kind of answer."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import httpx2
import pytest

from spotledger import errors
from spotledger.client import AsyncOperatorLedger, OperatorLedger
from spotledger.client.operator import core
from spotledger.client.operator.messages import Reply
from spotledger.client.problems import ERROR_OF_CODE

TOKEN = "token-0123456789abcdef"
Message = MutableMapping[str, Any]


class ScriptedApp:
    """Answer every call with one scripted answer, and keep what was asked."""

    def __init__(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        self.status = status
        self.body = body
        self.headers = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        self.scope: Message = {}
        self.received = b""

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        self.scope = scope
        more = True
        while more:
            message = await receive()
            self.received += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    def sent_header(self, name: str) -> str | None:
        for sent, value in self.scope["headers"]:
            if sent == name.encode():
                return str(value.decode())
        return None


def call(app: ScriptedApp, method: str = "GET", path: str = "/v1/coins", **arguments: Any) -> Reply:
    async def run() -> Reply:
        transport = httpx2.ASGITransport(app=app)
        async with AsyncOperatorLedger("http://operator", TOKEN, attempts=1, transport=transport) as client:
            return await client.call(method, path, **arguments)

    return asyncio.run(run())


def problem(code: str, status: int = 422, **members: Any) -> ScriptedApp:
    document = {"type": "about:blank", "title": "t", "status": status, "detail": "Because.", "code": code}
    body = json.dumps(document | members).encode()
    return ScriptedApp(status, body, content_type="application/problem+json")


def test_call_success_gives_status_headers_and_body() -> None:
    """A success comes back as its status, its headers in lower case and its decoded body."""
    app = ScriptedApp(201, b'{"seq": 7}', idempotency_replayed="true")
    status, headers, body = call(app)
    assert (status, body) == (201, {"seq": 7})
    assert headers["idempotency-replayed"] == "true"


def test_call_write_sends_token_key_query_and_json() -> None:
    """A write carries the token, the idempotency key, the query without what is None, and a JSON body."""
    app = ScriptedApp()
    body = {"customer": "alice", "amount": "100.50"}
    call(app, "POST", "/v1/deposits", body=body, key="k-1", params={"min_seq": 3, "coin": None})
    assert app.sent_header("authorization") == f"Bearer {TOKEN}"
    assert app.sent_header("idempotency-key") == "k-1"
    assert app.scope["query_string"] == b"min_seq=3"
    assert json.loads(app.received) == {"customer": "alice", "amount": "100.50"}
    assert body == {"customer": "alice", "amount": "100.50"}


def test_call_repeat_of_an_earlier_answer_is_marked() -> None:
    """A reply says whether the write was done before."""
    assert call(ScriptedApp(idempotency_replayed="true")).replayed
    assert not call(ScriptedApp()).replayed


def test_answers_are_given_to_the_hook_as_they_arrived() -> None:
    """Each answer's document reaches ``on_answer`` whole, with what the typed value leaves out."""
    documents: list[dict[str, Any]] = []
    document = {"seq": 1, "epoch": 1, "coins": [{"coin": "btc", "scale": 8, "newer": 1}], "newest": 2}

    async def run() -> None:
        transport = httpx2.ASGITransport(app=ScriptedApp(200, json.dumps(document).encode()))
        async with AsyncOperatorLedger("http://o", TOKEN, transport=transport, on_answer=documents.append) as ledger:
            assert (await ledger.coins())["btc"].scale == 8

    asyncio.run(run())
    assert documents == [document]


def test_call_success_without_body_gives_empty_dict() -> None:
    """An empty success, such as that of a DELETE, is an empty dict."""
    assert call(ScriptedApp(204, b""), "DELETE", "/v1/keys/k")[2] == {}


@pytest.mark.parametrize("code", sorted(ERROR_OF_CODE))
def test_call_problem_raises_class_of_its_code(code: str) -> None:
    """Every code of the tree comes back as its own class, with the detail as its message."""
    with pytest.raises(ERROR_OF_CODE[code]) as raised:
        call(problem(code))
    assert type(raised.value) is ERROR_OF_CODE[code]
    assert raised.value.message == "Because."


def test_call_kept_refusal_has_seq_replayed_and_details() -> None:
    """A kept refusal says where it is kept, that it was told before, and its facts."""
    app = problem("insufficient_available", seq=12, available="1.00")
    app.headers["idempotency-replayed"] = "true"
    with pytest.raises(errors.InsufficientAvailable) as raised:
        call(app)
    assert (raised.value.seq, raised.value.replayed) == (12, True)
    assert raised.value.details == {"available": "1.00"}


def test_call_busy_problem_carries_retry_after() -> None:
    """A busy answer says in its details how long to wait."""
    app = problem("store_busy", 503)
    app.headers["retry-after"] = "2"
    with pytest.raises(errors.StoreBusy) as raised:
        call(app)
    assert raised.value.details["retry_after_s"] == 2


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, errors.TokenRefused),
        (403, errors.ScopeMissing),
        (404, errors.NotFound),
        (409, errors.IdempotencyConflict),
        (422, errors.Refused),
        (500, errors.Unavailable),
    ],
)
def test_call_unknown_code_raises_by_status(status: int, expected: type[Exception]) -> None:
    """A code of a newer server is understood by its status."""
    with pytest.raises(expected):
        call(problem("a_code_of_tomorrow", status))


@pytest.mark.parametrize("code", ["transport_error", "setup_error", "protocol_error"])
def test_call_code_of_own_side_is_not_taken_from_answer(code: str) -> None:
    """No answer can make an error that only this side may raise."""
    with pytest.raises(errors.Refused) as raised:
        call(problem(code))
    assert type(raised.value) is errors.Refused


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"a":1,"a":2}'),
        (200, b'{"a":NaN}'),
        (200, b"\xff"),
        (200, b"[" * 100_000),
        (500, b"<html>"),
        (302, b""),
        (422, b"{}"),
        (422, b'{"code":400}'),
    ],
)
def test_call_undocumented_answer_raises_protocol_error(status: int, body: bytes) -> None:
    """What is neither a JSON object nor a problem with a code is a ProtocolError, with nothing chained to it."""
    with pytest.raises(errors.ProtocolError) as raised:
        call(ScriptedApp(status, body))
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, errors.LimitExceeded),
        (503, errors.Unavailable),
        (502, errors.TransportError),
        (504, errors.TransportError),
    ],
)
@pytest.mark.parametrize("body", [b"<html>", b"", b"{}", b'{"code":503}'])
def test_call_page_of_a_gateway_is_tried_again_with_the_same_key(
    status: int, expected: type[Exception], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway's answer may pass; whether a write was done is known after 429 and 503 only."""
    monkeypatch.setattr(core, "FIRST_PAUSE_S", 0.001)
    keys = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["idempotency-key"])
        return httpx2.Response(status, stream=httpx2.ByteStream(body), headers={"Retry-After": "0"})

    with OperatorLedger("http://o", TOKEN, attempts=3, transport=httpx2.MockTransport(handle)) as ledger:
        with pytest.raises(expected) as raised:
            ledger.deposit("a", "usdt", "1", key="k")
        assert type(raised.value) is expected
        assert str(status) in str(raised.value)
        assert raised.value.__context__ is None
    assert keys == ["k", "k", "k"]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(("retry_after", "calls"), [("1", 2), ("5", 2), ("6", 1), ("999999999", 1), ("soon", 2)])
def test_call_waits_as_long_as_a_gateway_asks_within_bounds(
    status: int, retry_after: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short Retry-After is waited for; a long one is told to the caller at once."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    sent = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        stream = httpx2.ByteStream(b"<html>")
        return httpx2.Response(status, stream=stream, headers={"Retry-After": retry_after})

    with OperatorLedger("http://o", TOKEN, attempts=2, transport=httpx2.MockTransport(handle)) as ledger:
        with pytest.raises((errors.Unavailable, errors.TransportError)) as raised:
            ledger.coins()
        assert len(sent) == calls
        if retry_after.isdigit():
            assert raised.value.details["retry_after_s"] == int(retry_after)
            assert waits in ([], [pytest.approx(int(retry_after))])


def test_feed_behind_a_gateway_without_servers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a gateway breaks the feed off like a lost connection."""
    monkeypatch.setattr(core, "FIRST_PAUSE_S", 0.001)
    entry = {
        "seq": 1,
        "kind": "d",
        "key": "k",
        "booked_ms": 1,
        "request": {},
        "postings": [],
        "epoch": 1,
        "actor": "library",
    }
    event = b"id: 1\ndata: " + json.dumps(entry).encode() + b"\n\n"
    answers = [(502, b"<html>"), (503, b""), (504, b"<html>"), (200, event)]

    def handle(request: httpx2.Request) -> httpx2.Response:
        status, body = answers.pop(0)
        return httpx2.Response(status, stream=httpx2.ByteStream(body))

    with OperatorLedger("http://o", TOKEN, transport=httpx2.MockTransport(handle)) as ledger:
        assert next(ledger.feed()).seq == 1


@pytest.fixture
def unused_port() -> Iterator[int]:
    """Give a port of this machine on which nothing answers, kept from others for the while."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def test_call_nobody_listening_raises_transport_error(unused_port: int, caplog: pytest.LogCaptureFixture) -> None:
    """Without an answer it is a TransportError, from which no path leads to the request or the token."""
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with AsyncOperatorLedger(f"http://127.0.0.1:{unused_port}", TOKEN, attempts=1) as client:
            await client.call("DELETE", "/v1/keys/11111111-2222-4333-8444-555555555555")

    with pytest.raises(errors.TransportError) as raised:
        asyncio.run(run())
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None
    for text in (str(raised.value), caplog.text):
        assert TOKEN not in text
        assert "11111111-2222" not in text


def test_call_logs_nothing_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """A call whose path names an access key leaves no line in the log of the HTTP library."""
    caplog.set_level(logging.DEBUG)
    call(ScriptedApp(), "DELETE", "/v1/keys/11111111-2222-4333-8444-555555555555")
    assert [record for record in caplog.records if record.name.startswith(("httpx2", "httpcore2"))] == []


def test_repr_hides_token() -> None:
    """The repr names the address and not the token."""
    assert repr(AsyncOperatorLedger("http://h:1/", TOKEN)) == "AsyncOperatorLedger('http://h:1')"


@pytest.mark.parametrize("path", ["v1/coins", "//evil/v1", "/v1/coins?x=1", "/v1/coins#x", ""])
def test_call_bad_path_raises_value_error(path: str) -> None:
    """A path that is not just a path of this server is misuse."""
    with pytest.raises(ValueError, match="path must begin"):
        call(ScriptedApp(), "GET", path)


@pytest.mark.parametrize("token", ["", "a b", "é", "a\nb"])
def test_client_bad_token_raises_value_error_without_it(token: str) -> None:
    """A token that no header can carry is refused, and not repeated."""
    with pytest.raises(ValueError, match=r"\Atoken must be printable ASCII without blanks\Z"):
        AsyncOperatorLedger("http://h", token)
