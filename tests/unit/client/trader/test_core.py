"""The logic of the v1 client, driven step by step without network or clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

import support_client as support
from spotledger import errors
from spotledger.client.exchange import Answer, Failure, Send, Sleep, Steps
from spotledger.client.trader.answers import Outcome
from spotledger.client.trader.core import ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S, Core
from spotledger.client.trader.signing import Credentials

NOW_MS = 1562919832183
BROKEN = Failure("the connection broke")


def answer(body: object, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, body if isinstance(body, bytes) else json.dumps(body).encode())


def refusal(code: int, text: str = "no", **headers: str) -> Answer:
    return answer({"code": code, "info": text, "msg": text, "msgInfo": text}, 200, **headers)


SUCCESS = answer({"code": 200, "data": support.DATA, "info": "success"})
BAD_NONCE = refusal(400, "the nonce is too old")


def new_core(**arguments: Any) -> Core:
    fixed = {"clock_ms": lambda: NOW_MS, "random_part": lambda: 0.0}
    return Core(Credentials(support.ACCESSKEY, support.SECRETKEY), "http://h", **(fixed | arguments))


class Run:
    """Feed *replies* to the steps of one call and keep what they asked for."""

    def __init__(self, steps: Steps[Outcome], replies: Sequence[Answer | Failure]) -> None:
        self.sends: list[Send] = []
        self.sleeps: list[float] = []
        self.order = ""
        waiting = list(replies)
        told: Answer | Failure | None = None
        while True:
            try:
                step = steps.send(told)
            except StopIteration as stop:
                self.outcome: Outcome = stop.value
                break
            if isinstance(step, Sleep):
                self.order += "z"
                self.sleeps.append(step.seconds)
                told = None
            else:
                self.order += "s"
                self.sends.append(step)
                told = waiting.pop(0)
        assert waiting == []


def get_balance(*replies: Answer | Failure, **arguments: Any) -> Run:
    return Run(new_core(**arguments).get_balance(), replies)


def test_success_is_one_send_and_no_sleep() -> None:
    """A success is returned at once: the original slept after it."""
    run = get_balance(SUCCESS)
    assert run.order == "s"
    assert run.outcome.error is None


def test_request_is_the_documented_one() -> None:
    """The request goes to the documented path with the key, the time of this machine, and the signature."""
    sent = get_balance(SUCCESS).sends[0]
    assert (sent.method, sent.url) == ("GET", "http://h/trade/api/v1/getBalance")
    assert dict(sent.params) == {
        "accesskey": support.ACCESSKEY,
        "nonce": str(NOW_MS),
        "signature": "f26c4af0871fd117f80ee0a47781623c52340cb302ce982a738ff12e26b2823b",
    }


def test_unsigned_calls_carry_no_credentials() -> None:
    """The two public calls are sent without key, nonce or signature."""
    for steps in (new_core().get_server_time(), new_core().get_accounts()):
        assert Run(steps, [SUCCESS]).sends[0].params == ()


@pytest.mark.parametrize(
    "trouble", [BROKEN, refusal(404, "trouble inside"), answer(b"<html>", 502), refusal(400, "used before")]
)
def test_passing_trouble_is_tried_again_and_succeeds(trouble: Answer | Failure) -> None:
    """A lost answer, trouble inside, a gateway's page and a replay refusal are worth another try of a read."""
    run = get_balance(trouble, trouble, SUCCESS)
    assert run.order == "szszs"
    assert run.outcome.error is None


def test_every_attempt_is_signed_afresh() -> None:
    """No two attempts share a nonce or a signature."""
    run = get_balance(BROKEN, BROKEN, SUCCESS)
    for name in ("nonce", "signature"):
        assert len({dict(sent.params)[name] for sent in run.sends}) == 3


def test_attempts_are_bounded_and_end_without_a_sleep() -> None:
    """After the last attempt the failure is returned at once."""
    run = get_balance(*[BROKEN] * ATTEMPTS)
    assert run.order == "szszs"
    assert isinstance(run.outcome.error, errors.TransportError)


def test_one_attempt_asked_for_is_one_attempt() -> None:
    """With attempts=1 nothing is tried again."""
    assert get_balance(BROKEN, attempts=1).order == "s"


@pytest.mark.parametrize("attempts", [0, 11, -1, True, 1.0])
def test_attempts_out_of_range_raise_value_error(attempts: object) -> None:
    """The number of attempts is a whole number from 1 to 10."""
    with pytest.raises(ValueError, match="attempts must be 1 to 10"):
        new_core(attempts=attempts)


def test_waits_double_up_to_a_limit() -> None:
    """Each wait is twice the one before, up to the longest."""
    run = get_balance(*[BROKEN] * 7, attempts=7)
    assert run.sleeps == [FIRST_WAIT_S, 0.4, 0.8, 1.6, LONGEST_WAIT_S, LONGEST_WAIT_S]


