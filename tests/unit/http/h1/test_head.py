"""Heads of requests: what each says, and that what came before on the connection does not change that."""

from __future__ import annotations

import pytest

from spotledger.http.h1.head import CHUNKED, Head, HeadParser
from spotledger.http.h1.request import BadRequest

HEADERS_LIMIT = 5


def parsed(line: bytes, *headers: bytes, parser: HeadParser | None = None) -> Head:
    """Return the head with this first line and these headers."""
    return (parser or HeadParser(HEADERS_LIMIT)).parse(b"\r\n".join([line, *headers, b"", b""]))


def refusal(line: bytes, *headers: bytes) -> str:
    """Return why this head is refused; every reason says what was found and what would pass."""
    with pytest.raises(BadRequest) as refused:
        parsed(line, *headers)
    reason = refused.value.reason
    assert reason[0].isupper()
    assert reason.endswith(" would pass.")
    return reason


@pytest.mark.parametrize(
    "method",
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get", "M-SEARCH", "x" * 32],
)
def test_method_is_the_one_that_was_sent(method: str) -> None:
    """Also one that the parser does not know; its headers and its body are framed like those of the others."""
    head = parsed(method.encode() + b" /a HTTP/1.1", b"Host: x", b"Content-Length: 7")
    assert (head.line.method, head.line.target, head.length) == (method, b"/a", 7)
    assert head.headers == [(b"host", b"x"), (b"content-length", b"7")]


@pytest.mark.parametrize("method", [b"x" * 33, b"G{T", b"", b"(GET)"])
def test_what_is_no_method_is_refused(method: bytes) -> None:
    """A method is a token of at most 32 characters."""
    assert "does not begin with a method" in refusal(method + b" /a HTTP/1.1", b"Host: x")


@pytest.mark.parametrize("target", [b"/", b"/a?b#c", b"//", b"http://x/a", b"HTTPS://x", b"http://[::1]:8/a?b"])
def test_target_is_a_path_or_the_form_for_proxies(target: bytes) -> None:
    """It is passed on as it was sent."""
    assert parsed(b"GET " + target + b" HTTP/1.1", b"Host: x").line.target == target


@pytest.mark.parametrize("target", [b"a", b"*", b"", b"ftp://x/a", b"http://", b"http:///a", b"x:80"])
def test_target_of_another_form_is_refused(target: bytes) -> None:
    """Only OPTIONS may name the whole server, and only CONNECT a host and its port."""
    assert "target of the request" in refusal(b"GET " + target + b" HTTP/1.1", b"Host: x")


def test_target_of_options_and_connect_has_its_own_form() -> None:
    """The form of each is refused for any other method, and beyond ASCII it is refused for these, too."""
    assert parsed(b"OPTIONS * HTTP/1.1", b"Host: x").line.target == b"*"
    assert parsed(b"CONNECT x:80 HTTP/1.1", b"Host: x").line.target == b"x:80"
    for line in (
        b"OPTIONS x:80 HTTP/1.1",
        b"OPTIONS ** HTTP/1.1",
    ):
        assert "target of the request" in refusal(line, b"Host: x")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a", "/a", ""),
        (b"/a?b=c", "/a", "b=c"),
        (b"/a?b?c", "/a", "b?c"),
        (b"/a%20b%2Fc?d=%20", "/a b/c", "d=%20"),
        (b"/%ff", "/\ufffd", ""),
        (b"/a#b", "/a", ""),
        (b"/a#b?c", "/a", ""),
        (b"/a?b#c", "/a", "b"),
        (b"/a?b#c?d#e", "/a", "b"),
        (b"http://host/a?b", "/a", "b"),
        (b"HTTP://host:80/a/b", "/a/b", ""),
        (b"http://host", "/", ""),
        (b"http://host?b", "/", "b"),
        (b"http://host/a://b/c", "/a://b/c", ""),
        (b"/x?http://host/a", "/x", "http://host/a"),
        (b"/http://host/a", "/http://host/a", ""),
        (b"*", "*", ""),
    ],
)
def test_target_is_cut_into_path_and_query(target: bytes, path: str, query: str) -> None:
    """The path is decoded, the query is not; a fragment and the form for proxies are taken off."""
    line = parsed(b"OPTIONS " + target + b" HTTP/1.1", b"Host: x").line
    assert (line.target, line.path, line.query) == (target, path, query)


