"""
Steps: work that has to wait for a disk or a server, written once for whoever blocks and for an event loop.

The work is a generator. It yields what it waits for and is sent what came of it; who drives it does the waiting:
:func:`drive` blocks, :func:`drive_on_loop` lets the other tasks of the loop go on meanwhile.
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
    """A wait until a socket has something to read, or takes more where asked for; answered with False if too late."""

    socket: int
    or_writable: bool
    #: A time of the clock :func:`time.monotonic`, in seconds.
    until: float


#: What is waited for: a socket; a call that blocks, answered with what it returns; or, None, anybody else's turn.
Step: TypeAlias = Readiness | Callable[[], Any] | None
#: Work that is done in steps, and what it returns at its end.
Steps: TypeAlias = Generator[Step, Any, T]


def at_once(value: T) -> Steps[T]:
    """Give work that has nothing to wait for and returns *value*."""
    return value
    yield  # what makes it a generator


def drive(steps: Steps[T]) -> T:
    """Do *steps* to the end, and block where they wait."""
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
        except BaseException as error:  # noqa: BLE001 - the steps are told, whatever it is
            failed = error


def _is_ready(wait: Readiness) -> bool:
    poll = select.poll()
    poll.register(wait.socket, select.POLLIN | (select.POLLOUT if wait.or_writable else 0))
    left = wait.until - time.monotonic()
    return left > 0 and bool(poll.poll(left * 1000))


async def drive_on_loop(steps: Steps[T], executor: Executor) -> T:
    """
    Do *steps* to the end, and let the loop go on where they wait; what blocks is called in *executor*.

    A step under way is waited for even if the task is cancelled: the steps have a connection, and end with it in order.
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
        except BaseException as error:  # noqa: BLE001 - the steps are told, whatever it is
            failed = error


async def call_in(executor: Executor, call: Callable[[], T]) -> T:
    """Do *call* in *executor*, and wait for it even if cancelled meanwhile."""
    return await _awaited(asyncio.get_running_loop().run_in_executor(executor, call))


async def _next_iteration() -> None:
    loop = asyncio.get_running_loop()
    turned: asyncio.Future[bool] = loop.create_future()
    loop.call_soon(_settle, turned, True)
    await _awaited(turned)


async def _is_ready_on_loop(wait: Readiness) -> bool:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(max(0.0, wait.until - time.monotonic()), _settle, ready, False)
    loop.add_reader(wait.socket, _settle, ready, True)
    if wait.or_writable:
        loop.add_writer(wait.socket, _settle, ready, True)
    try:
        return await _awaited(ready)
    finally:
        timer.cancel()
        loop.remove_reader(wait.socket)
        if wait.or_writable:
            loop.remove_writer(wait.socket)


def _settle(ready: asyncio.Future[bool], is_ready: bool) -> None:
    if not ready.done():
        ready.set_result(is_ready)


async def _awaited(future: asyncio.Future[T]) -> T:
    """Wait for *future* even if cancelled meanwhile; the task still knows that it was."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(future)
    return future.result()
