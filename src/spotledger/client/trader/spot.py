# Generated from async_spot.py by tools/generate_blocking_client.py (`make generate`). Do not edit.

"""``SpotClient``: the v1 API with exact types and exceptions, blocking; and what all v1 clients share."""

from __future__ import annotations

from typing import ClassVar, Self

import httpx2

from spotledger.client.driver import drive
from spotledger.client.trader.answers import Balances
from spotledger.client.trader.core import ACCEPT_PROBLEMS, ATTEMPTS, Core
from spotledger.client.trader.signing import Credentials
from spotledger.client.transport import READ_TIMEOUT_S, choose_base_url, open_http


class TraderClient:
    """What the clients of the v1 API share, blocking."""

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
        transport: httpx2.BaseTransport | None = None,
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
        self._http = open_http(self, transport, proxy, read_timeout_s)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.credentials.masked!r}, base_url={self._core.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class SpotClient(TraderClient):
    """
    Read the accounts of one customer, blocking.

        with SpotClient(accesskey, secretkey) as client:
            balances = client.balances()
            usdt = balances["usdt"]
            print(usdt.available, usdt.freeze, usdt.total)

    Every call may raise

    - AccessKeyRefused, SignatureRefused, NonceRefused, ReplayRefused: the server denies the request;
    - InvalidRequest: the request is malformed;
    - LimitExceeded, Unavailable: the server could not answer at any attempt; ``error.details["retry_after_s"]`` says
      when to try again, if the server said so;
    - TransportError: no answer arrived;
    - ProtocolError: the answer is not of the documented form.

    Several threads may share it.
    """

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
