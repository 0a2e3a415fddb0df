"""What the child processes of audits have in common."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from contextlib import suppress


def run_child(work: Callable[[], None]) -> None:
    """Do the *work* of a child process, which ends when its parent no longer reads its standard output."""
    # The work allocates a lot, and no reference cycles; looking for them would take a tenth of its time.
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its children
    with suppress(BrokenPipeError):
        work()
        return
    os._exit(1)  # do not try to flush standard output
