"""The report of an audit, its progress, and the pace that it keeps."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from spotledger.audit.findings import Finding, Findings

#: The verdicts: nothing is wrong, something is, and something could not be examined (and nothing is wrong so far).
CLEAN: Final = "clean"
DAMAGED: Final = "damaged"
INCOMPLETE: Final = "incomplete"
#: The most entries that are read at once from a file, or by an audit with a pace.
CHUNK_ENTRIES: Final = 200


class KnownHead(NamedTuple):
    """The ``seq`` and hash of an entry as noted earlier; it shows that a journal was written anew."""

    seq: int
    hash: bytes


class Progress(NamedTuple):
    """How far an audit is: the last entry read, and the last entry that it will read."""

    seq: int
    last_seq: int


class TimeIsUp(Exception):
    """An audit reached its time limit; the message says what was not read."""


@dataclass(slots=True)
class Report:
    """The result of an audit. ``verdict`` is ``clean``, ``damaged`` or ``incomplete``."""

    path: str
    verdict: str = INCOMPLETE
    ledger_id: str | None = None
    epoch: int | None = None
    #: The last entry read, from entry 1 on, and its hash.
    audited_to: int = 0
    hash: str | None = None
    #: The head and the last sealed entry at the start of the audit.
    head_seq: int = 0
    sealed_to: int = 0
    entries: int = 0
    postings: int = 0
    refusals: int = 0
    coins: int = 0
    customers: int = 0
    balances: int = 0
    open_holds: int = 0
    seconds: float = 0.0
    #: How many findings there are, by code; ``findings`` lists the first of each code.
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    #: What could not be examined, and why.
    unexamined: list[str] = field(default_factory=list)
    #: What to do about the findings in a ledger's files.
    advice: list[str] = field(default_factory=list)

    def conclude(self, findings: Findings, seconds: float) -> None:
        """Take over the *findings*, and reach the verdict after *seconds*."""
        self.seconds = round(seconds, 3)
        self.findings, self.counts = findings.listed, dict(findings.counts)
        self.unexamined = findings.unexamined
        self.verdict = DAMAGED if self.counts else INCOMPLETE if self.unexamined else CLEAN

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {**asdict(self), "findings": [finding._asdict() for finding in self.findings]}


class Pace:
    """Limits how fast an audit reads, and for how long."""

    def __init__(self, entries_per_second: int, limit_seconds: float | None) -> None:
        """Begin now; *entries_per_second* 0 is as fast as possible, *limit_seconds* None without a limit."""
        self._rate = entries_per_second
        self._limit = limit_seconds
        self._began = time.monotonic()

    @property
    def is_set(self) -> bool:
        """Whether the rate is limited."""
        return self._rate > 0

    def chunk(self, unlimited: int) -> int:
        """Return how many entries to read at once, at most *unlimited*: few enough to rest in between."""
        return min(unlimited, CHUNK_ENTRIES, self._rate) if self.is_set else unlimited

    def check_time(self, done: int) -> None:
        """Raise TimeIsUp if the time limit has passed with *done* entries read."""
        if self._limit is not None and time.monotonic() - self._began > self._limit:
            raise TimeIsUp(f"the entries after {done} could not be read within {self._limit:g} seconds")

    def rest(self, done: int) -> None:
        """Sleep until *done* entries are due at this rate; raise TimeIsUp if the time limit has passed."""
        self.check_time(done)
        if self._rate:
            time.sleep(max(0.0, done / self._rate - (time.monotonic() - self._began)))
