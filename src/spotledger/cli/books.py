"""The commands about coins, customers, balances and holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from spotledger.cli.connection import CommandLedger
from spotledger.cli.options import (
    PositionType,
    account_option,
    all_pages,
    asked_at,
    dry_run_option,
    duration_ms,
    ledger_command,
    natural_key,
    not_after_option,
    own_key_option,
    time_ms,
)
from spotledger.cli.output import Output
from spotledger.client.operator.ledger_answers import Hold, Written
from spotledger.domain.accounts import account_of


@click.group()
def coin() -> None:
    """List coins, and show the listed ones."""


@coin.command("add")
@click.argument("coin")
@click.option("--scale", type=int, required=True, metavar="0-24", help="Decimal places: 10**scale units are one coin.")
@own_key_option
@not_after_option
@dry_run_option
@ledger_command(may_make=True)
async def coin_add(ledger: CommandLedger, out: Output, coin: str, scale: int, key: str | None, **more: Any) -> None:
    """List COIN. A listing never changes; running the command again changes nothing."""
    written = await ledger.list_coin(coin, scale, key=key or natural_key("coin-add", coin), **more)
    out.document(ledger.document)
    out.line(f"coin {coin} {_is(written)} listed with {scale} decimals (entry {written.position})")


def _is(written: Written) -> str:
    return "would be" if written.dry_run else "is"


@coin.command("list")
@ledger_command()
async def coin_list(ledger: CommandLedger, out: Output) -> None:
    """Show the listed coins."""
    found = await ledger.coins()
    out.document(ledger.document)
    out.table(("coin", "scale"), ((listed.coin, listed.scale) for listed in found.coins.values()))


@click.group()
def customer() -> None:
    """Register customers, and show the registered ones."""


@customer.command("add")
@click.argument("customer")
@own_key_option
@not_after_option
@dry_run_option
@ledger_command(may_make=True)
async def customer_add(ledger: CommandLedger, out: Output, customer: str, key: str | None, **more: Any) -> None:
    """Register CUSTOMER with a wallet, a spot and a fiat account. Running it again changes nothing."""
    written = await ledger.register_customer(customer, key=key or natural_key("customer-add", customer), **more)
    out.document(ledger.document)
    out.line(f"customer {customer} {_is(written)} registered (entry {written.position})")


@customer.command("list")
@ledger_command()
async def customer_list(ledger: CommandLedger, out: Output) -> None:
    """Show the registered customers."""
    names = await all_pages(ledger, "customers", ledger.customers)
    out.document(ledger.document)
    out.table(("customer",), ((name,) for name in names))


@click.group("house-account")
def house_account() -> None:
    """Open accounts of the exchange itself, such as @treasury, and show them."""


@house_account.command("open")
@click.argument("name")
@click.option("--may-be-negative", is_flag=True, help="Its balances may be below zero.")
@own_key_option
@not_after_option
@dry_run_option
@ledger_command(may_make=True)
async def house_account_open(ledger: CommandLedger, out: Output, name: str, key: str | None, **more: Any) -> None:
    """Open the house account @NAME, for good. Running it again changes nothing."""
    written = await ledger.open_house_account(name, key=key or natural_key("house-account-open", name), **more)
    out.document(ledger.document)
    out.line(f"house account @{name} {_is(written)} open (entry {written.position})")


@house_account.command("list")
@ledger_command()
async def house_account_list(ledger: CommandLedger, out: Output) -> None:
    """Show the house accounts."""
    found = await ledger.house_accounts()
    out.document(ledger.document)
    rows = ((account.name, "yes" if account.may_be_negative else "no") for account in found.house_accounts)
    out.table(("house account", "may be negative"), rows)


@click.command()
@click.argument("customer")
@account_option
@click.option("--all", "with_empty", is_flag=True, help="Include coins with nothing in them.")
@click.option("--at-seq", type=PositionType(), metavar="SEQ", help="The balances after this entry.")
@click.option(
    "--at", metavar="TIME", help="The balances at this time: 2026-01-31T12:00:00Z, or milliseconds since 1970."
)
@ledger_command()
async def balances(
    ledger: CommandLedger,
    out: Output,
    customer: str,
    account: str | None,
    with_empty: bool,
    at_seq: str | None,
    at: str | None,
) -> None:
    """Show the balances of CUSTOMER, now or at any moment in the past: available, freeze and their total."""
    at_ms = time_ms(at, "--at")
    with asked_at(at, "--at"):
        found = await ledger.balances(customer, account, at_seq=at_seq, at_ms=at_ms)
    out.document(ledger.document)
    title = f"{customer}, {account or account_of(customer).kind}, as of entry {found.position}"
    rows = ((coin, both.available, both.freeze) for coin, both in found.balances.items())
    out.balances(rows, with_empty=with_empty, title=title)
    for coin, amount in found.owes.items():
        out.line(f"owes {amount:f} {coin}; what comes in repays it first")


@click.command()
@click.argument("customer", required=False)
@click.option("--state", type=click.Choice(["open", "closed"]), help="Only open or only closed holds.")
@click.option("--older-than", metavar="AGE", help="Only holds of at least this age: 45s, 30m, 12h, 7d, 2w.")
@ledger_command()
async def holds(
    ledger: CommandLedger, out: Output, customer: str | None, state: str | None, older_than: str | None
) -> None:
    """
    Show the holds of CUSTOMER, or without CUSTOMER all open holds, the oldest first.

    An open hold past its time is due: it cannot be used, and is about to expire.
    """
    older_than_ms = 0 if older_than is None else duration_ms(older_than, "--older-than")
    if customer is None:
        if state == "closed":
            raise click.UsageError("--state closed needs a CUSTOMER")
        read: Any = partial(ledger.old_holds, older_than_ms)
    else:
        read = partial(ledger.holds, customer, state, older_than_ms=older_than_ms)
    found = await all_pages(ledger, "holds", read)
    out.document(ledger.document)
    columns = ["hold", "state", "account", "coin", "amount", "remaining", "reference", "key"]
    if customer is None:
        columns.insert(0, "customer")
    rows = ([*(_shown(hold, name) for name in columns), age_text(hold.age_ms)] for hold in found)
    out.table((*columns, "age"), rows)


def _shown(hold: Hold, name: str) -> object:
    return "due" if name == "state" and hold.due else getattr(hold, name)


def age_text(age_ms: int) -> str:
    """Return an age by its two largest units, such as ``1d 1h``."""
    found: list[str] = []
    seconds = age_ms // 1000
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count or (unit == "s" and not found):
            found.append(f"{count}{unit}")
    return " ".join(found[:2])
