"""
The data folder: its files, and the lock of the one process that owns it.

    DIR/                 mode 0700, created on the first start
      journal.db         the entries of the ledger: the truth
      books.db           what is derived from them; rebuilt if it is missing
      keys.db            access keys (with sealed secrets) and tokens (as hashes)
      access-log.db      who used which credential from where; no part of the ledger
      noted-head         the last acknowledged entry, so that a journal that lost its end is noticed
      master.key         64 hex digits, mode 0600: opens the sealed secrets; not created if one is given otherwise
      operator.token     mode 0600: the first operator token, with every scope; never changed once it exists
      owner.lock         locked by the owner; its content, the note, says who the owner is and where it listens
      replay-memory      while stopped: the signed requests of the last minutes, as hashes; taken by the next start
      locks              who is locked for sending too many requests

The lock is an ``flock``. The system releases it when the process ends, however it ends, so a killed owner leaves
nothing to clean up. The note is valid only while the lock is held. Who is about to send a token to the address in it
first has the service prove that it wrote the note: the note has a random key of this start, and the service answers a
challenge with it (:meth:`FolderLock.prove`, :func:`proof_of`).

Each file is checked when it is opened (:mod:`spotledger.storage.private`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
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
from spotledger.storage.private import check_private, check_private_folder, open_private, read_secret as read_secret

#: The prefix of all environment variables of the service.
VARIABLE_PREFIX: Final = "SPOTLEDGER_"
LEDGER_FILE: Final = "journal.db"
MASTER_KEY_FILE: Final = "master.key"
TOKEN_FILE: Final = "operator.token"  # noqa: S105 - a name, not a token
MASTER_KEY_VARIABLE: Final = f"{VARIABLE_PREFIX}MASTER_KEY"

_TOKEN = re.compile(r"\A[0-9A-Fa-f]{64}\Z")
LOCK_FILE = "owner.lock"
NOTE_LIMIT_BYTES = 4096
PROOF_KEY_BYTES: Final = 32
#: How long acquiring is retried: a reader of the note holds a shared lock for an instant.
ACQUIRE_PATIENCE_SECONDS = 0.3
ACQUIRE_PAUSE_SECONDS = 0.02

_REASONS = {
    errno.EACCES: "this process may not use it; change its permissions, or name another folder",
    errno.EPERM: "this process may not use it; change its permissions, or name another folder",
    errno.EROFS: "it is read-only; name a folder that is writable",
    errno.ENOSPC: "its disk is full; make room, or name a folder on another disk",
    errno.EDQUOT: "its disk quota is exhausted; make room, or name another folder",
    errno.ENOTDIR: "it is not a folder; name a folder, or a path where one can be created",
    errno.EEXIST: "it is not a folder; name a folder, or a path where one can be created",
    errno.EISDIR: "it has a folder where a file should be",
    errno.ELOOP: "its path is a loop of symbolic links",
    errno.ENAMETOOLONG: "its path is too long",
}


def environ_of_child() -> dict[str, str]:
    """Return the environment without the service's variables, some of which are secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(VARIABLE_PREFIX)}


def unusable(path: Path, problem: OSError) -> DataFolderUnusable:
    """Return the error that says why the data folder *path* cannot be used."""
    reason = _REASONS.get(problem.errno or 0) or os.strerror(problem.errno or errno.EIO)
    where = f" (at {problem.filename})" if problem.filename and str(problem.filename) != str(path) else ""
    return DataFolderUnusable(f"The data folder {path} cannot be used: {reason}{where}.", path=str(path))


