"""The body of a batch, cut into operations: the same as any JSON reader does, and never long at a time."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.operator import batch_body
from spotledger.http.operator.batch_body import BATCH_LIMIT, OPERATION_LIMIT_BYTES, BatchReader

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(['"', "\\", "},{", "]}", "\\u0022"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
operations = st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=8)


def read(body: bytes) -> tuple[list[bytes], bool]:
    """Return the operations in *body*, and whether it is atomic."""
    reader = BatchReader(body)
    return [operation for piece in reader.pieces() for operation in piece], reader.atomic


@settings(max_examples=200, deadline=None)
@given(operations=operations, atomic=st.none() | st.booleans(), indent=st.none() | st.integers(0, 2), data=st.data())
def test_operations_are_those_that_json_has(
    operations: list[Any], atomic: bool | None, indent: int | None, data: st.DataObject
) -> None:
    """Whatever is in strings, however it is indented, escaped and ordered."""
    members: list[tuple[str, Any]] = [("operations", operations)]
    if atomic is not None:
        members.insert(data.draw(st.integers(0, 1)), ("atomic", atomic))
    text = json.dumps(dict(members), indent=indent, ensure_ascii=data.draw(st.booleans()))
    found, is_atomic = read(text.encode(errors="surrogatepass"))
    assert [json.loads(operation.decode(errors="surrogatepass")) for operation in found] == operations
    assert is_atomic is bool(atomic)


@settings(max_examples=300, deadline=None)
@given(operations=operations, place=st.integers(0, 200), noise=st.sampled_from(list('{}[],:"\\ 1tx\x0b\xa0')))
def test_what_is_read_whole_is_json(operations: list[Any], place: int, noise: str) -> None:
    """A body with a mark too many is either refused, or JSON as long as its operations are."""
    text = json.dumps({"operations": operations, "atomic": True})
    place = min(place, len(text))
    try:
        found, _ = read((text[:place] + noise + text[place:]).encode())
        parts = [json.loads(operation) for operation in found]
    except (MalformedRequest, InvalidRequest, ValueError):
        return
    assert parts == json.loads(text[:place] + noise + text[place:])["operations"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"operations":[],"operations":[]}', "operations"),
        (b'{"operations":[],"\\u006fperations":[]}', "operations"),
        (b'{"atomic":true,"operations":[],"\\u0061tomic":false}', "atomic"),
        (b'{"operations":[],"x":1}', "x"),
        (b'{"atomic":true}', "operations"),
        (b'{"operations":{}}', "operations"),
        (b'{"operations":[],"atomic":1}', "atomic"),
        (b'{"operations":[{},1]}', "operations[1]"),
        (b'{"operations":[' + b"{}," * BATCH_LIMIT + b"{}]}", "operations"),
    ],
)
def test_member_wrong_or_twice_is_named(body: bytes, field: str) -> None:
    """A name counts as what it means, however it is written."""
    with pytest.raises(InvalidRequest) as refusal:
        read(body)
    assert refusal.value.details["field"] == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"operations":[}',
        b'{"operations":[{}',
        b'{"operations":[{},]}',
        b'{"operations":[,{}]}',
        b'{"operations":[]]}',
        b'{"operations":[]}x',
        b'{"operations":[],}',
        b'{"operations"}',
        b'{"\xff":1}',
        b'{"\\ud800":1}',
        b'{"operations":[{"a":[' + b"1," * 6_000 + b"1]}]}",
        b'{"operations":[{"a":' + b"[" * 100 + b"]" * 100 + b"}]}",
    ],
)
def test_body_that_is_not_json_is_malformed(body: bytes) -> None:
    """Brackets, commas and names where they do not belong, half a surrogate pair, or far too many values."""
    with pytest.raises(MalformedRequest):
        read(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"operations":[' + b"1," * 4_000_000 + b"1]}",
        b'{"operations":[{' + b'"a":1,' * 1_300_000 + b'"b":1}]}',
        b"{" + b'"a":1,' * 1_300_000 + b'"b":1}',
        b'{"operations":[' + b'{"a":"' + b"\\\\" * 4_000_000 + b'"}]}',
        b'{"operations":[' + b"[" * 8_000_000,
        b'{"operations":[{' + b"[[[]]]" * 1_300_000,
        b'{"operations":' + b" " * 8_000_000 + b"[]}",
        b"{" + b'"' * 8_000_000,
    ],
    ids=["numbers", "fields", "members", "escapes", "open lists", "lists", "blanks", "quotes"],
)
def test_long_body_is_refused_at_once(body: bytes) -> None:
    """Eight megabytes of what is no batch are not read to their end, or read quickly."""
    began = time.process_time()
    with contextlib.suppress(MalformedRequest, InvalidRequest):
        assert read(body) == ([], False)
    assert time.process_time() - began < 0.05


def test_pieces_are_short() -> None:
    """Between two pieces others have a turn: so many operations, or so many bytes."""
    body = b'{"operations":[' + b",".join([b'{"a":"' + b"x" * 60_000 + b'"}'] * 100 + [b"{}"] * 1_000) + b"]}"
    pieces = [*BatchReader(body).pieces()]
    assert sum(map(len, pieces)) == 1_100
    assert max(map(len, pieces)) <= 100
    assert max(sum(map(len, piece)) for piece in pieces) <= 4 * OPERATION_LIMIT_BYTES


def outcome(body: bytes) -> Any:
    """Give what is read of *body*, or the class, message and details of its refusal."""
    try:
        return read(body)
    except InvalidRequest as refusal:
        return type(refusal), refusal.message, refusal.details


SIDE = '{"hold":{"key":"a"},"fee":{"coin":"x"},"dust":{}}'
LIKELY = [
    *('{"op":"freeze"}', '{"amount":"1","op":"deposit"}', f'{{"op":"settle","buyer":{SIDE},"seller":{SIDE}}}'),
    *("{}", "1", "[]", "null", '{"a":[[[[[[[[[1]]]]]]]]]}', '{"a":"' + "[" * 20 + '"}'),
    *('{"a":[' + "1," * 1_001 + "1]}", "{" + " " * 70_000 + "}", "{" + " " * 40_000 + "}"),
]
MEMBERS = ["", ',"atomic":true', ',"atomic":1', ',"atomic":true,"atomic":false', ',"\\u0061tomic":true']


@settings(max_examples=300, deadline=None)
@given(
    operations=st.lists(st.sampled_from(LIKELY), max_size=4),
    atomic=st.sampled_from(MEMBERS),
    tail=st.sampled_from(["}", "", "}}", ',"operations":[]}', ',"x":1}']),
)
def test_short_body_is_cut_at_once_as_it_is_piece_by_piece(operations: list[str], atomic: str, tail: str) -> None:
    """However it is cut, the same operations are found, and what is refused is refused in the same words."""
    body = f'{{"operations":[{",".join(operations)}]{atomic}{tail}'.encode()
    at_once = outcome(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_body, "SHORT_BYTES", 0)
        assert outcome(body) == at_once
