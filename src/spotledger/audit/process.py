"""
An audit in a process of its own, so that it takes nothing from the event loop of a service but a line now and then.

The child reads the ledger file like any other audit, at a lower priority, and writes JSON lines on its standard
output: ``{"seq", "last_seq"}`` as it goes, ``{"report"}`` at its end. It ends when nobody reads them any more.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.audit.report import INCOMPLETE, Progress, Report
from spotledger.storage.folder import VARIABLE_PREFIX

#: How much nicer than the service the process is.
NICENESS: Final = 10
#: How the child is told the address of a database.
ADDRESS_VARIABLE: Final = f"{VARIABLE_PREFIX}AUDIT_ADDRESS"
PROGRESS_SECONDS: Final = 0.5
_LINE_LIMIT_BYTES: Final = 4 * 1024 * 1024


class DatabaseAddress(NamedTuple):
    """Where a database is: as it is shown, and as the driver takes it, perhaps with a password."""

    shown: str
    secret: str

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"DatabaseAddress({self.shown!r})"


async def audit_in_process(
    path: Path | DatabaseAddress, entries_per_second: int, progress: Callable[[Progress], None]
) -> dict[str, Any]:
    """
    Audit the ledger at *path* in a process of its own and return the report as JSON has it.

    Args:
        path: The ledger file, or the address of the database.
        entries_per_second: Read no faster than this; 0: as fast as it goes.
        progress: Called some times a second.

    Cancelled, it ends the process.
    """
    # The child needs none of our secrets.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLE_PREFIX)}
    if isinstance(path, DatabaseAddress):
        environ[ADDRESS_VARIABLE] = path.secret  # a command line can be seen by all of the machine
    command = (sys.executable, "-m", __name__, str(path), str(entries_per_second))
    try:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=environ,
            limit=_LINE_LIMIT_BYTES,
        )  # fmt: skip
    except OSError as problem:
        return _not_done(path, f"the audit could not be started: {problem.strerror}")
    try:
        assert child.stdout is not None, "it was asked for"  # noqa: S101
        report: dict[str, Any] | None = None
        async for line in child.stdout:
            said = _said(line)
            if isinstance(said, Progress):
                progress(said)
            else:
                report = said
        code = await child.wait()
    except ValueError as problem:
        await _end(child)
        return _not_done(path, f"what the audit's process said could not be read: {problem}")
    except BaseException:
        await _end(child)
        raise
    return report or _not_done(path, f"the audit's process ended early, with {code}")


def _said(line: bytes) -> Progress | dict[str, Any]:
    """
    Return how far the child is, or its report.

    Raises:
        ValueError: *line* says neither.
    """
    try:
        said = json.loads(line)
        if isinstance(report := said.get("report"), dict):
            return report
        return Progress(int(said["seq"]), int(said["last_seq"]))
    except (AttributeError, TypeError, KeyError, RecursionError) as problem:
        raise ValueError(f"{type(problem).__name__}: {problem}") from problem


async def _end(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        child.kill()
    await child.wait()


def _not_done(path: Path | DatabaseAddress, why: str) -> dict[str, Any]:
    return Report(str(path), INCOMPLETE, unexamined=[why]).as_json()


class _Lines:
    """Writes how far the audit is, not too often."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            _say(progress._asdict())


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main(path: str, entries_per_second: str) -> None:
    """Be the child: audit and say the report."""
    # What an audit makes has no circles, and there is much of it: looking for some would cost a tenth of the time.
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service is told, and ends us
    _step_back(for_all=entries_per_second != "0")
    with suppress(BrokenPipeError):
        _say({"report": _report(path, int(entries_per_second)).as_json()})
        return
    os._exit(1)  # the service is gone; nothing is left to be flushed


def _report(path: str, entries_per_second: int) -> Report:
    # Each is imported only by the child that needs it: the service and an audit of a file do without the driver.
    address = os.environ.pop(ADDRESS_VARIABLE, None)
    if address is None:
        from spotledger.audit.embedded import audit_file

        return audit_file(path, progress=_Lines(), entries_per_second=entries_per_second)
    from spotledger.audit.postgres import audit_database

    return audit_database(address, progress=_Lines(), entries_per_second=entries_per_second)


def _step_back(*, for_all: bool) -> None:
    """
    Let the service go first; *for_all*: run only while nothing else wants the processor, where the system has that.

    The audit that goes on all the time must not be felt. On a service with one core to itself, a nicer process of usual
    kind made the slowest hundredth of the answers seven times as slow.
    """
    with suppress(OSError):
        os.nice(NICENESS)
        if for_all and hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main(*sys.argv[1:])
