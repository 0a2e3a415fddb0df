"""
What the postings of an entry have to be, from the request that it keeps: a second path beside the rules.

Each check returns None where the postings are what the request asks for, else a text that says what they should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from spotledger.audit.entries import AVAILABLE, FREEZE, AccountRead, EntryRead, PostingRead, SideRead, named
from spotledger.domain.accounts import DUST, EXTERNAL, FEES, HOUSE_KIND, RECEIVABLE
from spotledger.domain.operations import REST
from spotledger.domain.reversal import REVERSIBLE

_EXTERNAL: Final[AccountRead] = (EXTERNAL.customer, EXTERNAL.kind)
_FEES: Final[AccountRead] = (FEES.customer, FEES.kind)
_DUST: Final[AccountRead] = (DUST.customer, DUST.kind)
_FORM: Final = "what its request, which is malformed, asks for"


class Books(Protocol):
    """What the checks ask of the pass."""

    def owed(self, receivable: str, coin: str) -> int:
        """Return what stands on a customer's *receivable* after the entry."""

    def earlier(self, seq: int) -> EntryRead | None:
        """Return an entry before the one that is being read."""

    def reverse(self, seq: int) -> None:
        """Remember that the entry that is being read reverses the entry *seq*."""


def _differing(postings: tuple[PostingRead, ...], expected: tuple[PostingRead, ...]) -> str | None:
    return None if postings == expected else str(expected)


