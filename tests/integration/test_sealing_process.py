"""The process that seals: what it holds, how it is started again, how far behind it may be, and what it stops."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import spotledger
from spotledger.domain.operations import Deposit
from spotledger.errors import LedgerCorrupt, StoreBusy, StoreUnavailable
from spotledger.ledger.ledger import Ledger
from spotledger.storage import sealing_process
from spotledger.storage.sealing_process import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SealingProcess
from spotledger.storage.sqlite.sealing import Sealer
from spotledger.storage.sqlite.store import PROCESS_ENTRIES, SEALING_MODULE, UNSEALED_LIMIT
from support_books import check_books
from support_core import alter_last, raw, seed, spot

SIZE = PROCESS_ENTRIES


@contextmanager
def ledger_in(folder: Path) -> Iterator[Ledger]:
    """Open a ledger whose segments are sealed by a process, with ann and bob."""
    with spotledger.open(folder, segment_entries=SIZE) as ledger:
        if ledger.head.seq == 0:
            seed(ledger)
        yield ledger


def fill_to(ledger: Ledger, seq: int) -> None:
    """Fill *ledger* with deposits up to the entry *seq*."""
    while ledger.head.seq < seq:
        count = min(500, seq - ledger.head.seq)
        ledger.execute([Deposit(f"to-{ledger.head.seq}-{n}", "ann", "btc", "1") for n in range(count)])


def until(happened: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None) -> Any:
    """Do *meanwhile* until *happened* gives something, and return it; fails after a minute."""
    deadline = time.monotonic() + 60
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen within a minute"
        meanwhile()
        time.sleep(0.005)
    return found


def child_of(ledger: Ledger) -> int:
    """Return the id of the process that seals *ledger*."""
    process: Any = ledger._store
    return int(process._sealing._child.pid)


def files_of(process: int, folder: Path) -> set[str]:
    """Return the files in *folder* that *process* has open."""
    opened = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            opened.add(str(file.readlink()))
    return {Path(name).name for name in opened if Path(name).parent == folder.resolve()}


def test_full_segment_is_sealed_and_let_go_of_while_nothing_is_written(tmp_path: Path) -> None:
    """The lag is a whole segment once that is full, and falls to none without another write."""
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, SIZE - 1)
        assert ledger.sealing_lag == 0
        fill_to(ledger, SIZE + 5)
        assert ledger.sealing_lag == SIZE
        head = ledger.head
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
        assert ledger.head == head
        assert (ledger._store.sealed_to, ledger.sealing_restarts) == (SIZE, 0)
        assert ledger.execute([Deposit(f"to-{SIZE - 1}-0", "ann", "btc", "1")])[0].replayed
    check_books(tmp_path)


def test_sealing_that_is_too_far_behind_refuses_writes_until_it_has_caught_up(tmp_path: Path) -> None:
    """The lag is bounded: while the process stands still, writes are refused as busy, and pass once it goes on."""
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, SIZE)
        child = child_of(ledger)
        os.kill(child, signal.SIGSTOP)
        try:
            with pytest.raises(StoreBusy, match="sealing is behind"):
                fill_to(ledger, 9 * SIZE)
            assert ledger.sealing_lag == (UNSEALED_LIMIT + 1) * SIZE
            with pytest.raises(StoreBusy):
                ledger.deposit("ann", "btc", "1", key="refused")
        finally:
            os.kill(child, signal.SIGCONT)

        def try_again() -> None:
            try:
                ledger.deposit("ann", "btc", "1", key="refused")
            except StoreBusy:
                return

        until(lambda: ledger.sealing_lag == 0, try_again)
        assert not ledger.execute([Deposit("another", "ann", "btc", "1")])[0].replayed
        assert (child_of(ledger), ledger.sealing_restarts) == (child, 0)
    check_books(tmp_path)


def test_process_that_was_killed_is_counted_and_started_again_while_nothing_is_written(tmp_path: Path) -> None:
    """Nobody has to write for it: the look for expired holds takes care of it."""
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, SIZE)
        first = child_of(ledger)
        os.kill(first, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        until(lambda: ledger.sealing_restarts == 1, lambda: ledger.execute([]))
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
        assert child_of(ledger) != first
    check_books(tmp_path)


def test_books_that_are_made_again_are_taken_over_while_nothing_is_written(tmp_path: Path) -> None:
    """The lag counts all segments again, and falls to none by itself, also where the process dies on the way."""
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, 2 * SIZE)
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
    with ledger_in(tmp_path) as ledger:
        store: Any = ledger._store
        with raw(tmp_path, "books.db") as connection:
            connection.execute("UPDATE balance SET available = 0 WHERE customer = 'bob'")
        with pytest.raises(StoreUnavailable, match="0 of 2 segments"):
            ledger.account(spot("bob"))
        assert ledger.sealing_lag == 2 * SIZE
        os.kill(child_of(ledger), signal.SIGKILL)

        def look() -> None:
            with contextlib.suppress(StoreUnavailable):
                ledger.execute([])

        until(lambda: ledger.sealing_lag == 0 and store.rebuilding is None, look)  # a thread opens them
        assert (store.rebuilds, ledger.sealing_restarts) == (1, 1)
        assert ledger.account(spot("bob")).balance("btc").available == 1000 * 10**8
    check_books(tmp_path)


def test_process_that_finds_its_segment_sealed_by_another_one_goes_on(tmp_path: Path) -> None:
    """One that is still there after its parent was killed may have sealed the segment: that is no damage."""
    with ledger_in(tmp_path) as ledger:
        store: Any = ledger._store
        fill_to(ledger, SIZE)
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
        fill_to(ledger, 2 * SIZE - 500)
        os.kill(child_of(ledger), signal.SIGSTOP)
        fill_to(ledger, 2 * SIZE)
        with closing(Sealer(tmp_path / "journal.db", tmp_path / "books.db")) as other:
            other.seal_next()
        os.kill(child_of(ledger), signal.SIGCONT)
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
        assert (ledger.sealing_restarts, store.rebuilds) == (1, 0)
    check_books(tmp_path)


def test_process_inherits_neither_the_lock_of_the_folder_nor_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the files that it needs open and no others, and none of the service's variables."""
    monkeypatch.setenv("SPOTLEDGER_MASTER_KEY", "secret of the service")
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, SIZE)
        child = child_of(ledger)
        assert "owner.lock" in files_of(os.getpid(), tmp_path), "the lock is not held as a file"
        until(lambda: "books.db" in files_of(child, tmp_path))
        found = {name.removesuffix("-wal").removesuffix("-shm") for name in files_of(child, tmp_path)}
        assert found == {"journal.db", "books.db"}
        environ = Path(f"/proc/{child}/environ").read_bytes()
        assert environ
        assert b"SPOTLEDGER_" not in environ
        assert os.getpriority(os.PRIO_PROCESS, child) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + sealing_process.NICENESS
        )


