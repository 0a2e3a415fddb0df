"""
Join the parts of the service: the folder, the store, the ledger, the writer, access keys and tokens.

Which store it is, :mod:`spotledger.ops.opening` and :mod:`spotledger.ops.fleet` know.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from spotledger.archive.backup import BACKUPS_FOLDER, Backups
from spotledger.clock import now_ms
from spotledger.errors import LedgerCorrupt, MasterKeyRefused, SpotledgerError
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.writer import Writer
from spotledger.ops.access_key_writes import AccessKeyWrites
from spotledger.ops.audits import Audits
from spotledger.ops.opening import open_embedded
from spotledger.ops.revocation_watch import RevocationWatch
from spotledger.ops.settings import Settings
from spotledger.ops.siblings import Siblings
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.tokens import SCOPES, Tokens
from spotledger.storage.folder import (
    LEDGER_FILE,
    TOKEN_FILE,
    FolderLock as FolderLock,
    Owner,
    first_token,
    load_master_key,
    read_token,
)

if TYPE_CHECKING:
    from spotledger.ops.fleet import Fleet

#: What a node that reads from a standby says to every write.
ONLY_READS: Final = "This node reads from a standby and takes no writes; ask another one."

_log = logging.getLogger("spotledger.runtime")


class Standby(Protocol):
    """A standby that is read from."""

    @property
    def staleness_ms(self) -> int:
        """How old what is answered may be."""

    @property
    def head_seq(self) -> int:
        """The last entry that the standby has, however old it is."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The joined parts of one service. Start it in the event loop that it is used in."""

    settings: Settings
    ledger: Ledger
    writer: Writer
    key_ring: KeyRing
    tokens: Tokens
    access_key_writes: AccessKeyWrites
    backups: Backups
    audits: Audits
    #: What is known of the standby that this node reads from; None where it takes writes.
    standby: Standby | None = None
    #: Where other nodes may revoke access keys too; None where this process is the only one.
    revocation_watch: RevocationWatch | None = None
    #: The workers that this process is one of; None where it is alone.
    siblings: Siblings | None = None

    @property
    def head_seq(self) -> int:
        """The last entry that this node knows, said even where it is too old for an answer."""
        return self.ledger.head.seq if self.standby is None else self.standby.head_seq

    def check_token_file(self) -> None:
        """Say in the log where the token in the folder's ``operator.token`` lets nobody in; it is left as it is."""
        file = self.settings.data / TOKEN_FILE
        if not file.exists():
            return
        try:
            record = self.tokens.find(read_token(file))
        except SpotledgerError as problem:
            _log.warning("%s", problem)
            return
        if record is None or record.revoked_ms is not None:
            found = "is not one of this ledger" if record is None else "was revoked"
            _log.warning(
                "the token in %s %s; put one in use there, for commands with --data, or delete it", file, found
            )

    async def start(self) -> None:
        """Begin to take writes."""
        await self.writer.start()
        if self.revocation_watch is not None:
            await self.revocation_watch.start()
        if self.siblings is not None:
            await self.siblings.start()

    async def stop(self) -> None:
        """Finish what is in flight, take no more writes, and store when access keys were last used."""
        await self.audits.stop()
        if self.siblings is not None:
            await self.siblings.stop()
        await self.backups.stop()
        await self.writer.stop()
        if self.revocation_watch is not None:
            await self.revocation_watch.stop()
        try:
            self.key_ring.flush_used()
        except (SpotledgerError, LedgerCorrupt) as problem:
            _log.warning("when access keys were last used could not be stored: %s", problem)


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[FolderLock]:
    """
    Own the data folder *folder*, and make it where it is not there, for the length of a ``with`` block.

    Raises:
        DataFolderInUse: Another process owns it.
        DataFolderUnusable: It is read-only, full, or not a folder.
    """
    lock = FolderLock(folder)
    lock.acquire(Owner(os.getpid()).note())
    try:
        yield lock
    finally:
        lock.release()


