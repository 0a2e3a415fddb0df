"""The commands about who is let in: the locks of the traders' gate."""

from __future__ import annotations

from typing import Any

import click

from spotledger.cli.connection import CommandLedger
from spotledger.cli.history import time_text
from spotledger.cli.options import ledger_command
from spotledger.cli.output import Output


@ledger_command()
async def _show_locks(ledger: CommandLedger, out: Output) -> None:
    found = await ledger.locks()
    out.document(ledger.document)
    rows = ((lock.name, lock.customer or lock.address, lock.limit, time_text(lock.until_ms)) for lock in found.locks)
    out.table(("name", "locked", "limit", "until"), rows)


# The group lists by itself, so it has the options of a command.
@click.group(invoke_without_command=True, params=list(reversed(_show_locks.__click_params__)))  # type: ignore[attr-defined]
@click.pass_context
def locks(context: click.Context, /, **options: Any) -> None:
    """Show the customers and addresses that are locked for sending too many requests; `lift` lifts one."""
    if context.invoked_subcommand is None:
        _show_locks(**options)
    elif any(options[name] is not None for name in options if name != "out"):
        raise click.UsageError(f"Options belong behind the command: locks {context.invoked_subcommand} … --data DIR")


@locks.command("lift")
@click.argument("name")
@ledger_command()
async def locks_lift(ledger: CommandLedger, out: Output, name: str) -> None:
    """Lift the lock NAME, as `spotledger locks` shows it, on every worker, and with Redis on every node."""
    lifted = await ledger.lift_lock(name)
    out.document(ledger.document)
    out.line(f"the lock on {lifted.customer or lifted.address} is lifted")
