"""The audits of a running service: those that were asked for, and the slow one that goes on all the time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spotledger.ops.audit import CLEAN, DAMAGED, INCOMPLETE, Progress
from spotledger.ops.audit_process import DatabaseAddress, audit_in_process

#: Reports that are kept for whoever asks.
KEPT_AUDITS: Final = 20
#: How long after a start, and after each pass, the next pass of the continuous audit begins.
FIRST_PASS_SECONDS: Final = 60.0
NEXT_PASS_SECONDS: Final = 600.0

_NOTHING_READ: Final = Progress(0, 0)


@dataclass(slots=True)
class Audit:
    """One audit that was asked for: running until it has a report."""

    audit_id: str
    began_ms: int
    progress: Progress = _NOTHING_READ
    report: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return its state as the operator API says it."""
        return {
            "audit": self.audit_id,
            "state": "running" if self.report is None else "done",
            "began_ms": self.began_ms,
            "seq": self.progress.seq,
            "last_seq": self.progress.last_seq,
            "report": self.report,
        }


@dataclass(slots=True)
class Continuous:
    """What is known of the continuous audit."""

    progress: Progress = _NOTHING_READ
    passes: Counter[str] = field(default_factory=lambda: Counter({CLEAN: 0, DAMAGED: 0, INCOMPLETE: 0}))
    verdict: str | None = None
    findings: int = 0
    audited_to: int = 0
    ended_s: float = 0.0


class Audits:
    """Runs audits of one ledger file, one at a time of those that are asked for."""

    def __init__(self, path: Path | DatabaseAddress) -> None:
        """Audit the ledger file at *path*, or the database; a database is audited when that is asked for only."""
        self._path = path
        self._audits: OrderedDict[str, Audit] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Audit | None = None
        self._number = 0
        self.continuous = Continuous()

    def start(self) -> Audit:
        """Begin an audit as fast as it goes; where one is running, return that one."""
        if self._running is not None:
            return self._running
        self._number += 1
        now_ms = time.time_ns() // 1_000_000
        found = Audit(f"{now_ms}-{self._number}", now_ms)
        self._audits[found.audit_id] = self._running = found
        while len(self._audits) > KEPT_AUDITS:
            self._audits.popitem(last=False)
        self._spawn(self._run(found))
        return found

    def get(self, audit_id: str) -> Audit | None:
        """Return an audit that was asked for since the start of the service, if it is one of the last."""
        return self._audits.get(audit_id)

    def keep_on(self, entries_per_second: int) -> None:
        """Begin the continuous audit, at *entries_per_second*; not at all where that is 0."""
        if entries_per_second and isinstance(self._path, Path):
            self._spawn(self._keep_on(self._path, entries_per_second))

    async def stop(self) -> None:
        """End what is running."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, found: Audit) -> None:
        def note(progress: Progress) -> None:
            found.progress = progress

        try:
            found.report = await audit_in_process(self._path, 0, note)
            note(Progress(found.report["audited_to"], max(found.report["audited_to"], found.report["head_seq"])))
        finally:
            self._running = None

    async def _keep_on(self, path: Path, entries_per_second: int) -> None:
        state = self.continuous

        def note(progress: Progress) -> None:
            state.progress = progress

        await asyncio.sleep(FIRST_PASS_SECONDS)
        while True:
            report = await audit_in_process(path, entries_per_second, note)
            state.passes[report["verdict"]] += 1
            state.verdict, state.findings = report["verdict"], sum(report["counts"].values())
            state.audited_to, state.ended_s = report["audited_to"], time.time()
            await asyncio.sleep(NEXT_PASS_SECONDS)
