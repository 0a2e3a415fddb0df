"""The commands that carry a ledger elsewhere and back: backup, restore, copy, export, import."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from spotledger.archive.backup import BACKUPS_FOLDER, check_place, facts_json, hand_over
from spotledger.archive.exports import FORMATS, export_journal
from spotledger.archive.imports import KEY_PREFIX, OpeningBalance, read_balances
from spotledger.archive.restore import MasterKeySource, Restored, restore as restore_backup
from spotledger.cli import show
from spotledger.cli.connection import Where
from spotledger.cli.options import (
    all_pages,
    config_option,
    exit_on_error,
    json_option,
    ledger_command,
    natural_key,
)
from spotledger.client.operator.api import OperatorClient
from spotledger.client.operator.operations import path_part
from spotledger.errors import DataFolderUnusable
from spotledger.ops.runtime import claim_folder
from spotledger.ops.settings import Settings, load_settings
from spotledger.storage.folder import LEDGER_FILE

#: How often the command asks how far a backup is.
BACKUP_PAUSE_SECONDS: Final = 0.3
#: Access keys and tokens that came back with a restore and are told one by one; the others are counted.
CAME_BACK_TOLD: Final = 50
#: Deposits in one request of an import; all of them are one commit.
IMPORT_BATCH: Final = 500
#: Customers that an import registers at the same time.
IMPORT_AT_ONCE: Final = 50


class _Bar:
    """A progress bar on standard error, where that is a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def _bar(what: str) -> Iterator[_Bar]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, progress.add_task(what, total=None))


def _settings(data: str | None, config: str | None, **more: str | None) -> Settings:
    return load_settings({"data": data, **more}, os.environ, config).settings


def _when(booked_ms: int) -> str:
    return f"{datetime.fromtimestamp(booked_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


# --- backup and restore ----------------------------------------------------------------------------


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@ledger_command()
async def backup(client: OperatorClient, where: Where, file: Path) -> None:
    """
    Make a backup of the ledger in FILE, while writes go on or without a server.

    With --operator-url, FILE is the name that the backup gets in the folder backups of that server's data folder.
    """
    if where.operator_url is not None:
        state = await _made(client, str(file))
        told = f"backup {file} is in the folder {BACKUPS_FOLDER} of the server's data folder"
    else:
        check_place(file)
        state = await _made(client, f"{uuid.uuid4()}.backup")
        hand_over(_settings(where.data, where.config).data, state["file"], file)
        state["file"] = str(file)
        told = f"backup {file}"
    if where.as_json:
        show.json_document(state)
        return
    show.line(f"{told}: ledger {state['ledger_id']}, epoch {state['epoch']}, {state['bytes']} bytes")
    show.line(f"  up to entry {state['seq']}, {_when(state['booked_ms'])}, hash {state['hash']}")
    fingerprint = state["master_key_fingerprint"]
    show.line(f"  access keys: {'none' if fingerprint is None else f'sealed with the master key {fingerprint}'}")


async def _made(client: OperatorClient, name: str) -> dict[str, Any]:
    """Have the backup *name* made, and return what it holds."""
    with _bar("backup") as bar:
        _, _, state = await client.call("POST", "/v1/backups", {"file": name})
        while state["state"] == "running":
            bar(state["pages"] - state["pages_left"], state["pages"])
            await asyncio.sleep(BACKUP_PAUSE_SECONDS)
            _, _, state = await client.call("GET", f"/v1/backups/{path_part(name)}")
    return state


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="DIR", help="The data folder: a new one, or one without a ledger.")
@click.option("--master-key-file", metavar="FILE", help="Where the master key is (else it is sought as serve does).")
@click.option("--without-master-key", is_flag=True, help="Where it is lost: restore the books, revoke all access keys.")
@click.option("--epoch", type=int, metavar="N", help="Begin this epoch: where the same backup was restored before.")
@click.option(
    "--credentials-from-backup",
    is_flag=True,
    help="Take access keys and tokens as they are in the backup, even those that DIR knows to be revoked.",
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
    as_json: bool,
) -> None:
    """
    Make the backup FILE the ledger of the folder DIR, audit it, and begin a new epoch.

    What was written after the backup is not in it: have it sent again, with the same idempotency keys. What was
    revoked since stays revoked where DIR has the access keys of the ledger (keys.db).
    """
    settings = _settings(data, None, master_key_file=master_key_file)
    source = None if without_master_key else MasterKeySource(settings.master_key_file, os.environ)
    with claim_folder(settings.data), _bar("audit") as bar:
        found = restore_backup(
            file,
            settings.data,
            source,
            epoch,
            lambda position: bar(position.seq, position.last_seq),
            credentials_from_backup=credentials_from_backup,
        )
    held = {**facts_json(found.backup), "epoch": found.epoch, "backup_epoch": found.backup.epoch}
    if as_json:
        came_back = found.good.as_json() if found.kept_revoked is None else None
        more = {"access_keys": found.access_keys, "operator_token": found.operator_token, "audit": "clean"}
        more |= {"kept_revoked": found.kept_revoked, "came_back": came_back, "admin_token": found.good.has_admin}
        show.json_document({"data": str(settings.data), **held, **more})
        return
    show.line(f"{settings.data} is ledger {held['ledger_id']} up to entry {held['seq']}, {_when(held['booked_ms'])}")
    show.line(f"  the audit is clean; epoch {found.epoch} begins with the next entry")
    if not found.access_keys:
        show.line("  all access keys are revoked: make new ones with spotledger key create")
    _tell_credentials(found)
    if not found.good.has_admin:
        show.line(
            "  no operator token with the scope admin is left; spotledger token create --scope admin makes one"
        )
    elif not found.operator_token:
        show.line(f"  operator tokens work as before; put the file operator.token back into {settings.data}")


