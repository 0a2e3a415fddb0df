"""Refusals that the journal keeps, made again from what it keeps of them."""

from __future__ import annotations

from typing import Any

from spotledger.errors import LedgerCorrupt, Refused


def refusal_of_code(code: str, message: str, details: dict[str, Any]) -> Refused:
    """
    Return the refusal with this stable *code*, as it was first answered.

    Raises:
        LedgerCorrupt: No refusal has this code.
    """
    waiting: list[type[Refused]] = [Refused]
    while waiting:
        found = waiting.pop()
        if found.code == code:
            return found(message, **details)
        waiting += found.__subclasses__()
    raise LedgerCorrupt(f"the journal keeps a refusal with the unknown code {code!r}")
