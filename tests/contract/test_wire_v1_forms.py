"""The fifteen forms in which real clients send a signed request: each passes, and none of them tampered with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support_public import (
    BALANCE,
    FUNDS,
    KEY,
    NONCE,
    SECRET,
    Service,
    document,
    encoded_text,
    raw_text,
    service,
    sign,
)


class Sent(NamedTuple):
    """One request as it goes over the wire; ``text`` is the query, or the form where the method is POST."""

    text: str
    path: str = BALANCE
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()


Form = Callable[[str, dict[str, str]], Sent]
PLAIN = {"accesskey": KEY, "nonce": str(NONCE)}
NOTED = {**PLAIN, "note": "a b/ü"}
#: A value without a blank: form-encoded, a blank is a plus, and another request has that plus (R6).
ENCODABLE = {**PLAIN, "note": "a+b/ü=c"}


def _sorted(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {**PLAIN, **extra}
    return Sent(f"{encoded_text(parameters)}&signature={sign(raw_text(parameters), secret)}")


def _unsorted(secret: str, extra: dict[str, str]) -> Sent:
    signature = sign(raw_text({**PLAIN, **extra}), secret)
    return Sent("&".join(["nonce=" + str(NONCE), *_pairs(extra), f"accesskey={KEY}", f"signature={signature}"]))


def _signature_first(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {**PLAIN, **extra}
    return Sent(f"signature={sign(raw_text(parameters), secret)}&{encoded_text(parameters)}")


def _signature_between(secret: str, extra: dict[str, str]) -> Sent:
    signature = sign(raw_text({**PLAIN, **extra}), secret)
    return Sent("&".join([f"accesskey={KEY}", f"signature={signature}", f"nonce={NONCE}", *_pairs(extra)]))


def _signed_raw(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {**NOTED, **extra}
    return Sent(f"{encoded_text(parameters)}&signature={sign(raw_text(parameters), secret)}")


def _signed_encoded(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {**ENCODABLE, **extra}
    return Sent(f"{encoded_text(parameters)}&signature={sign(encoded_text(parameters), secret)}")


def _upper_hex(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {**PLAIN, **extra}
    return Sent(f"{encoded_text(parameters)}&signature={sign(raw_text(parameters), secret).upper()}")


def _access_key(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {"accessKey": KEY, "nonce": str(NONCE), **extra}
    return Sent(f"{encoded_text(parameters)}&signature={sign(raw_text(parameters), secret)}")


def _trailing_ampersand(secret: str, extra: dict[str, str]) -> Sent:
    return Sent(_sorted(secret, extra).text + "&")


def _trailing_slash(secret: str, extra: dict[str, str]) -> Sent:
    return _sorted(secret, extra)._replace(path=BALANCE + "/")


def _post_form(secret: str, extra: dict[str, str]) -> Sent:
    form = (("content-type", "application/x-www-form-urlencoded"),)
    return _sorted(secret, extra)._replace(method="POST", headers=form)


def _json_content_type(secret: str, extra: dict[str, str]) -> Sent:
    return _sorted(secret, extra)._replace(headers=(("content-type", "application/json;charset=utf-8"),))


def _unsigned_blank(secret: str, extra: dict[str, str]) -> Sent:
    return Sent(_sorted(secret, extra).text + "&sign=")


def _get_funds(secret: str, extra: dict[str, str]) -> Sent:
    parameters = {**PLAIN, "account": "2", **extra}
    return Sent(f"{encoded_text(parameters)}&signature={sign(raw_text(parameters), secret)}", FUNDS)


def _percent_encoded_letters(secret: str, extra: dict[str, str]) -> Sent:
    return Sent(_sorted(secret, extra).text.replace("nonce", "%6E%6fnce").replace("-", "%2D"))


def _pairs(parameters: dict[str, str]) -> list[str]:
    return [encoded_text({name: value}) for name, value in parameters.items()]


FORMS: list[Form] = [
    _sorted,
    _unsorted,
    _signature_first,
    _signature_between,
    _signed_raw,
    _signed_encoded,
    _upper_hex,
    _access_key,
    _trailing_ampersand,
    _trailing_slash,
    _post_form,
    _json_content_type,
    _unsigned_blank,
    _get_funds,
    _percent_encoded_letters,
]


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Service]:
    """Run a listener without limits."""
    with service(tmp_path, asset_limit_per_second=0) as made:
        yield made


def code(public: Service, sent: Sent) -> int:
    """Send the request and return the code of the answer."""
    query, body = (sent.text, b"") if sent.method == "GET" else ("", sent.text.encode())
    return public.code(query, sent.path, method=sent.method, headers=sent.headers, body=body)


def without(text: str, name: str) -> str:
    """Return *text* without the parameter *name*."""
    return "&".join(pair for pair in text.split("&") if pair.partition("=")[0] != name)


def test_there_are_fifteen_forms() -> None:
    """As many forms are tried as were found with real clients."""
    assert len(set(FORMS)) == 15


@pytest.mark.parametrize("form", FORMS)
def test_form_of_a_real_client_is_accepted(public: Service, form: Form) -> None:
    """Each form passes, alone and with a further signed parameter."""
    assert code(public, form(SECRET, {})) == 200
    assert code(public, form(SECRET, {"zone": "7"})) == 200


@pytest.mark.parametrize("form", FORMS)
def test_form_with_a_wrong_secret_is_refused(public: Service, form: Form) -> None:
    """308 for each form that was signed with another secret."""
    for secret in (SECRET[:-1] + "8", SECRET.upper() + "0", "0"):
        assert code(public, form(secret, {})) == 308


@pytest.mark.parametrize("form", FORMS)
def test_form_with_a_changed_parameter_is_refused(public: Service, form: Form) -> None:
    """308 when a value was changed on the way; the window would have let each of these nonces pass."""
    sent = form(SECRET, {"zone": "7"})
    for before, after in (("zone=7", "zone=8"), (str(NONCE), str(NONCE + 1)), ("zone=7", "zonf=7")):
        assert before in sent.text
        assert code(public, sent._replace(text=sent.text.replace(before, after))) == 308


@pytest.mark.parametrize("form", FORMS)
def test_form_with_a_dropped_parameter_is_refused(public: Service, form: Form) -> None:
    """308 when a signed parameter was dropped, 400 when it is one that has to be there."""
    sent = form(SECRET, {"zone": "7"})
    assert code(public, sent._replace(text=without(sent.text, "zone"))) == 308
    for name in ("nonce", "%6E%6fnce", "accesskey", "accessKey", "signature"):
        if without(sent.text, name) != sent.text:
            assert code(public, sent._replace(text=without(sent.text, name))) == 400


@pytest.mark.parametrize("form", FORMS)
def test_form_with_an_added_parameter_is_refused(public: Service, form: Form) -> None:
    """308 when a parameter was added that was not signed; and no balance comes with it."""
    sent = form(SECRET, {})
    for added in ("zone=7", "zz=1", "A=1", "é=1"):
        assert code(public, sent._replace(text=f"{added}&{sent.text}")) == 308
        assert code(public, sent._replace(text=f"{sent.text.rstrip('&')}&{added}")) == 308


def test_form_signed_with_the_key_of_another_is_refused(public: Service) -> None:
    """A signature of one access key is worth nothing for another, even under the same secret."""
    public.add_key("another-key", SECRET, "bob")
    own = f"accesskey={KEY}&nonce={NONCE}"
    said = document(public.ask(f"accesskey=another-key&nonce={NONCE}&signature={sign(own)}"))
    assert (said["code"], "data" in said) == (308, False)
