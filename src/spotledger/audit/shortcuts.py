"""
Shortcuts through entries of the usual forms: build the whole entry that a request must lead to, and compare.

A shortcut applies the entry to the books and returns True if every part of it is as expected. It returns False, and
changes nothing, if a part differs or the entry has an unusual form; :meth:`BooksRead.post` and the checks of requests
then look at each part. They accept everything that a shortcut accepts; that it repays what is owed is checked after
either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from spotledger.audit.books import BooksRead, Line, OpenHold
from spotledger.audit.entries import (
    AVAILABLE,
    EXTERNAL,
    FEES,
    FREEZE,
    AccountRead,
    BalanceRead,
    EntryRead,
    PlacedRead,
    SideRead,
    named,
)
from spotledger.domain.operations import REST


def _freeze(books: BooksRead, entry: EntryRead) -> bool:
    request = entry.request
    account, coin, units = (request.customer, request.account), request.coin, request.units
    line = books.lines.get((account, coin))  # type: ignore[arg-type]
    if line is None or units is None or units <= 0:
        return False
    seq, available, freeze = books.seq, line.available - units, line.freeze + units
    if (
        available < 0
        or freeze < 0
        or entry.postings != ((0, AVAILABLE, -units, None), (0, FREEZE, units, seq))
        or entry.balances != ((account, coin, available, freeze),)
        or entry.holds != ((seq, units),)
        or seq in books.holds
        or (request.expires_ms is not None and request.expires_ms <= entry.booked_ms)
    ):
        return False
    books.move(line, available, freeze)
    books.open_hold(entry, line, units)
    return True


def _unfreeze(books: BooksRead, entry: EntryRead) -> bool:
    if len(entry.holds) != 1:
        return False
    ((hold_id, remaining),) = entry.holds
    hold = books.holds.get(hold_id)
    if hold is None or remaining < 0:
        return False
    line, units, request = hold.line, hold.remaining - remaining, entry.request
    available, freeze = line.available + units, line.freeze - units
    if (
        units <= 0
        or available < 0
        or freeze < 0
        or not named(request.hold, hold_id)
        or (remaining if request.units is None else request.units != units)
        or request.coin not in (line.coin, None)
        or entry.postings != ((0, FREEZE, -units, hold_id), (0, AVAILABLE, units, None))
        or entry.balances != ((line.account, line.coin, available, freeze),)
    ):
        return False
    books.move(line, available, freeze)
    books.use_hold(entry, hold_id, hold, remaining)
    return True


def _deposit(books: BooksRead, entry: EntryRead) -> bool:
    request = entry.request
    return _moved(books, entry, EXTERNAL, (request.customer, request.account))  # type: ignore[arg-type]


def _withdraw(books: BooksRead, entry: EntryRead) -> bool:
    request = entry.request
    if request.hold is not None:
        return False
    return _moved(books, entry, (request.customer, request.account), EXTERNAL)  # type: ignore[arg-type]


def _transfer(books: BooksRead, entry: EntryRead) -> bool:
    source, target = entry.request.source, entry.request.target
    if source is None or target is None:
        return False
    return _moved(books, entry, (source.customer, source.account), (target.customer, target.account))


def _moved(books: BooksRead, entry: EntryRead, source: AccountRead, target: AccountRead) -> bool:
    """Apply an entry that moves what its request says from the available of one account to that of another."""
    coin, units = entry.request.coin, entry.request.units
    if coin is None or units is None or units <= 0 or source == target:
        return False
    giver, taker = books.lines.get((source, coin)), books.lines.get((target, coin))
    if giver is None or taker is None:
        return False
    given, taken = giver.available - units, taker.available + units
    if (
        not giver.may_have(given, giver.freeze)
        or not taker.may_have(taken, taker.freeze)
        or entry.postings != ((0, AVAILABLE, -units, None), (1, AVAILABLE, units, None))
        or entry.balances != ((source, coin, given, giver.freeze), (target, coin, taken, taker.freeze))
        or entry.holds
    ):
        return False
    books.move(giver, given, giver.freeze)
    books.move(taker, taken, taker.freeze)
    return True


def _settle(books: BooksRead, entry: EntryRead) -> bool:
    """Apply a fill of two customers, each with a fee for @fees in the coin received, and no dust."""
    request, holds, lines = entry.request, entry.holds, books.lines
    base, quote, base_units, quote_units = request.base, request.quote, request.base_units, request.quote_units
    if (
        request.fee_account is not None
        or len(holds) != 2
        or not base_units
        or not quote_units
        or base is None
        or quote is None
        or base == quote
    ):
        return False
    (buy_id, buy_left), (sell_id, sell_left) = holds
    buy, sell = books.holds.get(buy_id), books.holds.get(sell_id)
    if buy is None or sell is None or buy.line.coin != quote or sell.line.coin != base:
        return False
    buyer, seller = buy.line.account, sell.line.account
    into, fees = lines.get((buyer, base)), lines.get((FEES, base))
    proceeds, quote_fees = lines.get((seller, quote)), lines.get((FEES, quote))
    if into is None or fees is None or proceeds is None or quote_fees is None or buyer == seller:
        return False
    bought = _side(request.buyer, buy_id, buy, buy_left, quote_units, into, fees, base_units, 0)
    sold = _side(request.seller, sell_id, sell, sell_left, base_units, proceeds, quote_fees, quote_units, 3)
    if bought is None or sold is None:
        return False
    if entry.postings != bought[0] + sold[0] or entry.balances != bought[1] + sold[1]:
        return False
    books.take_over((buy.line, into, fees, sell.line, proceeds, quote_fees), entry.balances)
    books.use_hold(entry, buy_id, buy, buy_left)
    books.use_hold(entry, sell_id, sell, sell_left)
    return True


def _side(
    side: SideRead | None,
    hold_id: int,
    hold: OpenHold,
    left: int,
    units: int,
    into: Line,
    fees: Line,
    received: int,
    place: int,
) -> tuple[tuple[PlacedRead, ...], tuple[BalanceRead, ...]] | None:
    """
    Return the postings and balances that one side of a fill must have; None if its form is not the usual one.

    Args:
        side: The side in the request.
        hold_id: The hold that the side uses.
        hold: The same before the fill.
        left: What remains of it after the fill.
        units: How many units the side pays.
        into: The line that receives.
        fees: The line of the fees in the coin received.
        received: How many units are received, the fee included.
        place: The place of the side's first balance in the entry, from 0.
    """
    line, account, coin = hold.line, into.account, into.coin
    if side is None or side.dust is not None or account == FEES or not named(side.hold, hold_id):
        return None
    fee = side.fee
    fee_units = 0 if fee is None or fee.coin != coin else fee.units or 0
    released = hold.remaining - left - units
    asked = released if side.release == REST and not left else side.release_units or 0
    if left < 0 or released < 0 or released != asked or not 0 < fee_units < received:
        return None
    taken, got = units + released, received - fee_units
    available, freeze = line.available + released, line.freeze - taken
    into_available, fees_available = into.available + got, fees.available + fee_units
    if available < 0 or freeze < 0 or not into.may_have(into_available, into.freeze):
        return None
    if not fees.may_have(fees_available, fees.freeze):
        return None
    postings: Any = (
        (place, FREEZE, -taken, hold_id),
        (place + 1, AVAILABLE, got, None),
        (place + 2, AVAILABLE, fee_units, None),
    )
    if released:
        postings = (postings[0], (place, AVAILABLE, released, None), *postings[1:])
    balances: Any = (
        (account, line.coin, available, freeze),
        (account, coin, into_available, into.freeze),
        (FEES, coin, fees_available, fees.freeze),
    )
    return postings, balances


#: By kind of entry; entries of other kinds have no shortcut.
SHORTCUTS: Final[dict[str, Callable[[BooksRead, EntryRead], bool]]] = {
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "expire": _unfreeze,
    "deposit": _deposit,
    "withdraw": _withdraw,
    "transfer": _transfer,
    "settle": _settle,
}
