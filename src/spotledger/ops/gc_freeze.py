"""
The garbage collector of a process that serves: it looks at each object once, soon after it was made.

What a service makes lives long (balances, entries, holds) or goes without the collector, by its count of references.
Python's own way walks over all that lives again and again, the more the more there is: pauses of 0.2 seconds, and a
sixth of a node's work. Here what has survived one look is exempt from the next, so a look takes a millisecond or two
and none is longer. What became garbage in a circle only after its look stays, until :func:`collect_all` finds it.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Final

#: How many objects more may be made than were let go of before the collector looks at them.
YOUNG_OBJECTS: Final = 2_000
#: How often everything is looked at.
LOOK_SECONDS: Final = 3600.0


def freeze_survivors() -> None:
    """Exempt what is there by now, and from now on whatever survives one look."""
    if _exempt not in gc.callbacks:
        gc.callbacks.append(_exempt)
    gc.set_threshold(YOUNG_OBJECTS)
    collect_all()


def collect_all() -> int:
    """
    Look at everything, and return how many objects were garbage.

    Holds the process up for half a second or so for each million objects.
    """
    gc.unfreeze()
    return gc.collect()  # what survives it is exempt


async def collect_all_hourly() -> None:
    """Look at everything again and again, for as long as the service runs."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        collect_all()


def _exempt(phase: str, _: dict[str, Any]) -> None:
    if phase == "stop":
        gc.freeze()
