"""The permission table as a page: the cells that the tests try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from permissions import operator_credentials, operator_rows, public_rows
from permissions.operator_credentials import STRANGERS
from permissions.operator_rows import NO_TOKEN
from spotledger.errors import ScopeMissing, TokenRefused
from spotledger.http import wire

_STATUSES: Final = {error.code: str(wire.row_of(error).status) for error in (TokenRefused, ScopeMissing)}

_INTRODUCTION: Final = """\
# Permissions

Look up which credential may make which call. Every cell of both tables is tried against a running application
(`tests/integration/test_permissions_operator.py` and `test_permissions_public.py`), and a call that is in no row fails
the tests. `make generate` makes this page of the same rows.

A refused call changes nothing: the journal, the access keys, the tokens and the backups are the same afterwards. It
reveals nothing either: the answer is the same whether or not the thing that was named exists.
"""

_OPERATOR: Final = """\
## Operator listener

"{passes}": the call is made. {codes}

The token comes first: without one that is in use, a path that does not exist, a method that a path does not take and a
body that cannot be read are answered with the same 401. HEAD is like GET. A token in use learns which paths there are,
whatever its scopes.
"""

_PUBLIC: Final = """\
## Public listener

"{passes}": the call is made. A number is the `code` of a v1 answer, `AUTH_…` the `mc` of a v4 answer. A path with a
slash at its end and, where a call takes parameters, a POST with a form are like the GET.

Whether an access key is revoked, has expired or is bound to another address is said before the signature is looked at
([the order of the checks](../security.md#the-signed-request)), so whoever knows an access key learns that much of it,
and nothing of its customer. Operator tokens are no credential here.
"""


class Column(NamedTuple):
    """A column of a table: its head, and what is in it."""

    head: str
    about: str


def permissions_markdown() -> str:
    """Return docs/reference/permissions.md."""
    return "\n".join([_INTRODUCTION, *_operator(), "", *_public()]) + "\n"


def _operator() -> Iterator[str]:
    codes = " ".join(f"{status}: refused with `{code}`." for code, status in _STATUSES.items())
    yield _OPERATOR.format(passes=operator_credentials.PASSES, codes=codes)
    scopes = operator_credentials.CREDENTIALS[len(STRANGERS) :]
    yield from _columns([*_about(STRANGERS), *(Column(f"`{it.name}`", it.about) for it in scopes)])
    heads = [*(it.name for it in STRANGERS), *(f"`{it.name}`" for it in scopes)]
    yield from _table(
        heads,
        (
            (
                f"`{row.method} {row.path}`" + (f" {row.case}" if row.case else ""),
                [_status(credential.expected(row)) for credential in operator_credentials.CREDENTIALS],
            )
            for row in sorted(operator_rows.ROWS, key=lambda row: row.needs == NO_TOKEN)
        ),
    )


def _public() -> Iterator[str]:
    yield _PUBLIC.format(passes=public_rows.PASSES)
    credentials = public_rows.CREDENTIALS
    yield from _columns(Column(f"`{it.name}`" if it.permission else it.name, it.about) for it in credentials)
    yield from _table(
        [f"`{it.name}`" if it.permission else it.name for it in credentials],
        ((f"`{row.path}`", [it.expected(row) for it in credentials]) for row in public_rows.ROWS),
    )


def _about(credentials: Iterable[operator_credentials.Credential]) -> Iterator[Column]:
    return (Column(it.name, it.about) for it in credentials)


def _columns(columns: Iterable[Column]) -> Iterator[str]:
    yield from ("| credential | what is sent |", "|---|---|")
    yield from (f"| {column.head} | {column.about} |" for column in columns)
    yield ""


def _table(heads: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    heads = list(heads)
    yield "| call | " + " | ".join(heads) + " |"
    yield "|---|" + ":-:|" * len(heads)
    yield from (f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows)


def _status(cell: str) -> str:
    return _STATUSES.get(cell, cell)
