"""Services that rotate their master key, opened in this process, and what is found in the bytes of their files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spotledger.ops.runtime import Runtime, claim_folder, open_runtime
from spotledger.ops.settings import load_settings


@contextmanager
def node(
    folder: Path, database: str | None = None, environ: Mapping[str, str] = os.environ, **flags: str
) -> Iterator[Runtime]:
    """Open the service of *folder*, in *database* if there is one; nothing is listened at."""
    settings = load_settings({"data": str(folder), "database": database, **flags}, {}).settings
    with claim_folder(folder) as lock, open_runtime(settings, environ, lock) as runtime:
        yield runtime


def key_file(file: Path, key: str | None = None) -> Path:
    """Write a master key to *file*, a new one unless told, readable by its owner only."""
    file.touch(mode=0o600)
    file.write_text((key or secrets.token_hex(32)) + "\n")
    return file


def sealed_secrets(runtime: Runtime) -> dict[str, bytes]:
    """Return the sealed secret of each access key, as it is stored."""
    return dict(runtime.ledger.key_tables.rows("SELECT accesskey, sealed_secret FROM access_keys"))


def found_in(folder: Path, blobs: Iterable[bytes]) -> list[str]:
    """Name the files at and below *folder* that have one of *blobs*, or the better part of one, in their bytes."""
    parts = [blob[1:] for blob in blobs] + [blob[:24] for blob in blobs]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if any(part in file.read_bytes() for part in parts)]
