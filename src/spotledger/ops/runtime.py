"""
Assemble the parts of the service: the data folder, the store, the ledger, the writer, access keys and tokens.

:mod:`spotledger.ops.opening` and :mod:`spotledger.ops.fleet` open the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from spotledger.archive.backup import BACKUPS_FOLDER, Backups
from spotledger.clock import SYSTEM, TimeSources, steady_s
from spotledger.errors import FileUnusable, LedgerCorrupt, NotFound, SpotledgerError
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.writer import Writer
from spotledger.ops.access_key_writes import AccessKeyWrites
from spotledger.ops.access_log import AccessLog
from spotledger.ops.audits import Audits
from spotledger.ops.kept_locks import KeptLocks
from spotledger.ops.master_keys import MasterKeyRotation, hold_master_keys
from spotledger.ops.opening import open_embedded
from spotledger.ops.revocation_watch import Revocations, RevocationWatch
from spotledger.ops.settings import Settings
from spotledger.ops.siblings import Siblings
from spotledger.security.access_keys import KeyRing
from spotledger.security.tokens import SCOPES, Tokens
from spotledger.storage.folder import (
    LEDGER_FILE,
    TOKEN_FILE,
    FolderLock as FolderLock,
    Owner,
    first_token,
    read_token,
)

if TYPE_CHECKING:
    from spotledger.ops.fleet import Fleet

DAY_MS: Final = 24 * 3_600_000
#: The answer to every write on a node that reads from a standby.
ONLY_READS: Final = "This node reads from a standby and takes no writes; ask another one."

_log = logging.getLogger("spotledger.runtime")


class Followed(Protocol):
    """The memory of a node that follows others, or a standby."""

    @property
    def age_ms(self) -> int:
        """How old an answer may be."""

    @property
    def head_seq(self) -> int:
        """The last entry that it has, even if it is too old to be served."""


def _proves_nothing(challenge: str) -> str:
    raise NotFound("This process owns no data folder.")


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts of one service. Start it in the event loop in which it is used."""

    settings: Settings
    ledger: Ledger
    writer: Writer
    key_ring: KeyRing
    tokens: Tokens
    access_key_writes: AccessKeyWrites
    master_key: MasterKeyRotation
    backups: Backups
    audits: Audits
    #: The locks of the traders' gate.
    locks: KeptLocks
    access_log: AccessLog
    #: What this node reads, and how old that is; None if no other process writes the ledger.
    followed: Followed | None = None
    #: None if no other process can revoke access keys.
    revocation_watch: RevocationWatch | None = None
    #: The workers of this machine; None if this process is the only one.
    siblings: Siblings | None = None
    #: Answers the challenge of a command that found the address of this service in the folder.
    prove: Callable[[str], str] = _proves_nothing
    #: Whether this start made the ledger, so that nothing was ever asked of it.
    is_new: bool = False

    @property
    def head_seq(self) -> int:
        """The last entry that this node has, even if it is too old to be served."""
        return self.ledger.head.seq if self.followed is None else self.followed.head_seq

    def check_token_file(self) -> None:
        """
        Log a warning if the token in the folder's ``operator.token`` is not accepted; the file is not changed.

        Raises:
            FileUnusable: The file belongs to somebody else, or others may use it.
        """
        file = self.settings.data / TOKEN_FILE
        if not os.path.lexists(file):
            return
        try:
            record = self.tokens.find(read_token(file))
        except FileUnusable:
            raise
        except SpotledgerError as problem:
            _log.warning("%s", problem)
            return
        if record is None or not record.is_in_use(self.tokens.now_ms):
            found = "has expired" if record is not None and record.revoked_ms is None else "was revoked"
            found = "is unknown to this ledger" if record is None else found
            _log.warning("the token in %s %s; commands with --data need a valid token there, or no file", file, found)

    async def start(self) -> None:
        """Start to accept writes."""
        await self.writer.start()
        await self.access_log.start()
        if self.revocation_watch is not None:
            await self.revocation_watch.start()
        if self.siblings is not None:
            await self.siblings.start()

    async def stop(self) -> None:
        """Refuse new writes, finish those in flight, and store when access keys and tokens were last used."""
        await self.audits.stop()
        if self.siblings is not None:
            await self.siblings.stop()
        await self.backups.stop()
        await self.writer.stop()
        await self.access_log.stop()
        if self.revocation_watch is not None:
            await self.revocation_watch.stop()
        try:
            self.flush_used()
        except (SpotledgerError, LedgerCorrupt) as problem:
            _log.warning("when access keys and tokens were last used could not be stored: %s", problem)

    def flush_used(self) -> None:
        """Store when access keys and tokens were last used; after an error what is not stored is kept for a retry."""
        self.key_ring.flush_used()
        self.tokens.flush_used()


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[FolderLock]:
    """
    Own the data folder *folder* for the length of a ``with`` block; make it if it does not exist.

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
    clock_ms: Callable[[], int] | None = None,
    siblings: Siblings | None = None,
    time_sources: TimeSources = SYSTEM,
) -> Iterator[Runtime]:
    """
    Open the ledger, in the data folder or in the database of *settings*, for the length of a ``with`` block.

    The first start makes the ledger, the master key and the first operator token.

    Args:
        settings: The settings in force.
        environ: The environment, which may contain the master key.
        lock: The lock of the data folder, which this process holds.
        clock_ms: For tests: returns the time in ms since 1970, which is trusted whatever it is.
        siblings: The workers of this machine, if there are several.
        time_sources: Where the trusted clock gets the time from.

    Raises:
        DataFolderUnusable, SchemaMismatch, MasterKeyRefused, SettingInvalid: The set-up has to be changed.
        StoreUnavailable: The database cannot be reached.
        LedgerCorrupt: The journal is inconsistent.
    """
    if settings.database is not None:
        from spotledger.ops.fleet import open_fleet  # imported here, so that an embedded ledger needs no driver

        worker = 0 if siblings is None else siblings.number
        with open_fleet(settings, worker, clock_ms=clock_ms, time_sources=time_sources) as fleet:
            yield _assemble(settings, environ, fleet.ledger, lock, fleet, siblings)
        return
    with open_embedded(
        settings.data,
        segment_entries=settings.segment_entries,
        cache_accounts=settings.cache_accounts,
        clock_ms=clock_ms,
        clock_leap_ms=settings.clock_leap_ms,
        clock_idle_ms=settings.clock_idle_days * DAY_MS,
        time_sources=time_sources,
        lock=lock,
    ) as ledger:
        yield _assemble(settings, environ, ledger, lock)


def _assemble(
    settings: Settings,
    environ: Mapping[str, str],
    ledger: Ledger,
    lock: FolderLock,
    fleet: Fleet | None = None,
    siblings: Siblings | None = None,
) -> Runtime:
    tables, clock_ms = ledger.key_tables, ledger.clock.now_ms
    # In one transaction: if several nodes start on an empty database, one stores the fingerprint and the token. Later
    # starts write neither, and do not wait for a write of keys that waits for a standby.
    made = tables.master_key_fingerprint is not None and tables.tokens.list("", 1)
    announce = None if fleet is None else fleet.announce_master_keys
    with contextlib.nullcontext() if made else tables.together():
        held = hold_master_keys(settings, environ, tables, announce)
        key_ring = KeyRing(tables.access_keys, held.keys, clock_ms)
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
        MasterKeyRotation(settings, environ, tables, held, clock_ms),
        Backups(ledger, settings.data / BACKUPS_FOLDER, clock_ms),
        _audits(settings, clock_ms, fleet, siblings),
        KeptLocks(settings.data, clock_ms, has_siblings=siblings is not None),
        AccessLog(settings.data, clock_ms, days=settings.access_log_days, mib=settings.access_log_mib),
        None if fleet is None else fleet.store,
        None if fleet is None else _revocation_watch(fleet, key_ring, tokens, settings.keys_trust_seconds),
        siblings,
        lock.prove,
        not made,
    )


def _audits(settings: Settings, clock_ms: Callable[[], int], fleet: Fleet | None, siblings: Siblings | None) -> Audits:
    if fleet is None:
        return Audits(settings.data / LEDGER_FILE, siblings, clock_ms=clock_ms)
    return Audits(fleet.audited, siblings, fleet.audit_claim, clock_ms=clock_ms, seen=lambda: fleet.seen.seen)


def _revocation_watch(fleet: Fleet, key_ring: KeyRing, tokens: Tokens, trust_seconds: float) -> RevocationWatch:
    clock, standby = fleet.ledger.clock, fleet.standby

    def on_answer(found: Revocations) -> None:
        clock.observe(found.server_ms, round((steady_s() - found.at_s) * 1000))
        clock.heed(found.clock_trusts)
        if standby is not None:
            standby.note_head(found.at_s, found.head_seq)

    return RevocationWatch(fleet.key_changes, key_ring, tokens, trust_seconds, on_answer)
