"""
Settling one fill of a trade as one entry.

The buyer's hold pays the quote coin, the seller's hold delivers the base coin, each receives what the other gives.
Both fees go to ``@fees``, what is named as dust to ``@dust``, and what is to be released of a hold back to available. A
fee in the coin that a side receives is taken from what it receives; one in the coin that it pays comes from the same
hold on top. Both holds may be of one customer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spotledger.domain.accounts import DUST, FEES, Coin
from spotledger.domain.amounts import normal_amount, units_of
from spotledger.domain.books import Decision, State, enough_remaining, find_hold, listed, post, usable_hold
from spotledger.domain.journal import AVAILABLE, FREEZE, REQUEST_FORMAT, Hold, Posting
from spotledger.domain.operations import REST, CoinAmount, HoldKey, HoldName, Settle, SettleSide
from spotledger.errors import InvalidAmount, InvalidRequest


class Part(NamedTuple):
    """What one side's texts mean: its hold, and units; ``released`` is None where nothing is, or :data:`REST`."""

    hold: Hold | None
    fee: int
    dust: int
    released: int | str | None


class Fill(NamedTuple):
    """What a settlement's texts mean in these books; only the coins that are known where one of them is not."""

    base: Coin | None
    quote: Coin | None
    base_units: int | None = None
    quote_units: int | None = None
    buyer: Part | None = None
    seller: Part | None = None


def fill_of(operation: Settle, state: State) -> Fill:
    """
    Look up what a settlement names.

    Raises:
        InvalidAmount: An amount does not fit its coin's scale.
        InvalidRequest: A fee or dust is in a coin that is not of the trade.
    """
    base, quote = state.coin(operation.base), state.coin(operation.quote)
    if base is None or quote is None:
        return Fill(base, quote)
    buyer, seller = operation.buyer, operation.seller
    return _amounts(operation, base, quote, find_hold(buyer.hold, state), find_hold(seller.hold, state))


def _amounts(operation: Settle, base: Coin, quote: Coin, buyer: Hold | None, seller: Hold | None) -> Fill:
    scales = {base.name: base.scale, quote.name: quote.scale}
    return Fill(
        base,
        quote,
        units_of(operation.base_amount, base.scale, "base_amount"),
        units_of(operation.quote_amount, quote.scale, "quote_amount"),
        _part(operation.buyer, "buyer", quote, scales, buyer),
        _part(operation.seller, "seller", base, scales, seller),
    )


def _part(side: SettleSide, name: str, paid: Coin, scales: Mapping[str, int], hold: Hold | None) -> Part:
    released: int | str | None = side.release
    if released is not None and released != REST:
        released = units_of(str(released), paid.scale, f"{name}.release")
    fee = 0 if side.fee is None else _units(side.fee, scales, name, "fee")
    dust = 0 if side.dust is None else _units(side.dust, scales, name, "dust")
    return Part(hold, fee, dust, released)


def _units(amount: CoinAmount, scales: Mapping[str, int], side: str, what: str) -> int:
    coin, text = amount
    scale = scales.get(coin)
    if scale is not None:
        return units_of(text, scale, f"{side}.{what}.amount")
    if amount.is_zero():
        return 0
    raise InvalidRequest(
        f"{side}.{what}.coin is {coin}; {' or '.join(scales)}, the coins of the trade, would pass",
        field=f"{side}.{what}.coin",
    )


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
) -> list[Posting]:
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
    lines = [Posting(account, paid_coin, FREEZE, -sum(gives), hold.hold_id)]
    if released:
        lines.append(Posting(account, paid_coin, AVAILABLE, released))
    if fee_paid:
        lines.append(Posting(FEES, paid_coin, AVAILABLE, fee_paid))
    lines.append(Posting(account, coin, AVAILABLE, left))
    if fee_received:
        lines.append(Posting(FEES, coin, AVAILABLE, fee_received))
    if part.dust:
        lines.append(Posting(DUST, coin, AVAILABLE, part.dust))
    return lines


# --- the canonical request --------------------------------------------------------------------------


def settle_request(operation: Settle, fill: Fill) -> dict[str, Any]:
    """Return what is kept of a settlement: units where both coins of *fill* are known, else decimal text."""
    request: dict[str, Any] = {
        "format": REQUEST_FORMAT,
        "op": operation.kind,
        "base": operation.base,
        "quote": operation.quote,
    }
    if fill.buyer is None:
        request["base_amount"] = normal_amount(operation.base_amount)
        request["quote_amount"] = normal_amount(operation.quote_amount)
    else:
        request["base_units"], request["quote_units"] = str(fill.base_units), str(fill.quote_units)
    request["buyer"] = _side_request(operation.buyer, fill.buyer)
    request["seller"] = _side_request(operation.seller, fill.seller)
    if operation.reference is not None:
        request["reference"] = operation.reference
    if operation.happened_ms is not None:
        request["happened_ms"] = operation.happened_ms
    return request


def _side_request(side: SettleSide, part: Part | None) -> dict[str, Any]:
    hold = side.hold
    request: dict[str, Any] = {"hold": {"key": hold.key} if isinstance(hold, HoldKey) else hold}
    if side.fee is not None and not side.fee.is_zero():
        request["fee"] = _amount(side.fee, part and part.fee)
    if side.dust is not None and not side.dust.is_zero():
        request["dust"] = _amount(side.dust, part and part.dust)
    if side.release == REST:
        request["release"] = REST
    elif side.release is not None and part is None:
        request["release_amount"] = normal_amount(side.release)
    elif part is not None and part.released is not None:
        request["release_units"] = str(part.released)
    return request


def _amount(amount: CoinAmount, units: int | None) -> dict[str, str]:
    if units is None:
        return {"coin": amount.coin, "amount": normal_amount(amount.amount)}
    return {"coin": amount.coin, "units": str(units)}


def differing_settle_field(kept: Mapping[str, Any], operation: Settle, scale_of: Callable[[str], int]) -> str | None:
    """Name the first field in which a settlement differs from the *kept* canonical request, or None."""
    for field, name in (("base", operation.base), ("quote", operation.quote)):
        if kept[field] != name:
            return field
    fill = Fill(None, None)
    if "base_units" in kept:
        base, quote = (Coin(name, scale_of(name)) for name in (operation.base, operation.quote))
        try:
            fill = _amounts(operation, base, quote, None, None)
        except (InvalidAmount, InvalidRequest) as error:
            return str(error.details.get("field", "amount"))
    request = settle_request(operation, fill)
    for field in (*request, *kept):
        if request.get(field) != kept.get(field):
            return field.replace("_units", "_amount")
    return None
