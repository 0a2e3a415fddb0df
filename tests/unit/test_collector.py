"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from spotledger.ops.collector import COLLECTOR_THRESHOLDS, collect_seldom


@pytest.fixture(autouse=True)
def kept_collector() -> Iterator[None]:
    """Set the collector back to how it was."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class Circle:
    """Something that only the collector lets go of."""

    def __init__(self) -> None:
        self.itself = self


def test_collector_of_a_node_is_on_and_spares_what_was_there() -> None:
    """What is there when a node begins is exempt, garbage of before is gone, and the collector still comes by."""
    gc.unfreeze()
    garbage = weakref.ref(Circle())
    collect_seldom()
    assert garbage() is None
    assert gc.isenabled()
    assert gc.get_threshold() == COLLECTOR_THRESHOLDS
    assert gc.get_freeze_count() > 0
