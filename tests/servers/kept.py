"""Processes that end with the test run, whatever ends it: each has a keeper (:mod:`servers.keeper`) of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import keeper
from servers.missing import ServerMissing

START_SECONDS = 30.0
#: How long we wait for an ended keeper, so that it is no zombie; one that others hold does not end.
REAP_SECONDS = 1.0
PORT_LAST = 65_535

#: What we hold, in the order in which it was started.
_held: list[Kept] = []
#: The ports that `free_port` gives, one after the other; any where None.
_ports: Iterator[int] | None = None


class ServerDidNotStart(Exception):
    """A server ended, or did not answer in time; the text holds what it wrote."""


class PortInUse(Exception):
    """A port that was asked for by its number is taken."""


def ordinary_identity() -> dict[str, Any]:
    """Return what ``subprocess`` takes to run as an ordinary user: nothing, if we are one."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def make_folder(identity: Mapping[str, Any]) -> Path:
    """Make a temporary folder for a server that runs as *identity*; its path is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="spotledger-"))
    give(folder, identity)
    return folder


def give(path: Path, identity: Mapping[str, Any]) -> None:
    """Make *identity* the owner of *path*."""
    if identity:
        os.chown(path, identity["user"], identity["group"])


def take_ports_from(first: int | None) -> None:
    """Have `free_port` give *first* and the ports after it; with None, any again."""
    global _ports
    _ports = None if first is None else iter(range(first, PORT_LAST + 1))


def free_port() -> int:
    """
    Return a TCP port of 127.0.0.1 that nothing listened at a moment ago.

    Raises:
        PortInUse: Ports were chosen with `take_ports_from`, and the next one is taken, or there is none.
    """
    with socket.socket() as probe:
        port = 0
        if _ports is not None:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = next(_ports, -1)
            if port < 0:
                raise PortInUse(f"there is no port beyond {PORT_LAST}")
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUse(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}") from None
        return int(probe.getsockname()[1])


@dataclass
class Kept:
    """A running process, and our hold on it."""

    pid: int
    folder: Path
    log: Path
    _hold: socket.socket
    #: Its keeper, if we have started that.
    keeper_pid: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended; a stopped one is alive."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        os.kill(self.pid, number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the process and to those that it has started (Linux)."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float = keeper.STOP_SECONDS) -> None:
        """Wait until it has ended."""
        until(lambda: not self.is_alive, seconds, f"process {self.pid} did not end")

    def let_go(self) -> None:
        """Let it go: it is ended, and its folder removed, before this returns, unless others hold it too."""
        with contextlib.suppress(ValueError):
            _held.remove(self)
        with contextlib.suppress(OSError):
            self._hold.shutdown(socket.SHUT_WR)
            self._hold.settimeout(60)
            while self._hold.recv(64):
                pass
        self._hold.close()
        self._reap_keeper()

    def _reap_keeper(self) -> None:
        """Leave no ended keeper behind as a zombie; one that others hold goes on."""
        deadline = time.monotonic() + REAP_SECONDS
        with contextlib.suppress(ChildProcessError):
            while self.keeper_pid is not None and time.monotonic() < deadline:
                if os.waitpid(self.keeper_pid, os.WNOHANG)[0]:
                    self.keeper_pid = None
                else:
                    time.sleep(0.01)

    def written(self) -> str:
        """Return the end of what it wrote."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


