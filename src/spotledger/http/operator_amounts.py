"""Amounts as the operator API writes them: decimal text that can be sent back as it came, each written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from spotledger.domain.accounts import Coin
from spotledger.domain.amounts import MAX_SCALE, format_amount

#: Texts that are remembered for each scale: the answer to a write says most of its amounts more than once.
AMOUNT_TEXTS: Final = 256


class AmountTexts(dict[int, str]):
    """
    The texts of amounts of coins with *scale* decimals, by their units.

    They have two decimals at least, but never more than the coin has. Those asked for lately are remembered.
    """

    __slots__ = ("_least_decimals", "_scale")

    def __init__(self, scale: int) -> None:
        super().__init__()
        self._scale = scale
        self._least_decimals = min(2, scale)

    def __missing__(self, units: int) -> str:
        if len(self) >= AMOUNT_TEXTS:
            self.clear()
        if units < 0:
            text = self[units] = "-" + self[-units]
        else:
            text = self[units] = format_amount(units, self._scale, self._least_decimals)
        return text


#: By scale.
TEXTS: Final = tuple(AmountTexts(scale) for scale in range(MAX_SCALE + 1))


def amount_text(units: int, scale: int) -> str:
    """Write *units* with two decimals at least, but never more than the coin has."""
    return TEXTS[scale][units]


class CoinTexts(dict[str, AmountTexts]):
    """The texts of amounts by the coin; *coins* returns the listed ones, of which none ever changes."""

    __slots__ = ("_coins",)

    def __init__(self, coins: Callable[[], Mapping[str, Coin]]) -> None:
        super().__init__()
        self._coins = coins

    def __missing__(self, coin: str) -> AmountTexts:
        texts = self[coin] = TEXTS[self._coins()[coin].scale]
        return texts
