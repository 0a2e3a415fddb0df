"""
Putting the files of a restored ledger in place, so that a folder has no ledger or a whole one whenever it is cut off.

A restore works in ``restoring``. Once everything in it is made, audited and synced, that folder is renamed to
``restored``: from this instant on the ledger is restored. Its files are then moved beside it, the journal last; where
that is cut off, the next start or restore goes on with it. Until the renaming nothing in the data folder changes, so an
unfinished restore leaves no file that the next one could take for a good one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from spotledger.errors import DataFolderUnusable, JournalShorter
from spotledger.storage.atomic_file import sync
from spotledger.storage.folder import unusable
from spotledger.storage.private import check_private_database, check_private_folder
from spotledger.storage.sqlite.file import BOOKS_FILE, JOURNAL_FILE, KEYS_FILE
from spotledger.storage.sqlite.noted_head import NOTE_FILE

#: Within the data folder, while a restore is at work; what a killed one left is removed by the next.
STAGING_FOLDER: Final = "restoring"
#: Within the data folder, while the files of a restored ledger are moved to their places.
READY_FOLDER: Final = "restored"
#: The files of a ledger, in the order in which they are moved.
FILES: Final = (BOOKS_FILE, KEYS_FILE, NOTE_FILE, JOURNAL_FILE)
#: What SQLite keeps beside a file; it belongs to the file that is replaced, and would spoil the new one.
_BESIDE: Final = ("-wal", "-shm", "-journal")


def put_in_place(folder: Path) -> None:
    """
    Make the whole ledger in the staging folder of *folder* the ledger of *folder*, which the caller owns.

    Raises:
        DataFolderUnusable: The disk does not do it. Before the renaming nothing has changed; after it, the next start
            or restore goes on.
    """
    staging = folder / STAGING_FOLDER
    try:
        for name in FILES:
            sync(staging / name)
        sync(staging)
        staging.rename(folder / READY_FOLDER)
        sync(folder)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    go_on_placing(folder)


def go_on_placing(folder: Path) -> None:
    """
    Move the files of a restored ledger to their places in *folder*, which the caller owns; do nothing where none waits.

    Raises:
        DataFolderUnusable: The disk does not do it, or there is a journal already.
    """
    ready = folder / READY_FOLDER
    if not ready.is_dir():
        return
    check_private_folder(ready, may_be_link=False)
    if (ready / JOURNAL_FILE).exists() and (folder / JOURNAL_FILE).exists():
        raise DataFolderUnusable(
            f"{ready} has a restored ledger that was not put in place yet, but {folder} has a {JOURNAL_FILE} already."
            " Move the one away that is not wanted.",
            path=str(folder),
        )
    try:
        for name in FILES:
            if (ready / name).exists():
                _replace(ready / name, folder / name)
        sync(folder)
        shutil.rmtree(ready)
    except OSError as problem:
        raise unusable(folder, problem) from problem


def check_journal(folder: Path) -> None:
    """
    Refuse to make a new ledger in *folder* where there was one, or where a restore was cut off.

    Raises:
        JournalShorter: The journal is missing, and other files of a ledger are there.
        DataFolderUnusable: The journal is missing, and an unfinished restore is there.
    """
    journal = folder / JOURNAL_FILE
    check_private_database(journal)
    if _has_content(journal) or _has_content(journal.with_name(f"{JOURNAL_FILE}-wal")):
        return
    if (folder / STAGING_FOLDER).exists():
        raise DataFolderUnusable(
            f"A restore into {folder} was cut off: do it again. To make a new ledger instead, remove"
            f" {folder / STAGING_FOLDER}.",
            path=str(folder),
        )
    others = [name for name in (KEYS_FILE, NOTE_FILE) if _has_content(folder / name)]
    if others:
        raise JournalShorter(
            f"{journal} is missing, but {folder} has the {' and the '.join(others)} of a ledger. Put it back,"
            f" or restore a backup with: spotledger restore FILE --data {folder}",
            path=str(journal),
        )


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _replace(source: Path, file: Path) -> None:
    for ending in _BESIDE:
        file.with_name(file.name + ending).unlink(missing_ok=True)
    # What was moved before is on the disk before the next one: the journal must not be there without the others.
    sync(file.parent)
    source.replace(file)
