"""The commands backup, restore, copy, export and import."""

from __future__ import annotations

import asyncio
import os
import uuid
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from spotledger.archive.backup import BACKUPS_FOLDER, check_place, facts_json, hand_over
from spotledger.archive.exports import FORMATS, export_journal
from spotledger.archive.imports import KEY_PREFIX, OpeningBalance, read_balances
from spotledger.archive.restore import MasterKeySource, Restored, restore as restore_backup
from spotledger.cli.connection import CommandLedger
from spotledger.cli.history import time_text
from spotledger.cli.options import (
    all_pages,
    config_option,
    data_option,
    database_option,
    exit_on_error,
    json_option,
    ledger_command,
    natural_key,
)
from spotledger.cli.output import Output, Tell
from spotledger.client.operator.operations import Deposit
from spotledger.client.operator.service_answers import Backup
from spotledger.errors import DataFolderUnusable, Refused
from spotledger.ops.runtime import claim_folder
from spotledger.ops.settings import Settings, load_settings
from spotledger.storage.folder import LEDGER_FILE

#: How long to wait before asking again for the progress of a backup.
BACKUP_PAUSE_SECONDS: Final = 0.3
#: How many access keys and tokens that work again after a restore are named; the rest are only counted.
CAME_BACK_TOLD: Final = 50
#: Deposits in one request of an import, and so in one commit.
IMPORT_BATCH: Final = 500
#: Customers that an import registers at the same time.
IMPORT_AT_ONCE: Final = 50


def _settings(data: str | None, config: str | None, **more: str | None) -> Settings:
    return load_settings({"data": data, **more}, os.environ, config).settings


def _when(booked_ms: int) -> str:
    return f"{time_text(booked_ms)} UTC"


# --- backup and restore ----------------------------------------------------------------------------


@click.command()
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@ledger_command()
async def backup(ledger: CommandLedger, out: Output, file: Path) -> None:
    """
    Back up the ledger to FILE, with or without a running server; writes go on meanwhile.

    With --operator-url, FILE is the name of the backup in the folder backups of that server's data folder.
    """
    if ledger.folder is None:
        made = await _made(ledger, out, str(file))
        told = f"backup {file} is in the folder {BACKUPS_FOLDER} of the server's data folder"
    else:
        check_place(file)
        made = await _made(ledger, out, f"{uuid.uuid4()}.backup")
        hand_over(ledger.folder, made.file, file)
        told = f"backup {file}"
    out.document({**ledger.document, "file": str(file)})
    out.line(f"{told}: ledger {made.ledger_id}, epoch {made.epoch}, {made.bytes} bytes")
    out.line(f"  up to entry {made.seq}, {_when(made.booked_ms or 0)}, hash {made.hash}")
    fingerprint = made.master_key_fingerprint
    out.line(f"  access keys: {'none' if fingerprint is None else f'sealed with the master key {fingerprint}'}")


async def _made(ledger: CommandLedger, out: Output, name: str) -> Backup:
    """Make the backup *name*; return what it contains."""
    with out.progress() as tell:
        found = await ledger.make_backup(name)
        while found.state == "running":
            pages = found.pages or 0
            tell("backup", pages - (found.pages_left or 0), pages)
            await asyncio.sleep(BACKUP_PAUSE_SECONDS)
            found = await ledger.backup(name)
    return found


