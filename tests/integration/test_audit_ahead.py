"""An audit whose segments are read ahead by processes of their own: what they read is used, and their end is named."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit import driver as auditing, workers as audit_workers
from spotledger.audit.embedded.source import READER, EmbeddedSource
from spotledger.audit.report import Progress
from spotledger.domain.operations import Deposit
from support_audit import audited, every_kind, make
from support_core import Clock, open_small


@pytest.fixture(autouse=True)
def _each_segment_is_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_workers, "RANGE_ENTRIES", 1)


def readers() -> list[int]:
    """Return the processes that read ahead for this one; a test run has others too, which are none of our business.

    Threads and processes end while this looks; what is gone by then reads nothing any more.
    """
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for number in (task / "children").read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):
                    command = Path("/proc", number, "cmdline").read_bytes()
                    if READER.encode() in command.split(b"\0"):
                        found.append(int(number))
    return found


def doing_once(work: Callable[[], Any]) -> Callable[[Progress], None]:
    """Return what does *work* at the first progress."""
    left = [work]
    return lambda _: left.pop()() if left else None


@pytest.mark.parametrize("processes", [2, 4])
def test_audit_of_a_whole_ledger_joins_or_reads_every_sealed_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Nothing is read twice where nothing is wrong, and the report is that of one process."""
    folder = make(tmp_path / "ledger")
    joined: list[range] = []
    join = auditing.join

    def join_and_note(journal: Any, read: Any) -> bool:
        fits = join(journal, read)
        assert fits
        joined.append(range(read.first, read.last + 1))
        return fits

    pages: list[int] = []
    entries = EmbeddedSource.entries

    def entries_noted(source: EmbeddedSource, first: int, last: int) -> Any:
        pages.append(first)
        return entries(source, first, last)

    monkeypatch.setattr(auditing, "join", join_and_note)
    monkeypatch.setattr(EmbeddedSource, "entries", entries_noted)
    report = audited(folder, processes=processes)
    assert (report.verdict, report.counts) == ("clean", {})
    assert report.sealed_to // 8 > 6
    assert joined
    assert not [first for first in pages if any(first in seqs for seqs in joined)]
    assert {**report.as_json(), "seconds": 0} == {**audited(folder).as_json(), "seconds": 0}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for its children in /proc")
def test_audit_whose_processes_are_killed_is_incomplete(tmp_path: Path) -> None:
    """What a process that died should have read is named, and the verdict is never clean."""

    def kill() -> None:
        begun = readers()
        assert len(begun) == 2  # this one reads too
        for reader in begun:
            os.kill(reader, signal.SIGKILL)

    report = audited(make(tmp_path / "ledger"), processes=3, progress=doing_once(kill))
    assert report.verdict == "incomplete"
    assert any("the process that read them ended early" in why for why in report.unexamined)
    assert readers() == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for its children in /proc")
def test_audit_that_is_interrupted_ends_its_processes(tmp_path: Path) -> None:
    """An interrupt leaves an incomplete report and no process."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    report = audited(make(tmp_path / "ledger"), processes=2, progress=doing_once(interrupt))
    assert report.verdict == "incomplete"
    assert report.unexamined == ["the rest: the audit was interrupted"]
    assert readers() == []


def test_audit_with_processes_that_runs_out_of_time_is_incomplete(tmp_path: Path) -> None:
    """The time limit holds for what is read ahead too."""
    report = audited(make(tmp_path / "ledger"), processes=2, limit_seconds=0.0)
    assert report.verdict == "incomplete"
    assert report.audited_to < report.head_seq


def test_audit_with_processes_beside_a_writer_is_clean(tmp_path: Path) -> None:
    """Segments that are sealed while the audit reads are no damage."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        every_kind(ledger, clock)
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                ledger.execute([Deposit(f"w{number}-{n}", "ann", "btc", "1") for n in range(5)])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            reports = [audited(tmp_path, processes=2) for _ in range(5)]
        finally:
            stop.set()
            writer.join()
    assert [(report.verdict, report.counts) for report in reports] == [("clean", {})] * 5
    assert reports[-1].head_seq > reports[0].head_seq
