"""
The journal as server-sent events: every entry once and in order, from wherever a reader left off.

Each stream reads a small page of the journal, sends it, and goes on once the reader has taken it. So a slow reader
delays no one else, and nothing but its position is kept for it.

The token that opened a stream is checked again all the time: the stream ends within a second of its revocation or
expiry, and when this node can no longer know of revocations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from spotledger.errors import InvalidRequest, LedgerCorrupt, SpotledgerError, Unavailable
from spotledger.http.h1.request import Reply, Request, StreamWriter
from spotledger.http.operator.answers import CoinTexts, entry_answer
from spotledger.http.operator.calls import LEDGER_READ, TokenCheck, position_in, query_of
from spotledger.ledger.ledger import Ledger

EVENT_STREAM_MEDIA_TYPE: Final = "text/event-stream"
#: Entries that are read and sent at a time.
FEED_PIECE_ENTRIES: Final = 100
#: How long a stream waits for new entries before it looks again.
FEED_PAUSE_SECONDS: Final = 0.02
#: After this time without an entry a comment is sent, so that no proxy takes the connection for dead.
HEARTBEAT_SECONDS: Final = 15.0
#: Streams that may be open at the same time.
FEEDS_LIMIT: Final = 100
#: Streams that one token may have open at the same time.
FEEDS_PER_TOKEN: Final = 10
#: How often the tokens of open streams are checked again.
TOKEN_CHECK_SECONDS: Final = 0.25
#: How long a reader is asked to wait before it connects again.
RECONNECT_MS: Final = 1000

_EVENT_STREAM: Final = (b"content-type", f"{EVENT_STREAM_MEDIA_TYPE}; charset=utf-8".encode())
_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("spotledger.feed")


class Feed:
    """The streams of one process; *token_check* checks their tokens."""

    def __init__(self, ledger: Ledger, texts: CoinTexts, token_check: TokenCheck) -> None:
        self.ledger = ledger
        self.texts = texts
        self.stopped = asyncio.Event()
        self._token_check = token_check
        self._streams: set[_Stream] = set()
        self._watching: asyncio.Task[None] | None = None
        #: A thread of its own: in the others, reads may wait for a frozen database.
        self._checking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed-tokens")

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def stop(self) -> None:
        """End every stream, and open no other."""
        self.stopped.set()
        self._checking.shutdown(wait=False)

    def answer(self, request: Request) -> Reply:
        """
        Return the stream that *request* asks for: after its ``Last-Event-ID``, else its ``after_seq``, else all.

        Raises:
            InvalidRequest: It asks for the entries after one that does not exist yet.
            EpochMissing, UnknownPosition: It asks for the entries after one that is not in this journal.
            LedgerCorrupt: The first of them is damaged.
            Unavailable: Too many streams are open, in all or of this token, the service is stopping, or this node does
                not know the epoch yet.
        """
        query = query_of(request, "after_seq")
        header = request.header(b"last-event-id")
        last = None if header is None else header.decode("latin-1")
        field = "after_seq" if last is None else "Last-Event-ID"
        head = self.ledger.head.seq
        after_seq = position_in(query if last is None else {field: last}, field, self.ledger, 0)
        if after_seq > head:
            end = self.ledger.epochs.text(head)
            raise InvalidRequest(
                f"{field} is {after_seq}; 0 to {end}, the end of the journal, would pass",
                field=field,
            )
        if after_seq < head:
            self.ledger.entries(after_seq, 1)  # damage is answered as such; a stream could only break off
        if self.stopped.is_set() or self.open >= FEEDS_LIMIT:
            raise Unavailable("No other stream can be opened now; try again later.")
        actor = self._token_check.check(request, LEDGER_READ).actor
        if sum(stream.actor == actor for stream in self._streams) >= FEEDS_PER_TOKEN:
            raise Unavailable(
                f"This token has {FEEDS_PER_TOKEN} streams open, as many as one may; close one, or use another token."
            )
        return Reply(200, b"", [_EVENT_STREAM], _Stream(self, after_seq, request, actor))

    def opened(self, stream: _Stream) -> None:
        """Count *stream*, and check its token from now on."""
        self._streams.add(stream)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch_tokens())

    def closed(self, stream: _Stream) -> None:
        """Forget *stream*."""
        self._streams.discard(stream)

    async def _watch_tokens(self) -> None:
        """End each stream whose token is not good any more, until no stream is open or the service stops."""
        loop = asyncio.get_running_loop()
        while self._streams and not self.stopped.is_set():
            for stream in await loop.run_in_executor(self._checking, self._refused, tuple(self._streams)):
                stream.token_refused.set()
            await asyncio.sleep(TOKEN_CHECK_SECONDS)

    def _refused(self, streams: Sequence[_Stream]) -> list[_Stream]:
        """Return those of *streams* whose token is refused; in a thread, because it may have to be read again."""
        return [stream for stream in streams if not self._is_good(stream)]

    def _is_good(self, stream: _Stream) -> bool:
        try:
            self._token_check.check(stream.request, LEDGER_READ)
        except Exception as problem:  # noqa: BLE001 - whatever it is, nobody knows that the token is good
            _log.warning("a stream of the journal for %s ended: %s", stream.actor, getattr(problem, "cause", problem))
            return False
        return True


class _Stream:
    """One open stream."""

    def __init__(self, feed: Feed, after_seq: int, request: Request, actor: str) -> None:
        self._feed = feed
        self._after = after_seq
        #: What opened it, with its token.
        self.request = request
        self.actor = actor
        self.token_refused = asyncio.Event()

    async def __call__(self, writer: StreamWriter) -> bool:
        """
        Send entries until the reader disconnects, the service stops or the token is refused.

        Returns whether all was sent completely.
        """
        feed = self._feed
        feed.opened(self)
        waits = (writer.gone(), feed.stopped.wait(), self.token_refused.wait())
        ends = [asyncio.ensure_future(wait) for wait in waits]
        try:
            start = {"seq": feed.ledger.head.seq, "epoch": feed.ledger.epoch, "ledger_id": feed.ledger.ledger_id}
            start_event = b"retry: %d\nevent: start\ndata: %b\n\n" % (RECONNECT_MS, _encode(start))
            return await _sent(writer, start_event, ends) and await self._go_on(writer, ends)
        except OSError:
            return False  # the reader has disconnected, or the journal cannot be read
        finally:
            for end in ends:
                end.cancel()
            feed.closed(self)

    async def _go_on(self, writer: StreamWriter, ends: Sequence[asyncio.Future[Any]]) -> bool:
        """Send entries until one of *ends* is done; return whether the reader is connected and has taken all."""
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        while not any(end.done() for end in ends):
            piece = await self._next_piece()
            if not piece and loop.time() - quiet_since > HEARTBEAT_SECONDS:
                piece = b": still here\n\n"
            if piece:
                if not await _sent(writer, piece, ends):
                    return False
                quiet_since = loop.time()
                await asyncio.sleep(0)
            else:
                await asyncio.wait(ends, timeout=FEED_PAUSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return not ends[0].done()

    async def _next_piece(self) -> bytes:
        """Return the next entries as events; the id of each is its position."""
        ledger = self._feed.ledger
        if ledger.head.seq <= self._after:
            return b""
        try:
            entries = ledger.entries(self._after, FEED_PIECE_ENTRIES)
        except (SpotledgerError, LedgerCorrupt) as error:
            level = logging.CRITICAL if isinstance(error, LedgerCorrupt) else logging.WARNING
            _log.log(level, "a stream of the journal ended: %s", error)
            raise OSError("the journal cannot be read") from error
        texts = self._feed.texts
        await texts.labels.learn(entries)
        text = ledger.epochs.text
        events = [
            b"id: %b\ndata: %b\n\n" % (text(entry.seq).encode(), _encode(entry_answer(entry, texts)))
            for entry in entries
        ]
        self._after = entries[-1].seq if entries else self._after
        return b"".join(events)


async def _sent(writer: StreamWriter, piece: bytes, ends: Sequence[asyncio.Future[Any]]) -> bool:
    """Send *piece*, and wait until it is taken or one of *ends* is done; return whether it was taken."""
    sending = asyncio.ensure_future(writer.send(piece))
    try:
        await asyncio.wait([sending, *ends], return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            return False
        sending.result()
        return True
    finally:
        sending.cancel()
