"""
The journal's records: entries, their postings, the holds that entries open and use, and the epochs that they begin.

An entry has its key, its canonical request and the balances after it. So one append makes the movement, its idempotency
key and its result durable together, and everything else about money can be derived from entries alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from spotledger.domain.accounts import Account
from spotledger.domain.operations import Freeze
from spotledger.domain.positions import EPOCH_LIMIT, FIRST_EPOCH, Epochs, EpochStart
from spotledger.errors import LedgerCorrupt

#: The version of the canonical requests in the journal.
REQUEST_FORMAT: Final = 1

#: The actors that are no credential: who uses the library, and the ledger itself.
LIBRARY: Final = "library"
LEDGER: Final = "ledger"
#: What the actors that are credentials begin with: the id of an operator token, or the beginning of an access key.
TOKEN_ACTOR: Final = "token:"  # noqa: S105 - no secret
KEY_ACTOR: Final = "key:"
#: So much of an access key identifies it, and cannot be used.
KEY_ACTOR_CHARACTERS: Final = 8
#: Every form of an actor.
ACTOR: Final = re.compile(
    rf"{TOKEN_ACTOR}[!-~]{{1,64}}|{KEY_ACTOR}[!-~]{{1,{KEY_ACTOR_CHARACTERS}}}|{LIBRARY}|{LEDGER}"
)
#: The kind of the entry that begins an epoch.
BEGIN_EPOCH: Final = "begin_epoch"
#: Of the random id that distinguishes two histories which began the same epoch.
EPOCH_ID_BYTES: Final = 16

#: Makes a named tuple from its class and a tuple of its values, in half the time of calling the class.
new_tuple = tuple.__new__

AVAILABLE: Final = "available"
FREEZE: Final = "freeze"


class Posting(NamedTuple):
    """One signed line of an entry: *units* on one side of an account; on freeze, the hold that it opens or uses."""

    account: Account
    coin: str
    side: str
    units: int
    hold: int | None = None


#: A posting as an entry has it: the place of its balance in the entry, from 0; side; units; hold or None. No named
#: tuple, which takes twice as long to make.
Move: TypeAlias = tuple[int, str, int, int | None]


#: Both sides of one account and coin after an entry: account, coin, available, freeze; in units. No named tuple either.
BalanceAfter: TypeAlias = tuple[Account, str, int, int]
#: What remains of a hold after an entry: its id, and units.
HoldAfter: TypeAlias = tuple[int, int]


class Hold(NamedTuple):
    """One freeze: its id is the ``seq`` of the entry that opened it, and it is closed when nothing remains."""

    hold_id: int
    account: Account
    coin: str
    amount: int
    remaining: int
    reference: str | None
    expires_ms: int | None
    opened_ms: int
    closed_seq: int | None = None

    @property
    def state(self) -> str:
        """``"open"``, or ``"closed"`` if nothing remains."""
        return "open" if self.closed_seq is None else "closed"

    @property
    def due(self) -> bool:
        """Whether it is open past its time, as it was read: it cannot be used, and its expiry will be booked."""
        return False

    def read_at(self, now_ms: int) -> Hold:
        """Return this hold as it is shown at *now_ms*: :attr:`due` if it is open and its time has come."""
        is_due = self.expires_ms is not None and self.expires_ms <= now_ms and self.closed_seq is None
        return new_tuple(DueHold, self) if is_due else self

    def after(self, remaining: int, seq: int) -> Hold:
        """Return this hold as the entry *seq* leaves it, with *remaining* units."""
        hold_id, account, coin, amount, _, reference, expires_ms, opened_ms, _ = self
        closed_seq = None if remaining else seq
        values = (hold_id, account, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq)
        return new_tuple(Hold, values)


class DueHold(Hold):
    """A hold that is open past its time; equal to the same hold as it is stored."""

    __slots__ = ()

    @property
    def due(self) -> bool:
        """True."""
        return True


def key_actor(accesskey: str) -> str:
    """Return the actor of a trader's own write with *accesskey*: too few characters of it to use it."""
    return KEY_ACTOR + accesskey[:KEY_ACTOR_CHARACTERS]