def _tell_credentials(found: Restored) -> None:
    if found.kept_revoked is not None:
        show.line(f"  {found.kept_revoked} access keys and operator tokens that were revoked since the backup stay so")
        return
    what = "access keys and operator tokens" if found.access_keys else "operator tokens"
    show.line(f"  {what} that were revoked since the backup work again: revoke them again")
    good = found.good.as_json()
    lines = [f"access key {key['accesskey']} of {key['customer']} {key['label']}" for key in good["access_keys"]]
    lines += [f"token {token['token_id']} {token['label']}" for token in good["tokens"]]
    for line in lines[:CAME_BACK_TOLD]:
        show.line(f"    {line}")
    if len(lines) > CAME_BACK_TOLD:
        show.line(f"    and {len(lines) - CAME_BACK_TOLD} more: spotledger key list and token list have them all")


# --- copy -------------------------------------------------------------------------------------------


@click.command("copy")
@click.option("--data", metavar="DIR", help="The data folder of the embedded ledger; no server may run in it.")
@click.option("--database", metavar="URL", help="The empty PostgreSQL database (else SPOTLEDGER_DATABASE).")
@config_option
@json_option
@exit_on_error
def copy(data: str | None, database: str | None, config: str | None, as_json: bool) -> None:
    """
    Copy the embedded ledger in DIR into an empty PostgreSQL database, and audit both.

    Entries, hashes, access keys and tokens are the same there. A copy that was broken off goes on with the same
    command; no node starts on half of one. DIR is left as it is: from then on, serve the database and not DIR.
    """
    from spotledger.archive.copying import copy_ledger  # the driver is loaded where it is needed
    from spotledger.ops.fleet import address_of

    settings = _settings(data, config, database=database)
    address = address_of(settings)
    if not (settings.data / LEDGER_FILE).exists():
        raise DataFolderUnusable(f"There is no ledger in {settings.data}; name its folder with --data.")
    with claim_folder(settings.data), _bars() as tell:
        done = copy_ledger(settings.data, address, tell)
    if as_json:
        found = done._asdict()
        del found["head"]
        show.json_document({**found, "seq": done.head.seq, "hash": done.head.hash.hex(), "audit": "clean"})
        return
    show.line(f"{settings.database} has ledger {done.ledger_id}, epoch {done.epoch}, up to entry {done.head.seq}")
    show.line(f"  hash {done.head.hash.hex()}; both audits are clean and agree")
    show.line(f"  {done.balances} balances, {done.open_holds} open holds, {done.access_keys} access keys,"
              f" {done.tokens} operator tokens")  # fmt: skip
    show.line(f"  serve it with --database, and no more without: what is in {settings.data} stays behind from now on")


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Give what shows several pieces of work on standard error, one after the other, where that is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            progress.update(tasks[what], completed=done, total=total)

        yield tell


# --- export and import -----------------------------------------------------------------------------


@click.group()
def export() -> None:
    """Write what the ledger has to files for other programs."""


