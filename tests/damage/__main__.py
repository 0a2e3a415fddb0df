"""``make flips``: damage a ledger so many times, and write what came of it to ``docs/reliability-flips.md``."""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import apsw

from damage.ledgers import Subject, make_subjects
from damage.trial import OUTCOMES, Trial, Twin, run, twin_of
from damage.ways import WAYS

PROCESSES = 2
PROGRESS_SECONDS = 10.0
#: A file system in memory: each commit is synced, and a trial has many.
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of a random name is made in it
MEANINGS = {
    "start": "the start was refused, naming what is damaged or missing",
    "read": "a read named it; all others were right",
    "write": "a write named it, and nothing was booked wrongly",
    "repaired": "it was in what is derived, and was made again from the journal",
    "log": "the other copy counted, and the log said so",
    "audit": "only the audit named it; every answer was right",
    "unused": "nobody noticed, and every answer was right: unused bytes",
    "WRONG": "a wrong answer, a double booking, or another error than one that names damage",
}


def say(*lines: str) -> None:
    """Print *lines*."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def trials(count: int, first: int, seed: str, processes: int, folder: Path) -> Iterator[Trial]:
    """Give what came of the trials from *first* on, in any order."""
    subjects = make_subjects(folder, seed)
    pairs = [(subject, twin_of(folder / f"twin-{subject.name}", subject)) for subject in subjects]
    one = partial(_trial, seed, pairs, folder)
    end_quietly = (signal.SIGTERM, signal.SIG_DFL)  # at the end of the pool
    with multiprocessing.get_context("fork").Pool(processes, signal.signal, end_quietly) as pool:
        yield from pool.imap_unordered(one, range(first, first + count), chunksize=5)


def _trial(seed: str, pairs: list[tuple[Subject, Twin]], folder: Path, number: int) -> Trial:
    subject, twin = pairs[number % len(pairs)]
    found = run(f"{seed}:{number}", subject, twin, folder / str(number))
    found.what = f"{number} ({subject.name}): {found.what}"
    return found


class Result:
    """What came of all trials so far."""

    def __init__(self, seed: str, first: int, count: int) -> None:
        self.seed, self.first, self.count = seed, first, count
        self.began, self.began_at = time.monotonic(), datetime.now(UTC)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.wrong: list[Trial] = []

    @property
    def done(self) -> int:
        """How many trials are done."""
        return self.outcomes.total()

    def add(self, trial: Trial) -> None:
        """Count one trial; show it where something is wrong."""
        self.outcomes[trial.way, trial.outcome] += 1
        self.verdicts[trial.verdict] += 1
        if trial.outcome == "WRONG":
            self.wrong.append(trial)
            say(f"WRONG {trial.way} {trial.what}", *(f"  {text}" for text in trial.wrong[:3]))

    def line(self) -> str:
        """Return how far it is."""
        by_outcome = Counter(dict.fromkeys(OUTCOMES, 0))
        for (_, outcome), number in self.outcomes.items():
            by_outcome[outcome] += number
        told = ", ".join(f"{name} {number}" for name, number in by_outcome.items())
        return f"{self.done} of {self.count} in {time.monotonic() - self.began:.0f} s: {told}"

    def markdown(self) -> str:
        """Return the page that keeps the result."""
        audited = self.done - self.verdicts[""]
        lines = [
            "# Damaged files: the last run",
            "",
            "<!-- Made by `make flips`; do not edit. -->",
            "",
            "Each trial damages the files of a small ledger in one way, starts it, asks it everything that can be",
            "asked, books 300 further operations (known keys, known keys with other content, and every kind of new",
            "ones), and asks again. Each answer is that of an undamaged twin, or an error that names the damage. One",
            "trial in four, and each in which nobody noticed anything, is audited, too. How it works: `tests/damage/`.",
            "",
            f"- {self.done} trials, {len(self.wrong)} wrong; seed `{self.seed}`, numbers {self.first} to"
            f" {self.first + self.count - 1}{'' if self.done == self.count else f' (stopped after {self.done})'}",
            f"- {self.began_at:%Y-%m-%d %H:%M} UTC, {time.monotonic() - self.began:.0f} s;"
            f" Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, {platform.machine()}",
            f"- {audited} audits: {self.verdicts['damaged']} damaged, {self.verdicts['clean']} clean,"
            f" {self.verdicts['incomplete']} incomplete",
            "",
            "| who named it | trials | meaning |",
            "|---|--:|---|",
        ]
        for outcome in OUTCOMES:
            number = sum(count for (_, found), count in self.outcomes.items() if found == outcome)
            lines.append(f"| {outcome} | {number} | {MEANINGS[outcome]} |")
        lines += ["", f"| way | {' | '.join(OUTCOMES)} |", f"|---|{'--:|' * len(OUTCOMES)}"]
        for way in WAYS:
            counts = " | ".join(str(self.outcomes[way.__name__, outcome]) for outcome in OUTCOMES)
            lines.append(f"| {way.__name__.replace('_', ' ')} | {counts} |")
        return "\n".join(lines) + "\n"


def main() -> int:
    """Run the trials; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m damage", description=__doc__)
    parser.add_argument("--flips", type=int, default=20_000, help="how many trials")
    parser.add_argument("--seed", default="1", help="the same seed makes the same trials")
    parser.add_argument("--first", type=int, default=0, help="the number of the first trial, to see one again")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--write", type=Path, help="the page to write the result to")
    given = parser.parse_args()
    result = Result(given.seed, given.first, given.flips)
    folder = Path(tempfile.mkdtemp(prefix="damage-", dir=MEMORY if MEMORY.is_dir() else None))
    told = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background a shell has Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    try:
        for trial in trials(given.flips, given.first, given.seed, given.processes, folder):
            result.add(trial)
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                say(result.line())
    except KeyboardInterrupt:
        say("stopped")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(result.line())
    if given.write is not None:
        given.write.write_text(result.markdown(), encoding="utf-8")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
