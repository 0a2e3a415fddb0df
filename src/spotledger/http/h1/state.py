"""What the connections of one listener share, and how their addresses are counted."""

from __future__ import annotations

import heapq
import ipaddress
import logging
import time
import traceback
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import Application
from spotledger.http.h1.shares import ConnectionShares
from spotledger.http.h1.unread import UnreadAnswers

#: While all connections are taken, this share of them is closed to make room, if they wait for their clients.
_CLOSED_SHARE: Final = 0.01
#: While none waits for its client, how often they are looked through.
_LOOK_SECONDS: Final = 0.05
#: How often the log says that an address is at its bound.
_WARN_SECONDS: Final = 60.0
_log = logging.getLogger("spotledger.http")


class OpenConnection(Protocol):
    """A connection, as its listener sees it."""

    #: What it is counted by; None for that of a trusted proxy.
    address: bytes | None
    #: Whether it is counted.
    is_counted: bool

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""

    @property
    def is_settled(self) -> bool:
        """Whether it is idle, and every answer was sent."""

    @property
    def waits_since(self) -> float | None:
        """Since when it has waited for its client, or None if the client waits for it."""

    def check_timeouts(self) -> None:
        """Close it if it has been silent for too long."""

    def close_when_idle(self) -> None:
        """Close it now if it is idle, else after its answers."""

    def abort(self) -> None:
        """Close it at once."""


class Admitted(NamedTuple):
    """What an accepted connection is counted by; None for that of a trusted proxy."""

    address: bytes | None


class ListenerState:
    """The connections of one listener, counted by address, and what they share."""

    def __init__(self, app: Application, limits: Limits, shares: ConnectionShares | None = None) -> None:
        self.app = app
        self.limits = limits
        self.shares = shares
        self.connections: set[OpenConnection] = set()
        self.unread = UnreadAnswers(limits.unread_total_bytes)
        self.stopping = False
        #: The loop's time, and the end of a head with the date; both are renewed once a second.
        self.now = 0.0
        self.head_end = b"\r\n"
        #: Connections accepted and not released, those in a TLS handshake too; and how many of each address.
        self.open = 0
        self._by_address: dict[bytes, int] = {}
        self._proxies = [ipaddress.ip_network(network) for network in limits.proxies]
        self._warned_at = float("-inf")
        #: When no connection was found that waits for its client.
        self._full_at = float("-inf")

    def admit(self, host: str) -> Admitted | None:
        """Count one more connection of *host*, or return None if there is no room for it."""
        address = address_of(host)
        counted = None
        if not (self._proxies and self._is_proxy(address)):
            counted = address.packed[:8]  # of IPv4 that is the whole address
            if self._by_address.get(counted, 0) >= self.limits.connections_per_address:
                self._warn(host)
                return None
        if self.open >= self.limits.connections and not self._make_room():
            return None
        self._count(counted, 1)
        return Admitted(counted)

    def release(self, connection: OpenConnection) -> None:
        """Count *connection* no more."""
        self.connections.discard(connection)
        self.unread.remove(connection)
        if connection.is_counted:
            connection.is_counted = False
            self._count(connection.address, -1)

    def _count(self, counted: bytes | None, change: int) -> None:
        self.open += change
        if self.shares is not None:
            self.shares.note(self.open)
        if counted is not None:
            self._by_address[counted] = self._by_address.get(counted, 0) + change
            if not self._by_address[counted]:
                del self._by_address[counted]

    def _is_proxy(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._proxies)

    def _make_room(self) -> bool:
        """
        Close some of the connections that wait for their clients; return whether there were any.

        First those of the address that has most, so that whoever takes all connections loses them, and nobody else. Of
        these first the idle ones, and of these the ones that have waited for longest.
        """
        if time.monotonic() - self._full_at < _LOOK_SECONDS:
            return False
        waiting = [
            ((-self._by_address.get(connection.address or b"", 0), not connection.is_idle, since), connection)
            for connection in self.connections
            if (since := connection.waits_since) is not None
        ]
        if not waiting:
            self._full_at = time.monotonic()
        for _, connection in heapq.nsmallest(max(1, int(self.open * _CLOSED_SHARE)), waiting, itemgetter(0)):
            self.release(connection)  # at once: more may be accepted before it has ended
            connection.abort()
        return bool(waiting)

    def _warn(self, host: str) -> None:
        if self.now - self._warned_at >= _WARN_SECONDS:
            self._warned_at = self.now
            _log.warning(
                "%s has %d connections and gets no more; a proxy in front belongs to trusted_proxies",
                host,
                self.limits.connections_per_address,
            )


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address *host*, without its zone; an IPv4 address in the form of IPv6 as what it is."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def log_unexpected(error: Exception) -> None:
    """Log where *error* happened; not its text, which may hold what was sent, with line breaks in it."""
    places = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    _log.error("an answer was cut off by an unexpected %s\n%s", type(error).__name__, places)
