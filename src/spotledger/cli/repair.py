"""The commands for a ledger that is damaged or was set back (recover, rebuild, epoch), and those of the master key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from spotledger.archive import recover as recovering
from spotledger.cli.connection import CommandLedger
from spotledger.cli.history import time_text
from spotledger.cli.options import (
    config_option,
    data_option,
    database_option,
    exit_on_error,
    json_option,
    ledger_command,
)
from spotledger.cli.output import Output
from spotledger.client.operator.service_answers import MasterKeyInForce
from spotledger.errors import SettingInvalid
from spotledger.ops.master_keys import offer_key
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
@database_option
@config_option
@json_option
@exit_on_error
def rebuild(data: str | None, database: str | None, config: str | None, out: Output) -> None:
    """
    Throw away what is derived from the journal, and derive it again.

    The embedded ledger must not be running; a rebuild that was interrupted goes on. In a database it happens completely
    or not at all, while nodes go on; the role has to own the tables.
    """
    settings = load_settings({"data": data, "database": database}, os.environ, config).settings
    with out.progress() as progress:

        def tell(done: int, total: int) -> None:
            progress("rebuild", done, total)

        if settings.database is not None:
            from spotledger.ops.fleet import rebuild_database  # imports the database driver

            what, sealed_to = str(settings.database), rebuild_database(settings, tell)
        else:
            with claim_folder(settings.data):
                what, sealed_to = str(settings.data), recovering.rebuild(settings.data, tell)
    out.document({"data" if settings.database is None else "database": what, "sealed_to": sealed_to})
    out.line(f"what is derived in {what} is derived again, up to entry {sealed_to}; the service has the rest in memory")


@click.group()
def epoch() -> None:
    """Tell positions of this history from those of another one."""


@epoch.command()
@data_option
@database_option
@click.option("--reason", required=True, metavar="TEXT", help="Why; the journal keeps it.")
@click.option("--epoch", "number", type=int, metavar="N", help="The epoch to begin, if a later one was used before.")
@click.option(
    "--accept-loss", is_flag=True, help="Also where the database lacks what the node in DIR has seen: it is lost."
)
@config_option
@json_option
@exit_on_error
def begin(
    data: str | None,
    database: str | None,
    reason: str,
    number: int | None,
    accept_loss: bool,
    config: str | None,
    out: Output,
) -> None:
    """
    Begin a new epoch, after the ledger was set back by other means than restore.

    For a machine or a database that was put back to an earlier state, as by a snapshot of the disk or a point-in-time
    recovery: entries that were lost have numbers that are given again, and the new epoch tells them apart. The embedded
    ledger must not be running. A database that lacks what the node in DIR has seen is refused without --accept-loss.
    """
    settings = load_settings({"data": data, "database": database}, os.environ, config).settings
    begun = _begun(settings, reason, number, accept_loss=accept_loss)
    out.document(begun)
    out.line(f"epoch {begun['epoch']} of ledger {begun['ledger_id']} began with entry {begun['seq']}")
    if begun.get("given_up"):
        out.line(
            f"  given up: what followed up to entry {begun['given_up']}, which the node in {settings.data} has seen"
        )


def _begun(settings: Settings, reason: str, number: int | None, *, accept_loss: bool) -> dict[str, Any]:
    """Begin an epoch of the ledger that is there, and describe it; no ledger is made."""
    if settings.database is not None:
        from spotledger.ops.fleet import begin_epoch  # imports the database driver

        begun = begin_epoch(settings, reason, number, accept_loss=accept_loss)
        given_up = begun.given_up
        return {**begun._asdict(), "given_up": None if given_up is None else f"{given_up.epoch}-{given_up.seq}"}
    if accept_loss:
        raise SettingInvalid("--accept-loss of epoch begin needs --database; spotledger recover takes it for a folder.")
    recovering.check_there(settings.data)
    with claim_folder(settings.data) as lock, open_embedded(settings.data, lock=lock) as ledger:
        seq = ledger.begin_epoch(reason, number)
        return {"ledger_id": ledger.ledger_id, "epoch": ledger.epoch, "seq": seq}


@click.group("master-key")
def master_key() -> None:
    """Show and rotate the master key, which seals the secrets of access keys."""


@master_key.command("show")
@ledger_command()
async def master_key_show(ledger: CommandLedger, out: Output) -> None:
    """Show which master key is in force, by its fingerprint, and in a fleet which keys each node holds."""
    _tell_master_key(ledger, out, await ledger.master_key())


@master_key.command("rotate")
@click.option("--new-key-file", metavar="FILE", help="The file with the new key, 64 hex digits (else a new one).")
@ledger_command()
async def master_key_rotate(ledger: CommandLedger, out: Output, new_key_file: str | None) -> None:
    """
    Replace the master key, and seal every secret anew; access keys work on meanwhile.

    Without FILE a new key takes the place of DIR/master.key, and the old one is kept beside it: backups that were made
    before need it. A key that comes from elsewhere has to be replaced there by its operator, with that of FILE.

    In a fleet every node has to be started with --next-master-key-file first.

    After a leak this is not enough: the secrets themselves are known then. Rotate, then issue every access key anew.
    """
    fingerprint = None
    if new_key_file is not None:
        if ledger.folder is None:
            raise SettingInvalid("--new-key-file needs --data: the key is handed over in the data folder.")
        fingerprint = offer_key(ledger.folder, Path(new_key_file), (await ledger.master_key()).fingerprint)
    _tell_master_key(ledger, out, await ledger.rotate_master_key(fingerprint))


def _tell_master_key(ledger: CommandLedger, out: Output, found: MasterKeyInForce) -> None:
    out.document(ledger.document)
    out.line(f"in force  {found.fingerprint}  (from the {found.source})")
    if found.next is not None:
        out.line(f"next      {found.next}")
    for key in found.retired:
        out.line(f"retired   {key.fingerprint}  {time_text(key.retired_ms)}")
    for node in found.nodes:
        out.line(f"node      {node.place}: {', '.join(node.fingerprints)}")
    for sentence in found.to_do:
        out.line(sentence)
