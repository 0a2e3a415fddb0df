"""The commands that read the journal: a customer's statement, the feed, the trial balance."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from typing import Any, Final

import click
from msgspec.structs import astuple

from spotledger.cli.connection import CommandLedger
from spotledger.cli.options import (
    ACCOUNTS,
    PositionType,
    asked_at,
    from_option,
    ledger_command,
    period_ms,
    time_ms,
    to_option,
)
from spotledger.cli.output import EXACT, Output
from spotledger.client.operator.decoding import decode
from spotledger.client.operator.ledger_answers import (
    AccountStatement,
    BalanceAfter,
    Entry,
    Posting,
    Statement,
    StatementBalance,
    StatementLine,
)
from spotledger.client.operator.messages import Json
from spotledger.domain.accounts import is_receivable

FOLLOW_PAUSE_SECONDS: Final = 0.25
#: As many entries as a page may have.
PAGE_ENTRIES: Final = 1000
SIDES: Final = ("available", "freeze")
STATEMENT_COLUMNS: Final = (
    *("entry", "booked", "what", "account", "coin", "± available", "± freeze", "± owes"),
    *("available", "freeze", "owes", "for", "key"),
)
_HOUSE: Final = ("@external", "@fees", "@dust", "@receivable")


@click.command()
@click.argument("customer")
@click.option("--coin", metavar="COIN", help="Only entries that touch this coin.")
@click.option(
    "--after", "after_seq", type=PositionType(), default="0", metavar="SEQ", help="Only entries after this one."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most this many entries.")
@ledger_command()
async def history(
    ledger: CommandLedger, out: Output, customer: str, coin: str | None, after_seq: str, limit: int | None
) -> None:
    """Show the entries about CUSTOMER as a statement, with the balances before and after them."""
    statement = await _statement(ledger, customer, coin, after_seq, limit)
    out.document(ledger.document)
    columns = ("entry", "booked", "what", "account", "coin", "± available", "± freeze", "available", "freeze", "for")
    owners = (customer, f"@receivable:{customer}")
    rows = chain(
        (_balance_row("opening", after) for after in statement.opening),
        *(_entry_rows(entry, owners, coin) for entry in statement.entries),
        (_balance_row("closing", after) for after in statement.closing),
    )
    out.table(columns, rows, title=f"{customer}, as of entry {statement.position}")


async def _statement(
    ledger: CommandLedger, customer: str, coin: str | None, after_seq: str, limit: int | None
) -> Statement:
    """Return all pages of a statement as one; ``ledger.document`` is then the same as one document."""
    whole: Json = {}
    while True:
        wanted = PAGE_ENTRIES if limit is None else min(PAGE_ENTRIES, limit - len(whole.get("entries", ())))
        page = await ledger.statement(customer, coin, after_seq, wanted)
        whole = _joined(whole, ledger.document) if whole else ledger.document
        after_seq = page.next
        if len(page.entries) < wanted or len(whole["entries"]) == limit:
            break
    ledger.document = whole
    return decode(Statement, whole)


def _joined(before: Json, page: Json) -> Json:
    def by_line(lines: list[Json]) -> dict[tuple[str, ...], Json]:
        return {(line["customer"], line["account"], line["coin"]): line for line in lines}

    return {
        **page,
        "opening": list({**by_line(page["opening"]), **by_line(before["opening"])}.values()),
        "entries": before["entries"] + page["entries"],
        "closing": list({**by_line(before["closing"]), **by_line(page["closing"])}.values()),
    }


def _balance_row(what: str, after: BalanceAfter) -> tuple[object, ...]:
    return ("", "", what, _account(after), after.coin, "", "", after.available, after.freeze, "")


def _account(line: BalanceAfter | Posting) -> str:
    return "owed" if is_receivable(line.customer) else line.account


def _entry_rows(entry: Entry, owners: tuple[str, str], coin: str | None) -> Iterator[tuple[object, ...]]:
    moved: dict[tuple[str, str], dict[str, Decimal]] = {}
    after: dict[tuple[str, str], dict[str, Decimal]] = {}
    for line in entry.postings:
        if line.customer in owners and coin in (None, line.coin):
            place = (_account(line), line.coin)
            sides = moved.setdefault(place, {})
            sides[line.side] = EXACT.add(sides.get(line.side, Decimal()), line.amount)
            after.setdefault(place, {})[line.side] = line.after
    why = entry.request.get("reference") or entry.request.get("reason") or ""
    for place, sides in moved.items():
        signed = [f"{sides[side]:+f}" if sides.get(side) else "" for side in SIDES]
        now = [after[place].get(side) for side in SIDES]
        yield (entry.position, time_text(entry.booked_ms), entry.kind, *place, *signed, *now, why)


def time_text(time_ms: int) -> str:
    """Return a time in milliseconds since 1970 as date and time in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@click.command()
