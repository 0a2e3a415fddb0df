"""
A connection used in pipeline mode: many prepared statements are sent at once and answered in one round trip.

It uses the driver's ``libpq`` layer, without a cursor per statement, which would cost ten times as much.
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
from psycopg.errors import Diagnostic, error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult

from spotledger.storage.postgres.connection import Connection, TimedOut
from spotledger.storage.steps import Readiness, Steps, drive

#: The OIDs of element types of arrays.
BYTEA: Final = 17
TEXT: Final = 25
UUID: Final = 2950

#: A parameter as it is sent: text, an array in binary form, or NULL.
Parameter = bytes | None

#: The warning about a ROLLBACK after a commit.
_NO_TRANSACTION: Final = "25P01"
_FAILED: Final = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)
_array_head = Struct("!iiiii").pack
_length = Struct("!i").pack
_NULL: Final = _length(-1)


class Statement(NamedTuple):
    """A statement: its name on the server, its text, and the formats of its parameters and rows (1 for binary)."""

    name: str
    text: str
    binary: tuple[int, ...] | None = None
    row_format: int = 0


def statement(name: str, text: str, arrays: str = "", *, binary_rows: bool = False) -> Statement:
    """
    Return a statement.

    Args:
        name: Its name on the server.
        text: Its text, with parameters ``$1`` and so on.
        arrays: One letter per parameter: ``b`` for an array in binary form, ``t`` for text. Empty: all are text.
        binary_rows: Whether the values of its rows are binary, not text.
    """
    return Statement(name, text, tuple(int(letter == "b") for letter in arrays) or None, int(binary_rows))


class Session:
    """A connection with prepared statements. One thread at a time may use it."""

    def __init__(self, connection: Connection, statements: Iterable[Statement], patience_seconds: float) -> None:
        """
        Prepare *statements* on *connection*, which the session owns from now on.

        Args:
            connection: A connection in autocommit.
            statements: All statements for :meth:`send`.
            patience_seconds: How long one round trip may take before the connection counts as lost.

        Raises:
            psycopg.Error: The server refuses them; the connection is closed.
        """
        self.connection = connection
        self._pgconn = connection.pgconn
        #: How long one round trip may take before the connection counts as lost.
        self.patience_seconds = patience_seconds
        self._warned = False
        #: How many statements :meth:`execute` and :meth:`change` have run.
        self.executed = 0
        connection.add_notice_handler(self._note_warning)
        try:
            self._pgconn.nonblocking = 1
            self._pgconn.enter_pipeline_mode()
            for each in statements:
                self._pgconn.send_prepare(each.name.encode(), each.text.encode())
            self.collect()
        except BaseException:
            self.close()
            raise

    def _note_warning(self, notice: Diagnostic) -> None:
        is_warning = notice.severity_nonlocalized == "WARNING" and notice.sqlstate != _NO_TRANSACTION
        self._warned = self._warned or is_warning

    def take_warning(self) -> bool:
        """
        Return whether the server has warned since the last call.

        After a commit it warns that it gave up waiting for its standby, which may lack the commit.
        """
        warned, self._warned = self._warned, False
        return warned

    @property
    def is_open(self) -> bool:
        """Whether the connection is not known to be lost."""
        return self._pgconn.status == ConnStatus.OK

    def is_alive(self) -> bool:
        """Return whether the idle connection is open, as far as this machine was told by now."""
        poll = select.poll()
        poll.register(self._pgconn.socket, select.POLLIN)
        try:
            while poll.poll(0):
                self._pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        return self.is_open

    def send(self, statement: Statement, *parameters: Parameter) -> None:
        """Send *statement*; :meth:`answers` returns its result."""
        self._pgconn.send_query_prepared(
            statement.name.encode(), parameters or None, statement.binary, statement.row_format
        )

    def push(self) -> None:
        """Flush what was sent so far, as far as the socket takes it, so that the server can start."""
        self._pgconn.flush()

    def collect(self) -> list[PGresult]:
        """Do what :meth:`answers` does, and block."""
        return drive(self.answers())

    def answers(self, meanwhile: Callable[[], Any] | None = None) -> Steps[list[PGresult]]:
        """
        Wait for the results of all statements sent since the last call, in order.

        Args:
            meanwhile: Called while the server works.

        Raises:
            psycopg.Error: A statement failed, and the server skipped those after it, or the connection is lost.
        """
        pgconn = self._pgconn
        pgconn.pipeline_sync()
        until = time.monotonic() + self.patience_seconds
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
            raise TimedOut(f"the server did not answer within {self.patience_seconds:.1f} seconds")

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
        self.executed += 1
        adapter: abc.Transformer = Transformer(self.connection)
        parameters = adapter.dump_sequence(values, [PyFormat.AUTO] * len(values))
        self._pgconn.send_query_params(text.encode(), parameters, adapter.types, adapter.formats, Format.BINARY)
        return self.collect()[0], adapter

    def wait_for_notice(self, timeout_seconds: float, waker: int | None = None) -> bool:
        """
        Wait for a notice of the server; return whether something came.

        Args:
            timeout_seconds: How long to wait at most.
            waker: A file descriptor that ends the wait when it becomes readable.

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
        """Return the payloads of all notices since the last call."""
        told = []
        while (notice := self._pgconn.notifies()) is not None:
            told.append(notice.extra)
        return told

    def close(self) -> None:
        """Close the connection; the server rolls back what was not committed."""
        self.connection.close()
        self._pgconn.finish()


def rows_of(result: PGresult) -> list[list[bytes]]:
    """Return the rows of a result without NULLs, with each value as the server encoded it."""
    get = result.get_value
    columns = range(result.nfields)
    return [[get(row, column) or b"" for column in columns] for row in range(result.ntuples)]


def hash_of(value: bytes) -> bytes:
    r"""Return the bytes that the server encoded as ``\x...``."""
    return bytes.fromhex(value[2:].decode())


def array(element: int, items: Sequence[bytes]) -> bytes:
    """Encode an array of the element type *element* in binary form."""
    parts = [_array_head(1, 0, element, len(items), 1)]
    for item in items:
        parts.append(_length(len(item)))
        parts.append(item)
    return b"".join(parts)


def texts(items: Iterable[str | None]) -> bytes:
    """Encode an array of texts or NULLs in binary form."""
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
    """Encode an array of texts without quotes and backslashes as text, which is faster."""
    return ('{"' + '","'.join(items) + '"}').encode()


def numbers(items: Iterable[int]) -> bytes:
    """Encode an array of whole numbers of any size as text."""
    return ("{" + ",".join(map(str, items)) + "}").encode()


def number(value: int) -> bytes:
    """Encode a whole number as text."""
    return str(value).encode()
