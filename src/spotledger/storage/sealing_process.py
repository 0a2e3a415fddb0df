"""
Sealing in a process of its own, so that it takes nothing from the process that serves.

The child reads lines such as ``seal 3`` and answers ``sealed 3``, or ``damaged`` or ``unavailable`` with the reason. It
dies with its parent, whose end closes the pipe that it reads. The parent starts it when the first segment is full,
restarts it with a growing pause where it died, and looks for answers between groups without waiting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final

from spotledger.errors import LedgerCorrupt, SpotledgerError
from spotledger.storage.base import BooksDamaged
from spotledger.storage.folder import environ_of_child

#: How much nicer than the service the process is.
NICENESS: Final = 5
#: The pause before a process that died is started again: doubled each time, up to the longest.
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0

_log = logging.getLogger("spotledger.sealing")


class SealingProcess:
    """The child that seals, as its parent sees it."""

    def __init__(self, module: str, arguments: Sequence[str] = (), greeting: str | None = None) -> None:
        """
        Seal in a process that runs *module*; nothing is started before there is something to do.

        Args:
            module: Its name; it calls :func:`serve`.
            arguments: What it finds in ``sys.argv``.
            greeting: A line that it reads first; what is secret goes here, because everybody may see arguments.
        """
        self._command = [sys.executable, "-m", module, *arguments]
        self._greeting = greeting
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None
        self._received = b""
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        #: How often it died.
        self.restarts = 0
        #: How many segments are sealed, as far as it said.
        self.sealed_segments = 0

    def seal(self, segment: int, known: str = "") -> None:
        """Have *segment*, which is full, sealed, unless that was asked for; does not wait. *known* is passed on."""
        if self._child is None:
            if time.monotonic() < self._not_before:
                return
            self._start()
        if self._asked != segment:
            self._asked = segment
            self._send(f"seal {segment} {known}\n")

    def ask_again(self) -> None:
        """Have the next :meth:`seal` ask, whatever was asked for and sealed before."""
        self._asked = None

    def poll(self) -> None:
        """
        Take in what the process said; does not wait.

        Raises:
            BooksDamaged: It found the books damaged.
            LedgerCorrupt: It found the journal damaged, or other balances than the entries carry.
        """
        child = self._child
        if child is None:
            return
        assert child.stdout is not None, "it was asked for"  # noqa: S101
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(child.stdout.fileno(), 65_536):
                self._received += chunk
        while b"\n" in self._received:
            line, self._received = self._received.split(b"\n", 1)
            self._take(line.decode("utf-8", "replace"))
        if self._child is not None and child.poll() is not None:
            _log.warning("the process that seals ended with code %s; it is started again", child.returncode)
            self._forget()

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "sealed":
            self.sealed_segments = int(rest) + 1
            if self._asked is not None and self._asked >= self.sealed_segments:
                self._asked = None  # it is left to another process; whoever still wants it asks again
            self._pause_seconds = FIRST_PAUSE_SECONDS
            return
        self._forget()
        if word == "damaged":
            raise LedgerCorrupt(rest)
        if word == "books":
            raise BooksDamaged(rest)
        _log.warning("a segment could not be sealed: %s; it is tried again", rest)

    def _start(self) -> None:
        self._child = subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ_of_child(),
            bufsize=0,
            start_new_session=True,
        )
        assert self._child.stdout is not None, "it was asked for"  # noqa: S101
        os.set_blocking(self._child.stdout.fileno(), False)
        self._received, self._asked = b"", None
        if self._greeting is not None:
            self._send(f"{self._greeting}\n")

    def _send(self, line: str) -> None:
        assert self._child is not None, "it was started"  # noqa: S101
        assert self._child.stdin is not None, "it was asked for"  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # that it died, the next poll finds
            self._child.stdin.write(line.encode())

    def _forget(self) -> None:
        """Forget a process that ended or is of no use, and start another one after a pause."""
        self._end()
        self.restarts += 1
        self._not_before = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)

    def _end(self) -> None:
        child, self._child, self._asked = self._child, None, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            child.wait(_STOP_SECONDS if child.poll() is None else None)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def kill(self) -> None:
        """End the process at once, whatever it is at; does not wait."""
        child, self._child, self._asked = self._child, None, None
        if child is not None:
            child.kill()
            threading.Thread(target=_reap, args=(child,), name="sealing-end", daemon=True).start()

    def close(self, *, finishes: bool = False) -> None:
        """
        End the process; a segment that it is at is finished or not sealed at all.

        With *finishes* it has some seconds to finish it: else programs that run only for seconds would never seal any.
        """
        child = self._child
        if child is not None and finishes:
            self._send("end\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_SECONDS)
        if child is not None and child.poll() is None:
            child.terminate()
        self._end()


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Wait for the end of *child*, which was killed."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    child.wait()


def serve(seal: Callable[[int, str], Iterator[int]]) -> None:
    """
    Be the child: call *seal* with each segment that is asked for, and what is passed on with it.

    *seal* yields the last sealed segment each time that it has sealed one, and at its end.
    """
    os.nice(NICENESS)
    asked: SimpleQueue[tuple[int, str] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while (request := asked.get()) is not None:
        segment, known = request
        try:
            for sealed in seal(segment, known):
                _answer(f"sealed {sealed}")
        except BooksDamaged as error:
            _answer(f"books {error}")
        except LedgerCorrupt as error:
            _answer(f"damaged {error}")
        except SpotledgerError as error:
            _answer(f"unavailable {error}")


def _listen(asked: SimpleQueue[tuple[int, str] | None]) -> None:
    """
    Pass on what is asked for; end the process with its parent, also in the midst of a sealing, which then never was.

    The kernel's signal at the death of a parent would come when the thread ends that started the process.
    """
    for line in sys.stdin.buffer:
        word, *request = line.decode().rstrip("\n").split(" ", 2)
        asked.put(None if word == "end" else (int(request[0]), request[1]))
        if word == "end":
            break
    # Without the buffer, whose lock this thread would hold while the interpreter ends: a fatal error of Python.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(0)


def _answer(text: str) -> None:
    sys.stdout.buffer.write(text.replace("\n", " ").encode() + b"\n")
    sys.stdout.buffer.flush()
