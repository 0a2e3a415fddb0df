"""
The files of the data folder: the ledger, the master key, the first operator token, the owner's note.

    DIR/                 mode 0700, made on the first start
      ledger.db          the ledger, access keys (their secrets sealed) and tokens (their hashes)
      master.key         64 hex digits, mode 0600: opens the sealed secrets; never made where one is given otherwise
      operator.token     mode 0600: the first operator token, with every scope; left as it is once it is there
      owner.lock         held by the one process that owns the folder; says who that is and where it answers
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.errors import DataFolderUnusable, MasterKeyRefused
from spotledger.security import sealing
from spotledger.security.tokens import TOKEN_BYTES as TOKEN_BYTES
from spotledger.storage.folder import read_note, unusable

MASTER_KEY_FILE: Final = "master.key"
TOKEN_FILE: Final = "operator.token"  # noqa: S105 - a name, no token
MASTER_KEY_VARIABLE: Final = "SPOTLEDGER_MASTER_KEY"

_TOKEN = re.compile(r"\A[0-9A-Fa-f]{64}\Z")


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
    facts: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        found = json.loads(note)
        facts = found if isinstance(found, dict) else {}
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
        _sync_folder(file.parent)
    except OSError as problem:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise unusable(file.parent, problem) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        return sealing.parse_master_key(environ[MASTER_KEY_VARIABLE])
    if file is not None:
        return sealing.load_master_key(file)
    own = folder / MASTER_KEY_FILE
    if not own.exists():
        if not may_make:
            raise MasterKeyRefused(
                f"{own} is missing, and access keys are sealed with it. Put it back (all nodes of a fleet have "
                f"the same one), or give it with {MASTER_KEY_VARIABLE} or --master-key-file."
            )
        write_secret_file(own, secrets.token_hex(sealing.MASTER_KEY_BYTES))
    return sealing.load_master_key(own)


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
