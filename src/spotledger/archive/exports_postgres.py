"""The journal of a ledger on PostgreSQL as a file for other programs, the same bytes as of an embedded ledger."""

from __future__ import annotations

from pathlib import Path

from spotledger.archive.exports import Exported, Progress, export_from
from spotledger.storage.journal_reader import JournalReader
from spotledger.storage.postgres.connection import any_server
from spotledger.storage.postgres.journal import PostgresJournal
from spotledger.storage.postgres.right_server import RightServer
from spotledger.storage.postgres.schema import check_ledger
from spotledger.storage.seen_head import Seen, SeenHead


def export_database(
    address: str,
    file: Path,
    file_format: str,
    after_seq: int = 0,
    progress: Progress = lambda done, entries: None,
    seen: Seen | None = None,
) -> Exported:
    """
    Write the entries after *after_seq* of the ledger in the database at *address* to the new file *file*.

    The arguments, what is returned and what is raised are those of
    :func:`spotledger.archive.exports.export_journal`; and:

    Args:
        address: Where the database is; a standby of it will do.
        seen: What a node saw last; a server without it is refused.

    Raises:
        OtherHistory, NotCaughtUp: No server that could be reached has what was seen.
        SchemaMismatch: The database has no ledger, or of another version.
        SetupError: An embedded ledger is being copied into it.
        StoreUnavailable: It cannot be reached, or was lost on the way; no file is left.
    """

    def opened() -> JournalReader:
        right = RightServer(any_server(address), SeenHead(seen=seen))
        connection = right.connect_once_caught_up("spotledger export")
        try:
            check_ledger(connection)
            return PostgresJournal(connection)
        except BaseException:
            connection.close()
            raise

    return export_from(opened, file, file_format, after_seq, progress)
