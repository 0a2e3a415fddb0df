"""The commands about coins and customers, and what they have."""

from __future__ import annotations

from typing import Any

import click

from spotledger import paths
from spotledger.cli import show
from spotledger.cli.connection import Where
from spotledger.cli.options import (
    account_option,
    all_pages,
    duration_ms,
    ledger_command,
    natural_key,
    own_key_option,
    time_ms,
)
from spotledger.client.operator.api import OperatorClient
from spotledger.client.operator.operations import path_of


@click.group()
def coin() -> None:
    """List coins, and see which are listed."""


@coin.command("add")
@click.argument("coin")
@click.option("--scale", type=int, required=True, metavar="0-18", help="Decimal places: 10**scale units are one coin.")
@own_key_option
@ledger_command(may_make=True)
async def coin_add(client: OperatorClient, where: Where, coin: str, scale: int, key: str | None) -> None:
    """List COIN. A listing never changes; the same command again changes nothing."""
    body = {"coin": coin, "scale": scale}
    _, _, answer = await client.call("POST", paths.COINS, body, key=key or natural_key("coin-add", coin))
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"coin {coin} is listed with {scale} decimals (entry {answer['seq']})")


@coin.command("list")
@ledger_command()
async def coin_list(client: OperatorClient, where: Where) -> None:
    """Show the listed coins."""
    _, _, answer = await client.call("GET", paths.COINS)
    if where.as_json:
        show.json_document(answer)
    else:
        show.table(("coin", "scale"), ((listed["coin"], listed["scale"]) for listed in answer["coins"]))


@click.group()
def customer() -> None:
    """Register customers, and see who is registered."""


@customer.command("add")
@click.argument("customer")
@own_key_option
@ledger_command(may_make=True)
async def customer_add(client: OperatorClient, where: Where, customer: str, key: str | None) -> None:
    """Register CUSTOMER, who then has a wallet, a spot and a fiat account. The same again changes nothing."""
    body = {"customer": customer}
    _, _, answer = await client.call("POST", paths.CUSTOMERS, body, key=key or natural_key("customer-add", customer))
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"customer {customer} is registered (entry {answer['seq']})")


@customer.command("list")
@ledger_command()
async def customer_list(client: OperatorClient, where: Where) -> None:
    """Show the registered customers."""
    answer = await all_pages(client, paths.CUSTOMERS, "customers", {})
    if where.as_json:
        show.json_document(answer)
    else:
        show.table(("customer",), ((name,) for name in answer["customers"]))


@click.command()
@click.argument("customer")
@account_option
@click.option("--all", "with_empty", is_flag=True, help="Show listed coins with nothing in them too.")
@click.option("--at-seq", type=click.IntRange(min=0), metavar="SEQ", help="As it stood after this entry.")
@click.option(
    "--at", metavar="TIME", help="As it stood at this time: 2026-01-31T12:00:00Z, or milliseconds since 1970."
)
@ledger_command()
async def balances(
    client: OperatorClient,
    where: Where,
    customer: str,
    account: str,
    with_empty: bool,
    at_seq: int | None,
    at: str | None,
) -> None:
    """Show what CUSTOMER has, now or at any moment of the past: available, freeze, and their total."""
    params = {
        "account": None if customer.startswith("@") else account,
        "at_seq": at_seq,
        "at_ms": time_ms(at, "--at"),
    }
    _, _, answer = await client.call("GET", path_of(paths.CUSTOMER_BALANCES, customer=customer), params=params)
    if where.as_json:
        show.json_document(answer)
        return
    title = f"{answer['customer']}, {answer['account']}, as of entry {answer['seq']}"
    show.balances_table(answer["balances"], with_empty=with_empty, title=title)
    for coin, amount in answer.get("owes", {}).items():
        show.line(f"owes {amount} {coin}; later deposits repay it first")


@click.command()
@click.argument("customer", required=False)
@click.option("--state", type=click.Choice(["open", "closed"]), help="Only these.")
@click.option("--older-than", metavar="AGE", help="Only those that are at least so old: 45s, 30m, 12h, 7d, 2w.")
@ledger_command()
async def holds(
    client: OperatorClient, where: Where, customer: str | None, state: str | None, older_than: str | None
) -> None:
    """Show why something of CUSTOMER's is frozen; without CUSTOMER, everybody's open holds, the oldest first."""
    params: dict[str, Any] = {"older_than_ms": None if older_than is None else duration_ms(older_than, "--older-than")}
    if customer is None:
        if state == "closed":
            raise click.UsageError("closed holds are shown for one CUSTOMER")
        answer = await all_pages(client, paths.HOLDS, "holds", params)
    else:
        path = path_of(paths.CUSTOMER_HOLDS, customer=customer)
        answer = await all_pages(client, path, "holds", {**params, "state": state})
    if where.as_json:
        show.json_document(answer)
        return
    columns = ("hold", "state", "account", "coin", "amount", "remaining", "reference", "key")
    rows = [[*(hold.get(name) for name in columns), age_text(hold["age_ms"])] for hold in answer["holds"]]
    if customer is None:
        rows = [[hold["customer"], *row] for hold, row in zip(answer["holds"], rows, strict=True)]
    show.table((*(("customer",) if customer is None else ()), *columns, "age"), rows)


def age_text(age_ms: int) -> str:
    """Return a length of time as people say it, by its two largest units."""
    found: list[str] = []
    seconds = age_ms // 1000
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count or (unit == "s" and not found):
            found.append(f"{count}{unit}")
    return " ".join(found[:2])
