"""The commands about the clock of the service."""

from __future__ import annotations

import click

from spotledger.cli.connection import CommandLedger
from spotledger.cli.history import time_text
from spotledger.cli.options import ledger_command
from spotledger.cli.output import Output
from spotledger.client.operator.service_answers import ClockState


@click.group()
def clock() -> None:
    """Show the clock of the service, and trust it."""


@clock.command("show")
@ledger_command()
async def clock_show(ledger: CommandLedger, out: Output) -> None:
    """Show the time that counts, that of the wall clock (in a fleet: the database's), and whether it is trusted."""
    _show(out, ledger, await ledger.clock())


@clock.command("trust")
@ledger_command()
async def clock_trust(ledger: CommandLedger, out: Output) -> None:
    """
    Trust the wall clock as it stands, although it differs from the time that is known.

    Look at it first: entries are booked at its time, and holds expire by it at once. Without a running server, the time
    is noted, and the next start goes on.

    In a fleet (--data of a node, or --database) this trusts the clock of the database, whatever that of the node shows,
    and every node that runs follows. The wall clock is trusted on that node only.
    """
    _show(out, ledger, await ledger.trust_clock())


def _show(out: Output, ledger: CommandLedger, found: ClockState) -> None:
    out.document(ledger.document)
    out.line(f"time that counts  {time_text(found.now_ms)}")
    out.line(f"wall clock        {time_text(found.wall_ms)}")
    out.line("trusted" if found.trusted else f"not trusted: {found.reason}; nothing is booked and nothing expires")
