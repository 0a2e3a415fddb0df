"""House accounts over HTTP: opened by name, and then used like a customer's, except for what is the ledger's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import support_books
from support_audit import audited
from support_operator import Api, operator_api

HOUSE = "/v1/house-accounts"
USDT = {"coin": "usdt", "amount": "5"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with customers, and with the house account @treasury, which has 50 usdt."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        made.must(HOUSE, {"name": "treasury"}, "open-treasury")
        made.must("/v1/deposits", {"customer": "@treasury", "coin": "usdt", "amount": "50"})
        yield made
    support_books.check_books(tmp_path / "data")
    report = audited(tmp_path / "data")
    assert not report.findings


def transfer(source: str, target: str, amount: str = "5") -> dict[str, Any]:
    return {"from": {"customer": source}, "to": {"customer": target}, "coin": "usdt", "amount": amount}


def refused(api: Api, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """Make a write that must be refused, and return the problem."""
    answer = api.post(path, body, key)
    assert answer.status_code == 422, answer.text
    return dict(answer.json())


def usdt(api: Api, owner: str) -> tuple[str, str]:
    both = api.balances(owner)["usdt"]
    return both["available"], both["freeze"]


def test_house_accounts_are_listed_by_name(api: Api) -> None:
    """Those of every ledger and those that were opened, without what each customer owes."""
    api.must(HOUSE, {"name": "a.b_c-1", "may_be_negative": True})
    listed = api.get(HOUSE).json()["house_accounts"]
    assert {found["name"]: found["may_be_negative"] for found in listed} == {
        "@a.b_c-1": True, "@dust": False, "@external": True, "@fees": False, "@treasury": False,
    }  # fmt: skip
    assert api.get("/v1/customers").json()["customers"] == ["alice", "bob"]


def test_opening_again_is_a_repeat_or_refused(api: Api) -> None:
    """The same key answers as before; another one finds it open, and another flag is another request."""
    again = api.post(HOUSE, {"name": "treasury", "may_be_negative": False}, "open-treasury")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert api.post(HOUSE, {"name": "treasury", "may_be_negative": True}, "open-treasury").status_code == 409
    assert refused(api, HOUSE, {"name": "treasury"})["code"] == "house_account_already_open"
    assert refused(api, HOUSE, {"name": "fees"})["code"] == "house_account_already_open"


@pytest.mark.parametrize("name", ["external", "receivable"])
def test_names_of_the_ledger_are_reserved(api: Api, name: str) -> None:
    """They can neither be opened nor used."""
    assert refused(api, HOUSE, {"name": name})["code"] == "house_account_reserved"
    for path, body, field in (
        ("/v1/deposits", {"customer": f"@{name}", **USDT}, "customer"),
        ("/v1/withdrawals", {"customer": f"@{name}", **USDT}, "customer"),
        ("/v1/holds", {"customer": f"@{name}", **USDT}, "customer"),
        ("/v1/transfers", transfer(f"@{name}", "alice"), "from.customer"),
        ("/v1/transfers", transfer("alice", f"@{name}"), "to.customer"),
    ):
        problem = refused(api, path, body)
        assert (problem["code"], problem["field"]) == ("house_account_reserved", field)


def test_debt_of_a_customer_cannot_be_paid_by_hand(api: Api) -> None:
    """What a customer owes is moved by the ledger alone."""
    assert refused(api, "/v1/transfers", transfer("alice", "@receivable:alice"))["code"] == "house_account_reserved"


@pytest.mark.parametrize("name", ["", "Treasury", "@treasury", "1st", "a" * 33, "a b", "a\n", "é", None, 7])
def test_name_of_another_form_is_refused(api: Api, name: object) -> None:
    """A letter, then up to 31 letters, digits, dots, underscores and dashes."""
    problem = refused(api, HOUSE, {"name": name})
    assert (problem["code"], problem["field"]) == ("invalid_request", "name")


def test_house_account_has_deposits_withdrawals_transfers_and_holds(api: Api) -> None:
    """Each moves what it says, and the balances are read like a customer's."""
    api.must("/v1/withdrawals", {"customer": "@treasury", **USDT})
    api.must("/v1/transfers", transfer("@treasury", "alice"))
    api.must("/v1/transfers", transfer("@treasury", "@dust"))
    api.must("/v1/transfers", transfer("alice", "@fees"))
    held = api.must("/v1/holds", {"customer": "@treasury", **USDT, "reference": "bank run"})
    assert usdt(api, "@treasury") == ("30.00", "5.00")
    listed = api.get("/v1/customers/@treasury/holds").json()["holds"]
    assert [(hold["hold"], hold["customer"], hold["account"]) for hold in listed] == [
        (held["hold"], "@treasury", "house")
    ]
    api.must("/v1/withdrawals", {"hold": held["hold"], "amount": "2"})
    api.must(f"/v1/holds/{held['hold']}/release", {})
    assert usdt(api, "@treasury") == ("33.00", "0.00")
    assert (usdt(api, "@dust"), usdt(api, "@fees")) == (("5.00", "0.00"), ("5.00", "0.00"))


