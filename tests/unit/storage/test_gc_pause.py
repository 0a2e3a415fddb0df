"""Functions that run without the garbage collector, and leave it as they found it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from spotledger.storage.gc_pause import gc_paused


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    """Enable the collector before a test, and put it back afterwards."""
    enabled = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if enabled else gc.disable)()


@gc_paused
def collecting(depth: int = 0) -> list[bool]:
    """Say whether the collector runs, here and after each of *depth* calls of this function within it."""
    return [gc.isenabled(), *(collecting(depth - 1) if depth else []), gc.isenabled()]


def test_collector_rests_within_the_function_and_runs_after_it() -> None:
    """A function within a function does not switch it on again too early."""
    assert collecting(depth=2) == [False] * 6
    assert gc.isenabled()


def test_collector_runs_again_after_an_exception() -> None:
    """A function that fails does not leave the process without its collector."""

    @gc_paused
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gc.isenabled()


def test_collector_that_was_off_stays_off() -> None:
    """Whoever switched it off before decides when it runs again."""
    gc.disable()
    assert collecting() == [False, False]
    assert not gc.isenabled()
