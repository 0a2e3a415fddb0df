"""
The one translation of what the operating system refuses: a file or folder that cannot be used.

SQLite's errors are translated in :mod:`spotledger.storage.sqlite.file`; those of the data folder's own files name the
folder (:mod:`spotledger.storage.folder`) and take their words from here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from spotledger.errors import FileUnusable

_REASONS: Final = {
    errno.ENOENT: "it does not exist; check its name, or create it",
    errno.EACCES: "this user may not use it; change its permissions, or name another one",
    errno.EPERM: "this user may not use it; change its permissions, or name another one",
    errno.EROFS: "its file system is read-only; name one that is writable",
    errno.ENOSPC: "the disk is full; make room, or use another disk",
    errno.EDQUOT: "the disk quota is exhausted; make room, or use another disk",
    errno.EFBIG: "it would become larger than a file may be here; use another disk",
    errno.ENOTDIR: "a part of its path is a file and not a folder; check its name",
    errno.EISDIR: "it is a folder and not a file; name a file",
    errno.EEXIST: "it is there already; name another one",
    errno.ELOOP: "its path is a loop of symbolic links; name another one",
    errno.ENAMETOOLONG: "its path is too long; name a shorter one",
    errno.EIO: "the disk answered with an error; look into the log of the system",
    errno.EMFILE: "this process has too many open files; raise its limit",
    errno.ENFILE: "the system has too many open files; raise its limit",
}
#: What is named where the system does not say which file it is about.
_NAMELESS: Final = "A file, or where the output goes,"


def reason_of(problem: OSError) -> str:
    """Return in words what is in the way, and what to do."""
    known = _REASONS.get(problem.errno or 0)
    return known or f"{problem.strerror or problem}; look into the log of the system"


def unusable_file(problem: OSError, path: str | Path | None = None, what: str = "") -> FileUnusable:
    """
    Return the error that says which file cannot be used, why, and what to do.

    Args:
        problem: What the system said.
        path: The file; the one that *problem* names if None.
        what: What the file is, such as ``"settings file"``.
    """
    named = path if path is not None else problem.filename
    if named is None:
        return FileUnusable(f"{_NAMELESS} cannot be used: {reason_of(problem)}.")
    subject = f"The {what} {os.fsdecode(named)}" if what else os.fsdecode(named)
    return FileUnusable(f"{subject} cannot be used: {reason_of(problem)}.", path=os.fsdecode(named))
