"""A server that speaks Redis's protocol and answers as a test says, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec

#: What a command is answered with; None: never.
Answer: TypeAlias = bytes | None
Command: TypeAlias = list[bytes]

HELLO = b"%1\r\n+proto\r\n:3\r\n"
OK = b"+OK\r\n"
NO_SCRIPT = b"-NOSCRIPT No matching script.\r\n"


def bulk(data: bytes) -> bytes:
    """Return *data* as one answer."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def listed(*answers: bytes) -> bytes:
    """Return a list of answers."""
    return b"*%d\r\n%b" % (len(answers), b"".join(answers))


def told_to(command: Command) -> tuple[Any, ...]:
    """Return what a call of the script was given: the time, how long signatures are kept, limits and requests."""
    return tuple(msgspec.msgpack.decode(command[3]))


def verdicts(*numbers: Any) -> bytes:
    """Return the script's answer of these numbers."""
    return bulk(msgspec.msgpack.encode(numbers))


def passing(command: Command) -> bytes:
    """Let each request of a call pass, with nothing counted."""
    return verdicts(*([0, 0, 1, 0, 0] * len(told_to(command)[3])))


class FakeRedis:
    """
    The server, and the calls of commands that it was sent, without those that open a connection.

    Each is answered by the method *answer*, which a test replaces.
    """

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Command] = []
        self.open = 0
        self.answer: Callable[[Command], Awaitable[Answer]] = self.pass_all

    async def pass_all(self, command: Command) -> Answer:
        """Let every request pass."""
        return passing(command) if command[0] in (b"EVALSHA", b"EVAL") else b"-ERR unknown command\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the commands of one connection in order."""
        self.open += 1
        try:
            while line := await reader.readline():
                command = [await self._argument(reader) for _ in range(int(line[1:]))]
                writer.write(await self._answered(command))
        finally:
            self.open -= 1
            writer.close()

    async def _argument(self, reader: asyncio.StreamReader) -> bytes:
        length = int((await reader.readline())[1:])
        return (await reader.readexactly(length + 2))[:-2]

    async def _answered(self, command: Command) -> bytes:
        if command[0] in (b"HELLO", b"CLIENT"):
            return HELLO if command[0] == b"HELLO" else OK
        self.calls.append(command)
        answer = await self.answer(command)
        return answer if answer is not None else await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def fake_redis() -> AsyncIterator[FakeRedis]:
    """Serve for a while."""
    fake = FakeRedis()
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(fake.serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    fake.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield fake
    finally:
        server.close()
        for task in [*serving]:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
