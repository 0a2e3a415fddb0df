"""How entries, holds and balances are said in the operator API: amounts as decimal text that can be sent back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from spotledger.domain.accounts import Balance, Coin
from spotledger.domain.amounts import format_amount
from spotledger.domain.journal import BalanceAfter, Entry, Hold, Posting

Json = dict[str, Any]

#: Amount texts that are remembered: the answer to a write says most of its amounts more than once.
AMOUNT_TEXTS: Final = 4096


@lru_cache(maxsize=AMOUNT_TEXTS)
def amount_text(units: int, scale: int) -> str:
    """Write *units* with two decimals at least, but never more than the coin has."""
    return format_amount(units, scale, 2 if scale > 2 else scale)


def balance_json(balance: Balance, scale: int) -> Json:
    """Return one balance as both of its sides."""
    return {"available": amount_text(balance.available, scale), "freeze": amount_text(balance.freeze, scale)}


def entry_json(entry: Entry, coins: Mapping[str, Coin]) -> Json:
    """Return one entry: what was asked for, its postings with the balance of their side after them, its holds."""
    answer: Json = {
        "seq": entry.seq,
        "kind": entry.kind,
        "key": entry.key,
        "booked_ms": entry.booked_ms,
        "request": _request_json(entry.request, coins),
        "postings": [
            _posting_json(posting, after, coins[posting.coin].scale)
            for posting, after in zip(entry.postings, entry.posting_balances(), strict=True)
        ],
    }
    if entry.happened_ms is not None:
        answer["happened_ms"] = entry.happened_ms
    if entry.holds:
        scales = {posting.hold: coins[posting.coin].scale for posting in entry.postings}
        answer["holds"] = [
            {"hold": str(hold), "remaining": amount_text(remaining, scales[hold])} for hold, remaining in entry.holds
        ]
    if entry.refusal is not None:
        answer["refusal"] = entry.refusal
    return answer


def _request_json(request: Json, coins: Mapping[str, Coin]) -> Json:
    """Return a kept request with its units as decimal amounts, under the names that the caller's fields have."""
    answer: Json = {}
    for name, value in request.items():
        if name == "units":
            answer["amount"] = amount_text(int(value), coins[request["coin"]].scale)
        elif name in ("base_units", "quote_units"):
            coin = request[name.removesuffix("_units")]
            answer[name.replace("units", "amount")] = amount_text(int(value), coins[coin].scale)
        elif name in ("buyer", "seller"):
            answer[name] = _side_json(value, request["quote" if name == "buyer" else "base"], coins)
        elif name != "format":
            answer[name] = value
    return answer


def _side_json(side: Json, paid: str, coins: Mapping[str, Coin]) -> Json:
    answer: Json = {}
    for name, value in side.items():
        if name in ("fee", "dust"):
            answer[name] = _request_json(value, coins)
        elif name == "release_units":
            answer["release"] = amount_text(int(value), coins[paid].scale)
        else:
            answer["release" if name == "release_amount" else name] = value
    return answer


def _posting_json(posting: Posting, after: int, scale: int) -> Json:
    (customer, kind), coin, side, units, hold = posting
    answer = {
        "customer": customer,
        "account": kind,
        "coin": coin,
        "side": side,
        "amount": amount_text(units, scale),
        "after": amount_text(after, scale),
    }
    if hold is not None:
        answer["hold"] = str(hold)
    return answer


def after_json(after: BalanceAfter, scale: int) -> Json:
    """Return the balance of one account and coin after an entry."""
    (customer, kind), coin, available, freeze = after
    return {
        "customer": customer,
        "account": kind,
        "coin": coin,
        "available": amount_text(available, scale),
        "freeze": amount_text(freeze, scale),
    }


def write_json(entry: Entry, hold: int | None, coins: Mapping[str, Coin]) -> Json:
    """Return the answer to a write: where it stands in the journal, its entry, the balances after it, its hold."""
    answer = {
        "seq": entry.seq,
        "entry": entry_json(entry, coins),
        "balances": [after_json(after, coins[after.coin].scale) for after in entry.balances],
    }
    if hold is not None:
        answer["hold"] = str(hold)
    return answer


def hold_json(hold: Hold, scale: int) -> Json:
    """Return one hold; its id is text."""
    return {
        "hold": str(hold.hold_id),
        "customer": hold.account.customer,
        "account": hold.account.kind,
        "coin": hold.coin,
        "amount": amount_text(hold.amount, scale),
        "remaining": amount_text(hold.remaining, scale),
        "state": hold.state,
        "reference": hold.reference,
        "expires_ms": hold.expires_ms,
        "opened_ms": hold.opened_ms,
        "closed_seq": hold.closed_seq,
    }
