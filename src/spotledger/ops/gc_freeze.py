"""
Garbage collection in a process that serves: the collector examines each object once, soon after it was made.

The objects of a service either live long (balances, entries, holds) or are freed by reference counting. By default,
Python's collector examines all living objects again and again: with pauses of 0.2 seconds, it took a sixth of a node's
time. Here an object that survives one collection is exempt from the next, so that each takes a millisecond or two. A
reference cycle that becomes garbage after its only collection stays until :func:`collect_all` finds it.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Final

#: Net allocations that trigger a collection.
YOUNG_OBJECTS: Final = 2_000
#: The pause before all objects are examined. It is doubled while that finds little, up to the longest.
COLLECT_ALL_SECONDS: Final = 3600.0
LONGEST_PAUSE_SECONDS: Final = 24 * 3600.0
#: Garbage that is worth stopping the process for.
WORTH_OBJECTS: Final = 10_000


def freeze_survivors() -> None:
    """Exempt all present objects from collection, and from now on every object that survives one collection."""
    if _freeze not in gc.callbacks:
        gc.callbacks.append(_freeze)
    gc.set_threshold(YOUNG_OBJECTS)
    collect_all()


def collect_all() -> int:
    """
    Examine all objects, and return how many of them were garbage.

    Stops the process for about half a second per million objects.
    """
    gc.unfreeze()
    return gc.collect()  # its callback freezes what survives


async def collect_all_regularly() -> None:
    """Run `collect_all` every hour, or as seldom as once a day while it finds little, until cancelled."""
    seconds = COLLECT_ALL_SECONDS
    while True:
        await asyncio.sleep(seconds)
        found = collect_all()
        seconds = COLLECT_ALL_SECONDS if found >= WORTH_OBJECTS else min(2 * seconds, LONGEST_PAUSE_SECONDS)


def _freeze(phase: str, _: dict[str, Any]) -> None:
    if phase == "stop":
        gc.freeze()