@click.command()
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@click.option("--data", required=True, metavar="DIR", help="The data folder: a new one, or one without a ledger.")
@click.option("--master-key-file", metavar="FILE", help="The file with the master key (else as for serve).")
@click.option(
    "--without-master-key",
    is_flag=True,
    help="If the master key is lost: restore the books, and revoke all access keys.",
)
@click.option("--epoch", type=int, metavar="N", help="The epoch to begin, if the same backup was restored before.")
@click.option(
    "--credentials-from-backup",
    is_flag=True,
    help="Take access keys and tokens as they are in the backup, including those revoked in DIR since.",
)
@json_option
@exit_on_error
def restore(
    file: Path,
    data: str,
    master_key_file: str | None,
    without_master_key: bool,
    epoch: int | None,
    credentials_from_backup: bool,
    out: Output,
) -> None:
    """
    Restore the backup FILE to the folder DIR, audit it, and begin a new epoch.

    Writes after the backup are not in it: send them again with the same idempotency keys. If DIR still has the access
    keys of the ledger (keys.db), whatever was revoked after the backup stays revoked.
    """
    settings = _settings(data, None, master_key_file=master_key_file)
    source = None if without_master_key else MasterKeySource(settings.master_key_file, os.environ)
    with claim_folder(settings.data), out.progress() as tell:
        found = restore_backup(
            file,
            settings.data,
            source,
            epoch,
            lambda position: tell("audit", position.seq, position.last_seq),
            credentials_from_backup=credentials_from_backup,
        )
    held = {**facts_json(found.backup), "epoch": found.epoch, "backup_epoch": found.backup.epoch}
    more = {"access_keys": found.access_keys, "operator_token": found.operator_token, "audit": "clean"}
    came_back = found.good.as_json() if found.kept_revoked is None else None
    more |= {"kept_revoked": found.kept_revoked, "came_back": came_back, "admin_token": found.good.has_admin}
    more["retired_master_key"] = found.has_retired_master_key
    out.document({"data": str(settings.data), **held, **more})
    out.line(f"{settings.data} is ledger {held['ledger_id']} up to entry {held['seq']}, {_when(held['booked_ms'])}")
    out.line(f"  the audit is clean; epoch {found.epoch} began with entry {found.backup.seq + 1}")
    if not found.access_keys:
        out.line("  all access keys are revoked; make new ones with spotledger key create")
    _tell_credentials(out, found)
    if found.has_retired_master_key:
        out.line("  the secrets are sealed with a master key that was replaced since; spotledger master-key rotate")
    if not found.good.has_admin:
        out.line("  no operator token with the scope admin is left; spotledger token create --scope admin makes one")
    elif not found.operator_token:
        out.line(f"  operator tokens work as before; put the file operator.token back into {settings.data}")


def _tell_credentials(out: Output, found: Restored) -> None:
    """Print which access keys and tokens work again, or how many stay revoked."""
    if found.kept_revoked is not None:
        out.line(f"  {found.kept_revoked} access keys and operator tokens revoked after the backup stay revoked")
        return
    what = "access keys and operator tokens" if found.access_keys else "operator tokens"
    out.line(f"  {what} that were revoked after the backup work again; revoke them again")
    good = found.good.as_json()
    lines = [f"access key {key['accesskey']} of {key['customer']} {key['label']}" for key in good["access_keys"]]
    lines += [f"token {token['token_id']} {token['label']}" for token in good["tokens"]]
    for line in lines[:CAME_BACK_TOLD]:
        out.line(f"    {line}")
    if len(lines) > CAME_BACK_TOLD:
        out.line(f"    and {len(lines) - CAME_BACK_TOLD} more; list them all with spotledger key list and token list")


# --- copy -------------------------------------------------------------------------------------------


@click.command("copy")
@click.option("--data", metavar="DIR", help="The data folder of the embedded ledger, without a running server.")
@click.option("--database", metavar="URL", help="The empty PostgreSQL database (else SPOTLEDGER_DATABASE).")
@config_option
@json_option
@exit_on_error
def copy(data: str | None, database: str | None, config: str | None, out: Output) -> None:
    """
    Copy the embedded ledger in DIR into an empty PostgreSQL database, and audit both.

    Entries, hashes, access keys and tokens are copied unchanged. If a copy is interrupted, the same command continues
    it; no node starts on an incomplete copy. DIR stays unchanged: from then on, serve the database and not DIR.
    """
    from spotledger.archive.copying import copy_ledger  # imports the database driver
    from spotledger.ops.fleet import right_server

    settings = _settings(data, config, database=database)
    right = right_server(settings)
    if not (settings.data / LEDGER_FILE).exists():
        raise DataFolderUnusable(f"There is no ledger in {settings.data}; name its folder with --data.")
    with claim_folder(settings.data), out.progress() as tell:
        done = copy_ledger(settings.data, right.address, tell, right.seen.seen)
    found = {**done._asdict(), "seq": done.head.seq, "hash": done.head.hash.hex(), "audit": "clean"}
    del found["head"]
    out.document(found)
    out.line(f"{settings.database} has ledger {done.ledger_id}, epoch {done.epoch}, up to entry {done.head.seq}")
    out.line(f"  hash {done.head.hash.hex()}; both audits are clean and agree")
    out.line(f"  {done.balances} balances, {done.open_holds} open holds, {done.access_keys} access keys,"
              f" {done.tokens} operator tokens")  # fmt: skip
    out.line(f"  from now on serve it with --database; the ledger in {settings.data} is not updated any more")