class Entry(NamedTuple):
    """
    One immutable record of the journal.

    ``seq`` counts 1, 2, 3 … without gaps, and ``booked_ms`` never falls along it. ``request`` is the canonical request.
    A kept refusal has a ``refusal`` (code, detail, details). It has no postings, and neither has a listing, a
    registration or the beginning of an epoch. ``actor`` is the credential behind the entry: ``token:<id>``,
    ``key:<first 8 characters>``, ``library``, or ``ledger``. Each of ``moves`` names its account and coin by one of
    ``balances``; :attr:`postings` spells them out.
    """

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: dict[str, Any]
    moves: tuple[Move, ...] = ()
    balances: tuple[BalanceAfter, ...] = ()
    holds: tuple[HoldAfter, ...] = ()
    happened_ms: int | None = None
    refusal: dict[str, Any] | None = None
    actor: str = LIBRARY

    @property
    def postings(self) -> tuple[Posting, ...]:
        """The signed lines of the entry."""
        return postings_of(self.moves, self.balances)

    def posting_balances(self) -> list[int]:
        """Return, for each posting, the balance of its side after it, worked back from the balances of the entry."""
        sides = {}
        for account, coin, available, freeze in self.balances:
            sides[account, coin, AVAILABLE] = available
            sides[account, coin, FREEZE] = freeze
        after = []
        for posting in reversed(self.postings):
            line = (posting.account, posting.coin, posting.side)
            after.append(sides[line])
            sides[line] -= posting.units
        after.reverse()
        return after


def postings_of(moves: Iterable[Move], balances: Sequence[BalanceAfter]) -> tuple[Posting, ...]:
    """Return the postings that *moves* are, with account and coin of each taken from the *balances* of the entry."""
    return tuple([new_tuple(Posting, (*balances[place][:2], side, units, hold)) for place, side, units, hold in moves])


def opens_hold(entry: Entry) -> bool:
    """Return whether *entry* opened a hold, with its ``seq`` as the id; a refused freeze opened none."""
    return entry.kind == Freeze.kind and bool(entry.moves)


def opened_hold(entry: Entry, account: Account | None = None, coin: str | None = None) -> Hold | None:
    """
    Return the hold that *entry* opened, as it was then, or None.

    If given, *account* and *coin* equal those of the entry: the hold then shares the objects with other holds.
    """
    if not opens_hold(entry):
        return None
    posted_to, posted_coin, _, _ = entry.balances[0]
    account, coin, request = account or posted_to, coin or posted_coin, entry.request
    units = entry.holds[0][1]
    reference, expires_ms = request.get("reference"), request.get("expires_ms")
    return Hold(entry.seq, account, coin, units, units, reference, expires_ms, entry.booked_ms)


def epoch_key(epoch: int) -> str:
    """Return the idempotency key of the entry with which *epoch* begins; no caller can use it."""
    return f" begin_epoch:{epoch}"


def begin_epoch(epochs: Epochs, seq: int, epoch: int, booked_ms: int, reason: str, random_id: str) -> Entry:
    """
    Return the entry *seq*, with which *epoch* begins.

    Args:
        epochs: The epochs before; the entry lists them, so that the newest one is enough to know all.
        seq: Its position.
        epoch: The new epoch, above the current one.
        booked_ms: When it is booked, in milliseconds since 1970.
        reason: Why, for people.
        random_id: Distinguishes two histories that began the same epoch.
    """
    request = {
        "format": REQUEST_FORMAT,
        "op": BEGIN_EPOCH,
        "epoch": epoch,
        "id": random_id,
        "reason": reason,
        "earlier": [list(start) for start in epochs.later],
    }
    return Entry(seq, BEGIN_EPOCH, epoch_key(epoch), booked_ms, request, actor=LEDGER)


def epochs_after(entry: Entry) -> Epochs:
    """
    Return the epochs of a journal whose newest epoch begins with *entry*.

    Raises:
        LedgerCorrupt: *entry* begins no epoch, or does not list those before it.
    """
    request = entry.request
    try:
        later = [EpochStart(epoch, seq) for epoch, seq in [*request["earlier"], (request["epoch"], entry.seq)]]
        steps = zip([EpochStart(FIRST_EPOCH, 0), *later], later, strict=False)
        is_sound = all(type(number) is int for start in later for number in start) and all(
            before.epoch < after.epoch < EPOCH_LIMIT and before.seq < after.seq for before, after in steps
        )
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound or entry.kind != BEGIN_EPOCH or entry.refusal is not None:
        raise LedgerCorrupt(f"entry {entry.seq} does not say which epochs there were")
    return Epochs(later)
