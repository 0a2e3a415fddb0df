"""
What the postings of an entry have to be according to the request that it keeps: a second path beside the rules.

Each check returns None if the postings are what the request asks for; else a text that says what they should be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from spotledger.audit.entries import (
    AVAILABLE,
    DUST,
    EXTERNAL,
    FEES,
    FREEZE,
    AccountRead,
    EntryRead,
    PostingRead,
    RequestRead,
    SideRead,
    named,
)
from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, is_receivable
from spotledger.domain.operations import REST
from spotledger.domain.reversal import REVERSIBLE

_MALFORMED: Final = "what its request, which is malformed, asks for"


class Books(Protocol):
    """What the checks ask of the pass."""

    def owed(self, receivable: str, coin: str) -> int:
        """Return the balance of a customer's *receivable* after the entry: 0 or less."""

    def available(self, name: tuple[AccountRead, str]) -> int:
        """Return what an account has available of a coin after the entry."""

    def earlier(self, seq: int) -> EntryRead | None:
        """Return an entry before the current one, or None if it cannot be read."""

    def reverse(self, seq: int) -> None:
        """Remember that the current entry reverses the entry *seq*."""


def _differing(entry: EntryRead, books: Books, *expected: PostingRead) -> str | None:
    """Compare the postings with *expected*, which what repays debts follows."""
    if entry.full_postings() == expected:
        return None
    expected += _repayments(entry, books, expected)
    return None if entry.full_postings() == expected else str(expected)


def _repayments(entry: EntryRead, books: Books, expected: tuple[PostingRead, ...]) -> tuple[PostingRead, ...]:
    """Return what has to repay debts after the *expected* postings: all that they leave available to a debtor."""
    posted, wanted = _on_available(entry.full_postings()), _on_available(expected)
    owed: dict[tuple[str, str], int] = {}
    found: list[PostingRead] = []
    for (customer, kind), coin in dict.fromkeys((account, coin) for account, coin, *_ in expected):
        if kind == HOUSE_KIND:
            continue
        name, debt = ((customer, kind), coin), ((f"{RECEIVABLE}:{customer}", HOUSE_KIND), coin)
        before = posted.get(debt, 0) - wanted.get(debt, 0) - books.owed(debt[0][0], coin)
        left = owed.get((customer, coin), before)
        has = books.available(name) - posted.get(name, 0) + wanted.get(name, 0)
        repaid = max(min(has, left), 0)
        owed[customer, coin] = left - repaid
        if repaid:
            found += [(name[0], coin, AVAILABLE, -repaid, None), (debt[0], coin, AVAILABLE, repaid, None)]
    return tuple(found)


def _on_available(postings: tuple[PostingRead, ...]) -> dict[tuple[AccountRead, str], int]:
    """Return how much *postings* move on the available side, by account and coin."""
    sums: dict[tuple[AccountRead, str], int] = {}
    for account, coin, side, units, _ in postings:
        if side == AVAILABLE:
            sums[account, coin] = sums.get((account, coin), 0) + units
    return sums


def _amount(request: RequestRead) -> tuple[AccountRead, str, int] | None:
    """Return the account, coin and units that *request* names, or None if it does not name them all."""
    coin, units = request.coin, request.units
    if coin is None or units is None or request.customer is None or request.account is None:
        return None
    return (request.customer, request.account), coin, units


def _freeze(entry: EntryRead, books: Books) -> str | None:
    if (amount := _amount(entry.request)) is None:
        return _MALFORMED
    account, coin, units = amount
    expires_ms = entry.request.expires_ms
    if expires_ms is not None and expires_ms <= entry.booked_ms:
        return f"no hold: it expires at {expires_ms}, and was booked at {entry.booked_ms}"
    return _differing(entry, books, (account, coin, AVAILABLE, -units, None), (account, coin, FREEZE, units, entry.seq))


def _from_hold(entry: EntryRead, books: Books, target: AccountRead | None) -> str | None:
    """Check what moves from a hold to *target*, or back to its account; without units, all that remains of the hold."""
    request = entry.request
    account, coin, side, units, hold_id = entry.full_postings()[0]
    if side != FREEZE or not named(request.hold, hold_id) or request.coin not in (coin, None):
        return f"a posting from hold {request.hold}"
    if request.units is None:
        if entry.holds != ((hold_id, 0),):
            return f"all that remains of hold {hold_id}"
    elif units != -request.units:
        return f"{request.units} units of hold {hold_id}"
    freed = (target or account, coin, AVAILABLE, -units, None)
    return _differing(entry, books, (account, coin, FREEZE, units, hold_id), freed)


def _unfreeze(entry: EntryRead, books: Books) -> str | None:
    return _from_hold(entry, books, None)


def _withdraw(entry: EntryRead, books: Books) -> str | None:
    if entry.request.hold is not None:
        return _from_hold(entry, books, EXTERNAL)
    if (amount := _amount(entry.request)) is None:
        return _MALFORMED
    account, coin, units = amount
    return _differing(entry, books, (account, coin, AVAILABLE, -units, None), (EXTERNAL, coin, AVAILABLE, units, None))


def _deposit(entry: EntryRead, books: Books) -> str | None:
    if (amount := _amount(entry.request)) is None:
        return _MALFORMED
    account, coin, units = amount
    return _differing(entry, books, (EXTERNAL, coin, AVAILABLE, -units, None), (account, coin, AVAILABLE, units, None))