# --- export and import -----------------------------------------------------------------------------


@click.group()
def export() -> None:
    """Write the ledger to files for other programs."""


@export.command("journal")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@click.option("--format", "file_format", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True)
@click.option("--after-seq", type=click.IntRange(0), default=0, metavar="N", help="Only entries after this one.")
@data_option
@database_option
@config_option
@json_option
@exit_on_error
def export_journal_command(
    file: Path,
    file_format: str,
    after_seq: int,
    data: str | None,
    database: str | None,
    config: str | None,
    out: Output,
) -> None:
    """
    Write the journal to FILE: JSON with one line per entry, or Parquet with one row per posting.

    A database must have what the node in DIR has seen; another server is not exported.
    """
    settings = _settings(data, config, database=database)
    with out.progress() as tell:
        bar = partial(tell, "export")
        if settings.database is None:
            done = export_journal(settings.data, file, file_format, after_seq, bar)
        else:
            from spotledger.archive.exports_postgres import export_database  # imports the database driver
            from spotledger.ops.fleet import right_server

            right = right_server(settings)
            done = export_database(right.address, file, file_format, after_seq, bar, right.seen.seen)
    out.document({"file": str(file), "format": file_format, **done._asdict(), "hash": done.hash.hex()})
    out.line(f"{file}: {done.entries} entries, {done.after_seq + 1} to {done.seq}, of epoch {done.epoch}")
    out.line(f"  hash of entry {done.seq}: {done.hash.hex()}")


@click.group("import")
def import_() -> None:
    """Import data of other systems."""


@import_.command("balances")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--key-prefix", default=KEY_PREFIX, show_default=True, metavar="P", help="The prefix of the idempotency keys."
)
@click.option("--register", is_flag=True, help="Register customers that are not registered yet.")
@click.option("--check", "only_check", is_flag=True, help="Check the file without booking anything.")
@ledger_command()
async def import_balances(
    ledger: CommandLedger, out: Output, file: Path, key_prefix: str, register: bool, only_check: bool
) -> None:
    """
    Book opening balances from the CSV FILE as deposits.

    The first line names the columns: customer, coin, amount, and optionally account, reference and key. All lines are
    checked before the first is booked. Importing the same file again books nothing twice.
    """
    scales = {coin.coin: coin.scale for coin in (await ledger.coins()).coins.values()}
    customers = set(await all_pages(ledger, "customers", ledger.customers))
    plan = read_balances(file, scales, customers, key_prefix=key_prefix, register=register)
    refused: list[dict[str, Any]] = []
    if only_check:
        counts = {"lines": len(plan.balances), "to_register": len(plan.new_customers)}
        out.document({"file": str(file), **counts})
    else:
        with out.progress() as tell:
            await _register(ledger, plan.new_customers)
            booked, repeated, refused = await _book(ledger, plan.balances, tell)
        counts = {"registered": len(plan.new_customers), "booked": booked, "repeated": repeated}
        out.document({"file": str(file), **counts, "refused": refused})
    told = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items())
    out.line(f"{file}: {told}" + (f", refused {len(refused)}" if refused else ""))
    for line in refused:
        out.line(f"  line {line['line']}: {line['detail']} [{line['code']}]")
    if refused:
        raise click.exceptions.Exit(1)


async def _register(ledger: CommandLedger, customers: list[str]) -> None:
    left = iter(customers)
    while some := list(islice(left, IMPORT_AT_ONCE)):
        calls = (ledger.register_customer(name, key=natural_key("customer-add", name)) for name in some)
        await asyncio.gather(*calls)


async def _book(
    ledger: CommandLedger, balances: list[OpeningBalance], tell: Tell
) -> tuple[int, int, list[dict[str, Any]]]:
    """Book *balances* in order; return how many were booked, how many had been before, and the refused lines."""
    booked = repeated = 0
    refused: list[dict[str, Any]] = []
    for start in range(0, len(balances), IMPORT_BATCH):
        some = balances[start : start + IMPORT_BATCH]
        outcomes = await ledger.execute([Deposit(**asdict(balance.deposit)) for balance in some])
        for balance, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, Refused):
                refused.append({"line": balance.line, "code": outcome.code, "detail": outcome.message})
            elif outcome.replayed:
                repeated += 1
            else:
                booked += 1
        tell("import", start + len(some), len(balances))
    return booked, repeated, refused
