"""The public listener behind the real server: raw bytes, broken HTTP, slow and long bodies; it stays alive."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from support_public import BALANCE, KEY, NONCE, SECRET, Listening, parsed, service, signed_query

HOST = b"Host: localhost\r\n"
SHAPE = {"code", "info", "msg", "msgInfo"}


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """Run one server for all the tests here; the clock stands still."""
    folder = tmp_path_factory.mktemp("ledger")
    with (
        service(folder, asset_limit_per_second=0, account_limit_per_second=0, address_limit_per_minute=0) as made,
        Listening(made) as server,
    ):
        yield server


@pytest.fixture(autouse=True)
def alive(listening: Listening) -> Iterator[None]:
    """After every test the server still answers a signed request."""
    yield
    status, _, body = listening.get(f"{BALANCE}?{signed_query()}")
    assert (status, json.loads(body)["code"]) == (200, 200)


def refused_in_shape(answer: bytes, code: int) -> str:
    """Assert that *answer* is a refusal with *code* in the documented shape; return its text."""
    status, headers, body = parsed(answer)
    said = json.loads(body)
    assert (status, said.keys(), said["code"]) == (200, SHAPE, code)
    assert headers["content-type"] == "application/json"
    return str(said["info"])


def test_success_has_the_date_and_the_other_headers(listening: Listening) -> None:
    """R19: Date comes from the server, the rest from us; each header once."""
    answer = listening.send(f"GET {BALANCE}?{signed_query()} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    status, headers, body = parsed(answer)
    assert status == 200
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])
    assert headers["cache-control"] == "no-store"
    assert headers["content-length"] == str(len(body))
    for name in (b"date", b"content-type", b"content-length", b"x-request-id", b"x-ledger-seq"):
        assert answer.lower().count(b"\r\n" + name + b":") == 1


def test_post_form_and_chunked_form_are_read(listening: Listening) -> None:
    """R1: a form comes with a length or in chunks."""
    form = signed_query().encode()
    whole = b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (BALANCE.encode(), HOST, len(form), form)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (form[:7], form[7:])) + b"0\r\n\r\n"
    chunked = b"POST %s HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n%s" % (BALANCE.encode(), HOST, chunks)
    for request in (whole, chunked):
        status, _, body = parsed(listening.send(request))
        assert (status, json.loads(body)["code"]) == (200, 200)


def test_get_with_parameters_in_a_body_too_is_refused(listening: Listening) -> None:
    """R1: parameters in both, over the wire."""
    request = f"GET {BALANCE}?{signed_query()} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na=1"
    refused_in_shape(listening.send(request.encode()), 400)


def test_pipelined_requests_are_answered_in_order(listening: Listening) -> None:
    """Requests that are sent before the answers come are answered one after the other."""
    paths = [
        f"{BALANCE}?{signed_query()}",
        "/nothing",
        f"{BALANCE}?{signed_query(nonce=1)}",
        "/trade/api/v1/getServerTime",
    ]
    received = listening.send(b"".join(f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n" for path in paths))
    assert re.findall(rb'"code":(\d+)', received) == [b"200", b"404", b"400", b"200"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO", "get"])
def test_other_methods_are_refused_in_shape(listening: Listening, method: str) -> None:
    """A method that no call takes has the documented answer."""
    request = f"{method} {BALANCE}?{signed_query()} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    refused_in_shape(listening.send(request.encode()), 404)


def test_head_and_connect_are_refused(listening: Listening) -> None:
    """HEAD has no body by HTTP; CONNECT has a true status, since a 200 would be an open tunnel."""
    assert listening.get(BALANCE, method="HEAD")[0] == 200
    assert listening.get("localhost:1", method="CONNECT")[0] == 404


def test_long_query_is_refused_in_shape(listening: Listening) -> None:
    """A query over 4 KiB has the documented answer, up to what the server reads of a request's head."""
    for size in (5_000, 50_000):
        status, _, body = listening.get(f"{BALANCE}?a={'x' * size}")
        assert (status, json.loads(body)["code"]) == (200, 400)


def test_long_body_is_refused_without_being_read(listening: Listening) -> None:
    """A body over 4 KiB is refused by its announced length, and in chunks as soon as it is over."""
    head = f"POST {BALANCE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    announced = (head + "Content-Length: 10000000000\r\n\r\n").encode()
    assert "longer" in refused_in_shape(listening.send(announced), 400)
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    with listening.connect() as connection:
        connection.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunk)
        assert b'"code":400' in connection.recv(65536)


def test_slow_body_is_given_up(listening: Listening) -> None:
    """A body that does not arrive in time is refused, and delays no other request."""
    with listening.connect() as slow:
        slow.sendall(f"POST {BALANCE} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\naccess".encode())
        assert listening.get(f"{BALANCE}?{signed_query()}")[0] == 200
        assert "was not complete" in refused_in_shape(slow.recv(65536), 400)


