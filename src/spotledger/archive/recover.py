"""Look at a ledger that a start refuses, say what is missing, and go on without it where that is accepted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.domain.positions import next_epoch
from spotledger.errors import DataFolderUnusable, LedgerCorrupt
from spotledger.storage.atomic_file import sync
from spotledger.storage.folder import LEDGER_FILE, unusable
from spotledger.storage.sqlite.file import (
    BOOKS_FILE,
    JOURNAL,
    KEYS,
    KEYS_FILE,
    Connection,
    only_row,
    open_as_found,
    open_writer,
    translated,
)
from spotledger.storage.sqlite.journal import append_epoch, read_epochs, read_head
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, read_note
from spotledger.storage.sqlite.rebuilding import remove_books
from spotledger.storage.sqlite.sealing import Sealer
from spotledger.storage.sqlite.wal import find_damage

#: What is put aside is called so, beside where it was.
ASIDE: Final = ".before-recover"


class Found(NamedTuple):
    """What was found of a ledger, and what is missing."""

    ledger_id: str
    epoch: int
    #: The last entry of the journal.
    head_seq: int
    #: The last entry that was acknowledged, as far as that was noted; None where nobody knows.
    noted_seq: int | None
    #: What is wrong, in words; nothing where a start would pass.
    problems: tuple[str, ...]
    #: The epoch that began; None where nothing was changed.
    new_epoch: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        missing = 0 if self.noted_seq is None else max(0, self.noted_seq - self.head_seq)
        return {**self._asdict(), "problems": list(self.problems), "missing": missing}


def look(folder: Path) -> Found:
    """
    Say what is missing of the ledger in *folder*; the journal is not changed.

    Raises:
        DataFolderUnusable: There is no ledger, or it cannot be read.
        LedgerCorrupt: The journal itself is damaged: only a backup helps.
        StoreUnavailable: The disk is in the way.
    """
    journal = check_there(folder)
    problems = []
    try:
        for log in _logs(folder):
            damage = find_damage(log)
            if damage is not None:
                problems.append(f"{log} is damaged at byte {damage.offset} (frame {damage.frame}): {damage.reason}")
        note = _read_note(folder, problems)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    with translated("read"), closing(open_as_found(journal)) as connection:
        (ledger_id,) = only_row(connection, "SELECT ledger_id FROM ledger", str)
        head_seq, epoch = read_head(connection).seq, read_epochs(connection).current
        if note is not None:
            problems += _differences(connection, note, ledger_id, epoch, head_seq)
    if note is not None:
        problems += _missing_changes(folder / KEYS_FILE, note)
    return Found(ledger_id, epoch, head_seq, None if note is None else note.seq, tuple(problems))


def check_there(folder: Path) -> Path:
    """Return the journal in *folder*; raise DataFolderUnusable if there is none."""
    journal = folder / LEDGER_FILE
    if not journal.is_file():
        raise DataFolderUnusable(f"There is no {LEDGER_FILE} in {folder}.", path=str(folder))
    return journal


def _read_note(folder: Path, problems: list[str]) -> Note | None:
    try:
        return read_note(folder / NOTE_FILE)
    except LedgerCorrupt as damage:
        problems.append(str(damage))
        return None


def _differences(connection: Connection, note: Note, ledger_id: str, epoch: int, head_seq: int) -> list[str]:
    """Say in what the journal is not the one whose head was noted."""
    if note.ledger_id == ledger_id and note.epoch < epoch:
        return []
    if (note.ledger_id, note.epoch) != (ledger_id, epoch):
        return [
            f"the noted head is of the ledger {note.ledger_id}, epoch {note.epoch}; the journal is {ledger_id},"
            f" epoch {epoch}"
        ]
    if note.seq > head_seq:
        return [f"the journal ends with entry {head_seq}, and entry {note.seq} was acknowledged"]
    hashes = connection.execute("SELECT hash FROM entry WHERE seq = ?", (note.seq,)).fetchall()
    if note.seq and (not hashes or hashes[0][0] != note.hash):
        return [f"entry {note.seq} of the journal is not the one that was acknowledged"]
    return []


def _missing_changes(keys: Path, note: Note) -> list[str]:
    """Say whether the file of access keys is behind the last change that was noted."""
    change = 0
    if keys.is_file() and keys.stat().st_size:
        with translated("read", KEYS), closing(open_as_found(keys)) as connection:
            (change,) = only_row(connection, "SELECT change FROM keys_of", int)
    if change >= note.keys_change:
        return []
    found = f"is at change {change}" if keys.is_file() else "is missing"
    return [
        f"{keys} {found}, and change {note.keys_change} was made: access keys and tokens made since are lost, and those"
        " revoked since work again"
    ]


def accept_loss(folder: Path) -> Found:
    """
    Go on from where the journal in *folder* ends, in a new epoch; the caller owns the folder.

    The noted head is put aside, and so is a copy of a damaged log. Nothing is changed where nothing is missing.

    Raises:
        As :func:`look`.
    """
    found = look(folder)
    if not found.problems:
        return found
    journal, keys, note = folder / LEDGER_FILE, folder / KEYS_FILE, folder / NOTE_FILE
    try:
        for log in filter(Path.exists, _logs(folder)):
            log.with_name(log.name + ASIDE).write_bytes(log.read_bytes())
        noted = _read_note(folder, [])
        new_epoch = next_epoch(max(found.epoch, 0 if noted is None else noted.epoch))
        # SQLite takes of the log what checks, and folds it into the file when the connection is closed.
        with closing(open_writer(journal, JOURNAL, lambda _: None)) as connection, translated("written", checked=True):
            connection.execute("BEGIN IMMEDIATE")
            append_epoch(
                connection, new_epoch, "recovered without what was lost", 0 if noted is None else noted.time_ms
            )
            connection.execute("COMMIT")
        if keys.exists() and keys.stat().st_size:
            open_writer(keys, KEYS, lambda _: None).close()
        if note.exists():
            note.rename(note.with_name(note.name + ASIDE))
        sync(journal)
    except OSError as problem:
        raise unusable(folder, problem) from problem
    return found._replace(new_epoch=new_epoch)


def _logs(folder: Path) -> list[Path]:
    """Return the write-ahead logs that a start looks at before anything is opened."""
    return [folder / f"{name}-wal" for name in (LEDGER_FILE, KEYS_FILE)]


def rebuild(folder: Path, tell: Callable[[int, int], None] = lambda done, total: None) -> int:
    """
    Throw the books of the ledger in *folder* away and derive them from the journal again; the caller owns the folder.

    What is derived is kept segment by segment, so a rebuild that was cut off goes on with the next start or rebuild.

    Args:
        folder: The data folder.
        tell: Told how many segments are done, and how many there are.

    Returns:
        The last entry that is in the books; the others the service has in memory.

    Raises:
        DataFolderUnusable: There is no ledger.
        LedgerCorrupt: The journal is damaged.
        StoreUnavailable: The disk is in the way.
    """
    journal, books = check_there(folder), folder / BOOKS_FILE
    unfinished = folder / f"{BOOKS_FILE}.unfinished"
    if not unfinished.exists():
        remove_books(folder)
        unfinished.touch()
    with closing(Sealer(journal, books)) as sealer:
        total = sealer.full_segments()
        while sealer.sealed_segments < total:
            sealer.seal_next()
            tell(sealer.sealed_segments, total)
        sealed_to = sealer.sealed_to
    unfinished.unlink()
    return sealed_to
