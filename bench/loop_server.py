"""
The service with a watch on its event loop: ``python -m bench.loop_server FLAG …`` takes the flags of ``serve``.

Every callback of the loop is timed: how long it held the loop, which is its wall time less the time in which the thread
waited for a core (as Linux counts it per thread), and how much processor time it used of that. So other programs on the
machine are left out, and a wait for a file, a lock or another thread of this process is not. Runs on asyncio's own
loop, whose callbacks can be wrapped. Lines on standard input are commands; each is answered with one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

from spotledger.cli.main import main as spotledger
from spotledger.http import serve
from spotledger.ops.gc_freeze import collect_all

#: A callback that held the loop this long is listed by name.
LISTED_NS = 1_000_000
LISTED = 400
BEAT_SECONDS = 0.005


class Watch:
    """What was seen since the last report."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._schedule = -1
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.callbacks = 0
        #: How late a timer was at most, in ns, because of many callbacks in a row or a thread that computes.
        self.late = 0
        self.listed: list[tuple[int, int, str]] = []

    def run(self, handle: asyncio.Handle, run: Any) -> None:
        """Run one callback, and note it."""
        if self._schedule < 0:
            self.loop = asyncio.get_running_loop()
            self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
            self._beat(self.loop.time(), self._waited_ns())
        waited, used, began = self._waited_ns(), time.thread_time_ns(), time.perf_counter_ns()
        try:
            run(handle)
        finally:
            passed = time.perf_counter_ns() - began
            self.callbacks += 1
            if passed >= LISTED_NS:
                held = passed - (self._waited_ns() - waited)
                if held >= LISTED_NS:
                    self.listed.append((held, time.thread_time_ns() - used, name_of(handle)))

    def _beat(self, due: float, waited: int) -> None:
        """Run every few ms, and note how late that is, without the time in which the thread waited for a core."""
        assert self.loop is not None
        late = int(1e9 * (self.loop.time() - due))
        self.late = max(self.late, late - (self._waited_ns() - waited))
        self.loop.call_later(BEAT_SECONDS, self._beat, self.loop.time() + BEAT_SECONDS, self._waited_ns())

    def _waited_ns(self) -> int:
        return int(os.pread(self._schedule, 100, 0).split()[1])

    def report(self) -> dict[str, Any]:
        """Return what was seen, and begin anew."""
        found = {"callbacks": self.callbacks, "late": self.late, "listed": sorted(self.listed, reverse=True)[:LISTED]}
        self.clear()
        return found


def name_of(handle: asyncio.Handle) -> str:
    """Return what a callback is: of a step of a task the name of its coroutine."""
    callback: Any = getattr(handle, "_callback")  # noqa: B009 - it is private
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return str(getattr(task.get_coro(), "__qualname__", task))
    return str(getattr(callback, "__qualname__", callback))


def obey(watch: Watch) -> None:
    """Answer the commands that come on standard input."""
    for line in sys.stdin:
        if line.strip() == "collect" and watch.loop is not None:
            watch.loop.call_soon_threadsafe(collect_all)
        print(json.dumps(watch.report()), file=sys.stderr, flush=True)


def main() -> None:
    """Serve, watched."""
    watch = Watch()
    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        watch.run(handle, run)

    setattr(asyncio.Handle, "_run", watched)  # noqa: B010 - it is private, and its type is that of the method
    setattr(serve, "_loop_factory", lambda: asyncio.SelectorEventLoop)  # noqa: B010
    threading.Thread(target=obey, args=(watch,), daemon=True).start()
    sys.argv[1:1] = ["serve", "--json"]
    spotledger()


if __name__ == "__main__":
    main()
