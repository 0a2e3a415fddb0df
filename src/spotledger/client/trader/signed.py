"""``SignedRequestAPI``, the class that the documents of the API show."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from spotledger.client.driver import drive
from spotledger.client.exchange import Answer, Steps
from spotledger.client.trader.answers import Outcome
from spotledger.client.trader.core import ACCEPT_V1, ATTEMPTS, Core
from spotledger.client.trader.signing import Credentials
from spotledger.client.transport import READ_TIMEOUT_S, choose_base_url, timeouts

#: ``status``, ``data``, ``response``.
Triple = tuple[bool, dict[str, Any] | None, httpx2.Response | None]


class SignedRequestAPI:
    """
    Call the signed v1 API; every call returns ``(status, data, response)``.

    ``status`` is True if the answer is a JSON object, and ``data`` is that object. It may be a refusal, so check
    ``data["code"]``. Otherwise ``status`` is False and ``data`` is None. ``response`` is the last HTTP response, with a
    URL without the query; None if none arrived.

    No call raises for a failure of the network or the server, because programs written for the documents' class expect
    no exception. ``SpotClient`` raises.

    A failed call is sent again, see ``spotledger.client.trader.core``. Several threads may share one object. ``close``
    closes the connections; garbage collection does so too.
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
        """
        Take an access key with its secret, and the address of the service.

        Args:
            accesskey: 1 to 256 printable ASCII characters, no blank, no ``&``; so is *secretkey*.
            secretkey: The secret of the access key.
            base_url: Such as ``https://host``; None for ``SPOTLEDGER_URL`` of the environment, else
                ``http://127.0.0.1:8080``.
            attempts: How often a call is sent at most, 1 to 10.
            read_timeout_s: The longest silence while waiting for an answer, in seconds.
            transport: Used in place of the network.

        Raises:
            ValueError: An argument has another form. No message repeats a credential.
        """
        self._core = Core(
            Credentials(accesskey, secretkey),
            choose_base_url(base_url),
            accept=ACCEPT_V1,
            attempts=attempts,
        )
        self._http = httpx2.Client(transport=transport, timeout=timeouts(read_timeout_s))
        self._closing = weakref.finalize(self, self._http.close)

    def __repr__(self) -> str:
        return f"SignedRequestAPI({self._core.credentials.masked!r}, base_url={self._core.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._closing()

    def get_balance(self) -> Triple:
        """Read the spot account: ``data["data"]`` has ``available`` and ``freeze`` by coin, for every listed coin."""
        return self._call(self._core.get_balance())

    def get_funds(self, account: int) -> Triple:
        """Read account 1 (wallet), 2 (spot) or 3 (fiat); raise ValueError for another number."""
        return self._call(self._core.get_funds(account))

    def get_accounts(self) -> Triple:
        """Read the names of the accounts."""
        return self._call(self._core.get_accounts())

    def get_server_time(self) -> Triple:
        """Read the server's clock: ``data["data"]["serverTime"]``, in milliseconds since 1970."""
        return self._call(self._core.get_server_time())

    def get(self, name: str, params: Mapping[str, str | int] | None = None) -> Triple:
        """
        Make the signed call *name*, such as ``"getFunds"``. It may be sent again, so it must only read.

        Args:
            name: Letters and digits.
            params: Further parameters; they are copied.

        Raises:
            ValueError, TypeError: *name* or a parameter cannot be signed.
        """
        if not name.isascii() or not name.isalnum():
            raise ValueError("name must be letters and digits")
        return self._call(self._core.signed(name, params or {}))

    def _call(self, steps: Steps[Outcome]) -> Triple:
        outcome = drive(self._http, steps)
        if outcome.answer is None:
            return False, None, None
        response = _response(outcome.answer, self._core.base_url)
        return outcome.body is not None, None if outcome.body is None else dict(outcome.body), response


def _response(answer: Answer, base_url: str) -> httpx2.Response:
    """Return a response without the signed URL, so that neither it nor its errors show the signature."""
    headers = {name: value for name, value in answer.headers.items() if name != "content-encoding"}
    request = httpx2.Request("GET", base_url)
    return httpx2.Response(answer.status, headers=headers, content=answer.body or b"", request=request)
