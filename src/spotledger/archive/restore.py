"""Making a ledger of a backup: in an empty folder, checked and audited before it has its name, in a new epoch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.audit.embedded import audit_file
from spotledger.audit.findings import Finding
from spotledger.audit.report import CLEAN, KnownHead, Progress, Report
from spotledger.clock import now_ms
from spotledger.errors import (
    BackupDamaged,
    DataFolderUnusable,
    InvalidRequest,
    LedgerCorrupt,
    MasterKeyRefused,
    SpotledgerError,
)
from spotledger.security.cipher import Cipher
from spotledger.storage.atomic_file import move, sync
from spotledger.storage.folder import (
    LEDGER_FILE,
    MASTER_KEY_FILE,
    MASTER_KEY_VARIABLE,
    TOKEN_FILE,
    load_master_key,
    make_folder,
    unusable,
)
from spotledger.storage.sqlite.copy import BackupFacts, check_structure, make_ledger_again, read_facts
from spotledger.storage.sqlite.journal import SqliteJournal

#: Within the data folder, while a restore is at work; what a killed one left is removed by the next.
STAGING_FOLDER: Final = "restoring"
#: An epoch is shown to readers as a JSON number.
EPOCH_LIMIT: Final = 2**53
COPY_BYTES: Final = 1024 * 1024
#: How many kinds of findings of an audit are said in a message.
FINDINGS_SAID: Final = 5


class MasterKeySource(NamedTuple):
    """Where the master key may be: a file that is named, or the environment; else in the data folder."""

    file: Path | None
    environ: Mapping[str, str]


class Restored(NamedTuple):
    """What was restored: what the backup held, the epoch that begins, whether access keys still work."""

    backup: BackupFacts
    epoch: int
    access_keys: bool
    operator_token: bool


def restore(
    file: Path,
    folder: Path,
    master_key: MasterKeySource | None,
    epoch: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Restored:
    """
    Make the backup *file* the ledger of *folder*, which the caller owns, and audit it.

    Args:
        file: What ``spotledger backup`` made; it is left as it is.
        folder: A data folder without a ledger.
        master_key: Where to look for the master key that the access keys' secrets were sealed with. None: do without
            it; then all access keys are revoked, because nobody can check a signature any more.
        epoch: The epoch to begin; one more than the backup's where None.
        progress: Told how far the audit is.

    Raises:
        DataFolderUnusable: *folder* has a ledger already, or cannot be written.
        SchemaMismatch: *file* is no backup, or of another version.
        BackupDamaged: It is not whole; the message has the first findings. Nothing is left in *folder*.
        MasterKeyRefused: The master key is missing, or another one.
        InvalidRequest: *epoch* is not above that of the backup.
        StoreUnavailable: The disk is full, or answers with an error.
    """
    _check_empty(folder)
    if not file.is_file():
        raise InvalidRequest(f"{file} is not there, or is no file; a backup would pass", field="file")
    facts = read_facts(file)
    new_epoch = _checked_epoch(facts, epoch)
    if master_key is not None:
        _check_master_key(facts, folder, master_key)
    staging = folder / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    try:
        copy = staging / LEDGER_FILE
        _copy(file, copy)
        _check_copy(copy, facts, file)
        make_ledger_again(copy, new_epoch, now_ms() if master_key is None else None)
        _check_report(audit_file(copy, progress=progress, known_heads=[KnownHead(facts.seq, facts.hash)]), file)
        sync(copy)
        move(copy, folder / LEDGER_FILE, "ledger")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Restored(facts, new_epoch, master_key is not None, (folder / TOKEN_FILE).is_file())


def _check_empty(folder: Path) -> None:
    for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal", f"{LEDGER_FILE}-journal"):
        if (folder / name).exists():
            raise DataFolderUnusable(
                f"{folder} has a ledger already: {_named(folder / name)}."
                " Restore into another folder, or move that one away.",
                path=str(folder),
            )


def _named(file: Path) -> str:
    """Say which ledger *file* is, as far as it can be read."""
    try:
        with SqliteJournal(file) as journal:
            return f"{file.name} is ledger {journal.ledger_id}, epoch {journal.epoch}, at entry {journal.head.seq}"
    except (SpotledgerError, LedgerCorrupt):
        return f"{file.name} is there"


def _checked_epoch(facts: BackupFacts, epoch: int | None) -> int:
    if epoch is None:
        return facts.epoch + 1
    if not facts.epoch < epoch < EPOCH_LIMIT:
        raise InvalidRequest(
            f"epoch is {epoch}; the backup was made in epoch {facts.epoch}, so {facts.epoch + 1} or more would pass",
            field="epoch",
        )
    return epoch


def _check_master_key(facts: BackupFacts, folder: Path, source: MasterKeySource) -> None:
    if facts.master_key_fingerprint is None:
        return  # nothing was ever sealed
    given = source.file is not None or MASTER_KEY_VARIABLE in source.environ
    if not given and not (folder / MASTER_KEY_FILE).exists():
        raise MasterKeyRefused(
            f"The access keys in the backup are sealed with the master key {facts.master_key_fingerprint}, and there is"
            f" none: put it at {folder / MASTER_KEY_FILE}, or name it with --master-key-file or {MASTER_KEY_VARIABLE}."
            " Where it is lost, --without-master-key restores the books and revokes all access keys."
        )
    found = Cipher(load_master_key(folder, source.file, source.environ, may_make=False)).fingerprint
    if found != facts.master_key_fingerprint:
        raise MasterKeyRefused(
            f"This master key has the fingerprint {found}; the access keys in the backup are sealed with another one, "
            f"{facts.master_key_fingerprint}. Give that one. Where it is lost, --without-master-key restores the books"
            " and revokes all access keys."
        )


def _copy(file: Path, copy: Path) -> None:
    """Copy the backup: from now on only the copy is looked at, which nobody else can change."""
    try:
        source = file.open("rb")
    except OSError as problem:
        raise InvalidRequest(f"{file} cannot be read: {problem.strerror}", field="file") from problem
    try:
        with source:
            copy.touch(mode=0o600, exist_ok=False)
            with copy.open("wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
    except OSError as problem:
        raise unusable(copy.parent.parent, problem) from problem


def _check_copy(copy: Path, facts: BackupFacts, file: Path) -> None:
    try:
        check_structure(copy)
        found = read_facts(copy)
    except BackupDamaged as damage:
        raise BackupDamaged(damage.message.replace(str(copy), str(file)), path=str(file)) from damage
    if found != facts:
        raise InvalidRequest(f"{file} is not what it was a moment ago: somebody writes to it", field="file")


def _check_report(report: Report, file: Path) -> None:
    if report.verdict == CLEAN:
        return
    first_of_code = {finding.code: finding for finding in reversed(report.findings)}
    found = [_said(first_of_code[code]) for code in report.counts if code in first_of_code][:FINDINGS_SAID]
    found += report.unexamined[:FINDINGS_SAID]
    raise BackupDamaged(
        f"{file} was not restored: the audit of what is in it says {report.verdict}: {'; '.join(found)}.",
        path=str(file),
        verdict=report.verdict,
    )


def _said(finding: Finding) -> str:
    where = finding.where if finding.seq is None else f"entry {finding.seq}, {finding.where}"
    return f"{finding.code} ({where})"
