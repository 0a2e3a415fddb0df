"""The HTTP library's logs: silent about what this client sends, and about nothing else."""

from __future__ import annotations

import logging
import re
import threading

import httpcore2
import httpx2
import pytest

from spotledger.client.quiet import SILENCED_LOGGERS, quiet


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Log one line with every logger of the HTTP library; return the names that came through."""
    caplog.clear()
    for name in SILENCED_LOGGERS:
        logging.getLogger(name).info("GET /getBalance?signature=abc")
    return [record.name for record in caplog.records]


def test_lines_are_dropped_inside_the_block_and_kept_outside(caplog: pytest.LogCaptureFixture) -> None:
    """Within the block no line passes, in a nested one neither; before and after, every one."""
    caplog.set_level(logging.DEBUG)
    with quiet():
        assert logged(caplog) == []
        with quiet():
            assert logged(caplog) == []
        assert logged(caplog) == []
    assert logged(caplog) == list(SILENCED_LOGGERS)


def test_every_logger_of_the_http_library_is_silenced() -> None:
    """A logger that a new version of the library brings is noticed here."""
    loggers = [name for name in logging.root.manager.loggerDict if re.match(r"(httpx2|httpcore2)(\.|$)", name)]
    assert {httpx2.__name__, httpcore2.__name__} <= {name.partition(".")[0] for name in loggers}
    made = {name for name in loggers if isinstance(logging.root.manager.loggerDict[name], logging.Logger)}
    assert made <= set(SILENCED_LOGGERS)


def test_lines_of_other_code_stay(caplog: pytest.LogCaptureFixture) -> None:
    """Other loggers of this thread and the HTTP library in other threads go on logging."""
    caplog.set_level(logging.DEBUG)
    with quiet():
        logging.getLogger("program").info("of the program")
        assert [record.name for record in caplog.records] == ["program"]
        found: list[list[str]] = []
        other = threading.Thread(target=lambda: found.append(logged(caplog)))
        other.start()
        other.join()
    assert found == [list(SILENCED_LOGGERS)]


def test_lines_come_back_after_an_exception(caplog: pytest.LogCaptureFixture) -> None:
    """A call that fails does not leave the logs silent."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert logged(caplog) == list(SILENCED_LOGGERS)
