"""The garbage collector of a process that serves."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from spotledger.ops import gc_freeze
from spotledger.ops.gc_freeze import WORTH_OBJECTS, YOUNG_OBJECTS, collect_all, collect_all_regularly, freeze_survivors


@pytest.fixture(autouse=True)
def kept_collector() -> Iterator[None]:
    """Set the collector back to how it was."""
    thresholds = gc.get_threshold()
    yield
    gc.callbacks.remove(gc_freeze._freeze)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class Circle:
    """Something that only the collector lets go of."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_at_first_is_looked_at_and_exempt() -> None:
    """Garbage of before is gone, what lives is exempt, and the collector is on."""
    gc.unfreeze()
    garbage = weakref.ref(Circle())
    freeze_survivors()
    assert garbage() is None
    assert gc.isenabled()
    assert gc.get_threshold()[0] == YOUNG_OBJECTS
    assert gc.get_freeze_count() > 0


def test_young_garbage_is_found_and_what_lives_is_looked_at_once() -> None:
    """A circle that is let go of before its look is gone after it; whatever survives the look is exempt from others."""
    freeze_survivors()
    garbage = weakref.ref(Circle())
    kept = [[number] for number in range(3 * YOUNG_OBJECTS)]
    assert garbage() is None
    before = gc.get_freeze_count()
    gc.collect(0)
    assert gc.get_freeze_count() > before
    assert not any(kept is found for found in gc.get_objects())
    assert all(gc.get_count()[generation] == 0 for generation in (1, 2))


def test_garbage_of_what_was_exempt_is_found_when_everything_is_looked_at() -> None:
    """A circle that outlived its look stays until then, and everything is exempt again afterwards."""
    freeze_survivors()
    circle: Circle | None = Circle()
    garbage = weakref.ref(circle)
    gc.collect(0)
    circle = None
    gc.collect()
    assert garbage() is not None
    assert collect_all() > 0
    assert garbage() is None
    assert gc.get_freeze_count() > 0


def test_everything_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the service runs, and no longer."""
    monkeypatch.setattr(gc_freeze, "COLLECT_ALL_SECONDS", 0.01)
    freeze_survivors()

    async def serve() -> None:
        looking = asyncio.create_task(collect_all_regularly())
        for _ in range(2):
            garbage = weakref.ref(Circle())
            gc.freeze()
            async with asyncio.timeout(20):
                while garbage() is not None:
                    await asyncio.sleep(0.01)
        looking.cancel()

    asyncio.run(serve())


def test_everything_is_looked_at_more_seldom_while_little_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause doubles up to a day, and is an hour again after a look that was worth it."""
    freeze_survivors()
    found = iter([0, WORTH_OBJECTS - 1, 0, 0, 0, 0, WORTH_OBJECTS, 0])
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds / 3600)

    monkeypatch.setattr(gc_freeze, "collect_all", lambda: next(found))
    monkeypatch.setattr(gc_freeze.asyncio, "sleep", sleep)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(collect_all_regularly())
    assert pauses == [1, 2, 4, 8, 16, 24, 24, 1, 2]
