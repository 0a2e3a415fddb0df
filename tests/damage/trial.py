"""One trial: damage a ledger, audit it, start it, ask it everything, book 300 operations, and ask everything again."""

from __future__ import annotations

import logging
import random
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from damage.ledgers import Subject, write_files
from damage.questions import Known, groups_of, known_of, questions, said
from damage.ways import damage
from spotledger.audit.embedded import audit_file
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE
from spotledger.errors import LedgerCorrupt, SetupError, StoreUnavailable
from spotledger.ledger.ledger import Ledger
from support_core import Clock, open_small

#: What names damage. Anything else that is raised is a defect.
NAMES = (LedgerCorrupt, SetupError, StoreUnavailable)
#: After the further operations one question in so many is asked again.
AFTER_STEP = 5
#: One trial in so many is audited whoever named the damage, and each in which nobody did.
AUDIT_STEP = 4
#: How a damage ended, in the order of what happens first.
OUTCOMES = ("start", "read", "write", "repaired", "log", "audit", "unused", "WRONG")


@dataclass(frozen=True)
class Twin:
    """What an undamaged ledger says, and what it says after 300 further operations."""

    known: Known
    before: dict[str, str]
    outcomes: list[str]
    after: dict[str, str]


@dataclass
class Trial:
    """What came of one damage."""

    way: str
    what: str
    #: Who named it, or ``unused``; ``WRONG`` where anything wrong was said.
    outcome: str = "unused"
    #: The verdict of the audit; empty where there was none.
    verdict: str = ""
    wrong: list[str] = field(default_factory=list)


def twin_of(folder: Path, subject: Subject) -> Twin:
    """Ask an undamaged copy of *subject* everything; *folder* must not exist."""
    clock = Clock(subject.now_ms)
    with open_small(write_files(folder, subject.files), clock) as ledger:
        known = known_of(ledger)
        before = {name: repr(ask()) for name, ask in questions(ledger, known, clock)}
        outcomes = [repr(said(ledger.execute(group))) for group in groups_of(known)]
        after = {name: repr(ask()) for name, ask in questions(ledger, known, clock)}
    assert audit_file(folder / "journal.db").verdict == CLEAN
    shutil.rmtree(folder)
    return Twin(known, before, outcomes, after)


def run(seed: str, subject: Subject, twin: Twin, folder: Path) -> Trial:
    """Damage *subject* as *seed* says, in the new folder *folder*, and compare it with its *twin*."""
    chance = random.Random(seed)
    way, (files, what) = damage(chance, subject)
    trial = Trial(way, what)
    write_files(folder, files)
    try:
        with _listening() as log:
            named = _served(trial, subject, twin, folder, log)
            if trial.outcome == "unused" or chance.randrange(AUDIT_STEP) == 0:
                _audit(trial, write_files(folder / "audited", files), named)
    finally:
        shutil.rmtree(folder)
    if trial.wrong:
        trial.outcome = "WRONG"
    return trial


def _served(trial: Trial, subject: Subject, twin: Twin, folder: Path, log: list[str]) -> bool:
    """Start, ask, write, and ask again; say whether the damage was named as damage."""
    clock, seen = Clock(subject.now_ms), _Seen(trial)
    with seen.noting("start"), open_small(folder, clock) as ledger:
        seen.compare(ledger, twin.known, clock, twin.before, "read")
        if seen.write(ledger, twin):
            seen.compare(ledger, twin.known, clock, twin.after, "read", AFTER_STEP)
        if seen.first is None and ledger._store.repairs:  # type: ignore[attr-defined]
            seen.first = "repaired"
    if seen.first is None and log:
        seen.first = "log"
    trial.outcome = seen.first or trial.outcome
    return seen.is_damage


class _Seen:
    """What a damaged ledger said so far."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        #: Who named the damage first.
        self.first: str | None = None
        #: Whether it was named as damage, not as something that is in the way.
        self.is_damage = False

    @contextmanager
    def noting(self, who: str) -> Iterator[None]:
        """Note that *who* named the damage, or that something else was raised."""
        try:
            yield
        except NAMES as error:
            self.first = self.first or who
            self.is_damage |= isinstance(error, LedgerCorrupt)
        except Exception as error:  # noqa: BLE001 - anything else is a defect, and is reported with the others
            self._trial.wrong.append(f"{who}: {_traced(error)}")

    def compare(
        self, ledger: Ledger, known: Known, clock: Clock, expected: dict[str, str], who: str, step: int = 1
    ) -> None:
        """Ask every question, or one in *step*; each answer is the twin's, or names the damage."""
        for name, ask in islice(questions(ledger, known, clock), 0, None, step):
            with self.noting(who):
                answer = repr(ask())
                if answer != expected[name]:
                    self._trial.wrong.append(f"{name}: {answer[:300]} instead of {expected[name][:300]}")

    def write(self, ledger: Ledger, twin: Twin) -> bool:
        """Book the further operations; say whether all were booked as the twin did."""
        for number, (group, expected) in enumerate(zip(groups_of(twin.known), twin.outcomes, strict=True)):
            is_done = False
            with self.noting("write"):
                answer = repr(said(ledger.execute(group)))
                is_done = answer == expected
                if not is_done:
                    self._trial.wrong.append(f"group {number}: {answer[:2000]} instead of {expected[:2000]}")
            if not is_done:
                return False
        return True


def _audit(trial: Trial, folder: Path, named: bool) -> None:
    """Audit the damaged files as they were; what the service named as damage, the audit has to name too."""
    try:
        report = audit_file(folder / "journal.db")
    except Exception as error:  # noqa: BLE001 - an audit never raises
        trial.wrong.append(f"audit: {_traced(error)}")
        return
    trial.verdict = report.verdict
    if report.verdict not in (CLEAN, DAMAGED, INCOMPLETE):
        trial.wrong.append(f"audit: {report.verdict}")
    if report.verdict == CLEAN and named:
        trial.wrong.append(f"audit: clean, although the {trial.outcome} named it")
    if trial.outcome == "unused" and report.verdict != CLEAN:
        trial.outcome = "audit"


def _traced(error: Exception) -> str:
    """Return what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error} ({where})"


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what the service logs as warnings and errors."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("spotledger"), Collector(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
