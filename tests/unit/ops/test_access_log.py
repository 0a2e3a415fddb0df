"""The access log of a process: it is written beside the event loop, and nothing that befalls it stops anybody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from spotledger.errors import FileUnusable, StoreUnavailable
from spotledger.ops import access_log
from spotledger.ops.access_log import DAY_MS, AccessLog
from spotledger.security.access_log import MINUTE_MS, Access, AccessFilter
from spotledger.storage.credentials.access_log import ACCESS_LOG_FILE

ALL = AccessFilter()
READ: Access = ("key:11111111", "bot", "192.0.2.1", "getBalance", "")


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ms = 1_000 * DAY_MS + 5_000

    def __call__(self) -> int:
        return self.now_ms


def refused(number: int) -> Access:
    """Return one of many different refusals."""
    return ("", "", f"192.0.2.{number % 250}", f"call {number}", "token_unknown")


class Log:
    """An access log whose loop is driven by the test."""

    def __init__(self, folder: Path, *, days: int = 90) -> None:
        self.clock = Clock()
        self.log = AccessLog(folder, self.clock, days=days, mib=16)
        self.runner = asyncio.Runner()

    def run(self, awaited: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(awaited)

    def count(self, access: Access = READ, times: int = 1) -> None:
        for _ in range(times):
            self.log.counts.count(access)

    def lines(self, wanted: AccessFilter = ALL) -> list[tuple[str, int, int]]:
        """Return call, minute and count of the lines."""
        found = self.run(self.log.page(wanted, 0, 1_000))
        return [(line.call, line.minute_ms, line.times) for line in found]


@pytest.fixture
def log(tmp_path: Path) -> Any:
    made = Log(tmp_path)
    yield made
    made.run(made.log.stop())
    made.runner.close()


def test_running_minute_is_in_the_answer_and_one_line_whenever_it_is_asked_for(log: Log) -> None:
    """Each answer has all that was counted until then; a minute gives one line for one access."""
    first_ms = log.clock.now_ms - 5_000
    for total in (1, 2, 3):
        log.count()
        assert log.lines() == [("getBalance", first_ms, total)]
    log.clock.now_ms += MINUTE_MS
    log.run(log.log.flush())
    log.count()
    assert log.lines() == [("getBalance", first_ms, 3), ("getBalance", first_ms + MINUTE_MS, 1)]
    assert log.log.written_lines == 2


def test_what_was_counted_is_written_each_second_without_being_asked_for(log: Log, tmp_path: Path) -> None:
    """A process that is killed has written what it counted but for the last second."""

    async def wait_for_file() -> None:
        await log.log.start()
        while not log.log.written_lines:
            await asyncio.sleep(0.01)

    log.count()
    log.run(wait_for_file())
    assert (tmp_path / ACCESS_LOG_FILE).exists()


def test_process_that_counted_nothing_makes_no_file(tmp_path: Path) -> None:
    """A log that nobody needs is not there, neither after a second nor after the end."""
    made = Log(tmp_path)
    made.run(made.log.flush())
    made.run(made.log.stop())
    made.runner.close()
    assert list(tmp_path.iterdir()) == []


def test_stop_writes_what_was_counted_last(tmp_path: Path) -> None:
    """A service that is stopped in order loses nothing, and a start goes on in the same file."""
    for _ in range(2):
        made = Log(tmp_path)
        made.count(times=3)
        made.run(made.log.stop())
        made.runner.close()
    again = Log(tmp_path)
    assert [times for _, _, times in again.lines()] == [3, 3]
    again.run(again.log.stop())
    again.runner.close()


def test_old_lines_are_removed_when_a_minute_begins(tmp_path: Path) -> None:
    """After the days of the setting a line is gone, without anybody asking for it."""
    made = Log(tmp_path, days=2)
    made.count()
    made.run(made.log.flush())
    made.clock.now_ms += 2 * DAY_MS + 2 * MINUTE_MS
    made.run(made.log.flush())
    made.count(refused(1))
    assert [call for call, _, _ in made.lines()] == ["call 1"]
    made.run(made.log.stop())
    made.runner.close()


def test_damaged_file_is_told_once_and_counted_until_it_is_moved_away(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised, the metrics and the log say so, and all that was counted is written to the next file."""
    caplog.set_level(logging.INFO, "spotledger.access")
    path = tmp_path / ACCESS_LOG_FILE
    path.write_bytes(b"\xff" * 20_000)
    path.chmod(0o600)
    for _ in range(3):
        log.count(times=2)
        log.run(log.log.flush())
    assert log.log.failures == 3
    assert log.log.failure is not None
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    with pytest.raises(StoreUnavailable, match="access log cannot be read"):
        log.run(log.log.page(ALL, 0, 10))
    path.rename(tmp_path / "damaged.db")
    assert [times for _, _, times in log.lines()] == [6]
    assert log.log.failure is None
    assert log.log.dropped == 0
    assert "written again" in caplog.text


def test_file_that_is_removed_while_it_is_written_is_begun_anew(log: Log, tmp_path: Path) -> None:
    """Only what is counted afterwards is in the new file; the service does not write into one that nobody sees."""
    log.count(times=4)
    log.run(log.log.flush())
    (tmp_path / ACCESS_LOG_FILE).rename(tmp_path / "old.db")
    log.count()
    assert [times for _, _, times in log.lines()] == [1]


def test_memory_of_a_log_that_cannot_be_written_is_bounded(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest minutes are dropped and counted as dropped; the youngest are written once that is possible."""
    monkeypatch.setattr(access_log, "WAITING_LINES", 50)
    (tmp_path / ACCESS_LOG_FILE).mkdir()
    for minute in range(6):
        for number in range(20):
            log.count(refused(100 * minute + number), times=2)
        log.run(log.log.flush())
        log.clock.now_ms += MINUTE_MS
        log.run(log.log.flush())
    assert log.log.dropped == 4 * 20 * 2
    (tmp_path / ACCESS_LOG_FILE).rmdir()
    assert len(log.lines()) == 40


def test_counts_that_wait_for_a_hanging_disk_are_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread is stuck, the loop keeps a bounded number of counts, and goes on at once."""
    monkeypatch.setattr(access_log, "WAITING_COUNTS", 30)

    async def use() -> None:
        stuck = asyncio.Event()
        loop = asyncio.get_running_loop()
        import threading

        gate = threading.Event()
        blocked = loop.run_in_executor(log.log._thread, gate.wait)
        log.log._hand_over()  # takes the thread's next turn
        for start in range(0, 100, 10):
            for number in range(start, start + 10):
                log.count(refused(number))
            log.log._hand_over()
        assert log.log.dropped == 70
        gate.set()
        await blocked
        stuck.set()

    log.run(use())
    assert len(log.lines()) == 30


def test_link_in_place_of_the_file_refuses_the_start(tmp_path: Path) -> None:
    """As every file of a data folder, the log is checked before anything is done."""
    (tmp_path / ACCESS_LOG_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileUnusable, match="symbolic link"):
        AccessLog(tmp_path, Clock(), days=1, mib=16)


def test_link_that_is_planted_later_is_not_followed(log: Log, tmp_path: Path) -> None:
    """The log is not written through a link; the service goes on and says why."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / ACCESS_LOG_FILE).symlink_to(target)
    log.count()
    log.run(log.log.flush())
    assert "symbolic link" in str(log.log.failure)
    assert target.read_bytes() == b""
    (tmp_path / ACCESS_LOG_FILE).unlink()
