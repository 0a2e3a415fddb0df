"""No body keeps the event loop busy, however many values it has, and however its names are written."""

from __future__ import annotations

import time

import pytest

from spotledger.domain.operations import Deposit
from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.operator.bodies import KeyBody, decode
from spotledger.http.operator.operation_bodies import BODIES

#: An escape makes every name be looked at.
ESCAPED = b'{"customer":[%b],"co\\u0069n":"usdt","amount":"1"}'
LONG = {
    "objects": ESCAPED % (b"{}," * 86_000 + b"{}"),
    "numbers": ESCAPED % (b"1.5," * 65_000 + b"1"),
    "names": ESCAPED % (b"{" + b",".join(b'"%x":0' % number for number in range(26_000)) + b"}"),
    "lists": ESCAPED % (b"[[]]," * 51_000 + b"1"),
}


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_body_with_more_values_than_any_call_takes_is_refused_at_once(body: bytes) -> None:
    """256 KiB of them take up to 90 ms to decode and check; nobody waits that long for a caller's mistake."""
    began = time.process_time()
    with pytest.raises(MalformedRequest):
        decode(body, BODIES[Deposit].struct)
    assert time.process_time() - began < 0.01


def test_longest_body_that_a_call_takes_passes() -> None:
    """A hundred addresses, and marks within strings, are not too many values."""
    addresses = ",".join(f'"10.0.0.{number}/32"' for number in range(100))
    text = f'{{"customer":"alice","permissions":["read"],"label":"{"," * 64}","addresses":[{addresses}]}}'
    assert len(decode(text.encode(), KeyBody).addresses) == 100


NULLS = b',"account":"spot","happened_ms":null'
MORE = [b"", b',"reference":null', NULLS, b',"reference":"a:b"', b',"reference":"\\u0022"']


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("twice", [b',"coin":"usdt"', b',"coin":null', b',"c\\u006fin":"btc"'])
def test_name_that_is_there_twice_is_found_whatever_else_is_sent(more: bytes, twice: bytes) -> None:
    """Defaults and nulls that are sent, colons and escapes hide no name, and none is found where there is none."""
    body = b'{"customer":"alice","coin":"usdt","amount":"1"%b%b}'
    assert decode(body % (more, b""), BODIES[Deposit].struct)
    for members in ((more, twice), (twice, more)):
        with pytest.raises(InvalidRequest, match="coin is used twice"):
            decode(body % members, BODIES[Deposit].struct)
