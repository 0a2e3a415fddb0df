"""Every refusal of the operator API, provoked over HTTP: one shape, the right status, no balance touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spotledger import errors
from spotledger.http import wire
from support_operator import Api, operator_api

DEPOSIT = {"customer": "alice", "coin": "usdt", "amount": "1"}
FREEZE = {"customer": "alice", "coin": "usdt", "amount": "1"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        yield made


def first_hold(api: Api) -> str:
    return str(api.get("/v1/customers/alice/holds").json()["holds"][0]["hold"])


def used_up_hold(api: Api) -> httpx2.Response:
    hold = first_hold(api)
    api.must(f"/v1/holds/{hold}/release", {})
    return api.post(f"/v1/holds/{hold}/release", {}, "provoked")


def expired_hold(api: Api) -> httpx2.Response:
    """More holds expire at once than the ledger lets go in one group, so the last one is still there when asked for."""
    freeze = {**FREEZE, "amount": "0.001", "expires_ms": api.clock() + 60_000}
    answers = api.at_once("/v1/holds", [freeze] * 1600, "expiring-")
    last = max(int(answer.json()["hold"]) for answer in answers)
    api.clock.ahead_ms += 120_000
    return api.post("/v1/withdrawals", {"hold": str(last), "amount": "0.001"}, "provoked")


def conflict(api: Api) -> httpx2.Response:
    api.must("/v1/deposits", DEPOSIT, "twice")
    return api.post("/v1/deposits", {**DEPOSIT, "amount": "2"}, "twice")


def reversed_twice(api: Api) -> httpx2.Response:
    seq = api.must("/v1/deposits", DEPOSIT)["seq"]
    api.must("/v1/reversals", {"seq": seq, "reason": "sent twice"})
    return api.post("/v1/reversals", {"seq": seq, "reason": "sent twice"}, "provoked")


def rebate_without_fees(api: Api) -> httpx2.Response:
    api.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "1"})
    ask = api.must("/v1/holds", {"customer": "bob", "coin": "btc", "amount": "1"})["hold"]
    buyer = {"hold": first_hold(api), "fee": {"coin": "btc", "amount": "-0.1"}}
    fill = {"base": "btc", "quote": "usdt", "base_amount": "1", "quote_amount": "20", "buyer": buyer}
    return api.post("/v1/settlements", {**fill, "seller": {"hold": ask}}, "provoked")


def spent_by_the_house(api: Api) -> httpx2.Response:
    usdt = {"coin": "usdt", "amount": "1"}
    seq = api.must("/v1/transfers", {"from": {"customer": "alice"}, "to": {"customer": "@dust"}, **usdt})["seq"]
    api.must("/v1/withdrawals", {"customer": "@dust", **usdt})
    return api.post("/v1/reversals", {"seq": seq, "reason": "mistake"}, "provoked")


def token_of(api: Api, *scopes: str) -> str:
    return str(api.must("/v1/tokens", {"scopes": list(scopes)})["token"])


def restored(api: Api) -> Api:
    """Return *api* in a new epoch."""
    api.runtime.ledger.begin_epoch("set back")
    return api


PROVOKED: dict[type[errors.SpotledgerError], Callable[[Api], httpx2.Response]] = {
    errors.InvalidRequest: lambda api: api.post("/v1/deposits", {**DEPOSIT, "memo": "x"}, "provoked"),
    errors.MalformedRequest: lambda api: api.post("/v1/deposits", b"{not json", "provoked"),
    errors.InvalidAmount: lambda api: api.post("/v1/deposits", {**DEPOSIT, "amount": "0"}, "provoked"),
    errors.IdempotencyConflict: conflict,
    errors.CoinAlreadyListed: lambda api: api.post("/v1/coins", {"coin": "usdt", "scale": 8}, "provoked"),
    errors.CustomerAlreadyRegistered: lambda api: api.post("/v1/customers", {"customer": "alice"}, "provoked"),
    errors.BalanceTooLarge: lambda api: (
        api.must("/v1/deposits", {"customer": "alice", "coin": "whole", "amount": "9" * 38}),
        api.post("/v1/deposits", {"customer": "alice", "coin": "whole", "amount": "1"}, "provoked"),
    )[1],
    errors.EpochMissing: lambda api: restored(api).post("/v1/holds/999/release", {}, "provoked"),
    errors.UnknownPosition: lambda api: api.post("/v1/holds/2-8/release", {}, "provoked"),
    errors.PreconditionFailed: lambda api: api.post(
        f"/v1/holds/{first_hold(api)}/release", {"customer": "bob"}, "provoked"
    ),
    errors.NotFound: lambda api: api.get("/v1/customers/nobody/balances"),
    errors.MethodNotAllowed: lambda api: api.request("PUT", "/v1/deposits", headers=api.headers()),
    errors.HouseAccountReserved: lambda api: api.post("/v1/deposits", {**DEPOSIT, "customer": "@external"}, "provoked"),
    errors.HouseAccountAlreadyOpen: lambda api: api.post("/v1/house-accounts", {"name": "fees"}, "provoked"),
    errors.UnknownHouseAccount: lambda api: api.post("/v1/deposits", {**DEPOSIT, "customer": "@bank"}, "provoked"),
    errors.LegsUnbalanced: lambda api: api.post("/v1/postings", {"legs": [DEPOSIT, DEPOSIT]}, "provoked"),
    errors.FeesShort: rebate_without_fees,
    errors.HouseShort: spent_by_the_house,
    errors.InsufficientAvailable: lambda api: api.post("/v1/holds", {**FREEZE, "amount": "101"}, "provoked"),
    errors.UnknownCoin: lambda api: api.post("/v1/deposits", {**DEPOSIT, "coin": "doge"}, "provoked"),
    errors.UnknownCustomer: lambda api: api.post("/v1/deposits", {**DEPOSIT, "customer": "nobody"}, "provoked"),
    errors.UnknownHold: lambda api: api.post("/v1/holds/999/release", {}, "provoked"),
    errors.HoldShort: lambda api: api.post(f"/v1/holds/{first_hold(api)}/release", {"amount": "21"}, "provoked"),
    errors.HoldClosed: used_up_hold,
    errors.HoldExpired: expired_hold,
    errors.AlreadyReversed: reversed_twice,
    errors.LastAdminToken: lambda api: api.delete(
        f"/v1/tokens/{api.get('/v1/tokens').json()['tokens'][0]['token_id']}"
    ),
    errors.UnknownEntry: lambda api: api.post("/v1/reversals", {"seq": 9999, "reason": "oops"}, "provoked"),
    errors.TooLate: lambda api: api.post("/v1/deposits", {**DEPOSIT, "not_after_ms": 1_600_000_000_000}, "provoked"),
    errors.RotationRefused: lambda api: api.post("/v1/master-key/rotate", {"fingerprint": "0" * 32}, "provoked"),
    errors.TokenRefused: lambda api: api.request("GET", "/v1/coins"),
    errors.ScopeMissing: lambda api: api.post("/v1/deposits", DEPOSIT, "provoked", token_of(api, "ledger:read")),
}


def leaves(base: type[errors.SpotledgerError]) -> set[type[errors.SpotledgerError]]:
    below = {cls for cls in base.__subclasses__() if cls.__module__ == errors.__name__}
    return set().union(*map(leaves, below)) if below else {base}


#: Those of chains are results within a batch, provoked in test_operator_batches.py.
WITHOUT_A_CALL = {errors.ChainFailed, errors.ChainPartlyKnown}


def test_every_refusal_of_the_tree_is_provoked_here() -> None:
    """A new leaf below Refused asks for a line here; one that has a line is not excused from it."""
    assert leaves(errors.Refused) - PROVOKED.keys() == WITHOUT_A_CALL


def check_problem(answer: httpx2.Response, kind: type[errors.SpotledgerError]) -> dict[str, Any]:
    row = wire.row_of(kind)
    assert answer.status_code == row.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == row.status
    assert problem["code"] == kind.code
    assert problem["title"] == row.title
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"]
    assert "Traceback" not in answer.text
    return problem


@pytest.mark.parametrize("kind", PROVOKED, ids=lambda kind: kind.code)
def test_refusal_over_http_is_a_problem_document(api: Api, kind: type[errors.SpotledgerError]) -> None:
    """Each refusal has its status, its code and the one shape."""
    check_problem(PROVOKED[kind](api), kind)


def test_deposit_of_an_unknown_customer_passes_with_the_same_key_once_they_are_registered(api: Api) -> None:
    """Single and in a batch, nothing is kept of the refusal: a deposit watcher sends the same again."""
    deposit, head = {**DEPOSIT, "customer": "carol", "coin": "usdt.e"}, api.seq
    operation = {"op": "deposit", "key": "batched", **deposit}
    for code, remedy in (
        ("unknown_coin", ("/v1/coins", {"coin": "usdt.e", "scale": 6})),
        ("unknown_customer", ("/v1/customers", {"customer": "carol"})),
    ):
        problem = api.post("/v1/deposits", deposit, "single").json()
        (result,) = api.must("/v1/batches", {"operations": [operation]})["results"]
        assert (problem["code"], "seq" in problem, api.seq) == (code, False, head)
        assert (result["code"], "seq" in result) == (code, False)
        api.must(*remedy)
        head = api.seq
    first = api.must("/v1/deposits", deposit, "single")
    (result,) = api.must("/v1/batches", {"operations": [operation]})["results"]
    assert (first["seq"], result["seq"]) == (head + 1, head + 2)


@pytest.mark.parametrize(
    "kind", [kind for kind in PROVOKED if issubclass(kind, errors.Kept)], ids=lambda kind: kind.code
)
def test_kept_refusal_repeated_is_the_same_and_marked(api: Api, kind: type[errors.SpotledgerError]) -> None:
    """A refusal that is kept has a seq, and comes again word for word, marked as a repeat."""
    first = PROVOKED[kind](api)
    assert "idempotency-replayed" not in first.headers
    problem = check_problem(first, kind)
    entry = api.get("/v1/entries", after_seq=problem["seq"] - 1, limit=1).json()["entries"][0]
    assert (entry["seq"], entry["key"], entry["postings"]) == (problem["seq"], "provoked", [])
    assert entry["refusal"]["code"] == kind.code
    request = first.request
    again = api.request("POST", str(request.url), content=request.content, headers=dict(request.headers))
    assert again.headers["idempotency-replayed"] == "true"
    assert {**again.json(), "request_id": ""} == {**problem, "request_id": ""}


@pytest.mark.parametrize(
    "amount",
    [
        "0",
        "0.00",
        "-1",
        "+1",
        "1e5",
        "NaN",
        "Infinity",
        "１２",
        "١",
        "",
        " 1",
        "1 ",
        "1\n",
        "1.",
        ".5",
        "01",
        "1,5",
        "0x1",
        *["1_000", "1.123456789", "9" * 39, "1" * 1000, 1, 1.5, True, None, [], {}, ["1"], {"amount": "1"}],
    ],
)
@pytest.mark.parametrize("path", ["/v1/deposits", "/v1/holds", "/v1/withdrawals", "/v1/transfers"])
def test_amount_that_is_none_is_refused_and_touches_nothing(api: Api, path: str, amount: object) -> None:
    """Whatever is not exactly an amount of this coin is refused with the field named, and nothing changes."""
    before, seq = api.balances("alice"), api.seq
    body: dict[str, Any] = {**DEPOSIT, "amount": amount}
    if path == "/v1/transfers":
        body = {"from": {"customer": "alice"}, "to": {"customer": "bob"}, "coin": "usdt", "amount": amount}
    problem = check_problem(api.post(path, body), errors.InvalidAmount)
    assert problem["field"] == "amount"
    assert len(problem["detail"]) < 300
    assert (api.balances("alice"), api.seq) == (before, seq)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/coins", {"coin": "BTC", "scale": 8}, "coin"),
        ("/v1/coins", {"coin": "x" * 33, "scale": 8}, "coin"),
        ("/v1/coins", {"coin": "-x", "scale": 8}, "coin"),
        ("/v1/coins", {"coin": "new"}, "scale"),
        ("/v1/coins", {"coin": "new", "scale": 25}, "scale"),
        ("/v1/coins", {"coin": "new", "scale": -1}, "scale"),
        ("/v1/coins", {"coin": "new", "scale": True}, "scale"),
        ("/v1/coins", {"coin": "new", "scale": "8"}, "scale"),
        ("/v1/coins", {"coin": "new", "scale": 8.0}, "scale"),
        ("/v1/customers", {"customer": ".."}, "customer"),
        ("/v1/customers", {"customer": "a b"}, "customer"),
        ("/v1/customers", {"customer": "@external"}, "customer"),
        ("/v1/customers", {"customer": "x" * 129}, "customer"),
        ("/v1/customers", {"customer": "爱丽丝"}, "customer"),
        ("/v1/deposits", {"coin": "usdt", "amount": "1"}, "customer"),
        ("/v1/deposits", {**DEPOSIT, "account": "margin"}, "account"),
        ("/v1/deposits", {**DEPOSIT, "account": 2}, "account"),
        ("/v1/deposits", {**DEPOSIT, "happened_ms": "now"}, "happened_ms"),
        ("/v1/deposits", {**DEPOSIT, "happened_ms": 10**40}, "happened_ms"),
        ("/v1/deposits", {**DEPOSIT, "happened_ms": 1_700_000_000}, "happened_ms"),
        ("/v1/withdrawals", {**DEPOSIT, "happened_ms": 978_307_199_999}, "happened_ms"),
        ("/v1/holds", {**FREEZE, "expires_ms": 1_900_000_000}, "expires_ms"),
        ("/v1/holds", {**FREEZE, "not_after_ms": 1_900_000_000}, "not_after_ms"),
        ("/v1/customers", {"customer": "carol", "not_after_ms": "soon"}, "not_after_ms"),
        ("/v1/deposits", {**DEPOSIT, "reference": "a\nb"}, "reference"),
        ("/v1/deposits", {**DEPOSIT, "reference": "x" * 257}, "reference"),
        ("/v1/deposits", {**DEPOSIT, "hold": "1"}, "hold"),
        ("/v1/deposits", {**DEPOSIT, "x" * 1000: 1}, "x" * 64),
        ("/v1/holds", {**FREEZE, "expires_ms": 1}, "expires_ms"),
        ("/v1/holds", {**FREEZE, "expires_ms": True}, "expires_ms"),
        ("/v1/holds/0/release", {}, "hold"),
        ("/v1/holds/x/release", {}, "hold"),
        ("/v1/holds/１/release", {}, "hold"),
        ("/v1/withdrawals", {"amount": "1"}, "customer"),
        ("/v1/withdrawals", {"amount": "1", "customer": "alice"}, "coin"),
        ("/v1/withdrawals", {"amount": "1", "hold": "1", "customer": "a b"}, "customer"),
        ("/v1/withdrawals", {**DEPOSIT, "epoch": 1}, "epoch"),
        ("/v1/withdrawals", {"amount": "1", "hold": "1", "epoch": "1"}, "epoch"),
        ("/v1/releases", {"hold": "1", "coin": "BTC"}, "coin"),
        ("/v1/reversals", {"seq": "0-7", "reason": "x"}, "seq"),
        ("/v1/reversals", {"seq": 0, "reason": "x"}, "seq"),
        ("/v1/withdrawals", {"amount": "1", "hold": "1", "account": "spot"}, "account"),
        ("/v1/withdrawals", {"amount": "1", "hold": 1}, "hold"),
        ("/v1/withdrawals", {"amount": "1", "hold": {"id": "1"}}, "hold"),
        ("/v1/withdrawals", {"amount": "1", "hold": {"key": 5}}, "hold.key"),
        ("/v1/transfers", {"from": "alice", "to": {"customer": "bob"}, "coin": "usdt", "amount": "1"}, "from"),
        ("/v1/transfers", {"from": {}, "to": {"customer": "bob"}, "coin": "usdt", "amount": "1"}, "from.customer"),
        (
            "/v1/transfers",
            {"from": {"customer": "alice", "x": 1}, "to": {"customer": "bob"}, "coin": "usdt", "amount": "1"},
            "from.x",
        ),
        (
            "/v1/transfers",
            {"from": {"customer": "alice"}, "to": {"customer": "alice"}, "coin": "usdt", "amount": "1"},
            "to",
        ),
        ("/v1/keys", {"customer": "alice", "permissions": []}, "permissions"),
        ("/v1/keys", {"customer": "alice", "permissions": ["all"]}, "permissions"),
        ("/v1/keys", {"customer": "alice", "permissions": "read"}, "permissions"),
        ("/v1/keys", {"customer": "alice", "permissions": [1]}, "permissions"),
        ("/v1/keys", {"customer": "alice", "permissions": ["read"], "addresses": ["10.0.0.1/8"]}, "addresses"),
        ("/v1/keys", {"customer": "alice", "permissions": ["read"], "label": "x" * 101}, "label"),
        ("/v1/keys", {"customer": "alice", "permissions": ["read"], "expires_ms": 1}, "expires_ms"),
        ("/v1/tokens", {"scopes": []}, "scopes"),
        ("/v1/tokens", {"scopes": ["ledger:all"]}, "scopes"),
        ("/v1/deposits", [DEPOSIT], "body"),
        ("/v1/deposits", "text", "body"),
        ("/v1/deposits", None, "body"),
    ],
)
def test_field_unknown_missing_or_wrong_is_named(api: Api, path: str, body: object, field: str) -> None:
    """A body with one thing wrong is refused with 422, the field is named, and nothing is kept of it."""
    seq = api.seq
    problem = check_problem(api.post(path, body), errors.InvalidRequest)
    assert problem["field"] == field
    assert len(problem["detail"]) < 500
    assert api.seq == seq


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}x",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"customer":"\xff"}',
        b"NaN",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"x" * (1024 * 1024 + 1),
        b" " * (1024 * 1024 + 1),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_body_that_is_not_json_is_malformed(api: Api, content: bytes) -> None:
    """What cannot be read, nested without end or too long, is refused with 400."""
    check_problem(api.post("/v1/deposits", content), errors.MalformedRequest)


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "a\tb", "é", "\x7f"])
def test_idempotency_key_of_the_wrong_form_is_named(api: Api, key: str) -> None:
    """A key is 1 to 128 printable ASCII characters without blanks."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in api.headers(key).items()]
    answer = api.request("POST", "/v1/deposits", json=DEPOSIT, headers=headers)
    assert check_problem(answer, errors.InvalidRequest)["field"] == "Idempotency-Key"