def _transfer(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    coin, units, source, target = request.coin, request.units, request.source, request.target
    if coin is None or units is None or source is None or target is None:
        return _MALFORMED
    return _differing(
        entry,
        books,
        ((source.customer, source.account), coin, AVAILABLE, -units, None),
        ((target.customer, target.account), coin, AVAILABLE, units, None),
    )


def _post(entry: EntryRead, books: Books) -> str | None:
    """Check that each leg of a post is a posting, and that the legs sum to zero."""
    legs = entry.request.legs
    if not legs or any(not leg.units for leg in legs):
        return _MALFORMED
    return _differing(
        entry, books, *[((leg.customer, leg.account), leg.coin, AVAILABLE, leg.units or 0, None) for leg in legs]
    )


def _settle(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    base, quote, base_units, quote_units = request.base, request.quote, request.base_units, request.quote_units
    if base is None or quote is None or base_units is None or quote_units is None:
        return _MALFORMED
    postings = entry.full_postings()
    expected: list[PostingRead] = []
    for side, paid, units, coin, received in (
        (request.buyer, quote, quote_units, base, base_units),
        (request.seller, base, base_units, quote, quote_units),
    ):
        if side is None or len(expected) >= len(postings):
            return f"postings for both sides: {expected} and more"
        use = postings[len(expected)]
        if use[2] != FREEZE or not named(side.hold, use[4]):
            return f"a posting from hold {side.hold}"
        expected += _side(entry, side, use, paid, units, coin, received)
    return _differing(entry, books, *expected)


def _side(
    entry: EntryRead, side: SideRead, use: PostingRead, paid: str, units: int, coin: str, received: int
) -> list[PostingRead]:
    """Return the postings of one side, given *use*, its posting from its hold."""
    account, _, _, taken, hold_id = use
    fees = FEES if entry.request.fee_account is None else (entry.request.fee_account, HOUSE_KIND)
    fee_units = 0 if side.fee is None else side.fee.units or 0
    fee_paid, fee_received = (fee_units, 0) if side.fee is not None and side.fee.coin == paid else (0, fee_units)
    dust = 0 if side.dust is None else side.dust.units or 0
    released = side.release_units or 0
    if side.release == REST and (hold_id, 0) in entry.holds:
        released = -taken - units - max(fee_paid, 0)
    rest: list[PostingRead] = [
        (account, paid, AVAILABLE, released, None),
        (account, paid, AVAILABLE, max(-fee_paid, 0), None),
        (fees, paid, AVAILABLE, fee_paid, None),
        (account, coin, AVAILABLE, received - fee_received - dust, None),
        (fees, coin, AVAILABLE, fee_received, None),
        (DUST, coin, AVAILABLE, dust, None),
    ]
    hold_use = (account, paid, FREEZE, -(units + max(fee_paid, 0) + released), hold_id)
    return [hold_use, *[posting for posting in rest if posting[3]]]


def _reverse(entry: EntryRead, books: Books) -> str | None:
    """Check that a reversal is the opposite of an earlier entry; what a customer lacks of it becomes a debt."""
    seq = entry.request.seq or 0
    target = books.earlier(seq)
    if target is None or target.kind not in REVERSIBLE or target.refusal is not None:
        return f"an earlier deposit, withdraw, transfer, post or settle, not entry {seq}"
    books.reverse(seq)
    if entry.holds or any(posting[2] != AVAILABLE for posting in entry.full_postings()):
        return "no freeze and no hold in a reversal"
    expected = _opposite(entry, target, books)
    wanted = _on_available((*expected, *_repayments(entry, books, expected)))
    if {name: units for name, units in wanted.items() if units} != _net(entry):
        return f"the opposite of entry {seq}, paid by what was there: {expected}"
    return None


def _opposite(entry: EntryRead, target: EntryRead, books: Books) -> tuple[PostingRead, ...]:
    """
    Return the opposite of *target*, given back before anything is taken.

    Customers pay from the account concerned, then from their wallet, spot and fiat accounts, and owe the rest.
    """
    posted = _on_available(entry.full_postings())
    moved: dict[tuple[AccountRead, str], int] = {}
    for (account, coin), units in _net(target).items():
        if units < 0 or (account[1] == HOUSE_KIND and not is_receivable(account[0])):
            moved[account, coin] = moved.get((account, coin), 0) - units
    for (account, coin), units in _net(target).items():
        if units > 0 and (account[1] != HOUSE_KIND or is_receivable(account[0])):
            customer, left = account[0].removeprefix(f"{RECEIVABLE}:"), units
            own = [] if account[1] == HOUSE_KIND else [account[1]]
            for kind in dict.fromkeys([*own, "wallet", "spot", "fiat"]):
                name = ((customer, kind), coin)
                taken = min(left, books.available(name) - posted.get(name, 0) + moved.get(name, 0))
                moved[name] = moved.get(name, 0) - taken
                left -= taken
            debt = ((f"{RECEIVABLE}:{customer}", HOUSE_KIND), coin)
            moved[debt] = moved.get(debt, 0) - left
    return tuple([(account, coin, AVAILABLE, units, None) for (account, coin), units in moved.items()])


def _net(entry: EntryRead) -> dict[tuple[AccountRead, str], int]:
    net: dict[tuple[AccountRead, str], int] = {}
    for account, coin, _, units, _ in entry.full_postings():
        net[account, coin] = net.get((account, coin), 0) + units
    return {name: units for name, units in net.items() if units}


#: The operations that have postings, by kind.
CHECKS: Final[dict[str, Callable[[EntryRead, Books], str | None]]] = {
    "deposit": _deposit,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "expire": _unfreeze,
    "withdraw": _withdraw,
    "transfer": _transfer,
    "post": _post,
    "settle": _settle,
    "reverse": _reverse,
}
