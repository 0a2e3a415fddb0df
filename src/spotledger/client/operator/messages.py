"""The HTTP messages of the operator API: how a request is built, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote, urlsplit

from spotledger.client.exchange import Answer, Send
from spotledger.client.problems import error_of_problem, retry_after_s
from spotledger.client.reading import read_object
from spotledger.errors import (
    InvalidRequest,
    LimitExceeded,
    ProtocolError,
    SpotledgerError,
    TransportError,
    Unavailable,
)

#: A page of 1,000 entries with a few postings each fits.
OPERATOR_BODY_LIMIT_BYTES = 64 * 1024 * 1024
#: A whole batch, the start of an audit or a backup may take this long.
OPERATOR_READ_TIMEOUT_S = 60.0

_SUCCESSES = range(200, 300)
_ERROR_OF_GATEWAY: Mapping[int, type[SpotledgerError]] = {
    429: LimitExceeded,
    502: TransportError,
    503: Unavailable,
    504: TransportError,
}

Json: TypeAlias = dict[str, Any]
#: The parameters of a query; those that are None are left out.
Params: TypeAlias = Mapping[str, str | int | None]


class Reply(NamedTuple):
    """A success: its HTTP status, its headers with names in lower case, and its JSON document (``{}`` for none)."""

    status: int
    headers: Mapping[str, str]
    document: Json

    @property
    def replayed(self) -> bool:
        """Whether it repeats the answer to an earlier request with the same idempotency key."""
        return self.headers.get("idempotency-replayed") == "true"


def check_token(token: str) -> str:
    """Return *token*, or raise a ValueError, which does not repeat it, if no header can carry it."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("token must be printable ASCII without blanks")
    return token


def path_of(path: str, **parameters: str | int) -> str:
    """
    Return *path* with its *parameters* filled in, percent-encoded.

    Raises:
        InvalidRequest: A parameter is empty, ``.`` or ``..``. Nothing has such an id, and the request would go to
            another path: the holds of a customer ``..`` would be everybody's.
    """
    parts = {}
    for name, value in parameters.items():
        text = str(value)
        if text in ("", ".", ".."):
            raise InvalidRequest(f"{text!r} is the id of nothing; another text would pass")
        parts[name] = quote(text, safe="@")
    return path.format(**parts)


def dry_run_params(dry_run: bool) -> Params | None:
    """Return the query of a write that is only to be tried; None for one that is to be done."""
    return {"dry_run": "true"} if dry_run else None


def request(
    base_url: str,
    token: str,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
    params: Params | None = None,
) -> Send:
    """
    Return the request of one call.

    Raises:
        ValueError: *path* does not begin with one ``/``, or has a query or a fragment.
    """
    parts = urlsplit(path)
    if not path.startswith("/") or path.startswith("//") or parts.query or parts.fragment:
        raise ValueError("path must begin with one / and hold neither a query nor a fragment")
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    pairs = tuple((name, str(value)) for name, value in (params or {}).items() if value is not None)
    return Send(method, base_url + path, pairs, headers, content)


def read_reply(answer: Answer) -> Reply:
    """Return the reply, or raise the error that another answer stands for."""
    if answer.status in _SUCCESSES:
        return Reply(answer.status, answer.headers, read_object(answer.body) if answer.body != b"" else {})
    raise error_of_answer(answer)


def error_of_answer(answer: Answer) -> SpotledgerError:
    """
    Return the error that an answer stands for: a problem document of the service, or the page of a gateway.

    A gateway answers 429 and 503 without asking the service. After 502 and 504 the service may have done the write.
    """
    problem: Json = {}
    found = "a JSON body that names no code"
    try:
        problem = read_object(answer.body)
    except ProtocolError as error:
        found = error.message
    if isinstance(problem.get("code"), str):
        return error_of_problem(answer.status, answer.headers, problem)
    kind = _ERROR_OF_GATEWAY.get(answer.status)
    if kind is None:
        return ProtocolError(f"HTTP status {answer.status}, and {found}")
    seconds = retry_after_s(answer.headers)
    details = {} if seconds is None else {"retry_after_s": seconds}
    return kind(f"HTTP status {answer.status} from a gateway in front of the service", **details)
