"""
Steps: work that waits for a disk or a server, written once for blocking callers and for the event loop.

The work is a generator. It yields what it waits for and receives the result. A driver does the waiting: :func:`drive`
blocks, :func:`drive_on_loop` lets other tasks of the loop run.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Readiness(NamedTuple):
    """A wait until a socket is readable, or writable if asked for; its result is False if it timed out."""

    socket: int
    or_writable: bool
    #: The deadline, in seconds of :func:`time.monotonic`.
    until: float


#: What is waited for: a socket; a blocking call, whose result is sent back; or None, to let other tasks run.
Step: TypeAlias = Readiness | Callable[[], Any] | None
#: Work that is done in steps, and returns a value.
Steps: TypeAlias = Generator[Step, Any, T]


def at_once(value: T) -> Steps[T]:
    """Return work that waits for nothing and returns *value*."""
    return value
    yield  # makes it a generator


def drive(steps: Steps[T]) -> T:
    """Run *steps* to the end; block while they wait."""
    answer: Any = None
    failed: BaseException | None = None
    while True:
        try:
            step = steps.send(answer) if failed is None else steps.throw(failed)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = failed = None
        try:
            if isinstance(step, Readiness):
                answer = _is_ready(step)
            elif step is not None:
                answer = step()
        except BaseException as error:  # noqa: BLE001 - any error is thrown into the steps
            failed = error


def _is_ready(wait: Readiness) -> bool:
    poll = select.poll()
    poll.register(wait.socket, select.POLLIN | (select.POLLOUT if wait.or_writable else 0))
    left = wait.until - time.monotonic()
    return left > 0 and bool(poll.poll(left * 1000))


async def drive_on_loop(steps: Steps[T], executor: Executor) -> T:
    """
    Run *steps* to the end; other tasks of the loop run while they wait, and blocking calls run in *executor*.

    Cancelling the task does not interrupt a step: the steps must leave their connection in order.
    """
    answer: Any = None
    failed: BaseException | None = None
    while True:
        try:
            step = steps.send(answer) if failed is None else steps.throw(failed)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = failed = None
        try:
            if isinstance(step, Readiness):
                answer = await _is_ready_on_loop(step)
            elif step is not None:
                answer = await call_in(executor, step)
            else:
                await _next_iteration()
        except BaseException as error:  # noqa: BLE001 - any error is thrown into the steps
            failed = error


async def call_in(executor: Executor, call: Callable[[], T]) -> T:
    """Run *call* in *executor*, and wait for it even if cancelled."""
    return await awaited(asyncio.get_running_loop().run_in_executor(executor, call))


async def _next_iteration() -> None:
    loop = asyncio.get_running_loop()
    passed: asyncio.Future[bool] = loop.create_future()
    loop.call_soon(_settle, passed, True)
    await awaited(passed)


async def _is_ready_on_loop(wait: Readiness) -> bool:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(max(0.0, wait.until - time.monotonic()), _settle, ready, False)
    loop.add_reader(wait.socket, _settle, ready, True)
    if wait.or_writable:
        loop.add_writer(wait.socket, _settle, ready, True)
    try:
        return await awaited(ready)
    finally:
        timer.cancel()
        loop.remove_reader(wait.socket)
        if wait.or_writable:
            loop.remove_writer(wait.socket)


def _settle(ready: asyncio.Future[bool], is_ready: bool) -> None:
    if not ready.done():
        ready.set_result(is_ready)


async def awaited(future: asyncio.Future[T]) -> T:
    """Wait for *future* even if cancelled; ``Task.cancelling`` still counts the cancellation."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(future)
    return future.result()
