"""
Settle one fill of a trade as one entry.

The buyer's hold pays the quote coin, the seller's hold pays the base coin, and each side receives what the other pays.
Fees go to ``@fees`` or the account that is named, dust goes to ``@dust``, and what is released of a hold goes back to
available. A fee in the coin that a side receives is taken from what it receives; a fee in the coin that it pays is
taken from the same hold on top. A negative fee is a rebate, which the fee account pays to available. Both holds may be
of one customer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from spotledger.domain.accounts import DUST, FEES, HOUSE_KIND, Account, Coin
from spotledger.domain.amounts import normal_amount, units_of
from spotledger.domain.books import (
    Decision,
    LineMove,
    State,
    amount_text,
    enough_remaining,
    find_hold,
    is_overdraft,
    listed,
    post,
    registered,
    usable_hold,
)
from spotledger.domain.journal import AVAILABLE, FREEZE, REQUEST_FORMAT, Hold, new_tuple
from spotledger.domain.operations import REST, CoinAmount, HoldKey, Settle, SettleSide
from spotledger.errors import FeesShort, InvalidAmount, InvalidRequest


class Part(NamedTuple):
    """One side of a fill, looked up in the books: its hold, and units; ``released`` may be None or :data:`REST`."""

    hold: Hold | None
    fee: int
    dust: int
    released: int | str | None


class Fill(NamedTuple):
    """What a settlement names, looked up in the books; nothing but the known coins if one of them is unknown."""

    base: Coin | None
    quote: Coin | None
    base_units: int | None = None
    quote_units: int | None = None
    buyer: Part | None = None
    seller: Part | None = None


class _Names(NamedTuple):
    """The names of one side and its fields in messages."""

    side: str
    hold: str
    fee: str
    fee_coin: str
    fee_amount: str
    dust_coin: str
    dust_amount: str
    release: str


def _names_of(side: str) -> _Names:
    fields = ("hold", "fee", "fee.coin", "fee.amount", "dust.coin", "dust.amount", "release")
    return _Names(side, *(f"{side}.{field}" for field in fields))


_BUYER: Final = _names_of("buyer")
_SELLER: Final = _names_of("seller")


def fill_of(operation: Settle, state: State) -> Fill:
    """
    Look up what a settlement names.

    Raises:
        InvalidAmount: An amount does not fit its coin's scale.
        InvalidRequest: A fee or dust is in a coin that is not traded.
    """
    base, quote = state.coin(operation.base), state.coin(operation.quote)
    if base is None or quote is None:
        return Fill(base, quote)
    buyer, seller = operation.buyer, operation.seller
    return _amounts(operation, base, quote, find_hold(buyer.hold, state), find_hold(seller.hold, state))


def _amounts(operation: Settle, base: Coin, quote: Coin, buyer: Hold | None, seller: Hold | None) -> Fill:
    base_units = units_of(operation.base_amount, base.scale, "base_amount")
    quote_units = units_of(operation.quote_amount, quote.scale, "quote_amount")
    buyer_part = _part(operation.buyer, _BUYER, quote, base, buyer)
    seller_part = _part(operation.seller, _SELLER, base, quote, seller)
    return new_tuple(Fill, (base, quote, base_units, quote_units, buyer_part, seller_part))


def _part(side: SettleSide, names: _Names, paid: Coin, received: Coin, hold: Hold | None) -> Part:
    fee, dust, released = side.fee, side.dust, side.release
    freed = released if released is None or released == REST else units_of(released, paid.scale, names.release)
    fee_units = 0 if fee is None else _units(fee, paid, received, names.fee_coin, names.fee_amount)
    dust_units = 0 if dust is None else _units(dust, paid, received, names.dust_coin, names.dust_amount)
    return new_tuple(Part, (hold, fee_units, dust_units, freed))


def _units(amount: CoinAmount, paid: Coin, received: Coin, coin_field: str, amount_field: str) -> int:
    coin, text = amount
    if text[0] == "-":
        return -_units(CoinAmount(coin, text[1:]), paid, received, coin_field, amount_field)
    if coin == received.name:
        return units_of(text, received.scale, amount_field)
    if coin == paid.name:
        return units_of(text, paid.scale, amount_field)
    if amount.is_zero():
        return 0
    raise InvalidRequest(
        f"{coin_field} is {coin}; {paid.name} or {received.name}, the coins of the trade, would pass", field=coin_field
    )


def settle(operation: Settle, fill: Fill, state: State, seq: int, now_ms: int) -> Decision:
    """
    Decide one fill.

    Raises:
        HoldClosed, HoldExpired, HoldShort: Kept.
        UnknownCoin, UnknownHold, BalanceTooLarge: A coin or hold is unknown, or a balance would grow too large.
        UnknownHouseAccount: The fee account is not open.
        FeesShort: It has too little for the rebates.
        PreconditionFailed: A hold is not the one that was meant.
        InvalidRequest: A hold is of the wrong coin, or fee and dust exceed what a side receives.
    """
    base, quote, base_units, quote_units, bought, sold = fill
    base = listed(operation.base, base, "base")
    quote = listed(operation.quote, quote, "quote")
    assert base_units is not None and quote_units is not None  # noqa: S101, PT018 - both coins are listed
    assert bought is not None and sold is not None  # noqa: S101, PT018 - and so both sides were looked up
    buyer, seller = operation.buyer, operation.seller
    fees = FEES
    if operation.fee_account is not None:
        fees = registered(operation.fee_account, HOUSE_KIND, state, "fee_account")
    buys = _hold(buyer, bought.hold, quote, state, now_ms, _BUYER)
    sells = _hold(seller, sold.hold, base, state, now_ms, _SELLER)
    buyer_gives = _gives(buyer, bought, buys, quote, quote_units, _BUYER)
    seller_gives = _gives(seller, sold, sells, base, base_units, _SELLER)
    buyer_gets = _gets(buyer, bought, buyer_gives, base.name, base_units, _BUYER)
    seller_gets = _gets(seller, sold, seller_gives, quote.name, quote_units, _SELLER)
    moves: list[LineMove] = []
    _add_moves(moves, state, buys, buyer_gives, base.name, buyer_gets, fees)
    _add_moves(moves, state, sells, seller_gives, quote.name, seller_gets, fees)
    if bought.fee < 0 or sold.fee < 0:
        _check_fee_account(moves, fees, (base, quote), state)
    holds = (buys.after(buys.remaining - buyer_gives[0], seq), sells.after(sells.remaining - seller_gives[0], seq))
    return post(moves, holds)


def _hold(side: SettleSide, found: Hold | None, coin: Coin, state: State, now_ms: int, names: _Names) -> Hold:
    hold = usable_hold(side, found, state, now_ms, names.hold)
    if hold.coin != coin.name:
        raise InvalidRequest(
            f"{names.hold} is of {hold.coin}; a hold of {coin.name}, which the {names.side} pays with, would pass",
            field=names.hold,
        )
    return hold


def _gives(side: SettleSide, part: Part, hold: Hold, paid: Coin, units: int, names: _Names) -> tuple[int, int, int]:
    """Return the units that leave a side's hold: in all, and of these the fee and what is released."""
    _, fee, _, freed = part
    if fee and (side.fee is None or side.fee.coin != paid.name):
        fee = 0
    needed = units + fee if fee > 0 else units
    if freed == REST:
        enough_remaining(hold, paid, needed, names.hold)
        return hold.remaining, fee, hold.remaining - needed
    released = int(freed or 0)
    enough_remaining(hold, paid, needed + released, names.hold)
    return needed + released, fee, released


