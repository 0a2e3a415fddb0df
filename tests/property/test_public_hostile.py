"""Whatever is sent to the public listener, an answer of the documented shape comes back, and no balance by luck."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given, settings, strategies as st

from spotledger.errors import MalformedRequest
from spotledger.http.public.answers import Answer
from spotledger.http.public.request import Read, read_parameters, read_signed, signed_of
from spotledger.security.addresses import parse_address
from spotledger.security.signing import PreparedSecret, texts_to_sign
from support_public import (
    BALANCE,
    FUNDS,
    KEY,
    NONCE,
    PEER,
    Headers,
    Service,
    at_once,
    encoded_text,
    raw_text,
    service,
    sign,
    signed_query,
)

ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates too
NAMES = st.sampled_from(["accesskey", "accessKey", "nonce", "signature", "account", "sign", "x"])
PIECES = st.sampled_from(
    ["&", "=", "%", "+", "%26", "%3D", "%00", "%ff", "é", ";", "#", "?", "\n", "\0", "1", KEY, "\ud800"]
)
VALUES = st.one_of(ANY_TEXT, st.sampled_from([KEY, str(NONCE), "0" * 64, "1", "", "=", "&"]))
PATHS = ["getBalance", "getFunds", "getAccounts", "getServerTime", "getBalance/", "nothing"]
KNOWN_PATHS = [f"/trade/api/v1/{name}" for name in PATHS] + ["/v4/balances", "/v4/public/currencies", "/v4/x"]
METHODS = st.one_of(st.sampled_from(["GET", "POST", "HEAD", "PUT", "CONNECT", "get", ""]), ANY_TEXT)
HEADER_NAMES = [
    "accept",
    "accept-encoding",
    "x-forwarded-for",
    "content-type",
    "content-length",
    *(f"xt-validate-{name}" for name in ("algorithms", "appkey", "recvwindow", "timestamp", "signature")),
]
HEADERS = st.lists(st.tuples(st.sampled_from(HEADER_NAMES), st.one_of(VALUES, st.just("HmacSHA256"))), max_size=8)


@st.composite
def queries(draw: st.DrawFn) -> str:
    """Text that resembles a query more or less."""
    pairs = draw(st.lists(st.tuples(st.one_of(NAMES, ANY_TEXT), VALUES), max_size=6))
    glued = draw(st.lists(st.one_of(PIECES, ANY_TEXT, st.just(signed_query())), max_size=8))
    return draw(st.sampled_from(["", signed_query() + "&"])) + "&".join(f"{n}={v}" for n, v in pairs) + "".join(glued)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one listener, behind a trusted proxy and without limits, for all examples."""
    with service(
        tmp_path_factory.mktemp("ledger"),
        asset_limit_per_second=0,
        account_limit_per_second=0,
        address_limit_per_minute=0,
        trusted_proxies=("192.0.2.7",),
    ) as made:
        yield made


def shape(answer: Answer, path: str) -> dict[str, Any]:
    """Assert that *answer* has one of the documented shapes; return the decoded body."""
    said = json.loads(answer.body.decode())
    for name, value in answer.headers:
        assert (name + value).isascii()
        assert (name + value).isprintable()
    kind = dict(answer.headers)["content-type"]
    if kind == "application/problem+json":
        assert {"type", "title", "status", "detail", "code", "request_id"} <= said.keys()
        assert answer.status == said["status"]
    elif path.startswith("/v4/"):
        assert said.keys() == {"rc", "mc", "ma", "result"}
    elif said["code"] == 200:
        assert said.keys() == {"code", "data", "info"}
    else:
        assert said.keys() == {"code", "info", "msg", "msgInfo"}
        assert said["code"] in (307, 308, 400, 404)
    return dict(said)


@given(
    method=METHODS,
    path=st.one_of(st.sampled_from(KNOWN_PATHS), ANY_TEXT),
    query=queries(),
    headers=HEADERS,
    peer=st.one_of(st.just(PEER), ANY_TEXT),
    body=st.one_of(st.just(b""), st.binary(max_size=60), queries().map(lambda text: text.encode("utf-8", "replace"))),
)
@settings(max_examples=1500, deadline=None)
def test_any_request_has_an_answer_in_the_documented_shape(
    public: Service, method: str, path: str, query: str, headers: list[tuple[str, str]], peer: str, body: bytes
) -> None:
    """Hostile text in every field at once: always an answer in a documented shape, and no trouble inside."""
    answer = at_once(public.app.answer(method, path, query, Headers(*headers), peer, body))
    shape(answer, path)
    assert public.app.refusals.get("error", 0) == 0


