"""
Post any number of legs between customers and house accounts as one entry: an airdrop, interest, a correction.

The legs sum to zero for each coin. What an account has is judged by what all legs together do to it, so their order
does not matter. Each leg is a posting of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from spotledger.domain.accounts import Coin
from spotledger.domain.amounts import UNITS_LIMIT, format_amount, normal_amount, signed_units_of
from spotledger.domain.books import (
    Decision,
    Line,
    LineMove,
    State,
    insufficient,
    is_overdraft,
    listed,
    post,
    registered,
    too_large,
)
from spotledger.domain.journal import AVAILABLE, REQUEST_FORMAT
from spotledger.domain.operations import Post
from spotledger.errors import InvalidAmount, LegsUnbalanced


class Legs(NamedTuple):
    """The coins of the legs, as far as they are listed, and the units of each leg; None if a coin is not listed."""

    coins: Mapping[str, Coin]
    units: tuple[int, ...] | None


def legs_of(operation: Post, state: State) -> Legs:
    """Look up the coins that the legs name; raise InvalidAmount if an amount does not fit its coin's scale."""
    names = {leg.coin for leg in operation.legs}
    coins = {name: coin for name in names if (coin := state.coin(name)) is not None}
    return Legs(coins, _units(operation, coins) if len(coins) == len(names) else None)


def _units(operation: Post, coins: Mapping[str, Coin]) -> tuple[int, ...]:
    return tuple(
        [
            signed_units_of(leg.amount, coins[leg.coin].scale, f"legs[{place}].amount")
            for place, leg in enumerate(operation.legs)
        ]
    )


def post_legs(operation: Post, subject: Legs, state: State, seq: int, now_ms: int) -> Decision:
    """
    Decide the legs together; a refusal names the leg.

    Raises:
        InsufficientAvailable: Kept, but not for a house account.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount: One of them is not known.
        BalanceTooLarge: A balance would grow too large.
        LegsUnbalanced: The legs do not sum to zero for a coin.
    """
    for place, leg in enumerate(operation.legs):
        listed(leg.coin, subject.coins.get(leg.coin), f"legs[{place}].coin")
    moves: list[LineMove] = []
    nets: dict[Line, int] = {}
    for place, (leg, units) in enumerate(zip(operation.legs, subject.units or (), strict=True)):
        account = registered(leg.customer, leg.account, state, f"legs[{place}].customer")
        line = state.line(account, leg.coin)
        nets[line] = nets.get(line, 0) + units
        moves.append((line, AVAILABLE, units, None))
    _check_sums(moves, subject)
    for line, net in nets.items():
        _check_net(line, net, moves, subject.coins[line.coin], state)
    return post(moves)


def _check_sums(moves: list[LineMove], subject: Legs) -> None:
    sums = dict.fromkeys(subject.coins, 0)
    for line, _, units, _ in moves:
        sums[line.coin] += units
    for name, total in sums.items():
        if total:
            text = format_amount(total, subject.coins[name].scale, 0)
            raise LegsUnbalanced(
                f"the legs sum to {text} {name}; a sum of zero for each coin would pass",
                field="legs",
                coin=name,
                sum=text,
            )


def _check_net(line: Line, net: int, moves: list[LineMove], coin: Coin, state: State) -> None:
    """Refuse if *line* has too little for its *net*, or would have too much; name the first leg that adds to that."""
    is_short = line.available + net < 0 and not is_overdraft(line.account, state)
    if not is_short and line.available + line.freeze + net < UNITS_LIMIT:
        return
    place = next(place for place, (moved, _, units, _) in enumerate(moves) if moved is line and (units < 0) == is_short)
    field = f"legs[{place}].amount"
    raise insufficient(line, coin, -net, field) if is_short else too_large(line, field)


# --- the canonical request --------------------------------------------------------------------------


def post_request(operation: Post, subject: Legs) -> dict[str, Any]:
    """Return the canonical request of a post: in units if all its coins are known, else decimal text."""
    legs = []
    for leg, units in zip_longest(operation.legs, subject.units or ()):
        kept = {"customer": leg.customer, "account": leg.account, "coin": leg.coin}
        if units is None:
            kept["amount"] = normal_amount(leg.amount)
        else:
            kept["units"] = str(units)
        legs.append(kept)
    request: dict[str, Any] = {"format": REQUEST_FORMAT, "op": operation.kind, "legs": legs}
    if operation.reason is not None:
        request["reason"] = operation.reason
    if operation.reference is not None:
        request["reference"] = operation.reference
    return request


def differing_post_field(kept: Mapping[str, Any], operation: Post, scale_of: Callable[[str], int]) -> str | None:
    """Name the first field in which a post differs from the *kept* canonical request, or None."""
    if len(kept["legs"]) != len(operation.legs):
        return "legs"
    for place, (before, leg) in enumerate(zip(kept["legs"], operation.legs, strict=True)):
        for name, value in (("customer", leg.customer), ("account", leg.account), ("coin", leg.coin)):
            if before[name] != value:
                return f"legs[{place}].{name}"
        if not _is_same(before, leg.amount, scale_of):
            return f"legs[{place}].amount"
    for name in ("reason", "reference"):
        if kept.get(name) != getattr(operation, name):
            return name
    return None


def _is_same(kept: Mapping[str, Any], amount: str, scale_of: Callable[[str], int]) -> bool:
    if "units" not in kept:
        return bool(kept["amount"] == normal_amount(amount))
    try:
        return signed_units_of(amount, scale_of(kept["coin"])) == int(kept["units"])
    except InvalidAmount:
        return False
