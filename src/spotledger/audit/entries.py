"""An entry as its bytes say it, decoded as little as an audit needs: units as whole numbers, accounts as pairs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

AVAILABLE: Final = "available"
FREEZE: Final = "freeze"

AccountRead = tuple[str, str]
PostingRead = tuple[AccountRead, str, str, int, int | None]
BalanceRead = tuple[AccountRead, str, int, int]
HoldNameRead = str | dict[str, str] | None


class PlacedRead(NamedTuple):
    """A posting as its bytes say it: which of the entry's balances it is about, from 0; side, units and hold."""

    place: int
    side: str
    units: int
    hold: int | None = None


class AmountRead(msgspec.Struct, gc=False):
    """An amount of a coin within a request; units are missing where the coin was not known."""

    coin: str
    units: int | None = None


class AccountOfRequest(msgspec.Struct, gc=False):
    """Where a transfer goes from, or to."""

    customer: str
    account: str


class SideRead(msgspec.Struct, gc=False):
    """One side of a settlement's request."""

    hold: HoldNameRead = None
    fee: AmountRead | None = None
    dust: AmountRead | None = None
    release: str | None = None
    release_units: int | None = None


class RequestRead(msgspec.Struct, gc=False):
    """A canonical request: what any operation's may hold. Its operation is the entry's kind."""

    #: Neither stands in a request of the only format that there is.
    format: Any = None
    op: Any = None
    coin: str | None = None
    scale: int | None = None
    customer: str | None = None
    account: str | None = None
    units: int | None = None
    reference: str | None = None
    expires_ms: int | None = None
    hold: HoldNameRead = None
    seq: int | None = None
    source: AccountOfRequest | None = msgspec.field(default=None, name="from")
    target: AccountOfRequest | None = msgspec.field(default=None, name="to")
    base: str | None = None
    quote: str | None = None
    base_units: int | None = None
    quote_units: int | None = None
    buyer: SideRead | None = None
    seller: SideRead | None = None

    def is_of_the_format(self) -> bool:
        """Say whether the request is of the only format that there is."""
        return self.op is None and self.format is None


class EntryRead(msgspec.Struct, gc=False):
    """One entry."""

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: RequestRead
    postings: tuple[PlacedRead, ...] = ()
    balances: tuple[BalanceRead, ...] = ()
    holds: tuple[tuple[int, int], ...] = ()
    refusal: dict[str, Any] | None = None
    happened_ms: int | None = None

    def lines(self) -> tuple[PostingRead, ...]:
        """Return the postings with account and coin of each; of an entry that :meth:`is_placed`."""
        balances = self.balances
        return tuple([(*balances[place][:2], side, units, hold) for place, side, units, hold in self.postings])

    def is_placed(self) -> bool:
        """Say whether each posting is about a balance that the entry has."""
        count = len(self.balances)
        return all(0 <= posting[0] < count for posting in self.postings)


#: Not strict: the units stand in the journal as decimal text.
decode = msgspec.json.Decoder(EntryRead, strict=False).decode


def decoded(body: bytes) -> EntryRead | None:
    """Return the entry that *body* is, or None where it is none."""
    try:
        entry = decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return entry if entry.is_placed() else None


def named(name: HoldNameRead, hold_id: int | None) -> bool:
    """Say whether *name* can name the hold; by its key it can be any."""
    return isinstance(name, dict) or name == str(hold_id)
