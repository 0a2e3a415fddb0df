"""Making a ledger of a backup: in an empty folder, checked and audited before it has its name, in a new epoch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.archive.credentials import GoodCredentials, Revoked, read_good, read_revoked
from spotledger.audit.embedded import audit_file
from spotledger.audit.findings import Finding
from spotledger.audit.report import CLEAN, KnownHead, Progress, Report
from spotledger.clock import now_ms
from spotledger.domain.positions import next_epoch
from spotledger.errors import (
    BackupDamaged,
    DataFolderUnusable,
    InvalidRequest,
    LedgerCorrupt,
    MasterKeyRefused,
    SpotledgerError,
)
from spotledger.os_errors import unusable_file
from spotledger.security.cipher import Cipher
from spotledger.storage.credentials.master_key_files import old_file, read_own, take_over, write_next
from spotledger.storage.folder import (
    LEDGER_FILE,
    MASTER_KEY_FILE,
    MASTER_KEY_VARIABLE,
    TOKEN_FILE,
    load_master_key,
    make_folder,
    unusable,
)
from spotledger.storage.sqlite.copy import (
    BackupFacts,
    Credentials,
    begin_epoch,
    check_structure,
    make_ledger_again,
    read_facts,
)
from spotledger.storage.sqlite.file import BOOKS_FILE, KEYS_FILE, OLD_FILE
from spotledger.storage.sqlite.journal import SqliteJournal
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, NotedHead, read_note
from spotledger.storage.sqlite.placing import STAGING_FOLDER, go_on_placing, put_in_place
from spotledger.storage.sqlite.sealing import Sealer

COPY_BYTES: Final = 1024 * 1024
#: How many kinds of findings of an audit are said in a message.
FINDINGS_SAID: Final = 5


class MasterKeySource(NamedTuple):
    """Where the master key may be: a file that is named, or the environment; else in the data folder."""

    file: Path | None
    environ: Mapping[str, str]


class Restored(NamedTuple):
    """What was restored: what the backup held, the epoch that begins, and which credentials work."""

    backup: BackupFacts
    epoch: int
    #: Whether access keys still work at all.
    access_keys: bool
    operator_token: bool
    #: How many access keys and tokens the folder knew to be revoked that were good in the backup; None where the
    #: folder knew nothing, or was not asked.
    kept_revoked: int | None
    good: GoodCredentials
    #: Whether the secrets are sealed with a master key that was replaced in the folder since the backup.
    has_retired_master_key: bool


def restore(
    file: Path,
    folder: Path,
    master_key: MasterKeySource | None,
    epoch: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    credentials_from_backup: bool = False,
) -> Restored:
    """
    Make the backup *file* the ledger of *folder*, which the caller owns, and audit it.

    What was revoked according to the access keys in *folder* stays revoked.

    Args:
        file: What ``spotledger backup`` made; it is left as it is.
        folder: A data folder without a journal. Access keys, books and the noted head in it are replaced.
        master_key: Where to look for the master key that the access keys' secrets were sealed with. None: do without
            it; then all access keys are revoked, because nobody can check a signature any more.
        epoch: The epoch to begin; where None, one more than the greatest of the backup and the head noted in *folder*.
        progress: Told how far the audit is.
        credentials_from_backup: Take access keys and tokens as they are in the backup, whatever *folder* has.

    Raises:
        DataFolderUnusable: *folder* has a ledger already, cannot be written, or its access keys cannot be read.
        SchemaMismatch: *file* is no backup, or of another version.
        BackupDamaged: It is not whole; the message has the first findings. Nothing of it is left in *folder*.
        MasterKeyRefused: The master key is missing, or another one.
        InvalidRequest: *epoch* is not above those that were there.
        StoreUnavailable: The disk is full, or answers with an error.
    """
    go_on_placing(folder)
    _check_empty(folder)
    if not file.is_file():
        raise InvalidRequest(f"{file} is not there, or is no file; a backup would pass", field="file")
    facts = read_facts(file)
    note = _read_note(folder, epoch)
    new_epoch = _checked_epoch(facts, note, epoch)
    key = None if master_key is None else _find_master_key(facts, folder, master_key)
    is_kept = _is_kept_as_old(facts, folder)
    change = note.keys_change if note is not None and note.ledger_id == facts.ledger_id else 0
    revoked = None if credentials_from_backup else read_revoked(folder, facts.ledger_id, change)
    known = revoked or Revoked({}, {}, change)
    credentials = Credentials(known.change, known.access_keys, known.tokens, None if master_key else now_ms())
    with _staging(folder) as staging, _damage_named(file):
        journal, keys = staging / LEDGER_FILE, staging / KEYS_FILE
        _copy(file, journal)
        _check_copy(journal, facts, file)
        made = make_ledger_again(journal, keys, credentials)
        with closing(Sealer(journal, staging / BOOKS_FILE)) as sealer:
            sealer.seal_all()
        trusted_ms, known_ms = _trusted_ms(facts, note), _known_ms(facts, note)
        _write_note(staging, Note(facts.ledger_id, facts.epoch, facts.seq, facts.hash, known_ms, made.change))
        good = read_good(keys, facts.ledger_id, now_ms())
        _check_report(audit_file(journal, progress=progress, known_heads=[KnownHead(facts.seq, facts.hash)]), file)
        head = begin_epoch(journal, new_epoch, "restored from a backup", trusted_ms)
        _write_note(staging, Note(facts.ledger_id, new_epoch, head.seq, head.hash, known_ms, made.change))
        _put_in_place(folder, key)
    has_token = (folder / TOKEN_FILE).is_file()
    is_retired = is_kept or facts.master_key_fingerprint in known.retired_master_keys
    kept_revoked = made.revoked if revoked else None
    return Restored(facts, new_epoch, master_key is not None, has_token, kept_revoked, good, is_retired)


def _put_in_place(folder: Path, key: bytes | None) -> None:
    """Put what was restored in place, and its master key *key* too, if another one is in the folder."""
    if key is not None:
        write_next(folder, key)  # a start that finds the restored ledger takes it over
    put_in_place(folder)
    if key is not None:
        take_over(folder, key)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Give a new folder to work in; nothing of it is left."""
    staging = folder / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except LedgerCorrupt as damage:
        raise BackupDamaged(f"{file} is damaged: {damage}.", path=str(file)) from damage