@click.option(
    "--after", "after_seq", type=PositionType(), default="0", metavar="SEQ", help="Only entries after this one."
)
@click.option("--actor", metavar="ACTOR", help="Only entries of this actor, such as token:ID or ledger.")
@click.option("--follow", is_flag=True, help="Continue with new entries until Ctrl-C.")
@ledger_command()
async def feed(ledger: CommandLedger, out: Output, after_seq: str, actor: str | None, follow: bool) -> None:
    """Show the journal, one entry per line; with --json as JSON objects."""
    head_seq = None
    while True:
        page = await ledger.entries(after_seq, actor=actor)
        head_seq = head_seq or page.seq  # of the first page: without --follow, what others write meanwhile is no matter
        for entry, document in zip(page.entries, ledger.document["entries"], strict=True):
            if out.as_json:
                out.json(document)
            else:
                out.line(_feed_line(entry))
        is_end = page.next == after_seq
        after_seq = page.next
        if not follow and (is_end or page.next_after_seq >= head_seq):
            return
        if is_end:
            await asyncio.sleep(FOLLOW_PAUSE_SECONDS)


@click.command()
@click.option("--key", metavar="KEY", help="The entry with this idempotency key.")
@click.option("--reference", metavar="TEXT", help="Entries with this reference.")
@click.option("--customer", metavar="CUSTOMER", help="Entries that change a balance of CUSTOMER, or of @fees.")
@click.option("--coin", metavar="COIN", help="Entries that change a balance of COIN.")
@click.option("--kind", metavar="KIND", help="Entries of this kind, such as deposit.")
@click.option("--actor", metavar="ACTOR", help="Entries of this actor, such as token:ID or ledger.")
@from_option
@to_option
@click.option(
    "--after", "after_seq", type=PositionType(), default="0", metavar="SEQ", help="Only entries after this one."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most this many entries.")
@ledger_command()
async def find(
    ledger: CommandLedger,
    out: Output,
    from_time: str | None,
    to_time: str | None,
    after_seq: str,
    limit: int | None,
    **criteria: str | None,
) -> None:
    """Find entries by key, reference, customer, coin, kind, actor and time. All that is given has to match."""
    if from_time is None and to_time is None and not any(criteria.values()):
        raise click.UsageError("nothing to find is given; --key, --reference, --customer or another option would pass")
    asked: dict[str, Any] = {**criteria, **period_ms(from_time, to_time)}
    found: list[Entry] = []
    documents: list[Json] = []
    head_seq = None
    while True:
        wanted = PAGE_ENTRIES if limit is None else min(PAGE_ENTRIES, limit - len(found))
        page = await ledger.find(**asked, after_seq=after_seq, limit=wanted)
        head_seq = head_seq or page.seq  # of the first page: what others write meanwhile would have no end
        found += page.entries
        documents += ledger.document["entries"]
        is_end = page.next == after_seq or page.next_after_seq >= head_seq or len(found) == limit
        after_seq = page.next
        if is_end:
            break
    ledger.document = {**ledger.document, "entries": documents}
    out.document(ledger.document)
    for entry in found:
        out.line(_feed_line(entry))
    if not found:
        out.line("no entry matches")


@click.command()
@click.argument("customer")
@click.option("--coin", metavar="COIN", help="Only this coin.")
@click.option("--account", type=click.Choice(ACCOUNTS), help="Only this account, and what the customer owes.")
@from_option
@to_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV in place of a table.")
@click.option("--bom", is_flag=True, help="Begin CSV with a byte order mark, by which Excel recognises UTF-8.")
@ledger_command()
async def statement(
    ledger: CommandLedger,
    out: Output,
    customer: str,
    from_time: str | None,
    to_time: str | None,
    as_csv: bool,
    bom: bool,
    **only: str | None,
) -> None:
    """Show the statement of CUSTOMER, or of @fees: opening, each change with the balance after it, and closing."""
    if bom and not as_csv:
        raise click.UsageError("--bom is given without --csv, which it is about")
    asked: dict[str, Any] = {**only, **period_ms(from_time, to_time)}
    if as_csv:
        async for piece in ledger.statement_csv(customer, **asked, bom=bom):
            out.file(piece)
        return
    whole = await _whole_statement(ledger, customer, asked)
    out.document(ledger.document)
    rows = chain(
        (_statement_row("opening", balance) for balance in whole.opening),
        map(_line_row, whole.lines),
        (_statement_row("closing", balance) for balance in whole.closing),
    )
    out.table(STATEMENT_COLUMNS, rows, title=f"{customer}, as of entry {whole.position}")


async def _whole_statement(ledger: CommandLedger, customer: str, asked: dict[str, Any]) -> AccountStatement:
    """Return all pages of a statement as one; ``ledger.document`` is then the same as one document."""
    page = await ledger.account_statement(customer, **asked)
    whole = ledger.document
    while page.next is not None:
        page = await ledger.account_statement(customer, **asked, after_seq=page.next)
        new = ledger.document
        # A line that somebody touched for the first time after the first page has no opening there.
        known = {(row["account"], row["coin"]) for row in whole["opening"]}
        opening = whole["opening"] + [row for row in new["opening"] if (row["account"], row["coin"]) not in known]
        whole = {**new, "opening": opening, "lines": whole["lines"] + new["lines"]}
    ledger.document = whole
    return decode(AccountStatement, whole)


def _statement_row(what: str, balance: StatementBalance) -> tuple[object, ...]:
    sides = (balance.available, balance.freeze, balance.owes)
    return ("", "", what, balance.account, balance.coin, "", "", "", *sides, "", "")


def _line_row(line: StatementLine) -> tuple[object, ...]:
    signed = [f"{change:+f}" if change else "" for change in (line.available, line.freeze, line.owes)]
    after = (line.available_after, line.freeze_after, line.owes_after)
    place = (line.position, time_text(line.booked_ms), line.kind, line.account, line.coin)
    return (*place, *signed, *after, line.reference, line.key.strip())


def _feed_line(entry: Entry) -> str:
    told = "; ".join(f"{line.customer} {line.side} {line.amount:f} {line.coin}" for line in entry.postings)
    if entry.refusal is not None:
        told = f"refused: {entry.refusal['detail']}"
    actor = f"{entry.actor} ({entry.actor_label})" if entry.actor_label else entry.actor
    line = f"{entry.position} {time_text(entry.booked_ms)} {entry.kind} [{entry.key.strip()}] by {actor}"
    return f"{line} {told}" if told else line


@click.command("trial-balance")
@click.option("--at-seq", type=PositionType(), metavar="SEQ", help="As of this entry.")
@click.option("--at", metavar="TIME", help="As of this time: 2026-01-31T12:00:00Z, or milliseconds since 1970.")
@ledger_command()
async def trial_balance(ledger: CommandLedger, out: Output, at_seq: str | None, at: str | None) -> None:
    """Show the sums of all customers and of each house account by coin, now or as of then; every total is zero."""
    at_ms = time_ms(at, "--at")
    with asked_at(at, "--at"):
        found = await ledger.trial_balance(at_seq=at_seq, at_ms=at_ms)
    out.document(ledger.document)
    all_sums = found.coins.values()
    house = dict.fromkeys([*_HOUSE, *(name for sums in all_sums for name in sums.house)])
    frozen = dict.fromkeys(name for sums in all_sums for name in sums.house_freeze)
    sides = [*house, *(f"{name} freeze" for name in frozen)]
    columns = ("coin", "customers available", "customers freeze", *sides, "total")
    rows = (
        (
            coin,
            *astuple(sums.customers),
            *map(sums.house.get, house),
            *map(sums.house_freeze.get, frozen),
            sums.total,
        )
        for coin, sums in found.coins.items()
    )
    state = "balanced" if found.balanced else "NOT BALANCED"
    out.table(columns, rows, title=f"as of entry {found.position}: {state}")
    if not found.balanced:
        raise click.exceptions.Exit(1)
