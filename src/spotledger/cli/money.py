"""The commands that move money. Each is one operation, under the idempotency key that ``--key`` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from spotledger import paths
from spotledger.cli import show
from spotledger.cli.connection import Where
from spotledger.cli.options import (
    ACCOUNTS,
    account_option,
    expiry_ms,
    hold_name,
    key_option,
    ledger_command,
    reference_option,
)
from spotledger.client.operator.api import OperatorClient


async def write(client: OperatorClient, where: Where, path: str, body: Mapping[str, Any], key: str) -> None:
    """Do one write, and show its entry and the balances after it."""
    given = {name: value for name, value in body.items() if value is not None}
    _, headers, answer = await client.call("POST", path, given, key=key)
    replayed = headers.get("idempotency-replayed") == "true"
    if where.as_json:
        show.json_document({**answer, "replayed": replayed})
        return
    again = ", done before under this key" if replayed else ""
    hold = f", hold {answer['hold']}" if "hold" in answer else ""
    show.line(f"entry {answer['seq']}: {answer['entry']['kind']}{hold}{again}")
    columns = ("customer", "account", "coin", "available", "freeze")
    rows = [[after[name] for name in columns] for after in answer["balances"] if after["account"] != "house"]
    show.table(columns, rows)


@click.command()
@click.argument("customer")
@click.argument("coin")
@click.argument("amount")
@key_option
@account_option
@reference_option
@ledger_command()
async def deposit(client: OperatorClient, where: Where, key: str, **body: Any) -> None:
    """Book what came in from outside: AMOUNT of COIN for CUSTOMER."""
    await write(client, where, paths.DEPOSITS, body, key)


@click.command()
@click.argument("customer")
@click.argument("coin")
@click.argument("amount")
@key_option
@account_option
@reference_option
@click.option("--expires", metavar="TIME", help="Free it by itself after so long: 45s, 30m, 12h, 90d, 2w.")
@ledger_command()
async def freeze(client: OperatorClient, where: Where, key: str, expires: str | None, **body: Any) -> None:
    """Freeze AMOUNT of COIN that CUSTOMER has available, and open a hold for it."""
    await write(client, where, paths.HOLDS, {**body, "expires_ms": expiry_ms(expires)}, key)


@click.command()
@click.argument("hold")
@click.argument("amount", required=False)
@key_option
@ledger_command()
async def unfreeze(client: OperatorClient, where: Where, hold: str, amount: str | None, key: str) -> None:
    """Free AMOUNT of HOLD, or all that remains of it. HOLD is its id, or key:K for the one that the key K opened."""
    await write(client, where, paths.RELEASES, {"hold": hold_name(hold), "amount": amount}, key)


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="CUSTOMER COIN AMOUNT | AMOUNT")
@click.option("--hold", metavar="HOLD", help="Take it out of this hold; then only AMOUNT is given.")
@key_option
@click.option("--account", type=click.Choice(ACCOUNTS), help="The customer's account; spot where none is given.")
@reference_option
@ledger_command()
async def withdraw(
    client: OperatorClient, where: Where, what: tuple[str, ...], hold: str | None, key: str, **more: Any
) -> None:
    """Book what went outside: AMOUNT of COIN from CUSTOMER, or AMOUNT out of a hold."""
    names = ("customer", "coin", "amount") if hold is None else ("amount",)
    if len(what) != len(names):
        wanted = " ".join(name.upper() for name in names)
        raise click.UsageError(f"withdraw takes {wanted} {'without' if hold is None else 'with'} --hold")
    body = {**dict(zip(names, what, strict=True)), "hold": None if hold is None else hold_name(hold), **more}
    await write(client, where, paths.WITHDRAWALS, body, key)


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("coin")
@click.argument("amount")
@key_option
@click.option("--from-account", type=click.Choice(ACCOUNTS), default="spot", show_default=True)
@click.option("--to-account", type=click.Choice(ACCOUNTS), default="spot", show_default=True)
@reference_option
@ledger_command()
async def transfer(
    client: OperatorClient,
    where: Where,
    source: str,
    target: str,
    from_account: str,
    to_account: str,
    key: str,
    **more: Any,
) -> None:
    """Move AMOUNT of COIN from FROM's available to TO's, or between two accounts of one customer."""
    body = {
        "from": {"customer": source, "account": from_account},
        "to": {"customer": target, "account": to_account},
        **more,
    }
    await write(client, where, paths.TRANSFERS, body, key)
