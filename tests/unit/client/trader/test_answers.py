"""Reading the answers of the v1 API: exact, or not at all."""

from __future__ import annotations

import json
from decimal import Decimal, localcontext

import pytest

import support_client as support
from spotledger import errors
from spotledger.client.exchange import Answer
from spotledger.client.trader.answers import (
    Balance,
    Balances,
    Outcome,
    read_accounts,
    read_balances,
    read_outcome,
    read_server_time,
)


def outcome(body: object, status: int = 200, **headers: str) -> Outcome:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_outcome(Answer(status, named, raw), str)


def balances(data: object, **headers: str) -> Balances:
    return read_balances(outcome({"code": 200, "data": data, "info": "success"}, 200, **headers))


def test_balances_documented_answer_is_read_exactly() -> None:
    """The documented answer becomes exact decimals by coin, with the position of the journal."""
    read = balances(support.DATA, x_ledger_seq="42")
    assert read["usdt"] == Balance(Decimal("3867.43650012"), Decimal("3062.17437341"))
    assert read["usdt"].total == Decimal("6929.61087353")
    assert list(read) == ["btc", "forth", "usdt"]
    assert read.seq == 42


def test_balances_of_no_coins_is_empty() -> None:
    """Before a coin is listed the mapping is empty."""
    read = balances({})
    assert len(read) == 0
    assert read.seq is None


def test_total_beyond_28_digits_is_exact() -> None:
    """The sum of amounts with more digits than the usual decimal context is not rounded."""
    big = "9" * 20 + "." + "9" * 18
    read = balances({"x": {"available": big, "freeze": "0.000000000000000001"}})
    assert str(read["x"].total) == "1" + "0" * 20 + "." + "0" * 18
    with localcontext() as context:
        context.prec = 3
        assert str(read["x"].total) == "1" + "0" * 20 + "." + "0" * 18


