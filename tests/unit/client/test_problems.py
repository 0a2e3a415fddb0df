"""Problem documents turned into errors, whatever a server or something between says in them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from spotledger import errors
from spotledger.client.problems import ERROR_OF_CODE, error_of_problem, is_problem, retry_after_s
from spotledger.http import wire


@pytest.mark.parametrize("kind", [kind for kind in wire.TABLE if kind is not errors.SpotledgerError])
def test_error_that_the_service_sends_is_the_one_that_the_client_raises(kind: type[errors.SpotledgerError]) -> None:
    """What the one table writes comes back as the same class, message and details."""
    document = wire.problem(kind("found this", field="amount", available="1.00"), "r-1")
    error = error_of_problem(document["status"], {}, document)
    assert type(error) is kind
    assert error.message == "found this"
    assert error.details == {"field": "amount", "available": "1.00", "request_id": "r-1"}


def test_errors_that_another_module_derives_are_never_raised() -> None:
    """In a process that serves, too, where the v4 calls have an error of their own below one with a code."""
    code = (
        "import spotledger.http.public.v4; from spotledger.client.problems import ERROR_OF_CODE; "
        "print({kind.__module__ for kind in ERROR_OF_CODE.values()})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert said.stdout.strip() == "{'spotledger.errors'}"


@pytest.mark.parametrize("code", ["transport_error", "protocol_error", "setup_error", "data_folder_in_use", "error"])
def test_answer_cannot_raise_an_error_of_the_callers_own(code: str) -> None:
    """Only what a server can mean is taken from its code: never an unknown outcome or a wrong setup."""
    assert code not in ERROR_OF_CODE
    assert type(error_of_problem(400, {}, {"code": code})) is errors.Refused


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Refused),
        (401, errors.TokenRefused),
        (403, errors.ScopeMissing),
        (404, errors.NotFound),
        (409, errors.IdempotencyConflict),
        (422, errors.Refused),
        (429, errors.Unavailable),
        (500, errors.Unavailable),
        (599, errors.Unavailable),
    ],
)
@pytest.mark.parametrize("code", ["of a newer server", None, 7, ["insufficient_available"]])
def test_error_with_an_unknown_code_is_cut_by_its_status(status: int, kind: type, code: object) -> None:
    """A code that this version does not know still tells the caller what to do."""
    assert type(error_of_problem(status, {}, {"code": code})) is kind


def test_members_that_are_no_details_are_left_out() -> None:
    """A member that would be an argument of the error's constructor, a list or an object breaks nothing."""
    document: dict[str, Any] = {"self": "x", "message": "y", "code": "refused", "detail": 7, "title": "Refused"}
    error = error_of_problem(422, {}, document | {"field": "a", "retry_after_s": "soon", "list": [], "object": {}})
    assert error.details == {"field": "a"}
    assert error.message == "The request was refused; no money moved."


def test_kept_refusal_has_its_place_and_says_whether_it_was_told_before() -> None:
    """``seq`` is a number or nothing; ``replayed`` comes from the header or the body."""
    document = {"code": "unknown_coin", "seq": 12}
    for headers, more, replayed in [
        ({}, {}, False),
        ({"idempotency-replayed": "TRUE"}, {}, True),
        ({"idempotency-replayed": "false"}, {"replayed": True}, True),
        ({}, {"replayed": "true"}, False),
    ]:
        error = error_of_problem(422, headers, document | more)
        assert isinstance(error, errors.UnknownCoin)
        assert (error.seq, error.replayed) == (12, replayed)
    odd = error_of_problem(422, {}, document | {"seq": "12"})
    assert isinstance(odd, errors.Refused)
    assert odd.seq is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 30 ", 30),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 10, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_whole_seconds_only(text: str, seconds: int | None) -> None:
    """A date, a fraction or a number that nobody waits for is as good as none."""
    assert retry_after_s({"retry-after": text}) == seconds
    details = error_of_problem(503, {"retry-after": text}, {"retry_after_s": 99}).details
    assert details.get("retry_after_s") == seconds


def test_problem_is_told_by_its_media_type_alone() -> None:
    """Parameters and the case of the media type do not matter; another one is no problem document."""
    assert is_problem({"content-type": "Application/Problem+JSON ; charset=utf-8"})
    for other in ("application/json", "text/html", "application/problem+json-seq", ""):
        assert not is_problem({"content-type": other})
    assert not is_problem({})
