"""
The few calls of the newer v4 API that stock clients need to read a balance (wire-v1, section 7).

The widely used ``ccxt`` class works with these calls if only its ``urls`` option is changed. Every answer has ``mc``:
without it that class raises nothing and takes a refusal for an account without coins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from spotledger import errors, paths
from spotledger.domain.accounts import Balance, Coin
from spotledger.domain.amounts import formatter
from spotledger.http.public.answers import (
    Answer,
    BalanceBodies,
    Call,
    Form,
    LedgerSight,
    answered,
    answered_with_body,
    encode,
    limit_headers,
    lines_of,
)
from spotledger.http.public.request import Request, read_parameters
from spotledger.security.access_keys import ReadyKey
from spotledger.security.addresses import Peer
from spotledger.security.gate import Gate, SignedRequest
from spotledger.security.signing import SIGNATURE_PATTERN

RECEIVE_WINDOW_MAX_MS = 60_000

_ALGORITHM = "HmacSHA256"
_TIMESTAMP = re.compile(r"[0-9]{13}", re.ASCII)
_WINDOW = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_SUCCESS = b'{"rc":0,"mc":"SUCCESS","ma":[],"result":'

#: The ``mc`` of each class of errors; a class without a row takes that of its nearest base.
CODES: dict[type[errors.SpotledgerError], str] = {
    errors.SpotledgerError: "500",
    errors.InvalidRequest: "COMMON_003",
    errors.NotFound: "404",
    errors.MethodNotAllowed: "404",
    errors.AccessKeyUnknown: "AUTH_101",
    errors.AccessKeyRevoked: "AUTH_102",
    errors.AccessKeyExpired: "AUTH_102",
    errors.SignatureRefused: "AUTH_103",
    errors.AddressNotAllowed: "AUTH_104",
    errors.NonceRefused: "AUTH_105",
    errors.ReplayRefused: "AUTH_105",
    errors.PermissionMissing: "AUTH_106",
    errors.LimitExceeded: "429",
    errors.StoreBusy: "503",
    errors.StoreUnavailable: "503",
}


class HeaderRefused(errors.MalformedRequest):
    """A header of the v4 signature is missing, malformed or sent twice."""


def v4_refusal(error: errors.SpotledgerError) -> bytes:
    """Return the body of a v4 refusal."""
    code = error.details.get("mc") if isinstance(error, HeaderRefused) else None
    code = code or next(CODES[base] for base in type(error).__mro__ if base in CODES)
    return encode({"rc": 1, "mc": code, "ma": [], "result": None})


class V4Calls:
    """The calls of the v4 API; they raise their refusals."""

    def __init__(
        self, ledger: LedgerSight, gate: Gate, count_passed: Callable[[Request, ReadyKey, Peer], None]
    ) -> None:
        self._ledger = ledger
        self._gate = gate
        self._count_passed = count_passed
        self._bodies = BalanceBodies(ledger, "spot", Form(_SUCCESS + b'{"assets":[', _asset, b"]}}"))
        self._listed: tuple[Mapping[str, Coin] | None, dict[str, bytes]] = (None, {})
        #: Path → call. None of them changes anything.
        self.calls: dict[str, Call] = {
            paths.V4_BALANCES: self._balances,
            paths.V4_TIME: self._open(self._time),
            paths.V4_SYMBOLS: self._open(self._symbols),
            paths.V4_CURRENCIES: self._open(lambda _: self._of_coins("currencies")),
            paths.V4_CHAINS: self._open(lambda _: self._of_coins("chains")),
            paths.V4_CONTRACTS: self._open(_no_contracts),
        }

    async def _balances(self, request: Request) -> Answer:
        gate, now_ms = self._gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        signed, window_ms = read_headers(request)
        limit = gate.asset_limit
        request.accesskey = signed.accesskey
        key, _ = await gate.admit(signed, peer, "read", limit, now_ms, past_ms=window_ms)
        seq = self._ledger.head.seq
        body = self._bodies.of(key.customer, seq)
        self._count_passed(request, key, peer)
        return answered_with_body(request, seq, body, lines_of(limit.headers(key.customer, now_ms)))

    def _open(self, content: Callable[[Request], bytes]) -> Call:
        """Return the call that answers anyone with *content*."""

        async def call(request: Request) -> Answer:
            gate = self._gate
            peer = gate.peer(request.connection, request.forwarded_for)
            await gate.enter(peer, request.now_ms)
            limits = limit_headers(None, gate, peer, request.now_ms)
            return answered(request, self._ledger.head.seq, content(request), limits)

        return call

    def _time(self, request: Request) -> bytes:
        return _SUCCESS + encode({"serverTime": request.now_ms}) + b"}"

    def _symbols(self, request: Request) -> bytes:
        return _SUCCESS + encode({"time": request.now_ms, "version": "0", "symbols": []}) + b"}"

    def _of_coins(self, which: str) -> bytes:
        coins = self._ledger.coins
        if self._listed[0] is not coins:
            currencies = {"version": str(len(coins)), "currencies": [_currency(coin) for coin in coins.values()]}
            chains = [{"currency": coin.name, "supportChains": []} for coin in coins.values()]
            made = {"currencies": _SUCCESS + encode(currencies) + b"}", "chains": _SUCCESS + encode(chains) + b"}"}
            self._listed = (coins, made)
        return self._listed[1][which]


def read_headers(request: Request) -> tuple[SignedRequest, int]:
    """
    Read the signature headers of a v4 request.

    Returns:
        The signed request, and its maximum age in ms.

    Raises:
        HeaderRefused: A header is missing, malformed or sent twice; the detail ``mc`` is the code for it.
        MalformedRequest: The query cannot be signed, there is a body, or the method is not GET.
    """
    accesskey = _header(request, "xt-validate-appkey", "AUTH_001")
    timestamp = _header(request, "xt-validate-timestamp", "AUTH_002")
    window = _header(request, "xt-validate-recvwindow", "AUTH_003")
    if not _WINDOW.fullmatch(window) or int(window) > RECEIVE_WINDOW_MAX_MS:
        raise HeaderRefused(
            f"xt-validate-recvwindow is malformed; 1 to {RECEIVE_WINDOW_MAX_MS} would pass.", mc="AUTH_004"
        )
    if _header(request, "xt-validate-algorithms", "AUTH_005") != _ALGORITHM:
        raise HeaderRefused(f"xt-validate-algorithms is unknown; {_ALGORITHM} would pass.", mc="AUTH_006")
    signature = _header(request, "xt-validate-signature", "AUTH_007")
    if not SIGNATURE_PATTERN.fullmatch(signature):
        raise HeaderRefused("xt-validate-signature is malformed; 64 hex digits would pass.", mc="AUTH_103")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise HeaderRefused("xt-validate-timestamp is malformed; 13 digits would pass.", mc="AUTH_105")
    if request.method != "GET" or request.body:
        raise errors.MalformedRequest("This call is a GET without a body.")
    text = (
        f"xt-validate-algorithms={_ALGORITHM}&xt-validate-appkey={accesskey}"
        f"&xt-validate-recvwindow={window}&xt-validate-timestamp={timestamp}#GET#{request.path}"
    )
    parameters = read_parameters(request.query)
    if parameters:
        text += "#" + "&".join(f"{name}={parameters[name]}" for name in sorted(parameters, key=str.encode))
    signed = SignedRequest(accesskey, int(timestamp), bytes.fromhex(signature), (text.encode(),))
    return signed, int(window)


def _header(request: Request, name: str, missing: str) -> str:
    """Return the one value of the header *name*: of two, only one would be in the text that is signed."""
    values = request.headers.get_all(name)
    if not values or not values[0]:
        raise HeaderRefused(f"{name} is missing; send it once.", mc=missing)
    if len(values) > 1:
        raise HeaderRefused(f"{name} is sent {len(values)} times; send it once.", mc=missing)
    return values[0]


# ccxt takes a coin's precision from maxPrecision, and takes a coin of type FT for crypto.
def _currency(coin: Coin) -> dict[str, Any]:
    return {
        "currency": coin.name,
        "fullName": coin.name.upper(),
        "type": "FT",
        "maxPrecision": coin.scale,
        "depositStatus": 0,
        "withdrawStatus": 0,
    }


def _no_contracts(_: Request) -> bytes:
    return b'{"returnCode":0,"msgInfo":"success","error":null,"result":[]}'


def _asset(coin: str, balance: Balance, scale: int) -> bytes:
    text = formatter(scale, 2)
    freeze, available = text(balance.freeze), text(balance.available)
    total = text(balance.freeze + balance.available)
    return (
        f'{{"currency":"{coin}","frozenAmount":"{freeze}","availableAmount":"{available}","totalAmount":"{total}"}}'
    ).encode("ascii")