def make_folder(path: Path, *, may_be_link: bool = False) -> None:
    """
    Create the folder *path*, readable by its owner only, unless it exists.

    Args:
        path: The folder.
        may_be_link: Whether it may be a symbolic link, as where the operator names it.

    Raises:
        DataFolderUnusable: There is something else at *path*, or it cannot be created.
        FileUnusable: It belongs to somebody else, or others may write in it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private_folder(path, may_be_link=may_be_link)
    except OSError as problem:
        raise unusable(path, problem) from problem


def read_note(path: Path) -> str | None:
    """
    Return the note of the process that owns the folder *path*, or None if no process does.

    Raises:
        DataFolderUnusable: The lock file exists but cannot be read.
        FileUnusable: Somebody else may have written it.
    """
    try:
        descriptor = open_private(path / LOCK_FILE, os.O_RDONLY, is_secret=True)
        check_private_folder(path, may_be_link=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise unusable(path, problem) from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, NOTE_LIMIT_BYTES, 0).decode("utf-8", "replace")
    except OSError as problem:
        raise unusable(path, problem) from problem
    else:
        return None
    finally:
        os.close(descriptor)


def _facts_in(note: str) -> dict[str, Any]:
    """Return *note* as a JSON object; an empty one if another program wrote it."""
    with contextlib.suppress(ValueError):
        found = json.loads(note)
        if isinstance(found, dict):
            return found
    return {}


class FolderLock:
    """
    The lock of a data folder: its holder owns the folder.

    Only one lock of a folder can be held, even within one process.
    """

    def __init__(self, path: str | Path) -> None:
        """Prepare the lock of the folder *path*, and touch nothing yet."""
        self.path = Path(path)
        self._descriptor: int | None = None
        self._proof_key = ""

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, note: str | None = None) -> None:
        """
        Create the folder if it does not exist, and take its lock.

        Args:
            note: A JSON object that says who the owner is; ``{"pid": …}`` if None.

        Raises:
            DataFolderInUse: Another process holds the lock; the message names it.
            DataFolderUnusable: The folder is read-only, full, or not a folder.
            FileUnusable: The folder or the lock file belongs to somebody else, or others may use it.
        """
        make_folder(self.path, may_be_link=True)
        try:
            descriptor = open_private(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, is_secret=True)
        except OSError as problem:
            raise unusable(self.path, problem) from problem
        try:
            self._take(descriptor)
            self._descriptor = descriptor
            self._proof_key = secrets.token_hex(PROOF_KEY_BYTES)
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
                raise unusable(self.path, problem) from problem
            else:
                return

    def _in_use(self, descriptor: int) -> DataFolderInUse:
        note = os.pread(descriptor, NOTE_LIMIT_BYTES, 0).decode("utf-8", "replace")
        facts = _facts_in(note)
        listening = facts.get("operator") or facts.get("public")
        who = f"process {facts['pid']}" if "pid" in facts else "another process"
        if listening:
            who += f", which listens at {listening}"
        return DataFolderInUse(
            f"The data folder {self.path} is owned by {who}. Stop that process, or name another folder with --data.",
            path=str(self.path),
            **{name: value for name, value in facts.items() if name in ("pid", "operator", "public")},
        )

    def write_note(self, note: str) -> None:
        """
        Replace the note; the lock has to be held. A JSON object gets the key of the proof as one more member.

        Raises:
            RuntimeError: The lock is not held.
            DataFolderUnusable: The disk is full or read-only.
        """
        if self._descriptor is None:
            raise RuntimeError("the lock is not held; call acquire first")
        facts = _facts_in(note)
        data = (json.dumps({**facts, "proof_key": self._proof_key}) if facts else note).encode()[:NOTE_LIMIT_BYTES]
        try:
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))
        except OSError as problem:
            raise unusable(self.path, problem) from problem

    def prove(self, challenge: str) -> str:
        """Return the answer to *challenge* that only who wrote the note can give."""
        return proof_of(self._proof_key, challenge)

    def release(self) -> None:
        """Release the lock if it is held, and clear the note."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def proof_of(proof_key: str, challenge: str) -> str:
    """Return the proof, 64 hex digits, for *challenge* with the key in the note."""
    return hmac.new(proof_key.encode(), b"spotledger owner " + challenge.encode(), hashlib.sha256).hexdigest()


