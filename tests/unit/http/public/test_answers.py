"""Balance bodies assembled from ready pieces: equal to encoding anew, and bounded."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import spotledger
from spotledger import errors
from spotledger.domain.accounts import Account
from spotledger.domain.amounts import format_amount
from spotledger.http.public.answers import BalanceBodies, v1_form
from support_public import Service, service


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one listener without limits."""
    with service(tmp_path_factory.mktemp("ledger"), asset_limit_per_second=0, address_limit_per_minute=0) as made:
        yield made


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["deposit", "freeze", "withdraw", "list"]),
        st.sampled_from(["alice", "bob"]),
        st.sampled_from(["btc", "usdt"]),
        st.integers(1, 10**9),
    ),
    min_size=1,
    max_size=8,
)


@given(steps=STEPS)
@settings(max_examples=25, deadline=None)
def test_assembled_body_is_what_encoding_anew_gives(public: Service, steps: list[tuple[str, str, str, int]]) -> None:
    """After any writes and listings, the body from ready pieces equals one that is encoded from the ledger."""
    ledger = public.ledger
    roomy = BalanceBodies(ledger, "spot", v1_form("success"))
    narrow = BalanceBodies(ledger, "spot", v1_form("success"), bytes_limit=1_000, accounts_limit=2)
    for what, customer, coin, units in steps:
        key, amount = f"step-{ledger.head.seq}", format_amount(units, 8)
        if what == "list":
            ledger.list_coin(f"new{ledger.head.seq}", ledger.head.seq % 19, key=key)
        else:
            with contextlib.suppress(errors.InsufficientAvailable):
                if what == "withdraw":
                    ledger.withdraw(amount, customer=customer, coin=coin, key=key)
                else:
                    getattr(ledger, what)(customer, coin, amount, key=key)
        for who in ("alice", "bob", "nobody"):
            balances = ledger.account(Account(who, "spot")).balances
            expected = {
                name: {
                    "freeze": format_amount(balances[name].freeze if name in balances else 0, listed.scale),
                    "available": format_amount(balances[name].available if name in balances else 0, listed.scale),
                }
                for name, listed in ledger.coins.items()
            }
            text = json.dumps({"code": 200, "data": expected, "info": "success"}, separators=(",", ":"))
            for made in (roomy.of(who, ledger.head.seq), narrow.of(who, ledger.head.seq)):
                assert made.content.decode() == text
                assert gzip.decompress(made.gzipped()).decode() == text


def test_untouched_accounts_share_one_body(public: Service) -> None:
    """An account that was never touched costs no body of its own."""
    bodies = BalanceBodies(public.ledger, "fiat", v1_form("success"))
    seq = public.ledger.head.seq
    assert bodies.of("nobody-1", seq).content is bodies.of("nobody-2", seq).content


def test_pieces_of_unchanged_coins_are_used_again(public: Service) -> None:
    """When one coin of an account changes, the pieces of the others are the same objects as before."""
    ledger = public.ledger
    bodies = BalanceBodies(ledger, "wallet", v1_form("success"))
    ledger.deposit("alice", "btc", "1", account="wallet", key="pieces-1")
    ledger.deposit("alice", "usdt", "1", account="wallet", key="pieces-2")
    before = dict(zip(ledger.coins, bodies.of("alice", ledger.head.seq).parts, strict=True))
    ledger.deposit("alice", "usdt", "1", account="wallet", key="pieces-3")
    after = dict(zip(ledger.coins, bodies.of("alice", ledger.head.seq).parts, strict=True))
    assert after["btc"] is before["btc"]
    assert after["usdt"] != before["usdt"]


def test_bodies_are_bounded_by_bytes_and_by_number(public: Service) -> None:
    """However many accounts are read, the kept bodies stay within their bounds, and each answer is right."""
    seq = public.ledger.head.seq
    for bodies in (
        BalanceBodies(public.ledger, "spot", v1_form("success"), bytes_limit=5_000),
        BalanceBodies(public.ledger, "spot", v1_form("success"), accounts_limit=10),
    ):
        first = bodies.of("alice", seq).content
        for number in range(500):
            bodies.of(f"customer-{number}", seq)
            assert len(bodies._bodies) <= 14
        assert bodies.of("alice", seq).content == first


def test_empty_ledger_answers_with_no_coins(tmp_path: Path) -> None:
    """Before any coin is listed the answer is complete, with an empty object."""
    with spotledger.open(tmp_path) as ledger:
        empty = BalanceBodies(ledger, "spot", v1_form("success"))
        assert empty.of("alice", 0).content == b'{"code":200,"data":{},"info":"success"}'
