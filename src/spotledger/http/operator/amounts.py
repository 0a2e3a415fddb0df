"""Amounts as the operator API writes them: decimal text that can be sent back as it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from spotledger.domain.accounts import Coin
from spotledger.domain.amounts import MAX_SCALE, formatter

#: Texts that are remembered for each scale: an answer says most of its amounts more than once. More would be found more
#: rarely than it costs to keep them.
AMOUNT_TEXTS: Final = 32

#: Writes units of one coin as text.
Texts: TypeAlias = Callable[[int], str]


def _remembering(write: Texts) -> Texts:
    """Return *write*, which remembers what it wrote last."""
    written: dict[int, str] = {}
    find = written.get

    def remembered(units: int) -> str:
        text = find(units)
        if text is None:
            if len(written) >= AMOUNT_TEXTS:
                written.clear()
            text = written[units] = write(units)
        return text

    return remembered


#: By scale: two decimals at least, but never more than the coin has.
TEXTS: Final = tuple(_remembering(formatter(scale, min(2, scale))) for scale in range(MAX_SCALE + 1))


def amount_text(units: int, scale: int) -> str:
    """Write *units* with two decimals at least, but never more than the coin has."""
    return TEXTS[scale](units)


class CoinTexts(dict[str, Texts]):
    """What writes amounts, by the coin; *coins* returns the listed ones, of which none ever changes."""

    __slots__ = ("_coins",)

    def __init__(self, coins: Callable[[], Mapping[str, Coin]]) -> None:
        super().__init__()
        self._coins = coins

    def __missing__(self, coin: str) -> Texts:
        texts = self[coin] = TEXTS[self._coins()[coin].scale]
        return texts