def _freeze(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    coin, units = request.coin, request.units
    if coin is None or units is None or request.customer is None or request.account is None:
        return _FORM
    account = (request.customer, request.account)
    expected: tuple[PostingRead, ...] = (
        (account, coin, AVAILABLE, -units, None),
        (account, coin, FREEZE, units, entry.seq),
    )
    return None if entry.lines() == expected else str(expected)


def _from_hold(entry: EntryRead, target: AccountRead | None) -> str | None:
    """Check what goes from a hold to *target*, or back to where it came from; all that remains where no units are."""
    request = entry.request
    account, coin, side, units, hold_id = entry.lines()[0]
    if side != FREEZE or not named(request.hold, hold_id) or request.coin not in (coin, None):
        return f"a posting from hold {request.hold}"
    if request.units is None:
        if entry.holds != ((hold_id, 0),):
            return f"all that remains of hold {hold_id}"
    elif units != -request.units:
        return f"{request.units} units of hold {hold_id}"
    expected: tuple[PostingRead, ...] = (
        (account, coin, FREEZE, units, hold_id),
        (target or account, coin, AVAILABLE, -units, None),
    )
    return None if entry.lines() == expected else str(expected)


def _unfreeze(entry: EntryRead, books: Books) -> str | None:
    return _from_hold(entry, None)


def _withdraw(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    if request.hold is not None:
        return _from_hold(entry, _EXTERNAL)
    coin, units = request.coin, request.units
    if coin is None or units is None or request.customer is None or request.account is None:
        return _FORM
    account = (request.customer, request.account)
    expected = ((account, coin, AVAILABLE, -units, None), (_EXTERNAL, coin, AVAILABLE, units, None))
    return _differing(entry.lines(), expected)


def _deposit(entry: EntryRead, books: Books) -> str | None:
    """Check a deposit: what the customer owes is repaid first."""
    request = entry.request
    coin, units = request.coin, request.units
    if coin is None or units is None or request.customer is None or request.account is None:
        return _FORM
    account = (request.customer, request.account)
    receivable = (f"{RECEIVABLE}:{request.customer}", HOUSE_KIND)
    posted = sum(posting[3] for posting in entry.lines() if posting[0] == receivable)
    repaid = min(units, posted - books.owed(receivable[0], coin))
    lines: tuple[PostingRead, ...] = (
        (_EXTERNAL, coin, AVAILABLE, -units, None),
        (receivable, coin, AVAILABLE, repaid, None),
        (account, coin, AVAILABLE, units - repaid, None),
    )
    return _differing(entry.lines(), tuple([line for line in lines if line[3]]))


def _transfer(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    coin, units, source, target = request.coin, request.units, request.source, request.target
    if coin is None or units is None or source is None or target is None:
        return _FORM
    expected = (
        ((source.customer, source.account), coin, AVAILABLE, -units, None),
        ((target.customer, target.account), coin, AVAILABLE, units, None),
    )
    return _differing(entry.lines(), expected)


def _settle(entry: EntryRead, books: Books) -> str | None:
    request = entry.request
    base, quote, base_units, quote_units = request.base, request.quote, request.base_units, request.quote_units
    if base is None or quote is None or base_units is None or quote_units is None:
        return _FORM
    expected: list[PostingRead] = []
    for side, paid, units, coin, received in (
        (request.buyer, quote, quote_units, base, base_units),
        (request.seller, base, base_units, quote, quote_units),
    ):
        position = len(expected)
        if side is None or position >= len(entry.lines()):
            return f"postings for both sides: {expected} and more"
        said = entry.lines()[position]
        if said[2] != FREEZE or not named(side.hold, said[4]):
            return f"a posting from hold {side.hold}"
        expected += _side(entry, side, said, paid, units, coin, received)
    return _differing(entry.lines(), tuple(expected))


def _side(
    entry: EntryRead, side: SideRead, said: PostingRead, paid: str, units: int, coin: str, received: int
) -> list[PostingRead]:
    """Return the postings of one side, whose posting from its hold says *said*."""
    account, _, _, taken, hold_id = said
    fee_paid = fee_received = 0
    if side.fee is not None:
        if side.fee.coin == paid:
            fee_paid = side.fee.units or 0
        else:
            fee_received = side.fee.units or 0
    dust = 0 if side.dust is None else side.dust.units or 0
    released = side.release_units or 0
    if side.release == REST and (hold_id, 0) in entry.holds:
        released = -taken - units - fee_paid
    lines: list[PostingRead] = [(account, paid, FREEZE, -(units + fee_paid + released), hold_id)]
    if released:
        lines.append((account, paid, AVAILABLE, released, None))
    if fee_paid:
        lines.append((_FEES, paid, AVAILABLE, fee_paid, None))
    if received != fee_received + dust:
        lines.append((account, coin, AVAILABLE, received - fee_received - dust, None))
    if fee_received:
        lines.append((_FEES, coin, AVAILABLE, fee_received, None))
    if dust:
        lines.append((_DUST, coin, AVAILABLE, dust, None))
    return lines


def _reverse(entry: EntryRead, books: Books) -> str | None:
    """Check that a reversal is the opposite of an earlier entry; what a customer lacks of it becomes a debt."""
    seq = entry.request.seq or 0
    target = books.earlier(seq)
    if target is None or target.kind not in REVERSIBLE or target.refusal is not None:
        return f"an earlier deposit, withdraw, transfer or settle, not entry {seq}"
    books.reverse(seq)
    if entry.holds or any(posting[2] != AVAILABLE for posting in entry.lines()):
        return "no freeze and no hold in a reversal"
    done, undone = _net(target), _net(entry)
    for (account, coin), units in done.items():
        if not _may_take(-undone.get((account, coin), 0), units, account):
            return f"{account[0]} {coin}: {-units}"
    if _by_owner(done) != {name: -units for name, units in _by_owner(undone).items()}:
        return f"the opposite of entry {seq}: {_by_owner(done)}"
    return None


def _may_take(taken: int, units: int, account: AccountRead) -> bool:
    """Say whether a reversal may take *taken* units from *account*, which the entry reversed gave *units*."""
    if account[1] == HOUSE_KIND and account[0].startswith(RECEIVABLE):
        return True  # a debt is judged with the rest of what its customer has
    if units <= 0 or account in (_EXTERNAL, _FEES, _DUST):
        return taken == units
    return 0 <= taken <= units


def _net(entry: EntryRead) -> dict[tuple[AccountRead, str], int]:
    net: dict[tuple[AccountRead, str], int] = {}
    for account, coin, _, units, _ in entry.lines():
        net[account, coin] = net.get((account, coin), 0) + units
    return net


def _by_owner(net: Mapping[tuple[AccountRead, str], int]) -> dict[tuple[str, str], int]:
    """Return *net* by whom it is about: what a customer owes and what he has belong together."""
    found: dict[tuple[str, str], int] = {}
    for (account, coin), units in net.items():
        owner = (account[0].removeprefix(f"{RECEIVABLE}:"), coin)
        found[owner] = found.get(owner, 0) + units
    return {name: units for name, units in found.items() if units}


#: By kind: the operations that have postings.
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
