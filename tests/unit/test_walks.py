"""
The two walks of `docs/architecture.md`, traced: the functions of a signed read and a deposit below the HTTP server.

Every function that is entered is followed, in whichever thread, and its lines are counted once. A *move* goes from a
function of one file to a function of another; a *return* is a move to a file that was left before. The bounds only go
down: raising one needs a decision in `docs/decisions/`.
"""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import spotledger
from spotledger.http.public.app import PublicApp
from spotledger.security.gate import Gate
from support_operator import operator_api
from support_public import document, service, signed_query

PACKAGE = Path(spotledger.__file__).parent
#: The HTTP server and the in-process transport are not part of a walk.
SERVER = {"http/h1/connection.py", "http/h1/server.py", "http/h1/transport.py"}


class Bound(NamedTuple):
    """The bounds of a walk: lines of the functions entered, files, and returns to a file that was left."""

    lines: int
    files: int
    returns: int


# Raised for the addresses and labels of tokens (decision 17), the memory of a restart (18), the access log (19), and
# groups that overlap (22).
READ = Bound(lines=556, files=18, returns=25)
WRITE = Bound(lines=1422, files=36, returns=90)


@dataclass
class Walk:
    """The functions of the package that were entered, in order, while the walk was recording."""

    recording: bool = False
    entered: list[tuple[str, CodeType]] = field(default_factory=list)

    def follow(self, frame: FrameType, event: str, _: Any) -> None:
        """Record a call; for `sys.setprofile`."""
        if self.recording and event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE) and (name := path.relative_to(PACKAGE).as_posix()) not in SERVER:
                self.entered.append((name, frame.f_code))

    @property
    def files(self) -> list[str]:
        """The files in the order in which they were first entered."""
        return list(dict.fromkeys(name for name, _ in self.entered))

    @property
    def functions(self) -> int:
        """How many functions were entered."""
        return len({code for _, code in self.entered})

    @property
    def lines(self) -> int:
        """How many lines the functions have, each line counted once."""
        return len({(name, line) for name, code in self.entered for line in lines_of(name, code.co_firstlineno)})

    @property
    def moves(self) -> int:
        """How often the walk went from one file to another."""
        return sum(before != after for (before, _), (after, _) in zip(self.entered, self.entered[1:], strict=False))

    @property
    def returns(self) -> int:
        """How many of the moves went to a file that was left before."""
        return self.moves - (len(self.files) - 1)

    def check(self, name: str, bound: Bound) -> None:
        """Print the walk and hold it to *bound*."""
        print(f"{name}: {self.lines} lines, {len(self.files)} files, {self.returns} returns")  # noqa: T201
        print(*(f"  {file}" for file in self.files), sep="\n")  # noqa: T201
        assert self.lines <= bound.lines
        assert len(self.files) <= bound.files
        assert self.returns <= bound.returns


@cache
def spans_of(name: str) -> dict[int, range]:
    """Return the lines of each function in the file *name*, by the first line that its code object names."""
    spans = {}
    for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            spans[first] = range(first, node.end_lineno + 1)
    return spans


def lines_of(name: str, first: int) -> range:
    """Return the lines of the function that begins at *first*; an inner expression is a line of its own."""
    return spans_of(name).get(first, range(first, first + 1))


@contextmanager
def followed() -> Iterator[Walk]:
    """Follow the calls of this thread and of all threads that start meanwhile."""
    walk = Walk()
    before = sys.getprofile()
    threading.setprofile(walk.follow)
    sys.setprofile(walk.follow)
    try:
        yield walk
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def recorded(walk: Walk, act: Callable[[], Any]) -> Any:
    """Record what *act* enters."""
    walk.recording = True
    try:
        return act()
    finally:
        walk.recording = False


def test_walk_of_a_signed_read_stays_within_its_bound(tmp_path: Path) -> None:
    """The first getBalance with a key, the longest way, passes few functions in few files and seldom comes back."""
    with followed() as walk, service(tmp_path) as made:
        answer = recorded(walk, lambda: made.ask(signed_query()))
    assert document(answer)["code"] == 200
    walk.check("read", READ)


def test_walk_of_a_deposit_stays_within_its_bound(tmp_path: Path) -> None:
    """A deposit passes few functions in few files, and seldom comes back to one."""
    deposit = {"customer": "alice", "coin": "usdt", "amount": "1"}
    walks = []
    with followed() as walk, operator_api(tmp_path) as api:
        api.set_up()
        api.must("/v1/deposits", deposit)
        for _ in range(5):  # on a busy machine a look at the clocks may take longer, and then is made again
            answer = recorded(walk, lambda: api.must("/v1/deposits", deposit))
            assert answer["balances"]
            walks.append(Walk(entered=walk.entered[:]))
            walk.entered.clear()
    min(walks, key=lambda one: (one.lines, one.returns)).check("write", WRITE)


def test_walk_counts_moves_returns_and_lines() -> None:
    """From one file to another and back are two moves and one return; a function entered twice has its lines once."""
    system = ("http/public/app.py", PublicApp.answer.__code__)
    other = ("security/gate.py", Gate.peer.__code__)
    walk = Walk(entered=[system, other, system])
    assert (walk.moves, walk.returns, len(walk.files), walk.functions) == (2, 1, 2, 2)
    assert walk.lines == Walk(entered=[system]).lines + Walk(entered=[other]).lines > 2