def _read_note(folder: Path, epoch: int | None) -> Note | None:
    """Return what was noted in *folder*; None where it cannot be read and the *epoch* is given."""
    file = folder / NOTE_FILE
    try:
        return read_note(file)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    except LedgerCorrupt as damage:
        if epoch is not None:
            return None
        raise DataFolderUnusable(
            f"{file} is damaged, so nobody knows which epoch the folder was in; --epoch with a higher one would pass.",
            path=str(file),
        ) from damage


def _trusted_ms(facts: BackupFacts, note: Note | None) -> int:
    """Return the latest time that was trusted before; the clock of the machine that restores may be wrong."""
    return max(facts.made_ms, facts.booked_ms, 0 if note is None else note.time_ms)


def _known_ms(facts: BackupFacts, note: Note | None) -> int:
    """
    Return the time to note, with which the next start compares the clock.

    The age of a backup says nothing about the clock. So it is the time that was noted in the folder, or that of the
    wall clock where nothing was.
    """
    known_ms = note.time_ms if note is not None and note.time_ms else now_ms()
    return max(facts.made_ms, facts.booked_ms, known_ms)


def _write_note(staging: Path, note: Note) -> None:
    """Note the head of the restored ledger."""
    try:
        with closing(NotedHead(staging / NOTE_FILE)) as noted:
            noted.write(note)
    except OSError as problem:
        raise unusable(staging.parent, problem) from problem


def _check_empty(folder: Path) -> None:
    for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal", f"{LEDGER_FILE}-journal", OLD_FILE):
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
            epoch, seq = journal.epochs.current, journal.head.seq
            return f"{file.name} is ledger {journal.ledger_id}, epoch {epoch}, at entry {seq}"
    except (SpotledgerError, LedgerCorrupt):
        return f"{file.name} is there"


def _checked_epoch(facts: BackupFacts, note: Note | None, epoch: int | None) -> int:
    noted = 0 if note is None else note.epoch
    try:
        return next_epoch(max(facts.epoch, noted), epoch)
    except InvalidRequest as refusal:
        where = f" and the folder has a note of epoch {noted}" if noted else ""
        message = f"{refusal.message}: the backup was made in epoch {facts.epoch}{where}"
        raise InvalidRequest(message, field="epoch") from refusal


def _find_master_key(facts: BackupFacts, folder: Path, source: MasterKeySource) -> bytes | None:
    """
    Find the master key that the secrets in the backup are sealed with.

    Returns:
        The key, if it has to take the place of another one in *folder*, so that the folder starts with it; else None.

    Raises:
        MasterKeyRefused: It is not at hand.
    """
    wanted = facts.master_key_fingerprint
    if wanted is None:
        return None  # nothing was ever sealed
    given = source.file is not None or MASTER_KEY_VARIABLE in source.environ
    own = read_own(folder)
    if not given and own is None:
        raise MasterKeyRefused(
            f"The access keys in the backup are sealed with the master key {wanted}, and there is"
            f" none: put it at {folder / MASTER_KEY_FILE}, or name it with --master-key-file or {MASTER_KEY_VARIABLE}."
            " Where it is lost, --without-master-key restores the books and revokes all access keys."
        )
    key = load_master_key(folder, source.file, source.environ, may_make=False)
    found = Cipher(key).fingerprint
    if found != wanted and not given:
        kept = read_own(folder, old_file(wanted))
        if kept is not None and Cipher(kept).fingerprint == wanted:
            key, found = kept, wanted
    if found != wanted:
        raise MasterKeyRefused(
            f"This master key has the fingerprint {found}; the access keys in the backup are sealed with another one, "
            f"{wanted}. Give that one: after a rotation, backups that were made before need the key that was in force"
            " then. Where it is lost, --without-master-key restores the books and revokes all access keys."
        )
    is_kept_here = own is not None and MASTER_KEY_VARIABLE not in source.environ
    return key if is_kept_here and own != key else None


def _is_kept_as_old(facts: BackupFacts, folder: Path) -> bool:
    """Say whether the master key of the backup is kept in *folder* as one that was replaced."""
    wanted = facts.master_key_fingerprint
    return wanted is not None and os.path.lexists(folder / old_file(wanted))


def _copy(file: Path, copy: Path) -> None:
    """Copy the backup: from now on only the copy is looked at, which nobody else can change."""
    try:
        source = file.open("rb")
    except OSError as problem:
        raise unusable_file(problem, file) from problem
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
