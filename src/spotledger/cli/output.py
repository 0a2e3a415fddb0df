"""What commands print: lines and tables for people, one JSON document for programs, one line for an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Context, Decimal, Inexact
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from spotledger.domain.positions import FIRST_EPOCH, position_text
from spotledger.errors import LedgerCorrupt, LedgerDamaged, Refused, SpotledgerError
from spotledger.texts import escaped

#: The width of a table that is not printed to a terminal.
PIPE_COLUMNS: Final = 240
#: Adds amounts of any size exactly; the usual context rounds to 28 digits.
EXACT: Final = Context(prec=80, traps=[Inexact])
#: Columns that are aligned to the right.
AMOUNT_COLUMNS: Final = frozenset(
    {
        *("available", "freeze", "total", "amount", "remaining", "after", "scale", "seq", "entry", "age"),
        *("± available", "± freeze", "± owes", "owes", "customers available", "customers freeze"),
        *("@external", "@fees", "@dust", "@receivable"),
    }
)

#: Shows how far a task is: its name, how much is done, and of how much.
Tell = Callable[[str, int, int], None]


class Output:
    """
    The output of one command: all that commands print goes through it.

    Lines and tables are for people. With ``--json`` they are left out, and the document is printed in their place. What
    a terminal would obey, or would show in another order, is escaped: texts come from servers, files and customers.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def document(self, value: object) -> None:
        """Print *value* as one JSON document, with ``--json`` only."""
        if self.as_json:
            self.json(value, indent=2 if sys.stdout.isatty() else None)

    @staticmethod
    def json(value: object, indent: int | None = None) -> None:
        """Print *value* as JSON, whether or not there is ``--json``."""
        click.echo(escaped(json.dumps(value, ensure_ascii=False, indent=indent), keep="\n"))

    def line(self, text: str) -> None:
        """Print one line for people; a newline in it is escaped."""
        if not self.as_json:
            click.echo(escaped(text))

    @staticmethod
    def text(text: str) -> None:
        """Print *text* of our own, which may have lines, as it is but for escapes."""
        click.echo(escaped(text, keep="\n"), nl=not text.endswith("\n"))

    @staticmethod
    def file(piece: bytes) -> None:
        """Write a piece of a file to standard output as it is."""
        click.echo(piece, nl=False)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
        """Print *rows* under *columns* for people."""
        if self.as_json:
            return
        shown = Table(
            title=None if title is None else escaped(title),
            title_justify="left",
            header_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 3, 0, 0),
        )
        for name in columns:
            justify = "right" if name in AMOUNT_COLUMNS else "left"
            shown.add_column(name, justify=justify, no_wrap=True, overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            shown.add_row(*(Text(escaped(_text(value))) for value in row))
        width = None if sys.stdout.isatty() else PIPE_COLUMNS
        Console(file=sys.stdout, width=width, highlight=False, no_color="NO_COLOR" in os.environ or None).print(shown)

    def balances(
        self, balances: Iterable[tuple[str, Decimal, Decimal]], *, with_empty: bool, title: str | None = None
    ) -> None:
        """
        Print balances with their totals for people.

        Args:
            balances: The coin of each, what is available, and what is frozen.
            with_empty: Whether to print coins with nothing in them.
            title: Printed above the table.
        """
        rows = (
            (coin, available, freeze, EXACT.add(available, freeze))
            for coin, available, freeze in balances
            if with_empty or available or freeze
        )
        self.table(("coin", "available", "freeze", "total"), rows, title)

    def error(self, error: SpotledgerError | LedgerCorrupt) -> None:
        """Print *error* on standard error: one line, or with ``--json`` its problem document."""
        problem = _problem_of(error)
        if self.as_json:
            click.echo(escaped(json.dumps(problem, ensure_ascii=False)), err=True)
        else:
            told = f"spotledger: {problem['detail']} [{problem['code']}]{_kept_text(error)}"
            click.echo(escaped(told, keep="\n"), err=True)

    @contextmanager
    def progress(self) -> Iterator[Tell]:
        """Give a function that draws progress bars on standard error, if that is a terminal and without ``--json``."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        is_off = self.as_json or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=is_off) as bars:
            tasks: dict[str, TaskID] = {}

            def tell(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what)
                bars.update(tasks[what], completed=done, total=total)

            yield tell


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, Decimal):
        return f"{value:f}"
    return "" if value is None else str(value)


def _kept_text(error: SpotledgerError | LedgerCorrupt) -> str:
    """Say of a refusal that is kept whether it is a repeat, and what to do; nothing of another error."""
    if not isinstance(error, Refused) or error.seq is None:
        return ""
    if error.details.get("dry_run") and not error.replayed:
        return "; a dry run: nothing was booked, and the key stays unused"
    entry = position_text(error.epoch or FIRST_EPOCH, error.seq)
    kept = f"a repeat of entry {entry}, which keeps" if error.replayed else f"entry {entry} keeps"
    return f"; {kept} this refusal with its key: use another key to try again"


def _problem_of(error: SpotledgerError | LedgerCorrupt) -> dict[str, Any]:
    if isinstance(error, LedgerCorrupt):
        return {"detail": f"The ledger is damaged: {error}.", "code": LedgerDamaged.code}
    problem: dict[str, Any] = {
        "title": (type(error).__doc__ or "").strip(),
        "detail": error.message,
        "code": error.code,
    }
    if isinstance(error, Refused) and error.seq is not None:
        problem |= {"seq": error.seq, "epoch": error.epoch}
        if error.replayed:
            problem["replayed"] = True
    return {**error.details, **problem}
