"""``spotledger``: the command line."""

from __future__ import annotations

import os

import click

from spotledger import __version__
from spotledger.cli import archive, audit, books, clock, demo, history, keys, money, reference, repair, service, trades


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="spotledger")
def program() -> None:
    """Keep the spot accounts of an exchange, and answer signed getBalance requests."""


for _command in (
    service.serve,
    demo.demo,
    books.coin,
    books.customer,
    keys.key,
    keys.token,
    money.deposit,
    money.freeze,
    money.unfreeze,
    money.withdraw,
    money.transfer,
    trades.settle,
    trades.reverse,
    trades.batch,
    books.balances,
    books.holds,
    history.history,
    history.feed,
    history.trial_balance,
    keys.get_balance,
    audit.audit,
    archive.backup,
    archive.restore,
    archive.copy,
    archive.export,
    archive.import_,
    clock.clock,
    repair.recover,
    repair.rebuild,
    repair.epoch,
    service.migrate,
    service.settings,
    reference.reference,
):
    program.add_command(_command)


def main() -> None:
    """Run the command; exit with 0, 1 (refused or failed), 2 (wrong usage) or 3 (an incomplete audit)."""
    os.umask(0o077)  # only the owner may read what is written
    program(prog_name="spotledger")
