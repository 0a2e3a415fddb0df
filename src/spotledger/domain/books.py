"""
What the rules share: their view of the books, and how postings become balances.

Every operation that moves money ends in :func:`post`, or in :func:`shift` if it moves units from one side of a line to
the other. Balances change nowhere else, and no customer's can fall below zero there.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from spotledger.domain.accounts import FIRST_HOUSE_ACCOUNTS, HOUSE_KIND, Account, Coin, HouseAccount, may_be_negative
from spotledger.domain.amounts import UNITS_LIMIT, format_amount
from spotledger.domain.journal import (
    AVAILABLE,
    FREEZE,
    BalanceAfter,
    Entry,
    Hold,
    Move,
    Posting,
    new_tuple,
    postings_of,
)
from spotledger.domain.operations import HoldKey, HoldName, SettleSide, Unfreeze, Withdraw
from spotledger.domain.positions import Epochs
from spotledger.errors import (
    BalanceTooLarge,
    HoldClosed,
    HoldExpired,
    HoldShort,
    InsufficientAvailable,
    LedgerCorrupt,
    PreconditionFailed,
    UnknownCoin,
    UnknownCustomer,
    UnknownHold,
    UnknownHouseAccount,
)

T = TypeVar("T")


class State(Protocol):
    """The books just before an operation, as the rules read them."""

    @property
    def epochs(self) -> Epochs:
        """The epochs of the journal."""

    @property
    def debtors(self) -> Container[str]:
        """The customers who owe something, and maybe others; empty if nobody owes anything."""

    def coin(self, name: str) -> Coin | None:
        """Return the listed coin, or None."""

    def has_customer(self, customer: str) -> bool:
        """Return whether *customer* is registered."""

    def house_account(self, name: str) -> HouseAccount | None:
        """Return the house account *name*, which begins with ``@``, or None if it is not open."""

    def line(self, account: Account, coin: str) -> Line:
        """Return the balance of *coin* that *account* has, as a line that a decision can move."""

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands, open or closed, or None."""

    def hold_id_of_key(self, key: str) -> int | None:
        """Return the id of the hold that was opened with an idempotency key, or None."""

    def entry(self, seq: int) -> Entry | None:
        """Return an entry of the journal, or None."""

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""


class Subject(NamedTuple):
    """What an operation names, looked up in the books: coin, amount in units, hold; None for what is unknown."""

    coin: Coin | None = None
    units: int | None = None
    hold: Hold | None = None


#: The subject of an operation of which nothing was looked up.
NO_SUBJECT: Final = Subject()


class Line:
    """
    One account's balance of one coin in the midst of a group: what the operations decided so far leave, in units.

    There is one object for each account and coin, found once for an operation. Whoever keeps it brings it to the books
    as they stand before it is handed to a rule.
    """

    __slots__ = ("account", "available", "coin", "freeze", "open", "place", "segment", "stamp")

    def __init__(self, account: Account, coin: str, available: int = 0, freeze: int = 0) -> None:
        """Start with a balance of *available* and *freeze* units."""
        self.account = account
        self.coin = coin
        self.available = available
        self.freeze = freeze
        #: Which decision moved it last, and its place among the lines of that decision.
        self.stamp = self.place = 0
        #: The store's own: the open segment that has the line, and its part there. Never the account: a cycle of an
        #: account with its lines would be freed by the collector only.
        self.segment: Any = None
        self.open: Any = None


#: Numbers decisions, and groups of them, in the order in which they begin.
new_stamp: Final = count(1).__next__


#: What a rule asks :func:`post` to move: a line, its side, units, and on freeze the hold.
LineMove: TypeAlias = tuple[Line, str, int, int | None]


class Decision(NamedTuple):
    """What one operation does to the books."""

    moves: tuple[Move, ...] = ()
    #: What is on the lines that were moved, after all moves, in the order of their first move.
    balances: tuple[BalanceAfter, ...] = ()
    holds: tuple[Hold, ...] = ()
    lines: Sequence[Line] = ()

    @property
    def postings(self) -> tuple[Posting, ...]:
        """What was moved, spelled out."""
        return postings_of(self.moves, self.balances)

    def undo(self) -> None:
        """Take back what was moved; several decisions are undone in the reverse of their order."""
        _undo(self.moves, self.lines)