@pytest.mark.parametrize(
    "line",
    [
        b"GET  / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\x80 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b" GET / HTTP/1.1",
    ],
)
def test_first_line_has_two_blanks_and_visible_characters(line: bytes) -> None:
    """One blank on each side of the target, and nothing beyond ASCII."""
    assert "control character or a blank too many" in refusal(line, b"Host: x")


@pytest.mark.parametrize("version", [b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.10", b"", b"HTTP/0.9"])
def test_version_is_1_1_or_1_0(version: bytes) -> None:
    """Any other one is refused; the older one is known as such."""
    assert "HTTP/1.1 or HTTP/1.0" in refusal(b"GET / " + version, b"Host: x")
    assert parsed(b"GET / HTTP/1.0", b"Host: x").line.is_http_1_0
    assert not parsed(b"GET / HTTP/1.1", b"Host: x").line.is_http_1_0


def test_headers_up_to_their_limit_pass() -> None:
    """As many as the limit, and not one more; the refusal names the limit."""
    host, other = b"Host: x", b"A: b"
    assert len(parsed(b"GET / HTTP/1.1", host, *[other] * (HEADERS_LIMIT - 1)).headers) == HEADERS_LIMIT
    assert f"more than {HEADERS_LIMIT} headers" in refusal(b"GET / HTTP/1.1", host, *[other] * HEADERS_LIMIT)


@pytest.mark.parametrize(
    "header",
    [
        b"A: \x00",
        b"A: \x1f",
        b"A: \x7f",
        b"A: \x0b",
        b"A: b\rc",
        b"A: b\nB: c",
        b"A: b\n",
        b"A: b\r\r",
        b"A: b\n\r",
        b"\r",
    ],
)
def test_control_character_in_a_head_is_refused(header: bytes) -> None:
    """A tabulator may be in a value; CR and LF are at its end only."""
    assert "A header is malformed or has a control character" in refusal(b"GET / HTTP/1.1", b"Host: x", header)
    assert parsed(b"GET / HTTP/1.1", b"Host: x", b"A:\tb\tc ").headers[1] == (b"a", b"b\tc")
    assert parsed(b"GET / HTTP/1.1", b"Host: x", b"A: \x80\xff").headers[1] == (b"a", b"\x80\xff")
    assert parsed(b"GET / HTTP/1.1", b"Host: x", b"A: \tX bX\t ").headers[1] == (b"a", b"X bX")


@pytest.mark.parametrize("header", [b"A", b": b", b"A : b", b" A: b", b"A(: b", b"A\x80: b"])
def test_header_without_a_name_of_its_own_is_refused(header: bytes) -> None:
    """A header is a name, a colon without a blank before it, and text."""
    assert "A header is malformed" in refusal(b"GET / HTTP/1.1", b"Host: x", header)


@pytest.mark.parametrize("host", [b"x", b"", b"x.example:8080", b"[::1]:80", b"192.0.2.1", b"a_b~c", b"%41"])
def test_host_is_a_name_or_an_address(host: bytes) -> None:
    """With or without a port; an empty one stands for a target without a host."""
    assert parsed(b"GET / HTTP/1.1", b"HOST: " + host).headers == [(b"host", host)]


@pytest.mark.parametrize("host", [b"x/y", b"me@x", b"x y", b"x?", b"x#y", b"x\\y", b'"x"', b"x\x80"])
def test_host_of_another_form_is_refused(host: bytes) -> None:
    """What could be read as a path or as credentials is no host."""
    assert "Host is malformed" in refusal(b"GET / HTTP/1.1", b"Host: " + host)


def test_host_is_given_once() -> None:
    """HTTP/1.1 needs it; HTTP/1.0 may go without."""
    assert "Host is missing" in refusal(b"GET / HTTP/1.1")
    for version in (b"HTTP/1.1", b"HTTP/1.0"):
        assert "given twice" in refusal(b"GET / " + version, b"Host: x", b"host: x")
        assert "given twice" in refusal(b"GET / " + version, b"Host: x", b"host: x", b"HOST: x")
    assert parsed(b"GET / HTTP/1.0").headers == []


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ((), 0),
        ((b"Content-Length: 0",), 0),
        ((b"content-length: 12",), 12),
        ((b"Content-Length: 007",), 7),
        ((b"Content-Length: " + b"9" * 18,), int("9" * 18)),
        ((b"Transfer-Encoding: chunked",), CHUNKED),
        ((b"transfer-encoding: CHUNKED",), CHUNKED),
    ],
)
def test_length_of_a_body_is_the_one_that_is_announced(headers: tuple[bytes, ...], length: int) -> None:
    """A number, or that it comes in chunks; none without either."""
    assert parsed(b"POST / HTTP/1.1", b"Host: x", *headers).length == length


