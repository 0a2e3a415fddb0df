"""The audits of a running service: those that were requested, and the continuous one, which reads slowly."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from spotledger.audit.process import DatabaseAddress, audit_in_process
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE, Progress
from spotledger.clock import now_ms
from spotledger.errors import StoreUnavailable
from spotledger.ops.siblings import Siblings
from spotledger.storage.seen_head import Seen

T = TypeVar("T")

#: How many requested audits are kept with their reports.
KEPT_AUDITS: Final = 20
#: How long after the start the continuous audit begins; sooner if the pause between its passes is shorter.
FIRST_PASS_SECONDS: Final = 60.0
#: How often a node tries to claim the continuous audit (more often if that pause is shorter), and how often the node
#: that audits checks that it still holds the claim.
CLAIM_SECONDS: Final = 10.0
HELD_SECONDS: Final = 1.0

_NOTHING_READ: Final = Progress(0, 0)
_log = logging.getLogger("spotledger.audits")


@dataclass(slots=True)
class Audit:
    """A requested audit; it is running until it has a report."""

    audit_id: str
    began_ms: int
    progress: Progress = _NOTHING_READ
    report: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Audit:
        """Return the audit with this state."""
        return cls(state["audit"], state["began_ms"], Progress(state["seq"], state["last_seq"]), state["report"])

    def as_json(self) -> dict[str, Any]:
        """Return the state of the audit as in the operator API."""
        return {
            "audit": self.audit_id,
            "state": "running" if self.report is None else "done",
            "began_ms": self.began_ms,
            "seq": self.progress.seq,
            "last_seq": self.progress.last_seq,
            "report": self.report,
        }


@dataclass(slots=True)
class ContinuousAudit:
    """The state of the continuous audit."""

    progress: Progress = _NOTHING_READ
    passes: Counter[str] = field(default_factory=lambda: Counter({CLEAN: 0, DAMAGED: 0, INCOMPLETE: 0}))
    #: Whether this process runs it; in a fleet, one node does.
    is_here: bool = False
    verdict: str | None = None
    findings: int = 0
    audited_to: int = 0
    ended_s: float = 0.0


class Claim(Protocol):
    """A lock that one node of a fleet holds at a time. Its methods may take seconds."""

    def take(self) -> bool:
        """Try to take the lock; return whether this node holds it. Raises StoreUnavailable."""

    def is_held(self) -> bool:
        """Say whether this node still holds the lock."""

    def release(self) -> None:
        """Release the lock."""


class Audits:
    """Runs audits of one ledger: one requested audit at a time, and the continuous one."""

    def __init__(
        self,
        path: Path | DatabaseAddress,
        siblings: Siblings | None = None,
        claim: Claim | None = None,
        *,
        clock_ms: Callable[[], int] = now_ms,
        seen: Callable[[], Seen | None] = lambda: None,
    ) -> None:
        """
        Prepare audits of a ledger.

        Args:
            path: The ledger file, or the address of the database.
            siblings: The workers of this machine, if there are several; each knows the audits of all.
            claim: In a fleet, the node that holds it runs the continuous audit.
            clock_ms: Returns the time in ms since 1970.
            seen: Returns what this node saw last in the database, which the journal has to have.
        """
        self._path = path
        self._clock_ms = clock_ms
        self._seen = seen
        self._siblings = siblings
        self._claim = claim
        self._claiming = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-claim")
        self._audits: OrderedDict[str, Audit] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Audit | None = None
        self._number = 0
        self.continuous = ContinuousAudit()

    async def start(self) -> Audit:
        """Start an audit at full speed and return it; if one is running, return that one."""
        return self._start() if self._siblings is None else await self._siblings.with_lock(self._start)

    def _start(self) -> Audit:
        running = self._running or next((it for it in self._of_siblings() if it.report is None), None)
        if running is not None:
            return running
        self._number += 1
        began_ms = self._clock_ms()
        worker = "" if self._siblings is None else f"{self._siblings.number}-"
        found = Audit(f"{began_ms}-{worker}{self._number}", began_ms)
        self._audits[found.audit_id] = self._running = found
        while len(self._audits) > KEPT_AUDITS:
            self._audits.popitem(last=False)
        self._publish()
        self._spawn(self._run(found))
        return found

    def get(self, audit_id: str) -> Audit | None:
        """Return one of the last audits requested since the service started, or None."""
        found = self._audits.get(audit_id)
        return found or next((it for it in self._of_siblings() if it.audit_id == audit_id), None)

    def _of_siblings(self) -> list[Audit]:
        return [] if self._siblings is None else [Audit.from_json(state) for state in self._siblings.audits()]

    def _publish(self) -> None:
        if self._siblings is not None:
            self._siblings.publish_audits([audit.as_json() for audit in self._audits.values()])

    def start_continuous(self, entries_per_second: int, pause_seconds: float) -> None:
        """Start the continuous audit, with *pause_seconds* after each pass; *entries_per_second* 0 turns it off."""
        if entries_per_second:
            self._spawn(self._run_continuously(entries_per_second, pause_seconds))

    async def stop(self) -> None:
        """Stop all audits."""
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
            self._publish()

        try:
            found.report = await audit_in_process(self._path, 0, note, self._seen())
            note(_end_of(found.report))
        finally:
            self._running = None

    async def _run_continuously(self, entries_per_second: int, pause_seconds: float) -> None:
        await asyncio.sleep(min(FIRST_PASS_SECONDS, pause_seconds))
        while True:
            try:
                if self._claim is None:
                    await self._passes(entries_per_second, pause_seconds)
                elif await self._in_thread(self._claim.take):
                    await self._passes_while_held(self._claim, entries_per_second, pause_seconds)
            except StoreUnavailable as problem:
                _log.debug("whether another node runs the continuous audit is unknown: %s", problem)
            except Exception as problem:  # noqa: BLE001 - no error may end the audit unnoticed
                _log.error("the continuous audit failed: %s; it starts again", problem)
            await asyncio.sleep(min(CLAIM_SECONDS, pause_seconds))

    async def _in_thread(self, act: Callable[[], T]) -> T:
        """Call *act*, which may take seconds, in a thread; calls keep their order, so that a release comes last."""
        return await asyncio.get_running_loop().run_in_executor(self._claiming, act)

    async def _passes_while_held(self, claim: Claim, entries_per_second: int, pause_seconds: float) -> None:
        """Run passes while this node holds the claim."""
        passes = asyncio.create_task(self._passes(entries_per_second, pause_seconds))
        try:
            while await self._in_thread(claim.is_held):
                if (await asyncio.wait([passes], timeout=HELD_SECONDS))[0]:
                    passes.result()  # it ends only with an error
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
                self._note(await audit_in_process(self._path, entries_per_second, note, self._seen()))
                await asyncio.sleep(pause_seconds)
        finally:
            state.is_here = False

    def _note(self, report: dict[str, Any]) -> None:
        """Take over the result of a pass of the continuous audit, and log it unless it is clean."""
        state = self.continuous
        state.progress = _end_of(report)
        state.passes[report["verdict"]] += 1
        state.verdict, state.findings = report["verdict"], sum(report["counts"].values())
        state.audited_to, state.ended_s = report["audited_to"], self._clock_ms() / 1000
        if report["verdict"] == DAMAGED:
            _log.critical("the continuous audit found damage: %s; run: spotledger audit", report["counts"])
        elif report["verdict"] == INCOMPLETE:
            _log.warning("the continuous audit was incomplete: %s", "; ".join(report["unexamined"]))


def _end_of(report: dict[str, Any]) -> Progress:
    """Return the final progress of an audit, which its process does not report."""
    return Progress(report["audited_to"], max(report["audited_to"], report["head_seq"]))
