"""
What stands after each entry of an audit: a line for each account and coin, the open holds, and what is collected of
the entries for the comparison with their tables.

Where a balance or a hold is wrong it is noted, and what the journal says is taken over, so that one fault is not found
again in all that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from spotledger.audit.entries import EntryRead
from spotledger.audit.findings import Findings
from spotledger.domain.accounts import ACCOUNT_IDS, DUST, EXTERNAL, FEES, HOUSE_KIND, RECEIVABLE

Name = tuple[tuple[str, str], str]  # ((customer, kind of account), coin)
_HOUSE: Final = frozenset({tuple(EXTERNAL), tuple(FEES), tuple(DUST)})


class Line:
    """What one account has of one coin after the entry ``seq``, the last that touched it."""

    __slots__ = ("account", "available", "coin", "freeze", "may_be_negative", "name", "places", "rows", "seq")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.account, self.coin = name
        self.available = self.freeze = self.seq = 0
        customer, kind = name[0]
        self.may_be_negative = kind == "house" and (customer == EXTERNAL.customer or customer.startswith(RECEIVABLE))
        #: The places of the entries that are collected, from the first of them on.
        self.places: list[int] | None = None
        #: ``seq``, available, freeze, over and over: as it was before the entries that are collected, then after each;
        #: only while what stood is remembered.
        self.rows: list[int] | None = None

    def may_have(self, available: int, freeze: int) -> bool:
        """Say whether the line may have these sides: only the outside world and debts go below zero."""
        return freeze >= 0 and (available >= 0 or self.may_be_negative)


class OpenHold:
    """What remains of an open hold."""

    __slots__ = ("line", "remaining", "row_closed_seq")

    def __init__(self, line: Line, remaining: int) -> None:
        self.line = line
        self.remaining = remaining
        #: What the table of holds said of its closing when the hold's segment was compared; -1 while it was not.
        self.row_closed_seq: int | None = -1


class BooksRead:
    """The books as the entries that were read so far leave them."""

    def __init__(self, findings: Findings) -> None:
        """Start with nothing; faults go to *findings*."""
        self._note = findings.add
        self.seq = 0
        #: Whether what stood after each entry is remembered, for tables that stand for an earlier one; not needed of
        #: segments that are surely compared.
        self.remembers = True
        self._first_seq = 1
        self.lines: dict[Name, Line] = {}
        self.holds: dict[int, OpenHold] = {}
        self.coins: dict[str, tuple[int, int]] = {}
        self.customers: dict[str, int] = {}
        # What is collected of the entries since the last segment that was compared with its tables:
        self.touched: list[Line] = []
        self.opened: dict[int, tuple[Any, ...]] = {}
        self.closed: dict[int, int] = {}
        self.uses: dict[int, list[tuple[int, int]]] = {}
        #: Holds that were closed by another entry than the table of holds said when it was looked at: looked at again.
        self.closed_otherwise: dict[int, int] = {}

    def forget_collected(self) -> None:
        """Forget what was collected of the entries: their tables are compared."""
        for line in self.touched:
            line.places = line.rows = None
        self.touched.clear()
        self.opened.clear()
        self.closed.clear()
        self.uses.clear()
        self._first_seq = self.seq + 1

    def touch(self, line: Line) -> None:
        """Collect that the entry that is being read touches *line*, before it changes what the line has."""
        place = self.seq - self._first_seq
        if line.places is None:
            line.places = [place]
            self.touched.append(line)
        else:
            line.places.append(place)
        if self.remembers and line.rows is None:
            line.rows = [line.seq, line.available, line.freeze]
        line.seq = self.seq

    def take_over(self, entry: EntryRead, lines: tuple[Line, ...]) -> None:
        """Give *lines* the balances after *entry*, which a shortcut found to be theirs, in this order."""
        seq = self.seq
        place = seq - self._first_seq
        # Without strict, which would cost 2 % of an audit: the balances were compared with those of the lines.
        for line, (_, _, available, freeze) in zip(lines, entry.balances):  # noqa: B905
            if self.remembers:
                self.touch(line)
                line.rows += (seq, available, freeze)  # type: ignore[operator]
            elif line.places is None:
                line.places = [place]
                self.touched.append(line)
            else:
                line.places.append(place)
            line.available, line.freeze, line.seq = available, freeze, seq

    def open_hold(self, entry: EntryRead, line: Line, units: int) -> OpenHold:
        """Open the hold of a freeze."""
        seq, request = self.seq, entry.request
        hold = self.holds[seq] = OpenHold(line, units)
        (customer, kind), coin = line.name
        self.opened[seq] = (
            seq, customer, kind, coin, units, request.reference, request.expires_ms, entry.booked_ms,
        )  # fmt: skip
        return hold

    def use_hold(self, hold_id: int, hold: OpenHold, remaining: int) -> None:
        """Let *remaining* units remain of a hold, and close it where they are none."""
        if self.remembers:
            self._remember_use(hold_id, hold)
        hold.remaining = remaining
        if remaining <= 0 or hold_id in self.uses:
            self._close_if_used_up(hold_id, hold)

    def _remember_use(self, hold_id: int, hold: OpenHold) -> None:
        if hold_id not in self.uses:
            self.uses[hold_id] = [(0, hold.remaining)]

    def _close_if_used_up(self, hold_id: int, hold: OpenHold) -> None:
        if hold_id in self.uses:
            self.uses[hold_id].append((self.seq, hold.remaining))
        if hold.remaining <= 0 and hold_id in self.holds:
            del self.holds[hold_id]
            if hold_id in self.opened:
                self.closed[hold_id] = self.seq
            elif hold.row_closed_seq != self.seq:
                self.closed_otherwise[hold_id] = self.seq

    def post(self, entry: EntryRead) -> None:
        """Take the postings of an entry, and compare the balances and holds after it with where they lead."""
        seq, lines = self.seq, self.lines
        sums: dict[str, int] = {}
        touched: list[Line] = []
        used: list[tuple[int, OpenHold]] = []
        for account, coin, side, units, hold_id in entry.lines():
            name = (account, coin)
            line = lines.get(name) or self._new_line(name)
            if line.seq != seq:
                self.touch(line)
                touched.append(line)
            if hold_id is None and side == "available":
                line.available += units
            else:
                self._post_aside(entry, line, side, units, hold_id, used)
            sums[coin] = sums.get(coin, 0) + units
        if any(sums.values()):
            self._note("not_zero_sum", seq, "postings", sums, "a sum of 0 for every coin")
        self._close_balances(entry, touched)
        if used or entry.holds:
            self._close_holds(entry, used)

    def learn(self, entry: EntryRead) -> bool:
        """Learn what has to be known before *entry* is posted, where something has; say whether anything was learnt."""
        new = False
        for account, coin, *_ in entry.lines():
            if (account, coin) not in self.lines:
                self._new_line((account, coin))
                new = True
        return new

    def owed(self, receivable: str, coin: str) -> int:
        """Return what stands on a customer's *receivable* after the entry: 0 or less."""
        line = self.lines.get(((receivable, HOUSE_KIND), coin))
        return 0 if line is None else line.available

    def _new_line(self, name: Name) -> Line:
        line = self.lines[name] = Line(name)
        account, coin = name
        customer, kind = account
        if coin not in self.coins:
            self._note("coin_unknown", self.seq, f"{customer} {coin}", coin, "a coin that was listed before")
        if not has_owner(account, self.customers.__contains__):
            self._note("customer_unknown", self.seq, f"{customer} {kind}", customer, "one who was registered before")
        return line

    def _post_aside(
        self,
        entry: EntryRead,
        line: Line,
        side: str,
        units: int,
        hold_id: int | None,
        used: list[tuple[int, OpenHold]],
    ) -> None:
        """Take a posting onto the freeze side, which opens a hold or uses one; or a malformed one."""
        seq = self.seq
        if side == "available" or hold_id is None:
            line.available += units if side == "available" else 0
            line.freeze += units if side == "freeze" else 0
            self._note("hold_misused", seq, "postings", f"{side} with hold {hold_id}", "freeze with a hold, or neither")
            return
        line.freeze += units
        hold = self.holds.get(hold_id)
        if hold_id == seq:
            if hold is not None or units <= 0 or entry.kind != "freeze":
                self._note(
                    "hold_misused", seq, f"hold {hold_id}", f"{entry.kind} of {units}", "opened once, by a freeze"
                )
            hold = self.open_hold(entry, line, units)
        elif hold is None:
            self._note("hold_unknown", seq, f"hold {hold_id}", "used", "a hold that is open")
            return
        else:
            if hold.line is not line or units >= 0:
                self._note(
                    "hold_misused", seq, f"hold {hold_id}", f"{units} of {line.name}", f"taken from {hold.line.name}"
                )
            if self.remembers:
                self._remember_use(hold_id, hold)
            hold.remaining += units
            if hold.remaining < 0:
                self._note("hold_overdrawn", seq, f"hold {hold_id}", units, f"at most {hold.remaining - units}")
        used.append((hold_id, hold))

    def _close_balances(self, entry: EntryRead, touched: list[Line]) -> None:
        """Compare the balances after the entry with where its postings led."""
        seq = self.seq
        if len(touched) == len(entry.balances):
            for line, (account, coin, available, freeze) in zip(touched, entry.balances, strict=True):
                if (
                    available != line.available
                    or freeze != line.freeze
                    or line.name != (account, coin)
                    or not line.may_have(available, freeze)
                ):
                    break
                if line.rows is not None:
                    line.rows += (seq, available, freeze)
            else:
                return
        self._name_balances(entry, touched)

    def _name_balances(self, entry: EntryRead, touched: list[Line]) -> None:
        """Say which of the balances after the entry are wrong, and take over what it says."""
        seq = self.seq
        said = {(account, coin): (available, freeze) for account, coin, available, freeze in entry.balances}
        if len(entry.balances) != len(touched) or said.keys() != {line.name for line in touched}:
            found = ", ".join(f"{name} {kind} {coin}" for (name, kind), coin in said)
            expected = ", ".join(_where(line) for line in touched)
            self._note("balance_after_differs", seq, "balances", found, expected)
        for line in touched:
            available, freeze = said.get(line.name, (line.available, line.freeze))
            found = f"available {available}, freeze {freeze}"
            if (available, freeze) != (line.available, line.freeze):
                expected = f"available {line.available}, freeze {line.freeze}"
                self._note("balance_after_differs", seq, _where(line), found, expected)
                line.available, line.freeze = available, freeze
            if not line.may_have(available, freeze):
                self._note("below_zero", seq, _where(line), found, "0 or more")
            rows = line.rows
            if rows is not None and rows[-3] != seq:
                rows += (seq, available, freeze)

    def _close_holds(self, entry: EntryRead, used: list[tuple[int, OpenHold]]) -> None:
        """Compare what the entry says remains of its holds with what does, and close those of which nothing does."""
        seq = self.seq
        remaining = [(hold_id, hold.remaining) for hold_id, hold in used]
        if tuple(remaining) != entry.holds:
            said = dict(entry.holds)
            self._note("hold_after_differs", seq, "holds", said, dict(remaining))
            for hold_id, hold in used:
                hold.remaining = said.get(hold_id, hold.remaining)
        for hold_id, hold in used:
            self._close_if_used_up(hold_id, hold)


def has_owner(account: tuple[str, str], registered: Callable[[str], bool]) -> bool:
    """Say whether there can be an *account* like this, with the customers that are *registered*."""
    customer, kind = account
    if kind == HOUSE_KIND:
        return account in _HOUSE or registered(customer.removeprefix(f"{RECEIVABLE}:"))
    return kind in ACCOUNT_IDS and registered(customer)


def _where(line: Line) -> str:
    (customer, kind), coin = line.name
    return f"{customer} {kind} {coin}"
