"""Files that appear whole under their name, or not at all, and never in the place of another."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spotledger.errors import InvalidRequest, StoreUnavailable

#: Ends the name of a file that is being written; what a killed process left under such a name is written over.
PARTIAL: Final = ".partial"

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def write_atomically(file: Path, what: str) -> Iterator[Path]:
    """
    Give the path of an empty file beside *file*, to be filled in a ``with`` block; then it gets its name.

    Only its owner may read it. It is synced before it gets its name, and its folder afterwards. Where the block ends
    with an exception, nothing is left.

    Args:
        file: The name it is to have.
        what: What is written, such as ``"backup"``, for messages.

    Raises:
        InvalidRequest: There is a file of that name, or no folder for it.
        StoreUnavailable: The disk is full, or answers with an error.
    """
    check_new(file)
    partial = file.with_name(f".{file.name}{PARTIAL}")
    try:
        _remove(partial)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield partial
        sync(partial)
        _name(partial, file)
        sync(file.parent)
    except OSError as problem:
        raise _said(problem, file, what) from problem
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def check_new(file: Path) -> None:
    """
    Check that *file* can be made.

    Raises:
        InvalidRequest: There is a file of that name, or no folder for it.
    """
    if os.path.lexists(file):
        raise InvalidRequest(f"{file} is there already; a name that is not taken would pass", field="file")
    if not file.parent.is_dir():
        raise InvalidRequest(f"The folder {file.parent} is not there; make it, or name another one", field="file")


def move(source: Path, file: Path, what: str) -> None:
    """
    Give the file *source* the name *file*, on another disk too; what it was called before is gone then.

    Raises:
        InvalidRequest: There is a file of that name, or no folder for it.
        StoreUnavailable: The disk is full, or answers with an error; *source* is left.
    """
    check_new(file)
    try:
        os.link(source, file)
        sync(file.parent)
    except OSError:
        with write_atomically(file, what) as partial:
            shutil.copyfile(source, partial)
    source.unlink()


def sync(path: Path) -> None:
    """Bring the file or folder at *path* to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(partial: Path, file: Path) -> None:
    try:
        os.link(partial, file)  # unlike a renaming, it never takes the place of another file
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        check_new(file)
        partial.rename(file)


def _remove(partial: Path) -> None:
    """Remove *partial*, and what a database may have left beside it."""
    for ending in ("", "-journal", "-wal", "-shm"):
        partial.with_name(partial.name + ending).unlink(missing_ok=True)


def _said(problem: OSError, file: Path, what: str) -> InvalidRequest | StoreUnavailable:
    if problem.errno in _FULL:
        return StoreUnavailable(f"the {what} could not be written to {file}: the disk is full; make room")
    if problem.errno in (errno.EEXIST, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS):
        reason = os.strerror(problem.errno)
        return InvalidRequest(f"{file} cannot be made ({reason}); another name or folder would pass", field="file")
    return StoreUnavailable(f"the {what} could not be written to {file}: {os.strerror(problem.errno or errno.EIO)}")
