"""
Settling one fill of a trade as one entry.

The buyer's hold pays the quote coin, the seller's hold delivers the base coin, each receives what the other gives.
Both fees go to ``@fees``, what is named as dust to ``@dust``, and what is to be released of a hold back to available. A
fee in the coin that a side receives is taken from what it receives; one in the coin that it pays comes from the same
hold on top. Both holds may be of one customer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from spotledger.domain.accounts import DUST, FEES, Coin
from spotledger.domain.amounts import normal_amount, parse_amount
from spotledger.domain.books import Decision, Line, State, enough_remaining, find_hold, listed, post, usable_hold
from spotledger.domain.journal import AVAILABLE, FREEZE, REQUEST_FORMAT, Hold
from spotledger.domain.operations import REST, CoinAmount, HoldKey, HoldName, Settle, SettleSide
from spotledger.errors import InvalidAmount, InvalidRequest

SIDES: Final = ("buyer", "seller")


class Part(NamedTuple):
    """What one side's texts mean: its hold, and units; ``released`` is None where nothing is, or :data:`REST`."""

    hold: Hold | None
    fee: int
    dust: int
    released: int | str | None


class Fill(NamedTuple):
    """What a settlement's texts mean in these books; units are None where their coin is unknown."""

    base: Coin | None
    quote: Coin | None
    base_units: int | None = None
    quote_units: int | None = None
    buyer: Part | None = None
    seller: Part | None = None

    def scales(self) -> dict[str, int]:
        """Return the scales of the coins that are known."""
        return {coin.name: coin.scale for coin in (self.base, self.quote) if coin is not None}


def fill_of(operation: Settle, state: State) -> Fill:
    """
    Look up what a settlement names.

    Raises:
        InvalidAmount: An amount does not fit its coin's scale.
    """
    base, quote = state.coin(operation.base), state.coin(operation.quote)
    if base is None or quote is None:
        return Fill(base, quote)
    scales = {base.name: base.scale, quote.name: quote.scale}
    return Fill(
        base,
        quote,
        parse_amount(operation.base_amount, base.scale, "base_amount"),
        parse_amount(operation.quote_amount, quote.scale, "quote_amount"),
        _part(operation.buyer, "buyer", quote, scales, state),
        _part(operation.seller, "seller", base, scales, state),
    )


def _part(side: SettleSide, name: str, paid: Coin, scales: Mapping[str, int], state: State) -> Part:
    released: int | str | None = side.release
    if released is not None and released != REST:
        released = parse_amount(str(released), paid.scale, f"{name}.release")
    return Part(
        find_hold(side.hold, state),
        _units(side.fee, scales, f"{name}.fee"),
        _units(side.dust, scales, f"{name}.dust"),
        released,
    )


def _units(amount: CoinAmount | None, scales: Mapping[str, int], field: str) -> int:
    if amount is None or amount.is_zero():
        return 0
    if amount.coin not in scales:
        raise InvalidRequest(
            f"{field}.coin is {amount.coin}; {' or '.join(scales)}, the coins of the trade, would pass",
            field=f"{field}.coin",
        )
    return parse_amount(amount.amount, scales[amount.coin], f"{field}.amount")


def settle(operation: Settle, fill: Fill, state: State, seq: int, now_ms: int) -> Decision:
    """
    Say what one fill does to the books.

    Raises:
        UnknownCoin, UnknownHold, HoldClosed, HoldExpired, HoldShort, BalanceTooLarge: Kept.
        InvalidRequest: A hold is of another coin, or fee and dust are more than a side receives.
    """
    base = listed(operation.base, fill.base, "base")
    quote = listed(operation.quote, fill.quote, "quote")
    assert fill.base_units is not None and fill.quote_units is not None  # noqa: S101, PT018 - both coins are listed
    assert fill.buyer is not None and fill.seller is not None  # noqa: S101, PT018 - and so the sides were read
    buyer = _hold(operation.buyer.hold, fill.buyer, quote, now_ms, "buyer")
    seller = _hold(operation.seller.hold, fill.seller, base, now_ms, "seller")
    buyer_gives = _gives(operation.buyer, fill.buyer, buyer, quote, fill.quote_units, "buyer")
    seller_gives = _gives(operation.seller, fill.seller, seller, base, fill.base_units, "seller")
    lines = [
        *_lines_of(operation.buyer, fill.buyer, buyer, buyer_gives, base, fill.base_units, "buyer"),
        *_lines_of(operation.seller, fill.seller, seller, seller_gives, quote, fill.quote_units, "seller"),
    ]
    holds = (
        buyer.after(buyer.remaining - sum(buyer_gives), seq),
        seller.after(seller.remaining - sum(seller_gives), seq),
    )
    return post(state, lines, holds)


