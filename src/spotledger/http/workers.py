"""
Serve with several processes on the same two ports: a parent binds the ports and keeps the workers running.

The parent answers no requests and opens no ledger, so that it can fork at any time. A worker that ends is started
again; the ports stay bound meanwhile, and the other workers go on accepting connections. A worker whose parent ends, in
whatever way, stops in order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from spotledger.errors import LedgerCorrupt, SetupError, SpotledgerError
from spotledger.http.h1.shares import ConnectionShares
from spotledger.http.serve import STOP_SECONDS, Listeners, Listening, Shares, bound_listeners, serve_on
from spotledger.ops.replay_files import take_replay_files
from spotledger.ops.runtime import FolderLock, claim_folder
from spotledger.ops.settings import Settings
from spotledger.ops.siblings import Siblings
from spotledger.storage.folder import Owner

#: How long a worker that ended before it was ready stays down before it is started again.
RESTART_SECONDS: Final = 1.0
#: How long workers may take to stop; then they are killed.
STOP_WORKERS_SECONDS: Final = STOP_SECONDS + 15.0
_POLL_SECONDS: Final = 0.05
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_log = logging.getLogger("spotledger.workers")

#: Called with the URLs of the public and the operator listener once all workers answer.
Announce = Callable[[str, str], None]


@dataclasses.dataclass(slots=True)
class _Worker:
    """One process: its number, the read end of a pipe that signals when it answers, and whether it does."""

    number: int
    pid: int
    ready: int
    answers: bool = False


def serve_workers(settings: Settings, environ: Mapping[str, str], announce: Announce) -> None:
    """
    Serve with ``settings.workers`` processes until SIGTERM or SIGINT comes, then end them in order.

    Args:
        settings: The settings in force, with a database.
        environ: The environment, for the master key.
        announce: Called with both URLs once all workers answer.

    Raises:
        SetupError: The folder or a port cannot be used, or the first worker did not start and wrote why to stderr.
    """
    with claim_folder(settings.data) as lock, bound_listeners(settings) as listeners:
        _Parent(settings, environ, lock, listeners).run(announce)


class _Parent:
    def __init__(self, settings: Settings, environ: Mapping[str, str], lock: FolderLock, listeners: Listeners) -> None:
        self._settings = settings
        self._environ = environ
        self._lock = lock
        self._listeners = listeners
        self._siblings = Siblings(settings.workers)
        # Here, before a worker admits anybody, and once for all of them.
        self._kept = take_replay_files(settings.data)
        self._shares = Shares(ConnectionShares(settings.workers), ConnectionShares(settings.workers))
        # Nothing is ever written to it: its end tells a worker that the parent has ended.
        self._lifeline, self._lifeline_end = os.pipe()
        self._workers: dict[int, _Worker] = {}
        #: When each worker that is down may be started again, by its number.
        self._down: dict[int, float] = {}

    def run(self, announce: Announce) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._run(announce)
        finally:
            self._end_workers()
            os.close(self._lifeline_end)
            os.close(self._lifeline)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run(self, announce: Announce) -> None:
        # The first worker starts alone: it creates the schema of an empty database, and finds wrong settings.
        self._start(0)
        if not self._wait_for_answers():
            return
        for number in range(1, self._settings.workers):
            self._start(number)
        if not self._wait_for_answers():
            return
        listeners = self._listeners
        self._lock.write_note(Owner(os.getpid(), listeners.public_url, listeners.operator_url).note())
        announce(listeners.public_url, listeners.operator_url)
        while not self._step():
            pass

    def _wait_for_answers(self) -> bool:
        """Wait until all started workers answer; return False if the service was told to stop."""
        while not (self._workers and all(worker.answers for worker in self._workers.values()) and not self._down):
            if self._step():
                return False
            if 0 in self._down and not self._workers:
                raise SetupError("The first worker did not start, so no other was started; it wrote the reason above.")
        return True

    def _step(self) -> bool:
        """Wait for a signal or a moment, then update the workers; return whether the service was told to stop."""
        received = signal.sigtimedwait(_SIGNALS, _POLL_SECONDS if self._is_busy else STOP_SECONDS)
        if received is not None and received.si_signo == signal.SIGHUP:
            self._signal_all(signal.SIGHUP)
        elif received is not None and received.si_signo != signal.SIGCHLD:
            return True
        self._note_answers()
        self._reap()
        now_s = time.monotonic()
        for number in [number for number, at_s in self._down.items() if at_s <= now_s and self._workers]:
            del self._down[number]
            self._start(number)
        return False

    @property
    def _is_busy(self) -> bool:
        return bool(self._down) or not all(worker.answers for worker in self._workers.values())

    def _note_answers(self) -> None:
        waiting = {worker.ready: worker for worker in self._workers.values() if not worker.answers}
        ready, _, _ = select.select(list(waiting), [], [], 0)
        for descriptor in ready:
            waiting[descriptor].answers = os.read(descriptor, 1) != b""

    def _reap(self) -> None:
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                continue
            del self._workers[pid]
            os.close(worker.ready)
            for shares in self._shares:
                shares.end(worker.number)
            _log.error("worker %d (process %d) ended with %s", worker.number, pid, _exit_text(status))
            self._down[worker.number] = time.monotonic() + (0 if worker.answers else RESTART_SECONDS)

    def _start(self, number: int) -> None:
        ready, signal_end = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(ready)
            os.close(self._lifeline_end)
            for worker in self._workers.values():
                os.close(worker.ready)
            self._run_worker(number, signal_end)
        os.close(signal_end)
        self._workers[pid] = _Worker(number, pid, ready)

    def _run_worker(self, number: int, signal_end: int) -> NoReturn:
        """Serve in this forked process, and end it; the parent's code does not go on in it."""
        code = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves; then it reloads its certificate
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            settings = self._settings
            if number:  # only the first worker audits the database
                settings = dataclasses.replace(settings, audit_entries_per_second=0)
            lifeline, siblings = self._lifeline, self._siblings
            siblings.start_as(number)
            for shares in self._shares:
                shares.start_as(number)

            async def until_orphaned(listening: Listening) -> bool:
                if not number:
                    listening.runtime.check_token_file()
                os.write(signal_end, b"1")
                os.close(signal_end)
                await _end_of(lifeline)
                return False

            parts = (self._listeners, settings, self._environ, self._lock, until_orphaned)
            serve_on(*parts, tell_owner=False, siblings=siblings, shares=self._shares, kept=self._kept)
            code = 0
        except (SpotledgerError, LedgerCorrupt) as problem:
            sys.stderr.write(f"spotledger: {problem}\n")
        except BaseException:  # noqa: BLE001 - this process must not go on as a second parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _end_workers(self) -> None:
        self._signal_all(signal.SIGTERM)
        until_s = time.monotonic() + STOP_WORKERS_SECONDS
        while self._workers and time.monotonic() < until_s:
            signal.sigtimedwait((signal.SIGCHLD,), _POLL_SECONDS)
            for worker in list(self._workers.values()):
                if os.waitpid(worker.pid, os.WNOHANG)[0]:
                    del self._workers[worker.pid]
        if self._workers:
            _log.error("%d workers did not end in time and were killed", len(self._workers))
            self._signal_all(signal.SIGKILL)
            for worker in self._workers.values():
                os.waitpid(worker.pid, 0)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            os.kill(worker.pid, number)


async def _end_of(descriptor: int) -> None:
    """Wait until no process can write to the pipe *descriptor* any more."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)


def _exit_text(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"code {code}" if code >= 0 else signal.Signals(-code).name
