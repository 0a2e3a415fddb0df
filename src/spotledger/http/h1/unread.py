"""What the clients of one listener have not read yet of their answers, bounded in all."""

from __future__ import annotations

from typing import Protocol, TypeAlias


class Waiting(Protocol):
    """A connection whose client does not read as fast as it asks."""

    #: What it is counted by; None for that of a trusted proxy, which is counted by itself.
    address: bytes | None

    def abort(self) -> None:
        """Close it at once."""


#: Whom unread bytes are counted against.
Reader: TypeAlias = bytes | Waiting


class UnreadAnswers:
    """
    The bytes that wait for clients to read them, by address.

    When there are more than *limit_bytes*, connections of the address with most of them are closed, the one that has
    waited for longest first. So whoever leaves much unread loses it, and nobody else.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.total_bytes = 0
        self._by_address: dict[Reader, dict[Waiting, int]] = {}
        self._bytes_of: dict[Reader, int] = {}

    def add(self, connection: Waiting, unread_bytes: int) -> None:
        """Count *unread_bytes* of *connection*, which answers nothing more until they are read."""
        address = _address_of(connection)
        self._by_address.setdefault(address, {})[connection] = unread_bytes
        self._bytes_of[address] = self._bytes_of.get(address, 0) + unread_bytes
        self.total_bytes += unread_bytes
        while self.total_bytes > self._limit_bytes:
            most = max(self._bytes_of, key=self._bytes_of.__getitem__)
            longest = next(iter(self._by_address[most]))
            self.remove(longest)
            longest.abort()

    def remove(self, connection: Waiting) -> None:
        """Count *connection* no more, if it is counted."""
        address = _address_of(connection)
        of_address = self._by_address.get(address)
        if of_address is None or connection not in of_address:
            return
        unread_bytes = of_address.pop(connection)
        self.total_bytes -= unread_bytes
        self._bytes_of[address] -= unread_bytes
        if not of_address:
            del self._by_address[address], self._bytes_of[address]


def _address_of(connection: Waiting) -> Reader:
    return connection if connection.address is None else connection.address
