"""Read the answers of the v1 API: the error that one stands for, or its data in exactly the documented form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

from spotledger.client.exchange import Answer, Failure
from spotledger.client.problems import error_of_problem, is_problem, retry_after_s
from spotledger.client.reading import read_object
from spotledger.errors import (
    AccessKeyRefused,
    InvalidRequest,
    LimitExceeded,
    NonceRefused,
    ProtocolError,
    ReplayRefused,
    SignatureRefused,
    SpotledgerError,
    TransportError,
    Unavailable,
)

HTTP_OK = 200
CODE_SUCCESS = 200

_HTTP_TOO_MANY = 429
#: From a gateway that cannot reach the service.
_HTTP_GATEWAY = frozenset({502, 503, 504})
_HTTP_REDIRECTS = range(300, 400)

#: A plain decimal without sign and exponent, with two decimals or more, no longer than the ledger's largest amount.
_AMOUNT = re.compile(r"\A(?:0|[1-9][0-9]{0,37})\.[0-9]{2,24}\Z")
_COIN = re.compile(r"\A[a-z0-9][a-z0-9._-]{0,31}\Z")
_NOTHING_LEFT = re.compile(r";\s*r=0(?:;|\Z)")
_SEQ = re.compile(r"\A[0-9]{1,18}\Z")
#: The least nonce that would pass, in the text of a refusal.
_LEAST_NONCE = re.compile(r"a nonce of at least ([0-9]{13}) would pass")
#: Thirteen digits, as nonces are.
_SERVER_TIMES_MS = range(10**12, 10**13)
#: Adds amounts exactly, or raises; the usual context rounds to 28 digits.
_EXACT = Context(prec=80, traps=[Inexact, InvalidOperation])

#: Returns a text of the server without secrets and unprintable characters, and not too long.
Hide = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a call: the answer, if one arrived; its JSON, if it is that; and the error, if it is one."""

    answer: Answer | None
    body: Mapping[str, Any] | None
    error: SpotledgerError | None

    def data(self) -> Any:
        """Return the ``data`` of a success; raise the error otherwise."""
        if self.error is not None:
            raise self.error
        if self.body is None or "data" not in self.body:
            raise ProtocolError("a success without data")
        return self.body["data"]


def read_outcome(result: Answer | Failure, hide: Hide) -> Outcome:
    """
    Return the outcome that *result* stands for.

    Args:
        result: An answer, or why there is none.
        hide: Applied to each text of the answer that is copied into an error, as a server might repeat the request.
    """
    if isinstance(result, Failure):
        return Outcome(None, None, TransportError(f"no answer arrived: {result.reason}"))
    body, unreadable = _read_body(result)
    if body is None:
        return Outcome(result, None, _error_of_status(result, hide(unreadable)))
    return Outcome(result, body, _error_of_body(result, body, hide))


def _read_body(answer: Answer) -> tuple[dict[str, Any] | None, str]:
    try:
        return read_object(answer.body), ""
    except ProtocolError as error:
        return None, error.message


def _error_of_status(answer: Answer, found: str) -> SpotledgerError:
    """Return the error for an answer that is not of the documented form, such as a page of a gateway."""
    if answer.status == _HTTP_TOO_MANY:
        return _with_wait(LimitExceeded, "HTTP status 429", answer)
    if answer.status in _HTTP_GATEWAY:
        return _with_wait(Unavailable, f"HTTP status {answer.status} from a gateway", answer)
    if answer.status in _HTTP_REDIRECTS:
        return ProtocolError(f"HTTP status {answer.status} is a redirect, which is not followed")
    return ProtocolError(f"HTTP status {answer.status}, and {found}")


def _error_of_body(answer: Answer, body: Mapping[str, Any], hide: Hide) -> SpotledgerError | None:
    if is_problem(answer.headers) and isinstance(body.get("code"), str):
        shown = {name: hide(value) if isinstance(value, str) else value for name, value in body.items()}
        return error_of_problem(answer.status, answer.headers, shown)
    code = body.get("code")
    if type(code) is not int:
        return _error_of_status(answer, "a JSON body whose code is no whole number")
    if code == CODE_SUCCESS:
        if answer.status == HTTP_OK:
            return None
        return ProtocolError(f"HTTP status {answer.status} with code {CODE_SUCCESS} in its body")
    return _error_of_code(code, answer, hide(_text_of(body)))


def _text_of(body: Mapping[str, Any]) -> str:
    """Return the text of a refusal, which has one of three names."""
    for name in ("info", "msg", "msgInfo"):
        text = body.get(name)
        if isinstance(text, str) and text:
            return text
    return ""


def _error_of_code(code: int, answer: Answer, text: str) -> SpotledgerError:
    match code:
        case 307:
            return AccessKeyRefused(text or None)
        case 308:
            return SignatureRefused(text or None)
        case 400:
            return _error_of_400(text)
        case 404:
            return _with_wait(_kind_of_404(answer, text), text, answer)
    return ProtocolError(f"code {code} is not documented")


