"""TLS served directly: the certificate is replaced with SIGHUP, in each worker, without dropping a connection."""

from __future__ import annotations

import http.client
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

import support_service
from servers.kept import until
from spotledger.client import SpotClient
from spotledger.errors import TransportError
from support_h1 import name_of, trusting, write_certificate


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Return a certificate called first, and its key."""
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    write_certificate(*files, "first")
    return files


def shown(port: int, certificate: Path) -> str:
    """Return the name of the certificate that a new connection is shown."""
    context = trusting(certificate)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        return name_of(connection)


@pytest.mark.parametrize("workers", [1, 2])
def test_certificate_is_replaced_while_a_connection_is_open(
    tmp_path: Path, files: tuple[Path, Path], workers: int, request: pytest.FixtureRequest
) -> None:
    """Traders speak TLS, the operator on the loopback address does not; a wrong certificate changes nothing."""
    more = {} if workers == 1 else {"database": request.getfixturevalue("postgres_url"), "workers": workers}
    service = support_service.start(tmp_path / "data", tls_cert=files[0], tls_key=files[1], **more)
    try:
        assert service.public_url.startswith("https://127.0.0.1:")
        assert httpx2.get(f"{service.operator_url}/healthz").status_code == 200
        port = int(service.public_url.rpartition(":")[2])
        old_certificate = files[0].with_name("old.pem")
        old_certificate.write_bytes(files[0].read_bytes())
        held = http.client.HTTPSConnection("127.0.0.1", port, context=trusting(old_certificate), timeout=10)
        held.request("GET", "/healthz")
        assert held.getresponse().read() == b'{"status":"alive"}'

        write_certificate(*files, "second")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: service.stderr.read_text().count("was reloaded") == workers)
        assert {shown(port, files[0]) for _ in range(10)} == {"second"}
        held.request("GET", "/healthz")
        assert held.getresponse().read() == b'{"status":"alive"}'
        held.close()

        new_certificate = files[0].with_name("new.pem")
        new_certificate.write_bytes(files[0].read_bytes())
        files[1].write_text("no key")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: service.stderr.read_text().count("stays as it is") == workers)
        assert {shown(port, new_certificate) for _ in range(10)} == {"second"}
        with pytest.raises(ssl.SSLError):
            shown(port, old_certificate)
    finally:
        assert service.stop() == 0


def test_clients_send_nothing_where_they_do_not_trust_the_certificate(
    service: Callable[..., support_service.Service], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trader's client and the command line refuse an unknown authority, and take one that SSL_CERT_FILE names."""
    running = service(tls_cert=files[0], tls_key=files[1])
    running.list_coins(usdt=8)
    alice = running.trader("alice", {"usdt": ("7", "0")})

    def ask() -> str:
        with SpotClient(alice.accesskey, alice.secretkey, running.public_url, attempts=1) as client:
            return str(client.balances()["usdt"].available)

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    for _ in range(2):
        with pytest.raises(TransportError, match="certificate"):
            ask()
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    assert ask() == "7.00"


def test_certificate_that_cannot_be_used_ends_the_start(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """Only one of the two files, or files that do not belong together, are named before anything is served."""
    files[1].write_text("no key")
    for flags in (("--tls-cert", files[0]), ("--tls-cert", files[0], "--tls-key", files[1])):
        done = support_service.run("serve", "--data", tmp_path / "data", "--listen", "127.0.0.1:0", *flags)
        assert done.returncode != 0
        assert "would pass" in done.stderr
        assert "Traceback" not in done.stderr