def post(moves: Iterable[LineMove], holds: tuple[Hold, ...] = ()) -> Decision:
    """
    Change the lines by *moves*, of which those of zero units move nothing.

    Raises:
        BalanceTooLarge: A balance would reach 10**38 units; nothing is changed.
        LedgerCorrupt: A balance that must not be negative would be; the rule should have refused the operation.
    """
    stamp = new_stamp()
    lines: list[Line] = []
    posted: list[Move] = []
    for line, side, units, hold in moves:
        if not units:
            continue
        if line.stamp != stamp:
            line.stamp = stamp
            line.place = len(lines)
            lines.append(line)
        if side == AVAILABLE:
            line.available += units
        else:
            line.freeze += units
        posted.append((line.place, side, units, hold))
    balances: list[BalanceAfter] = []
    for line in lines:
        available, freeze = line.available, line.freeze
        if available < 0 or freeze < 0 or available + freeze >= UNITS_LIMIT:
            _check_bounds(line, posted, lines)
        balances.append((line.account, line.coin, available, freeze))
    return new_tuple(Decision, (tuple(posted), tuple(balances), holds, lines))


def shift(line: Line, units: int, source: str, hold_id: int, hold: Hold) -> Decision:
    """
    Move *units*, > 0, from the side *source* of *line* to its other side, for the hold *hold_id*, left as *hold*.

    It does what :func:`post` does with the two moves, for the most frequent operations, in a third of the time.

    Raises:
        LedgerCorrupt: A balance that must not be negative would be; the rule should have refused the operation.
    """
    if source == AVAILABLE:
        moves: tuple[Move, ...] = ((0, AVAILABLE, -units, None), (0, FREEZE, units, hold_id))
        available, freeze = line.available - units, line.freeze + units
    else:
        moves = ((0, FREEZE, -units, hold_id), (0, AVAILABLE, units, None))
        available, freeze = line.available + units, line.freeze - units
    line.available, line.freeze = available, freeze
    if available < 0 or freeze < 0:
        _check_bounds(line, moves, (line,))
    balances = ((line.account, line.coin, available, freeze),)
    return new_tuple(Decision, (moves, balances, (hold,), (line,)))


def _check_bounds(line: Line, moves: Sequence[Move], lines: Sequence[Line]) -> None:
    """Take *moves* back and raise, if what is on *line* after them must not be."""
    account, coin, available, freeze = line.account, line.coin, line.available, line.freeze
    # The sum of both sides is bounded, so that everything in freeze can go back to available.
    if available + freeze >= UNITS_LIMIT or available <= -UNITS_LIMIT:
        _undo(moves, lines)
        raise too_large(line, "amount")
    if freeze < 0 or (available < 0 and not may_be_negative(account) and not _is_opened(account)):
        _undo(moves, lines)
        raise LedgerCorrupt(f"{account.customer} {account.kind} {coin} would fall below zero")


def too_large(line: Line, field: str) -> BalanceTooLarge:
    """Return the refusal of what would bring *line* to 10**38 units."""
    return BalanceTooLarge(
        f"the balance of {line.account.customer} in {line.coin} would reach 10**38 units", field=field
    )


def _is_opened(account: Account) -> bool:
    """Say whether an operator opened *account*: the group that books its entries knows whether it may be negative."""
    return account.kind == HOUSE_KIND and account.customer not in FIRST_HOUSE_ACCOUNTS


def _undo(moves: Sequence[Move], lines: Sequence[Line]) -> None:
    for place, side, units, _ in moves:
        if side == AVAILABLE:
            lines[place].available -= units
        else:
            lines[place].freeze -= units


def listed(name: str, coin: Coin | None, field: str = "coin") -> Coin:
    """Return *coin*, which was looked up by *name*, or refuse."""
    if coin is None:
        raise UnknownCoin(f"coin {name} is not listed; a listed coin would pass", field=field)
    return coin


def registered(customer: str, kind: str | None, state: State, field: str = "customer") -> Account:
    """Return the account *kind* of a registered *customer*, or an open house account, or refuse."""
    if kind == HOUSE_KIND:
        return _opened(customer, state, field)
    if not state.has_customer(customer):
        raise UnknownCustomer(f"customer {customer} is not registered; a registered one would pass", field=field)
    return new_tuple(Account, (customer, kind))


def _opened(name: str, state: State, field: str) -> Account:
    if state.house_account(name) is None:
        raise UnknownHouseAccount(f"house account {name} is not open; one that is would pass", field=field)
    return Account(name, HOUSE_KIND)


def enough_available(line: Line, coin: Coin, units: int, state: State, field: str = "amount") -> None:
    """Refuse if *line*, which is of *coin*, has less than *units* available and may not be below zero."""
    if line.available < units and not is_overdraft(line.account, state):
        raise insufficient(line, coin, units, field)


