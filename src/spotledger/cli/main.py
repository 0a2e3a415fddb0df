"""``spotledger``: the command line."""

from __future__ import annotations

import os
import resource
import sys

import click

from spotledger import __version__
from spotledger.cli import (
    access,
    archive,
    audit,
    books,
    clock,
    demo,
    history,
    keys,
    money,
    reference,
    repair,
    service,
    trades,
)
from spotledger.cli.options import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="spotledger")
def program() -> None:
    """Keep the spot accounts of an exchange, and answer signed getBalance requests."""


for _command in (
    service.serve,
    demo.demo,
    books.coin,
    books.customer,
    books.house_account,
    keys.key,
    keys.token,
    money.deposit,
    money.freeze,
    money.unfreeze,
    money.withdraw,
    money.transfer,
    money.post,
    trades.settle,
    trades.reverse,
    trades.batch,
    books.balances,
    books.holds,
    history.history,
    history.feed,
    history.find,
    history.statement,
    history.trial_balance,
    keys.get_balance,
    access.locks,
    access.access_log,
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
    repair.master_key,
    service.migrate,
    service.settings,
    reference.reference,
):
    program.add_command(_command)


def main() -> None:
    """Run the command; exit with 0, 1 (refused or failed), 2 (wrong usage) or 3 (something could not be looked at)."""
    os.umask(0o077)  # only the owner may read what is written
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file with secrets, of child processes neither
    try:
        program(prog_name="spotledger")
    finally:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Drop output that cannot be written, as to a full disk: Python would try it again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
