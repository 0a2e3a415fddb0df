"""Small files that are written whole: a mark of the format, one value as msgpack, and a checksum of both."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from spotledger.storage.atomic_file import PARTIAL, sync
from spotledger.storage.private import open_private

CHECKSUM_BYTES: Final = 32
T = TypeVar("T")


class NotAsWritten(Exception):
    """What a file holds is not what was written: it was changed, cut, or is of another program."""


def packed(magic: bytes, value: object) -> bytes:
    """Return the content of a file with *value*; *magic* marks its format."""
    content = magic + msgspec.msgpack.encode(value)
    return content + _checksum(content)


def read_packed(file: Path, magic: bytes, kind: type[T], limit_bytes: int) -> T:
    """
    Return the value in *file*.

    Args:
        file: The file, which we name in a folder.
        magic: The mark of its format.
        kind: The type of the value.
        limit_bytes: The most that it may be long.

    Raises:
        NotAsWritten: It is damaged, too long, or of another form.
        FileUnusable: It belongs to somebody else, others may use it, or it is a link.
        OSError: It cannot be read.
    """
    with open(open_private(file, os.O_RDONLY, is_secret=True), "rb") as opened:  # noqa: PTH123 - a descriptor
        content = opened.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise NotAsWritten(f"it is longer than {limit_bytes} bytes")
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if not body.startswith(magic) or checksum != _checksum(body):
        raise NotAsWritten("its checksum does not fit")
    try:
        return msgspec.msgpack.decode(memoryview(body)[len(magic) :], type=kind)
    except msgspec.MsgspecError as problem:
        raise NotAsWritten("it has another form") from problem


def replace_packed(file: Path, magic: bytes, value: Any) -> None:
    """
    Replace *file* by one with *value*, synced, which only its owner may read; raises OSError if that fails.

    One process and thread does this at a time.
    """
    partial = file.with_name(f".{file.name}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as opened:  # noqa: PTH123 - a descriptor, not a path
            opened.write(packed(magic, value))
            opened.flush()
            os.fsync(descriptor)
        partial.rename(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(file.parent)


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=CHECKSUM_BYTES).digest()
