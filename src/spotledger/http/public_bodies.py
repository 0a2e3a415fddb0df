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
from spotledger.security.bounded import BoundedDict

#: What the kept bodies and pieces may take up in memory, by estimate.
BODIES_BYTES = 64 * 1024 * 1024
BODIES_ACCOUNTS = 200_000
_GZIP_LEVEL = 5
_ENTRY_BYTES = 500
_PIECE_BYTES = 250


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


class Body:
    """The body for one account, and what it was made from."""

    __slots__ = ("account", "changed_seq", "checked_seq", "coins", "content", "pieces", "seen", "weight", "zipped")

    def __init__(self, account: Account) -> None:
        self.account = account
        #: The ledger's head when the body was last known to be true.
        self.checked_seq = -1
        self.changed_seq = -1
        self.coins: Mapping[str, Coin] | None = None
        self.content = b""
        self.zipped: bytes | None = None
        self.pieces: dict[str, bytes] = {}
        self.seen: dict[str, Balance] = {}
        self.weight = _ENTRY_BYTES

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
        self._zero_pieces: dict[str, bytes] = {}
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
        body = bodies.older.get(customer) or Body(Account(customer, self._kind))
        if self._weight >= self._generation_bytes or len(bodies.younger) >= bodies.generation_limit:
            bodies.turn()
            self._weight = 0
        bodies.put(customer, body)
        self._weight += body.weight
        return body

    def _refresh(self, body: Body, head_seq: int) -> None:
        # Something happened in the ledger since this body was last seen to be true: perhaps not to this account.
        coins = self._ledger.coins
        view = self._ledger.account(body.account)
        if body.changed_seq != view.changed_seq or body.coins is not coins:
            self._remake(body, view.balances, coins)
            body.coins = coins
            body.changed_seq = view.changed_seq
        body.checked_seq = head_seq

    def _remake(self, body: Body, balances: Mapping[str, Balance], coins: Mapping[str, Coin]) -> None:
        if coins is not self._coins:
            self._note_coins(coins)
        pieces, seen = body.pieces, body.seen
        for coin, balance in balances.items():
            if seen.get(coin) is not balance:
                pieces[coin] = self._form.piece(coin, balance, coins[coin].scale)
                seen[coin] = balance
        body.zipped = None
        # The right-hand side of | only replaces values, so that the coins stay in the order of the listing.
        body.content = self._joined(self._zero_pieces | pieces) if pieces else self._zero_content
        weight = _ENTRY_BYTES + len(pieces) * _PIECE_BYTES + (2 * len(body.content) if pieces else 0)
        self._weight += weight - body.weight
        body.weight = weight

    def _note_coins(self, coins: Mapping[str, Coin]) -> None:
        self._coins = coins
        self._zero_pieces = {name: self._form.piece(name, ZERO, coin.scale) for name, coin in coins.items()}
        self._zero_content = self._joined(self._zero_pieces)

    def _joined(self, pieces: dict[str, bytes]) -> bytes:
        return self._form.begin + b",".join(pieces.values()) + self._form.end


def v1_form(success_info: str) -> Form:
    """Return the form of the v1 answers: ``{"code":200,"data":{"btc":{…},…},"info":"success"}``."""
    info = json.dumps(success_info).encode()
    return Form(b'{"code":200,"data":{', _v1_piece, b'},"info":' + info + b"}")


# Symbols and amounts are made of letters, digits and points only: nothing in the pieces needs escaping.
def _v1_piece(coin: str, balance: Balance, scale: int) -> bytes:
    freeze, available = format_amount(balance.freeze, scale), format_amount(balance.available, scale)
    return f'"{coin}":{{"freeze":"{freeze}","available":"{available}"}}'.encode("ascii")
