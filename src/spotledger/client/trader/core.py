"""
The logic of the v1 client: what to send, when to retry, when to give up.

It does no I/O; see ``exchange`` for how it is driven. Every call only reads, so all of them may be sent again. Each
attempt is signed anew, with its own nonce.

The outcome of an attempt, and what follows:

    success                          return it
    TransportError                   retry with growing waits, up to ``ATTEMPTS`` attempts in all
    Unavailable, ReplayRefused       the same, but after Retry-After, and not at all if that is too long
    LimitExceeded                    retry only after a short Retry-After: more requests would prolong a lock
    NonceRefused                     ask for the server's time, correct the clock, sign again; once per call
    the same, with a least nonce     sign again with that nonce, which the server asks for after its start; once
    anything else                    return it: the same request would be refused again
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

from spotledger.client.exchange import Answer, Failure, Send, Sleep, Steps
from spotledger.client.trader.answers import (
    Balances,
    Outcome,
    read_accounts,
    read_balances,
    read_outcome,
    read_server_time,
)
from spotledger.client.trader.signing import Credentials, NonceClock, clean_params, signed_params
from spotledger.errors import (
    LimitExceeded,
    NonceRefused,
    ReplayRefused,
    SpotledgerError,
    TransportError,
    Unavailable,
)
from spotledger.paths import TRADER_PREFIX

#: How often a call is sent at most, and once more after the clock is corrected.
ATTEMPTS = 3
ATTEMPTS_LIMIT = 10
#: The wait before the second attempt. It doubles with each attempt; each wait is shortened at random by up to half.
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 2.0
#: A longer Retry-After is left to the caller.
LONGEST_RETRY_AFTER_S = 3.0

#: The longest text of a server that is copied into an error, in characters.
LONGEST_TEXT = 500

ACCOUNT_IDS = range(1, 4)
#: Asks for answers with status 200 and the code in the body, as the documents have them.
ACCEPT_V1 = "application/json"
#: Also accepts refusals as problem documents, which are more precise.
ACCEPT_PROBLEMS = "application/json, application/problem+json"


#: Headers that repeat the address of the request, which is signed. No redirect is followed.
_ADDRESSES = frozenset({"location", "content-location", "refresh", "link"})
#: Stands for a secret that an answer repeats; ASCII, because headers are.
HIDDEN = "***"


def _without(secrets: Sequence[str], hidden: Sequence[str], answer: Answer) -> Answer:
    """Return *answer* without *secrets* in its body and without *hidden* in its headers, encoded for a URL or not."""
    headers = {name: value for name, value in answer.headers.items() if name not in _ADDRESSES}
    for text in {spelling for secret in hidden for spelling in (secret, quote(secret, safe=""))}:
        headers = {name: value.replace(text, HIDDEN) for name, value in headers.items()}
    body = answer.body
    if body is not None:
        for text in {spelling for secret in secrets for spelling in (secret, quote(secret, safe=""))}:
            body = body.replace(text.encode(), HIDDEN.encode())
    return Answer(answer.status, headers, body)


def wall_clock_ms() -> int:
    """Read this machine's clock in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Core:
    """The calls of one client as steps. Several threads may share one core."""

    def __init__(
        self,
        credentials: Credentials,
        base_url: str,
        *,
        accept: str = ACCEPT_V1,
        attempts: int = ATTEMPTS,
        clock_ms: Callable[[], int] = wall_clock_ms,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        """
        Take what the calls depend on.

        Args:
            credentials: The access key and its secret.
            base_url: Without a trailing slash.
            accept: The Accept header.
            attempts: How often a call is sent at most, 1 to 10.
            clock_ms: Returns the time of this machine, in ms since 1970.
            random_part: Returns numbers from 0 to 1, to spread the waits of many clients.

        Raises:
            ValueError: *attempts* is out of range.
        """
        if type(attempts) is not int or not 1 <= attempts <= ATTEMPTS_LIMIT:
            raise ValueError(f"attempts must be 1 to {ATTEMPTS_LIMIT}")
        self.credentials = credentials
        self.base_url = base_url
        self._accept = accept
        self._attempts = attempts
        self._clock = NonceClock(clock_ms)
        self._random_part = random_part

    def balances(self) -> Steps[Balances]:
        """Read the spot account."""
        return read_balances((yield from self.get_balance()))

    def funds(self, account: int) -> Steps[Balances]:
        """Read one account by its number."""
        return read_balances((yield from self.get_funds(account)))

    def accounts(self) -> Steps[dict[int, str]]:
        """Read the names of the accounts."""
        return read_accounts((yield from self.get_accounts()))

    def server_time(self) -> Steps[int]:
        """Read the server's clock in milliseconds."""
        return read_server_time((yield from self.get_server_time()))

    def get_balance(self) -> Steps[Outcome]:
        """Call getBalance."""
        return self.signed("getBalance", {})

    def get_funds(self, account: int) -> Steps[Outcome]:
        """Call getFunds; raise ValueError unless *account* is 1, 2 or 3."""
        if type(account) is not int or account not in ACCOUNT_IDS:
            raise ValueError("account must be 1 (wallet), 2 (spot) or 3 (fiat)")
        return self.signed("getFunds", {"account": account})

    def get_accounts(self) -> Steps[Outcome]:
        """Call getAccounts, which needs no signature."""
        return self._exchange("getAccounts", None)

    def get_server_time(self) -> Steps[Outcome]:
        """Call getServerTime, which needs no signature."""
        return self._exchange("getServerTime", None)

    def signed(self, name: str, params: Mapping[str, str | int]) -> Steps[Outcome]:
        """Call *name* with *params*, which are copied, and a signature."""
        return self._exchange(name, clean_params(params))

    def _exchange(self, name: str, params: Mapping[str, str] | None) -> Steps[Outcome]:
        """Send until there is an outcome to return; without a signature if *params* is None."""
        corrected = raised = False
        attempt = 0
        while True:
            attempt += 1
            outgoing = self._outgoing(name, params)
            outcome = self._read((yield outgoing), outgoing)
            least_ms = outcome.error.details.get("nonce_from_ms") if isinstance(outcome.error, NonceRefused) else None
            if isinstance(least_ms, int) and not raised:
                raised = True
                self._clock.begin_at(least_ms)
                continue
            if isinstance(outcome.error, NonceRefused) and params is not None and not corrected:
                corrected = True
                if (yield from self._correct_clock()):
                    continue
            wait_s = self._wait_s(outcome.error, attempt)
            if wait_s is None:
                return outcome
            yield Sleep(wait_s)

    def _outgoing(self, name: str, params: Mapping[str, str] | None) -> Send:
        pairs: tuple[tuple[str, str], ...] = ()
        if params is not None:
            pairs = signed_params(params, self.credentials, self._clock.nonce())
        return Send("GET", f"{self.base_url}{TRADER_PREFIX}/{name}", pairs, {"Accept": self._accept})

    def _read(self, result: Answer | Failure | None, outgoing: Send) -> Outcome:
        if result is None:
            raise TypeError("a Send must be followed by an Answer or a Failure")
        secrets = [self.credentials.secretkey, *(value for name, value in outgoing.params if name == "signature")]
        hidden = [*secrets, self.credentials.accesskey]

        def hide(text: str) -> str:
            for secret in hidden:
                text = text.replace(secret, HIDDEN)
            return "".join(sign if sign.isprintable() else "\ufffd" for sign in text[:LONGEST_TEXT])

        if isinstance(result, Answer):
            result = _without(secrets, hidden, result)
        return read_outcome(result, hide)

    def _correct_clock(self) -> Steps[bool]:
        """Ask for the server's time once; return whether it answered."""
        outgoing = self._outgoing("getServerTime", None)
        before_ms = self._clock.local_ms()
        outcome = self._read((yield outgoing), outgoing)
        after_ms = self._clock.local_ms()
        try:
            server_ms = read_server_time(outcome)
        except SpotledgerError:
            return False
        self._clock.correct(server_ms - (before_ms + after_ms) // 2)
        return True

    def _wait_s(self, error: SpotledgerError | None, attempt: int) -> float | None:
        """Return the seconds to wait before the next attempt, or None for no further attempt."""
        if attempt >= self._attempts or not isinstance(error, TransportError | Unavailable | ReplayRefused):
            return None
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
        wait_s = longest * (1 - self._random_part() / 2)
        asked_s = error.details.get("retry_after_s")
        if asked_s is None:
            return None if isinstance(error, LimitExceeded) else wait_s
        return None if asked_s > LONGEST_RETRY_AFTER_S else max(wait_s, float(asked_s))