def test_process_outlives_the_thread_in_which_it_was_started(tmp_path: Path) -> None:
    """A program may write from a thread for each of its requests: the process dies with the parent, not with those."""
    with ledger_in(tmp_path) as ledger:

        def write() -> None:
            fill_to(ledger, SIZE)
            until(lambda: "books.db" in files_of(child_of(ledger), tmp_path))

        writing = threading.Thread(target=write)
        writing.start()
        writing.join()
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
        assert ledger.sealing_restarts == 0
    check_books(tmp_path)


def test_pause_before_a_restart_grows_up_to_its_limit_and_begins_anew_after_a_sealing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that can do nothing is not started again and again at once."""
    now = time.monotonic()
    monkeypatch.setattr(sealing_process, "time", SimpleNamespace(monotonic=lambda: now))
    process = SealingProcess(SEALING_MODULE, [str(tmp_path / "journal.db"), str(tmp_path / "books.db")])
    expected, pauses = FIRST_PAUSE_SECONDS, []
    try:
        for restarts in range(1, 10):
            process.seal(0)
            assert process._child is not None
            until(lambda number=restarts: process.restarts == number, process.poll)  # type: ignore[misc]
            now += expected - 0.001
            process.seal(0)
            assert process._child is None, "it was started before the pause was over"
            now += 0.002
            pauses.append(expected)
            expected = min(2 * expected, LONGEST_PAUSE_SECONDS)
        assert pauses[-1] == LONGEST_PAUSE_SECONDS
        with ledger_in(tmp_path) as ledger:
            fill_to(ledger, SIZE)
        process.seal(0)
        until(lambda: process.sealed_segments == 1, process.poll)
        assert process._pause_seconds == FIRST_PAUSE_SECONDS
    finally:
        process.close()


def test_process_that_finds_other_balances_than_an_entry_carries_stops_writes(tmp_path: Path) -> None:
    """What it says ends all writing, at the latest one look for expired holds after the segment was full."""
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, SIZE - 1)
    alter_last(tmp_path, another_balance)
    for key in ("fills-the-segment", "after-a-restart"):
        with ledger_in(tmp_path) as ledger:
            if ledger.head.seq < SIZE:
                ledger.deposit("bob", "btc", "1", key=key)
            with pytest.raises(LedgerCorrupt, match=f"entry {SIZE - 1} says .* its postings lead to"):
                until(lambda: False, lambda ledger=ledger: ledger.execute([]))  # type: ignore[misc]
            with pytest.raises(LedgerCorrupt):
                ledger.deposit("bob", "btc", "1", key="never")
            assert ledger.corrupt is not None
            assert ledger.head.seq == SIZE
            assert ledger._store.rebuilds == 0


def another_balance(entry: dict[str, Any]) -> None:
    """Say that one unit more is there than the postings lead to."""
    entry["balances"][0][2] = str(int(entry["balances"][0][2]) + 1)


def test_small_ledger_with_books_of_another_version_answers_at_once(tmp_path: Path) -> None:
    """After an update the first command is done: where no segment is full, there is nothing to wait for."""
    with ledger_in(tmp_path) as ledger:
        fill_to(ledger, SIZE - 1)
    with raw(tmp_path, "books.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    with ledger_in(tmp_path) as ledger:
        store: Any = ledger._store
        (repair,) = store.repairs
        assert "books.db has schema version 7; this spotledger reads version" in repair
        assert "Use the spotledger that wrote it" not in repair
        assert ledger.execute([Deposit("new", "ann", "btc", "1")])[0].seq == SIZE
        until(lambda: ledger.sealing_lag == 0, lambda: ledger.execute([]))
    check_books(tmp_path)