def _gets(
    side: SettleSide, part: Part, gives: tuple[int, int, int], coin: str, units: int, names: _Names
) -> tuple[int, int, int]:
    """Return what becomes of the *units* of *coin* that a side receives: what it gets, the fee, and dust."""
    _, fee, dust, _ = part
    fee_received = fee - gives[1]
    if dust and side.dust is not None and side.dust.coin != coin:
        raise InvalidRequest(
            f"{names.dust_coin} is {side.dust.coin}; {coin}, which the {names.side} receives, would pass",
            field=names.dust_coin,
        )
    left = units - fee_received - dust
    if left < 0:
        raise InvalidRequest(f"fee and dust exceed what the {names.side} receives; less would pass", field=names.fee)
    return left, fee_received, dust


def _add_moves(
    moves: list[LineMove],
    state: State,
    hold: Hold,
    gives: tuple[int, int, int],
    coin: str,
    gets: tuple[int, int, int],
    fees: Account,
) -> None:
    """Add to *moves* what one side gives of its *hold* and gets of *coin*, with fees, which *fees* gets, and dust."""
    line_of, account, paid_coin = state.line, hold.account, hold.coin
    given, fee_paid, released = gives
    left, fee_received, dust = gets
    paying = line_of(account, paid_coin)
    moves.append((paying, FREEZE, -given, hold.hold_id))
    if released:
        moves.append((paying, AVAILABLE, released, None))
    if fee_paid < 0:
        moves.append((paying, AVAILABLE, -fee_paid, None))
    if fee_paid:
        moves.append((line_of(fees, paid_coin), AVAILABLE, fee_paid, None))
    moves.append((line_of(account, coin), AVAILABLE, left, None))
    if fee_received:
        moves.append((line_of(fees, coin), AVAILABLE, fee_received, None))
    if dust:
        moves.append((line_of(DUST, coin), AVAILABLE, dust, None))