def test_house_account_is_short_once_and_pays_later(api: Api) -> None:
    """The refusal is not kept, so the same key pays once there is enough; a customer's is kept."""
    body = transfer("@treasury", "alice", "51")
    problem = refused(api, "/v1/transfers", body, "payout")
    assert (problem["code"], problem["field"], problem["available"]) == ("insufficient_available", "amount", "50.00")
    assert "seq" not in problem
    api.must("/v1/deposits", {"customer": "@treasury", "coin": "usdt", "amount": "1"})
    assert api.must("/v1/transfers", body, "payout")["entry"]["kind"] == "transfer"
    assert "seq" in refused(api, "/v1/transfers", transfer("alice", "bob", "9999"))


def test_chain_that_a_house_account_cannot_pay_is_not_kept(api: Api) -> None:
    """None of its keys is used."""
    operations = [
        {"op": "deposit", "key": "c1", "chain": "c", "customer": "alice", **USDT},
        {"op": "transfer", "key": "c2", "chain": "c", **transfer("@treasury", "alice", "51")},
    ]
    results = api.must("/v1/batches", {"operations": operations})["results"]
    assert [result["code"] for result in results] == ["chain_failed", "insufficient_available"]
    assert all("seq" not in result for result in results)
    api.must("/v1/deposits", {"customer": "@treasury", "coin": "usdt", "amount": "1"})
    results = api.must("/v1/batches", {"operations": operations})["results"]
    assert [result["entry"]["kind"] for result in results] == ["deposit", "transfer"]


def test_house_account_that_may_be_negative_is_never_short(api: Api) -> None:
    """Its balance says what is still to come; freeze takes no more than there is of a hold."""
    operations = [
        {"op": "open_house_account", "key": "o", "name": "credit", "may_be_negative": True},
        {"op": "transfer", "key": "t", **transfer("@credit", "alice", "70")},
    ]
    results = api.must("/v1/batches", {"operations": operations})["results"]
    assert [result["entry"]["kind"] for result in results] == ["open_house_account", "transfer"]
    assert usdt(api, "@credit") == ("-70.00", "0.00")
    api.must("/v1/holds", {"customer": "@credit", **USDT})
    assert usdt(api, "@credit") == ("-75.00", "5.00")


def test_house_account_opened_in_a_chain_that_fails_is_not_open(api: Api) -> None:
    """It may then be opened otherwise, and is as it was opened at last."""
    operations = [
        {"op": "open_house_account", "key": "o", "chain": "c", "name": "credit", "may_be_negative": True},
        {"op": "transfer", "key": "t1", "chain": "c", **transfer("@credit", "alice", "70")},
        {"op": "transfer", "key": "t2", "chain": "c", **transfer("alice", "bob", "9999")},
    ]
    assert all("code" in result for result in api.must("/v1/batches", {"operations": operations})["results"])
    assert refused(api, "/v1/transfers", transfer("@credit", "alice"))["code"] == "unknown_house_account"
    api.must(HOUSE, {"name": "credit"})
    assert refused(api, "/v1/transfers", transfer("@credit", "alice"))["code"] == "insufficient_available"


