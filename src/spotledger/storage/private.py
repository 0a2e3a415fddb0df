"""
What a folder and its files must be like before they are believed: nobody but their user may use them.

A file that we name in a data folder is a regular file, no symbolic link; it belongs to the user of this process, or to
root; others may not write to it, and not even read it where it is a secret or the lock. The folder may be a link,
because the operator names it; others may not write in it. So nobody else can plant, replace or lock what a service
believes. Others may be allowed to read a ledger, as an auditor does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spotledger.errors import FileUnusable
from spotledger.os_errors import unusable_file

#: How often to look whether another process has let go of a folder.
LOCK_PAUSE_SECONDS: Final = 0.01

_ROOT: Final = 0
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
#: How much of a secret file is read: a secret and blanks around it.
_SECRET_FILE_BYTES: Final = 4096
#: What SQLite has beside a file.
BESIDE: Final = ("", "-wal", "-shm", "-journal")


@contextlib.contextmanager
def folder_lock(folder: Path, patience_seconds: float | None = None) -> Iterator[None]:
    """
    Keep other processes that lock *folder* out for the length of a ``with`` block; waits, so not on an event loop.

    Workers that share a data folder take turns with it; ``owner.lock`` is for the service as a whole.

    Raises:
        BlockingIOError: Another process held it for *patience_seconds*; with None, it is waited for.
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if patience_seconds is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _lock_in_time(descriptor, patience_seconds)
        yield
    finally:
        os.close(descriptor)


def _lock_in_time(descriptor: int, patience_seconds: float) -> None:
    until_s = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise
            time.sleep(LOCK_PAUSE_SECONDS)


def open_private(path: Path, flags: int, *, is_secret: bool) -> int:
    """
    Open the file *path* that we name in a folder, with mode 0600 if *flags* create it, and check it.

    Args:
        path: The file.
        flags: As for :func:`os.open`.
        is_secret: Whether others may not even read it, as a secret or a lock.

    Raises:
        FileUnusable: It is a link or no regular file, belongs to somebody else, or others may use it.
        OSError: The system refuses.
    """
    descriptor = open_no_link(path, flags)
    try:
        _check(path, os.fstat(descriptor), is_secret=is_secret)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_no_link(path: Path, flags: int) -> int:
    """Open the file *path* that we name in a folder, which may be somebody else's, as for an audit; raises as above."""
    if path.is_symlink():
        raise _a_link(path)
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def check_private(path: Path, *, is_secret: bool) -> None:
    """
    Check the file *path* that we name in a folder, as :func:`open_private` does; a missing one passes.

    It is for files that a library opens by their name. Nobody else can change them afterwards: the folder is checked.
    """
    try:
        status = path.lstat()
    except OSError:
        return  # opening it says what is in the way
    if stat.S_ISLNK(status.st_mode):
        raise _a_link(path)
    _check(path, status, is_secret=is_secret)


def check_private_database(path: Path) -> None:
    """Check the SQLite file *path* and what SQLite has beside it."""
    for ending in BESIDE:
        check_private(path.with_name(path.name + ending), is_secret=False)


def check_private_folder(path: Path, *, may_be_link: bool) -> None:
    """
    Check that the folder *path* belongs to the user of this process, or to root, and that others may not write in it.

    Raises:
        FileUnusable: It does not, they may, or it is a link and *may_be_link* is false.
        OSError: The system refuses.
    """
    if not may_be_link and path.is_symlink():
        raise _a_link(path)
    status = path.stat()
    _check_owner(path, status, "a folder")
    if status.st_mode & _OTHERS_WRITE:
        raise FileUnusable(
            f"The folder {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may put files in it; "
            f"0700 would pass: look for what is not yours in it, then chmod 700 {path}",
            path=str(path),
        )


def read_secret(path: Path, what: str, *, named_by_us: bool) -> str:
    """
    Return the text of a file with a secret, without the blanks around it.

    Args:
        path: The file.
        what: What it is, for messages.
        named_by_us: Whether we name it in a folder. What the operator names may be a link or a pipe.

    Raises:
        FileUnusable: It cannot be read, belongs to somebody else, or others may use it.
    """
    try:
        if named_by_us:
            descriptor = open_private(path, os.O_RDONLY, is_secret=True)
        else:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:  # noqa: PTH123 - a descriptor, not a path
            if not named_by_us:
                _check(path, os.fstat(descriptor), is_secret=True, may_be_pipe=True)
            return opened.read(_SECRET_FILE_BYTES).decode("utf-8", "replace").strip()
    except OSError as problem:
        raise unusable_file(problem, path, what) from None


def _check(path: Path, status: os.stat_result, *, is_secret: bool, may_be_pipe: bool = False) -> None:
    if not stat.S_ISREG(status.st_mode) and not (may_be_pipe and stat.S_ISFIFO(status.st_mode)):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise FileUnusable(f"{path} is {kind}; a regular file would pass.", path=str(path))
    _check_owner(path, status, "a file")
    forbidden, may = (_OTHERS, "use") if is_secret else (_OTHERS_WRITE, "write to")
    if status.st_mode & forbidden:
        raise FileUnusable(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may {may} it; "
            f"0600 would pass: chmod 600 {path}",
            path=str(path),
        )


def _check_owner(path: Path, status: os.stat_result, what: str) -> None:
    user = os.geteuid()
    if status.st_uid not in (user, _ROOT):
        raise FileUnusable(
            f"{path} belongs to {_name(status.st_uid)}; {what} of {_name(user)} would pass. Remove it if somebody else"
            f" put it there; else run this as {_name(status.st_uid)}, or chown it.",
            path=str(path),
        )


def _name(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"


def _a_link(path: Path) -> FileUnusable:
    return FileUnusable(
        f"{path} is a symbolic link; the file itself would pass. No file in a data folder may be a link.",
        path=str(path),
    )
