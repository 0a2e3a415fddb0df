"""Steps that wait, driven by blocking and on an event loop: the same comes of them either way."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from spotledger.storage.steps import Readiness, Steps, at_once, drive, drive_on_loop

PATIENCE_SECONDS = 20.0


def drive_in_loop(steps: Steps[Any]) -> Any:
    """Drive *steps* on a loop of their own."""
    with ThreadPoolExecutor(1, thread_name_prefix="steps") as executor:
        return asyncio.run(drive_on_loop(steps, executor))


drivers = pytest.mark.parametrize("driver", [drive, drive_in_loop])
Driver = Callable[[Steps[Any]], Any]


@drivers
def test_steps_of_every_kind_are_answered_in_turn(driver: Driver) -> None:
    """A call gives what it returns, a socket whether it is ready in time; what the steps return is returned."""
    near, far = socket.socketpair()

    def steps() -> Steps[list[Any]]:
        soon = time.monotonic() + PATIENCE_SECONDS
        answers = [(yield None), (yield lambda: "called")]
        answers.append((yield Readiness(near.fileno(), False, time.monotonic() + 0.01)))
        answers.append((yield Readiness(near.fileno(), True, soon)))
        far.send(b"!")
        answers.append((yield Readiness(near.fileno(), False, soon)))
        answers.append((yield from at_once("at once")))
        return answers

    with near, far:
        assert driver(steps()) == [None, "called", False, True, True, "at once"]


@drivers
def test_error_of_a_step_is_the_steps_own_to_deal_with(driver: Driver) -> None:
    """What a call raises is raised where it was asked for; what the steps make of it goes on, or leaves them."""

    def refuse() -> None:
        raise LookupError("no")

    def steps(forgives: bool) -> Steps[str]:
        try:
            yield refuse
        except LookupError:
            yield None
            if not forgives:
                raise
        return "forgiven"

    assert driver(steps(True)) == "forgiven"
    with pytest.raises(LookupError, match="no"):
        driver(steps(False))


@pytest.mark.parametrize("waits_for", ["call", "socket"])
def test_cancelled_task_ends_its_steps_in_order_first(waits_for: str) -> None:
    """A task that is cancelled while a step waits goes on to the end of the steps: they hold a connection."""
    near, far = socket.socketpair()
    released = threading.Event()
    ended: list[str] = []

    def steps() -> Steps[str]:
        if waits_for == "call":
            yield lambda: released.wait(PATIENCE_SECONDS)
        else:
            yield Readiness(near.fileno(), False, time.monotonic() + PATIENCE_SECONDS)
        yield None
        ended.append("in order")
        return "done"

    async def test() -> None:
        with ThreadPoolExecutor(1) as executor:
            task = asyncio.create_task(drive_on_loop(steps(), executor))
            for _ in range(3):
                await asyncio.sleep(0.01)
                task.cancel()
            assert not ended
            released.set()
            far.send(b"!")
            assert await task == "done"

    with near, far:
        asyncio.run(asyncio.wait_for(test(), PATIENCE_SECONDS))
    assert ended == ["in order"]