@given(query=queries())
@settings(max_examples=1000, deadline=None)
def test_balances_come_only_for_what_was_signed(public: Service, query: str) -> None:
    """Where a balance came back, the parameters that count are exactly those of the one signature in play."""
    said = shape(at_once(public.app.answer("GET", BALANCE, query, Headers(), PEER)), BALANCE)
    if said["code"] == 200:
        parameters = read_parameters(query)
        assert parameters.pop("signature").lower() == sign(raw_text({"accesskey": KEY, "nonce": str(NONCE)}))
        assert parameters == {"accesskey": KEY, "nonce": str(NONCE)}


@given(data=st.data(), flips=st.integers(1, 3))
@settings(max_examples=500, deadline=None)
def test_changed_bytes_never_pass_as_another_request(public: Service, data: st.DataObject, flips: int) -> None:
    """A signed query with a few characters changed is refused, unless it still says the same."""
    query = list(signed_query({"account": "2"}))
    for _ in range(flips):
        query[data.draw(st.integers(0, len(query) - 1))] = data.draw(st.characters(max_codepoint=0x2FF))
    changed = "".join(query)
    said = shape(at_once(public.app.answer("GET", FUNDS, changed, Headers(), PEER)), FUNDS)
    if said["code"] == 200:
        read, meant = read_parameters(changed), read_parameters(signed_query({"account": "2"}))
        assert {**read, "signature": read["signature"].lower()} == meant


ORDER = ["accesskey", "account", "nonce", "signature"]


@st.composite
def common_like(draw: st.DrawFn) -> str:
    """A query of the common shape, or one that is nearly so."""
    values = {
        "accesskey": draw(st.from_regex(r"[A-Za-z0-9-]{1,64}|[A-Za-z0-9.%+-]{0,66}", fullmatch=True)),
        "account": draw(st.none() | st.from_regex(r"[A-Za-z0-9]{1,8}|[A-Za-z0-9%]{0,9}", fullmatch=True)),
        "nonce": draw(st.from_regex(r"[0-9]{13}|[0-9٠]{12,14}", fullmatch=True)),
        "signature": draw(st.from_regex(r"[0-9a-fA-F]{64}|[0-9a-g]{63,65}", fullmatch=True)),
    }
    names = draw(st.just(ORDER) | st.permutations(ORDER))
    glue = draw(st.sampled_from(["&", "&", "&", "&&"]))
    return glue.join(f"{name}={values[name]}" for name in names if values[name] is not None)


def read_or_refused(text: str, *, short: bool) -> Read | str:
    """Read *text* by the short path or the general one; a refusal as its kind."""
    try:
        return read_signed(text) if short else signed_of(read_parameters(text))
    except MalformedRequest:
        return "refused"


@given(text=st.one_of(common_like(), queries()))
@example(signed_query())
@example(signed_query({"account": "2"}))
@example(signed_query() + "\n")
@settings(max_examples=1500, deadline=None)
def test_short_path_reads_as_the_general_one(text: str) -> None:
    """The short path for the common shape gives exactly what the general parser gives."""
    assert read_or_refused(text, short=True) == read_or_refused(text, short=False)


PARAMETERS = st.dictionaries(
    st.text(st.characters(exclude_characters="&=%", exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.text(st.characters(exclude_characters="&%", exclude_categories=["Cs"]), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


@given(one=PARAMETERS, other=PARAMETERS)
@settings(max_examples=500)
def test_different_parameters_never_sign_to_the_same_raw_text(one: dict[str, str], other: dict[str, str]) -> None:
    """R6 makes the raw text say unmistakably which parameters it was made of."""
    assume(one != other)
    assert texts_to_sign(one.items())[0] != texts_to_sign(other.items())[0]


@given(parameters=PARAMETERS)
@settings(max_examples=500)
def test_texts_to_sign_are_the_raw_and_the_encoded_one(parameters: dict[str, str]) -> None:
    """R9: the raw text, and the encoded one exactly where it is another and there is no blank."""
    raw, encoded = raw_text(parameters).encode(), encoded_text(parameters).encode()
    texts = texts_to_sign(reversed(parameters.items()))
    assert texts[0] == raw
    expected = {raw} if b" " in raw else {raw, encoded}
    assert set(texts) == expected


@given(secret=st.text(st.characters(exclude_categories=["Cs"]), max_size=200), text=st.binary(max_size=300))
@settings(max_examples=300)
def test_prepared_secret_signs_as_hmac_does(secret: str, text: bytes) -> None:
    """The two prepared states give the HMAC-SHA256 of the standard library, for secrets of any length."""
    assert PreparedSecret(secret).sign(text) == hmac.digest(secret.encode(), text, hashlib.sha256)


@given(text=st.one_of(ANY_TEXT, st.ip_addresses().map(str), st.from_regex(r"\[?[0-9a-f:.%]{0,20}\]?:?[0-9]{0,5}")))
@settings(max_examples=500)
def test_any_text_is_an_address_or_none(text: str) -> None:
    """Hostile X-Forwarded-For entries are read or refused, never an exception."""
    address = parse_address(text)
    assert address is None or parse_address(str(address)) == address
