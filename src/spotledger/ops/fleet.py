"""
Open a ledger in a PostgreSQL database: for the library, or as a node of a fleet.

A node has its own data folder with its lock, the master key unless that comes from elsewhere, and, on the first node of
an empty database, the first operator token. Everything else is in the database.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from spotledger.audit.process import DatabaseAddress
from spotledger.clock import SYSTEM, Clock, TimeSources, steady_s
from spotledger.errors import JournalShorter, SchemaMismatch, SettingInvalid, SetupError
from spotledger.ledger.ledger import Ledger
from spotledger.ops.fleet_clock import FleetClock
from spotledger.ops.settings import ServerUrl, Settings, flag_of
from spotledger.storage.postgres.claim import Claim
from spotledger.storage.postgres.connection import ANY_SERVER, Connection, connect
from spotledger.storage.postgres.keys import KeyChanges, PostgresKeyTables
from spotledger.storage.postgres.master_key_holders import Announcer, place_of_process
from spotledger.storage.postgres.right_server import RightServer, place_of
from spotledger.storage.postgres.schema import check_ledger, has_ledger_schema, make_ready, migrate
from spotledger.storage.postgres.sealing.rebuilding import rebuild
from spotledger.storage.postgres.standby import StandbyStore
from spotledger.storage.postgres.statements import SEGMENT_ENTRIES
from spotledger.storage.postgres.store import PostgresStore
from spotledger.storage.seen_head import OtherHistory, Seen, SeenHead, check_place, read_seen

_log = logging.getLogger("spotledger.fleet")


def open_postgres(url: str, *, clock_ms: Callable[[], int] | None = None, **options: Any) -> Ledger:
    """
    Open the ledger in the PostgreSQL database at *url*; make the schema if the database is empty.

    Several processes may have it open at once, on any number of machines.

    Args:
        url: ``postgresql://role@host/database``; of several hosts, the one that accepts writes is used.
        clock_ms: For tests: the time in milliseconds since 1970, instead of the server's clock.
        **options: ``requires_standby``: refuse to write while no synchronous standby is connected to the server;
            ``segment_entries``: entries in a segment, for a ledger that is made; ``cache_accounts``: how many accounts
            stay in memory; ``follow_seconds``: how often to look for entries of other processes if no notification
            arrives.

    Raises:
        SettingInvalid: *url* is malformed.
        StoreUnavailable: The server cannot be reached.
        SchemaMismatch: The schema has another version, or the database contains something else.
        SetupError: An embedded ledger is being copied into the database.
        LedgerCorrupt: The database is not a complete ledger.
    """
    segment_entries = options.pop("segment_entries", SEGMENT_ENTRIES)
    make_ready(url, requires_standby=options.get("requires_standby", False), segment_entries=segment_entries)
    store = PostgresStore(url, clock_ms=clock_ms, **options)
    if clock_ms is not None:
        return Ledger(store, Clock(clock_ms))
    return Ledger(store, FleetClock(store.ledger_id, not_before_ms=store.head.booked_ms))


class Fleet(NamedTuple):
    """What the runtime of a node needs: the ledger and its store, and the revocations of other nodes."""

    ledger: Ledger
    key_changes: KeyChanges
    #: The server that audits read: the standby, if there is one.
    audited: DatabaseAddress
    #: Held by the node that runs the continuous audit.
    audit_claim: Claim
    store: PostgresStore | StandbyStore
    #: What this node saw last.
    seen: SeenHead
    #: Begins to announce the master keys that this process holds, until the fleet is closed.
    announce_master_keys: Callable[[Callable[[], tuple[str, ...]]], Announcer]

    @property
    def standby(self) -> StandbyStore | None:
        """The standby that this node reads from, if it does."""
        return self.store if isinstance(self.store, StandbyStore) else None


@contextlib.contextmanager
def open_fleet(
    settings: Settings,
    worker: int = 0,
    *,
    clock_ms: Callable[[], int] | None = None,
    time_sources: TimeSources = SYSTEM,
) -> Iterator[Fleet]:
    """
    Open the ledger in the database of *settings* for the length of a ``with`` block; on the standby, if they name one.

    An empty database gets the schema and an empty ledger. Access keys are always read from the primary.

    Args:
        settings: The settings in force.
        worker: The number of this process among those that share the data folder.
        clock_ms: For tests: returns the time in ms since 1970, with which the database's clock is not compared.
        time_sources: Where the node's clock gets the time from.

    Raises:
        JournalShorter: The database lacks the entry that this node saw last, or has no ledger.
        SettingInvalid: There is no database, or its address is malformed.
        StoreUnavailable: The primary or the standby cannot be reached, or is not the right server.
        SchemaMismatch: The database contains something else, or the schema has another version.
        SetupError: The standby has another ledger.
        LedgerCorrupt: The ledger is inconsistent.
    """
    address, requires = address_of(settings), settings.standby == "required"
    with contextlib.ExitStack() as stack:
        seen = SeenHead(settings.data, worker)
        stack.callback(seen.close)
        right = RightServer(address, seen)
        # Nothing is made in a database that lacks what this node has seen, nor on another server of the address.
        make_ready(_address_at_start(right), requires_standby=requires)
        _say_what_is_waited_for(requires=requires)
        key_tables = PostgresKeyTables(partial(right.connect, "spotledger keys"), requires_standby=requires)
        stack.callback(key_tables.close)
        standby = None if settings.read_database is None else _standby(settings, key_tables, seen)
        store = standby or PostgresStore(
            address,
            cache_accounts=settings.cache_accounts,
            age_limit_ms=settings.read_age_limit_ms,
            requires_standby=requires,
            seen=seen,
        )
        store.key_tables = key_tables
        clock = Clock(clock_ms) if clock_ms else _clock(settings, worker, store, time_sources, key_tables.trust_clock)
        stack.callback(clock.close)
        asked_s = steady_s()
        clock.observe(key_tables.server_ms(), round((steady_s() - asked_s) * 1000))
        ledger = stack.enter_context(Ledger(store, clock))
        key_changes = KeyChanges(partial(right.connect, "spotledger key changes"))
        stack.callback(key_changes.close)
        audit_claim = Claim(partial(right.connect, "spotledger audit claim"))

        def announce(fingerprints: Callable[[], tuple[str, ...]]) -> Announcer:
            place = place_of_process(str(settings.data), worker)
            announcer = Announcer(partial(right.connect, "spotledger master keys"), place, fingerprints)
            stack.callback(announcer.close)
            return announcer

        yield Fleet(ledger, key_changes, _audited(settings), audit_claim, store, seen, announce)


def right_server(settings: Settings) -> RightServer:
    """
    Return what connects to the right server of *settings*: the one that has what the node in the data folder saw last.

    Every command that is given a database connects through this. Nothing is written to the folder; if it has no
    ``seen-head``, nothing is known, and the server that the address leads to is the right one.

    Raises:
        SettingInvalid: There is no database, or its address is malformed.
        StoreUnavailable, LedgerCorrupt: What the node saw last cannot be read.
    """
    return RightServer(address_of(settings), SeenHead(seen=read_seen(settings.data)))


def _address_at_start(right: RightServer) -> str:
    """Return the address of the right server, or that of *right* where nothing is known; raise like a start."""
    if right.seen.seen is None:
        return right.address
    with right.connect_at_start("spotledger") as connection:
        return right.address_of(connection)


def address_to_change(right: RightServer) -> str:
    """
    Return the address of the one server that a command may change.

    That is the right server; where nothing is known, the only one of the address that takes writes.

    Raises:
        JournalShorter, OtherHistory, NotCaughtUp: No server that could be reached has what was seen.
        SetupError: Several servers take writes, and none is known to be the right one.
        SettingInvalid, StoreUnavailable: There is no connection.
    """
    return right.only_server() if right.seen.seen is None else _address_at_start(right)


def _clock(
    settings: Settings,
    worker: int,
    store: PostgresStore | StandbyStore,
    sources: TimeSources,
    tell_others: Callable[[], None],
) -> FleetClock:
    return FleetClock(
        store.ledger_id,
        settings.data,
        worker,
        not_before_ms=store.head.booked_ms if store.takes_writes else 0,
        leap_ms=settings.clock_leap_ms,
        sources=sources,
        tell_others=tell_others,
    )


def _say_what_is_waited_for(*, requires: bool) -> None:
    """Log what an acknowledged write has reached."""
    if requires:
        _log.info("standby = required: a write is acknowledged once a synchronous standby has it, else refused")
        return
    _log.info(
        "standby = none: a write is acknowledged once it is on the disk of the server, and of a standby only if the"
        " server names one in synchronous_standby_names; if the only server with it is lost, so is the write"
    )


def _audited(settings: Settings) -> DatabaseAddress:
    if settings.read_database is None:
        return DatabaseAddress(str(settings.database), address_of(settings))
    return DatabaseAddress(str(settings.read_database), standby_address_of(settings))


def _standby(settings: Settings, key_tables: PostgresKeyTables, seen: SeenHead) -> StandbyStore:
    standby = StandbyStore(
        standby_address_of(settings),
        cache_accounts=settings.cache_accounts,
        age_limit_ms=settings.read_age_limit_ms,
        seen=seen,
    )
    [(ledger_id,)] = key_tables.rows("SELECT ledger_id FROM ledger")
    if standby.ledger_id != ledger_id:
        standby.close()
        raise SetupError(
            f"The standby {settings.read_database} has the ledger {standby.ledger_id}, the database has {ledger_id};"
            " a standby of this database would pass."
        )
    return standby


def address_of(settings: Settings) -> str:
    """
    Return the address of the database with the timeouts of *settings*, as the driver takes it.

    It may contain the password: pass it to the driver only.

    Raises:
        SettingInvalid: There is no database, or its address is malformed.
    """
    if settings.database is None:
        raise SettingInvalid(
            f"There is no database; name one with {flag_of('database')} postgresql://…", setting="database"
        )
    return _with_timeouts(settings, settings.database)


def standby_address_of(settings: Settings) -> str:
    """Return the address of the standby like that of the database; raises SettingInvalid if there is none."""
    if settings.read_database is None:
        raise SettingInvalid(f"There is no standby; name one with {flag_of('read_database')}.", setting="read_database")
    return make_conninfo(_with_timeouts(settings, settings.read_database), **ANY_SERVER)


def _with_timeouts(settings: Settings, url: ServerUrl) -> str:
    """Return *url* with the timeouts of *settings*, unless it has its own."""
    try:
        parts = conninfo_to_dict(url.secret)
    except psycopg.Error:  # its message may contain the password
        raise SettingInvalid(
            f"The driver does not accept the address {url}; postgresql://NAME@HOST:PORT/DATABASE would pass."
        ) from None
    timeouts = (
        f"-c lock_timeout={settings.database_lock_ms}"
        f" -c idle_in_transaction_session_timeout={settings.database_idle_ms}"
        f" -c tcp_user_timeout={settings.database_network_ms}"
    )
    given = {
        "connect_timeout": settings.database_connect_seconds,
        "tcp_user_timeout": settings.database_network_ms,
        **{name: value for name, value in parts.items() if value is not None},
        "options": f"{timeouts} {parts.get('options') or ''}".strip(),
    }
    return make_conninfo(**given)  # type: ignore[arg-type]


def check_there(settings: Settings) -> None:
    """
    Check that the database of *settings* has a ledger.

    Raises:
        JournalShorter, OtherHistory: It is not the one that the node in the data folder has seen.
        SchemaMismatch: It has none, or contains something else.
        StoreUnavailable: The database cannot be reached.
    """
    with right_server(settings).connect_at_start("spotledger") as connection:
        _check_there(connection, settings)


def _check_there(connection: Connection, settings: Settings) -> None:
    if not has_ledger_schema(connection):
        raise SchemaMismatch(
            f"There is no ledger in the database {settings.database}. spotledger serve, coin add and customer add"
            " make a new one; spotledger copy copies an embedded one there."
        )


def migrate_database(settings: Settings, *, after: bool) -> list[str]:
    """
    Migrate the schema of the database to the version of this program; return the names of the migrations applied.

    Args:
        settings: The settings that name the database, and the data folder of a node, if there is one.
        after: Apply the migrations too that nodes of the previous version do not work with.

    Raises:
        JournalShorter, OtherHistory: The database is not the one that the node has seen; nothing was changed.
        SetupError: Several servers of the address take writes, and none is known to be the right one.
        SchemaMismatch: The database contains something else, or has a newer schema.
        StoreUnavailable: The server reports an error or cannot be reached; nothing was changed.
    """
    with connect(address_to_change(right_server(settings)), application="spotledger migrate") as connection:
        has_ledger_schema(connection)
        return migrate(connection, after=after)


class EpochBegun(NamedTuple):
    """A new epoch: the ledger, its number, the entry that began it, and the entry that was given up; None for none."""

    ledger_id: str
    epoch: int
    seq: int
    given_up: Seen | None


def rebuild_database(settings: Settings, progress: Callable[[int, int], None]) -> int:
    """
    Derive the tables of the database of *settings* from its journal again, while nodes go on.

    Args:
        settings: The settings that name the database, and the data folder of a node, if there is one.
        progress: Told how many entries are sealed, and how many will be.

    Returns:
        The last entry that is sealed then.

    Raises:
        JournalShorter, OtherHistory: The database lacks what the node has seen.
        SetupError: Several servers of the address take writes, and none is known to be the right one.
        SchemaMismatch: The database has no ledger, or contains something else.
        LedgerCorrupt: The journal is damaged; nothing was changed.
        StoreUnavailable: The database cannot be reached, or the role lacks a privilege; nothing was changed.
    """
    address = address_to_change(right_server(settings))
    with connect(address) as connection:
        check_ledger(connection)
    return rebuild(partial(connect, address, application="spotledger rebuild"), progress)


def begin_epoch(settings: Settings, reason: str, number: int | None, *, accept_loss: bool) -> EpochBegun:
    """
    Begin a new epoch in the database of *settings*, above every one that the node in the data folder has seen.

    Args:
        settings: The settings that name the database, and the data folder of a node, if there is one.
        reason: Why; the journal keeps it.
        number: The number of the epoch; None for the next one.
        accept_loss: Begin it too where the database lacks what the node has seen.

    Raises:
        JournalShorter, OtherHistory: The database lacks it, and the loss is not accepted; or it has another ledger.
        SettingInvalid: The node has seen the epoch *number*, or a later one.
        SetupError: Several servers of the address take writes, and none is known to be the right one.
        SchemaMismatch: The database has no ledger, or contains something else.
        StoreUnavailable: The database cannot be reached.
    """
    right, given_up = right_server(settings), None
    seen = right.seen.seen
    if seen is not None and number is not None and number <= seen.epoch:
        raise SettingInvalid(f"The node in {settings.data} has seen epoch {seen.epoch}; --epoch {seen.epoch + 1} would"
                             " pass.", setting="epoch")  # fmt: skip
    try:
        address = address_to_change(right)
    except (JournalShorter, OtherHistory):
        if not accept_loss or seen is None:
            raise
        address, given_up = right.only_server(), seen
    with connect(address) as connection:
        _check_there(connection, settings)
        place = place_of(connection, 0)
        if seen is not None and place is not None and place.ledger_id != seen.ledger_id:
            check_place(seen, place)
    with open_postgres(address) as ledger:
        if number is None and seen is not None and seen.epoch > ledger.epoch:
            number = seen.epoch + 1
        seq = ledger.begin_epoch(reason, number)
        return EpochBegun(ledger.ledger_id, ledger.epoch, seq, given_up)
