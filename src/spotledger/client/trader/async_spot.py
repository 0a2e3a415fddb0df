"""``AsyncSpotClient``: the v1 API with exact types and exceptions, for asyncio; and what all v1 clients share."""

from __future__ import annotations

from typing import ClassVar, Self

import httpx2

from spotledger.client.async_driver import drive_async
from spotledger.client.trader.answers import Balances
from spotledger.client.trader.core import ACCEPT_PROBLEMS, ATTEMPTS, Core
from spotledger.client.trader.signing import Credentials
from spotledger.client.transport import READ_TIMEOUT_S, choose_base_url, open_http_async


class AsyncTraderClient:
    """What the clients of the v1 API share, for asyncio."""

    _accept: ClassVar[str] = ACCEPT_PROBLEMS

    def __init__(
        self,
        accesskey: str,
        secretkey: str,
        base_url: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        read_timeout_s: float = READ_TIMEOUT_S,
        proxy: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Take an access key with its secret, and the address of the service.

        Args:
            accesskey: 1 to 256 printable ASCII characters, no blank, no ``&``; so is *secretkey*.
            secretkey: The secret of the access key.
            base_url: Such as ``https://host``; None for ``SPOTLEDGER_URL`` of the environment, else
                ``http://127.0.0.1:8080``.
            attempts: How often a call is sent at most, 1 to 10.
            read_timeout_s: The longest silence while waiting for an answer, in seconds.
            proxy: The URL of a proxy; the proxies that the environment names are never used.
            transport: Used in place of the network.

        Raises:
            ValueError: An argument has another form. No message repeats a credential.
        """
        credentials = Credentials(accesskey, secretkey)
        self._core = Core(credentials, choose_base_url(base_url), accept=self._accept, attempts=attempts)
        self._http = open_http_async(self, transport, proxy, read_timeout_s)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.credentials.masked!r}, base_url={self._core.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class AsyncSpotClient(AsyncTraderClient):
    """
    Read the accounts of one customer, for asyncio.

        async with AsyncSpotClient(accesskey, secretkey) as client:
            balances = await client.balances()
            usdt = balances["usdt"]
            print(usdt.available, usdt.freeze, usdt.total)

    Every call may raise

    - AccessKeyRefused, SignatureRefused, NonceRefused, ReplayRefused: the server denies the request;
    - InvalidRequest: the request is malformed;
    - LimitExceeded, Unavailable: the server could not answer at any attempt; ``error.details["retry_after_s"]`` says
      when to try again, if the server said so;
    - TransportError: no answer arrived;
    - ProtocolError: the answer is not of the documented form.

    Use it within one event loop.
    """

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
