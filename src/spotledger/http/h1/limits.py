"""Every bound of the server, in one place; ``README.md`` says what happens at each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one listener. Names end with their unit."""

    #: Open connections, in all and from one address (of IPv6, from one /64).
    connections: int = 10_000
    connections_per_address: int = 1_000
    #: The networks of trusted proxies, whose connections count in all only, such as ``10.0.0.0/8``.
    proxies: tuple[str, ...] = ()
    #: A request's head: its length, the number of its headers, and how long it may take to arrive.
    head_bytes: int = 64 * 1024
    headers: int = 100
    head_seconds: float = 10.0
    #: How long a connection is kept without a request, and how long a TLS handshake may take.
    idle_seconds: float = 75.0
    handshake_seconds: float = 10.0
    #: Requests of one connection that are parsed ahead of the one being answered.
    pipelined: int = 16
    #: What those beyond the first may hold before no other is read.
    pipelined_bytes: int = 64 * 1024
    #: A body up to this length is given to the application when it is complete; of a longer one no more is buffered
    #: before the application reads it.
    body_ahead_bytes: int = 64 * 1024
    #: How long a body up to that length may take to arrive.
    body_seconds: float = 10.0
    #: What of its answers a client may leave unread before the next one waits; and what all clients whose answers wait
    #: may leave unread together, with the requests that they have sent ahead.
    unread_bytes: int = 16 * 1024
    unread_total_bytes: int = 128 * 1024 * 1024
    #: A client that takes fewer bytes than this of a waiting answer in ``slow_reader_seconds`` is cut off.
    slow_reader_bytes: int = 64 * 1024
    slow_reader_seconds: float = 75.0
    #: How long, and how much, is still read from a client that was answered before it had sent everything.
    linger_seconds: float = 2.0
    linger_bytes: int = 16 * 1024 * 1024
    #: How often these times are checked.
    check_seconds: float = 1.0
