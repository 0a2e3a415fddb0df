"""The HTTP server over an application of a few lines, and the requests that it read."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import BadRequest, LateReply, Reply, Request
from spotledger.http.h1.server import HttpServer
from support_listener import Wire


def write_certificate(certificate: Path, key: Path, name: str) -> None:
    """Write a certificate for 127.0.0.1 that is its own authority, with the common name *name*, and its key."""
    made = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(made, hashes.SHA256())
    )
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def trusting(certificate: Path) -> ssl.SSLContext:
    """Return the context of a client that trusts *certificate*."""
    return ssl.create_default_context(cafile=str(certificate))


def name_of(connection: Any) -> str:
    """Return the common name of the certificate that *connection* was shown."""
    return str(dict(pair for part in connection.getpeercert()["subject"] for pair in part)["commonName"])


class Seen(NamedTuple):
    """A request that was answered."""

    method: str
    path: str
    body: bytes


class Echo:
    """
    Answers with the path of a request, at once, after a future or in a task; ``/long`` with many bytes.

    ``/unread`` is answered without its body.
    """

    def __init__(self, *, is_quick: bool = True, is_late: bool = False) -> None:
        self.is_quick = is_quick
        self.is_late = is_late
        self.seen: list[Seen] = []
        self.refused: list[str] = []

    def at_once(self, request: Request) -> Reply | LateReply | None:
        """Answer a request whose body is here."""
        body = request.body
        if not self.is_quick or not isinstance(body, bytes):
            return None
        if not self.is_late:
            return self._reply(request, body)
        future = self.awaited()
        return LateReply(future, lambda _: self._reply(request, body))

    def awaited(self) -> asyncio.Future[None]:
        """Return what an answer waits for."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        loop.call_soon(lambda: future.done() or future.set_result(None))
        return future

    async def answer(self, request: Request) -> Reply:
        """Answer after a turn of the loop."""
        await asyncio.sleep(0)
        body = b"" if request.path == "/unread" else request.body
        try:
            return self._reply(request, body if isinstance(body, bytes) else await body.read(2**20))
        except BadRequest as problem:
            return self.refusal(problem, request.peer)

    def _reply(self, request: Request, body: bytes) -> Reply:
        self.seen.append(Seen(request.method, request.path, body))
        if request.path == "/long":
            return Reply(200, b"x" * 400_000)
        return Reply(200, request.path.encode())

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Say why."""
        self.refused.append(problem.reason)
        return Reply(400, b"refused")


class Served(NamedTuple):
    """A server that a test talks to."""

    server: HttpServer
    app: Echo
    port: int
    wires: list[Wire]

    async def connect(self, host: str = "127.0.0.1", **how: Any) -> Wire:
        """Open a connection from the address *host*; it is closed at the end."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0), **how))
        self.wires.append(wire)
        return wire

    async def said(self, data: bytes) -> bytes:
        """Send *data* and no more; return all that comes back."""
        wire = await self.connect()
        await wire.send(data)
        wire.finish()
        return await wire.ended()


def serving(
    talk: Callable[[Served], Awaitable[None]],
    *,
    app: Echo | None = None,
    limits: Limits | None = None,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **more: Any,
) -> bool:
    """Serve while *talk* goes on; return whether everything was answered at the end."""
    app = app or Echo()

    async def serve() -> bool:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = HttpServer(app, listener, limits, **more)
            await server.start()
            served = Served(server, app, listener.getsockname()[1], [])
            try:
                async with asyncio.timeout(60):
                    await talk(served)
            finally:
                is_whole = await server.stop(1)
                for wire in served.wires:
                    wire.writer.transport.abort()
                await asyncio.sleep(0)
            return is_whole

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(serve())