def test_slow_head_is_cut_off(listening: Listening) -> None:
    """A request whose head never ends is dropped by the server's own time limit, while others are answered."""
    with listening.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert listening.get(f"{BALANCE}?{signed_query()}")[0] == 200
        slow.settimeout(10)
        received = slow.recv(65536)
        assert received == b"" or received.startswith(b"HTTP/1.1 4")


def test_clients_that_go_away_do_no_harm(listening: Listening) -> None:
    """Connections that are reset in the middle of a request or before its answer leave nothing behind."""
    request = f"GET {BALANCE}?{signed_query()} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for part in (request, request[:40], b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc"):
        for _ in range(20):
            connection = listening.connect()
            connection.sendall(part)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.close()
    time.sleep(0.05)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"\0" * 1000,
        b"\r\n" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe?\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /x HTTP/1.1\r\nBad Header\r\n\r\n",
        b"GET /x HTTP/1.1\r\nA: \0\r\n\r\n",
        b"GET /x HTTP/1.1\r\n" + b"".join(b"h%d: 1\r\n" % n for n in range(500)) + b"\r\n",
        b"GET /x HTTP/1.1\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /?" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /x HTTP/1.1\r\nContent-Length: -3\r\n\r\nabcd",
        b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /x\r\n" + HOST + b"\r\n",
        b"GET /x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET /x HTTP/2.0\r\n" + HOST + b"\r\n",
        b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_broken_http_is_refused_in_shape(listening: Listening, request_bytes: bytes) -> None:
    """What is no HTTP/1.1, or could be read in two ways, gets status 400 and the documented form."""
    status, headers, body = parsed(listening.send(request_bytes))
    assert (status, headers["connection"], headers["content-type"]) == (400, "close", "application/json")
    said = json.loads(body)
    assert (said.keys(), said["code"]) == (SHAPE, 400)
    assert said["info"] == said["msg"] == said["msgInfo"]


@pytest.mark.parametrize("target", ["/%ff%fe", "/trade/api/v1/get%42alance/x", "//", "/..%2f..", "/%00", "/a b"[:2]])
def test_odd_paths_are_refused_in_shape(listening: Listening, target: str) -> None:
    """Paths that aren't UTF-8 after decoding, or lead elsewhere, are unknown paths."""
    assert json.loads(listening.get(target)[2])["code"] == 404


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_dropped(listening: Listening, data: st.DataObject) -> None:
    """A request with bytes changed, dropped and put in anywhere: an HTTP answer or a closed connection, no trace."""
    sent = bytearray(f"GET {BALANCE}?{signed_query()} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(sent) - 5))
        sent[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    answer = listening.send(bytes(sent), patience_s=0.5)
    assert answer == b"" or answer.startswith(b"HTTP/1.")
    assert b"Traceback" not in answer


def test_broken_chunks_are_refused_in_shape(listening: Listening) -> None:
    """A body that breaks off is refused, not read as what arrived of it."""
    request = f"POST {BALANCE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"
    with listening.connect() as connection:
        connection.sendall(request.encode())
        assert b'"code":400' in connection.recv(65536)


def test_many_headers_and_odd_header_values_are_answered(listening: Listening) -> None:
    """Ninety headers, header values that are no text, and repeated ones do no harm."""
    many = "".join(f"X-{n}: {n}\r\n" for n in range(90))
    status, _, body = listening.get(f"{BALANCE}?{signed_query()}", many)
    assert (status, json.loads(body)["code"]) == (200, 200)
    odd = b"Accept: \xff\r\nAccept: a\r\nAccept-Encoding: \xfe\r\nX-Forwarded-For: \xff, 1.2.3.4\r\n"
    request = f"GET {BALANCE}?{signed_query()} HTTP/1.1\r\nHost: x\r\n".encode() + odd + b"\r\n"
    assert b'"code":200' in listening.send(request)


def test_health_is_answered_on_this_listener_too(listening: Listening) -> None:
    """/healthz and /readyz are here as well."""
    assert listening.get("/healthz")[0] == 200
    assert listening.get("/readyz")[0] == 200


def test_server_writes_no_request_to_its_output(listening: Listening, capfd: pytest.CaptureFixture[str]) -> None:
    """R21: neither the server nor what is below it prints what was sent, broken requests included."""
    query = signed_query({"password": "hunter2"})
    for data in (f"GET {BALANCE}?{query} HTTP/1.1\r\n\r\n", f"GET {BALANCE}?{query}", f"BROKEN {query}\r\n\r\n"):
        listening.send(data.encode())
    written = "".join(capfd.readouterr())
    for hidden in (KEY, SECRET, "hunter2", query[-64:], str(NONCE)):
        assert hidden not in written