def _hold(name: HoldName, part: Part, coin: Coin, now_ms: int, side: str) -> Hold:
    hold = usable_hold(name, part.hold, now_ms, f"{side}.hold")
    if hold.coin != coin.name:
        raise InvalidRequest(
            f"{side}.hold is of {hold.coin}; a hold of {coin.name}, which the {side} pays with, would pass",
            field=f"{side}.hold",
        )
    return hold


def _gives(side: SettleSide, part: Part, hold: Hold, paid: Coin, units: int, name: str) -> tuple[int, int, int]:
    """Return what goes out of a side's hold: the price, a fee on top, and what is released."""
    fee = part.fee if side.fee is not None and side.fee.coin == paid.name else 0
    needed = units + fee
    if part.released == REST:
        enough_remaining(hold, paid, needed, f"{name}.hold")
        return units, fee, hold.remaining - needed
    released = int(part.released or 0)
    enough_remaining(hold, paid, needed + released, f"{name}.hold")
    return units, fee, released


def _lines_of(
    side: SettleSide, part: Part, hold: Hold, gives: tuple[int, int, int], received: Coin, units: int, name: str
) -> list[Line]:
    account, paid_coin, coin = hold.account, hold.coin, received.name
    _, fee_paid, released = gives
    fee_received = part.fee - fee_paid
    if part.dust and side.dust is not None and side.dust.coin != coin:
        raise InvalidRequest(
            f"{name}.dust.coin is {side.dust.coin}; {coin}, which the {name} receives, would pass",
            field=f"{name}.dust.coin",
        )
    left = units - fee_received - part.dust
    if left < 0:
        raise InvalidRequest(f"fee and dust are more than the {name} receives", field=f"{name}.fee")
    return [
        Line(account, paid_coin, FREEZE, -sum(gives), hold.hold_id),
        Line(account, paid_coin, AVAILABLE, released),
        Line(FEES, paid_coin, AVAILABLE, fee_paid),
        Line(account, coin, AVAILABLE, left),
        Line(FEES, coin, AVAILABLE, fee_received),
        Line(DUST, coin, AVAILABLE, part.dust),
    ]


# --- the canonical request --------------------------------------------------------------------------


def settle_request(operation: Settle, scales: Mapping[str, int]) -> dict[str, Any]:
    """
    Return what is kept of a settlement.

    Args:
        operation: The settlement.
        scales: Of the coins that are known; other amounts stay decimal text.
    """
    both = operation.base in scales and operation.quote in scales
    known = scales if both else {}
    request: dict[str, Any] = {"format": REQUEST_FORMAT, "op": operation.kind}
    request |= {"base": operation.base, "quote": operation.quote}
    request |= _amount("base", operation.base, operation.base_amount, known)
    request |= _amount("quote", operation.quote, operation.quote_amount, known)
    for name, side, paid in (
        ("buyer", operation.buyer, operation.quote),
        ("seller", operation.seller, operation.base),
    ):
        request[name] = _side_request(side, paid, known)
    for name in ("reference", "happened_ms"):
        value = getattr(operation, name)
        if value is not None:
            request[name] = value
    return request


def _side_request(side: SettleSide, paid: str, scales: Mapping[str, int]) -> dict[str, Any]:
    hold = side.hold
    request: dict[str, Any] = {"hold": {"key": hold.key} if isinstance(hold, HoldKey) else hold}
    for name, amount in (("fee", side.fee), ("dust", side.dust)):
        if amount is not None and not amount.is_zero():
            request[name] = {"coin": amount.coin, **_amount("", amount.coin, amount.amount, scales)}
    if side.release == REST:
        request["release"] = REST
    elif side.release is not None:
        request |= _amount("release", paid, side.release, scales)
    return request


def _amount(prefix: str, coin: str, text: str, scales: Mapping[str, int]) -> dict[str, str]:
    joined = f"{prefix}_" if prefix else ""
    if coin in scales:
        return {f"{joined}units": str(parse_amount(text, scales[coin], f"{joined}amount"))}
    return {f"{joined}amount": normal_amount(text)}


def differing_settle_field(kept: Mapping[str, Any], operation: Settle, scale_of: Callable[[str], int]) -> str | None:
    """Name the first field in which a settlement differs from the *kept* canonical request, or None."""
    for field, coin in (("base", operation.base), ("quote", operation.quote)):
        if kept[field] != coin:
            return field
    known = (kept["base"], kept["quote"]) if "base_units" in kept else ()
    scales = {coin: scale_of(coin) for coin in known}
    try:
        request = settle_request(operation, scales)
    except InvalidAmount as error:
        return str(error.details.get("field", "amount"))
    for field in (*request, *kept):
        if request.get(field) != kept.get(field):
            return field.replace("_units", "_amount")
    return None
