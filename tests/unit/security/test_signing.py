"""Signatures: equal to a plain HMAC, and the texts that a signature may be made of."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, strategies as st

from spotledger.security.signing import PreparedSecret, texts_to_sign

#: Rule R6: no name or value holds ``&`` or ``%`` and no name ``=``, so that two requests never sign to one text.
VALUE = st.text(st.characters(exclude_characters="&%", exclude_categories=["Cs"]), min_size=1, max_size=8)
NAME = VALUE.filter(lambda name: "=" not in name)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1_000])
def test_prepared_secret_of_any_length_signs_like_a_plain_hmac(length: int) -> None:
    """A secret that fills the block of 64 bytes is used as it is, a longer one is hashed first."""
    expected = hmac.new(b"s" * length, b"text", hashlib.sha256).digest()
    assert PreparedSecret("s" * length).sign(b"text") == expected


@given(secret=st.text(st.characters(exclude_categories=["Cs"]), max_size=80), text=st.binary(max_size=200))
def test_prepared_secret_signs_like_a_plain_hmac(secret: str, text: bytes) -> None:
    """Whatever secret and text are, and each time that the secret is used."""
    prepared = PreparedSecret(secret)
    expected = hmac.new(secret.encode(), text, hashlib.sha256).digest()
    assert prepared.sign(text) == prepared.sign(text) == expected


def test_prepared_secret_does_not_show_its_secret() -> None:
    """A secret that gets into a log or a traceback is not readable there."""
    assert repr(PreparedSecret("hunter2")) == "PreparedSecret(…)"


@given(pairs=st.lists(st.tuples(NAME, VALUE), max_size=4))
def test_texts_are_the_raw_and_the_encoded_form_in_byte_order(pairs: list[tuple[str, str]]) -> None:
    """The texts are the two forms that clients sign; parameters of one name stay in their order."""
    ordered = sorted(pairs, key=lambda pair: pair[0].encode())
    raw, encoded = "&".join(f"{name}={value}" for name, value in ordered), urlencode(ordered)
    texts = texts_to_sign(pairs)
    forms = [raw.encode()] if " " in raw else [raw.encode(), encoded.encode()]
    assert list(dict.fromkeys(texts)) == list(dict.fromkeys(forms))
    assert parse_qsl(encoded) == ordered


@pytest.mark.parametrize("pair", [("note", "a b"), ("no te", "a+b"), ("note", " ")])
def test_value_with_a_blank_has_the_raw_text_only(pair: tuple[str, str]) -> None:
    """R6: the encoded text of a blank is the raw text of a plus, so it does not count."""
    assert texts_to_sign([pair]) == ("=".join(pair).encode(),)


@pytest.mark.parametrize("value", ["a=b", "=", "a+b", "é", "a~é"])
def test_value_that_encoding_changes_has_two_texts(value: str) -> None:
    """An ``=`` within a value, a plus and other letters are signed in two forms."""
    assert texts_to_sign([("name", value)]) == (f"name={value}".encode(), urlencode({"name": value}).encode())


def test_value_that_encoding_keeps_has_one_text() -> None:
    """The usual request is signed once, not twice."""
    assert texts_to_sign([("nonce", "1562919832183"), ("accesskey", "a-b_c.d")]) == (
        b"accesskey=a-b_c.d&nonce=1562919832183",
    )
