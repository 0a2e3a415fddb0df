"""The database that is audited: queries, and what becomes of errors, none of which ends an audit without a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import psycopg

from spotledger.audit.findings import Findings
from spotledger.storage.postgres.connection import Connection, is_damage, is_lost, reason_of

Row: TypeAlias = tuple[Any, ...]

#: What Python raises for values of other types than the schema has, whose definitions are noted already.
_STRANGE: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)
_WORDS_LIMIT: Final = 160


class Queries:
    """One connection, and the findings of its audit."""

    def __init__(self, connection: Connection, findings: Findings) -> None:
        """Read from *connection*; what cannot be read is noted in *findings*."""
        self.connection = connection
        self._findings = findings

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Return all rows of *query*."""
        return self.connection.execute(query.encode(), values or None).fetchall()

    @contextmanager
    def examining(self, what: str) -> Iterator[None]:
        """
        Run a block in a transaction, or in a part of the one that is going on, and note what it could not examine.

        An error that ends the connection is raised; after any other one the audit goes on behind the block.
        """
        with self.noting(what), self.connection.transaction():
            yield

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Run a block that is about *what*, and note what it could not examine, like :meth:`examining`."""
        try:
            yield
        except psycopg.Error as error:
            if is_lost(error):
                raise
            if is_damage(error):
                self._findings.add("page_damaged", None, what, _words(error), "what was written")
            else:
                self._findings.leave_out(f"{what}: {reason_of(error) or _words(error)}")
        except _STRANGE as error:
            words = f"{type(error).__name__}: {error}"[:_WORDS_LIMIT]
            self._findings.leave_out(f"{what}: values that are not of the schema ({words})")


def _words(error: psycopg.Error) -> str:
    words = error.diag.message_primary or str(error) or type(error).__name__
    return f"{words[:_WORDS_LIMIT]} (SQLSTATE {error.sqlstate})"
