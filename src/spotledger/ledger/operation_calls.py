# Generated from domain/operations.py by tools/generate_operations.py (`make generate`). Do not edit.

"""One method for each operation; `Ledger` has them beside its other methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from spotledger.domain.fields import HoldName
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    Leg,
    ListCoin,
    OpenHouseAccount,
    Operation,
    Post,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.ledger.group import Receipt


class OperationCalls(ABC):
    """
    The methods that do one operation each; *key* is its idempotency key, and amounts are decimal text (``"100.50"``).

    They also raise IdempotencyConflict if *key* was used before with other content, and StoreUnavailable if the write
    failed and may be tried again with the same key. A refusal that is kept with the key is the answer to a repeat, too.
    With *not_after_ms* they raise TooLate after that time. In a *dry_run* they book nothing, and no key is used.
    """

    @abstractmethod
    def _do(self, operation: Operation, dry_run: bool = False) -> Receipt:
        """Do one operation, or in a *dry_run* only try it."""

    def list_coin(
        self, coin: str, scale: int, *, key: str, not_after_ms: int | None = None, dry_run: bool = False
    ) -> Receipt:
        """
        List a coin. A listing never changes.

        Raises:
            CoinAlreadyListed: It is listed.
        """
        return self._do(ListCoin(key, coin=coin, scale=scale, not_after_ms=not_after_ms), dry_run=dry_run)

    def register_customer(
        self, customer: str, *, key: str, not_after_ms: int | None = None, dry_run: bool = False
    ) -> Receipt:
        """
        Register a customer. The customer gets a wallet, a spot and a fiat account.

        Raises:
            CustomerAlreadyRegistered: They are registered.
        """
        return self._do(RegisterCustomer(key, customer=customer, not_after_ms=not_after_ms), dry_run=dry_run)

    def open_house_account(
        self,
        name: str,
        *,
        key: str,
        may_be_negative: bool = False,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Open a house account, such as `@treasury`: an account of the exchange itself. It stays open, and may have
        balances below zero only if *may_be_negative* says so.

        Everywhere else its name is written with `@`.

        Raises:
            HouseAccountReserved: The name is external or receivable.
            HouseAccountAlreadyOpen: It is open.
        """
        return self._do(
            OpenHouseAccount(key, name=name, may_be_negative=may_be_negative, not_after_ms=not_after_ms),
            dry_run=dry_run,
        )

    def deposit(
        self,
        customer: str,
        coin: str,
        amount: str,
        *,
        key: str,
        account: str | None = None,
        reference: str | None = None,
        happened_ms: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Book money that came in from outside, for a customer or a house account. What the customer owes is repaid first.

        Raises:
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        """
        return self._do(
            Deposit(
                key,
                customer=customer,
                coin=coin,
                amount=amount,
                account=account,
                reference=reference,
                happened_ms=happened_ms,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    def freeze(
        self,
        customer: str,
        coin: str,
        amount: str,
        *,
        key: str,
        account: str | None = None,
        reference: str | None = None,
        expires_ms: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Freeze what a customer or a house account has available, and open a hold for it. The answer has the hold's id.

        The hold expires at *expires_ms* if that is given.

        Raises:
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
        """
        return self._do(
            Freeze(
                key,
                customer=customer,
                coin=coin,
                amount=amount,
                account=account,
                reference=reference,
                expires_ms=expires_ms,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    def unfreeze(
        self,
        hold: HoldName | int,
        amount: str | None = None,
        *,
        key: str,
        customer: str | None = None,
        coin: str | None = None,
        epoch: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Release all or part of a hold. The hold is named by its id or by the key that opened it.

        Without *amount* all that remains of it is released. *customer*, *coin* and *epoch* are preconditions that the
        hold has to meet.

        Raises:
            EpochMissing, UnknownPosition, PreconditionFailed: *hold* is not in this journal, or not the one meant.
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownHold: Not kept: the key stays unused.
            HoldExpired, HoldClosed, HoldShort: Kept with the key.
        """
        return self._do(
            Unfreeze(
                key,
                hold=str(hold) if isinstance(hold, int) else hold,
                amount=amount,
                customer=customer,
                coin=coin,
                epoch=epoch,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    def withdraw(
        self,
        amount: str,
        *,
        key: str,
        customer: str | None = None,
        coin: str | None = None,
        account: str | None = None,
        hold: HoldName | int | None = None,
        reference: str | None = None,
        happened_ms: int | None = None,
        epoch: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Book money that went outside. It comes out of a hold, or directly out of what is available.

        Beside a hold, *customer*, *coin* and *epoch* are preconditions, and *account* is not given. Without one, the
        account is the customer's spot account unless it is given; a house account has none.

        Raises:
            EpochMissing, UnknownPosition, PreconditionFailed: *hold* is not in this journal, or not the one meant.
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, UnknownHold: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
            HoldExpired, HoldClosed, HoldShort: Kept with the key.
        """
        return self._do(
            Withdraw(
                key,
                amount=amount,
                customer=customer,
                coin=coin,
                account=account,
                hold=str(hold) if isinstance(hold, int) else hold,
                reference=reference,
                happened_ms=happened_ms,
                epoch=epoch,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    def transfer(
        self,
        from_customer: str,
        to_customer: str,
        coin: str,
        amount: str,
        *,
        key: str,
        from_account: str | None = None,
        to_account: str | None = None,
        reference: str | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Move available money to another account. It may belong to the same customer, to another, or to the house.

        Raises:
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
        """
        return self._do(
            Transfer(
                key,
                from_customer=from_customer,
                to_customer=to_customer,
                coin=coin,
                amount=amount,
                from_account=from_account,
                to_account=to_account,
                reference=reference,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    def post(
        self,
        legs: Sequence[Leg],
        *,
        key: str,
        reason: str | None = None,
        reference: str | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Post 2 to 1,000 legs between customers and house accounts as one entry, such as an airdrop, interest or a
        correction. They sum to zero for each coin, and an account is judged by what all legs together do to it.

        Raises:
            InvalidAmount: An amount is not a whole number of units of its coin.
            LegsUnbalanced: The legs do not sum to zero for a coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
        """
        return self._do(
            Post(key, legs=legs, reason=reason, reference=reference, not_after_ms=not_after_ms), dry_run=dry_run
        )

    def settle(
        self,
        base: str,
        quote: str,
        base_amount: str,
        quote_amount: str,
        buyer: SettleSide,
        seller: SettleSide,
        *,
        key: str,
        reference: str | None = None,
        happened_ms: int | None = None,
        fee_account: str | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Book one fill of a trade as one entry. Both holds pay, both fees go to @fees, and what is released goes back to
        available. The whole fill is refused if a hold is short, closed or of the wrong coin.

        The buyer pays *quote_amount* and receives *base_amount*, the seller the reverse. A negative fee is a rebate.
        *fee_account*, by default @fees, takes the fees of both sides and pays the rebates. The fill is refused if that
        account has too little for what the fill takes from it in all.

        Raises:
            EpochMissing, UnknownPosition, PreconditionFailed: A hold is not in this journal, or not the one meant.
            InvalidAmount, InvalidRequest: An amount, or the coin of a fee, dust or hold, does not fit the trade.
            UnknownCoin, UnknownHold, UnknownHouseAccount: Not kept: the key stays unused.
            BalanceTooLarge, FeesShort: Not kept either.
            HoldExpired, HoldClosed, HoldShort: Kept with the key.
        """
        return self._do(
            Settle(
                key,
                base=base,
                quote=quote,
                base_amount=base_amount,
                quote_amount=quote_amount,
                buyer=buyer,
                seller=seller,
                reference=reference,
                happened_ms=happened_ms,
                fee_account=fee_account,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    def reverse(
        self,
        seq: int | str,
        reason: str,
        *,
        key: str,
        customer: str | None = None,
        coin: str | None = None,
        epoch: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Receipt:
        """
        Reverse an earlier deposit, withdrawal, transfer, post or settlement. An entry can be reversed once, with a
        reason; what the customer no longer has is booked as owed.

        *seq* is a number, or the position as text; *customer*, *coin* and *epoch* are preconditions that the entry has
        to meet.

        Raises:
            EpochMissing, UnknownPosition, PreconditionFailed: *seq* is not in this journal, or not the entry meant.
            AlreadyReversed, InvalidRequest: The entry was reversed before, or is of a kind that cannot be.
            UnknownEntry, HouseShort, BalanceTooLarge: Not kept: the key stays unused.
        """
        return self._do(
            Reverse(key, seq=seq, reason=reason, customer=customer, coin=coin, epoch=epoch, not_after_ms=not_after_ms),
            dry_run=dry_run,
        )
