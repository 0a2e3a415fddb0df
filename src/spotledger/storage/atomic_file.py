"""Files that appear under their name complete or not at all, and never replace another file."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spotledger.errors import FileUnusable, InvalidRequest, SpotledgerError, StoreUnavailable
from spotledger.os_errors import unusable_file

#: The suffix of a file that is being written; one that a killed process left behind is overwritten.
PARTIAL: Final = ".partial"

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def write_atomically(file: Path, what: str) -> Iterator[Path]:
    """
    Yield the path of an empty file to fill in a ``with`` block, and name it *file* at the end.

    Only its owner may read it. The file is synced before it is renamed, and its folder afterwards. If the block raises,
    nothing is left.

    Args:
        file: The final path.
        what: What is written, such as ``"backup"``, for messages.

    Raises:
        InvalidRequest: *file* exists.
        FileUnusable: Its folder does not exist, or may not be used.
        StoreUnavailable: The disk is full or fails.
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
        raise _translate(problem, file, what) from problem
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def check_new(file: Path) -> None:
    """
    Check that *file* can be created.

    Raises:
        InvalidRequest: *file* exists.
        FileUnusable: Its folder does not exist, or may not be used.
    """
    if os.path.lexists(file):
        raise InvalidRequest(f"{file} is there already; another name would pass", field="file")
    if not file.parent.is_dir():
        raise FileUnusable(f"The folder {file.parent} does not exist; create it, or name another one.", path=str(file))


def move(source: Path, file: Path, what: str) -> None:
    """
    Move *source* to *file*, which may be on another disk.

    Raises:
        InvalidRequest: *file* exists.
        FileUnusable: Its folder does not exist, or may not be used.
        StoreUnavailable: The disk is full or fails; *source* stays.
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
    """Sync the file or folder at *path* to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(partial: Path, file: Path) -> None:
    try:
        os.link(partial, file)  # unlike a rename, it never replaces another file
    except OSError as problem:
        if problem.errno not in _NO_LINKS:
            raise
        check_new(file)
        partial.rename(file)


def _remove(partial: Path) -> None:
    """Remove *partial* and the files that SQLite may have left beside it."""
    for ending in ("", "-journal", "-wal", "-shm"):
        partial.with_name(partial.name + ending).unlink(missing_ok=True)


def _translate(problem: OSError, file: Path, what: str) -> SpotledgerError:
    if problem.errno in _FULL:
        return StoreUnavailable(f"the {what} could not be written to {file}: the disk is full; make room")
    if problem.errno == errno.EEXIST:
        return InvalidRequest(f"{file} is there already; another name would pass", field="file")
    if problem.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP):
        return unusable_file(problem, file)
    return StoreUnavailable(f"the {what} could not be written to {file}: {os.strerror(problem.errno or errno.EIO)}")
