"""The commands recover and rebuild, for a ledger that a start refuses or whose books are damaged."""

from __future__ import annotations

import os

import click

from spotledger.archive import recover as recovering
from spotledger.cli.options import config_option, data_option, exit_on_error, json_option
from spotledger.cli.output import Output
from spotledger.ops.runtime import claim_folder
from spotledger.ops.settings import load_settings


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
        out.line(f"  epoch {found.new_epoch} begins with the next entry")
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
