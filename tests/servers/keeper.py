"""
Keep one server running for as long as somebody holds it; a program of its own, started by :mod:`servers.kept`.

Whoever wants the server connects to a socket in its folder and stays connected. When the last one has gone, also
because it was killed, the server and all that it started are ended and the folder is removed. So nothing is left
behind, however a test run ends. One argument: a JSON object, as `servers.kept.start` writes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FIRST_HOLD_SECONDS = 30.0
#: How long the server has after each signal that asks it to end, but the last.
STOP_SECONDS = 10.0
REAP_SECONDS = 0.1
#: How long a folder may take to go away while what is in it still ends.
REMOVE_SECONDS = 30.0
SOCKET = "keeper"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Start the server, tell its pid on standard output, keep it, and end it."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    folder = Path(told["folder"])
    path = folder / told["socket"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(64)
        server = _start(told)
        sys.stdout.write(f"{server.pid}\n")
        sys.stdout.close()
        last = _wait_until_let_go(listener, server)
        _end(server, [signal.Signals[name] for name in told["stop_signals"]])
        if told["remove"]:
            _remove(folder)
        else:
            path.unlink(missing_ok=True)
        if last is not None:
            last.close()


def _start(told: dict[str, Any]) -> subprocess.Popen[bytes]:
    death_signal = signal.Signals[told["stop_signals"][0]]

    def restore() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, death_signal)

    with Path(told["log"]).open("ab") as log:
        return subprocess.Popen(
            told["command"], cwd=told["folder"], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True, preexec_fn=restore, **told["identity"],
        )  # fmt: skip


def _wait_until_let_go(listener: socket.socket, server: subprocess.Popen[bytes]) -> socket.socket | None:
    """Take holders until none is left; return the last one, which waits for the end."""
    holders: set[socket.socket] = set()
    first_hold_until = time.monotonic() + FIRST_HOLD_SECONDS
    while holders or time.monotonic() < first_hold_until:
        readable, _, _ = select.select([listener, *holders], [], [], REAP_SECONDS)
        server.poll()
        _reap_strangers(server.pid)
        for one in readable:
            if one is listener:
                holder, _ = listener.accept()
                with contextlib.suppress(OSError):
                    holder.sendall(f"{server.pid}\n".encode())
                holders.add(holder)
            elif not _still_there(one):
                holders.discard(one)
                if not holders:
                    return one
                one.close()
    return None


def _still_there(holder: socket.socket) -> bool:
    try:
        return bool(holder.recv(64))
    except OSError:
        return False


def _end(server: subprocess.Popen[bytes], numbers: list[signal.Signals]) -> None:
    for number in numbers:
        if server.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGCONT)
            os.kill(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
    # Whatever the server started and left is ours now (Linux): a backend that was stopped, a server of a supervisor.
    for _ in range(100):
        left = _children()
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap_strangers(0)
        time.sleep(0.02)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + REMOVE_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(REAP_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _reap_strangers(server: int) -> None:
    for pid in _children():
        if pid != server:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
