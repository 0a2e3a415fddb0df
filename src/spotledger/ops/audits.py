"""The audits of a running service: those that were asked for, and the slow one that goes on all the time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from spotledger.audit.process import DatabaseAddress, audit_in_process
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE, Progress
from spotledger.errors import StoreUnavailable
from spotledger.ops.siblings import Siblings

T = TypeVar("T")

#: Reports that are kept for whoever asks.
KEPT_AUDITS: Final = 20
#: How long after a start the continuous audit begins; sooner where the pause between its passes is shorter.
FIRST_PASS_SECONDS: Final = 60.0
#: How often a node asks whether the one that audits has gone (more often where that pause is shorter), and how often
#: that one looks whether it still may.
CLAIM_SECONDS: Final = 10.0
HELD_SECONDS: Final = 1.0

_NOTHING_READ: Final = Progress(0, 0)
_log = logging.getLogger("spotledger.audits")


@dataclass(slots=True)
class Audit:
    """One audit that was asked for: running until it has a report."""

    audit_id: str
    began_ms: int
    progress: Progress = _NOTHING_READ
    report: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Audit:
        """Return the audit whose state is *said*."""
        return cls(said["audit"], said["began_ms"], Progress(said["seq"], said["last_seq"]), said["report"])

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
    #: Whether this process runs it; of the nodes of a fleet one does.
    is_here: bool = False
    verdict: str | None = None
    findings: int = 0
    audited_to: int = 0
    ended_s: float = 0.0


class Claim(Protocol):
    """What only one of all nodes has at a time. Its methods may take seconds."""

    def take(self) -> bool:
        """Try to have it; return whether this node has it. Raises StoreUnavailable."""

    def is_held(self) -> bool:
        """Say whether this node still has it."""

    def release(self) -> None:
        """Give it up."""


class Audits:
    """Runs audits of one ledger, one at a time of those that are asked for, and the one that goes on all the time."""

    def __init__(
        self, path: Path | DatabaseAddress, siblings: Siblings | None = None, claim: Claim | None = None
    ) -> None:
        """
        Audit the ledger file at *path*, or the database.

        Args:
            path: What is audited.
            siblings: The workers that this process is one of; whichever is asked knows the audits of all.
            claim: Where several nodes serve the ledger: the one that has it audits all the time.
        """
        self._path = path
        self._siblings = siblings
        self._claim = claim
        self._claiming = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-claim")
        self._audits: OrderedDict[str, Audit] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Audit | None = None
        self._number = 0
        self.continuous = Continuous()

    async def start(self) -> Audit:
        """Begin an audit as fast as it goes; where one is running, return that one."""
        return self._start() if self._siblings is None else await self._siblings.with_lock(self._start)

    def _start(self) -> Audit:
        running = self._running or next((it for it in self._of_siblings() if it.report is None), None)
        if running is not None:
            return running
        self._number += 1
        now_ms = time.time_ns() // 1_000_000
        worker = "" if self._siblings is None else f"{self._siblings.number}-"
        found = Audit(f"{now_ms}-{worker}{self._number}", now_ms)
        self._audits[found.audit_id] = self._running = found
        while len(self._audits) > KEPT_AUDITS:
            self._audits.popitem(last=False)
        self._tell_siblings()
        self._spawn(self._run(found))
        return found

    def get(self, audit_id: str) -> Audit | None:
        """Return an audit that was asked for since the start of the service, if it is one of the last."""
        found = self._audits.get(audit_id)
        return found or next((it for it in self._of_siblings() if it.audit_id == audit_id), None)

    def _of_siblings(self) -> list[Audit]:
        return [] if self._siblings is None else [Audit.from_json(said) for said in self._siblings.audits()]

    def _tell_siblings(self) -> None:
        if self._siblings is not None:
            self._siblings.tell_audits([audit.as_json() for audit in self._audits.values()])

    def keep_on(self, entries_per_second: int, pause_seconds: float) -> None:
        """Begin the continuous audit, at *entries_per_second* (0: not at all), with *pause_seconds* after each pass."""
        if entries_per_second:
            self._spawn(self._keep_on(entries_per_second, pause_seconds))

    async def stop(self) -> None:
        """End what is running."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._claim is not None:
            await self._in_thread(self._claim.release)
            self._claiming.shutdown(wait=False)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, found: Audit) -> None:
        def note(progress: Progress) -> None:
            found.progress = progress
            self._tell_siblings()

        try:
            found.report = await audit_in_process(self._path, 0, note)
            note(_end_of(found.report))
        finally:
            self._running = None

    async def _keep_on(self, entries_per_second: int, pause_seconds: float) -> None:
        await asyncio.sleep(min(FIRST_PASS_SECONDS, pause_seconds))
        while True:
            try:
                if self._claim is None:
                    await self._passes(entries_per_second, pause_seconds)
                elif await self._in_thread(self._claim.take):
                    await self._passes_while_held(self._claim, entries_per_second, pause_seconds)
            except StoreUnavailable as problem:
                _log.debug("whether another node audits could not be asked: %s", problem)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it must not end in silence
                _log.error("the continuous audit ended: %s; it begins again", problem)
            await asyncio.sleep(min(CLAIM_SECONDS, pause_seconds))

    async def _in_thread(self, ask: Callable[[], T]) -> T:
        """Do what may take seconds; one thing after the other, so that what is given up last is given up."""
        return await asyncio.get_running_loop().run_in_executor(self._claiming, ask)

    async def _passes_while_held(self, claim: Claim, entries_per_second: int, pause_seconds: float) -> None:
        """Audit, pass after pass, until another node may do so."""
        passes = asyncio.create_task(self._passes(entries_per_second, pause_seconds))
        try:
            while await self._in_thread(claim.is_held):
                if (await asyncio.wait([passes], timeout=HELD_SECONDS))[0]:
                    passes.result()  # it ends by an error only
        finally:
            passes.cancel()
            await asyncio.gather(passes, return_exceptions=True)
            await self._in_thread(claim.release)

    async def _passes(self, entries_per_second: int, pause_seconds: float) -> None:
        state = self.continuous

        def note(progress: Progress) -> None:
            state.progress = progress

        state.is_here = True
        try:
            while True:
                self._note(await audit_in_process(self._path, entries_per_second, note))
                await asyncio.sleep(pause_seconds)
        finally:
            state.is_here = False

    def _note(self, report: dict[str, Any]) -> None:
        """Keep the result of a pass of the continuous audit, and say in the log what is not well."""
        state = self.continuous
        state.progress = _end_of(report)
        state.passes[report["verdict"]] += 1
        state.verdict, state.findings = report["verdict"], sum(report["counts"].values())
        state.audited_to, state.ended_s = report["audited_to"], time.time()
        if report["verdict"] == DAMAGED:
            _log.critical("the continuous audit found damage: %s; run: spotledger audit", report["counts"])
        elif report["verdict"] == INCOMPLETE:
            _log.warning("the continuous audit was incomplete: %s", "; ".join(report["unexamined"]))


def _end_of(report: dict[str, Any]) -> Progress:
    """Return how far an audit came; its process says so only now and then, and not at its end."""
    return Progress(report["audited_to"], max(report["audited_to"], report["head_seq"]))
