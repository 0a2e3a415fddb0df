"""
What the public listener sends back: balances joined from ready pieces, headers, and the three forms of a refusal.

Encoding 200 coins for each answer would take longer than all the rest of it. So the body of each account read lately is
kept, and so is the piece of each coin that the account ever had; when the account changes, only the pieces of the coins
whose balance is another object are encoded again.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from spotledger.domain.accounts import ZERO, Account, Balance, Coin
from spotledger.domain.amounts import formatter
from spotledger.errors import LimitExceeded, SpotledgerError, Unavailable
from spotledger.http import wire
from spotledger.http.public.request import Request, RequestHeaders
from spotledger.security.addresses import Peer
from spotledger.security.bounded_dict import BoundedDict
from spotledger.security.gate import Gate

Header = tuple[str, str]

JSON = "application/json"
PROBLEM = wire.PROBLEM_MEDIA_TYPE
VARY = "vary: accept-encoding\r\n"
GZIP = "content-encoding: gzip\r\n"
#: A body shorter than this is never compressed.
GZIP_LEAST_BYTES = 1024
RETRY_AFTER_S = 1
#: Memory that kept bodies and their pieces may use, estimated.
BODIES_BYTES = 64 * 1024 * 1024
BODIES_ACCOUNTS = 200_000
#: A body up to this length is kept whole beside its pieces.
KEPT_CONTENT_BYTES = 2_048

_GZIP_LEVEL = 5
_ENTRY_BYTES = 500
_PIECE_BYTES = 250
_REFERENCE_BYTES = 8
_ZERO_WEIGHT = re.compile(r"\s*q\s*=\s*0(?:\.0*)?\s*", re.ASCII)


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    #: The headers as they are sent: each line with its end.
    lines: str
    body: bytes

    @property
    def headers(self) -> list[Header]:
        """The headers, name and value, in their order."""
        pairs = (line.partition(": ") for line in self.lines.split("\r\n") if line)
        return [(name, value) for name, _, value in pairs]


Call = Callable[[Request], Coroutine[Any, Any, Answer]]


def encode(document: Any) -> bytes:
    """Return *document* as compact JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def answered(request: Request, head_seq: int | None, content: bytes, limits: list[Header]) -> Answer:
    """Return a success with *content*, which stands for the ledger at *head_seq*."""
    return Answer(200, _first_lines(request, JSON, head_seq) + lines_of(limits), content)


def answered_with_body(request: Request, head_seq: int, body: Body, limits: str) -> Answer:
    """Return a success with a kept body, maybe of an entry after *head_seq*, gzipped if long; *limits* are lines."""
    lines = _first_lines(request, JSON, max(head_seq, body.changed_seq)) + limits
    content = body.content
    if len(content) >= GZIP_LEAST_BYTES:
        lines += VARY
        if wants_gzip(request.headers):
            lines += GZIP
            content = body.gzipped()
    return Answer(200, lines, content)


def refused(
    request: Request, head_seq: int | None, error: SpotledgerError, content: bytes, limits: list[Header]
) -> Answer:
    """Return a refusal: *content* with status 200, or problem details with a true status (rule R14)."""
    if wants_problem(request.headers):
        problem = wire.problem(error, request.request_id)
        lines = _first_lines(request, PROBLEM, head_seq) + lines_of(limits)
        return Answer(problem["status"], lines, encode(problem))
    # A client takes a 2xx on CONNECT for an open tunnel.
    status = wire.row_of(error).status if request.method == "CONNECT" else 200
    return Answer(status, _first_lines(request, JSON, head_seq) + lines_of(limits), content)


