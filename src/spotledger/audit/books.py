"""
The books after each entry of an audit, and what the entries did since the tables were last compared with them.

A wrong balance or hold is noted, and the value in the journal is taken over, so that one fault is not found again in
every later entry.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from sys import intern
from typing import Any, Final

from spotledger.audit.entries import AVAILABLE, DUST, EXTERNAL, FEES, FREEZE, AccountRead, BalanceRead, EntryRead
from spotledger.audit.findings import Findings
from spotledger.domain.accounts import ACCOUNT_IDS, HOUSE_KIND, RECEIVABLE, is_receivable
from spotledger.domain.amounts import UNITS_LIMIT

EXPIRE: Final = "expire"
LineName = tuple[tuple[str, str], str]  # ((customer, kind of account), coin)
_HOUSE: Final = frozenset({EXTERNAL, FEES, DUST})


class Line:
    """The running balance of one account and coin, after the entry ``seq``, the last one that touched it."""

    __slots__ = (
        "account", "available", "coin", "freeze", "is_listed", "may_be_negative", "name", "places", "segments", "seq",
    )  # fmt: skip

    def __init__(self, name: LineName) -> None:
        self.name = name
        self.account, self.coin = name
        self.available = self.freeze = self.seq = 0
        #: The sum of :func:`mixed` over the segments that touched the line and were compared with their tables.
        self.segments = 0
        #: Whether its row was found in the table of balances.
        self.is_listed = False
        customer, kind = name[0]
        self.may_be_negative = kind == HOUSE_KIND and (customer == EXTERNAL[0] or is_receivable(customer))
        #: The places of the entries that touched the line, counted from the first collected entry; None for none.
        self.places: list[int] | None = None

    def __str__(self) -> str:
        return f"{self.account[0]} {self.account[1]} {self.coin}"

    def may_have(self, available: int, freeze: int) -> bool:
        """Say whether the line may have these sides: few house accounts may have less than zero available."""
        if freeze < 0 or available + freeze >= UNITS_LIMIT:
            return False
        return available >= 0 or (self.may_be_negative and available + freeze > -UNITS_LIMIT)


class OpenHold:
    """What remains of an open hold, and when it expires."""

    __slots__ = ("expires_ms", "line", "remaining", "row_closed_seq")

    def __init__(self, line: Line, remaining: int, expires_ms: int | None) -> None:
        self.line = line
        self.remaining = remaining
        self.expires_ms = expires_ms
        #: The ``closed_seq`` of the hold's row when its segment was compared; -1 before that.
        self.row_closed_seq: int | None = -1


class BooksRead:
    """The books after the entries read so far."""

    def __init__(self, findings: Findings) -> None:
        """Start with empty books; faults are added to *findings*."""
        self._note = findings.add
        self.seq = 0
        #: The first collected entry.
        self.first_seq = 1
        #: Whether entries are missing, so that what is collected of a segment may be incomplete.
        self.has_gaps = False
        self.lines: dict[LineName, Line] = {}
        self._accounts: dict[AccountRead, AccountRead] = {}
        self.holds: dict[int, OpenHold] = {}
        self.coins: dict[str, tuple[int, int]] = {}
        #: Customers and the house accounts that were opened, and the entries that registered them.
        self.customers: dict[str, int] = {}
        #: Who owes which coin.
        self.debts: set[tuple[str, str]] = set()
        #: The house accounts that were opened as ones that may be below zero.
        self.overdrafts: set[str] = set()
        # What was collected since the last comparison of a segment with its tables:
        self.touched: list[Line] = []
        self.opened: dict[int, tuple[Any, ...]] = {}
        self.closed: dict[int, int] = {}
        #: Holds closed by another entry than their row said when it was compared; they are compared again.
        self.closed_otherwise: dict[int, int] = {}

    def forget_collected(self) -> None:
        """Forget what was collected, once it is compared with the tables."""
        for line in self.touched:
            line.places = None
        self.touched.clear()
        self.opened.clear()
        self.closed.clear()
        self.first_seq = self.seq + 1

    def move(self, line: Line, available: int, freeze: int) -> None:
        """Collect that the current entry touches *line*, and give it the balance after the entry."""
        seq = self.seq
        places = line.places
        if places is None:
            line.places = [seq - self.first_seq]
            self.touched.append(line)
        else:
            places.append(seq - self.first_seq)
        line.available, line.freeze, line.seq = available, freeze, seq

    def take_over(self, lines: tuple[Line, ...], balances: tuple[BalanceRead, ...]) -> None:
        """Give *lines* these balances after the current entry, in this order, like :meth:`move`."""
        seq = self.seq
        place = seq - self.first_seq
        # Without strict, which costs 2 % of an audit: a shortcut made both side by side.
        for line, (_, _, available, freeze) in zip(lines, balances):  # noqa: B905
            if line.places is None:
                line.places = [place]
                self.touched.append(line)
            else:
                line.places.append(place)
            line.available, line.freeze, line.seq = available, freeze, seq

    def open_hold(self, entry: EntryRead, line: Line, units: int) -> OpenHold:
        """Open the hold of a freeze."""
        seq, request = self.seq, entry.request
        hold = self.holds[seq] = OpenHold(line, units, request.expires_ms)
        (customer, kind), coin = line.name
        self.opened[seq] = (
            seq, customer, kind, coin, units, request.reference, request.expires_ms, entry.booked_ms,
        )  # fmt: skip
        return hold

    def use_hold(self, entry: EntryRead, hold_id: int, hold: OpenHold, remaining: int) -> None:
        """Set what remains of a hold that *entry* uses, and close it if nothing does."""
        if hold.expires_ms is not None or entry.kind == EXPIRE:
            self.check_time(entry, hold_id, hold)
        hold.remaining = remaining
        if remaining <= 0:
            self._close(hold_id, hold)

    def check_time(self, entry: EntryRead, hold_id: int, hold: OpenHold) -> None:
        """Check that *entry* uses the hold before it expires or, if it is the expiry, not before."""
        expires_ms, booked_ms = hold.expires_ms, entry.booked_ms
        if entry.kind == EXPIRE:
            if expires_ms is None or booked_ms < expires_ms:
                self._note("hold_expired_early", self.seq, f"hold {hold_id}", f"booked {booked_ms}", _from(expires_ms))
        elif expires_ms is not None and booked_ms >= expires_ms:
            self._note("hold_used_late", self.seq, f"hold {hold_id}", f"booked {booked_ms}", f"before {expires_ms}")

    def _close(self, hold_id: int, hold: OpenHold) -> None:
        """Close a hold, of which nothing remains."""
        if self.holds.pop(hold_id, None) is None:
            return
        if hold_id in self.opened:
            self.closed[hold_id] = self.seq
        elif hold.row_closed_seq != self.seq:
            self.closed_otherwise[hold_id] = self.seq

    def learn(self, entry: EntryRead) -> bool:
        """Make the lines that *entry* is the first to touch; say whether there were any."""
        new = False
        for account, coin, *_ in entry.full_postings():
            if (account, coin) not in self.lines:
                self._new_line((account, coin))
                new = True
        return new

    def owed(self, receivable: str, coin: str) -> int:
        """Return the balance of a customer's *receivable* after the entry: 0 or less."""
        return self.available(((receivable, HOUSE_KIND), coin))

    def available(self, name: LineName) -> int:
        """Return what an account has available of a coin after the entry."""
        line = self.lines.get(name)
        return 0 if line is None else line.available

    def note_debts(self, entry: EntryRead) -> None:
        """Note who owes something after *entry*, and who no longer does."""
        for (owner, kind), coin, _, _ in entry.balances:
            if kind == HOUSE_KIND and is_receivable(owner):
                debt = (owner.removeprefix(f"{RECEIVABLE}:"), coin)
                (self.debts.add if self.owed(owner, coin) < 0 else self.debts.discard)(debt)

    def check_debts(self, entry: EntryRead) -> None:
        """Check that those whom *entry* touches do not have available what they owe."""
        touched = {(account[0].removeprefix(f"{RECEIVABLE}:"), coin) for account, coin, _, _ in entry.balances}
        for customer, coin in touched & self.debts:
            for kind in ACCOUNT_IDS:
                if available := self.available(((customer, kind), coin)):
                    found = f"available {available}, and owes {coin}"
                    self._note("owes_and_has", self.seq, f"{customer} {kind} {coin}", found, "one of them")

    def add_line(self, name: LineName) -> Line:
        """Add a line; lines of one account share its name, because what an audit waits for is memory."""
        (customer, kind), coin = name
        account = self._accounts.get(name[0])
        if account is None:
            account = (customer, intern(kind))
            self._accounts[account] = account
        shared = (account, intern(coin))
        line = self.lines[shared] = Line(shared)
        line.may_be_negative |= kind == HOUSE_KIND and customer in self.overdrafts
        return line

    def _new_line(self, name: LineName) -> Line:
        line = self.add_line(name)
        customer, kind = line.account
        if line.coin not in self.coins:
            self._note("coin_unknown", self.seq, f"{customer} {line.coin}", line.coin, "a coin that was listed before")
        if not has_owner(line.account, self.customers.__contains__):
            self._note("customer_unknown", self.seq, f"{customer} {kind}", customer, "one who was registered before")
        return line

    # --- entries without a shortcut -------------------------------------------------------------------------

    def post(self, entry: EntryRead) -> None:
        """Apply the postings of an entry, and compare the balances and holds after it with the result."""
        seq, lines = self.seq, self.lines
        sums: dict[str, int] = {}
        touched: list[Line] = []
        used: list[tuple[int, OpenHold]] = []
        for account, coin, side, units, hold_id in entry.full_postings():
            name = (account, coin)
            line = lines.get(name) or self._new_line(name)
            if line.seq != seq:
                self.move(line, line.available, line.freeze)
                touched.append(line)
            if hold_id is None or side == AVAILABLE:
                self._post_without_hold(line, side, units, hold_id)
            elif (hold := self._post_to_hold(entry, line, units, hold_id)) is not None:
                used.append((hold_id, hold))
            sums[coin] = sums.get(coin, 0) + units
        if any(sums.values()):
            self._note("not_zero_sum", seq, "postings", sums, "a sum of 0 for every coin")
        self._check_balances(entry, touched)
        if used or entry.holds:
            self._check_holds(entry, used)

    def _post_without_hold(self, line: Line, side: str, units: int, hold_id: int | None) -> None:
        if side == AVAILABLE:
            line.available += units
        elif side == FREEZE:
            line.freeze += units
        if side != AVAILABLE or hold_id is not None:
            found = f"{side} with hold {hold_id}"
            self._note("hold_misused", self.seq, "postings", found, "freeze with a hold, or neither")

    def _post_to_hold(self, entry: EntryRead, line: Line, units: int, hold_id: int) -> OpenHold | None:
        """Apply a posting on the freeze side, and return the hold that it opens or uses; None if there is none."""
        seq, where = self.seq, f"hold {hold_id}"
        line.freeze += units
        hold = self.holds.get(hold_id)
        if hold_id == seq:
            if hold is not None or units <= 0 or entry.kind != "freeze":
                self._note("hold_misused", seq, where, f"{entry.kind} of {units}", "opened once, by a freeze")
            return self.open_hold(entry, line, units)
        if hold is None:
            self._note("hold_unknown", seq, where, "used", "a hold that is open")
            return None
        if hold.line is not line or units >= 0:
            self._note("hold_misused", seq, where, f"{units} of {line.name}", f"taken from {hold.line.name}")
        self.check_time(entry, hold_id, hold)
        hold.remaining += units
        if hold.remaining < 0:
            self._note("hold_overdrawn", seq, where, units, f"at most {hold.remaining - units}")
        return hold

    def _check_balances(self, entry: EntryRead, touched: list[Line]) -> None:
        """Compare the balances after *entry* with those that its postings led to, and take over its own."""
        led_to = [(line.account, line.coin, line.available, line.freeze) for line in touched]
        if list(entry.balances) != led_to or not all(line.may_have(line.available, line.freeze) for line in touched):
            self._note_balances(entry, touched)

    def _note_balances(self, entry: EntryRead, touched: list[Line]) -> None:
        said = {(account, coin): (available, freeze) for account, coin, available, freeze in entry.balances}
        if len(entry.balances) != len(touched) or said.keys() != {line.name for line in touched}:
            found = ", ".join(f"{name} {kind} {coin}" for (name, kind), coin in said)
            self._note("balance_after_differs", self.seq, "balances", found, ", ".join(map(str, touched)))
        for line in touched:
            available, freeze = said.get(line.name, (line.available, line.freeze))
            found = sides(available, freeze)
            if (available, freeze) != (line.available, line.freeze):
                expected = sides(line.available, line.freeze)
                self._note("balance_after_differs", self.seq, str(line), found, expected)
                line.available, line.freeze = available, freeze
            if freeze < 0 or (available < 0 and not line.may_be_negative):
                self._note("below_zero", self.seq, str(line), found, "0 or more")

    def _check_holds(self, entry: EntryRead, used: list[tuple[int, OpenHold]]) -> None:
        """Compare what remains of the holds after *entry* with what it says, and close those that are used up."""
        remaining = [(hold_id, hold.remaining) for hold_id, hold in used]
        if tuple(remaining) != entry.holds:
            said = dict(entry.holds)
            self._note("hold_after_differs", self.seq, "holds", said, dict(remaining))
            for hold_id, hold in used:
                hold.remaining = said.get(hold_id, hold.remaining)
        for hold_id, hold in used:
            if hold.remaining <= 0:
                self._close(hold_id, hold)


def sides(available: object, freeze: object) -> str:
    """Return a balance as findings show it; raises ValueError for numbers that Python does not write."""
    return f"available {available}, freeze {freeze}"


def stored_units(value: object) -> int | None:
    """Return the whole number in a column of units, whatever its type in the store; None if it is not one."""
    if isinstance(value, int):
        return value
    try:
        units = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return units if str(units) == str(value) else None


def has_owner(account: tuple[str, str], registered: Callable[[str], bool]) -> bool:
    """Say whether *account* is a house account, or belongs to a customer who is *registered*."""
    customer, kind = account
    if kind == HOUSE_KIND:
        return account in _HOUSE or registered(customer.removeprefix(f"{RECEIVABLE}:"))
    return kind in ACCOUNT_IDS and registered(customer)


def mixed(segment: int) -> int:
    """Return a number that represents a segment in a sum; no two sets of segments have the same sum in practice."""
    return int.from_bytes(blake2b(segment.to_bytes(8, "little"), digest_size=8).digest(), "little")


def _from(expires_ms: int | None) -> str:
    return "not at all: the hold does not expire" if expires_ms is None else f"{expires_ms} or later"
