"""Turn a problem document (RFC 9457) into the error of ``spotledger.errors`` with its code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from spotledger.errors import (
    Denied,
    IdempotencyConflict,
    LedgerDamaged,
    NotFound,
    Refused,
    ScopeMissing,
    SpotledgerError,
    TokenRefused,
    Unavailable,
)

PROBLEM_MEDIA_TYPE = "application/problem+json"

#: Members with a meaning of their own; the others become details of the error.
_READ_BY_NAME = frozenset(
    {
        *("type", "title", "status", "detail", "instance", "code", "seq", "replayed", "retry_after_s"),
        *("self", "message"),  # the names of the constructor's own parameters
    }
)
_SECONDS = re.compile(r"\A[0-9]{1,9}\Z")
_HTTP_SERVER_ERROR = 500


def _walk(error: type[SpotledgerError]) -> Iterator[type[SpotledgerError]]:
    """Yield *error* and the errors of ``spotledger.errors`` below it, without what other modules derive of them."""
    yield error
    for below in error.__subclasses__():
        if below.__module__ == SpotledgerError.__module__:
            yield from _walk(below)


#: Errors that a server may name. TransportError and SetupError are raised on this side only.
ERROR_OF_CODE: Mapping[str, type[SpotledgerError]] = {
    error.code: error for branch in (Refused, Denied, Unavailable, LedgerDamaged) for error in _walk(branch)
}
#: For codes of a newer server, which this version does not know.
_ERROR_OF_STATUS: Mapping[int, type[SpotledgerError]] = {
    401: TokenRefused,
    403: ScopeMissing,
    404: NotFound,
    409: IdempotencyConflict,
    429: Unavailable,
}


def is_problem(headers: Mapping[str, str]) -> bool:
    """Return whether the answer is a problem document by its media type."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == PROBLEM_MEDIA_TYPE


def error_of_problem(status: int, headers: Mapping[str, str], problem: Mapping[str, Any]) -> SpotledgerError:
    """
    Return the error that *problem* names.

    Its message is the problem's ``detail``; its details are the problem's further members, and ``retry_after_s`` if the
    answer has a Retry-After. A kept refusal has its ``seq`` and ``epoch``, and ``replayed`` if it was answered before.
    """
    details = {
        name: value for name, value in problem.items() if name not in _READ_BY_NAME and isinstance(value, str | int)
    }
    seq = problem.get("seq")
    epoch = details.pop("epoch", None) if isinstance(seq, int) else None
    seconds = retry_after_s(headers)  # never the one in the body, which is not checked
    if seconds is not None:
        details["retry_after_s"] = seconds
    text = problem.get("detail") or problem.get("title")
    error = _error_type(status, problem.get("code"))(text if isinstance(text, str) else None, **details)
    if isinstance(error, Refused):
        error.seq = seq if isinstance(seq, int) else None
        error.epoch = epoch if isinstance(epoch, int) else None
        error.replayed = headers.get("idempotency-replayed", "").lower() == "true" or problem.get("replayed") is True
    return error


def _error_type(status: int, code: object) -> type[SpotledgerError]:
    found = ERROR_OF_CODE.get(code) if isinstance(code, str) else None
    return found or _ERROR_OF_STATUS.get(status, Unavailable if status >= _HTTP_SERVER_ERROR else Refused)


def retry_after_s(headers: Mapping[str, str]) -> int | None:
    """Return Retry-After in seconds; None if it is absent or a date."""
    text = headers.get("retry-after", "").strip()
    return int(text) if _SECONDS.match(text) else None
