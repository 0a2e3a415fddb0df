"""
spotledger: the spot account system of an exchange.

Open ``ledger/ledger.py`` first: what :func:`open` returns, with one method per operation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spotledger.ledger.ledger import Ledger

__version__ = "0.1.0"


def open(path: str | Path, **options: Any) -> Ledger:
    """
    Open the ledger at *path*, a data folder or the URL of a PostgreSQL database; create it if there is none.

    See :func:`~spotledger.ops.opening.open_embedded` and :func:`~spotledger.ops.fleet.open_postgres` for *options* and
    errors. Close the ledger, or use it in a ``with`` block.
    """
    # Imported here so that the client does not import the server.
    if isinstance(path, str) and path.startswith(("postgresql://", "postgres://")):
        from spotledger.ops.fleet import open_postgres

        return open_postgres(path, **options)
    from spotledger.ops.opening import open_embedded

    return open_embedded(path, **options)
