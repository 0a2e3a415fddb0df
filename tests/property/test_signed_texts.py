"""R6: two different accepted requests never have a text to sign in common, on v1 and v4, however they are encoded."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, quote_plus

from hypothesis import assume, example, given, settings, strategies as st

from spotledger import paths
from spotledger.errors import InvalidRequest
from spotledger.http.public.request import Request, read_parameters, read_signed
from spotledger.http.public.v4 import read_headers
from support_public import KEY, NONCE, Headers

#: What encodings are made of, and letters that are written in several ways.
SIGNS = st.sampled_from([*"ab=&%+ ~#é/\x00", "%2", "26", "%26", "%25", "2b", "a%3Db", "ſ", "\u0301"])
TEXT = st.lists(SIGNS, max_size=4).map("".join)
NAMES = st.one_of(st.sampled_from(["note", "Note", "n", "accesskey=", "x"]), TEXT)
PAIRS = st.lists(st.tuples(NAMES, TEXT), max_size=3)


def _as_it_is(text: str) -> str:
    return text


def _lower_hex(text: str) -> str:
    return quote(text, safe="").replace("%2B", "%2b").replace("%C3%A9", "%c3%a9").replace("%3D", "%3d")


def _doubly(text: str) -> str:
    return quote_plus(quote_plus(text))


#: How a client may write a name or value on the wire.
WRITERS = st.sampled_from([_as_it_is, quote, quote_plus, _lower_hex, _doubly])


class Accepted(NamedTuple):
    """What an accepted request says, and the texts that its signature may cover."""

    says: object
    texts: frozenset[bytes]


def v1(pairs: list[tuple[str, str]], written: object) -> Accepted | None:
    """Return what a query or a form body says; None if it is refused."""
    assert callable(written)
    sent = [f"{written(name)}={written(value)}" for name, value in pairs]
    query = "&".join([*sent, f"accesskey={KEY}", f"nonce={NONCE}", f"signature={'0' * 64}"])
    try:
        read, parameters = read_signed(query), read_parameters(query)
    except InvalidRequest:
        return None
    del parameters["signature"]
    return Accepted(frozenset(parameters.items()), frozenset(read.signed.texts))


def v4(pairs: list[tuple[str, str]], written: object, accesskey: str = KEY) -> Accepted | None:
    """Return what a request of the newer API says; None if it is refused."""
    assert callable(written)
    headers = Headers(
        ("xt-validate-algorithms", "HmacSHA256"),
        ("xt-validate-appkey", accesskey),
        ("xt-validate-recvwindow", "5000"),
        ("xt-validate-timestamp", str(NONCE)),
        ("xt-validate-signature", "0" * 64),
    )
    query = "&".join(f"{written(name)}={written(value)}" for name, value in pairs)
    request = Request("GET", paths.V4_BALANCES, query, headers, "192.0.2.7:1", b"", NONCE, "test")
    try:
        signed, _ = read_headers(request)
        parameters = read_parameters(query)
    except InvalidRequest:
        return None
    return Accepted((accesskey, frozenset(parameters.items())), frozenset(signed.texts))


REQUESTS = st.one_of(st.builds(v1, PAIRS, WRITERS), st.builds(v4, PAIRS, WRITERS))


@given(one=REQUESTS, other=REQUESTS)
@example(one=v1([("note", "a=b")], quote), other=v1([("note", "a%3Db")], quote))
@example(one=v1([("note", "a b")], quote), other=v1([("note", "a+b")], quote))
@example(one=v1([("no te", "1")], quote), other=v1([("no+te", "1")], quote))
@example(one=v1([("note", "é")], quote), other=v1([("note", "%C3%A9")], quote))
@example(one=v1([("Note", "a+b")], quote), other=v1([("Note", "a%2Bb")], quote))
@settings(max_examples=3000, deadline=None)
def test_two_accepted_requests_never_have_a_text_in_common(one: Accepted | None, other: Accepted | None) -> None:
    """Whatever two requests say, and however it is encoded: one signature never stands for both."""
    assume(one is not None and other is not None)
    assert one is not None
    assert other is not None
    assert one.texts
    if one.says != other.says:
        assert not one.texts & other.texts
    else:
        assert one.texts == other.texts


#: Two lists of pairs that differ in one place, so that their texts are near each other.
NEAR = st.tuples(PAIRS, NAMES, TEXT, NAMES, TEXT)


@given(near=NEAR, first=WRITERS, second=WRITERS)
@settings(max_examples=3000, deadline=None)
def test_two_requests_that_differ_in_one_pair_have_no_text_in_common(
    near: tuple[list[tuple[str, str]], str, str, str, str], first: object, second: object
) -> None:
    """Requests that are equal but for one pair are told apart by their texts, on v1 and on v4."""
    pairs, *differing = near
    one_pair, other_pair = (differing[0], differing[1]), (differing[2], differing[3])
    for read in (v1, v4):
        one, other = read([*pairs, one_pair], first), read([*pairs, other_pair], second)
        if one is not None and other is not None and one.says != other.says:
            assert not one.texts & other.texts


@given(values=st.lists(TEXT, min_size=2, max_size=2, unique=True), writer=WRITERS)
@settings(max_examples=500, deadline=None)
def test_any_two_values_of_one_parameter_have_no_text_in_common(values: list[str], writer: object) -> None:
    """The case of the issue: one parameter, two values."""
    one, other = (v1([("note", value)], writer) for value in values)
    if one is not None and other is not None and one.says != other.says:
        assert not one.texts & other.texts
