"""
Connections to the right server: the one whose journal goes on from what this node has seen.

An old primary that comes back takes connections and writes like any other, and may be the first one in the address. So
each connection is checked once, when it is made, and the other hosts of the address are tried if it leads to a wrong
server. Once this node finds out that another server took over, its connections to the old one are cut.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus

from spotledger.errors import JournalShorter, LedgerCorrupt, SetupError, StoreUnavailable
from spotledger.storage.encoding import epochs_of_row
from spotledger.storage.postgres.connection import Connection, connect, translated
from spotledger.storage.seen_head import (
    NEW_NODE,
    NotCaughtUp,
    OtherHistory,
    Place,
    Seen,
    SeenHead,
    ServerId,
    check_place,
)

#: How long a command waits for a standby to have what was seen, and how often it looks.
CATCH_UP_SECONDS: Final = 10.0
CATCH_UP_PAUSE_SECONDS: Final = 0.2

_PLACE: Final = (
    "SELECT ledger_id, epoch_seq, begun.body, coalesce((SELECT max(seq) FROM entry), 0),"
    " (SELECT hash FROM entry WHERE seq = %s), pg_is_in_recovery()"
    " FROM ledger LEFT JOIN entry AS begun ON begun.seq = epoch_seq"
)
#: A standby's timeline is not asked for: it is noted late there.
_SERVER: Final = (
    "SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"
    " FROM pg_control_system()"
)
#: What a server or a role answers that does not tell which server it is.
_NOT_TOLD: Final = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.FeatureNotSupported,
)

_log = logging.getLogger("spotledger.store")


class RightServer:
    """Makes connections to the server that goes on from what this node saw last. Any thread may use it."""

    def __init__(self, address: str, seen: SeenHead | None = None) -> None:
        """Make connections to *address*, where the ledger has what was *seen*; None: what is seen from now on."""
        self.address = address
        self.seen = SeenHead() if seen is None else seen
        #: The server of each connection that says which one it is.
        self._servers: weakref.WeakKeyDictionary[Connection, ServerId] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def connect(self, application: str = "spotledger", *, steady_plans: bool = True) -> Connection:
        """
        Open a connection in autocommit to the right server, whichever host of the address that is.

        Raises:
            OtherHistory, NotCaughtUp: Every server that could be reached is a wrong one, or behind.
            SettingInvalid, StoreUnavailable: As for :func:`connect`.
        """
        connection = connect(self.address, application=application, steady_plans=steady_plans)
        host, port = connection.info.host, connection.info.port
        try:
            return self._checked(connection)
        except (OtherHistory, NotCaughtUp) as error:
            others = [address for *place, address in self.hosts() if place != [host, str(port)]]
            for address in others:
                with suppress(StoreUnavailable):
                    return self._checked(connect(address, application=application, steady_plans=steady_plans))
            raise error from None

    def connect_once_caught_up(self, application: str, *, steady_plans: bool = True) -> Connection:
        """
        Open a connection like :meth:`connect`; wait a moment for a standby that is merely behind.

        Raises:
            NotCaughtUp: It is still behind after `CATCH_UP_SECONDS`.
            OtherHistory, SettingInvalid, StoreUnavailable: As for :meth:`connect`.
        """
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while True:
            try:
                return self.connect(application, steady_plans=steady_plans)
            except NotCaughtUp:
                if time.monotonic() > deadline:
                    raise
            time.sleep(CATCH_UP_PAUSE_SECONDS)

    @contextmanager
    def connect_at_start(self, application: str) -> Iterator[Connection]:
        """
        Connect for the length of a ``with`` block, at the start of a node.

        Raises:
            JournalShorter: The journal ends before the entry that this node saw last, or there is none.
            OtherHistory, NotCaughtUp, SettingInvalid, StoreUnavailable: As for :meth:`connect`.
        """
        try:
            connection = self.connect(application)
        except OtherHistory as error:
            if error.noted is None:
                raise
            raise JournalShorter(error.message, noted=error.noted, found=error.found) from error
        with connection:
            yield connection

    def address_of(self, connection: Connection) -> str:
        """Return the address of the one server that *connection* leads to; it may contain the password."""
        host, port = connection.info.host, str(connection.info.port)
        return next((address for *place, address in self.hosts() if place == [host, port]), self.address)

    def only_server(self) -> str:
        """
        Return the address of the only server that takes writes, whatever its history is.

        Raises:
            SetupError: Several servers of the address take writes; the message names them.
            SettingInvalid, StoreUnavailable: As for :func:`connect`.
        """
        found: list[tuple[str, str]] = []
        for _, _, address in self.hosts():
            writes = make_conninfo(address, target_session_attrs="read-write")
            with suppress(StoreUnavailable), connect(writes) as connection:
                found.append((name_of(connection), address))
        if len(found) > 1:
            raise SetupError(
                f"Several servers of the address take writes: {', '.join(name for name, _ in found)}. Only one of them"
                " may go on; stop the others, or give an address with that one alone."
            )
        return found[0][1] if found else self.address

    def hosts(self) -> Iterator[tuple[str, str, str]]:
        """Yield each host of the address if there are several: its name, its port, and the address with it alone."""
        parts = conninfo_to_dict(self.address)
        name = "host" if parts.get("host") else "hostaddr"
        hosts = str(parts.get(name) or "").split(",")
        ports = str(parts.get("port") or "").split(",")
        addresses = str(parts.get("hostaddr") or "").split(",")
        for place, host in enumerate(hosts if len(hosts) > 1 else ()):
            port = ports[place] if len(ports) == len(hosts) else ports[0]
            one = {name: host, "port": port}
            if name == "host" and len(addresses) == len(hosts):
                one["hostaddr"] = addresses[place]
            yield host, port or "5432", make_conninfo(self.address, **one)

    def _checked(self, connection: Connection) -> Connection:
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: Connection) -> None:
        """Check which server *connection* leads to."""
        seen = self.seen.seen
        place = place_of(connection, 0 if seen is None else seen.seq)
        if place is None:
            if seen is not None:
                raise OtherHistory(
                    f"the database at {name_of(connection)} has no ledger, and this node has seen entry {seen.position}"
                    f" of the ledger {seen.ledger_id}. {NEW_NODE}",
                    noted=seen.seq,
                    found=0,
                )
            return
        if seen is not None:
            check_place(seen, place)
        later = seen is not None and place.epoch > seen.epoch
        if seen is not None and later and (place.kept != seen.hash or place.seq < seen.seq):
            _say_accepted(seen, place)
        self.seen.note_server(place.server, later_epoch=later)
        with self._lock:
            self._servers[connection] = place.server
            old = [each for each, server in self._servers.items() if not self.seen.is_current(server)]
            for each in old:
                del self._servers[each]
                _cut(each)


def is_put_back(seen: Seen, place: Place) -> bool:
    """
    Check that the server at *place* goes on from what was *seen*.

    Returns:
        Whether it began a later epoch from an earlier entry.

    Raises:
        OtherHistory, NotCaughtUp: It does not go on from there.
        LedgerCorrupt: It has later entries and lacks that one.
    """
    check_place(seen, place)
    if seen.seq == 0 or place.kept == seen.hash:
        return False
    if place.epoch <= seen.epoch:
        raise LedgerCorrupt(f"the journal lacks entry {seen.seq}, and has later ones")
    _say_accepted(seen, place)
    return True


def place_of(connection: Connection, seq: int) -> Place | None:
    """
    Return what the server of *connection* has, with the hash of the entry *seq*; None if it has no ledger.

    Raises:
        StoreUnavailable: The server is in the way.
        LedgerCorrupt: The entry with which its epoch began is missing, or begins none.
    """
    with translated("opened"):
        try:
            found = connection.execute(_PLACE.encode(), (seq,), prepare=False).fetchall()
        except psycopg.errors.UndefinedTable:
            return None
    if not found:
        return None
    ledger_id, epoch_seq, body, head_seq, kept, is_standby = found[0]
    return Place(
        name_of(connection), ledger_id, epochs_of_row(epoch_seq, body).current, head_seq,
        None if kept is None else bytes(kept), ServerId() if is_standby else server_of(connection), is_standby,
    )  # fmt: skip


def name_of(connection: Connection) -> str:
    """Return the address of the server of *connection*, for people."""
    return f"{connection.info.host}:{connection.info.port}"


def server_of(connection: Connection) -> ServerId:
    """Return which server it is; zeros where it does not say."""
    try:
        with translated("opened"):
            [(system, timeline)] = connection.execute(_SERVER.encode(), prepare=False).fetchall()
    except StoreUnavailable as error:
        if isinstance(error.__cause__, _NOT_TOLD):
            _log.debug("the server does not say which system and timeline it is: %s", error.__cause__)
            return ServerId()
        raise
    return ServerId(system % 2**64, timeline)


def _cut(connection: Connection) -> None:
    """Have whichever thread uses *connection* find it lost."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
        # Still open, so the descriptor was that of the connection when it was copied.
        if connection.pgconn.status == ConnStatus.OK:
            copy.shutdown(socket.SHUT_RDWR)


def _say_accepted(seen: Seen, place: Place) -> None:
    _log.warning(
        "the server %s has epoch %d, which is later than the %d of entry %d that this node has seen; this node goes on"
        " from there, at entry %d", place.name, place.epoch, seen.epoch, seen.seq, place.seq,
    )  # fmt: skip
