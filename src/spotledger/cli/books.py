"""The commands about coins and customers, and what they have."""

from __future__ import annotations

import click

from spotledger.cli import show
from spotledger.cli.connection import Where
from spotledger.cli.options import account_option, all_pages, ledger_command, natural_key, own_key_option, path_part
from spotledger.client.operator import OperatorClient


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
    _, _, answer = await client.call("POST", "/v1/coins", body, key=key or natural_key("coin-add", coin))
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"coin {coin} is listed with {scale} decimals (entry {answer['seq']})")


@coin.command("list")
@ledger_command()
async def coin_list(client: OperatorClient, where: Where) -> None:
    """Show the listed coins."""
    _, _, answer = await client.call("GET", "/v1/coins")
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
    _, _, answer = await client.call("POST", "/v1/customers", body, key=key or natural_key("customer-add", customer))
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"customer {customer} is registered (entry {answer['seq']})")


@customer.command("list")
@ledger_command()
async def customer_list(client: OperatorClient, where: Where) -> None:
    """Show the registered customers."""
    answer = await all_pages(client, "/v1/customers", "customers", {})
    if where.as_json:
        show.json_document(answer)
    else:
        show.table(("customer",), ((name,) for name in answer["customers"]))


@click.command()
@click.argument("customer")
@account_option
@click.option("--all", "with_empty", is_flag=True, help="Show listed coins with nothing in them too.")
@ledger_command()
async def balances(client: OperatorClient, where: Where, customer: str, account: str, with_empty: bool) -> None:
    """Show what CUSTOMER has: available, freeze, and their total."""
    params = {"account": None if customer.startswith("@") else account}
    _, _, answer = await client.call("GET", f"/v1/customers/{path_part(customer)}/balances", params=params)
    if where.as_json:
        show.json_document(answer)
    else:
        title = f"{answer['customer']}, {answer['account']}, as of entry {answer['seq']}"
        show.balances_table(answer["balances"], with_empty=with_empty, title=title)


@click.command()
@click.argument("customer")
@click.option("--state", type=click.Choice(["open", "closed"]), help="Only these.")
@ledger_command()
async def holds(client: OperatorClient, where: Where, customer: str, state: str | None) -> None:
    """Show why something of CUSTOMER's is frozen."""
    answer = await all_pages(client, f"/v1/customers/{path_part(customer)}/holds", "holds", {"state": state})
    if where.as_json:
        show.json_document(answer)
        return
    columns = ("hold", "state", "account", "coin", "amount", "remaining", "reference")
    show.table(columns, ([hold[name] for name in columns] for hold in answer["holds"]))
