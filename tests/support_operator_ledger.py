"""Transports and answers for the typed clients of the operator API."""

from __future__ import annotations

import httpx2


def streamed(status: int, body: bytes, **headers: str) -> httpx2.Response:
    """Return an answer that comes as one from the network does: piece by piece."""
    return httpx2.Response(status, content=iter([body]), headers=headers)


class LosesAnswers(httpx2.BaseTransport):
    """Passes requests on, and loses the first answers to each of them."""

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self.sent: list[tuple[str, str | None]] = []
        self._under = httpx2.HTTPTransport()

    def close(self) -> None:
        self._under.close()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._under.handle_request(request)
        self.sent.append((request.method, request.headers.get("idempotency-key")))
        if len(self.sent) <= self.lost:
            for _ in response.stream:  # type: ignore[union-attr]
                pass
            response.close()
            raise httpx2.ReadTimeout("lost", request=request)
        return response
