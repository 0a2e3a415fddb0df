"""Bodies of answers, read strictly: one JSON object without ambiguity, or a ProtocolError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from spotledger.client.reading import read_object
from spotledger.errors import ProtocolError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(st.text(), JSON, max_size=4))
def test_object_is_read_as_it_was_written(document: dict[str, object]) -> None:
    """Any JSON object comes back equal, whole numbers beyond 64 bits included."""
    assert read_object(json.dumps(document).encode()) == document


@given(body=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """No body makes the client fail in a way that its caller cannot expect."""
    try:
        assert isinstance(read_object(body), dict)
    except ProtocolError as refused:
        assert refused.__cause__ is refused.__context__ is None  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "too long"),
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"a":1} {}', "is not JSON"),
        (b'\xef\xbb\xbf{"a":1}', "is not JSON"),
        (b'{"a":"\xff"}', "is not JSON"),
        (b'{"a":NaN}', "is not JSON"),
        (b'{"a":[-Infinity]}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["a"]', "a JSON list"),
        (b"null", "a JSON NoneType"),
        (b'"a"', "a JSON str"),
        (b'{"a":1,"a":1}', "the name 'a' twice"),
        (b'{"b":{"a":1,"\\u0061":2}}', "the name 'a' twice"),
    ],
)
def test_body_that_is_ambiguous_or_no_object_is_refused(body: bytes | None, message: str) -> None:
    """What two readers could read differently is refused, and the message says what was wrong."""
    with pytest.raises(ProtocolError, match=message):
        read_object(body)


def test_refusal_repeats_no_value_of_the_body() -> None:
    """A secret in a broken answer does not get into a log through the error."""
    for body in (b'{"secret":"hunter2"', b'{"a":"hunter2","a":"hunter2"}', b'["hunter2"]'):
        with pytest.raises(ProtocolError) as refused:
            read_object(body)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ProtocolError) as refused:
        read_object(json.dumps({"n" * 1_000: 1})[:-1].encode() + b',"' + b"n" * 1_000 + b'":2}')
    assert len(str(refused.value)) < 200