@export.command("journal")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "file_format", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True)
@click.option("--after-seq", type=click.IntRange(0), default=0, metavar="N", help="Begin after this entry.")
@click.option("--data", metavar="DIR", help="The data folder (else SPOTLEDGER_DATA, else ./data).")
@click.option(
    "--database", metavar="URL", help="The PostgreSQL database (else SPOTLEDGER_DATABASE), or a standby of it."
)
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
    as_json: bool,
) -> None:
    """Write the journal to FILE: one JSON line an entry, or a Parquet file with one row a posting."""
    settings = _settings(data, config, database=database)
    with _bar("export") as bar:
        if settings.database is None:
            done = export_journal(settings.data, file, file_format, after_seq, bar)
        else:
            from spotledger.archive.exports_postgres import export_database
            from spotledger.ops.fleet import address_of  # the driver is loaded where it is needed

            done = export_database(address_of(settings), file, file_format, after_seq, bar)
    if as_json:
        show.json_document({"file": str(file), "format": file_format, **done._asdict(), "hash": done.hash.hex()})
    else:
        show.line(f"{file}: {done.entries} entries, {done.after_seq + 1} to {done.seq}, of epoch {done.epoch}")
        show.line(f"  hash of entry {done.seq}: {done.hash.hex()}")


@click.group("import")
def import_() -> None:
    """Take over what other systems have."""


@import_.command("balances")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key-prefix", default=KEY_PREFIX, show_default=True, metavar="P", help="Begins the idempotency keys.")
@click.option("--register", is_flag=True, help="Register customers that are not registered yet.")
@click.option("--check", "only_check", is_flag=True, help="Check the file, and book nothing.")
@ledger_command()
async def import_balances(
    client: OperatorClient, where: Where, file: Path, key_prefix: str, register: bool, only_check: bool
) -> None:
    """
    Book opening balances from the CSV FILE as deposits, each once.

    Its first line names the columns: customer, coin, amount; account, reference and key if wished. All lines are
    checked before the first is booked. The same file again books nothing twice.
    """
    _, _, listed = await client.call("GET", "/v1/coins")
    coins = {coin["coin"]: coin["scale"] for coin in listed["coins"]}
    registered = await all_pages(client, "/v1/customers", "customers", {})
    plan = read_balances(file, coins, set(registered["customers"]), key_prefix=key_prefix, register=register)
    if only_check:
        told: dict[str, Any] = {"lines": len(plan.balances), "to_register": len(plan.new_customers)}
    else:
        with _bar("import") as bar:
            await _register(client, plan.new_customers)
            told = {"registered": len(plan.new_customers), **await _book(client, plan.balances, bar)}
    _tell_import(file, told, as_json=where.as_json)
    if told.get("refused"):
        raise click.exceptions.Exit(1)


async def _register(client: OperatorClient, customers: list[str]) -> None:
    left = iter(customers)
    while some := list(islice(left, IMPORT_AT_ONCE)):
        calls = (
            client.call("POST", "/v1/customers", {"customer": name}, key=natural_key("customer-add", name))
            for name in some
        )
        await asyncio.gather(*calls)


async def _book(client: OperatorClient, balances: list[OpeningBalance], bar: _Bar) -> dict[str, Any]:
    """Book *balances* in order, and count what came of them."""
    booked = repeated = 0
    refused: list[dict[str, Any]] = []
    for start in range(0, len(balances), IMPORT_BATCH):
        some = balances[start : start + IMPORT_BATCH]
        operations = [_operation(balance) for balance in some]
        _, _, answer = await client.call("POST", "/v1/batches", {"operations": operations})
        for balance, result in zip(some, answer["results"], strict=True):
            if "code" in result:
                refused.append({"line": balance.line, "code": result["code"], "detail": result["detail"]})
            elif result.get("replayed"):
                repeated += 1
            else:
                booked += 1
        bar(start + len(some), len(balances))
    return {"booked": booked, "repeated": repeated, "refused": refused}


def _operation(balance: OpeningBalance) -> dict[str, Any]:
    found = {"op": "deposit", **asdict(balance.deposit)}
    return {name: value for name, value in found.items() if value is not None}


def _tell_import(file: Path, told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.json_document({"file": str(file), **told})
        return
    counts = ", ".join(f"{what.replace('_', ' ')} {told[what]}" for what in told if what != "refused")
    refused = told.get("refused", [])
    show.line(f"{file}: {counts}" + (f", refused {len(refused)}" if refused else ""))
    for line in refused:
        show.line(f"  line {line['line']}: {line['detail']} [{line['code']}]")