@pytest.mark.parametrize("count", [0, 2])
def test_idempotency_key_missing_or_twice_is_named(api: Api, count: int) -> None:
    """A write has exactly one key."""
    headers = [*api.headers().items(), *[("Idempotency-Key", "k")] * count]
    answer = api.request("POST", "/v1/deposits", json=DEPOSIT, headers=headers)
    assert check_problem(answer, errors.InvalidRequest)["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/v1/coins", "coin=btc", "coin"),
        ("/v1/entries", "limit=0", "limit"),
        ("/v1/entries", "limit=-1", "limit"),
        ("/v1/entries", "limit=1e3", "limit"),
        ("/v1/entries", "after_seq=１", "after_seq"),
        ("/v1/entries", "after_seq=", "after_seq"),
        ("/v1/entries", f"after_seq={'9' * 19}", "after_seq"),
        ("/v1/entries", "limit=1&limit=2", "limit"),
        ("/v1/customers/alice/balances", "account=margin", "account"),
        ("/v1/customers/alice/balances", "as_of=1", "as_of"),
        ("/v1/customers/alice/balances", "at_seq=99999", "at_seq"),
        ("/v1/customers/alice/balances", "at_seq=-1", "at_seq"),
        ("/v1/customers/alice/balances", "at_ms=999999999999999999", "at_ms"),
        ("/v1/customers/alice/balances", "at_ms=1700000000", "at_ms"),
        ("/v1/customers/alice/balances", "at_seq=1&at_ms=1", "at_seq"),
        ("/v1/customers/alice/entries", "coin=BTC", "coin"),
        ("/v1/customers/alice/entries", "after=1", "after"),
        ("/v1/customers/alice/holds", "older_than_ms=1d", "older_than_ms"),
        ("/v1/holds", "state=open", "state"),
        ("/v1/holds/8", "state=open", "state"),
        ("/v1/entries/8", "after_seq=1", "after_seq"),
        ("/v1/trial-balance", "at=1", "at"),
        ("/v1/customers/@external/balances", "account=spot", "account"),
        ("/v1/customers/alice/holds", "state=all", "state"),
        ("/v1/keys", "min_seq=1", "min_seq"),
        ("/v1/tokens", "customer=alice", "customer"),
        ("/v1/tokens", "limit=0", "limit"),
    ],
)
def test_query_that_is_not_understood_is_refused_not_passed_over(api: Api, path: str, query: str, field: str) -> None:
    """A parameter that is unknown, twice or wrong is named: an answer to another question would be worse."""
    answer = api.request("GET", f"{path}?{query}", headers=api.headers())
    assert check_problem(answer, errors.InvalidRequest)["field"] == field