def test_house_account_that_is_not_open_is_unknown(api: Api) -> None:
    """The refusal names the field and is not kept; a read of it finds nothing."""
    problem = refused(api, "/v1/transfers", transfer("alice", "@bank"), "later")
    assert (problem["code"], problem["field"]) == ("unknown_house_account", "to.customer")
    for path in ("balances", "holds", "entries"):
        assert api.get(f"/v1/customers/@bank/{path}").status_code == 404
    api.must(HOUSE, {"name": "bank"})
    api.must("/v1/transfers", transfer("alice", "@bank"), "later")


def test_account_of_a_house_account_is_refused(api: Api) -> None:
    """A house account is one account."""
    problem = refused(api, "/v1/deposits", {"customer": "@treasury", "account": "spot", **USDT})
    assert (problem["code"], problem["field"]) == ("invalid_request", "account")
    body = {**transfer("@treasury", "alice"), "from": {"customer": "@treasury", "account": "wallet"}}
    assert refused(api, "/v1/transfers", body)["field"] == "from.account"
    assert api.get("/v1/customers/@treasury/balances", account="spot").status_code == 422


def test_statement_and_past_of_a_house_account(api: Api) -> None:
    """Its entries, with the balances around them, and what it had at any entry."""
    before = api.seq
    api.must("/v1/transfers", transfer("@treasury", "alice"))
    statement = api.get("/v1/customers/@treasury/entries", after_seq=before).json()
    assert [entry["kind"] for entry in statement["entries"]] == ["transfer"]
    assert [line["available"] for line in statement["opening"]] == ["50.00"]
    assert [line["available"] for line in statement["closing"]] == ["45.00"]
    assert api.balances("@treasury", at_seq=before)["usdt"]["available"] == "50.00"


def test_trial_balance_shows_both_sides_of_a_house_account(api: Api) -> None:
    """What is frozen of it is beside what is available, and the total is zero."""
    api.must("/v1/holds", {"customer": "@treasury", **USDT})
    found = api.get("/v1/trial-balance").json()
    assert found["balanced"] is True
    coin = found["coins"]["usdt"]
    assert (coin["house"]["@treasury"], coin["house_freeze"], coin["total"]) == ("45.00", {"@treasury": "5.00"}, "0.00")


def test_hold_of_a_house_account_trades_like_a_customers(api: Api) -> None:
    """The exchange may make a market of its own."""
    api.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "1"})
    bid = api.must("/v1/holds", {"customer": "@treasury", "coin": "usdt", "amount": "50"})["hold"]
    ask = api.must("/v1/holds", {"customer": "bob", "coin": "btc", "amount": "1"})["hold"]
    fill = {"base": "btc", "quote": "usdt", "base_amount": "1", "quote_amount": "50"}
    api.must("/v1/settlements", {**fill, "buyer": {"hold": bid, "customer": "@treasury"}, "seller": {"hold": ask}})
    assert api.balances("@treasury")["btc"]["available"] == "1.00"
    assert api.balances("bob")["usdt"]["available"] == "50.00"


def test_reversal_that_a_house_account_cannot_pay_is_refused_and_not_kept(api: Api) -> None:
    """It can be sent again once the house account has enough."""
    sent = api.must("/v1/transfers", transfer("alice", "@dust", "7"))["seq"]
    api.must("/v1/transfers", transfer("@dust", "bob", "7"))
    problem = refused(api, "/v1/reversals", {"seq": sent, "reason": "mistake"}, "undo")
    assert (problem["code"], "seq" in problem) == ("house_short", False)
    api.must("/v1/transfers", transfer("bob", "@dust", "7"))
    api.must("/v1/reversals", {"seq": sent, "reason": "mistake"}, "undo")
    assert usdt(api, "@dust") == ("0.00", "0.00")


def test_house_accounts_are_there_after_a_start(tmp_path: Path) -> None:
    """Sealed or not, each is as it was opened."""
    with operator_api(tmp_path / "data") as api:
        api.set_up()
        api.must(HOUSE, {"name": "credit", "may_be_negative": True})
        api.must("/v1/transfers", transfer("@credit", "alice"))
    with operator_api(tmp_path / "data") as api:
        api.must("/v1/transfers", transfer("@credit", "alice"))
        assert usdt(api, "@credit")[0] == "-10.00"
        assert refused(api, HOUSE, {"name": "credit"})["code"] == "house_account_already_open"
