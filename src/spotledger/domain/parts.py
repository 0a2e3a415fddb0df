"""
The parts of operations that have fields of their own: a leg of a post, a side of a fill, and an amount of a coin.

Like operations, they are described by their fields alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

from spotledger.domain.fields import (
    COIN_AMOUNT,
    FEE,
    AccountKind,
    CoinName,
    Epoch,
    HoldName,
    OwnerId,
    Release,
    SignedAmount,
    check_of,
)


@dataclass(slots=True)
class Leg:
    """
    One leg of a post: what it adds to the available of an account, or takes from it.

    Args:
        amount: Decimal text, with a minus sign if it is taken.
        account: The customer's account, spot by default; a house account has none.
    """

    customer: OwnerId
    coin: CoinName
    amount: SignedAmount
    account: AccountKind | None = None

    def check(self, name: str) -> None:
        """Check the form of this leg; messages call it *name*."""
        _check_leg(self, f"{name}.")


_check_leg: Final = check_of(Leg)


class CoinAmount(NamedTuple):
    """An amount of a coin; zero means none. Only a fee may be negative: then it is a rebate."""

    coin: CoinName
    amount: SignedAmount

    def is_zero(self) -> bool:
        """Return whether the amount is zero."""
        return not self.amount.strip("0.")


@dataclass(slots=True)
class SettleSide:
    """
    One side of a fill: the hold that pays, with its preconditions, the fee, what else is released, and dust.

    Args:
        hold: The hold that pays: of the quote coin for the buyer, of the base coin for the seller.
        fee: The fee: in the coin received, out of what is received, or in the coin paid, out of the same hold. One that
            is negative is a rebate, which the fee account pays.
        release: What else of the hold goes back to available: decimal text, or ``"rest"`` for all that remains.
        dust: What goes to the house account ``@dust`` out of what is received.
        customer, coin, epoch: Preconditions that the hold has to meet; None: any.
    """

    hold: HoldName
    fee: Annotated[CoinAmount, FEE] | None = None
    release: Release | None = None
    dust: Annotated[CoinAmount, COIN_AMOUNT] | None = None
    customer: OwnerId | None = None
    coin: CoinName | None = None
    epoch: Epoch | None = None

    def check(self, name: str) -> None:
        """Check the form of this side; messages call it *name*."""
        _check_side(self, f"{name}.")


_check_side: Final = check_of(SettleSide)
