"""
A crowd that keeps connections open: half of them silent, half sending one byte of a request a second.

Run in a process of its own: ``python -m bench.crowd_load PORT CONNECTIONS ADDRESSES``. It prints how many are open once
all have been tried, and at the end how many were opened again after the server had closed them. It ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from itertools import count
from typing import Final, cast

import uvloop

#: Each connection that drips has its turn once in so many rounds, and a round lasts so long.
DRIP_ROUNDS: Final = 20
ROUND_SECONDS: Final = 0.05
#: Sent byte by byte, and never ended.
DRIPPED: Final = b"GET /trade/api/v1/getBalance HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1_000
OPENED_AT_ONCE: Final = 200


class Member(asyncio.Protocol):
    """One connection of the crowd."""

    def __init__(self) -> None:
        self.sent = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be open."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Be closed."""
        self.transport = None

    def drip(self) -> None:
        """Send one more byte."""
        if self.transport is not None and self.sent < len(DRIPPED):
            self.transport.write(DRIPPED[self.sent : self.sent + 1])
            self.sent += 1


class Crowd:
    """Keeps *connections* open to *port*, from *addresses* addresses of this machine."""

    def __init__(self, port: int, connections: int, addresses: int) -> None:
        self.port = port
        self.addresses = addresses
        self.members: list[Member | None] = [None] * connections
        self.again = 0

    def address(self, number: int) -> str:
        """Return the address that member *number* comes from."""
        part = number % self.addresses
        return f"127.{1 + part // 250}.{part % 250}.1"

    async def open(self, number: int) -> None:
        """Open the connection of member *number*, if the server takes it."""
        member = Member()
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: member, "127.0.0.1", self.port, local_addr=(self.address(number), 0)
            )
        except OSError:
            return
        self.members[number] = member

    async def keep_open(self) -> None:
        """Open those that are closed, a few at a time."""
        closed = [number for number, member in enumerate(self.members) if member is None or member.transport is None]
        for start in range(0, len(closed), OPENED_AT_ONCE):
            await asyncio.gather(*(self.open(number) for number in closed[start : start + OPENED_AT_ONCE]))

    async def run(self) -> None:
        """Keep the crowd there until standard input ends."""
        ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await self.keep_open()
        await asyncio.sleep(1)
        print(self.open_now(), flush=True)
        for number in count():
            if ended.done():
                break
            for member in self.members[::2][number % DRIP_ROUNDS :: DRIP_ROUNDS]:
                if member is not None:
                    member.drip()
            if number % DRIP_ROUNDS == 0:
                self.again += len(self.members) - self.open_now()
                await self.keep_open()
            await asyncio.sleep(ROUND_SECONDS)
        print(self.again, flush=True)

    def open_now(self) -> int:
        """Count the open connections."""
        return sum(member is not None and member.transport is not None for member in self.members)


def main() -> None:
    """Be the crowd that the arguments say."""
    port, connections, addresses = map(int, sys.argv[1:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, connections + 256), most))
    uvloop.run(Crowd(port, connections, addresses).run())


if __name__ == "__main__":
    main()
