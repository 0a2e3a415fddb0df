"""
The short way through entries of the usual kinds: what an entry has to be is made as a whole from its request and what
stands before it, and compared with what it is.

Each way returns the lines that the entry touches, in the order of its balances, where all of it is as it should be,
and None where it is not, or is of a form that is not usual: :meth:`BooksRead.post` and the checks of requests then
look at it piece by piece. What passes here passes there too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from spotledger.audit.books import BooksRead, Line, OpenHold
from spotledger.audit.entries import (
    AVAILABLE,
    FREEZE,
    AccountRead,
    BalanceRead,
    EntryRead,
    PlacedRead,
    SideRead,
    named,
)
from spotledger.domain.accounts import EXTERNAL, FEES, RECEIVABLE
from spotledger.domain.operations import REST

_EXTERNAL: Final[AccountRead] = (EXTERNAL.customer, EXTERNAL.kind)
_FEES: Final[AccountRead] = (FEES.customer, FEES.kind)
Touched = tuple[Line, ...] | None


def _freeze(books: BooksRead, entry: EntryRead) -> Touched:
    request = entry.request
    account, coin, units = (request.customer, request.account), request.coin, request.units
    line = books.lines.get((account, coin))  # type: ignore[arg-type]
    if line is None or units is None or units <= 0:
        return None
    seq, available, freeze = books.seq, line.available - units, line.freeze + units
    if (
        available < 0
        or freeze < 0
        or entry.postings != ((0, AVAILABLE, -units, None), (0, FREEZE, units, seq))
        or entry.balances != ((account, coin, available, freeze),)
        or entry.holds != ((seq, units),)
        or seq in books.holds
    ):
        return None
    books.open_hold(entry, line, units)
    return (line,)


def _unfreeze(books: BooksRead, entry: EntryRead) -> Touched:
    if len(entry.holds) != 1:
        return None
    ((hold_id, remaining),) = entry.holds
    hold = books.holds.get(hold_id)
    if hold is None or remaining < 0:
        return None
    line, units, request = hold.line, hold.remaining - remaining, entry.request
    account, coin = line.name
    available, freeze = line.available + units, line.freeze - units
    if (
        units <= 0
        or available < 0
        or freeze < 0
        or not named(request.hold, hold_id)
        or (remaining if request.units is None else request.units != units)
        or request.coin not in (coin, None)
        or entry.postings != ((0, FREEZE, -units, hold_id), (0, AVAILABLE, units, None))
        or entry.balances != ((account, coin, available, freeze),)
    ):
        return None
    books.use_hold(hold_id, hold, remaining)
    return (line,)


def _deposit(books: BooksRead, entry: EntryRead) -> Touched:
    request = entry.request
    account = (request.customer, request.account)
    touched = _moved(books, entry, _EXTERNAL, account)  # type: ignore[arg-type]
    if touched is None or books.owed(f"{RECEIVABLE}:{request.customer}", touched[1].coin):
        return None
    return touched


def _withdraw(books: BooksRead, entry: EntryRead) -> Touched:
    request = entry.request
    if request.hold is not None:
        return None
    account = (request.customer, request.account)
    return _moved(books, entry, account, _EXTERNAL)  # type: ignore[arg-type]


def _transfer(books: BooksRead, entry: EntryRead) -> Touched:
    source, target = entry.request.source, entry.request.target
    if source is None or target is None:
        return None
    return _moved(books, entry, (source.customer, source.account), (target.customer, target.account))


def _moved(books: BooksRead, entry: EntryRead, source: AccountRead, target: AccountRead) -> Touched:
    """Check an entry that moves what its request says from the available of one account to that of another."""
    coin, units = entry.request.coin, entry.request.units
    if coin is None or units is None or units <= 0 or source == target:
        return None
    giver, taker = books.lines.get((source, coin)), books.lines.get((target, coin))
    if giver is None or taker is None:
        return None
    given, taken = giver.available - units, taker.available + units
    if (
        (given < 0 and not giver.may_be_negative)
        or (taken < 0 and not taker.may_be_negative)
        or giver.freeze < 0
        or taker.freeze < 0
        or entry.postings != ((0, AVAILABLE, -units, None), (1, AVAILABLE, units, None))
        or entry.balances != ((source, coin, given, giver.freeze), (target, coin, taken, taker.freeze))
        or entry.holds
    ):
        return None
    return (giver, taker)


def _settle(books: BooksRead, entry: EntryRead) -> Touched:
    """Check a fill of two customers, each with a fee in what he receives, and no dust."""
    request = entry.request
    buyer, seller, holds = request.buyer, request.seller, entry.holds
    base, quote, base_units, quote_units = request.base, request.quote, request.base_units, request.quote_units
    if (
        base is None or quote is None or base_units is None or quote_units is None or base == quote
        or buyer is None or seller is None or len(holds) != 2
    ):  # fmt: skip
        return None
    (buy_id, buy_left), (sell_id, sell_left) = holds
    buy, sell = books.holds.get(buy_id), books.holds.get(sell_id)
    if buy is None or sell is None or buy.line.account == sell.line.account:
        return None
    bought = _side(books, buyer, buy_id, buy, buy_left, quote, quote_units, base, base_units, 0)
    if bought is None:
        return None
    sold = _side(books, seller, sell_id, sell, sell_left, base, base_units, quote, quote_units, 3)
    if sold is None:
        return None
    if entry.postings != bought[0] + sold[0] or entry.balances != bought[1] + sold[1]:
        return None
    books.use_hold(buy_id, buy, buy_left)
    books.use_hold(sell_id, sell, sell_left)
    return bought[2] + sold[2]


def _side(
    books: BooksRead,
    side: SideRead,
    hold_id: int,
    hold: OpenHold,
    left: int,
    paid: str,
    units: int,
    coin: str,
    received: int,
    place: int,
) -> tuple[tuple[PlacedRead, ...], tuple[BalanceRead, ...], tuple[Line, Line, Line]] | None:
    """Return postings, balances (from *place* on) and lines of one side, or None where it is not of the usual form."""
    fee, line = side.fee, hold.line
    account = line.account
    if (
        fee is None or fee.units is None or fee.coin != coin or not 0 < fee.units < received or left < 0
        or side.dust is not None or line.coin != paid or account == _FEES or not named(side.hold, hold_id)
    ):  # fmt: skip
        return None
    taken, fee_units = hold.remaining - left, fee.units
    released = 0
    if side.release is not None:
        released = taken - units if side.release == REST and not left else side.release_units or 0
    into, fees = books.lines.get((account, coin)), books.lines.get((_FEES, coin))
    if into is None or fees is None or released < 0 or taken != units + released:
        return None
    got = received - fee_units
    available, freeze = line.available + released, line.freeze - taken
    into_available, fees_available = into.available + got, fees.available + fee_units
    if available < 0 or freeze < 0 or into_available < 0 or into.freeze < 0 or fees_available < 0 or fees.freeze < 0:
        return None
    freed = ((place, AVAILABLE, released, None),) if released else ()
    postings: Any = (
        (place, FREEZE, -taken, hold_id),
        *freed,
        (place + 1, AVAILABLE, got, None),
        (place + 2, AVAILABLE, fee_units, None),
    )
    balances = (
        (account, paid, available, freeze),
        (account, coin, into_available, into.freeze),
        (_FEES, coin, fees_available, fees.freeze),
    )
    return postings, balances, (line, into, fees)


#: By kind of entry; others have no short way.
SHORTCUTS: Final[dict[str, Callable[[BooksRead, EntryRead], Touched]]] = {
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "expire": _unfreeze,
    "deposit": _deposit,
    "withdraw": _withdraw,
    "transfer": _transfer,
    "settle": _settle,
}