def test_waits_are_shortened_by_up_to_half() -> None:
    """Chance shortens a wait, so that many clients do not come back at once."""
    run = get_balance(BROKEN, SUCCESS, random_part=lambda: 1.0)
    assert run.sleeps == [FIRST_WAIT_S / 2]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refusal(307), errors.AccessKeyRefused),
        (refusal(308), errors.SignatureRefused),
        (refusal(400, "malformed"), errors.InvalidRequest),
        (refusal(404, "too many requests"), errors.LimitExceeded),
        (refusal(404, "too many requests", retry_after="600"), errors.LimitExceeded),
        (refusal(404, "trouble", retry_after="600"), errors.Unavailable),
        (answer(b"", 429), errors.LimitExceeded),
        (answer(b"<html>", 500), errors.ProtocolError),
        (answer(b"", 302, location="http://elsewhere/"), errors.ProtocolError),
        (answer({"code": "200", "data": {}}), errors.ProtocolError),
    ],
)
def test_refusal_that_would_come_again_is_not_tried_again(reply: Answer, error: type[errors.SpotledgerError]) -> None:
    """What the same request would meet again, and a limit that is locked for long, is returned at once."""
    run = get_balance(reply)
    assert run.order == "s"
    assert type(run.outcome.error) is error


def test_short_retry_after_is_waited_for() -> None:
    """A limit that ends within seconds is waited out, for as long as the server says."""
    run = get_balance(refusal(404, "too many requests", retry_after="1"), SUCCESS)
    assert run.sleeps == [1.0]
    assert run.outcome.error is None


def test_retry_after_is_in_the_details() -> None:
    """Who has to come back later is told when."""
    error = get_balance(refusal(404, "too many requests", retry_after="600")).outcome.error
    assert error is not None
    assert error.details["retry_after_s"] == 600


@pytest.mark.parametrize("wait", ["-1", "soon", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 30, "１"])
def test_unreadable_retry_after_is_as_none(wait: str) -> None:
    """A Retry-After that is not a small whole number is not waited for."""
    assert get_balance(refusal(404, "too many requests", retry_after=wait)).order == "s"


def server_time(server_ms: object) -> Answer:
    return answer({"code": 200, "data": {"serverTime": server_ms}, "info": "success"})


def test_nonce_refusal_corrects_the_clock_and_signs_again() -> None:
    """After a nonce refusal the server's time is asked for, and the next nonce is of that time."""
    run = get_balance(BAD_NONCE, server_time(NOW_MS + 90_000), SUCCESS)
    assert run.order == "sss"
    assert run.sends[1].url.endswith("/getServerTime")
    assert dict(run.sends[2].params)["nonce"] == str(NOW_MS + 90_000)
    assert run.outcome.error is None


def test_corrected_clock_is_kept_for_later_calls() -> None:
    """The next call uses the corrected time from its first attempt on."""
    core = new_core()
    Run(core.get_balance(), [BAD_NONCE, server_time(NOW_MS - 90_000), SUCCESS])
    later = Run(core.get_balance(), [SUCCESS])
    assert dict(later.sends[0].params)["nonce"] == str(NOW_MS - 90_000 + 1)


def test_second_nonce_refusal_is_returned() -> None:
    """The clock is corrected once a call; a server that still refuses is believed."""
    run = get_balance(BAD_NONCE, server_time(NOW_MS), BAD_NONCE)
    assert run.order == "sss"
    assert isinstance(run.outcome.error, errors.NonceRefused)


@pytest.mark.parametrize("told", [BROKEN, refusal(404), server_time("1562919832183"), server_time(5), answer(b"")])
def test_server_time_that_cannot_be_had_returns_the_refusal(told: Answer | Failure) -> None:
    """Without a usable server time the nonce refusal stands."""
    run = get_balance(BAD_NONCE, told)
    assert run.order == "ss"
    assert isinstance(run.outcome.error, errors.NonceRefused)


def test_clock_is_corrected_to_the_middle_of_the_round_trip() -> None:
    """Of a slow answer about the time, half of the way is taken off."""
    times = iter([NOW_MS, NOW_MS, NOW_MS + 400, NOW_MS + 400])
    run = get_balance(BAD_NONCE, server_time(NOW_MS + 60_000), SUCCESS, clock_ms=lambda: next(times))
    assert dict(run.sends[2].params)["nonce"] == str(NOW_MS + 60_000 - 200 + 400)


LEAST_MS = NOW_MS + 4_321
STARTED = f"The nonce is {NOW_MS}; a nonce of at least {LEAST_MS} would pass: sign again, in 5 s at the latest."
PROBLEM = {"status": 400, "code": "nonce_refused", "detail": STARTED}


