"""
The head of a request, read line by line.

Whatever passes here has one meaning for every other server: one version, one host, one framing. Tests hold it against
h11 and llhttp. Most clients repeat their headers, so a connection remembers its last head, and reads only the lines
that differ from it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from msgspec import Struct

from spotledger.http.h1.request import BadRequest, Header

#: The length of a body in chunks, which is not known in advance.
CHUNKED: Final = -1
HEAD_END: Final = b"\r\n\r\n"

#: First lines that a connection remembers, and the longest of them; and the longest headers as a whole.
KNOWN_LINES: Final = 16
KNOWN_LINE_BYTES: Final = 128
KNOWN_FIELDS_BYTES: Final = 2048

_VISIBLE: Final = bytes(range(33, 127))
_VERSIONS: Final = (b" HTTP/1.1", b" HTTP/1.0")
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


class RequestLine(Struct, frozen=True, gc=False):
    """The first line of a head; *path* is percent-decoded, *query* as sent."""

    method: str
    target: bytes
    path: str
    query: str
    is_http_1_0: bool


class Head(Struct, frozen=True, gc=False):
    """A request's head, and what it says about the body and the connection."""

    line: RequestLine
    #: In their order, names in lower case, values without blanks around them.
    headers: list[Header]
    keep_alive: bool
    #: The length of the body; ``CHUNKED`` if it comes in chunks.
    length: int
    #: Whether the client waits with a body until it is asked for it.
    is_offered: bool = False


class HeadParser:
    """Parses the heads of one connection, one after the other; *headers_limit* bounds the headers of each."""

    def __init__(self, headers_limit: int) -> None:
        self._headers_limit = headers_limit
        self._lines: dict[bytes, RequestLine] = {}
        #: The last head and its headers as they came, whole and line by line, unless they were long.
        self._last: Head | None = None
        self._last_fields = b""
        self._last_lines: list[bytes] = []

    def parse(self, head: bytes) -> Head:
        """
        Return the head whose bytes are *head*, up to the empty line and with it.

        Raises:
            BadRequest: It is not a head of HTTP/1.1 or HTTP/1.0, or it could be read in two ways.
        """
        end = head.index(b"\r\n")
        text, fields, last = head[:end], head[end:], self._last
        line = self._lines.get(text) or self._line(text)
        if last is None or last.line.is_http_1_0 != line.is_http_1_0:
            lines = self._split(fields)
            found = _framed(line, [_header(text) for text in lines])
        elif self._last_fields == fields:
            return Head(line, last.headers, last.keep_alive, last.length, last.is_offered)
        else:
            lines = self._split(fields)
            found = self._changed(line, lines, last)
        is_kept = len(fields) <= KNOWN_FIELDS_BYTES
        self._last, self._last_fields, self._last_lines = (found, fields, lines) if is_kept else (None, b"", [])
        return found

    def _changed(self, line: RequestLine, lines: list[bytes], last: Head) -> Head:
        """Return a head of which only the lines are read that differ from those of the *last* one."""
        if len(lines) != len(last.headers):
            return _framed(line, [_header(text) for text in lines])
        headers, is_framed, length = [], True, last.length
        for text, before, header in zip(lines, self._last_lines, last.headers, strict=True):
            if text != before:
                was = header[0]
                header = name, value = _header(text)
                if name == was == b"content-length" and length > 0:
                    length = int(value)
                elif name in _SPECIAL or was in _SPECIAL:
                    is_framed = False
            headers.append(header)
        if not is_framed:
            return _framed(line, headers)
        return Head(line, headers, last.keep_alive, length, last.is_offered and length != 0)

    def _split(self, fields: bytes) -> list[bytes]:
        """Return the lines in *fields*, from the end of the first line to the empty line."""
        lines = fields[2:-4].split(b"\r\n") if len(fields) > 4 else []
        if len(lines) > self._headers_limit:
            raise BadRequest(f"The head has more than {self._headers_limit} headers; that many would pass.")
        return lines

    def _line(self, text: bytes) -> RequestLine:
        """Return the first line of a head."""
        if not text.endswith(_VERSIONS):
            raise BadRequest("The first line does not end with HTTP/1.1 or HTTP/1.0; one of them would pass.")
        parts = text.split(b" ")
        if len(parts) != 3 or text.translate(None, _VISIBLE) != b"  ":
            raise BadRequest("The first line has a control character or a blank too many; one without would pass.")
        name, target, version = parts
        method = _METHODS.get(name) or _other_method(name)
        if not target.startswith(b"/"):
            _check_target(target, method)
        path, query = _parts_of(target)
        line = RequestLine(method, target, path, query, version == b"HTTP/1.0")
        if len(text) <= KNOWN_LINE_BYTES:
            if len(self._lines) >= KNOWN_LINES:
                self._lines.clear()
            self._lines[text] = line
        return line


def _header(line: bytes) -> Header:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadRequest("A header is malformed or has a control character; a name, a colon and text would pass.")
    header = name, value = match[1].lower(), match[2].strip(b" \t")
    if name == b"host" and not _HOST.fullmatch(value):
        raise BadRequest("Host is malformed; a name or address, with or without a port, would pass.")
    if name == b"content-length" and not _LENGTH.fullmatch(value):
        raise BadRequest("Content-Length is malformed; one whole number would pass.")
    return header


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
    text = target.decode("ascii")
    path, _, query = (text.partition("#")[0] if "#" in text else text).partition("?")
    if "://" in path and not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]  # the form for proxies
    return unquote(path, errors="replace") if "%" in path else path, query