def _check_fee_account(moves: list[LineMove], fees: Account, coins: tuple[Coin, Coin], state: State) -> None:
    """Refuse if *moves* together take more from the account *fees* than it has."""
    for coin in coins:
        line = state.line(fees, coin.name)
        net = sum([units for moved, side, units, _ in moves if moved is line and side == AVAILABLE])
        if line.available + net < 0 and not is_overdraft(fees, state):
            raise FeesShort(
                f"{fees.customer} has {amount_text(line.available, coin)} {coin.name} available, and the rebates of"
                f" this fill take {amount_text(-net, coin)}",
                field="fee_account",
                available=amount_text(line.available, coin),
            )


# --- the canonical request --------------------------------------------------------------------------


def settle_request(operation: Settle, fill: Fill) -> dict[str, Any]:
    """Return the canonical request of a settlement: in units if both coins of *fill* are known, else decimal text."""
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
    if operation.fee_account not in (None, FEES.customer):
        request["fee_account"] = operation.fee_account
    if operation.reference is not None:
        request["reference"] = operation.reference
    if operation.happened_ms is not None:
        request["happened_ms"] = operation.happened_ms
    return request


def _side_request(side: SettleSide, part: Part | None) -> dict[str, Any]:
    hold, release = side.hold, side.release
    request: dict[str, Any] = {"hold": {"key": hold.key} if isinstance(hold, HoldKey) else hold}
    if side.fee is not None and not side.fee.is_zero():
        request["fee"] = _amount_request(side.fee, part and part.fee)
    if side.dust is not None and not side.dust.is_zero():
        request["dust"] = _amount_request(side.dust, part and part.dust)
    if release == REST:
        request["release"] = REST
    elif release is not None and part is None:
        request["release_amount"] = normal_amount(release)
    elif release is not None and part is not None:
        request["release_units"] = str(part.released)
    return request


def _amount_request(amount: CoinAmount, units: int | None) -> dict[str, str]:
    coin, text = amount
    return {"coin": coin, "amount": normal_amount(text)} if units is None else {"coin": coin, "units": str(units)}


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
    return _differing_place(request, kept)


def _differing_place(request: Mapping[str, Any], kept: Mapping[str, Any]) -> str | None:
    """Name the first place in which two settlements differ, such as ``buyer.fee.amount``, as a caller writes it."""
    for field in (*request, *kept):
        asked, before = request.get(field), kept.get(field)
        if asked == before:
            continue
        if field != "hold" and isinstance(asked, dict) and isinstance(before, dict):
            return f"{field}.{_differing_place(asked, before)}"
        return _NAMES_OF_UNITS.get(field, field)
    return None


#: The fields that the canonical request calls otherwise than the caller does.
_NAMES_OF_UNITS: Final = {
    "base_units": "base_amount",
    "quote_units": "quote_amount",
    "units": "amount",
    "release_units": "release",
    "release_amount": "release",
}
