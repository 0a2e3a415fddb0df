"""The commands that move money. Each is one operation under the idempotency key that ``--key`` gives."""

from __future__ import annotations

import csv
import io
from typing import IO, Any, Final

import click

from spotledger.cli.connection import CommandLedger
from spotledger.cli.options import (
    ACCOUNTS,
    InputFile,
    account_option,
    expiry_ms,
    hold_name,
    ledger_command,
    reference_option,
    write_options,
)
from spotledger.cli.output import Output
from spotledger.client.operator.operations import Deposit, Freeze, Leg, Operation, Post, Transfer, Unfreeze, Withdraw
from spotledger.domain.accounts import FIRST_HOUSE_ACCOUNTS, is_receivable
from spotledger.errors import MalformedRequest

_LEG_COLUMNS: Final = {"customer", "coin", "amount"}


async def write(ledger: CommandLedger, out: Output, operation: Operation, dry_run: bool) -> None:
    """Do *operation*, or in a *dry_run* only try it; print its entry and the balances after it."""
    written = await ledger.do(operation, dry_run=dry_run)
    out.document({**ledger.document, "replayed": written.replayed})
    again = ", done before under this key" if written.replayed else ""
    hold = "" if written.hold is None else f", hold {written.hold}"
    tried = "; a dry run: nothing was booked" if written.dry_run else ""
    out.line(f"entry {written.position}: {written.entry.kind}{hold}{again}{tried}")
    columns = ("customer", "account", "coin", "available", "freeze")
    shown = [after for after in written.balances if after.account != "house" or _is_operators(after.customer)]
    rows = [[getattr(after, name) for name in columns] for after in shown]
    out.table(columns, rows)


def _is_operators(house_account: str) -> bool:
    """Say whether a house account is one that operators move money of, and no fill."""
    return house_account not in FIRST_HOUSE_ACCOUNTS and not is_receivable(house_account)


@click.command()
@click.argument("customer")
@click.argument("coin")
@click.argument("amount")
@write_options
@account_option
@reference_option
@ledger_command()
async def deposit(ledger: CommandLedger, out: Output, dry_run: bool, **given: Any) -> None:
    """Book a deposit from outside: AMOUNT of COIN for CUSTOMER, or for a house account such as @treasury."""
    await write(ledger, out, Deposit(**given), dry_run)


@click.command()
@click.argument("customer")
@click.argument("coin")
@click.argument("amount")
@write_options
@account_option
@reference_option
@click.option("--expires", metavar="TIME", help="Release it automatically after this time: 45s, 30m, 12h, 90d, 2w.")
@ledger_command()
async def freeze(ledger: CommandLedger, out: Output, expires: str | None, dry_run: bool, **given: Any) -> None:
    """Freeze AMOUNT of CUSTOMER's available COIN, and open a hold for it."""
    await write(ledger, out, Freeze(**given, expires_ms=expiry_ms(expires)), dry_run)


@click.command()
@click.argument("hold")
@click.argument("amount", required=False)
@write_options
@ledger_command()
async def unfreeze(ledger: CommandLedger, out: Output, hold: str, dry_run: bool, **given: Any) -> None:
    """Release AMOUNT of HOLD, or all that remains of it. HOLD is its id, or key:K if the key K opened it."""
    await write(ledger, out, Unfreeze(hold=hold_name(hold), **given), dry_run)


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="CUSTOMER COIN AMOUNT | AMOUNT")
@click.option("--hold", metavar="HOLD", help="Pay from this hold; then give only AMOUNT.")
@write_options
@click.option("--account", type=click.Choice(ACCOUNTS), help="The customer's account (else spot).")
@reference_option
@ledger_command()
async def withdraw(
    ledger: CommandLedger, out: Output, what: tuple[str, ...], hold: str | None, dry_run: bool, **more: Any
) -> None:
    """Book a withdrawal to the outside: AMOUNT of COIN from CUSTOMER, or AMOUNT from a hold."""
    names = ("customer", "coin", "amount") if hold is None else ("amount",)
    if len(what) != len(names):
        wanted = " ".join(name.upper() for name in names)
        raise click.UsageError(f"withdraw takes {wanted} {'without' if hold is None else 'with'} --hold")
    more.update(zip(names, what, strict=True))
    await write(ledger, out, Withdraw(hold=None if hold is None else hold_name(hold), **more), dry_run)


@click.command()
@click.argument("file", type=InputFile())
@write_options
@click.option("--reason", metavar="TEXT", help="Why; the journal keeps it.")
@reference_option
@ledger_command()
async def post(ledger: CommandLedger, out: Output, file: IO[bytes], dry_run: bool, **given: Any) -> None:
    """
    Post the legs in FILE as one entry: CSV with the columns customer, coin and amount, and account if it is not spot;
    - for stdin.

    An amount with a minus sign is taken, any other is given; for each coin they sum to zero.
    """
    await write(ledger, out, Post(legs=legs_in(file), **given), dry_run)


def legs_in(file: IO[bytes]) -> list[Leg]:
    """
    Return the legs in a file with columns.

    Raises:
        MalformedRequest: It is no such file; the message names the line.
    """
    try:
        rows = csv.reader(io.StringIO(file.read().decode("utf-8-sig")), strict=True)
        names = [name.strip() for name in next(rows, [])]
        if not _LEG_COLUMNS <= {*names} <= {*_LEG_COLUMNS, "account"} or len({*names}) < len(names):
            raise MalformedRequest(
                "the first line has to name the columns customer, coin and amount; account may be one"
            )
        return [_leg(names, row, rows.line_num) for row in rows if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MalformedRequest(f"the file is not CSV in UTF-8: {error}") from error


def _leg(names: list[str], row: list[str], number: int) -> Leg:
    if len(row) != len(names):
        raise MalformedRequest(f"line {number} has {len(row)} values; {len(names)}, one for each column, would pass")
    given = dict(zip(names, map(str.strip, row), strict=True))
    return Leg(given["customer"], given["coin"], given["amount"], given.get("account") or None)


@click.command()
@click.argument("from_customer", metavar="FROM")
@click.argument("to_customer", metavar="TO")
@click.argument("coin")
@click.argument("amount")
@write_options
@click.option("--from-account", type=click.Choice(ACCOUNTS), help="The customer's account (else spot).")
@click.option("--to-account", type=click.Choice(ACCOUNTS), help="The customer's account (else spot).")
@reference_option
@ledger_command()
async def transfer(ledger: CommandLedger, out: Output, dry_run: bool, **given: Any) -> None:
    """Move AMOUNT of COIN from FROM's available to TO's: customers, or house accounts such as @treasury."""
    await write(ledger, out, Transfer(**given), dry_run)
