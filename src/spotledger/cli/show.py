"""How the command line says things: tables for people, one JSON document for programs, one clear line for an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal, Inexact
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spotledger.errors import Refused, SpotledgerError

#: Where the output is no terminal, lines are as long as they need to be, up to this.
PIPE_COLUMNS: Final = 240
#: Adds amounts of any size exactly; the usual context rounds to 28 digits.
EXACT: Final = Context(prec=80, traps=[Inexact])
AMOUNT_COLUMNS: Final = frozenset(
    {
        *("available", "freeze", "total", "amount", "remaining", "after", "scale", "seq", "entry", "age"),
        *("± available", "± freeze", "customers available", "customers freeze"),
        *("@external", "@fees", "@dust", "@receivable"),
    }
)


def json_document(value: object) -> None:
    """Print *value* as one JSON document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def line(text: str) -> None:
    """Print one line for people."""
    click.echo(text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print *rows* under *columns*; amounts are aligned to the right."""
    shown = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0)
    )
    for name in columns:
        justify = "right" if name in AMOUNT_COLUMNS else "left"
        shown.add_column(name, justify=justify, no_wrap=True, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        shown.add_row(*(Text(_text(value)) for value in row))
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    Console(file=sys.stdout, width=width, highlight=False, no_color="NO_COLOR" in os.environ or None).print(shown)


def _text(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return "" if value is None else str(value)


def balances_table(
    balances: Iterable[tuple[str, Decimal, Decimal]], *, with_empty: bool, title: str | None = None
) -> None:
    """
    Print balances with their totals.

    Args:
        balances: The coin of each, what is available, and what is frozen.
        with_empty: Whether to print coins with nothing in them.
        title: Printed above the table.
    """
    rows = [
        (coin, available, freeze, EXACT.add(available, freeze))
        for coin, available, freeze in balances
        if with_empty or available or freeze
    ]
    table(("coin", "available", "freeze", "total"), rows, title)


def problem_of(error: SpotledgerError) -> dict[str, Any]:
    """Return *error* as a problem document."""
    problem = {"title": (type(error).__doc__ or "").strip(), "detail": error.message, "code": error.code}
    seq = error.seq if isinstance(error, Refused) else None
    return {**error.details, **problem, **({} if seq is None else {"seq": seq})}


def error(problem: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a problem on standard error: its line, or all of it as JSON."""
    if as_json:
        click.echo(json.dumps(problem, ensure_ascii=False), err=True)
    else:
        click.echo(f"spotledger: {problem['detail']} [{problem['code']}]", err=True)
