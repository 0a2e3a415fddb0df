"""Keeping the garbage collector at rest while many objects are made that are no garbage."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def gc_paused(function: Callable[P, R]) -> Callable[P, R]:
    """
    Have *function* run without the collector, which would walk again and again over all that it makes.

    For functions that make no circles of objects: what they let go of is then freed at once without it.
    """

    @wraps(function)
    def at_rest(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return at_rest