ROUTES = [
    *(("POST", f"/v1/{name}") for name in ("coins", "customers", "keys", "tokens", "deposits", "holds")),
    *(("POST", f"/v1/{name}") for name in ("settlements", "reversals", "releases", "batches")),
    *(("POST", f"/v1/{name}") for name in ("withdrawals", "transfers", "holds/1/release", "keys/x/rotate")),
    *(("GET", f"/v1/{name}") for name in ("coins", "customers", "keys", "tokens", "entries", "entries/1")),
    *(("GET", f"/v1/{name}") for name in ("holds", "holds/1", "trial-balance", "customers/alice/entries")),
    *(("GET", f"/v1/customers/alice/{name}") for name in ("balances", "holds")),
    ("DELETE", "/v1/keys/x"),
    ("DELETE", "/v1/tokens/x"),
    ("GET", "/metrics"),
    ("GET", "/v1/nothing"),
    ("PUT", "/v1/deposits"),
    ("BREW", "/v1/deposits"),
    ("GET", "/"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {'0' * 64}", "Basic YTpi", f"Bearer {'é' * 64}", "Bearer a b"]
)
def test_call_without_a_good_token_is_told_nothing_else(api: Api, method: str, path: str, header: str | None) -> None:
    """The token is checked first: without one, even an unknown path answers only that."""
    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
    answer = api.request(method, path, headers=headers, content=b"{not json")
    check_problem(answer, errors.TokenRefused)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_call_with_two_tokens_is_refused(api: Api) -> None:
    """Which of two tokens counts is never guessed."""
    headers = [*api.headers().items(), *api.headers().items()]
    check_problem(api.request("GET", "/v1/coins", headers=headers), errors.TokenRefused)


NEEDED = {
    "ledger:read": [("GET", "/v1/coins"), ("GET", "/v1/entries"), ("GET", "/v1/customers/alice/balances")],
    "ledger:write": [("POST", "/v1/deposits"), ("POST", "/v1/coins"), ("POST", "/v1/holds/1/release")],
    "keys:write": [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/x"), ("POST", "/v1/keys/x/rotate")],
    "metrics:read": [("GET", "/metrics")],
    "admin": [("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/x")],
}


def test_token_may_do_what_its_scopes_name_and_nothing_else(api: Api) -> None:
    """Each scope opens its calls; the others say which scope they need. Metrics have a scope of their own."""
    for scope in ("ledger:read", "ledger:write", "ledger:control", "keys:write", "metrics:read"):
        token = token_of(api, scope)
        for needed, calls in NEEDED.items():
            for method, path in calls:
                answer = api.request(method, path, headers=api.headers("k", token), content=b"{}" * (method == "POST"))
                if needed == scope:
                    assert answer.status_code not in (401, 403), (scope, path)
                else:
                    assert check_problem(answer, errors.ScopeMissing)["scope"] == needed
        check_problem(api.request("GET", "/v1/nothing", headers=api.headers(None, token)), errors.NotFound)


def test_method_that_is_not_allowed_names_those_that_are(api: Api) -> None:
    """405 has an Allow header."""
    answer = api.request("PATCH", "/v1/coins", headers=api.headers())
    check_problem(answer, errors.MethodNotAllowed)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_full_queue_is_busy_with_retry_after(tmp_path: Path) -> None:
    """Beyond the queue's limit a write is refused at once, with Retry-After."""
    with operator_api(tmp_path / "data", queue_limit=1) as api:
        api.set_up()

        answers = api.at_once("/v1/deposits", [DEPOSIT] * 50, "flood-")
        busy = [answer for answer in answers if answer.status_code != 200]
        assert busy
        for answer in busy:
            check_problem(answer, errors.StoreBusy)
            assert int(answer.headers["retry-after"]) >= 1
        booked = len(answers) - len(busy)
        assert api.balances("alice")["usdt"]["available"] == f"{100 + booked}.00"


def test_min_seq_that_does_not_come_is_unavailable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read for an entry that is not there waits a bounded time and then says so."""
    monkeypatch.setattr("spotledger.http.operator.calls.MIN_SEQ_WAIT_SECONDS", 0.05)
    answer = api.get("/v1/customers/alice/balances", min_seq=api.seq + 1)
    check_problem(answer, errors.Unavailable)
    assert answer.headers["retry-after"] == "1"
    assert api.get("/v1/customers/alice/balances", min_seq=api.seq).status_code == 200


def test_unexpected_error_is_a_problem_without_a_trace(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error (here: the ledger is closed under the service) is 500 with an id that is in the log."""
    api.runtime.ledger.key_tables._read.close()
    answer = api.get("/v1/keys")
    assert answer.status_code >= 500
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "closed" not in answer.text
    assert "Traceback" not in answer.text


def test_log_holds_nothing_that_was_sent(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an unexpected error may repeat the request, with line breaks that would look like log lines."""

    sent = "found this\n2026-01-01 INFO spotledger: forged"

    def fail(*_: object) -> None:
        raise ValueError(sent)

    monkeypatch.setattr(api.runtime.key_ring, "list", fail)
    assert api.get("/v1/keys").status_code == 500
    assert "unexpected ValueError" in caplog.text
    assert sent not in caplog.text


@pytest.mark.parametrize("number", ["1e999", "1" * 5_000, "-" + "1" * 5_000, "1" * 5_000 + ".5", "NaN", '"\\ud800"'])
def test_value_that_no_program_reads_is_malformed(api: Api, number: str) -> None:
    """Numbers beyond any range, and half a character, are 400 in a single write and in a batch."""
    seq = api.seq
    deposit = f'{{"customer":"alice","coin":"usdt","amount":{number}}}'
    batch = f'{{"operations":[{deposit[:-1]},"op":"deposit","key":"number"}}]}}'
    for path, content in (("/v1/deposits", deposit), ("/v1/batches", batch)):
        check_problem(
            api.request("POST", path, content=content, headers=api.headers("number")), errors.MalformedRequest
        )
    assert api.seq == seq


def test_damaged_ledger_takes_no_writes_and_says_so(api: Api) -> None:
    """Damage is no outage: writes answer 500 and name the place, nobody is told to try again, and reads go on."""
    api.runtime.ledger._corrupt = errors.LedgerCorrupt("entry 7: made up by this test")
    batch = {"operations": [{"op": "deposit", "key": "k-1", **DEPOSIT}]}
    for answer in (api.post("/v1/deposits", DEPOSIT), api.post("/v1/batches", batch), api.request("GET", "/readyz")):
        problem = check_problem(answer, errors.LedgerDamaged)
        assert (answer.status_code, problem["code"]) == (500, "ledger_damaged")
        assert "entry 7" in problem["detail"]
        assert "retry-after" not in answer.headers
    assert "spotledger_damaged 1.0" in api.get("/metrics").text
    assert api.get("/v1/customers/alice/balances").status_code == 200


def test_coin_that_is_listed_is_told_so_and_no_other_key_is_advised(api: Api) -> None:
    """Neither the key of its listing nor another one lists it again, so neither answer asks for another key."""
    api.must("/v1/coins", {"coin": "doge", "scale": 8}, "list-doge")
    conflict = api.post("/v1/coins", {"coin": "doge", "scale": 6}, "list-doge")
    assert check_problem(conflict, errors.IdempotencyConflict)["field"] == "scale"
    again = api.post("/v1/coins", {"coin": "doge", "scale": 6}, "other")
    check_problem(again, errors.CoinAlreadyListed)
    for answer in (conflict, again):
        assert "coin doge is already listed with scale 8" in answer.json()["detail"]
        assert "key of its own" not in answer.json()["detail"]
    other_coin = api.post("/v1/coins", {"coin": "pepe", "scale": 6}, "list-doge")
    assert "a key of its own would pass" in other_coin.json()["detail"]


def test_conflict_in_a_side_of_a_settlement_names_the_field(api: Api) -> None:
    """Single and in a batch: ``buyer.release``, not ``buyer``."""
    api.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "2"})
    api.must("/v1/holds", {"customer": "bob", "coin": "btc", "amount": "2"}, "ask")
    fill = {"base": "btc", "quote": "usdt", "base_amount": "1", "quote_amount": "10"}
    sides = {"buyer": {"hold": {"key": "first-hold"}}, "seller": {"hold": {"key": "ask"}}}
    api.must("/v1/settlements", {**fill, **sides}, "fill")
    sides["buyer"] |= {"release": "rest"}
    problem = check_problem(api.post("/v1/settlements", {**fill, **sides}, "fill"), errors.IdempotencyConflict)
    operation = {"op": "settle", "key": "fill", **fill, **sides}
    (result,) = api.must("/v1/batches", {"operations": [operation]})["results"]
    assert [problem["field"], result["field"]] == ["buyer.release"] * 2
