"""The bodies of settlements and reversals."""

from __future__ import annotations

from spotledger.domain.operations import CoinAmount, Operation, Reverse, Settle, SettleSide
from spotledger.http.operator.bodies import Body, hold_name
from spotledger.http.operator.fields import (
    AmountField,
    CoinField,
    HoldField,
    ReasonField,
    ReferenceField,
    ReleaseField,
    SeqField,
    TimeField,
)


class CoinAmountBody(Body):
    """An amount of a coin; zero means none."""

    coin: CoinField
    amount: AmountField

    def parsed(self) -> CoinAmount:
        """Return it as the operation has it."""
        return CoinAmount(self.coin, self.amount)


class SideBody(Body):
    """One side of a fill: the hold that pays, its fee, what else is released of the hold, and dust."""

    hold: HoldField
    fee: CoinAmountBody | None = None
    release: ReleaseField = None
    dust: CoinAmountBody | None = None

    def side(self, name: str) -> SettleSide:
        """Return the side, called *name* in messages."""
        return SettleSide(
            hold_name(self.hold, f"{name}.hold"),
            None if self.fee is None else self.fee.parsed(),
            self.release,
            None if self.dust is None else self.dust.parsed(),
        )


class SettlementBody(Body):
    """``POST /v1/settlements``: one fill; the buyer's hold is of the quote coin, the seller's of the base."""

    base: CoinField
    quote: CoinField
    base_amount: AmountField
    quote_amount: AmountField
    buyer: SideBody
    seller: SideBody
    reference: ReferenceField = None
    happened_ms: TimeField = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Settle(
            key,
            self.base,
            self.quote,
            self.base_amount,
            self.quote_amount,
            self.buyer.side("buyer"),
            self.seller.side("seller"),
            self.reference,
            self.happened_ms,
        )


class ReversalBody(Body):
    """``POST /v1/reversals``: undo the deposit, withdrawal, transfer or settlement of an entry, with a reason."""

    seq: SeqField
    reason: ReasonField

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Reverse(key, self.seq, self.reason)
