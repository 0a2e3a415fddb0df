"""The commands recover, rebuild and epoch, for a ledger that a start refuses, is damaged, or was set back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from spotledger.archive import recover as recovering
from spotledger.cli.options import config_option, data_option, database_option, exit_on_error, json_option
from spotledger.cli.output import Output
from spotledger.ledger.ledger import Ledger
from spotledger.ops.opening import open_embedded
from spotledger.ops.runtime import claim_folder
from spotledger.ops.settings import Settings, load_settings


@click.command()
@data_option
@click.option("--accept-loss", is_flag=True, help="Go on from where the journal ends, in a new epoch.")
@config_option
@json_option
@exit_on_error
def recover(data: str | None, accept_loss: bool, config: str | None, out: Output) -> None:
    """
    Say what is missing of a ledger that a start refuses; changes nothing without --accept-loss.

    For a journal that ends before the noted head, access keys that are behind it, a damaged write-ahead log, or a
    damaged note. Put the files back that have what is missing, if there are any: with --accept-loss those entries are
    lost, and their numbers are given again in the new epoch. Exits with 1 while something is missing.
    """
    folder = load_settings({"data": data}, os.environ, config).settings.data
    with claim_folder(folder):
        found = recovering.accept_loss(folder) if accept_loss else recovering.look(folder)
    out.document({"data": str(folder), **found.as_json()})
    out.line(f"{folder} is ledger {found.ledger_id}, epoch {found.epoch}; its journal ends with entry {found.head_seq}")
    for problem in found.problems:
        out.line(f"  {problem}")
    if not found.problems:
        out.line("  nothing is missing")
    elif found.new_epoch is not None:
        out.line(f"  epoch {found.new_epoch} began with entry {found.head_seq + 1}")
    else:
        raise click.exceptions.Exit(1)


@click.command()
@data_option
@config_option
@json_option
@exit_on_error
def rebuild(data: str | None, config: str | None, out: Output) -> None:
    """Throw away what is derived from the journal, and derive it again; goes on if it was interrupted."""
    folder = load_settings({"data": data}, os.environ, config).settings.data
    with claim_folder(folder), out.progress() as tell:
        sealed_to = recovering.rebuild(folder, lambda done, total: tell("rebuild", done, total))
    out.document({"data": str(folder), "sealed_to": sealed_to})
    out.line(f"the books of {folder} are derived again, up to entry {sealed_to}; the service has the rest in memory")


@click.group()
def epoch() -> None:
    """Tell positions of this history from those of another one."""


@epoch.command()
@data_option
@database_option
@click.option("--reason", required=True, metavar="TEXT", help="Why; the journal keeps it.")
@click.option("--epoch", "number", type=int, metavar="N", help="The epoch to begin, if a later one was used before.")
@config_option
@json_option
@exit_on_error
def begin(
    data: str | None, database: str | None, reason: str, number: int | None, config: str | None, out: Output
) -> None:
    """
    Begin a new epoch, after the ledger was set back by other means than restore.

    For a machine or a database that was put back to an earlier state, as by a snapshot of the disk or a point-in-time
    recovery: entries that were lost have numbers that are given again, and the new epoch tells them apart. The embedded
    ledger must not be running.
    """
    settings = load_settings({"data": data, "database": database}, os.environ, config).settings
    with _opened(settings) as ledger:
        seq = ledger.begin_epoch(reason, number)
        document = {"ledger_id": ledger.ledger_id, "epoch": ledger.epoch, "seq": seq}
    out.document(document)
    out.line(f"epoch {document['epoch']} of ledger {document['ledger_id']} began with entry {seq}")


@contextmanager
def _opened(settings: Settings) -> Iterator[Ledger]:
    """Open the ledger that is there; none is made."""
    if settings.database is not None:
        from spotledger.ops.fleet import address_of, check_there, open_postgres

        check_there(settings)
        with open_postgres(address_of(settings)) as ledger:
            yield ledger
        return
    recovering.check_there(settings.data)
    with claim_folder(settings.data) as lock, open_embedded(settings.data, lock=lock) as ledger:
        yield ledger