def _error_of_400(text: str) -> SpotledgerError:
    """Tell the refusals of code 400 apart by their text."""
    lowered = text.lower()
    if "used before" in lowered or "replay" in lowered or "another address" in lowered:
        return ReplayRefused(text)
    least = _LEAST_NONCE.search(lowered)
    if least is not None:
        return NonceRefused(text, nonce_from_ms=int(least[1]))
    return (NonceRefused if "nonce" in lowered else InvalidRequest)(text or None)


def _kind_of_404(answer: Answer, text: str) -> type[SpotledgerError]:
    """Tell the refusals of code 404 apart by the RateLimit header, else by their text."""
    if _NOTHING_LEFT.search(answer.headers.get("ratelimit", "")):
        return LimitExceeded
    lowered = text.lower()
    return LimitExceeded if "too many" in lowered or "limit" in lowered else Unavailable


def _with_wait(kind: type[SpotledgerError], text: str, answer: Answer) -> SpotledgerError:
    seconds = retry_after_s(answer.headers)
    return kind(text or None) if seconds is None else kind(text or None, retry_after_s=seconds)


@dataclass(frozen=True, slots=True)
class Balance:
    """The balance of one coin in one account, in coins, exact."""

    #: What may be spent now.
    available: Decimal
    #: What is held for orders and withdrawals.
    freeze: Decimal

    @property
    def total(self) -> Decimal:
        """The sum of available and freeze, not rounded."""
        return _EXACT.add(self.available, self.freeze)


class Balances(Mapping[str, Balance]):
    """The balances of one account by coin, all of one moment; read-only."""

    __slots__ = ("_by_coin", "_seq")

    def __init__(self, by_coin: Mapping[str, Balance], seq: int | None) -> None:
        """Copy *by_coin*, the balances after the entry *seq* of the journal; None if the server did not say it."""
        self._by_coin = dict(by_coin)
        self._seq = seq

    @property
    def seq(self) -> int | None:
        """The last entry of the journal in these balances; None if the server did not say it."""
        return self._seq

    def __getitem__(self, coin: str) -> Balance:
        return self._by_coin[coin]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_coin)

    def __len__(self) -> int:
        return len(self._by_coin)

    def __repr__(self) -> str:
        return f"Balances({self._by_coin!r}, seq={self._seq})"


def read_balances(outcome: Outcome) -> Balances:
    """
    Read the data of getBalance or getFunds.

    Raises:
        SpotledgerError: The error that the answer stands for.
        ProtocolError: A coin, an amount or the data as a whole is not of the documented form.
    """
    data = outcome.data()
    if not isinstance(data, dict):
        raise ProtocolError("data is not an object of coins")
    by_coin = {coin: _read_balance(coin, sides) for coin, sides in data.items()}
    seq = outcome.answer.headers.get("x-ledger-seq", "") if outcome.answer else ""
    return Balances(by_coin, int(seq) if _SEQ.match(seq) else None)


def _read_balance(coin: str, sides: Any) -> Balance:
    if not _COIN.match(coin):
        raise ProtocolError("data has a coin that is not 1 to 32 of a-z 0-9 . _ -, first a letter or a digit")
    if not isinstance(sides, dict):
        raise ProtocolError(f"the balance of {coin} is not an object")
    return Balance(_read_amount(coin, sides, "available"), _read_amount(coin, sides, "freeze"))


def _read_amount(coin: str, sides: Mapping[str, Any], side: str) -> Decimal:
    text = sides.get(side)
    if not isinstance(text, str) or not _AMOUNT.match(text):
        raise ProtocolError(f"{side} of {coin} is not plain decimal text with 2 to 24 decimals")
    return Decimal(text)


def read_accounts(outcome: Outcome) -> dict[int, str]:
    """
    Read the data of getAccounts: the name of each account by its number.

    Raises:
        SpotledgerError: The error that the answer stands for.
        ProtocolError: The data is not a list of numbers and names, or contains a number twice.
    """
    data = outcome.data()
    if not isinstance(data, list):
        raise ProtocolError("data is not a list of accounts")
    names: dict[int, str] = {}
    for account in data:
        number = account.get("id") if isinstance(account, dict) else None
        name = account.get("name") if isinstance(account, dict) else None
        if type(number) is not int or not isinstance(name, str) or number in names:
            raise ProtocolError("an account is not an object with a name and an id of its own")
        names[number] = name
    return names


def read_server_time(outcome: Outcome) -> int:
    """
    Read the data of getServerTime, milliseconds since 1970.

    Raises:
        SpotledgerError: The error that the answer stands for.
        ProtocolError: It has no ``serverTime`` of thirteen digits.
    """
    data = outcome.data()
    server_ms = data.get("serverTime") if isinstance(data, dict) else None
    if type(server_ms) is not int or server_ms not in _SERVER_TIMES_MS:
        raise ProtocolError("data has no serverTime of thirteen digits")
    return server_ms
