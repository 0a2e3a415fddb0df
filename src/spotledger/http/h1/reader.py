"""
From bytes to requests, without I/O: heads, and the bodies that they announce.

Whatever the cuts between the pieces that arrive, the requests are the same.
"""

from __future__ import annotations

import re
from typing import Final

from spotledger.http.h1.head import CHUNKED, HEAD_END, Head, HeadParser
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import BadRequest

#: The line before a chunk: its length and extensions, which mean nothing here.
CHUNK_LINE_BYTES: Final = 256
#: Chunks that are read before others may run.
CHUNKS_AT_ONCE: Final = 64

_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*")
_NOT_TRAILERS: Final = frozenset({b"content-length", b"transfer-encoding", b"host"})
#: What a method can begin with.
_FIRST: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class RequestReader:
    """
    Reads the requests of one connection.

    Give it what arrives with :meth:`receive`. Then :meth:`head` returns the next head, and after a head with a body
    :meth:`body` its pieces until :attr:`in_body` is False. After a BadRequest nothing more may be read.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._heads = HeadParser(limits.headers)
        self._data = b""
        self._start = 0
        self._consumed = 0
        #: Up to where the end of the head was looked for in vain.
        self._scanned = 0
        self._follows_body = False
        #: Whether the body of the last head is not complete yet.
        self.in_body = False
        self._is_chunked = False
        #: What is missing of the body, or of the chunk.
        self._missing = 0
        self._state = _SIZE
        self._trailer_bytes = 0

    def receive(self, data: bytes) -> None:
        """Take *data* from the connection."""
        if self._start == len(self._data):
            self._data = data
            self._scanned = 0
        else:
            self._data = self._data[self._start :] + data
            self._scanned = max(self._scanned - self._start, 0)
        self._consumed += self._start
        self._start = 0

    def release(self) -> None:
        """Keep no bytes that were read."""
        if not self.has_data:
            self._consumed += self._start
            self._data, self._start, self._scanned = b"", 0, 0

    @property
    def has_data(self) -> bool:
        """Whether bytes are left that were not read."""
        return self._start < len(self._data)

    @property
    def unread(self) -> int:
        """How many bytes are left that were not read."""
        return len(self._data) - self._start

    @property
    def consumed(self) -> int:
        """How many bytes were read."""
        return self._consumed + self._start

    def head(self) -> Head | None:
        """
        Return the next head, or None while it is not complete.

        Raises:
            BadRequest: It is malformed, ambiguous or too large.
        """
        data, start = self._data, self._start
        if start == len(data):
            return None
        if self._follows_body and data.startswith(b"\r\n", start):
            start = self._start = start + 2  # some clients end a body with an empty line
            self._follows_body = False
        if start < len(data) and data[start] not in _FIRST and data[start:] != b"\r":
            raise BadRequest("The request does not begin with a method; one such as GET would pass.")
        seen = self._scanned - 3
        end = data.find(HEAD_END, seen if seen > start else start) + 4
        if (len(data) if end < 4 else end) - start > self._limits.head_bytes:
            raise BadRequest(
                f"The head of the request is longer than {self._limits.head_bytes} bytes; a shorter one would pass."
            )
        if end < 4:
            self._scanned = len(data)
            return None
        head = self._heads.parse(data[start:end])
        self._start = self._scanned = end
        self._follows_body = self.in_body = head.length != 0
        if self.in_body:
            self._begin_body(head.length)
        return head

    def _begin_body(self, length: int) -> None:
        self._is_chunked = length == CHUNKED
        self._missing = 0 if self._is_chunked else length
        self._state = _SIZE
        self._trailer_bytes = 0

    def short_body(self, limit: int) -> bytes | None:
        """Return the whole body if it is here, has a length, and is no longer than *limit* bytes."""
        start, end = self._start, self._start + self._missing
        if not start < end <= len(self._data) or end - start > limit or self._is_chunked:
            return None
        self.in_body = False
        self._start = end
        return self._data[start:end]

    def body(self) -> bytes:
        """
        Return the next piece of the body; an empty one if nothing more has arrived, or if the body has ended.

        Raises:
            BadRequest: A chunk is malformed.
        """
        if self._is_chunked:
            return self._chunks()
        piece = self._take(self._missing)
        self._missing -= len(piece)
        self.in_body = self._missing > 0
        return piece

    def _take(self, most: int) -> bytes:
        piece = self._data[self._start : self._start + most]
        self._start += len(piece)
        return piece

    def _chunks(self) -> bytes:
        """Return what the next chunks hold, a bounded number of them."""
        pieces: list[bytes] = []
        for _ in range(CHUNKS_AT_ONCE):
            if self._missing:
                piece = self._take(self._missing)
                self._missing -= len(piece)
                pieces.append(piece)
                if self._missing:
                    break
                self._state = _CHUNK_END
            line = self._line()
            if line is None or self._is_last(line):
                break
        return b"".join(pieces)

    def _is_last(self, line: bytes) -> bool:
        """Read a line between the chunks; return whether the body has ended with it."""
        if self._state is _CHUNK_END:
            if line:
                raise BadRequest("A chunk of the body is longer than announced; one of that length would pass.")
            self._state = _SIZE
        elif self._state is _SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise BadRequest("The length of a chunk of the body is malformed; hexadecimal digits would pass.")
            self._missing = int(match[1], 16)
            if not self._missing:
                self._state = _TRAILERS
        elif line:
            self._check_trailer(line)
        else:
            self.in_body = False
            return True
        return False

    def _check_trailer(self, line: bytes) -> None:
        """Check a trailer, which means nothing here."""
        self._trailer_bytes += len(line) + 2
        match = _TRAILER.fullmatch(line)
        if match is None or match[1].lower() in _NOT_TRAILERS or self._trailer_bytes > self._limits.head_bytes:
            raise BadRequest("What follows the last chunk is malformed or too long; an empty line would pass.")

    def _line(self) -> bytes | None:
        """Return the next line without its end, or None while it is not complete."""
        most = self._limits.head_bytes if self._state is _TRAILERS else CHUNK_LINE_BYTES
        end = self._data.find(b"\r\n", self._start, self._start + most + 2)
        if end < 0:
            if len(self._data) - self._start >= most + 2:
                raise BadRequest("A line between the chunks of the body is too long; a shorter one would pass.")
            return None
        line = self._data[self._start : end]
        self._start = end + 2
        return line


#: What the next line of a chunked body is.
_SIZE: Final = "size"
_CHUNK_END: Final = "chunk end"
_TRAILERS: Final = "trailers"