@pytest.mark.parametrize("value", [b"", b"-1", b"+1", b"1, 1", b"0x1", b"1 1", b"9" * 19, b"\xb2", b"1.0", b"one"])
def test_length_that_is_no_number_is_refused(value: bytes) -> None:
    """Up to 18 digits pass."""
    reason = refusal(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: " + value)
    assert "Content-Length is malformed" in reason


def test_body_has_one_length() -> None:
    """Two that are equal are refused, too; no coding but chunked is known, and not by HTTP/1.0."""
    start, length, chunked = b"POST / HTTP/1.1", b"Content-Length: 1", b"Transfer-Encoding: chunked"
    for headers in ((length, length), (length, chunked), (chunked, length), (b"Content-Length: 0", chunked)):
        reason = refusal(start, b"Host: x", *headers)
        assert "length of the body is given twice" in reason
    for coding in (b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"", b"xchunked"):
        reason = refusal(start, b"Host: x", b"Transfer-Encoding: " + coding)
        assert "not chunked alone" in reason
    reason = refusal(start, b"Host: x", chunked, chunked)
    assert "not chunked alone" in reason
    assert "not known to HTTP/1.0" in refusal(b"POST / HTTP/1.0", b"Host: x", chunked)


@pytest.mark.parametrize(
    ("version", "value", "offered"),
    [
        (b"1.1", b"100-continue", True),
        (b"1.1", b"100-CONTINUE", True),
        (b"1.0", b"100-continue", False),
        (b"1.1", b"200-ok", False),
        (b"1.1", b"", False),
    ],
)
def test_client_that_waits_is_known(version: bytes, value: bytes, offered: bool) -> None:
    """Only HTTP/1.1 has clients that wait with a body until it is asked for."""
    line = b"POST / HTTP/" + version
    assert parsed(line, b"Host: x", b"Content-Length: 1", b"Expect: " + value).is_offered is offered
    assert not parsed(line, b"Host: x", b"Content-Length: 1").is_offered


@pytest.mark.parametrize(
    ("version", "headers", "stays_open"),
    [
        (b"1.1", (), True),
        (b"1.1", (b"Connection: close",), False),
        (b"1.1", (b"Connection: CLOSE",), False),
        (b"1.1", (b"Connection: a ,\tclose\t",), False),
        (b"1.1", (b"Connection: a,close",), False),
        (b"1.1", (b"Connection: closed",), True),
        (b"1.1", (b"Connection: upgrade",), True),
        (b"1.1", (b"Connection: close", b"Connection: keep-alive"), False),
        (b"1.1", (b"Connection: keep-alive", b"Connection: close"), False),
        (b"1.1", (b"Proxy-Connection: close",), True),
        (b"1.0", (), False),
        (b"1.0", (b"Connection: Keep-Alive",), True),
        (b"1.0", (b"Connection: a, keep-alive",), True),
        (b"1.0", (b"Proxy-Connection: keep-alive",), False),
        (b"1.0", (b"Connection: keep-alive, close",), False),
    ],
)
def test_connection_stays_open_as_the_client_asks(version: bytes, headers: tuple[bytes, ...], stays_open: bool) -> None:
    """HTTP/1.1 keeps it open unless told otherwise, HTTP/1.0 closes it."""
    assert parsed(b"GET / HTTP/" + version, b"Host: x", *headers).keep_alive is stays_open


@pytest.mark.parametrize(
    "before",
    [
        (b"GET / HTTP/1.1", b"Host: x"),
        (b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 5"),
        (b"POST / HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked"),
        (b"GET / HTTP/1.1", b"Host: x", b"Connection: close"),
        (b"GET / HTTP/1.1", b"Host: x", b"Proxy-Connection: close"),
        (b"GET / HTTP/1.0", b"Host: x", b"Connection: keep-alive"),
        (b"GET / HTTP/1.1", b"Host: x", b"Connection: upgrade", b"Upgrade: h2c"),
        (b"CONNECT x:80 HTTP/1.1", b"Host: x"),
        (b"BREW / HTTP/1.1", b"Host: x"),
    ],
    ids=lambda before: b" ".join(before).decode(),
)
def test_head_means_the_same_whatever_came_before(before: tuple[bytes, ...]) -> None:
    """The parser is as new after each head: another one, and the same with another target, mean what they do alone."""
    heads = (
        (b"GET /b HTTP/1.1", b"Host: y"),
        (b"POST /b HTTP/1.1", b"Host: y", b"Content-Length: 3"),
        (b"POST /b HTTP/1.1", b"Host: x", b"Content-Length: 5"),
        (b"GET /b HTTP/1.0", *before[1:]),
        (b"GET /b HTTP/1.1", *before[1:]),
        (b"BREW /b HTTP/1.1", *before[1:]),
        (before[0].replace(b" /", b" /b"), *before[1:]),
    )
    for head in heads:
        parser = HeadParser(HEADERS_LIMIT)
        parsed(*before, parser=parser)
        if head[0].endswith(b"1.0") and b"Transfer-Encoding: chunked" in head:
            continue
        for _ in range(2):
            assert parsed(*head, parser=parser) == parsed(*head)


#: Heads with as many lines, which differ in one or two of them.
NEIGHBOURS = [
    (b"Host: x", b"Content-Length: 5", b"Expect: 100-continue"),
    (b"Host: x", b"Content-Length: 0", b"Expect: 100-continue"),
    (b"Host: x", b"content-length:  7 ", b"Expect: 100-continue"),
    (b"Host: x", b"Content-Length: 5", b"Expect: nothing"),
    (b"Host: x", b"Content-Length: 5", b"Connection: close"),
    (b"Host: x", b"Content-Length: 0", b"Connection: keep-alive"),
    (b"Host: x", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
    (b"Host: x", b"Transfer-Encoding: chunked", b"A: b"),
    (b"Host: x", b"A: b", b"Content-Length: 5"),
    (b"Host: x", b"A: b", b"C: d"),
    (b"Host: y", b"A: e", b"C: d"),
    (b"A: b", b"Host: x", b"C: d"),
    (b"A: b", b"C: d", b"E: f"),
    (b"Host: x", b"Host: x", b"C: d"),
    (b"Host: x", b"Content-Length: 5", b"Content-Length: 5"),
    (b"Host: x", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    (b"Host: x", b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    (b"Host: x", b"Content-Length: five", b"A: b"),
    (b"Host: x y", b"Content-Length: 5", b"A: b"),
    (b"Host: x", b"A b", b"C: d"),
]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("before", NEIGHBOURS, ids=lambda before: b", ".join(before).decode())
def test_lines_that_differ_from_those_of_the_head_before_are_read(before: tuple[bytes, ...], version: bytes) -> None:
    """Only they are, and what they say about the body and the connection counts as in a head of its own."""
    for after in NEIGHBOURS:
        parser = HeadParser(HEADERS_LIMIT)
        outcome(parser, b"POST /a HTTP/" + version, *before)
        line = b"POST /b HTTP/" + version
        alone = outcome(HeadParser(HEADERS_LIMIT), line, *after)
        assert [outcome(parser, line, *after) for _ in range(2)] == [alone] * 2, after


def outcome(parser: HeadParser, line: bytes, *headers: bytes) -> Head | str:
    """Return what *parser* reads, or why it refuses it."""
    try:
        return parsed(line, *headers, parser=parser)
    except BadRequest as refused:
        return refused.reason


@pytest.mark.parametrize("line", [b"GET a HTTP/1.1", b"GET /\x80 HTTP/1.1", b"GET /a b HTTP/1.1", b"G{T / HTTP/1.1"])
def test_first_line_is_checked_though_the_headers_are_those_of_the_head_before(line: bytes) -> None:
    """The short way for repeated headers leaves out no check of the first line."""
    parser = HeadParser(HEADERS_LIMIT)
    parsed(b"GET / HTTP/1.1", b"Host: x", parser=parser)
    with pytest.raises(BadRequest):
        parsed(line, b"Host: x", parser=parser)
    assert parsed(b"GET /b HTTP/1.1", b"Host: x").line.target == b"/b"
