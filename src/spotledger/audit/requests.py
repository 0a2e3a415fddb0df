"""
What the postings of an entry have to be according to the request that it keeps: a second path beside the rules.

Each check returns None if the postings are what the request asks for; else a text that says what they should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _differing(entry: EntryRead, *expected: PostingRead) -> str | None:
    return None if entry.full_postings() == expected else str(expected)


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
    return _differing(entry, (account, coin, AVAILABLE, -units, None), (account, coin, FREEZE, units, entry.seq))


def _from_hold(entry: EntryRead, target: AccountRead | None) -> str | None:
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
    return _differing(entry, (account, coin, FREEZE, units, hold_id), freed)


def _unfreeze(entry: EntryRead, books: Books) -> str | None:
    return _from_hold(entry, None)


def _withdraw(entry: EntryRead, books: Books) -> str | None:
    if entry.request.hold is not None:
        return _from_hold(entry, EXTERNAL)
    if (amount := _amount(entry.request)) is None:
        return _MALFORMED
    account, coin, units = amount
    return _differing(entry, (account, coin, AVAILABLE, -units, None), (EXTERNAL, coin, AVAILABLE, units, None))


def _deposit(entry: EntryRead, books: Books) -> str | None:
    """Check a deposit, which repays the customer's debt first."""
    if (amount := _amount(entry.request)) is None:
        return _MALFORMED
    account, coin, units = amount
    receivable = (f"{RECEIVABLE}:{account[0]}", HOUSE_KIND)
    posted = sum(posting[3] for posting in entry.full_postings() if posting[0] == receivable)
    repaid = min(units, posted - books.owed(receivable[0], coin))
    expected: tuple[PostingRead, ...] = (
        (EXTERNAL, coin, AVAILABLE, -units, None),
        (receivable, coin, AVAILABLE, repaid, None),
        (account, coin, AVAILABLE, units - repaid, None),
    )
    return _differing(entry, *[posting for posting in expected if posting[3]])


def _transfer(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    coin, units, source, target = request.coin, request.units, request.source, request.target
    if coin is None or units is None or source is None or target is None:
        return _MALFORMED
    return _differing(
        entry,
        ((source.customer, source.account), coin, AVAILABLE, -units, None),
        ((target.customer, target.account), coin, AVAILABLE, units, None),
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
    return _differing(entry, *expected)


def _side(
    entry: EntryRead, side: SideRead, use: PostingRead, paid: str, units: int, coin: str, received: int
) -> list[PostingRead]:
    """Return the postings of one side, given *use*, its posting from its hold."""
    account, _, _, taken, hold_id = use
    fee_units = 0 if side.fee is None else side.fee.units or 0
    fee_paid, fee_received = (fee_units, 0) if side.fee is not None and side.fee.coin == paid else (0, fee_units)
    dust = 0 if side.dust is None else side.dust.units or 0
    released = side.release_units or 0
    if side.release == REST and (hold_id, 0) in entry.holds:
        released = -taken - units - fee_paid
    rest: list[PostingRead] = [
        (account, paid, AVAILABLE, released, None),
        (FEES, paid, AVAILABLE, fee_paid, None),
        (account, coin, AVAILABLE, received - fee_received - dust, None),
        (FEES, coin, AVAILABLE, fee_received, None),
        (DUST, coin, AVAILABLE, dust, None),
    ]
    hold_use = (account, paid, FREEZE, -(units + fee_paid + released), hold_id)
    return [hold_use, *[posting for posting in rest if posting[3]]]


def _reverse(entry: EntryRead, books: Books) -> str | None:
    """Check that a reversal is the opposite of an earlier entry; what a customer lacks of it becomes a debt."""
    seq = entry.request.seq or 0
    target = books.earlier(seq)
    if target is None or target.kind not in REVERSIBLE or target.refusal is not None:
        return f"an earlier deposit, withdraw, transfer or settle, not entry {seq}"
    books.reverse(seq)
    if entry.holds or any(posting[2] != AVAILABLE for posting in entry.full_postings()):
        return "no freeze and no hold in a reversal"
    done, undone = _net(target), _net(entry)
    for (account, coin), units in done.items():
        taken = -undone.get((account, coin), 0)
        if not _may_take(taken, units, account):
            return f"{account[0]} {coin}: {-units}"
        is_short = 0 <= taken < units and not _takes_all(units, account)
        if is_short and (left := books.available((account, coin))):
            return f"{account[0]} {coin}: {-min(units, taken + left)}, all that was there"
    if _by_owner(done) != {name: -units for name, units in _by_owner(undone).items()}:
        return f"the opposite of entry {seq}: {_by_owner(done)}"
    return None


def _may_take(taken: int, units: int, account: AccountRead) -> bool:
    """Say whether a reversal may take *taken* units from *account*, which the reversed entry gave *units*."""
    if account[1] == HOUSE_KIND and is_receivable(account[0]):
        return True  # a debt is compared together with the rest of what its customer has
    return taken == units if _takes_all(units, account) else 0 <= taken <= units


def _takes_all(units: int, account: AccountRead) -> bool:
    """Say whether a reversal takes back all *units* from *account*, even if it does not have them."""
    return units <= 0 or account in (EXTERNAL, FEES, DUST)


def _net(entry: EntryRead) -> dict[tuple[AccountRead, str], int]:
    net: dict[tuple[AccountRead, str], int] = {}
    for account, coin, _, units, _ in entry.full_postings():
        net[account, coin] = net.get((account, coin), 0) + units
    return net


def _by_owner(net: Mapping[tuple[AccountRead, str], int]) -> dict[tuple[str, str], int]:
    """Return *net* by owner and coin: a customer's accounts and debt together."""
    found: dict[tuple[str, str], int] = {}
    for (account, coin), units in net.items():
        owner = (account[0].removeprefix(f"{RECEIVABLE}:"), coin)
        found[owner] = found.get(owner, 0) + units
    return {name: units for name, units in found.items() if units}


#: The operations that have postings, by kind.
CHECKS: Final[dict[str, Callable[[EntryRead, Books], str | None]]] = {
    "deposit": _deposit,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "expire": _unfreeze,
    "withdraw": _withdraw,
    "transfer": _transfer,
    "settle": _settle,
    "reverse": _reverse,
}
