"""Turn a problem document (RFC 9457) into the error of ``spotledger.errors`` that has its code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from spotledger.errors import (
    Denied,
    IdempotencyConflict,
    NotFound,
    Refused,
    ScopeMissing,
    SpotledgerError,
    TokenRefused,
    Unavailable,
)

PROBLEM_MEDIA_TYPE = "application/problem+json"

#: Members that are read by name; the others become the error's details.
_READ_BY_NAME = frozenset(
    {
        *("type", "title", "status", "detail", "instance", "code", "seq", "replayed", "retry_after_s"),
        *("self", "message"),  # the names of the constructor's own parameters
    }
)
_SECONDS = re.compile(r"\A[0-9]{1,9}\Z")
_HTTP_SERVER_ERROR = 500


def _walk(error: type[SpotledgerError]) -> Iterator[type[SpotledgerError]]:
    yield error
    for below in error.__subclasses__():
        yield from _walk(below)


#: Only what a server can mean: an answer never makes a TransportError or a SetupError of the caller's own.
ERROR_OF_CODE: Mapping[str, type[SpotledgerError]] = {
    error.code: error for branch in (Refused, Denied, Unavailable) for error in _walk(branch)
}
#: For a code that this version does not know: a newer server's.
_ERROR_OF_STATUS: Mapping[int, type[SpotledgerError]] = {
    401: TokenRefused,
    403: ScopeMissing,
    404: NotFound,
    409: IdempotencyConflict,
    429: Unavailable,
}


def is_problem(headers: Mapping[str, str]) -> bool:
    """Say whether the answer calls itself a problem document."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == PROBLEM_MEDIA_TYPE


def error_of_problem(status: int, headers: Mapping[str, str], problem: Mapping[str, Any]) -> SpotledgerError:
    """
    Make the error that *problem* names; do not raise it.

    Its message is the problem's ``detail``, its details are the problem's further members. A kept refusal has
    its ``seq``, and ``replayed`` says whether it was told before. ``retry_after_s`` is in the details where the
    answer has a Retry-After.
    """
    code = problem.get("code")
    error_type = ERROR_OF_CODE.get(code) if isinstance(code, str) else None
    if error_type is None:
        error_type = _ERROR_OF_STATUS.get(status, Unavailable if status >= _HTTP_SERVER_ERROR else Refused)
    details = {
        name: value for name, value in problem.items() if name not in _READ_BY_NAME and isinstance(value, str | int)
    }
    seconds = retry_after_s(headers)  # of the header, not of the body: there it is checked
    if seconds is not None:
        details["retry_after_s"] = seconds
    text = problem.get("detail") or problem.get("title")
    error = error_type(text if isinstance(text, str) else None, **details)
    if isinstance(error, Refused):
        seq = problem.get("seq")
        error.seq = seq if isinstance(seq, int) else None
        told_before = headers.get("idempotency-replayed", "").lower() == "true"
        error.replayed = told_before or problem.get("replayed") is True
    return error


def retry_after_s(headers: Mapping[str, str]) -> int | None:
    """Read Retry-After in whole seconds; None where it is absent or a date."""
    text = headers.get("retry-after", "").strip()
    return int(text) if _SECONDS.match(text) else None
