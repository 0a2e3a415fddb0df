"""
Serve both listeners in one process and on one event loop, so that they share the ledger in memory.

The sockets are bound before the ledger is opened: an error names a port that is in use, port 0 becomes a real port, and
no other process can listen on the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, Final, NamedTuple

from spotledger.clock import boot_ms
from spotledger.errors import SettingInvalid
from spotledger.http.descriptors import fitted_connections
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.server import HttpServer
from spotledger.http.h1.shares import ConnectionShares
from spotledger.http.h1.tls import Certificate
from spotledger.http.operator.app import OperatorApp
from spotledger.http.operator.metrics import Metrics, show_shared_counts
from spotledger.http.public.app import PublicApp, PublicSettings
from spotledger.http.public.listener import PublicListener, public_limits
from spotledger.ops.gc_freeze import collect_all_regularly, freeze_survivors
from spotledger.ops.replay_files import KeptUses, restore_replay_memory, save_replay_memory, take_replay_files
from spotledger.ops.runtime import FolderLock, Runtime, claim_folder, open_runtime
from spotledger.ops.settings import Address, Settings, flag_of
from spotledger.ops.siblings import Siblings
from spotledger.security.gate import Gate
from spotledger.storage.folder import Owner

#: Connections that wait to be accepted, at most, on each listener.
BACKLOG: Final = 1024
#: How long requests in flight may take to end once the service is told to stop.
STOP_SECONDS: Final = 5.0
FLUSH_USED_SECONDS: Final = 30.0
#: The interpreter's switch interval: with the default of 5 ms, the thread that commits waits that long for a busy loop.
SWITCH_SECONDS: Final = 0.0005

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - for URLs, not for binding
_log = logging.getLogger("spotledger.serve")


class Listening(NamedTuple):
    """A service that answers: its URLs and its parts."""

    public_url: str
    operator_url: str
    runtime: Runtime


class Listeners(NamedTuple):
    """The bound and listening sockets of both listeners."""

    public: socket.socket
    operator: socket.socket
    #: Which of them speak TLS.
    has_public_tls: bool = False
    has_operator_tls: bool = False

    @property
    def public_url(self) -> str:
        """The URL of the public listener, for traders."""
        return _url_of(self.public, self.has_public_tls)

    @property
    def operator_url(self) -> str:
        """The URL of the operator listener, for the exchange's own systems."""
        return _url_of(self.operator, self.has_operator_tls)


class Shares(NamedTuple):
    """How the workers share the connections of each listener."""

    public: ConnectionShares
    operator: ConnectionShares


WhileServing = Callable[[Listening], Awaitable[bool]]


def serve(settings: Settings, environ: Mapping[str, str], while_serving: WhileServing) -> None:
    """
    Serve until SIGTERM or SIGINT comes or *while_serving* returns False; then finish the requests in flight.

    Args:
        settings: The settings in force.
        environ: The environment, for the master key.
        while_serving: Called once both listeners answer; returns whether to go on serving.

    Raises:
        SetupError: The service cannot start with its folder, ports, schema or master key.
        LedgerCorrupt: The journal is damaged.
    """
    with claim_folder(settings.data) as lock, bound_listeners(settings) as listeners:
        serve_on(listeners, settings, environ, lock, while_serving)


def serve_on(
    listeners: Listeners,
    settings: Settings,
    environ: Mapping[str, str],
    lock: FolderLock,
    while_serving: WhileServing,
    *,
    tell_owner: bool = True,
    siblings: Siblings | None = None,
    shares: Shares | None = None,
    kept: list[KeptUses] | None = None,
) -> None:
    """
    Serve like :func:`serve`, on sockets that are already bound.

    Args:
        listeners: The sockets; other processes may serve on them too.
        settings: The settings in force.
        environ: The environment, for the master key.
        lock: The lock of the data folder.
        while_serving: As for :func:`serve`.
        tell_owner: Whether to write the URLs of this process into the folder.
        siblings: The workers of which this process is one.
        shares: How they share the connections.
        kept: What the processes before remembered; None if this one is to take it.
    """
    certificate = _certificate(settings)
    with open_runtime(settings, environ, lock, siblings=siblings) as runtime:
        if tell_owner:
            runtime.check_token_file()
            lock.write_note(Owner(os.getpid(), listeners.public_url, listeners.operator_url).note())
        freeze_survivors()
        sys.setswitchinterval(SWITCH_SECONDS)
        listening = Listening(listeners.public_url, listeners.operator_url, runtime)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(listening, listeners, while_serving, shares, certificate, kept))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def bound_listeners(settings: Settings) -> Iterator[Listeners]:
    """
    Bind and listen at both addresses of *settings* for the length of a ``with`` block.

    Raises:
        SettingInvalid: Another process listens at one of them, or it cannot be bound.
    """
    with (
        _bound(settings.listen, "listen") as public,
        _bound(settings.operator_listen, "operator_listen") as operator,
    ):
        has_tls = settings.tls_cert is not None
        # On this machine the command line calls it, and no certificate has a name for that.
        yield Listeners(public, operator, has_tls, has_tls and not _is_loopback(operator))


