"""
The data folder: its files, and the lock of the one process that owns it.

    DIR/                 mode 0700, made on the first start
      ledger.db          the ledger, access keys (their secrets sealed) and tokens (their hashes)
      master.key         64 hex digits, mode 0600: opens the sealed secrets; never made where one is given otherwise
      operator.token     mode 0600: the first operator token, with every scope; left alone once it exists
      owner.lock         locked by the owner; its text, the note, says who the owner is and where it answers

The lock is an ``flock``. The system releases it when the process ends, however it ends, so a killed owner leaves
nothing to clean up. The note counts only while the lock is held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.errors import DataFolderInUse, DataFolderUnusable, MasterKeyRefused
from spotledger.security import cipher
from spotledger.security.tokens import TOKEN_BYTES
from spotledger.storage.atomic_file import sync

#: What the name of every environment variable of the service begins with.
VARIABLE_PREFIX: Final = "SPOTLEDGER_"
LEDGER_FILE: Final = "ledger.db"
MASTER_KEY_FILE: Final = "master.key"
TOKEN_FILE: Final = "operator.token"  # noqa: S105 - a name, no token
MASTER_KEY_VARIABLE: Final = f"{VARIABLE_PREFIX}MASTER_KEY"

_TOKEN = re.compile(r"\A[0-9A-Fa-f]{64}\Z")
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


def _facts_in(note: str) -> dict[str, Any]:
    """Return the JSON object that *note* is; an empty one for the note of another program."""
    with contextlib.suppress(ValueError):
        found = json.loads(note)
        if isinstance(found, dict):
            return found
    return {}


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
        facts = _facts_in(note)
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


class Owner(NamedTuple):
    """The process that owns a data folder, and where it answers; None where it does not listen."""

    pid: int
    public_url: str | None = None
    operator_url: str | None = None

    def note(self) -> str:
        """Return the owner as the note in the lock file has it."""
        facts = {"pid": self.pid, "public": self.public_url, "operator": self.operator_url}
        return json.dumps({name: value for name, value in facts.items() if value is not None})


def read_owner(folder: Path) -> Owner | None:
    """Return who owns *folder* now, or None where nobody does; the note of another program counts as an owner."""
    note = read_note(folder)
    if note is None:
        return None
    facts = _facts_in(note)
    return Owner(int(facts.get("pid", 0)), facts.get("public"), facts.get("operator"))


def write_secret_file(file: Path, text: str) -> None:
    """
    Write *text* to the new file *file*, which only its owner may read from its first instant on.

    It appears whole and synced, or not at all.

    Raises:
        DataFolderUnusable: The disk is full or read-only.
        FileExistsError: There is a file already; it is left as it is.
    """
    if file.exists():
        raise FileExistsError(file)
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as opened:  # noqa: PTH123 - a descriptor, not a path
            opened.write(text + "\n")
            opened.flush()
            os.fsync(descriptor)
        beside.rename(file)
        sync(file.parent)
    except OSError as problem:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise unusable(file.parent, problem) from None


def load_master_key(folder: Path, file: Path | None, environ: Mapping[str, str], *, may_make: bool) -> bytes:
    """
    Return the master key: from ``SPOTLEDGER_MASTER_KEY``, else from *file*, else from ``master.key`` in *folder*.

    Args:
        folder: The data folder, which this process owns.
        file: The file that the setting ``master_key_file`` names, or None.
        environ: The environment.
        may_make: Whether a new key may be made where there is none: only while no secret was sealed yet.

    Raises:
        MasterKeyRefused: There is none, it is malformed, or others may read its file.
        DataFolderUnusable: A new key cannot be written.
    """
    if MASTER_KEY_VARIABLE in environ:
        return cipher.parse_master_key(environ[MASTER_KEY_VARIABLE])
    if file is not None:
        return cipher.load_master_key(file)
    own = folder / MASTER_KEY_FILE
    if not own.exists():
        if not may_make:
            raise MasterKeyRefused(
                f"{own} is missing, and access keys are sealed with it. Put it back (all nodes of a fleet have "
                f"the same one), or give it with {MASTER_KEY_VARIABLE} or --master-key-file."
            )
        write_secret_file(own, secrets.token_hex(cipher.MASTER_KEY_BYTES))
    return cipher.load_master_key(own)


def read_token(file: Path) -> str:
    """
    Return the operator token in *file*.

    Raises:
        DataFolderUnusable: It cannot be read, or holds no token.
    """
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as problem:
        raise DataFolderUnusable(
            f"The operator token in {file} cannot be read: {problem.strerror}.", path=str(file)
        ) from None
    if not _TOKEN.match(text):
        raise DataFolderUnusable(
            f"{file} holds no operator token; 64 hex digits would pass.",
            path=str(file),
        )
    return text


def first_token(folder: Path) -> str:
    """Return the token in ``operator.token`` of *folder*; make the file where it is not there."""
    file = folder / TOKEN_FILE
    if not file.exists():
        write_secret_file(file, secrets.token_hex(TOKEN_BYTES))
    return read_token(file)
