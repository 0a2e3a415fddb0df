"""
The journal's records: entries, their postings, and the holds that entries open and use.

An entry carries its key, its canonical request and the balances after it, so that one append makes the movement, its
once-only and its result durable together, and everything else about money can be derived from entries alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from spotledger.domain.accounts import Account
from spotledger.domain.operations import Freeze

#: Version of the canonical request that entries keep.
REQUEST_FORMAT: Final = 1

#: Makes a named tuple of a class and a tuple of its values, in half the time that calling the class takes.
new_tuple = tuple.__new__

AVAILABLE: Final = "available"
FREEZE: Final = "freeze"


class Posting(NamedTuple):
    """One signed line of an entry: *units* onto one side of one account; the hold it opens or uses, on freeze."""

    account: Account
    coin: str
    side: str
    units: int
    hold: int | None = None


class BalanceAfter(NamedTuple):
    """Both sides of one account and coin after an entry, in units."""

    account: Account
    coin: str
    available: int
    freeze: int


class HoldAfter(NamedTuple):
    """What remains of a hold after an entry, in units."""

    hold: int
    remaining: int


class Hold(NamedTuple):
    """One freeze: opened by the entry whose ``seq`` is its id, used in parts, closed when nothing remains."""

    hold_id: int
    account: Account
    coin: str
    amount: int
    remaining: int
    reference: str | None
    expires_ms: int | None
    opened_ms: int
    closed_seq: int | None = None

    @property
    def state(self) -> str:
        """``"open"`` while something remains, else ``"closed"``."""
        return "open" if self.closed_seq is None else "closed"

    def after(self, remaining: int, seq: int) -> Hold:
        """Return this hold as the entry *seq* leaves it, with *remaining* units."""
        hold_id, account, coin, amount, _, reference, expires_ms, opened_ms, _ = self
        closed_seq = None if remaining else seq
        values = (hold_id, account, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq)
        return new_tuple(Hold, values)


@dataclass(slots=True)
class Entry:
    """
    One immutable record of the journal. (Not a frozen class: making one would take five times as long.)

    ``seq`` counts 1, 2, 3 … without gaps; ``booked_ms`` never falls along it. ``request`` is the canonical request.
    A kept refusal has a ``refusal`` (code, detail, details) and no postings; so has a listing or a registering none.
    """

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: dict[str, Any]
    postings: tuple[Posting, ...] = ()
    balances: tuple[BalanceAfter, ...] = ()
    holds: tuple[HoldAfter, ...] = ()
    happened_ms: int | None = None
    refusal: dict[str, Any] | None = None

    def posting_balances(self) -> list[int]:
        """Return the balance of its side after each posting, worked back from the balances after the entry."""
        sides = {}
        for account, coin, available, freeze in self.balances:
            sides[account, coin, AVAILABLE] = available
            sides[account, coin, FREEZE] = freeze
        after = []
        for posting in reversed(self.postings):
            line = (posting.account, posting.coin, posting.side)
            after.append(sides[line])
            sides[line] -= posting.units
        after.reverse()
        return after


def opens_hold(entry: Entry) -> bool:
    """Say whether *entry* opened a hold, which then has its number; a refused freeze has no postings and opens none."""
    return entry.kind == Freeze.kind and bool(entry.postings)


def opened_hold(entry: Entry, account: Account | None = None, coin: str | None = None) -> Hold | None:
    """
    Return the hold that *entry* opened, as it was then, or None.

    Where *account* and *coin* are given, they equal those of the entry: the hold then shares them with many others.
    """
    if not opens_hold(entry):
        return None
    posted_to, posted_coin, _, units, _ = entry.postings[1]
    account, coin, request = account or posted_to, coin or posted_coin, entry.request
    reference, expires_ms = request.get("reference"), request.get("expires_ms")
    return Hold(entry.seq, account, coin, units, units, reference, expires_ms, entry.booked_ms)
