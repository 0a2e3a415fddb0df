"""``SignedRequestAPI``, the class that the documents of the API show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

from spotledger.client.driver import drive
from spotledger.client.exchange import Answer, Steps
from spotledger.client.trader.answers import Outcome
from spotledger.client.trader.core import ACCEPT_V1
from spotledger.client.trader.spot import TraderClient

#: ``status``, ``data``, ``response``.
Triple = tuple[bool, dict[str, Any] | None, httpx2.Response | None]


class SignedRequestAPI(TraderClient):
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

    _accept = ACCEPT_V1

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
