"""
The logic of the operator client without I/O: how often a call is sent, and how the feed is read.

A write whose answer was lost is sent again with the same key, so it happens once in any case.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from spotledger import paths
from spotledger.client.exchange import Answer, Failure, Send, Sleep, Steps
from spotledger.client.operator.decoding import decode
from spotledger.client.operator.ledger_answers import Entry, Written
from spotledger.client.operator.messages import Json, Params, Reply, check_token, error_of_answer, read_reply, request
from spotledger.client.operator.operation import Position
from spotledger.client.problems import error_of_problem
from spotledger.client.reading import read_object
from spotledger.client.transport import Started, check_base_url
from spotledger.errors import ProtocolError, Refused, TransportError, Unavailable

#: How often a call is sent at most, if no answer arrives or the service is unavailable.
ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
EVENT_LIMIT_BYTES: Final = 4 * 1024 * 1024


class OperatorCore:
    """Makes the calls of one service; each is a generator of steps for a driver."""

    def __init__(
        self, base_url: str, token: str, attempts: int = ATTEMPTS, on_answer: Callable[[Json], object] | None = None
    ) -> None:
        """Take the arguments of the clients; raise ValueError if one has another form."""
        self.token = check_token(token)
        self.base_url = check_base_url(base_url)
        if attempts < 1:
            raise ValueError("attempts must be 1 or more")
        self.attempts = attempts
        self._on_answer = on_answer

    def call(self, send: Send, attempts: int | None = None) -> Steps[Reply]:
        """Make one call; send it *attempts* times at most while no answer arrives or the service is unavailable."""
        attempts = attempts or self.attempts
        for attempt in range(1, attempts + 1):
            reply = self._read((yield send), send.method)
            if isinstance(reply, Reply):
                if self._on_answer is not None:
                    self._on_answer(reply.document)
                return reply
            if attempt == attempts or _wait_s(reply) > LONGEST_PAUSE_S:
                raise reply
            yield Sleep(pause_s(attempt, reply))
        raise AssertionError("the last attempt returns or raises")

    def _read(self, answer: Answer | Failure | None, method: str) -> Reply | TransportError | Unavailable:
        """Return the reply, or the error after which the call may be sent again; raise any other error."""
        if answer is None:
            raise TypeError("a request was driven without an answer")
        if isinstance(answer, Failure):
            return TransportError(f"{method} {self.base_url}: {answer.reason}")
        try:
            return read_reply(answer)
        except (Unavailable, TransportError) as passing:
            return passing


def outcomes_of(document: Json, count: int) -> list[Written | Refused]:
    """
    Return the outcomes of a batch of *count* operations.

    Raises:
        ProtocolError: The results are not of the documented form, or not *count*.
    """
    results = document.get("results")
    if not isinstance(results, list) or len(results) != count:
        raise ProtocolError(f"the answer to a batch of {count} operations does not have {count} results")
    return [_outcome(result) for result in results]


def _outcome(result: Any) -> Written | Refused:
    if isinstance(result, dict) and isinstance(result.get("code"), str):
        error = error_of_problem(422, {}, result)
        if isinstance(error, Refused):
            return error
        raise ProtocolError("a result of a batch is neither an entry nor a refusal")
    return decode(Written, result)


def pause_s(attempt: int, problem: TransportError | Unavailable) -> float:
    """Return the seconds to wait after attempt number *attempt*: they double, with jitter, up to a limit."""
    pause: float = min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S)
    return max(_wait_s(problem), pause * random.uniform(0.5, 1))  # noqa: S311 - no secret


def _wait_s(problem: TransportError | Unavailable) -> float:
    """Return the seconds to wait that the service, or a gateway in front of it, asked for."""
    return float(problem.details.get("retry_after_s", 0))


class CsvCore:
    """Reads an answer that is streamed as CSV."""

    def __init__(self, core: OperatorCore, path: str, params: Params) -> None:
        """Ask for *path* with the query *params*."""
        send = request(core.base_url, core.token, "GET", path, params=params)
        self.request = replace(send, headers={**send.headers, "Accept": "text/csv"})
        self._refused: Started | None = None
        self._problem = b""

    def take(self, piece: Started | bytes) -> Iterator[bytes]:
        """Take the next piece of the answer, and yield what is CSV of it."""
        if isinstance(piece, Started):
            self._refused = None if piece.status == 200 else piece
        elif self._refused is None:
            yield piece
        else:
            self._problem += piece
            if len(self._problem) > EVENT_LIMIT_BYTES:
                raise ProtocolError("a refusal is too long")

    def check_end(self) -> None:
        """Raise the refusal, if the answer was one."""
        if self._refused is not None:
            raise error_of_answer(Answer(self._refused.status, self._refused.headers, self._problem))


class FeedCore:
    """Reads the feed of the journal, and knows where to continue after a break."""

    def __init__(self, core: OperatorCore, after_seq: Position) -> None:
        """Begin after the entry *after_seq*."""
        self._core = core
        #: The position of the last entry.
        self._after = str(after_seq)
        #: Breaks since the last piece arrived.
        self._failures = 0
        self._refused: Started | None = None
        self._text = b""

    def request(self) -> Send:
        """Return the request that continues after the last entry."""
        params = {"after_seq": self._after}
        send = request(self._core.base_url, self._core.token, "GET", paths.ENTRIES, params=params)
        return replace(send, headers={**send.headers, "Accept": "text/event-stream"})

    def take(self, piece: Started | bytes) -> Iterator[Entry]:
        """Take the next piece of the answer, and yield the entries that are complete with it."""
        if isinstance(piece, Started):
            self._refused = None if piece.status == 200 else piece
            self._text = b""
            return
        self._text += piece
        if self._refused is None:
            self._failures = 0
            *events, self._text = self._text.replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                yield from self._entry(event)
        if len(self._text) > EVENT_LIMIT_BYTES:
            raise ProtocolError("an event of the feed is too long")

    def _entry(self, event: bytes) -> Iterator[Entry]:
        """Yield the entry in *event*; comments and other events have none."""
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line and line[:1] != b":")
        if b"id" in fields and b"data" in fields:
            found = decode(Entry, read_object(fields[b"data"]))
            if found.seq != int(self._after.rpartition("-")[2]) + 1:
                raise ProtocolError(f"entry {found.seq} came after entry {self._after} in the feed")
            self._after = fields[b"id"].decode()
            yield found

    def ended(self) -> TransportError:
        """Return the error for an answer that came to its end; raise its refusal if it was one."""
        if self._refused is not None:
            raise error_of_answer(Answer(self._refused.status, self._refused.headers, self._text))
        return TransportError("the feed ended")

    def pause_s(self, problem: TransportError | Unavailable) -> float:
        """Return the seconds to wait before the next request; raise *problem* after too many in a row."""
        self._failures += 1
        if self._failures >= self._core.attempts:
            raise problem
        return pause_s(self._failures, problem)
