"""TLS: the certificate is replaced without dropping a connection, and a handshake is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.tls import Certificate
from support_h1 import Served, name_of, serving, trusting, write_certificate

Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Loop:
    """Either event loop."""
    made: Loop = request.param
    return made


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a certificate called first, and its key."""
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    write_certificate(*files, "first")
    return files


def test_certificate_is_replaced_for_new_connections_only(loop: Loop, files: tuple[Path, Path]) -> None:
    """A connection that was open goes on with the old one; a new one gets the new one."""
    certificate = Certificate(*files)

    async def talk(served: Served) -> None:
        old = await served.connect(ssl=trusting(files[0]))
        await old.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await old.answer()).body == b"/1"
        write_certificate(*files, "second")
        certificate.load()
        new = await served.connect(ssl=trusting(files[0]))
        for wire, name in ((old, "first"), (new, "second")):
            await wire.send(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await wire.answer()).body == b"/2"
            assert name_of(wire.writer.get_extra_info("ssl_object")) == name

    serving(talk, loop=loop, tls=certificate)


def test_certificate_that_cannot_be_used_changes_nothing(files: tuple[Path, Path]) -> None:
    """Half-written files, or a key of another certificate, are an error; the old certificate stays."""
    certificate = Certificate(*files)
    before = certificate.context
    files[0].write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        certificate.load()
    write_certificate(files[0], files[1].with_name("other.pem"), "second")
    with pytest.raises(ssl.SSLError):
        certificate.load()
    files[1].unlink()
    with pytest.raises(FileNotFoundError):
        certificate.load()
    assert certificate.context is before


def test_versions_of_tls_below_1_2_are_refused(files: tuple[Path, Path]) -> None:
    """A client that speaks only an older version gets no connection; one that speaks 1.2 does."""
    certificate = Certificate(*files)

    async def talk(served: Served) -> None:
        for highest, passes in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            context = trusting(files[0])
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, highest
            with contextlib.nullcontext() if passes else pytest.raises((ssl.SSLError, ConnectionResetError)):
                wire = await served.connect(ssl=context)
                await wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await wire.answer()).body == b"/1"

    serving(talk, loop=asyncio.new_event_loop, tls=certificate)


def test_client_that_offers_http_2_speaks_http_1_1(files: tuple[Path, Path]) -> None:
    """The versions are agreed upon in the handshake."""

    async def talk(served: Served) -> None:
        context = trusting(files[0])
        context.set_alpn_protocols(["h2", "http/1.1"])
        wire = await served.connect(ssl=context)
        assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"

    serving(talk, loop=asyncio.new_event_loop, tls=Certificate(*files))


def test_key_that_is_encrypted_is_refused_without_asking(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL would ask for the password on the terminal, and wait."""
    passwords: list[object] = []

    load = ssl.SSLContext.load_cert_chain

    def recorded(context: ssl.SSLContext, certificate: Path, key: Path, password: Any = None) -> None:
        passwords.append(password)
        load(context, certificate, key, password)

    key = load_pem_private_key(files[1].read_bytes(), None)
    encrypted = BestAvailableEncryption(b"password")
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", recorded)
    with pytest.raises(ssl.SSLError):
        Certificate(*files)
    assert passwords == [b""]


def test_connection_without_a_handshake_is_counted_and_closed(loop: Loop, files: tuple[Path, Path]) -> None:
    """Who connects and says nothing, or speaks plain HTTP, takes up no place for long."""
    limits = Limits(connections_per_address=3, handshake_seconds=0.2)

    async def talk(served: Served) -> None:
        silent, plain = await served.connect(), await served.connect()
        plain.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        assert served.server.open_connections >= 1
        await asyncio.gather(silent.ended(), plain.ended())
        async with asyncio.timeout(5):
            while served.server.open_connections:
                await asyncio.sleep(0.01)
        wire = await served.connect(ssl=trusting(files[0]))
        await wire.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer()).body == b"/1"

    serving(talk, loop=loop, limits=limits, tls=Certificate(*files))


def test_stop_does_not_wait_for_the_goodbye_of_an_idle_client(loop: Loop, files: tuple[Path, Path]) -> None:
    """A client that keeps a connection for later does not read, so it does not end TLS when it is asked to."""
    held: list[ssl.SSLSocket] = []

    def ask(port: int) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        wire = trusting(files[0]).wrap_socket(plain, server_hostname="127.0.0.1")
        held.append(wire)
        wire.sendall(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"/1"):
            answer += wire.recv(1_000)

    async def talk(served: Served) -> None:
        await asyncio.to_thread(ask, served.port)

    assert serving(talk, loop=loop, tls=Certificate(*files)), "the idle client counts as answered"
    held[0].close()
