"""``SpotClient`` and its async twin: the v1 API with exact types and exceptions."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Self

import httpx2

from spotledger.client.async_driver import drive_async
from spotledger.client.driver import drive
from spotledger.client.trader.answers import Balances
from spotledger.client.trader.core import ACCEPT_PROBLEMS, ATTEMPTS, Core
from spotledger.client.trader.signing import Credentials
from spotledger.client.transport import READ_TIMEOUT_S, choose_base_url, timeouts


class SpotClient:
    """
    Read the accounts of one customer.

        with SpotClient(accesskey, secretkey) as client:
            usdt = client.balances()["usdt"]
            print(usdt.available, usdt.freeze, usdt.total)

    Every call may raise

    - AccessKeyRefused, SignatureRefused, NonceRefused, ReplayRefused: the server denies the request;
    - InvalidRequest: the request is malformed;
    - LimitExceeded, Unavailable: the server could not answer at any attempt; ``error.details["retry_after_s"]`` says
      when to try again, if the server said so;
    - TransportError: no answer arrived;
    - ProtocolError: the answer is not of the documented form.

    Several threads may share one object.
    """

    def __init__(
        self,
        accesskey: str,
        secretkey: str,
        base_url: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        read_timeout_s: float = READ_TIMEOUT_S,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Take the arguments of ``SignedRequestAPI``; raise ValueError if one has another form."""
        self._core = _core(accesskey, secretkey, base_url, attempts)
        self._http = httpx2.Client(transport=transport, timeout=timeouts(read_timeout_s))
        self._closing = weakref.finalize(self, self._http.close)

    def __repr__(self) -> str:
        return f"SpotClient({self._core.credentials.masked!r}, base_url={self._core.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._closing()

    def balances(self) -> Balances:
        """Read the spot account: every listed coin, empty ones too, all of one moment."""
        return drive(self._http, self._core.balances())

    def funds(self, account: int) -> Balances:
        """Read account 1 (wallet), 2 (spot) or 3 (fiat); raise ValueError for another number."""
        return drive(self._http, self._core.funds(account))

    def accounts(self) -> dict[int, str]:
        """Read the names of the accounts by their numbers."""
        return drive(self._http, self._core.accounts())

    def server_time(self) -> int:
        """Read the server's clock in milliseconds since 1970."""
        return drive(self._http, self._core.server_time())


class AsyncSpotClient:
    """``SpotClient`` for asyncio, to be used within one event loop."""

    def __init__(
        self,
        accesskey: str,
        secretkey: str,
        base_url: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        read_timeout_s: float = READ_TIMEOUT_S,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Take the arguments of ``SpotClient``; raise ValueError if one has another form."""
        self._core = _core(accesskey, secretkey, base_url, attempts)
        self._http = httpx2.AsyncClient(transport=transport, timeout=timeouts(read_timeout_s))

    def __repr__(self) -> str:
        return f"AsyncSpotClient({self._core.credentials.masked!r}, base_url={self._core.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def balances(self) -> Balances:
        """Read the spot account: every listed coin, empty ones too, all of one moment."""
        return await drive_async(self._http, self._core.balances())

    async def funds(self, account: int) -> Balances:
        """Read account 1 (wallet), 2 (spot) or 3 (fiat); raise ValueError for another number."""
        return await drive_async(self._http, self._core.funds(account))

    async def accounts(self) -> dict[int, str]:
        """Read the names of the accounts by their numbers."""
        return await drive_async(self._http, self._core.accounts())

    async def server_time(self) -> int:
        """Read the server's clock in milliseconds since 1970."""
        return await drive_async(self._http, self._core.server_time())


def _core(accesskey: str, secretkey: str, base_url: str | None, attempts: int) -> Core:
    return Core(
        Credentials(accesskey, secretkey),
        choose_base_url(base_url),
        accept=ACCEPT_PROBLEMS,
        attempts=attempts,
    )
