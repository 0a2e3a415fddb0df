"""
Copies of the ledger: made while it is written to, marked as backups, and made ledgers again.

A backup is one file with the journal and the access keys; the books are left out, because they are made again. Entries
are copied a few hundred at a time, in order and each checked against the chain of hashes, so no snapshot is held while
the write-ahead log grows, and a damaged journal gives no backup. The keys are copied first: so no key names a customer
whom the copy of the journal lacks.
"""

from __future__ import annotations

from typing import Final

#: Rows copied in one step, and how long the copying rests after each.
STEP_ROWS: Final = 200
REST_SECONDS: Final = 0.002
#: Bytes of entries between two syncs of the copy; one sync of everything at the end would hold up those of commits.
SYNC_BYTES: Final = 16 * 1024 * 1024
#: What was written while the copying went on is copied too, then what was written meanwhile, and so on: so often.
ROUNDS_LIMIT: Final = 8
FINDINGS_LIMIT: Final = 10
