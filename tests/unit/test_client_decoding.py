"""Decoding the answers of the operator API: exact, or refused with no value repeated."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from msgspec import Struct
from rich.pretty import pretty_repr

from spotledger.client.operator.decoding import decode
from spotledger.client.operator.key_answers import AccessKey, KeyPage, MadeKey, MadeToken, TokenPage
from spotledger.client.operator.ledger_answers import (
    BalanceAfter,
    Coins,
    CustomerPage,
    Entry,
    EntryRead,
    HoldRead,
    LedgerBalances,
    SideBalance,
    TrialBalance,
    Written,
)
from spotledger.client.operator.service_answers import Backup
from spotledger.errors import ProtocolError

SECRET = "5e" * 32
ACCESSKEY = "11111111-2222-3333-4444-555555555555"
SIDES = {"available": "1.50", "freeze": "0.00"}
PLACE = {"customer": "a", "account": "spot", "coin": "x"}
POSTING = {**PLACE, "side": "freeze", "amount": "-1.50", "after": "2", "hold": "7"}
ENTRY = {
    "seq": 9,
    "epoch": 1,
    "kind": "freeze",
    "key": "k",
    "booked_ms": 1,
    "actor": "library",
    "request": {"op": "freeze"},
    "postings": [POSTING],
}
HOLD = {
    "hold": "7",
    **PLACE,
    "amount": "3",
    "remaining": "1",
    "state": "open",
    "reference": None,
    "expires_ms": None,
    "opened_ms": 1,
    "closed_seq": None,
    "age_ms": 5,
}
KEY = {
    "accesskey": ACCESSKEY,
    "customer": "a",
    "permissions": ["read"],
    "label": "",
    "addresses": [],
    "created_ms": 1,
    "expires_ms": None,
    "revoked_ms": None,
    "last_used_ms": None,
}
TRIAL_COIN = {"customers": SIDES, "house": {"@fees": "-1"}, "total": "0"}
MADE_TOKEN = {
    "token_id": "t", "token": SECRET, "scopes": ["admin"], "label": "", "addresses": [],
    "created_ms": 1, "expires_ms": 2,
}  # fmt: skip

DOCUMENTS: list[tuple[type[Struct], dict[str, Any]]] = [
    (Written, {"seq": 9, "epoch": 1, "entry": ENTRY, "balances": [{**PLACE, **SIDES}]}),
    (EntryRead, {"entry": {**ENTRY, "holds": [{"hold": "7", "remaining": "1"}]}, "reversed_by": None}),
    (HoldRead, {"hold": HOLD}),
    (LedgerBalances, {"seq": 1, "epoch": 1, "balances": {"x": SIDES}, "owes": {"x": "1"}}),
    (TrialBalance, {"seq": 1, "epoch": 1, "balanced": True, "coins": {"x": TRIAL_COIN}}),
    (Coins, {"seq": 1, "epoch": 1, "coins": [{"coin": "x", "scale": 8}]}),
    (CustomerPage, {"seq": 1, "epoch": 1, "customers": ["a"], "next_after": None}),
    (MadeKey, {**KEY, "secretkey": SECRET}),
    (KeyPage, {"keys": [KEY], "next_after": ACCESSKEY}),
    (MadeToken, MADE_TOKEN),
    (Backup, {"file": "x", "state": "running", "pages_left": 3, "pages": 7}),
]  # fmt: skip


def test_documents_are_decoded_exactly() -> None:
    """Amounts keep all their digits and their scale, lists become tuples, absent members are None."""
    written = decode(Written, DOCUMENTS[0][1])
    assert written.balances == (BalanceAfter("a", "spot", "x", Decimal("1.50"), Decimal("0.00")),)
    assert str(written.balances[0].available) == "1.50"
    assert (written.entry.postings[0].amount, written.entry.postings[0].hold) == (Decimal("-1.50"), "7")
    assert (written.hold, written.replayed, written.entry.holds, written.entry.refusal) == (None, False, None, None)
    assert decode(EntryRead, DOCUMENTS[1][1]).entry.holds == {"7": Decimal(1)}
    assert decode(Coins, DOCUMENTS[5][1])["x"].scale == 8
    big = "9" * 38 + "." + "9" * 24
    assert str(decode(SideBalance, {"available": big, "freeze": "0"}).available) == big


@pytest.mark.parametrize(
    "amount",
    [
        *(1, 0, 1.5, True, None, [], {}, "", " 1", "1 ", "1\n", "1e5", "NaN", "Infinity", "-Infinity", "sNaN", "1_0"),
        *("1,0", "0x1", "１", "--1", "1.2.3", "1-2", ".", "-", "+1"),
    ],
)
def test_amount_that_is_not_decimal_text_is_refused(amount: object) -> None:
    """JSON numbers may have lost digits on the way, and forms with exponents or blanks are not documented."""
    for document in ({"available": amount, "freeze": "0"}, {"available": "0", "freeze": amount}):
        with pytest.raises(ProtocolError, match="amount"):
            decode(SideBalance, document)
    with pytest.raises(ProtocolError, match="amount"):
        decode(LedgerBalances, {**DOCUMENTS[3][1], "owes": {"x": amount}})


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS, ids=[kind.__name__ for kind, _ in DOCUMENTS])
@pytest.mark.parametrize("wrong", [7, 1.5, "x", True, [7], {"a": 7}])
def test_member_of_another_type_is_refused(kind: type[Struct], document: dict[str, Any], wrong: object) -> None:
    """Each member takes values of its own type only: no text for a number, no number or bool for either."""
    decode(kind, document)
    for name, value in document.items():
        if value is not None and type(value) is not type(wrong):
            with pytest.raises(ProtocolError) as refused:
                decode(kind, {**document, name: wrong})
            assert refused.value.__context__ is None


@pytest.mark.parametrize(("kind", "document"), DOCUMENTS, ids=[kind.__name__ for kind, _ in DOCUMENTS])
def test_member_that_is_missing_is_refused_and_a_new_one_ignored(kind: type[Struct], document: dict[str, Any]) -> None:
    """What a newer service adds is passed over; without what is documented there is no answer."""
    assert decode(kind, {**document, "newer": 1}) == decode(kind, document)
    for name in document.keys() - {"owes"}:
        with pytest.raises(ProtocolError):
            decode(kind, {other: value for other, value in document.items() if other != name})
    for wrong in (None, [], "x", 7):
        with pytest.raises(ProtocolError):
            decode(kind, wrong)


def test_refusal_of_an_answer_says_where_and_repeats_no_value() -> None:
    """The message has the place and the types; a secret in the answer does not get into a log."""
    with pytest.raises(ProtocolError, match=r"as MadeKey: Expected `int`, got `str` - at `\$.created_ms`") as refused:
        decode(MadeKey, {**KEY, "secretkey": SECRET, "created_ms": SECRET})
    assert SECRET not in str(refused.value)


def test_secrets_and_access_keys_are_shown_by_no_repr() -> None:
    """Neither ``repr`` nor rich shows a secret, a token or an access key; the rest is shown."""
    key = decode(MadeKey, {**KEY, "secretkey": SECRET, "replaces": ACCESSKEY})
    page = decode(KeyPage, {"keys": [KEY], "next_after": ACCESSKEY})
    token = decode(MadeToken, MADE_TOKEN)
    for answer in (key, page, token, decode(AccessKey, KEY)):
        for shown in (repr(answer), str(answer), pretty_repr(answer)):
            assert SECRET not in shown
            assert ACCESSKEY not in shown
    assert repr(token) == (
        "MadeToken(token_id='t', scopes=('admin',), label='', addresses=(), created_ms=1, expires_ms=2)"
    )
    assert "next_after='t'" in repr(decode(TokenPage, {"tokens": [], "next_after": "t"}))


def test_answers_cannot_be_changed() -> None:
    """An answer is what the service said, and stays so."""
    entry = decode(Entry, ENTRY)
    with pytest.raises(AttributeError):
        entry.seq = 8  # type: ignore[misc]


@pytest.mark.parametrize("missing", ["ledger_id", "epoch", "seq", "hash"])
def test_backup_that_is_done_without_what_it_holds_is_refused(missing: str) -> None:
    """Which members are needed follows from the state."""
    done = {"file": "x", "state": "done", "ledger_id": "l", "epoch": 1, "seq": 2, "hash": "ab"}
    assert decode(Backup, done).seq == 2
    with pytest.raises(ProtocolError, match=missing):
        decode(Backup, {**done, missing: None})