def is_overdraft(account: Account, state: State) -> bool:
    """Say whether *account* is a house account that may be below zero."""
    if account.kind != HOUSE_KIND:
        return False
    found = state.house_account(account.customer)
    return found is not None and found.may_be_negative


def insufficient(line: Line, coin: Coin, units: int, field: str) -> InsufficientAvailable:
    """Return the refusal of what would take *units* of *coin* from *line*; that of a house account is not kept."""
    available, account = line.available, line.account
    refusal = InsufficientAvailable(
        f"{account.customer} has {amount_text(available, coin)} {coin.name} available in {account.kind};"
        f" {amount_text(units, coin)} was asked for",
        field=field,
        available=amount_text(available, coin),
    )
    refusal.kept = account.kind != HOUSE_KIND
    return refusal


def find_hold(name: HoldName, state: State) -> Hold | None:
    """Return the hold that *name* names, or None."""
    hold_id = state.hold_id_of_key(name.key) if isinstance(name, HoldKey) else int(name)
    return None if hold_id is None else state.hold(hold_id)


def open_hold(name: HoldName, hold: Hold | None, field: str = "hold") -> Hold:
    """Return *hold*, which was looked up by *name*, or refuse if nothing remains of it."""
    if hold is None:
        raise UnknownHold(f"there is no hold {_shown(name)}; the id of an open hold would pass", field=field)
    if not hold.remaining:
        raise HoldClosed(
            f"nothing remains of hold {_shown(name)}; it was closed by entry {hold.closed_seq}", field=field
        )
    return hold


def _shown(name: HoldName) -> str:
    return f"of key {name.key}" if isinstance(name, HoldKey) else name


def usable_hold(
    named: Unfreeze | Withdraw | SettleSide, hold: Hold | None, state: State, now_ms: int, field: str = "hold"
) -> Hold:
    """
    Return *hold*, which *named* names, or refuse if it is not the one that was meant, has expired or is closed.

    The expiry is checked before the rest, so that the answer is the same whether or not the ledger has written the
    expiry yet.
    """
    name = named.hold
    assert name is not None, "it names a hold"  # noqa: S101
    if named.epoch is not None or named.customer is not None or named.coin is not None:
        _check_hold_is_meant(named, name, hold, state, field)
    if hold is not None and hold.expires_ms is not None and now_ms >= hold.expires_ms:
        raise HoldExpired(f"hold {hold.hold_id} expired at {hold.expires_ms}; the time is {now_ms}", field=field)
    return hold if hold is not None and hold.remaining else open_hold(name, hold, field)


def _check_hold_is_meant(
    named: Unfreeze | Withdraw | SettleSide, name: HoldName, hold: Hold | None, state: State, field: str
) -> None:
    if hold is not None or not isinstance(name, HoldKey):
        state.epochs.require(int(name) if isinstance(name, str) else known(hold, name).hold_id, named.epoch, field)
    if hold is not None:
        owner = {hold.account.customer}
        check_meant(f"hold {_shown(name)}", owner, {hold.coin}, named.customer, named.coin, field)


def check_meant(
    what: str, customers: Collection[str], coins: Collection[str], customer: str | None, coin: str | None, field: str
) -> None:
    """
    Check the preconditions of something that is named.

    Raises:
        PreconditionFailed: *customer* is none of *customers*, or *coin* none of *coins*.
    """
    for word, found, wanted in (("customer", customers, customer), ("coin", coins, coin)):
        if wanted is not None and wanted not in found:
            raise PreconditionFailed(f"{what} is not of the {word} {wanted}, which was named with it", field=field)


def enough_remaining(hold: Hold, coin: Coin, units: int, field: str = "amount") -> None:
    """Refuse if less than *units* remains of *hold*."""
    if units > hold.remaining:
        raise HoldShort(
            f"{amount_text(hold.remaining, coin)} {coin.name} remains of hold {hold.hold_id};"
            f" {amount_text(units, coin)} was asked for",
            field=field,
            remaining=amount_text(hold.remaining, coin),
        )


def known(value: T | None, because: object) -> T:
    """Return *value*, which an earlier check guarantees *because* of something else that is there."""
    if value is None:
        raise LedgerCorrupt(f"a value that has to come with {because!r} is missing")
    return value


def amount_text(units: int, coin: Coin) -> str:
    """Return *units* as decimal text with two decimals, or as many as the coin has if fewer; for messages."""
    return format_amount(units, coin.scale, min(2, coin.scale))
