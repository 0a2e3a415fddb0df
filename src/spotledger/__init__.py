"""spotledger: the spot account system of an exchange."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spotledger.ledger import Ledger

__version__ = "0.1.0"


def open(path: str | Path, **options: Any) -> Ledger:
    """
    Open the embedded ledger in the data folder *path*, making both where they are not there.

    See :func:`spotledger.ops.embedded.open_embedded` for *options* and errors. Close it, or use it in a ``with`` block.
    """
    # Imported here so that the client can be used without the server's parts.
    from spotledger.ops.embedded import open_embedded

    return open_embedded(path, **options)
