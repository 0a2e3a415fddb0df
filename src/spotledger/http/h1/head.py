"""
The head of a request: parsed by httptools (llhttp), after checks that are stricter than the parser's.

Whatever passes here has one meaning for every other server: one version, one host, one framing.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httptools

from spotledger.http.h1.request import BadRequest, Header

#: The length of a body in chunks, which is not known in advance.
CHUNKED: Final = -1
HEAD_END: Final = b"\r\n\r\n"

#: Control characters but the tabulator, which may be in a value, and CR and LF, which are counted.
_CONTROLS: Final = bytes({*range(32), 127} - {9, 10, 13})
_VISIBLE: Final = bytes(range(33, 127))
_TOKEN: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]{1,32}")
_HOST: Final = re.compile(rb"[-A-Za-z0-9._~!$&'()*+,;=:%\[\]]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
#: The methods that llhttp knows too; it is told that any other one is POST, which has the same framing.
_METHODS: Final = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
}
_CONNECTION: Final = (b"connection", b"proxy-connection")
_SPECIAL: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", *_CONNECTION})


class Head(NamedTuple):
    """A request's head, and what it says about the body and the connection."""

    method: str
    target: bytes
    #: In their order, names in lower case, values without blanks around them.
    headers: list[Header]
    is_http_1_0: bool
    keep_alive: bool
    #: The length of the body; ``CHUNKED`` if it comes in chunks.
    length: int
    #: Whether the client waits with the body until it is asked for it.
    is_offered: bool = False


class _Last(NamedTuple):
    """The last head without a body, and its headers as they came: most clients repeat them."""

    fields: bytes
    version: bytes
    head: Head


class HeadParser:
    """Parses heads, one after the other; *headers_limit* bounds the headers of each."""

    def __init__(self, headers_limit: int) -> None:
        self._headers_limit = headers_limit
        self._headers: list[Header] = []
        self._parser = httptools.HttpRequestParser(self)
        self._last: _Last | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header from the parser."""
        self._headers.append((name.lower(), value.strip(b" \t")))

    def parse(self, head: bytes) -> Head:
        """
        Return the head whose bytes are *head*, up to the empty line and with it.

        Raises:
            BadRequest: It is not a head of HTTP/1.1 or HTTP/1.0, or it could be read in two ways.
        """
        line_end = head.index(b"\r\n")
        line = head[:line_end]
        name, _, rest = line.partition(b" ")
        target, _, version = rest.rpartition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise BadRequest("The first line does not end with HTTP/1.1 or HTTP/1.0; one of them would pass.")
        method = _METHODS.get(name)
        fields = head[line_end:]
        last = self._last
        is_repeated = last is not None and last.fields == fields and last.version == version and method is not None
        # The parser takes any visible character in a path, so nothing is left that it would look at.
        if is_repeated and target.startswith(b"/") and line.translate(None, _VISIBLE) == b"  ":
            assert last is not None and method is not None  # noqa: S101, PT018
            return Head(method, target, last.head.headers, last.head.is_http_1_0, last.head.keep_alive, 0)
        lines = head.count(b"\n")
        if len(head.translate(None, _CONTROLS)) != len(head) or not lines == head.count(b"\r\n") == head.count(b"\r"):
            raise BadRequest("The head has a control character or a lone CR or LF; one without would pass.")
        if lines - 2 > self._headers_limit:
            raise BadRequest(f"The head has more than {self._headers_limit} headers; that many would pass.")
        if method is None:
            method, head = _other_method(name), b"POST" + head[len(name) :]
        _check_target(target, method)
        found = self._framed(method, target, self._parsed(head), version == b"HTTP/1.0")
        self._last = None if found.length else _Last(fields, version, found)
        return found

    def _parsed(self, head: bytes) -> list[Header]:
        """Return the headers, as httptools reads them."""
        headers: list[Header] = []
        self._headers = headers
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)  # every offer of another protocol is declined
        except httptools.HttpParserError:
            raise BadRequest("The request is not HTTP/1.1; one in its form would pass.") from None
        return headers

    def _framed(self, method: str, target: bytes, headers: list[Header], is_http_1_0: bool) -> Head:
        hosts = lengths = 0
        keep_alive, has_options, length, coding, is_offered = not is_http_1_0, False, 0, None, False
        for name, value in headers:
            if name not in _SPECIAL:
                continue
            if name == b"host":
                hosts += 1
                _check_host(value)
            elif name in _CONNECTION:
                has_options = True
                if name == b"connection":
                    keep_alive = _keeps_alive(value, keep_alive)
            elif name == b"expect":
                is_offered = value.lower() == b"100-continue" and not is_http_1_0
            elif name == b"content-length":
                lengths += 1
                if not _LENGTH.fullmatch(value):
                    raise BadRequest("Content-Length is malformed; one whole number would pass.")
                length = int(value)
            elif coding is not None or value.lower() != b"chunked":
                raise BadRequest("Transfer-Encoding is not chunked alone; that would pass.")
            else:
                coding = value
        if hosts > 1 or (not hosts and not is_http_1_0):
            raise BadRequest("Host is missing or given twice; once would pass.")
        if lengths + (coding is not None) > 1:
            raise BadRequest("The length of the body is given twice; once would pass.")
        if coding is not None:
            if is_http_1_0:
                raise BadRequest("Transfer-Encoding is not known to HTTP/1.0; Content-Length would pass.")
            length = CHUNKED
        if length or has_options:
            self._parser = httptools.HttpRequestParser(self)  # the old one may wait for a body, or for the end
        return Head(method, target, headers, is_http_1_0, keep_alive, length, is_offered)


def _other_method(name: bytes) -> str:
    if not _TOKEN.fullmatch(name):
        raise BadRequest("The first line does not begin with a method; one such as GET would pass.")
    return name.decode("ascii")


def _check_host(value: bytes) -> None:
    if not _HOST.fullmatch(value):
        raise BadRequest("Host is malformed; a name or address, with or without a port, would pass.")


def _check_target(target: bytes, method: str) -> None:
    """Refuse a target that is neither a path nor a form for proxies."""
    if target.isascii() and b" " not in target:
        if target.startswith(b"/") or method == "CONNECT" or (target == b"*" and method == "OPTIONS"):
            return
        if _ABSOLUTE.match(target):
            return
    raise BadRequest("The target of the request is malformed; a path that begins with / would pass.")


def _keeps_alive(value: bytes, keep_alive: bool) -> bool:
    """Return whether the connection stays open after a header ``Connection``; *keep_alive* is what counts before it."""
    options = {option.strip(b" \t") for option in value.lower().split(b",")}
    return b"close" not in options and (keep_alive or b"keep-alive" in options)
