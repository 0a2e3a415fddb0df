"""
The head of a request, read line by line.

Whatever passes here has one meaning for every other server: one version, one host, one framing. Tests hold it against
h11 and llhttp. Most clients repeat their headers, so a connection remembers the lines that it has read.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeVar
from urllib.parse import unquote

from spotledger.http.h1.request import BadRequest, Header

#: The length of a body in chunks, which is not known in advance.
CHUNKED: Final = -1
HEAD_END: Final = b"\r\n\r\n"

#: First lines, and headers, that a connection remembers, and the longest of them; and the longest headers as a whole.
KNOWN_LINES: Final = 16
KNOWN_LINE_BYTES: Final = 128
KNOWN_FIELDS_BYTES: Final = 2048

_VISIBLE: Final = bytes(range(33, 127))
#: A name and a value; the blanks around the value are not part of it.
_LINE: Final = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_TOKEN: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]{1,32}")
_HOST: Final = re.compile(rb"[-A-Za-z0-9._~!$&'()*+,;=:%\[\]]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_METHODS: Final = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
}
_SPECIAL: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"connection"})

V = TypeVar("V")


class RequestLine(NamedTuple):
    """The first line of a head; *path* is percent-decoded, *query* as sent."""

    method: str
    target: bytes
    path: str
    query: str
    is_http_1_0: bool


class Head(NamedTuple):
    """A request's head, and what it says about the body and the connection."""

    line: RequestLine
    #: In their order, names in lower case, values without blanks around them.
    headers: list[Header]
    keep_alive: bool
    #: The length of the body; ``CHUNKED`` if it comes in chunks.
    length: int
    #: Whether the client waits with a body until it is asked for it.
    is_offered: bool = False


class _Last(NamedTuple):
    """The last head without a body, and its headers as they came: most clients repeat them."""

    fields: bytes
    is_http_1_0: bool
    head: Head


class HeadParser:
    """Parses the heads of one connection, one after the other; *headers_limit* bounds the headers of each."""

    def __init__(self, headers_limit: int) -> None:
        self._headers_limit = headers_limit
        self._lines: dict[bytes, RequestLine] = {}
        self._known: dict[bytes, Header] = {}
        self._last: _Last | None = None

    def parse(self, head: bytes) -> Head:
        """
        Return the head whose bytes are *head*, up to the empty line and with it.

        Raises:
            BadRequest: It is not a head of HTTP/1.1 or HTTP/1.0, or it could be read in two ways.
        """
        end = head.index(b"\r\n")
        line = self._lines.get(head[:end]) or self._line(head[:end])
        fields = head[end:]
        last = self._last
        if last is not None and last.fields == fields and last.is_http_1_0 == line.is_http_1_0:
            return Head(line, last.head.headers, last.head.keep_alive, 0)
        found = _framed(line, self._headers(fields))
        is_kept = not found.length and len(fields) <= KNOWN_FIELDS_BYTES
        self._last = _Last(fields, line.is_http_1_0, found) if is_kept else None
        return found

    def _line(self, text: bytes) -> RequestLine:
        """Return the first line of a head."""
        name, _, rest = text.partition(b" ")
        target, _, version = rest.rpartition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise BadRequest("The first line does not end with HTTP/1.1 or HTTP/1.0; one of them would pass.")
        if text.translate(None, _VISIBLE) != b"  ":
            raise BadRequest("The first line has a control character or a blank too many; one without would pass.")
        method = _METHODS.get(name) or _other_method(name)
        if not target.startswith(b"/"):
            _check_target(target, method)
        line = RequestLine(method, target, *_parts_of(target), version == b"HTTP/1.0")
        if len(text) <= KNOWN_LINE_BYTES:
            _keep(self._lines, text, line)
        return line

    def _headers(self, fields: bytes) -> list[Header]:
        """Return the headers in *fields*, from the end of the first line to the empty line."""
        lines = fields[2:-4].split(b"\r\n") if len(fields) > 4 else []
        if len(lines) > self._headers_limit:
            raise BadRequest(f"The head has more than {self._headers_limit} headers; that many would pass.")
        known = self._known
        return [known.get(line) or self._header(line) for line in lines]

    def _header(self, line: bytes) -> Header:
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadRequest("A header is malformed or has a control character; a name, a colon and text would pass.")
        header = name, value = match[1].lower(), match[2].strip(b" \t")
        if name == b"host" and not _HOST.fullmatch(value):
            raise BadRequest("Host is malformed; a name or address, with or without a port, would pass.")
        if name == b"content-length" and not _LENGTH.fullmatch(value):
            raise BadRequest("Content-Length is malformed; one whole number would pass.")
        if len(line) <= KNOWN_LINE_BYTES:
            _keep(self._known, line, header)
        return header


def _keep(known: dict[bytes, V], line: bytes, value: V) -> None:
    """Remember what *line* is; forget the others when there are too many."""
    if len(known) >= KNOWN_LINES:
        known.clear()
    known[line] = value


def _framed(line: RequestLine, headers: list[Header]) -> Head:
    """Return the head, with what its headers say about the body and the connection."""
    is_http_1_0 = line.is_http_1_0
    hosts = lengths = length = 0
    keep_alive, is_last, coding, is_offered = not is_http_1_0, False, None, False
    for name, value in headers:
        if name not in _SPECIAL:
            continue
        if name == b"host":
            hosts += 1
        elif name == b"connection":
            options = {option.strip(b" \t") for option in value.lower().split(b",")}
            keep_alive, is_last = keep_alive or b"keep-alive" in options, is_last or b"close" in options
        elif name == b"expect":
            is_offered = value.lower() == b"100-continue" and not is_http_1_0
        elif name == b"content-length":
            lengths += 1
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
    return Head(line, headers, keep_alive and not is_last, length, is_offered and length != 0)


def _other_method(name: bytes) -> str:
    if not _TOKEN.fullmatch(name):
        raise BadRequest("The first line does not begin with a method; one such as GET would pass.")
    return name.decode("ascii")


def _check_target(target: bytes, method: str) -> None:
    """Refuse a target that does not begin with / and is no form for proxies either."""
    if method != "CONNECT" and not (target == b"*" and method == "OPTIONS") and not _ABSOLUTE.match(target):
        raise BadRequest("The target of the request is malformed; a path that begins with / would pass.")


def _parts_of(target: bytes) -> tuple[str, str]:
    """Return the percent-decoded path and the query of a request's target."""
    path, _, query = target.partition(b"#")[0].decode("ascii").partition("?")
    if "://" in path and not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]  # the form for proxies
    return unquote(path, errors="replace") if "%" in path else path, query
