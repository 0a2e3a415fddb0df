"""Whatever a server answers, the client reads it exactly or says in one error that it cannot."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given, strategies as st

import support_client as support
from spotledger.client.exchange import Answer
from spotledger.client.operator import key_answers, ledger_answers, service_answers
from spotledger.client.operator.decoding import decode
from spotledger.client.trader.answers import Outcome, read_accounts, read_balances, read_server_time
from spotledger.client.trader.core import Core
from spotledger.client.trader.signing import Credentials, signature
from spotledger.errors import ProtocolError, SpotledgerError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12) | st.just("code"), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
ENVELOPES = st.fixed_dictionaries(
    {}, optional={"code": st.sampled_from([200, 307, 308, 400, 404, "200", None]), "data": JSON, "info": JSON}
).map(lambda value: json.dumps(value).encode())
PROBLEMS = st.fixed_dictionaries(
    {"code": st.sampled_from(["limit_exceeded", "nonce_refused", "store_busy", "no_such_code"])},
    optional={"detail": JSON, "retry_after_s": JSON, "seq": JSON, "self": JSON, "message": JSON},
).map(lambda value: json.dumps(value).encode())
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "application/problem+json"]) | st.text(max_size=20),
        "retry-after": st.text(max_size=12) | st.integers().map(str),
        "x-ledger-seq": st.text(max_size=12),
    },
)


def outcome_of(status: int, headers: dict[str, str], body: bytes) -> Outcome:
    """Run one call of one attempt on the given answer."""
    core = Core(Credentials(support.ACCESSKEY, support.SECRETKEY), "http://h", attempts=1)
    steps = core.get_accounts()
    next(steps)
    try:
        steps.send(Answer(status, headers, body))
    except StopIteration as stop:
        result: Outcome = stop.value
        return result
    raise AssertionError("a call of one attempt asked for another step")


@given(st.sampled_from([200, 302, 400, 404, 429, 500, 503]), HEADERS, BODIES | ENVELOPES | PROBLEMS)
def test_any_answer_is_read_or_is_one_error_of_the_tree(status: int, headers: dict[str, str], body: bytes) -> None:
    """No bytes, status or headers bring anything else out of the client than a value or a SpotledgerError."""
    outcome = outcome_of(status, headers, body)
    for read in (read_balances, read_accounts, read_server_time):
        with contextlib.suppress(SpotledgerError):
            read(outcome)
    assert outcome.error is None or len(str(outcome.error)) < 1_000


KINDS = [
    kind
    for module in (key_answers, ledger_answers, service_answers)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and msgspec.structs.fields(kind)
]
WELL_NAMED = st.sampled_from(KINDS).flatmap(
    lambda kind: st.tuples(
        st.just(kind), st.fixed_dictionaries({part.encode_name: JSON for part in msgspec.structs.fields(kind)})
    )
)


@given(st.tuples(st.sampled_from(KINDS), JSON) | WELL_NAMED)
def test_any_document_is_decoded_or_is_a_protocol_error(told: tuple[type, Any]) -> None:
    """Whatever JSON a service answers, a typed answer comes of it or a ProtocolError."""
    kind, document = told
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(kind, document), kind)


@given(
    st.dictionaries(
        st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,31}\Z"),
        st.tuples(*[st.integers(0, 10**38 - 1), st.integers(0, 10**38 - 1), st.integers(2, 18)]),
        max_size=5,
    )
)
def test_any_documented_balances_are_read_exactly(units: dict[str, tuple[int, int, int]]) -> None:
    """Amounts of any size and scale come back as they are, and their total is the sum of their units."""
    data: dict[str, Any] = {
        coin: {"available": written(available, scale), "freeze": written(freeze, scale)}
        for coin, (available, freeze, scale) in units.items()
    }
    body = json.dumps({"code": 200, "data": data, "info": "success"}).encode()
    balances = read_balances(outcome_of(200, {}, body))
    assert set(balances) == set(units)
    for coin, (available, freeze, scale) in units.items():
        assert str(balances[coin].available) == str(Decimal(written(available, scale)))
        assert written(available + freeze, scale) == f"{balances[coin].total:f}"


def written(units: int, scale: int) -> str:
    """Write *units* with *scale* decimals."""
    digits = f"{units:0{scale + 1}d}"
    return f"{digits[:-scale]}.{digits[-scale:]}"


@given(
    st.dictionaries(st.from_regex(r"\A[A-Za-z0-9._-]{1,8}\Z"), st.text(st.characters(codec="utf-8"), max_size=8)),
    st.randoms(),
)
def test_signature_does_not_depend_on_the_order_of_parameters(params: dict[str, str], random: Any) -> None:
    """The same parameters in any order have one signature, and the mapping is left as it was."""
    pairs = list(params.items())
    random.shuffle(pairs)
    shuffled = dict(pairs)
    assert signature(shuffled, support.SECRETKEY) == signature(params, support.SECRETKEY)
    assert list(shuffled.items()) == pairs
