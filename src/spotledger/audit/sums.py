"""Adding up the rows of buckets, as the service does before it believes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spotledger.audit.findings import Findings
from spotledger.storage.sqlite.buckets import RowSum, row_digest

#: By bucket: how many rows, and the sum of their digests.
Sums = dict[int, list[int]]


def add_up(sums: Sums, table: str, rows: Iterable[tuple[Any, ...]], ids_in_bucket: int = 1) -> None:
    """Add *rows* of *table* to *sums*; the first column is the bucket, or an id of which a bucket has so many."""
    for row in rows:
        bucket = row[0] // ids_in_bucket
        found = sums.get(bucket)
        if found is None:
            sums[bucket] = [1, row_digest(table, row)]
        else:
            found[0] += 1
            found[1] += row_digest(table, row)


def compare_sums(findings: Findings, table: str, sums: Sums, kept: dict[int, tuple[int, bytes]]) -> None:
    """Compare what was added up with what is *kept* in the rows of *table*."""
    nothing = RowSum().kept()
    for bucket in sorted(sums.keys() | kept.keys()):
        count, total = sums.get(bucket, (0, 0))
        actual = (count, (total % (1 << 128)).to_bytes(16, "little"))
        said = kept.get(bucket, nothing)
        if said != actual:
            findings.add("bucket_sum_differs", None, f"{table} {bucket}", _shown(said), _shown(actual))


def _shown(sum_of_rows: tuple[Any, Any]) -> str:
    count, digest = sum_of_rows
    return f"{count} rows, {digest.hex() if isinstance(digest, bytes) else digest}"