def start(
    command: Sequence[str | Path],
    *,
    folder: Path,
    identity: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    stop_signals: Sequence[str] = ("SIGTERM", "SIGKILL"),
    name: str = "server",
    remove: bool = True,
) -> Kept:
    """
    Start *command* in *folder*.

    Args:
        command: The program and its arguments.
        folder: Where it runs, and where ``<name>.log`` is written.
        identity: Whom it runs as; see `ordinary_identity`.
        environment: Its environment; ours where None.
        stop_signals: How it is asked to end, one signal after the other.
        name: Names the log and the keeper's socket; two processes in one folder need two names.
        remove: Whether *folder* is removed when it has ended.
    """
    log, place = folder / f"{name}.log", f"{name}.{keeper.SOCKET}"
    told = {
        "folder": str(folder), "command": [str(part) for part in command], "log": str(log), "socket": place,
        "identity": dict(identity or {}), "stop_signals": list(stop_signals), "remove": remove,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, json.dumps(told)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as output:
        if not output.readline():
            raise ServerDidNotStart(f"{command[0]} could not be started")
    _detach(process)
    held = hold(folder, name)
    if held is None:
        raise ServerDidNotStart(f"the keeper of {command[0]} ended at once")
    held.keeper_pid = process.pid
    return held


def _detach(process: subprocess.Popen[bytes]) -> None:
    """Let *process* go on without us, and without the warning that it does so."""
    process.returncode = 0


def hold(folder: Path, name: str = "server") -> Kept | None:
    """Hold what runs in *folder* under *name*, or return None if nothing does, or it is ending."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(START_SECONDS)
        channel.connect(str(folder / f"{name}.{keeper.SOCKET}"))
        told = channel.recv(64)
    except OSError:
        told = b""
    if not told:
        channel.close()
        return None
    held = Kept(int(told), folder, folder / f"{name}.log", channel)
    _held.append(held)
    return held


@contextlib.contextmanager
def all_ended() -> Iterator[None]:
    """End every process that is started in the block, the last one first, if that was not done already."""
    first = len(_held)
    try:
        yield
    finally:
        for held in reversed(_held[first:]):
            held.let_go()


@contextlib.contextmanager
def in_one_folder() -> Iterator[Path]:
    """
    Have every temporary folder made in one new folder, and leave nothing behind.

    At the end of the block all processes are ended and the folder is removed. If we are killed, their keepers do it.

    Raises:
        ServerMissing: Servers run as somebody else, who cannot enter the folder.
    """
    base = Path(tempfile.mkdtemp(prefix="spotledger-"))
    base.chmod(0o711)
    if subprocess.run(["test", "-x", base], check=False, cwd="/", **ordinary_identity()).returncode:
        base.rmdir()
        raise ServerMissing(
            f"the user that PostgreSQL runs as cannot enter {base.parent}; a TMPDIR that everybody can enter would pass"
        )
    own = start([sys.executable, "-I", "-c", "import signal; signal.pause()"], folder=base, name="base")
    before, tempfile.tempdir = tempfile.tempdir, str(base)
    try:
        with all_ended():
            yield base
    finally:
        tempfile.tempdir = before
        for place in base.glob(f"*/*.{keeper.SOCKET}"):  # one whose start was interrupted
            stray = hold(place.parent, place.name.removesuffix(f".{keeper.SOCKET}"))
            if stray is not None:
                stray.let_go()
        own.let_go()


def until(
    is_so: Callable[[], bool], seconds: float = 30, otherwise: str = "it did not come about", step: float = 0.02
) -> None:
    """Wait until *is_so*; raise TimeoutError with *otherwise* if it is not within *seconds*."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} within {seconds:g} s")
        time.sleep(step)


def until_ready(kept: Kept, is_ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """
    Wait until *is_ready*.

    Raises:
        ServerDidNotStart: It ended first, or it was not ready in time; the process has been let go.
    """
    try:
        until(lambda: is_ready() or not kept.is_alive, seconds, "not ready")
        if kept.is_alive:
            return
        problem = "it ended"
    except TimeoutError as late:
        problem = str(late)
    written = kept.written()
    kept.let_go()
    raise ServerDidNotStart(f"{problem}; it wrote: {written}")


@contextlib.contextmanager
def shared(base: Path, name: str, make: Callable[[], tuple[Kept, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """
    Hold one server together with the other processes of the test run.

    Args:
        base: A folder that all of them know.
        name: Names the server.
        make: Starts it, and returns facts about it that JSON can hold.
    """
    note = base / f"{name}.json"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = json.loads(note.read_text()) if note.exists() else None
        held = hold(Path(facts["folder"])) if facts else None
        if facts is None or held is None:
            held, facts = make()
            facts["folder"] = str(held.folder)
            note.write_text(json.dumps(facts))
    try:
        yield facts
    finally:
        held.let_go()


def program(name: str) -> str | None:
    """Return the path of the installed program *name*, also from where only root's shell would look."""
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))
