"""Entries as the audit reads them: decoded no further than it needs, units as whole numbers, accounts as pairs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from spotledger.domain import accounts

AVAILABLE: Final = "available"
FREEZE: Final = "freeze"

AccountRead = tuple[str, str]  # (customer, kind)
PostingRead = tuple[AccountRead, str, str, int, int | None]
BalanceRead = tuple[AccountRead, str, int, int]
HoldNameRead = str | dict[str, str] | None

#: The house accounts as entries name them.
EXTERNAL: Final[AccountRead] = (accounts.EXTERNAL.customer, accounts.EXTERNAL.kind)
FEES: Final[AccountRead] = (accounts.FEES.customer, accounts.FEES.kind)
DUST: Final[AccountRead] = (accounts.DUST.customer, accounts.DUST.kind)


class PlacedRead(NamedTuple):
    """A posting as stored: the place of its balance among the entry's, from 0; side, units and hold."""

    place: int
    side: str
    units: int
    hold: int | None = None


class AmountRead(msgspec.Struct, gc=False):
    """An amount of a coin within a request; ``units`` is missing if the coin was unknown."""

    coin: str
    units: int | None = None


class AccountOfRequest(msgspec.Struct, gc=False):
    """The source or the target of a transfer."""

    customer: str
    account: str


class LegRead(msgspec.Struct, gc=False):
    """One leg in the request of a post."""

    customer: str
    account: str
    coin: str
    units: int | None = None


class SideRead(msgspec.Struct, gc=False):
    """One side in the request of a settlement."""

    hold: HoldNameRead = None
    fee: AmountRead | None = None
    dust: AmountRead | None = None
    release: str | None = None
    release_units: int | None = None


class RequestRead(msgspec.Struct, gc=False):
    """A canonical request, with the fields of all operations; the entry's kind says which operation it is."""

    #: Neither is in a request of the only format that exists.
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
    legs: tuple[LegRead, ...] = ()
    fee_account: str | None = None
    #: As they stand, because a start takes no text for a number here.
    epoch: Any = None
    random_id: Any = msgspec.field(default=None, name="id")
    name: str | None = None
    may_be_negative: bool | None = None
    earlier: Any = None


class EntryRead(msgspec.Struct, gc=False):
    """One entry."""

    seq: int
    kind: str
    key: str
    booked_ms: int
    actor: str
    request: RequestRead
    postings: tuple[PlacedRead, ...] = ()
    balances: tuple[BalanceRead, ...] = ()
    holds: tuple[tuple[int, int], ...] = ()
    refusal: dict[str, Any] | None = None
    happened_ms: int | None = None

    def full_postings(self) -> tuple[PostingRead, ...]:
        """Return the postings, each with its account and coin; the entry has to be :meth:`is_placed`."""
        balances = self.balances
        return tuple([(*balances[place][:2], side, units, hold) for place, side, units, hold in self.postings])

    def is_placed(self) -> bool:
        """Say whether the entry has a balance for each of its postings."""
        count = len(self.balances)
        return all(0 <= posting[0] < count for posting in self.postings)


#: Not strict, because units are stored as decimal text.
decode = msgspec.json.Decoder(EntryRead, strict=False).decode


def decoded(body: bytes) -> EntryRead | None:
    """Return the entry that *body* holds, or None if it holds none."""
    try:
        entry = decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return entry if entry.is_placed() else None


def named(name: HoldNameRead, hold_id: int | None) -> bool:
    """Say whether *name* can name the hold: its id, or a key, which can name any hold."""
    return isinstance(name, dict) or name == str(hold_id)