@contextlib.contextmanager
def open_runtime(
    settings: Settings,
    environ: Mapping[str, str],
    lock: FolderLock,
    clock_ms: Callable[[], int] = now_ms,
    siblings: Siblings | None = None,
) -> Iterator[Runtime]:
    """
    Open the ledger in the data folder, which this process owns by *lock*, or in the database that is set, for the
    length of a ``with`` block.

    The first start makes the ledger, the master key and the first operator token. *clock_ms* gives the time in
    milliseconds since 1970; *siblings* are the workers that this process is one of.

    Raises:
        DataFolderUnusable, SchemaMismatch, MasterKeyRefused, SettingInvalid: It cannot be opened as it is set up.
        StoreUnavailable: The database cannot be reached.
        LedgerCorrupt: The journal does not hold together.
    """
    if settings.database is not None:
        from spotledger.ops.fleet import open_fleet  # the driver is loaded where there is a database to drive

        with open_fleet(settings) as fleet:
            yield _join(settings, environ, fleet.ledger, clock_ms, fleet, siblings)
        return
    with open_embedded(
        settings.data,
        segment_entries=settings.segment_entries,
        cache_accounts=settings.cache_accounts,
        clock_ms=clock_ms,
        lock=lock,
    ) as ledger:
        yield _join(settings, environ, ledger, clock_ms)


def _join(
    settings: Settings,
    environ: Mapping[str, str],
    ledger: Ledger,
    clock_ms: Callable[[], int],
    fleet: Fleet | None = None,
    siblings: Siblings | None = None,
) -> Runtime:
    tables = ledger.key_tables
    # In one transaction, so that of several first nodes one makes the key's mark and the token, and the others see it.
    with tables.together():
        key_ring = KeyRing(tables.access_keys, _cipher(settings, environ, tables), clock_ms)
        tokens = Tokens(tables.tokens, clock_ms)
        if not tokens.list(limit=1):
            tokens.create(SCOPES, TOKEN_FILE, token=first_token(settings.data))
    standby = None if fleet is None else fleet.standby
    limits = {"queue_limit": settings.queue_limit, "group_limit": settings.group_limit}
    writer = Writer(ledger, **limits, refuses=None if standby is None else ONLY_READS)
    return Runtime(
        settings,
        ledger,
        writer,
        key_ring,
        tokens,
        AccessKeyWrites(tables, key_ring),
        Backups(ledger, settings.data / BACKUPS_FOLDER, clock_ms),
        _audits(settings, fleet, siblings),
        standby,
        None if fleet is None else _revocation_watch(fleet, key_ring, tokens, settings.keys_trust_seconds),
        siblings,
    )


def _audits(settings: Settings, fleet: Fleet | None, siblings: Siblings | None) -> Audits:
    if fleet is None:
        return Audits(settings.data / LEDGER_FILE, siblings)
    return Audits(fleet.audited, siblings, fleet.audit_claim)


def _revocation_watch(fleet: Fleet, key_ring: KeyRing, tokens: Tokens, trust_seconds: float) -> RevocationWatch:
    if fleet.standby is None:
        return RevocationWatch(fleet.key_changes, key_ring, tokens, trust_seconds)
    return RevocationWatch(fleet.key_changes, key_ring, tokens, trust_seconds, fleet.standby.note_head)


def _cipher(settings: Settings, environ: Mapping[str, str], tables: Any) -> Cipher:
    """Return the cipher under the master key that the secrets in *tables* were sealed with."""
    known: str | None = tables.master_key_fingerprint
    key = load_master_key(settings.data, settings.master_key_file, environ, may_make=known is None)
    cipher = Cipher(key)
    if known is None:
        tables.master_key_fingerprint = cipher.fingerprint
    elif cipher.fingerprint != known:
        where = settings.data if settings.database is None else settings.database
        raise MasterKeyRefused(
            f"This master key has the fingerprint {cipher.fingerprint}; the access keys in {where} were sealed "
            f"with another one, {known}. Give that one."
        )
    return cipher
