"""
The bodies of balance answers, assembled from pieces that are ready.

Encoding 200 coins for each answer would take longer than all the rest of it. So for each account
asked about lately its body is kept, and the piece of each coin that was ever touched; when the
account has changed, only the pieces of coins whose balance is another object are made anew.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from spotledger.domain.accounts import ZERO, Account, Balance, Coin
from spotledger.domain.amounts import format_amount
from spotledger.security.bounded_dict import BoundedDict

#: What the kept bodies and pieces may take up in memory, by estimate.
BODIES_BYTES = 64 * 1024 * 1024
BODIES_ACCOUNTS = 200_000
_GZIP_LEVEL = 5
#: A body up to this length is kept whole beside its pieces.
KEPT_CONTENT_BYTES = 2_048
_ENTRY_BYTES = 500
_PIECE_BYTES = 250
_REFERENCE_BYTES = 8


class AccountSight(Protocol):
    """What is looked at of an account of the ledger."""

    @property
    def changed_seq(self) -> int:
        """The last entry that touched the account."""

    @property
    def balances(self) -> Mapping[str, Balance]:
        """The balances of coins ever touched; a changed one is another object."""


class HeadSight(Protocol):
    """What is looked at of the ledger's head."""

    @property
    def seq(self) -> int:
        """The last entry."""


class LedgerSight(Protocol):
    """What this listener asks the ledger."""

    @property
    def head(self) -> HeadSight:
        """The last entry that is durable."""

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins, sorted by name; another object after each listing."""

    def account(self, account: Account, /) -> AccountSight:
        """Return an account as it stands at the head."""


class Form(NamedTuple):
    """How a body is put together: its begin, the piece for each coin, joined with commas, and its end."""

    begin: bytes
    piece: Callable[[str, Balance, int], bytes]
    end: bytes

    def joined(self, parts: list[bytes]) -> bytes:
        """Return the body made of *parts*."""
        return self.begin + b",".join(parts) + self.end


class Body:
    """The body for one account: its pieces, and what they were made from."""

    __slots__ = ("account", "changed_seq", "checked_seq", "coins", "form", "kept", "parts", "seen", "weight", "zipped")

    def __init__(self, account: Account, form: Form) -> None:
        self.account = account
        self.form = form
        #: The ledger's head when the body was last known to be true.
        self.checked_seq = -1
        self.changed_seq = -1
        self.coins: Mapping[str, Coin] | None = None
        #: One piece a listed coin, in their order; those of coins never touched are shared by all accounts.
        self.parts: list[bytes] = []
        #: The whole body, where it is short enough to be kept beside its pieces.
        self.kept: bytes | None = None
        self.zipped: bytes | None = None
        self.seen: dict[str, Balance] = {}
        self.weight = _ENTRY_BYTES

    @property
    def content(self) -> bytes:
        """The body; a long one is joined from its pieces each time, which takes less than its memory is worth."""
        return self.form.joined(self.parts) if self.kept is None else self.kept

    def gzipped(self) -> bytes:
        """Return the body compressed; it is compressed once."""
        if self.zipped is None:
            self.zipped = gzip.compress(self.content, _GZIP_LEVEL, mtime=0)
        return self.zipped


class BalanceBodies:
    """The bodies for the accounts of one kind; those asked about least lately are forgotten."""

    def __init__(
        self,
        ledger: LedgerSight,
        kind: str,
        form: Form,
        bytes_limit: int = BODIES_BYTES,
        accounts_limit: int = BODIES_ACCOUNTS,
    ) -> None:
        """
        Begin with none.

        Args:
            ledger: Where the accounts are.
            kind: ``wallet``, ``spot`` or ``fiat``.
            form: How a body is put together.
            bytes_limit: What may be kept, by estimate.
            accounts_limit: How many accounts' bodies may be kept.
        """
        self._ledger = ledger
        self._kind = kind
        self._form = form
        self._generation_bytes = bytes_limit // 2
        self._weight = 0
        self._bodies: BoundedDict[str, Body] = BoundedDict(max(1, accounts_limit // 2))
        self._coins: Mapping[str, Coin] | None = None
        self._positions: dict[str, int] = {}
        self._zero_parts: list[bytes] = []
        self._zero_content = b""

    def of(self, customer: str, head_seq: int) -> Body:
        """Return the body for *customer*'s account at the ledger's head, which is at *head_seq*."""
        body = self._bodies.younger.get(customer)
        if body is None:
            body = self._kept(customer)
        if body.checked_seq != head_seq:
            self._refresh(body, head_seq)
        return body

    def _kept(self, customer: str) -> Body:
        bodies = self._bodies
        body = bodies.older.get(customer) or Body(Account(customer, self._kind), self._form)
        if self._weight >= self._generation_bytes or len(bodies.younger) >= bodies.generation_limit:
            bodies.rotate()
            self._weight = 0
        bodies.put(customer, body)
        self._weight += body.weight
        return body

    def _refresh(self, body: Body, head_seq: int) -> None:
        # Something happened in the ledger since this body was last seen to be true: perhaps not to this account.
        view = self._ledger.account(body.account)
        # In this order: what a thread that follows other nodes changes meanwhile is then seen at the next look, and
        # every coin that somebody has is among the coins.
        changed_seq = view.changed_seq
        balances = view.balances
        coins = self._ledger.coins
        if body.changed_seq != changed_seq or body.coins is not coins:
            self._remake(body, balances, coins)
            body.coins = coins
            body.changed_seq = changed_seq
        body.checked_seq = head_seq

    def _remake(self, body: Body, balances: Mapping[str, Balance], coins: Mapping[str, Coin]) -> None:
        if coins is not self._coins:
            self._note_coins(coins)
        if coins is not body.coins:
            body.parts = self._zero_parts.copy() if balances else self._zero_parts
            body.seen.clear()
        elif not body.seen and balances:
            body.parts = self._zero_parts.copy()
        parts, seen, positions = body.parts, body.seen, self._positions
        for coin, balance in balances.items():
            if seen.get(coin) is not balance:
                parts[positions[coin]] = self._form.piece(coin, balance, coins[coin].scale)
                seen[coin] = balance
        body.zipped = None
        body.kept = self._kept_content(body)
        weight = _ENTRY_BYTES + len(seen) * _PIECE_BYTES
        if seen:
            weight += len(parts) * _REFERENCE_BYTES + len(body.kept or b"")
        self._weight += weight - body.weight
        body.weight = weight

    def _kept_content(self, body: Body) -> bytes | None:
        if not body.seen:
            return self._zero_content
        content = self._form.joined(body.parts)
        return content if len(content) <= KEPT_CONTENT_BYTES else None

    def _note_coins(self, coins: Mapping[str, Coin]) -> None:
        self._coins = coins
        self._positions = {name: position for position, name in enumerate(coins)}
        self._zero_parts = [self._form.piece(name, ZERO, coin.scale) for name, coin in coins.items()]
        self._zero_content = self._form.joined(self._zero_parts)


def v1_form(success_info: str) -> Form:
    """Return the form of the v1 answers: ``{"code":200,"data":{"btc":{…},…},"info":"success"}``."""
    info = json.dumps(success_info).encode()
    return Form(b'{"code":200,"data":{', _v1_piece, b'},"info":' + info + b"}")


# Symbols and amounts are made of letters, digits and points only: nothing in the pieces needs escaping.
def _v1_piece(coin: str, balance: Balance, scale: int) -> bytes:
    freeze, available = format_amount(balance.freeze, scale), format_amount(balance.available, scale)
    return f'"{coin}":{{"freeze":"{freeze}","available":"{available}"}}'.encode("ascii")
