"""The commands backup, restore, copy, export and import."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from spotledger.archive.backup import BACKUPS_FOLDER, check_place, facts_json, hand_over
from spotledger.archive.exports import FORMATS, export_journal
from spotledger.archive.imports import KEY_PREFIX, OpeningBalance, Plan, read_balances
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
from spotledger.client.operator.ledger_answers import Written
from spotledger.client.operator.operations import Deposit, Freeze, Operation, RegisterCustomer
from spotledger.client.operator.service_answers import Backup
from spotledger.domain import operations as domain
from spotledger.domain.accounts import is_house_name
from spotledger.errors import ChainFailed, DataFolderUnusable, Refused
from spotledger.ops.runtime import claim_folder
from spotledger.ops.settings import Settings, load_settings
from spotledger.storage.folder import LEDGER_FILE

#: How long to wait before asking again for the progress of a backup.
BACKUP_PAUSE_SECONDS: Final = 0.3
#: How many access keys and tokens that work again after a restore are named; the rest are only counted.
CAME_BACK_TOLD: Final = 50
#: Lines, or customers to register, in one request of an import.
IMPORT_BATCH: Final = 500

T = TypeVar("T")


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
@click.option("--decimal-comma", is_flag=True, help="Amounts have a comma in place of the point, as in 1000,50.")
@click.option("--check", "only_check", is_flag=True, help="Check the file without booking anything.")
@ledger_command()
async def import_balances(
    ledger: CommandLedger,
    out: Output,
    file: Path,
    key_prefix: str,
    register: bool,
    decimal_comma: bool,
    only_check: bool,
) -> None:
    """
    Book opening balances from the CSV FILE.

    The first line names the columns: customer, coin, available (or amount), and optionally freeze, account, reference
    and key. What is in freeze is deposited too, and held. Lines of zeros are skipped. All lines are checked before the
    first is booked. Importing the same file again books nothing twice.
    """
    scales = {coin.coin: coin.scale for coin in (await ledger.coins()).coins.values()}
    customers = set(await all_pages(ledger, "customers", ledger.customers))
    customers.update(account.name for account in (await ledger.house_accounts()).house_accounts)
    plan = read_balances(file, scales, customers, key_prefix=key_prefix, register=register, decimal_comma=decimal_comma)
    counts = {"lines": len(plan.balances), "zeros": plan.zeros, "to_register": len(plan.new_customers)}
    refused: list[dict[str, Any]] = []
    if only_check:
        out.document({"file": str(file), **counts})
    else:
        with out.progress() as tell:
            result = await _book(ledger, plan, tell)
        refused = result.refused
        counts = {"registered": result.registered, "booked": result.booked, "repeated": result.repeated}
        counts["zeros"] = plan.zeros
        out.document({"file": str(file), **counts, "refused": refused})
    told = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items())
    out.line(f"{file}: {told}" + (f", refused {len(refused)}" if refused else ""))
    for line in refused:
        out.line(f"  line {line['line']}: {line['detail']} [{line['code']}]")
    if refused:
        raise click.exceptions.Exit(1)


class _Booked:
    """What an import did: customers registered, and lines booked, booked before, or refused."""

    def __init__(self) -> None:
        self.registered = self.booked = self.repeated = 0
        self.refused: list[dict[str, Any]] = []

    def take(self, balance: OpeningBalance, outcomes: list[Written | Refused]) -> None:
        """Count the line of *balance* by the *outcomes* of its operations."""
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        # Of a chain, the refusal that is the cause, not those of its neighbours.
        cause = next((one for one in refusals if not isinstance(one, ChainFailed)), None) or next(iter(refusals), None)
        if cause is not None:
            self.refused.append({"line": balance.line, "code": cause.code, "detail": cause.message})
        elif all(isinstance(outcome, Written) and outcome.replayed for outcome in outcomes):
            self.repeated += 1
        else:
            self.booked += 1


async def _book(ledger: CommandLedger, plan: Plan, tell: Tell) -> _Booked:
    """Register the new customers of *plan* and book its balances, in the order of the file."""
    result = _Booked()
    for done, some in _pieces(plan.new_customers, "register", tell):
        outcomes = await ledger.execute([RegisterCustomer(natural_key("customer-add", name), name) for name in some])
        result.registered += sum(isinstance(outcome, Written) and not outcome.replayed for outcome in outcomes)
        tell("register", done, len(plan.new_customers))
    for done, balances in _pieces(plan.balances, "import", tell):
        asked = [list(_operations(balance)) for balance in balances]
        flat = [operation for operations in asked for operation in operations]
        outcomes = await ledger.execute([one for one, _ in flat], chains=[chain for _, chain in flat])
        found = iter(outcomes)
        for balance, operations in zip(balances, asked, strict=True):
            result.take(balance, list(islice(found, len(operations))))
        tell("import", done, len(plan.balances))
    return result


def _pieces(rows: Sequence[T], what: str, tell: Tell) -> Iterator[tuple[int, Sequence[T]]]:
    """Cut *rows* into requests, each with how many of them are done after it."""
    if rows:
        tell(what, 0, len(rows))
    for start in range(0, len(rows), IMPORT_BATCH):
        some = rows[start : start + IMPORT_BATCH]
        yield start + len(some), some


def _operations(balance: OpeningBalance) -> Iterator[tuple[Operation, str | None]]:
    """Give the operations of a line as the client sends them, each with its chain."""
    if balance.available is not None:
        yield _sent(Deposit, balance.available), None
    if balance.frozen is not None:
        deposit, freeze = balance.frozen
        yield _sent(Deposit, deposit), str(balance.line)
        yield _sent(Freeze, freeze), str(balance.line)


def _sent(kind: type[T], operation: domain.Deposit | domain.Freeze) -> T:
    """Return *operation* as the client sends it: without the account of a house account, which is one by itself."""
    given = {name: getattr(operation, name) for name in operation.__slots__}
    return kind(**given | ({"account": None} if is_house_name(operation.customer) else {}))
