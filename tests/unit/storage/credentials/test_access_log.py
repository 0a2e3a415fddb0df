"""The file of the access log: lines are added and grow, no page skips or repeats, age and size remove the oldest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from spotledger.errors import FileUnusable, LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.security.access_log import MINUTE_MS, Access, AccessFilter, PendingLine
from spotledger.storage.credentials.access_log import ACCESS_LOG_FILE, AccessLogFile, read_access_log

ALL = AccessFilter()
MINUTE = 1_000 * MINUTE_MS


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AccessLogFile]:
    """A new file."""
    file = AccessLogFile(tmp_path)
    yield file
    file.close()


def pending(access: Access, minute_ms: int = MINUTE, count: int = 1) -> PendingLine:
    """Return a line that the file does not have."""
    return PendingLine(minute_ms, access, count)


def passed(number: int = 0, address: str = "192.0.2.1") -> Access:
    """Return an access that passed."""
    return (f"key:{number:08d}", "bot", address, "getBalance", "")


def refused(number: int = 0) -> Access:
    """Return an access that was refused."""
    return ("", "", f"198.51.100.{number % 256}", f"c{number}", "token_unknown")


def counts_in(folder: Path) -> list[tuple[str, int]]:
    """Return actor and count of all lines."""
    return [(line.actor, line.times) for line in read_access_log(folder, ALL, 0, 10_000)]


def test_line_that_grows_stays_one_line(log: AccessLogFile, tmp_path: Path) -> None:
    """What is counted later in the minute is added to the line that is there; only new lines are told."""
    line = pending(passed(), count=2)
    assert log.append([line]) == 1
    line.count = 5
    assert log.append([line, pending(passed(1))]) == 1
    assert counts_in(tmp_path) == [("key:00000000", 5), ("key:00000001", 1)]


def test_line_is_as_it_was_written(log: AccessLogFile, tmp_path: Path) -> None:
    """Each part of an access comes back where it was put."""
    log.append([PendingLine(MINUTE, ("token:7", "Ωengine", "2001:db8::/64", "GET /v1/coins", "scope_missing"), 9)])
    (line,) = read_access_log(tmp_path, ALL, 0, 10)
    assert line[1:] == (MINUTE, "token:7", "Ωengine", "2001:db8::/64", "GET /v1/coins", "scope_missing", 9)


def test_line_that_was_removed_meanwhile_is_written_anew(log: AccessLogFile, tmp_path: Path) -> None:
    """What is counted after its line was removed for size is not lost."""
    line = pending(passed())
    log.append([line])
    assert log.fit_into(0) == 1
    line.count = 4
    log.append([line])
    assert counts_in(tmp_path) == [("key:00000000", 3)]


def test_statement_that_changes_a_line_otherwise_is_refused(log: AccessLogFile, tmp_path: Path) -> None:
    """The file itself keeps lines from shrinking and from being changed."""
    log.append([pending(passed(), count=5)])
    connection = apsw.Connection(str(tmp_path / ACCESS_LOG_FILE))
    for change in ("count = 4", "actor = ''", "address = 'x'", "minute_ms = 0", "count = 6, reason = 'x'"):
        with pytest.raises(apsw.ConstraintError, match="only grows"):
            connection.execute(f"UPDATE lines SET {change}")
    connection.close()
    assert counts_in(tmp_path) == [("key:00000000", 5)]


def test_pages_neither_skip_nor_repeat_while_lines_are_written(log: AccessLogFile, tmp_path: Path) -> None:
    """Reading on after the last line of each page gives every line once, those written meanwhile, too."""
    written = 0
    found: list[str] = []
    after = 0
    for _ in range(30):
        # late lines of an earlier minute come in between, as from a slow worker
        lines = [pending(passed(written + n), MINUTE - (n % 2) * MINUTE_MS) for n in range(7)]
        log.append(lines)
        written += 7
        page = read_access_log(tmp_path, ALL, after, 5)
        found += [line.actor for line in page]
        after = page[-1].line
    while page := read_access_log(tmp_path, ALL, after, 5):
        found += [line.actor for line in page]
        after = page[-1].line
    assert found == [f"key:{number:08d}" for number in range(written)]


def test_filters_find_what_holds_and_nothing_else(log: AccessLogFile, tmp_path: Path) -> None:
    """Actor, address and times hold together; a line of an earlier minute that came late is left out or found."""
    for minute in (2, 1, 3, 2):
        log.append([pending(passed(minute, f"192.0.2.{minute}"), minute * MINUTE_MS), pending(refused(), MINUTE_MS)])

    def minutes(**wanted: object) -> list[int]:
        lines = read_access_log(tmp_path, AccessFilter(**wanted), 0, 100)  # type: ignore[arg-type]
        return [line.minute_ms // MINUTE_MS for line in lines if line.actor]

    assert minutes() == [2, 1, 3, 2]
    assert minutes(actor="key:00000002") == [2, 2]
    assert minutes(actor="key:00000002", address="192.0.2.1") == []
    assert minutes(address="192.0.2.3") == [3]
    assert minutes(from_ms=2 * MINUTE_MS) == [2, 3, 2]
    assert minutes(from_ms=2 * MINUTE_MS, to_ms=3 * MINUTE_MS) == [2, 2]
    assert minutes(from_ms=4 * MINUTE_MS) == []
    assert len(read_access_log(tmp_path, AccessFilter(actor=""), 0, 100)) == 4


def test_age_removes_the_lines_of_old_minutes_and_no_others(log: AccessLogFile, tmp_path: Path) -> None:
    """Lines before the given minute go, the ones of it and after stay, and can be found by their time still."""
    for minute in range(5):
        log.append([pending(passed(minute), minute * MINUTE_MS)])
    assert log.remove_before(2 * MINUTE_MS) == 2
    assert [actor for actor, _ in counts_in(tmp_path)] == ["key:00000002", "key:00000003", "key:00000004"]
    found = read_access_log(tmp_path, AccessFilter(from_ms=3 * MINUTE_MS), 0, 10)
    assert [line.actor for line in found] == ["key:00000003", "key:00000004"]
    assert log.remove_before(9 * MINUTE_MS) == 3
    assert counts_in(tmp_path) == []


def test_size_removes_refusals_first_while_they_are_half_or_more(log: AccessLogFile, tmp_path: Path) -> None:
    """A flood of refusals cannot push out what passed, and what passed goes, the oldest first, where that is most."""
    honest = [pending(passed(number)) for number in range(6_000)]
    log.append(honest)
    log.append([pending(refused(number)) for number in range(30_000)])
    log.sync()
    size = (tmp_path / ACCESS_LOG_FILE).stat().st_size
    removed = log.fit_into(size // 2)
    actors = [actor for actor, _ in counts_in(tmp_path)[:6_000]]
    assert removed >= 15_000
    assert actors == [f"key:{number:08d}" for number in range(6_000)]
    log.fit_into(size // 20)
    kept = [line for line in read_access_log(tmp_path, ALL, 0, 50_000) if line.actor]
    assert 0 < len(kept) < 6_000
    assert kept[-1].actor == "key:00005999"


def test_size_of_the_file_stays_bounded_while_lines_come(log: AccessLogFile, tmp_path: Path) -> None:
    """However many lines are written, the file does not outgrow its limit, and the youngest lines are there."""
    limit = 1024 * 1024
    for start in range(0, 60_000, 2_000):
        log.append([pending(passed(start + number), MINUTE + start) for number in range(2_000)])
        log.fit_into(limit)
    log.sync()
    assert (tmp_path / ACCESS_LOG_FILE).stat().st_size < limit + 512 * 1024
    (last,) = read_access_log(tmp_path, AccessFilter(actor="key:00059999"), 0, 10)
    assert last.minute_ms == MINUTE + 58_000


def test_two_writers_share_one_file(log: AccessLogFile, tmp_path: Path) -> None:
    """Workers write lines of their own for the same access; sizes are kept right for both."""
    other = AccessLogFile(tmp_path)
    for file in (log, other, log, other):
        file.append([pending(passed()), pending(refused())])
    other.close()
    assert [times for _, times in counts_in(tmp_path)] == [1] * 8
    assert log.fit_into(0) == 8


def test_file_that_is_missing_has_no_lines(tmp_path: Path) -> None:
    """Nothing was ever counted in a folder without the file, and reading makes none."""
    assert read_access_log(tmp_path, ALL, 0, 10) == []
    assert list(tmp_path.iterdir()) == []


def test_file_is_private_and_what_lies_beside_it_too(log: AccessLogFile, tmp_path: Path) -> None:
    """Only the owner may read who used what from where."""
    log.append([pending(passed())])
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
def test_link_in_its_place_is_refused_and_its_target_untouched(ending: str, tmp_path: Path) -> None:
    """Neither the file nor what SQLite has beside it may be a link."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{ACCESS_LOG_FILE}{ending}").symlink_to(precious)
    for use in (lambda: AccessLogFile(folder), lambda: read_access_log(folder, ALL, 0, 1)):
        with pytest.raises(FileUnusable, match="symbolic link"):
            use()
    assert precious.read_bytes() == b"precious"


