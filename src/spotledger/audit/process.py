"""
An audit in a child process, so that the event loop of the service is not held up.

The child runs at a lower priority, and writes JSON lines to its standard output: ``{"seq", "last_seq"}`` as it
proceeds, and ``{"report"}`` at the end. It exits when standard output is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.audit.child import run_child
from spotledger.audit.report import INCOMPLETE, Progress, Report
from spotledger.storage.folder import VARIABLE_PREFIX, environ_of_child
from spotledger.storage.seen_head import Seen

#: How much is added to the nice value of the child.
NICENESS: Final = 10
#: The environment variable with the address of the database, for the child.
ADDRESS_VARIABLE: Final = f"{VARIABLE_PREFIX}AUDIT_ADDRESS"
#: How often the child reports its progress.
PROGRESS_SECONDS: Final = 0.5
_LINE_LIMIT_BYTES: Final = 4 * 1024 * 1024


class DatabaseAddress(NamedTuple):
    """The address of a database: as it is shown, and as the driver takes it, which may include a password."""

    shown: str
    secret: str

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"DatabaseAddress({self.shown!r})"


async def audit_in_process(
    path: Path | DatabaseAddress,
    entries_per_second: int,
    progress: Callable[[Progress], None],
    seen: Seen | None = None,
) -> dict[str, Any]:
    """
    Audit the ledger at *path* in a child process, and return the report as a JSON object.

    Args:
        path: The ledger file, or the address of the database.
        entries_per_second: The highest rate of reading; 0 for no limit.
        progress: Called a few times a second.
        seen: What this node saw last in the database.

    If cancelled, it ends the child.
    """
    environ = environ_of_child()
    if isinstance(path, DatabaseAddress):
        environ[ADDRESS_VARIABLE] = path.secret  # everyone on the machine can see a command line
    command = (sys.executable, "-m", __name__, str(path), str(entries_per_second), _as_text(seen))
    try:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=environ,
            limit=_LINE_LIMIT_BYTES,
        )  # fmt: skip
    except OSError as problem:
        return _not_done(path, f"the audit could not be started: {problem.strerror}")
    try:
        assert child.stdout is not None, "it is a pipe"  # noqa: S101
        report: dict[str, Any] | None = None
        async for line in child.stdout:
            read = _read(line)
            if isinstance(read, Progress):
                progress(read)
            else:
                report = read
        code = await child.wait()
    except ValueError as problem:
        await _end(child)
        return _not_done(path, f"the output of the audit's process could not be read: {problem}")
    except BaseException:
        await _end(child)
        raise
    return report or _not_done(path, f"the audit's process ended early, with code {code}")


def _read(line: bytes) -> Progress | dict[str, Any]:
    """Return the progress of the child, or its report; raises ValueError if *line* is neither."""
    try:
        document = json.loads(line)
        if isinstance(report := document.get("report"), dict):
            return report
        return Progress(int(document["seq"]), int(document["last_seq"]))
    except (AttributeError, TypeError, KeyError, RecursionError) as problem:
        raise ValueError(f"{type(problem).__name__}: {problem}") from problem


async def _end(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        child.kill()
    await child.wait()


def _not_done(path: Path | DatabaseAddress, why: str) -> dict[str, Any]:
    return Report(str(path), INCOMPLETE, unexamined=[why]).as_json()


class _ProgressLines:
    """Writes the progress, every half second at most."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            _write(progress._asdict())


def _write(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _as_text(seen: Seen | None) -> str:
    return "null" if seen is None else json.dumps(seen._replace(hash=seen.hash.hex()))  # type: ignore[arg-type]


def _seen_in(text: str) -> Seen | None:
    fields = json.loads(text)
    if fields is None:
        return None
    ledger_id, epoch, seq, link, system, timeline = fields
    return Seen(ledger_id, epoch, seq, bytes.fromhex(link), system, timeline)


def main(path: str, entries_per_second: str, seen: str) -> None:
    """Run the child: audit, and write the report."""
    _lower_priority(only_idle=entries_per_second != "0")
    run_child(lambda: _write({"report": _report(path, int(entries_per_second), _seen_in(seen)).as_json()}))


def _report(path: str, entries_per_second: int, seen: Seen | None) -> Report:
    # Imported here, so that the service loads neither, and an audit of a file no database driver.
    address = os.environ.pop(ADDRESS_VARIABLE, None)
    if address is None:
        from spotledger.audit.embedded import audit_file

        return audit_file(path, progress=_ProgressLines(), entries_per_second=entries_per_second)
    from spotledger.audit.postgres import audit_database

    return audit_database(address, progress=_ProgressLines(), entries_per_second=entries_per_second, seen=seen)


def _lower_priority(*, only_idle: bool) -> None:
    """
    Give the service priority; with *only_idle*, run only on an idle processor, if the system supports that.

    The continuous audit must not slow the service down. On one core, with a higher nice value alone, the slowest 1 %
    of the answers took seven times as long.
    """
    with suppress(OSError):
        os.nice(NICENESS)
        if only_idle and hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main(*sys.argv[1:])
