"""The bound of connections fits the limit of file descriptors, and the log says so."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest

from spotledger.http import descriptors
from spotledger.http.descriptors import RESERVED, fitted_connections


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[tuple[int, int]]]:
    """Stand in for the limit of this process; return what it was set to."""

    def allow(soft: int, hard: int) -> list[tuple[int, int]]:
        made: list[tuple[int, int]] = []
        monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, limits: made.append(limits))
        return made

    return allow


def test_low_limit_is_raised(allowed: Callable[[int, int], list[tuple[int, int]]]) -> None:
    """As far as the connections need, and not beyond what is allowed."""
    made = allowed(1_024, 100_000)
    assert fitted_connections(10_000) == (10_000, 1_000)
    assert made == [(11_000 + RESERVED, 100_000)]


@pytest.mark.parametrize(("hard", "connections"), [(1_024, 698), (400, 272), (11_255, 9_999)])
def test_bound_is_fitted_to_what_is_allowed(
    allowed: Callable[[int, int], list[tuple[int, int]]],
    caplog: pytest.LogCaptureFixture,
    hard: int,
    connections: int,
) -> None:
    """Some descriptors are left for backups and the rest; the log names both bounds."""
    allowed(min(hard, 1_024), hard)
    assert fitted_connections(10_000) == (connections, connections // 10)
    assert f"up to {connections} public" in caplog.text
    assert str(hard) in caplog.text


def test_high_limit_is_left_alone(allowed: Callable[[int, int], list[tuple[int, int]]]) -> None:
    """Nothing is lowered."""
    for soft in (resource.RLIM_INFINITY, 1_000_000):
        assert allowed(soft, soft) == []
        assert fitted_connections(10_000) == (10_000, 1_000)
