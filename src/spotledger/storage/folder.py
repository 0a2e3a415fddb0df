"""
The data folder: made on the first start, and owned by one process at a time.

The owner holds an ``flock`` on ``owner.lock`` in the folder. The system lets go of it when the process
ends, however it ends, so a killed owner leaves nothing that has to be cleaned up. The file's text, the
note, says who the owner is; it counts only while the lock is held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path

from spotledger.errors import DataFolderInUse, DataFolderUnusable

LOCK_FILE = "owner.lock"
NOTE_LIMIT_BYTES = 4096
#: A reader of the note holds a shared lock for an instant; an owner-to-be tries again for this long.
ACQUIRE_PATIENCE_SECONDS = 0.3
ACQUIRE_PAUSE_SECONDS = 0.02

_REASONS = {
    errno.EACCES: "this process may not use it; give it the right to, or name another folder",
    errno.EPERM: "this process may not use it; give it the right to, or name another folder",
    errno.EROFS: "it is read-only; name a folder that can be written",
    errno.ENOSPC: "its disk is full; make room, or name a folder on another disk",
    errno.EDQUOT: "its disk quota is used up; make room, or name another folder",
    errno.ENOTDIR: "it is not a folder; name one, or a path where one can be made",
    errno.EEXIST: "it is not a folder; name one, or a path where one can be made",
    errno.EISDIR: "a folder stands where a file of it should be",
    errno.ELOOP: "its path is a circle of links",
    errno.ENAMETOOLONG: "its path is too long",
}


def unusable(path: Path, problem: OSError) -> DataFolderUnusable:
    """Say in words why the data folder *path* cannot be used, from what the system answered."""
    reason = _REASONS.get(problem.errno or 0) or os.strerror(problem.errno or errno.EIO)
    where = f" (at {problem.filename})" if problem.filename and str(problem.filename) != str(path) else ""
    return DataFolderUnusable(f"The data folder {path} cannot be used: {reason}{where}.", path=str(path))


def make_folder(path: Path) -> None:
    """
    Make the folder *path*, readable by its owner only, unless it is there.

    Raises:
        DataFolderUnusable: There is something else at *path*, or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise unusable(path, problem) from None


def read_note(path: Path) -> str | None:
    """
    Give the note of the process that owns the folder *path* now, or None where nobody does.

    Raises:
        DataFolderUnusable: The lock file is there but cannot be read.
    """
    try:
        descriptor = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise unusable(path, problem) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, NOTE_LIMIT_BYTES, 0).decode("utf-8", "replace")
    except OSError as problem:
        raise unusable(path, problem) from None
    else:
        return None
    finally:
        os.close(descriptor)


class FolderLock:
    """
    The ownership of a data folder, for as long as it is held.

    A second lock on the same folder is refused, in this process as in any other.
    """

    def __init__(self, path: str | Path) -> None:
        """Name the folder; nothing is touched before :meth:`acquire`."""
        self.path = Path(path)
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether the folder is owned through this object."""
        return self._descriptor is not None

    def acquire(self, note: str | None = None) -> None:
        """
        Make the folder if it is not there, and own it.

        Args:
            note: A JSON object that says who the owner is; ``{"pid": …}`` where none is given.

        Raises:
            DataFolderInUse: Another owner has it; the message names it.
            DataFolderUnusable: The folder is read-only, full, or not a folder.
        """
        make_folder(self.path)
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise unusable(self.path, problem) from None
        try:
            self._take(descriptor)
            self._descriptor = descriptor
            self.write_note(note or json.dumps({"pid": os.getpid()}))
        except BaseException:
            self._descriptor = None
            os.close(descriptor)
            raise

    def _take(self, descriptor: int) -> None:
        deadline = time.monotonic() + ACQUIRE_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._in_use(descriptor) from None
                time.sleep(ACQUIRE_PAUSE_SECONDS)
            except OSError as problem:
                raise unusable(self.path, problem) from None
            else:
                return

    def _in_use(self, descriptor: int) -> DataFolderInUse:
        note = os.pread(descriptor, NOTE_LIMIT_BYTES, 0).decode("utf-8", "replace")
        facts: dict[str, object] = {}
        with contextlib.suppress(ValueError):
            found = json.loads(note)
            facts = found if isinstance(found, dict) else {}
        listening = facts.get("operator") or facts.get("public")
        who = f"process {facts['pid']}" if "pid" in facts else "another process"
        if listening:
            who += f", which answers at {listening}"
        return DataFolderInUse(
            f"The data folder {self.path} is owned by {who}. "
            "Stop that process first, or name another folder with --data.",
            path=str(self.path),
            **{name: value for name, value in facts.items() if name in ("pid", "operator", "public")},
        )

    def write_note(self, note: str) -> None:
        """
        Replace the note by *note*; only the owner may.

        Raises:
            DataFolderUnusable: The disk is full or read-only.
        """
        if self._descriptor is None:
            raise RuntimeError("write_note needs a lock that is held; call acquire first")
        data = note.encode()[:NOTE_LIMIT_BYTES]
        try:
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))
        except OSError as problem:
            raise unusable(self.path, problem) from None

    def release(self) -> None:
        """Let go of the folder; nothing happens where it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
