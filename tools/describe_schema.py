"""
Describe the schema of a ledger on PostgreSQL for the audit, after a migration was added.

`python tools/describe_schema.py URL` takes an empty database of PostgreSQL, migrates it, and writes
``audit/postgres/definitions.json``. A test compares that file with a database that was just migrated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from spotledger.audit.postgres.definitions import read_definitions
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.schema import migrate

TARGET = Path(__file__).resolve().parents[1] / "src/spotledger/audit/postgres/definitions.json"
_NAMES = (
    "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
    " UNION SELECT proname || '()' FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
)


def main(url: str) -> None:
    """Migrate the database at *url*, and write the description."""
    with connect(url) as connection:
        migrate(connection, after=True)
        names = {name: None for (name,) in connection.execute(_NAMES)}
        with connection.transaction():
            found = read_definitions(connection, "public", names)
    whole = ("table", "view", "function")
    described = {
        name: dict(sorted(parts.items(), key=lambda part: (part[0] not in whole, part[0])))
        for name, parts in sorted(found.items())
    }
    TARGET.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