@contextlib.contextmanager
def _bound(address: Address, setting: str) -> Iterator[socket.socket]:
    """Bind and listen at *address* for the length of a ``with`` block."""
    with contextlib.ExitStack() as stack:
        try:
            family, _, _, _, where = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError as problem:
            taken = problem.errno == errno.EADDRINUSE
            reason = "another process listens there" if taken else problem.strerror or str(problem)
            raise SettingInvalid(
                f"Cannot listen at {address}: {reason}. Name another address with {flag_of(setting)} HOST:PORT.",
                setting=setting,
            ) from None
        yield listener


def _url_of(listener: socket.socket, has_tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if has_tls else 'http'}://{Address(_WILDCARDS.get(host, host), port)}"


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _certificate(settings: Settings) -> Certificate | None:
    """Load the certificate, if there is one."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise SettingInvalid(
            f"Only one of tls_cert and tls_key is given; {flag_of('tls_cert')} and {flag_of('tls_key')} would pass.",
            setting="tls_key" if settings.tls_key is None else "tls_cert",
        )
    for path in (settings.tls_cert, settings.tls_key):
        path.open("rb").close()  # the driver of TLS does not say which one it cannot read
    try:
        return Certificate(settings.tls_cert, settings.tls_key)
    except ssl.SSLError as problem:
        raise SettingInvalid(
            f"The certificate {settings.tls_cert} cannot be used with the key {settings.tls_key}:"
            f" {problem.strerror or problem}. Two PEM files that belong together would pass.",
            setting="tls_cert",
        ) from None


def _reload(certificate: Certificate | None) -> None:
    """Load the certificate again; connections that are open keep theirs."""
    if certificate is None:
        _log.info("SIGHUP: there is no certificate to reload")
        return
    try:
        certificate.load()
    except OSError as problem:
        _log.error("SIGHUP: the certificate stays as it is; the new one cannot be used: %s", problem)
    else:
        _log.info("SIGHUP: the certificate was reloaded")


async def _serve(
    listening: Listening,
    listeners: Listeners,
    while_serving: WhileServing,
    shares: Shares | None,
    certificate: Certificate | None,
    kept: list[KeptUses] | None,
) -> None:
    runtime = listening.runtime
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, certificate)
    await runtime.start()
    runtime.audits.start_continuous(runtime.settings.audit_entries_per_second, runtime.settings.audit_pause_seconds)
    public_app = _public_app(runtime)
    operator_app = OperatorApp(runtime)
    _show_public(operator_app.metrics, public_app)
    await public_app.gate.start()
    connections = fitted_connections(runtime.settings.connections)
    public_shares, operator_shares = shares or (None, None)
    operator_server = HttpServer(
        operator_app,
        listeners.operator,
        _limits(runtime.settings, connections.operator),
        tls=certificate if listeners.has_operator_tls else None,
        shares=operator_shares,
    )
    public_server = HttpServer(
        PublicListener(public_app),
        listeners.public,
        public_limits(_limits(runtime.settings, connections.public)),
        tls=certificate,
        shares=public_shares,
    )
    await runtime.locks.start(public_app.gate)
    _restore_replay_memory(runtime, public_app.gate, kept)
    sharing = _share_uses(runtime, public_app.gate)
    await operator_server.start()
    await public_server.start()
    _show_connections(operator_app.metrics, public_server, operator_server)
    works = (_flush_used_regularly(runtime), collect_all_regularly(), *sharing)
    background = [asyncio.create_task(work) for work in works]
    working = asyncio.create_task(_run_while_serving(while_serving, listening, stop))
    try:
        await working
    finally:
        for task in (working, *background):
            task.cancel()
        operator_app.feed.stop()
        await _stop_listening(operator_server, public_server)
        await public_app.gate.stop()
        await runtime.locks.stop()
        await asyncio.to_thread(_save_replay_memory, runtime, public_app.gate)
        await runtime.stop()


def _restore_replay_memory(runtime: Runtime, gate: Gate, kept: list[KeptUses] | None) -> None:
    """Have *gate* remember what was asked before this start; of a new ledger nothing was."""
    ledger = runtime.ledger
    found = take_replay_files(runtime.settings.data) if kept is None else kept
    siblings = runtime.siblings
    if siblings is not None and runtime.is_new:
        siblings.note_new_ledger()
    if not runtime.is_new and (siblings is None or not siblings.serves_new_ledger):
        restore_replay_memory(gate, found, ledger.ledger_id, ledger.epoch, ledger.clock)


def _share_uses(runtime: Runtime, gate: Gate) -> list[Coroutine[Any, Any, None]]:
    """Have *gate* remember with the other workers of this machine; with Redis all nodes do so."""
    siblings, clock = runtime.siblings, runtime.ledger.clock
    if siblings is None or gate.shared is not None:
        return []
    siblings.uses.connect(lambda: gate.forget(clock.reached_ms() + 1, clock.wall_if_untrusted_ms()))
    gate.replay.others = siblings.uses
    return [siblings.uses.keep_collecting(boot_ms, gate.replay.window_ms)]


def _save_replay_memory(runtime: Runtime, gate: Gate) -> None:
    ledger, siblings = runtime.ledger, runtime.siblings
    place = (0, 1) if siblings is None else (siblings.number, siblings.workers)
    save_replay_memory(runtime.settings.data, gate, ledger.ledger_id, ledger.epoch, *place)


def _limits(settings: Settings, connections: int) -> Limits:
    """Return the bounds of a listener that may have so many *connections*."""
    return Limits(
        connections=connections,
        connections_per_address=settings.connections_per_address,
        proxies=settings.trusted_proxies,
    )


def _show_connections(metrics: Metrics, public: HttpServer, operator: HttpServer) -> None:
    """Show how many connections each listener has."""
    metrics.show("public_connections", "Open connections of traders.", lambda: public.open_connections)
    metrics.show("operator_connections", "Open connections of operators.", lambda: operator.open_connections)


def _show_public(metrics: Metrics, public: PublicApp) -> None:
    """Show the counts of the public listener in *metrics*."""
    replay = public.gate.replay
    metrics.show_total("public_requests", "Requests of traders that were answered.", lambda: public.requests)
    metrics.show_totals("public_refusals", "Those that were refused.", "code", lambda: public.refusals)
    metrics.show_total("replay_forgotten", "Signed requests forgotten too early.", lambda: replay.forgotten)
    if public.gate.shared is not None:
        show_shared_counts(metrics, public.gate.shared)


def _public_app(runtime: Runtime) -> PublicApp:
    names = [item.name for item in dataclasses.fields(PublicSettings)]
    settings = PublicSettings(**{name: getattr(runtime.settings, name) for name in names})
    gate = _gate(runtime, settings)
    followed = runtime.followed
    return PublicApp(
        runtime.ledger,
        runtime.key_ring,
        settings,
        runtime.ledger.clock.now_ms,
        is_ready=lambda: runtime.writer.can_write,
        sealing_lag=lambda: runtime.ledger.sealing_lag,
        clock_distrust=lambda: runtime.ledger.clock_distrust,
        gate=gate,
        age_ms=None if followed is None else lambda: followed.age_ms,
        access=runtime.access_log.counts,
    )


def _gate(runtime: Runtime, settings: PublicSettings) -> Gate:
    redis = runtime.settings.redis
    if redis is None:
        if runtime.settings.database is not None and (runtime.siblings is None or runtime.siblings.number == 0):
            _log.info(
                "no Redis is named, so rate limits, locks and the memory of signed requests hold for this node, not for"
                " the fleet: a signed URL may pass once more on another node. Share them with %s",
                flag_of("redis"),
            )
        return Gate(runtime.key_ring, settings, runtime.ledger.clock.wall_if_untrusted_ms, boot_ms)
    from spotledger.security.fleet_gate import FleetGate  # imports the Redis driver, which nothing else needs

    return FleetGate(
        runtime.key_ring,
        settings,
        redis.secret,
        when_down="refuse" if runtime.settings.redis_down == "refuse" else "local",
        timeout_ms=runtime.settings.redis_timeout_ms,
        wall_ms=runtime.ledger.clock.wall_if_untrusted_ms,
        steady_ms=boot_ms,
    )


async def _run_while_serving(while_serving: WhileServing, listening: Listening, stop: asyncio.Event) -> None:
    """Run *while_serving*; return when *stop* is set, or when it returns False."""
    stopped = asyncio.create_task(stop.wait())
    doing = asyncio.ensure_future(while_serving(listening))
    try:
        await asyncio.wait([stopped, doing], return_when=asyncio.FIRST_COMPLETED)
        if doing.done() and doing.result():
            await stopped
    finally:
        stopped.cancel()
        doing.cancel()


async def _stop_listening(*servers: HttpServer) -> None:
    if not all(await asyncio.gather(*(server.stop(STOP_SECONDS) for server in servers))):
        _log.warning("requests that were not complete %g seconds after the stop were cut off", STOP_SECONDS)


async def _flush_used_regularly(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(FLUSH_USED_SECONDS)
        try:
            await runtime.writer.beside(runtime.flush_used)
            await runtime.writer.beside(runtime.master_key.tend)
        except Exception as problem:  # noqa: BLE001 - it is retried; serving goes on
            _log.warning("what is kept up beside the ledger could not be done, and is tried again: %s", problem)
