"""What the tests of the store on PostgreSQL share: a proxy that loses answers, and a way to end sessions."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg

#: What the server says when a transaction was committed, and what the client says to have it committed.
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
COMMIT_ASKED = b"\x00commit\x00"


class Proxy:
    """Stands between nodes and their server, and cuts a connection where a test says so."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        user = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
        #: Bytes of the client, or of the server, at which the connection that says them is cut, before they pass.
        self.cut_client_at: bytes | None = None
        self.cut_server_at: bytes | None = None
        self.cuts = 0
        #: Whether new connections are refused, and with one that is cut all are.
        self.refuses = False
        #: Whether new connections are taken and never answered, as by a network that drops everything.
        self.swallows = False
        #: How long the answers of the server are held back.
        self.delay_seconds = 0.0
        self._swallowed: list[socket.socket] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._server.accept()[0]
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            if self.swallows:
                self._swallowed.append(client)
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client, server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 20)
                    at = self.cut_client_at if ready is client else self.cut_server_at
                    if at is not None and at in data:
                        self.cut_client_at = self.cut_server_at = None
                        self.cuts += 1
                        if ready is client:
                            # What stands before it reaches the server.
                            server.sendall(data[: data.index(at)])
                        if self.refuses:
                            self.cut_all()
                        return
                    if not data:
                        return
                    if ready is server:
                        time.sleep(self.delay_seconds)
                    (server if ready is client else client).sendall(data)

    def cut_all(self) -> None:
        """Cut every connection that there is."""
        for client, server in self._pairs:
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # closing alone would not end the waiting in accept
        self._server.close()
        self.cut_all()
        for client in self._swallowed:
            client.close()


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    """Run a proxy to the server of *url*."""
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()


def end_sessions(url: str, application: str = "spotledger write") -> int:
    """Have the server end the sessions of *application* in the database of *url*; return how many there were."""
    with psycopg.connect(url, autocommit=True) as connection:
        return len(
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                (application,),
            ).fetchall()
        )