def test_balances_cannot_be_changed() -> None:
    """Neither the mapping nor a balance takes an assignment."""
    read = balances(support.DATA)
    with pytest.raises(TypeError):
        read["usdt"] = read["btc"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        read["usdt"].available = Decimal(1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "amount",
    [
        "1e5", "NaN", "Infinity", "-1.00", "+1.00", "1", "1.", "1.0", ".50", "01.00", "1,00", "1_0.00", "１.00",
        "1.00 ", " 1.00", "1.00\n", "", "0x1.00", "1." + "0" * 25, "1" * 39 + ".00", 1.0, 1, 0, None, True, [], {},
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", ["available", "freeze"])
def test_balances_amount_of_another_form_raises(side: str, amount: object) -> None:
    """An amount that is not plain decimal text, with two decimals at least, is refused."""
    with pytest.raises(errors.ProtocolError, match=f"{side} of usdt"):
        balances({"usdt": {"available": "0.00", "freeze": "0.00"} | {side: amount}})


@pytest.mark.parametrize("data", [[], None, "x", 1, {"usdt": []}, {"usdt": None}, {"usdt": {"available": "0.00"}}])
def test_balances_data_of_another_shape_raises(data: object) -> None:
    """Data that is not an object of coins with both sides is refused."""
    with pytest.raises(errors.ProtocolError):
        balances(data)


@pytest.mark.parametrize("coin", ["USDT", "", "a b", "ü", "x" * 33, ".e", "usdt\n", "../x"])
def test_balances_coin_of_another_form_raises(coin: str) -> None:
    """A coin is 1 to 32 of a-z 0-9 . _ -, and begins with a letter or a digit."""
    with pytest.raises(errors.ProtocolError, match="a coin that is not"):
        balances({coin: {"available": "0.00", "freeze": "0.00"}})


@pytest.mark.parametrize("coin", ["usdt.e", "lp-btc", "a_b", "x" * 32])
def test_balances_coin_with_marks_is_read_exactly(coin: str) -> None:
    """A coin may have dots, underscores and hyphens, and an amount 24 decimals; the total is exact."""
    most = "99999999999999.999999999999999999999998"
    read = balances({coin: {"available": most, "freeze": "0.000000000000000000000001"}})
    assert str(read[coin].total) == "99999999999999.999999999999999999999999"


@pytest.mark.parametrize("seq", ["", "-1", "x", "1.5", "9" * 19, "４２"])
def test_balances_unreadable_seq_is_none(seq: str) -> None:
    """A position that is no number is as none: it is an extra."""
    assert balances({}, x_ledger_seq=seq).seq is None


def test_balances_coin_twice_raises() -> None:
    """A body with a coin twice has two truths, and is refused."""
    body = b'{"code":200,"data":{"a":{"available":"1.00","freeze":"0.00"},"a":{"available":"2.00","freeze":"0.00"}}}'
    with pytest.raises(errors.ProtocolError, match="'a' twice"):
        read_balances(outcome(body))


@pytest.mark.parametrize(
    "body",
    [
        {"data": {}},
        {"code": "200", "data": {}},
        {"code": 200.0, "data": {}},
        {"code": True, "data": {}},
        {"code": None, "data": {}},
        {"code": [200], "data": {}},
        {"code": 200},
        {"code": 200, "info": "success"},
        {"code": 201, "data": {}},
        {"code": 0, "data": {}},
        {},
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"<html><body>It works</body></html>",
        b'{"code":200,"data":{}',
        b'{"code":200,"data":{}} x',
        b'{"code":NaN,"data":{}}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b'{"code":' + b"9" * 5_000 + b"}",
        b'{"data":' * 50_000,
    ],
)
def test_undocumented_body_raises_protocol_error(body: object) -> None:
    """What does not have a numeric code and data is not taken for an answer."""
    with pytest.raises(errors.ProtocolError) as raised:
        read_balances(outcome(body))
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("status", [201, 204, 301, 404, 500])
def test_success_code_with_another_http_status_raises(status: int) -> None:
    """A success is sent with HTTP 200; anything else contradicts itself."""
    with pytest.raises(errors.ProtocolError, match=f"HTTP status {status}"):
        read_balances(outcome({"code": 200, "data": {}}, status))


@pytest.mark.parametrize("status", [200, 307, 308, 400, 404, 500])
def test_refusal_is_read_by_its_code_whatever_the_http_status(status: int) -> None:
    """The code is in the body; other servers send it as the HTTP status too."""
    read = outcome({"code": 308, "info": "the signature does not fit"}, status)
    assert type(read.error) is errors.SignatureRefused
    assert str(read.error) == "the signature does not fit"


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        (307, "unknown", errors.AccessKeyRefused),
        (308, "wrong", errors.SignatureRefused),
        (400, str(errors.NonceRefused()), errors.NonceRefused),
        (400, str(errors.ReplayRefused()), errors.ReplayRefused),
        (400, "parameter x is there twice", errors.InvalidRequest),
        (400, "", errors.InvalidRequest),
        (404, str(errors.LimitExceeded()), errors.LimitExceeded),
        (404, str(errors.StoreUnavailable()), errors.Unavailable),
        (404, "", errors.Unavailable),
        (999, "", errors.ProtocolError),
    ],
)
def test_refusal_becomes_the_error_of_its_code_and_text(code: int, text: str, error: type[Exception]) -> None:
    """The code tells the kind of error, and where it stands for several, the server's own texts do."""
    assert type(outcome({"code": code, "info": text}).error) is error


@pytest.mark.parametrize("name", ["info", "msg", "msgInfo"])
def test_refusal_text_is_found_under_each_of_its_names(name: str) -> None:
    """Whichever of the three names holds the text, it is the message."""
    assert str(outcome({"code": 307, name: "because"}).error) == "because"


def test_refusal_without_text_has_the_message_of_its_class() -> None:
    """A refusal that says nothing is told by its class."""
    assert str(outcome({"code": 307, "info": 5}).error) == "The access key may not do this."


def test_accounts_are_read_by_number() -> None:
    """The three accounts come back by their numbers."""
    read = read_accounts(outcome({"code": 200, "data": support.ACCOUNTS}))
    assert read == {1: "wallet account", 2: "trading account", 3: "fiat account"}


@pytest.mark.parametrize(
    "data",
    [{}, None, [1], [{"id": 1}], [{"name": "x"}], [{"id": "1", "name": "x"}], [{"id": True, "name": "x"}],
     [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]],
)  # fmt: skip
def test_accounts_of_another_shape_raise(data: object) -> None:
    """A list that is not of numbers, each once, with names is refused."""
    with pytest.raises(errors.ProtocolError):
        read_accounts(outcome({"code": 200, "data": data}))


@pytest.mark.parametrize("server_ms", [None, "1562919832183", 1562919832183.0, True, 0, -1, 10**13, 1562919832])
def test_server_time_of_another_form_raises(server_ms: object) -> None:
    """A server time is a whole number of thirteen digits."""
    with pytest.raises(errors.ProtocolError):
        read_server_time(outcome({"code": 200, "data": {"serverTime": server_ms}}))


def test_body_left_unread_raises_protocol_error() -> None:
    """A body that was too long to read is no answer."""
    with pytest.raises(errors.ProtocolError, match="too long"):
        read_balances(read_outcome(Answer(200, {}, None), str))
