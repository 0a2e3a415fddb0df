"""The answers about a statement, as structs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from spotledger.http.operator.answers import AmountText, Answer, Epoch, PositionText, ReadAnswer, Seq, TimeMs


class StatementBalanceAnswer(Answer):
    """The balance of one account and coin; what the customer owes has a row of its own, with the account ``owed``."""

    account: Annotated[str, Meta(description="``wallet``, ``spot``, ``fiat``, ``house`` or ``owed``.")]
    coin: str
    available: AmountText
    freeze: AmountText
    owes: AmountText


class StatementLineAnswer(Answer):
    """What one entry changed of one account and coin, and the balance after it."""

    seq: Seq
    epoch: Epoch
    booked_ms: TimeMs
    kind: str
    account: str
    coin: str
    available: AmountText
    freeze: AmountText
    owes: AmountText
    available_after: AmountText
    freeze_after: AmountText
    owes_after: AmountText
    reference: Annotated[str | None, Meta(description="The reference, or the reason of a reversal.")]
    key: str


class AccountStatementAnswer(ReadAnswer):
    """
    A page of the statement of a period: opening, lines, and closing.

    Opening and closing are those of the page, so that each page adds up: an opening balance and the changes of its
    lines are the closing balance. Without limit the page is the whole period, if that has at most 1,000 entries.
    """

    customer: str
    opening: list[StatementBalanceAnswer]
    lines: list[StatementLineAnswer]
    closing: list[StatementBalanceAnswer]
    next: Annotated[PositionText | None, Meta(description="The ``after_seq`` of the next page; null after the last.")]