def test_foreign_file_in_its_place_is_not_written(tmp_path: Path) -> None:
    """A database of something else, and a file that is none, stay as they are."""
    path = tmp_path / ACCESS_LOG_FILE
    content = b"not a database at all" * 500
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises((SchemaMismatch, LedgerCorrupt, StoreUnavailable)):
        AccessLogFile(tmp_path)
    assert path.read_bytes() == content
    path.unlink()
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE lines (other)")
    connection.close()
    path.chmod(0o600)
    with pytest.raises(SchemaMismatch):
        AccessLogFile(tmp_path)


def test_flipped_bytes_are_found_and_not_shown(log: AccessLogFile, tmp_path: Path) -> None:
    """A page that is not as it was written is damage, and no line of it is given out."""
    log.append([pending(passed(number)) for number in range(3_000)])
    log.close()
    path = tmp_path / ACCESS_LOG_FILE
    content = bytearray(path.read_bytes())
    for start in range(8_192, len(content), 4_096):
        content[start + 1_000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(LedgerCorrupt, match="file of the access log"):
        read_access_log(tmp_path, ALL, 0, 10_000)


def test_file_that_was_moved_away_is_noticed(log: AccessLogFile, tmp_path: Path) -> None:
    """Who keeps the file open sees that another one, or none, is in its place."""
    log.append([pending(passed())])
    assert log.is_in_place()
    (tmp_path / ACCESS_LOG_FILE).rename(tmp_path / "away.db")
    assert not log.is_in_place()
    (tmp_path / ACCESS_LOG_FILE).write_bytes(b"")
    assert not log.is_in_place()
