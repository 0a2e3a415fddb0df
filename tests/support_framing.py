"""Bytes that are nearly requests, what the server's reader makes of them, and what h11, the judge, does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import h11
import httptools
from hypothesis import strategies as st

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.reader import RequestReader
from spotledger.http.h1.request import BadRequest

HOST = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST

REFUSED = {
    "no version": b"GET /x\r\n\r\n",
    "no version, with headers": b"GET /x\r\n" + HOST + b"\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": GET + b"\r\n",
    "two hosts": GET + HOST + HOST + b"\r\n",
    "host with a path": GET + b"Host: x/y\r\n\r\n",
    "host with a name": GET + b"Host: me@x\r\n\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, chunked": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two framings": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "endless length": POST + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n",
    "empty length": POST + b"Content-Length:\r\n\r\n",
    "folded header": GET + HOST + b"A: b\r\n c\r\n\r\n",
    "blank before the colon": GET + HOST + b"Content-Length : 3\r\n\r\nabc",
    "no colon": GET + HOST + b"A\r\n\r\n",
    "no name": GET + HOST + b": b\r\n\r\n",
    "lone LF": b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n",
    "LF in a header": GET + HOST + b"A: b\nContent-Length: 3\r\n\r\nabc",
    "CR in a header": GET + HOST + b"A: b\rc\r\n\r\n",
    "NUL in a header": GET + HOST + b"A: \0\r\n\r\n",
    "control character": GET + HOST + b"A: \x1b[0m\r\n\r\n",
    "empty line first": b"\r\n" + GET + HOST + b"\r\n",
    "blank in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "target beyond ASCII": b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "target that is no path": b"GET a HTTP/1.1\r\n" + HOST + b"\r\n",
    "star": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "tabulator": b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "no method": b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "odd method": b"G{T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "garbage": b"garbage\r\n\r\n",
    "many headers": GET + HOST + b"A: b\r\n" * 20 + b"\r\n",
    "long head": GET + HOST + b"A: " + b"b" * 2_000 + b"\r\n\r\n",
    "endless head": GET + HOST + b"A: " + b"b" * 2_000,
}


class Found(NamedTuple):
    """One request."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def read_all(pieces: Sequence[bytes], limits: Limits) -> tuple[list[Found], str | None]:
    """Return the complete requests in *pieces*, and why what follows them is refused, if it is."""
    reader = RequestReader(limits)
    found: list[Found] = []
    head, body = None, b""
    for piece in pieces:
        reader.receive(piece)
        try:
            while True:
                before = reader.unread
                if reader.in_body:
                    body += reader.body()
                else:
                    head, body = reader.head(), b""
                if head is not None and not reader.in_body:
                    found.append(Found(head.line.method, head.line.target, _as_judged(head.headers), body))
                    if not head.keep_alive:
                        return found, None
                    head = None
                elif reader.unread == before:
                    break
        except BadRequest as problem:
            return found, problem.reason
    return found, None


def _as_judged(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return *headers* with the name of the coding in lower case, as h11 has it."""
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in headers]


def judged(sent: bytes, count: int) -> list[Found]:
    """Return the first *count* requests in *sent*, as h11 reads them."""
    judge = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    judge.receive_data(sent)
    found: list[Found] = []
    while len(found) < count:
        request = judge.next_event()
        assert isinstance(request, h11.Request)
        body = b""
        while not isinstance(event := judge.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            body += event.data
        found.append(Found(request.method.decode(), request.target, [*request.headers], body))
        if len(found) < count:
            judge = _after(judge, has_body=_has_body(request))
    return found


class Llhttp:
    """One request as llhttp reads it."""

    def __init__(self, sent: bytes) -> None:
        self.target = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(sent)
        except httptools.HttpParserUpgrade as upgrade:
            self.body = sent[upgrade.args[0] :]  # it leaves the rest to the other protocol, which is declined here
            self.is_complete = True
        self.method = parser.get_method().decode()

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.body:  # a trailer comes after the body
            self.headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.is_complete = True


def _has_body(request: h11.Request) -> bool:
    framing = {name: value for name, value in request.headers if name in (b"content-length", b"transfer-encoding")}
    return bool(framing) and set(framing.values()) != {b"0"}


def _after(judge: h11.Connection, *, has_body: bool) -> h11.Connection:
    """
    Return a judge for what follows a request.

    It is a new one, because h11 always closes after HTTP/1.0; and an empty line after a body is left out, which
    RFC 9112 (2.2) allows and h11 refuses.
    """
    rest, _ = judge.trailing_data
    if has_body:
        rest = rest.removeprefix(b"\r\n")
    following = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    following.receive_data(rest)
    return following


def cuts(sent: bytes) -> st.SearchStrategy[list[bytes]]:
    """Return *sent* in pieces."""

    def cut(places: list[int]) -> list[bytes]:
        edges = [0, *sorted(places), len(sent)]
        return [sent[start:end] for start, end in pairwise(edges)]

    return st.lists(st.integers(0, len(sent)), max_size=12).map(cut)


_LINES = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"HEAD /%41 HTTP/1.0", b"PUT * HTTP/1.1", b"BREW /x HTTP/1.1"]
)
_HEADERS = st.sampled_from(
    [
        b"Host: x",
        b"Host:  [::1]:80 ",
        b"Content-Length: 5",
        b"Content-Length: 0",
        b"content-length:5",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding:\tCHUNKED",
        b"Transfer-Encoding: gzip, chunked",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Connection: upgrade",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"X-A: b, c ;\x80\xff",
        b"X-A:",
        b"A : b",
        b" folded",
    ]
)
_CHUNKS = st.sampled_from(
    [b"5\r\nabcde\r\n", b"1;a=b\r\nx\r\n", b"0A\r\n0123456789\r\n", b"00\r\n\r\n", b"0\r\nT: u\r\n\r\n"]
)
_BODIES = st.sampled_from([b"", b"abcde"]) | st.lists(_CHUNKS, max_size=3).map(b"".join).map(
    lambda all: all + b"0\r\n\r\n"
)
_NOISE = st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\t", b"\x0b", b"\x85", b"0\r\n", b","])


def _joined(line: bytes, headers: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join([line, *headers]) + b"\r\n\r\n" + body


_GOOD = st.sampled_from(
    [
        GET + HOST + b"\r\n",
        b"HEAD /a?b HTTP/1.1\r\nA: b\r\nHost: y\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        POST + b"Content-Length: 5\r\n\r\nabcde",
        POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nabcde\r\n",
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nabcde",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0B\r\nGET / HTTP/1\r\n0\r\nT: u\r\n\r\n",
    ]
)
_ANY = st.builds(_joined, _LINES, st.lists(_HEADERS, max_size=3).map(lambda headers: [b"Host: y", *headers]), _BODIES)
_ONE = _GOOD | _GOOD | _ANY


def requests() -> st.SearchStrategy[bytes]:
    """Return bytes that are requests, one after the other, or nearly so."""

    def mangled(parts: tuple[list[bytes], list[tuple[int, Any]]]) -> bytes:
        sent = bytearray(b"".join(parts[0]))
        for place, noise in parts[1]:
            at = place % (len(sent) + 1)
            sent[at : at + place % 3] = noise
        return bytes(sent)

    noise = st.lists(st.tuples(st.integers(0, 10_000), _NOISE | st.binary(max_size=2)), max_size=1)
    return st.tuples(st.lists(_ONE, min_size=1, max_size=4), noise).map(mangled)