@pytest.mark.parametrize(
    "told",
    [
        refusal(400, STARTED, retry_after="5"),
        answer(PROBLEM | {"nonce_from_ms": LEAST_MS}, 400, content_type="application/problem+json"),
    ],
)
def test_refusal_of_a_service_that_started_is_signed_again_with_the_nonce_it_names(told: Answer) -> None:
    """The least nonce passes at once, so nobody waits or asks for the time; later nonces grow from there."""
    core = new_core()
    run = Run(core.get_balance(), [told, SUCCESS])
    assert run.order == "ss"
    assert [dict(send.params)["nonce"] for send in run.sends] == [str(NOW_MS), str(LEAST_MS)]
    assert run.outcome.error is None
    later = Run(core.get_balance(), [SUCCESS])
    assert dict(later.sends[0].params)["nonce"] == str(LEAST_MS + 1)


def test_wrong_clock_and_a_service_that_started_are_both_overcome() -> None:
    """First the clock is corrected, then the nonce is raised: each once a call."""
    run = get_balance(BAD_NONCE, server_time(NOW_MS + 90_000), refusal(400, STARTED), SUCCESS)
    assert run.order == "ssss"
    assert run.outcome.error is None
    endless = get_balance(refusal(400, STARTED), refusal(400, STARTED), server_time(NOW_MS), refusal(400, STARTED))
    assert isinstance(endless.outcome.error, errors.NonceRefused)


@pytest.mark.parametrize("least", [NOW_MS + 60_001, 9999999999999, 10**400, True, -5])
def test_absurd_least_nonce_is_not_taken_over(least: int) -> None:
    """A server cannot have the client sign with nonces of next year."""
    core = new_core()
    told = answer(PROBLEM | {"nonce_from_ms": least}, 400, content_type="application/problem+json")
    Run(core.get_balance(), [told, told, server_time(NOW_MS), told])
    later = Run(core.get_balance(), [SUCCESS])
    assert int(dict(later.sends[0].params)["nonce"]) < NOW_MS + 10


def test_problem_document_is_understood_by_its_code() -> None:
    """Of a server that has problem documents, the exact refusal is told, clock correction included."""
    problem = {"type": "about:blank", "status": 400, "code": "nonce_refused", "detail": "too old"}
    told = answer(problem, 400, content_type="application/problem+json; charset=utf-8")
    run = get_balance(told, server_time(NOW_MS), SUCCESS)
    assert run.outcome.error is None
    revoked = answer(problem | {"code": "access_key_revoked"}, 403, content_type="application/problem+json")
    assert type(get_balance(revoked).outcome.error) is errors.AccessKeyRevoked


@pytest.mark.parametrize("told", ["soon", None, True, 10**400, -1, 1.5, [], {"a": 1}])
def test_problem_document_with_absurd_wait_in_its_body_is_not_waited_for(told: object) -> None:
    """How long to wait is read from the header alone, whatever the body says."""
    problem = {"status": 429, "code": "limit_exceeded", "detail": "d", "retry_after_s": told}
    run = get_balance(answer(problem, 429, content_type="application/problem+json"))
    assert run.order == "s"
    assert type(run.outcome.error) is errors.LimitExceeded


def test_limit_is_told_by_its_header_whatever_the_text() -> None:
    """A refusal with nothing left in its RateLimit is that of a limit."""
    told = refusal(404, "This address sent more than 10", ratelimit='"address";r=0;t=600', retry_after="600")
    assert type(get_balance(told).outcome.error) is errors.LimitExceeded
    left = refusal(404, "Trouble inside", ratelimit='"address";r=10;t=600', retry_after="600")
    assert type(get_balance(left).outcome.error) is errors.Unavailable


@pytest.mark.parametrize("where", ["v1", "problem"])
def test_server_repeating_the_request_gets_no_secret_into_the_error(where: str) -> None:
    """A refusal that quotes key, secret and signature is shown without them, and without control characters."""
    signed = "f26c4af0871fd117f80ee0a47781623c52340cb302ce982a738ff12e26b2823b"
    text = f"\x1b[31mbad {support.ACCESSKEY} {support.SECRETKEY} {signed}" + "x" * 10_000
    if where == "v1":
        told = refusal(308, text)
    else:
        body = {"code": "signature_refused", "detail": text, "field": text}
        told = answer(body, 403, content_type="application/problem+json")
    error = get_balance(told).outcome.error
    assert isinstance(error, errors.SignatureRefused)
    for shown in (str(error), repr(error), *map(str, error.details.values())):
        for secret in (support.ACCESSKEY, support.SECRETKEY, signed, "\x1b"):
            assert secret not in shown
        assert len(shown) < 1_000


def test_steps_shown_hide_parameters_and_body() -> None:
    """Neither the repr of a step nor that of an answer shows what is secret."""
    run = get_balance(SUCCESS)
    assert support.ACCESSKEY not in repr(run.sends[0])
    assert "signature" not in repr(run.sends[0])


@pytest.mark.parametrize("account", [0, 4, "2", True, 2.0, None])
def test_funds_of_account_out_of_range_raises_value_error(account: object) -> None:
    """Only 1, 2 and 3 are accounts."""
    with pytest.raises(ValueError, match="account must be"):
        new_core().get_funds(account)  # type: ignore[arg-type]