def lines_of(headers: Iterable[Header]) -> str:
    """Return *headers* as they are sent: each line with its end."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def _first_lines(request: Request, media: str, head_seq: int | None) -> str:
    seq = "" if head_seq is None else f"x-ledger-seq: {head_seq}\r\n"
    return f"content-type: {media}\r\ncache-control: no-store\r\nx-request-id: {request.request_id}\r\n{seq}"


def v1_refusal(error: SpotledgerError) -> bytes:
    """Return the body of a v1 refusal (rule R16): the same text three times, and no ``data``."""
    text = error.message
    return encode({"code": wire.row_of(error).v1_code, "info": text, "msg": text, "msgInfo": text})


def wants_problem(headers: RequestHeaders) -> bool:
    """Tell whether the client asks for problem details and true statuses."""
    return wire.PROBLEM_MEDIA_TYPE in (headers.get("accept") or "").lower()


def wants_gzip(headers: RequestHeaders) -> bool:
    """Tell whether ``Accept-Encoding`` names gzip with a weight that is not zero."""
    for part in (headers.get("accept-encoding") or "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return not _ZERO_WEIGHT.fullmatch(weight)
    return False


def limit_headers(error: SpotledgerError | None, gate: Gate, peer: Peer, now_ms: int) -> list[Header]:
    """Return ``RateLimit-Policy``, ``RateLimit`` and, where it applies, ``Retry-After`` (rule R19)."""
    if isinstance(error, LimitExceeded):
        name, wait_s = error.details["limit"], error.details["retry_after_s"]
        limits = (gate.address_limit, gate.asset_limit, gate.account_limit)
        policy = next(limit.policy_header for limit in limits if limit.name == name)
        if policy[1].startswith(f'"{name}";q=0;'):
            return [("retry-after", str(wait_s))]
        return [policy, ("ratelimit", f'"{name}";r=0;t={wait_s}'), ("retry-after", str(wait_s))]
    headers = gate.address_limit.headers(peer.counted, now_ms)
    wait_s = RETRY_AFTER_S if isinstance(error, Unavailable) else error and error.details.get("retry_after_s")
    if wait_s is not None:
        headers.append(("retry-after", str(wait_s)))
    return headers


# --- the bodies of balances -------------------------------------------------------------------------


class AccountSight(Protocol):
    """What this listener reads of an account."""

    @property
    def changed_seq(self) -> int:
        """The last entry that touched the account."""

    @property
    def balances(self) -> Mapping[str, Balance]:
        """The balances of the coins ever touched; a changed one is another object."""


class HeadSight(Protocol):
    """What this listener reads of the ledger's head."""

    @property
    def seq(self) -> int:
        """The position of the last entry."""


class LedgerSight(Protocol):
    """What this listener reads of the ledger."""

    @property
    def head(self) -> HeadSight:
        """The last durable entry."""

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins, sorted by name; a new object after each listing."""

    def account(self, account: Account, /) -> AccountSight:
        """Return an account as it stands at the head."""


class Form(NamedTuple):
    """How a body is made: its start, one piece per coin, joined with commas, and its end."""

    start: bytes
    piece: Callable[[str, Balance, int], bytes]
    end: bytes

    def joined(self, parts: list[bytes]) -> bytes:
        """Return the body made of *parts*."""
        return self.start + b",".join(parts) + self.end


class Body:
    """The body for one account: its pieces, and what they were made of."""

    __slots__ = ("account", "changed_seq", "checked_seq", "coins", "form", "kept", "parts", "seen", "weight", "zipped")

    def __init__(self, account: Account, form: Form) -> None:
        self.account = account
        self.form = form
        #: The ledger's head when the body was last known to be current.
        self.checked_seq = -1
        self.changed_seq = -1
        self.coins: Mapping[str, Coin] | None = None
        #: One piece per listed coin, in their order; those of coins never touched are shared by all accounts.
        self.parts: list[bytes] = []
        #: The whole body, if it is short enough to keep beside its pieces.
        self.kept: bytes | None = None
        self.zipped: bytes | None = None
        self.seen: dict[str, Balance] = {}
        self.weight = _ENTRY_BYTES

    @property
    def content(self) -> bytes:
        """The body; a long one is joined from its pieces each time, which costs less than the memory to keep it."""
        return self.form.joined(self.parts) if self.kept is None else self.kept

    def gzipped(self) -> bytes:
        """Return the compressed body; it is compressed once."""
        if self.zipped is None:
            self.zipped = gzip.compress(self.content, _GZIP_LEVEL, mtime=0)
        return self.zipped


class BalanceBodies:
    """The bodies for the accounts of one kind; those not read lately are dropped."""

    def __init__(
        self,
        ledger: LedgerSight,
        kind: str,
        form: Form,
        bytes_limit: int = BODIES_BYTES,
        accounts_limit: int = BODIES_ACCOUNTS,
    ) -> None:
        """
        Start empty.

        Args:
            ledger: The ledger that has the accounts.
            kind: ``wallet``, ``spot`` or ``fiat``.
            form: How a body is made.
            bytes_limit: Memory to use at most, estimated.
            accounts_limit: Bodies to keep at most.
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
        """Return the body for *customer*'s account at the ledger's head, *head_seq*."""
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
        """Update *body* if the account or the coins changed since it was checked."""
        view = self._ledger.account(body.account)
        # In this order: a change made meanwhile by the thread that follows other nodes is then seen at the next
        # refresh, and every coin with a balance is among the coins.
        changed_seq, balances = view.changed_seq, view.balances
        while changed_seq != view.changed_seq:
            changed_seq, balances = view.changed_seq, view.balances
        coins = self._ledger.coins
        if body.changed_seq != changed_seq or body.coins is not coins:
            self._remake(body, balances, coins)
            body.coins, body.changed_seq = coins, changed_seq
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


# Symbols and amounts consist of letters, digits and points only: nothing in the pieces needs escaping.
def _v1_piece(coin: str, balance: Balance, scale: int) -> bytes:
    text = formatter(scale, 2)
    return f'"{coin}":{{"freeze":"{text(balance.freeze)}","available":"{text(balance.available)}"}}'.encode("ascii")
