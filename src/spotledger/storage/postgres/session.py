"""
A connection that is spoken to in pipelines: many prepared statements are sent at once, and answered in one trip.

It works on the driver's own layer of ``libpq``, without a cursor a statement, which would cost ten times as much.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import abc
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult

from spotledger.storage.postgres.connection import Connection, TimedOut
from spotledger.storage.steps import Readiness, Steps, drive

#: Types of the elements of arrays, by the numbers that every PostgreSQL gives them.
BYTEA: Final = 17
TEXT: Final = 25
UUID: Final = 2950

#: A parameter as it is sent: text, or an array in binary form, or NULL.
Parameter = bytes | None

_FAILED: Final = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)
_array_head = Struct("!iiiii").pack
_length = Struct("!i").pack
_NULL: Final = _length(-1)


class Statement(NamedTuple):
    """A statement with its name on the server, which of its parameters are binary arrays, and whether its rows are."""

    name: str
    text: str
    binary: tuple[int, ...] | None = None
    row_format: int = 0


def statement(name: str, text: str, arrays: str = "", *, binary_rows: bool = False) -> Statement:
    """
    Make a statement.

    Args:
        name: Its name on the server.
        text: Its text, with parameters ``$1`` and so on.
        arrays: A letter a parameter, ``b`` where it is an array in binary form, ``t`` where it is text.
        binary_rows: Whether the values in its rows come in binary form, not as text.
    """
    return Statement(name, text, tuple(int(letter == "b") for letter in arrays) or None, int(binary_rows))


class Session:
    """One connection with its prepared statements. Used by one thread at a time."""

    def __init__(self, connection: Connection, statements: Iterable[Statement], patience_seconds: float) -> None:
        """
        Prepare *statements* on *connection*, which belongs to the session from now on.

        Args:
            connection: A connection in autocommit.
            statements: All that will be sent.
            patience_seconds: How long one trip may take before the connection counts as lost.

        Raises:
            psycopg.Error: The server does not take them.
        """
        self.connection = connection
        self._pgconn = connection.pgconn
        self._patience_seconds = patience_seconds
        try:
            self._pgconn.nonblocking = 1
            self._pgconn.enter_pipeline_mode()
            for each in statements:
                self._pgconn.send_prepare(each.name.encode(), each.text.encode())
            self.collect()
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the connection is not known to be lost."""
        return self._pgconn.status == ConnStatus.OK

    def send(self, statement: Statement, *parameters: Parameter) -> None:
        """Send *statement*; its result comes with :meth:`answers`."""
        self._pgconn.send_query_prepared(
            statement.name.encode(), parameters or None, statement.binary, statement.row_format
        )

    def push(self) -> None:
        """Let the server have, and begin with, all that was sent so far, as much of it as it takes now."""
        self._pgconn.flush()

    def collect(self) -> list[PGresult]:
        """Do what :meth:`answers` says, and block where it waits."""
        return drive(self.answers())

    def answers(self, meanwhile: Callable[[], Any] | None = None) -> Steps[list[PGresult]]:
        """
        Wait for the results of all that was sent since the last time, one a statement, in order.

        Args:
            meanwhile: Called once the server has got it all and is busy.

        Raises:
            psycopg.Error: A statement failed, and those after it were passed over, or the connection is lost.
        """
        pgconn = self._pgconn
        pgconn.pipeline_sync()
        until = time.monotonic() + self._patience_seconds
        results: list[PGresult] = []
        failed: PGresult | None = None
        try:
            if meanwhile is not None:
                self.push()
                meanwhile()
            while True:
                unsent = pgconn.flush()
                while not pgconn.is_busy():
                    result = pgconn.get_result()
                    if result is None:
                        self._check_open()
                    elif result.status == ExecStatus.PIPELINE_SYNC:
                        if failed is not None:
                            raise error_from_result(failed)
                        return results
                    elif result.status in _FAILED and failed is None:
                        failed = result
                    else:
                        results.append(result)
                in_time = yield Readiness(pgconn.socket, bool(unsent), until)
                self._check_in_time(in_time)
                pgconn.consume_input()
        except psycopg.OperationalError:
            if failed is not None:
                raise error_from_result(failed) from None
            raise

    def _check_in_time(self, in_time: bool) -> None:
        if not in_time:
            self.close()
            raise TimedOut(f"the server did not answer within {self._patience_seconds} seconds")

    def _check_open(self) -> None:
        if not self.is_open:
            raise psycopg.OperationalError("the connection was lost")

    def execute(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """
        Run one statement that is not prepared, and return its rows; blocks.

        Args:
            text: The statement, with parameters ``$1`` and so on.
            values: The parameters, of any type that the driver adapts.

        Raises:
            psycopg.Error: The statement failed, or the connection is lost.
        """
        result, adapter = self._run(text, values)
        adapter.set_pgresult(result)
        return adapter.load_rows(0, result.ntuples, tuple)

    def change(self, text: str, values: Sequence[Any] = ()) -> int:
        """Run one statement as :meth:`execute` does, and return how many rows it changed."""
        return self._run(text, values)[0].command_tuples or 0

    def _run(self, text: str, values: Sequence[Any]) -> tuple[PGresult, abc.Transformer]:
        adapter: abc.Transformer = Transformer(self.connection)
        parameters = adapter.dump_sequence(values, [PyFormat.AUTO] * len(values))
        self._pgconn.send_query_params(text.encode(), parameters, adapter.types, adapter.formats, Format.BINARY)
        return self.collect()[0], adapter

    def heard(self, timeout_seconds: float, waker: int | None = None) -> bool:
        """
        Wait until the server says something unasked, at most *timeout_seconds*; return whether it did.

        Args:
            timeout_seconds: How long to wait.
            waker: A file descriptor that ends the waiting once there is something to read in it.

        Raises:
            psycopg.OperationalError: The connection is lost.
        """
        poll = select.poll()
        poll.register(self._pgconn.socket, select.POLLIN)
        if waker is not None:
            poll.register(waker, select.POLLIN)
        if self._pgconn.socket not in (ready for ready, _ in poll.poll(timeout_seconds * 1000)):
            return False
        self._pgconn.consume_input()
        return True

    def notices(self) -> list[bytes]:
        """Return what other sessions have told this one since the last time."""
        told = []
        while (notice := self._pgconn.notifies()) is not None:
            told.append(notice.extra)
        return told

    def close(self) -> None:
        """End the connection; what was not committed is undone by the server."""
        self.connection.close()
        self._pgconn.finish()


def rows_of(result: PGresult) -> list[list[bytes]]:
    """Return the rows of a result whose columns are never NULL, each value as the server wrote it as text."""
    get = result.get_value
    columns = range(result.nfields)
    return [[get(row, column) or b"" for column in columns] for row in range(result.ntuples)]


def hash_of(value: bytes) -> bytes:
    r"""Return the bytes that the server wrote as ``\x...``."""
    return bytes.fromhex(value[2:].decode())


def array(element: int, items: Sequence[bytes]) -> bytes:
    """Write an array of elements of the type *element* in binary form."""
    parts = [_array_head(1, 0, element, len(items), 1)]
    for item in items:
        parts.append(_length(len(item)))
        parts.append(item)
    return b"".join(parts)


def texts(items: Iterable[str | None]) -> bytes:
    """Write an array of texts, of which some may be NULL, in binary form."""
    parts = [b""]
    count = 0
    for item in items:
        count += 1
        if item is None:
            parts.append(_NULL)
        else:
            encoded = item.encode()
            parts.append(_length(len(encoded)))
            parts.append(encoded)
    parts[0] = _array_head(1, 1, TEXT, count, 1)
    return b"".join(parts)


def plain_texts(items: Iterable[str]) -> bytes:
    """Write an array of texts without quotes and backslashes, as names of ours are, as text, which is quicker."""
    return ('{"' + '","'.join(items) + '"}').encode()


def numbers(items: Iterable[int]) -> bytes:
    """Write an array of whole numbers of any size as text."""
    return ("{" + ",".join(map(str, items)) + "}").encode()


def number(value: int) -> bytes:
    """Write one whole number as text."""
    return str(value).encode()