class Owner(NamedTuple):
    """The process that owns a data folder, the URLs where it listens, or None, and the key of its proof."""

    pid: int
    public_url: str | None = None
    operator_url: str | None = None
    #: Empty in a note that has none; no proof passes then.
    proof_key: str = ""

    def __repr__(self) -> str:
        return f"Owner({self.pid}, {self.public_url!r}, {self.operator_url!r})"

    def note(self) -> str:
        """Return the owner as a note."""
        facts = {"pid": self.pid, "public": self.public_url, "operator": self.operator_url}
        return json.dumps({name: value for name, value in facts.items() if value is not None})


def read_owner(folder: Path) -> Owner | None:
    """Return the owner of *folder*, or None if it has none; the note of another program counts as an owner."""
    note = read_note(folder)
    if note is None:
        return None
    facts = _facts_in(note)
    return Owner(int(facts.get("pid", 0)), facts.get("public"), facts.get("operator"), str(facts.get("proof_key", "")))


def write_secret_file(file: Path, text: str) -> None:
    """
    Write *text* to the new file *file*, which only its owner may ever read.

    The file appears complete and synced, or not at all.

    Raises:
        DataFolderUnusable: The disk is full or read-only.
        FileExistsError: *file* exists; it is not changed.
    """
    if os.path.lexists(file):
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
        raise unusable(file.parent, problem) from problem


def load_master_key(folder: Path, file: Path | None, environ: Mapping[str, str], *, may_make: bool) -> bytes:
    """
    Return the master key: from ``SPOTLEDGER_MASTER_KEY``, else from *file*, else from ``master.key`` in *folder*.

    Args:
        folder: The data folder, which this process owns.
        file: The file that the setting ``master_key_file`` names, or None.
        environ: The environment.
        may_make: Whether a missing key may be created, which is right only while no secret is sealed.

    Raises:
        MasterKeyRefused: There is no key, it is malformed, or others may read the named file.
        FileUnusable: The folder's own file belongs to somebody else, or others may use it.
        DataFolderUnusable: A new key cannot be written.
    """
    if MASTER_KEY_VARIABLE in environ:
        return cipher.parse_master_key(environ[MASTER_KEY_VARIABLE])
    if file is not None:
        return cipher.load_master_key(file)
    own = folder / MASTER_KEY_FILE
    check_private(own, is_secret=True)
    if not os.path.lexists(own):
        if not may_make:
            raise MasterKeyRefused(
                f"{own} is missing, and access keys are sealed with it. Put it back (all nodes of a fleet use the same"
                f" key), or give it with {MASTER_KEY_VARIABLE} or {MASTER_KEY_VARIABLE}_FILE (--master-key-file)."
            )
        write_secret_file(own, secrets.token_hex(cipher.MASTER_KEY_BYTES))
    return cipher.load_master_key(own)


def read_token(file: Path, *, named_by_us: bool = True) -> str:
    """
    Return the operator token in *file*.

    Args:
        file: The file.
        named_by_us: Whether it is the one in the data folder; one that the operator names may be a link or a pipe.

    Raises:
        FileUnusable: *file* cannot be read, belongs to somebody else, or others may use it.
        DataFolderUnusable: It contains no token.
    """
    text = read_secret(file, "file with the operator token", named_by_us=named_by_us)
    if not _TOKEN.match(text):
        raise DataFolderUnusable(
            f"{file} contains no operator token; 64 hex digits would pass.",
            path=str(file),
        )
    return text


def first_token(folder: Path) -> str:
    """Return the token in ``operator.token`` of *folder*; create the file if it does not exist."""
    file = folder / TOKEN_FILE
    if not os.path.lexists(file):
        write_secret_file(file, secrets.token_hex(TOKEN_BYTES))
    return read_token(file)
