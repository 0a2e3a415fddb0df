# Generated from domain/operations.py by tools/generate_operations.py (`make generate`). Do not edit.

"""One method for each operation, for asyncio; `AsyncOperatorLedger` has them beside its other calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from spotledger.client.operator.ledger_answers import Written
from spotledger.client.operator.operations import (
    Amount,
    Deposit,
    Freeze,
    HoldName,
    Leg,
    ListCoin,
    OpenHouseAccount,
    Operation,
    Position,
    Post,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)


class AsyncOperationCalls(ABC):
    """
    The calls that do one operation each; *key* is its idempotency key.

    With *not_after_ms* it is refused after that time (``TooLate``). In a *dry_run* nothing is booked, no key is used.
    They raise what :meth:`do` raises; the refusals that are named are those of the operation itself.
    """

    @abstractmethod
    async def do(self, operation: Operation, *, dry_run: bool = False) -> Written:
        """Do one operation, or in a *dry_run* only try it."""

    async def list_coin(
        self, coin: str, scale: int, *, key: str, not_after_ms: int | None = None, dry_run: bool = False
    ) -> Written:
        """
        List a coin. A listing never changes.

        Raises:
            CoinAlreadyListed: It is listed.
        """
        return await self.do(ListCoin(key, coin=coin, scale=scale, not_after_ms=not_after_ms), dry_run=dry_run)

    async def register_customer(
        self, customer: str, *, key: str, not_after_ms: int | None = None, dry_run: bool = False
    ) -> Written:
        """
        Register a customer. The customer gets a wallet, a spot and a fiat account.

        Raises:
            CustomerAlreadyRegistered: They are registered.
        """
        return await self.do(RegisterCustomer(key, customer=customer, not_after_ms=not_after_ms), dry_run=dry_run)

    async def open_house_account(
        self,
        name: str,
        *,
        key: str,
        may_be_negative: bool = False,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
        """
        Open a house account, such as `@treasury`: an account of the exchange itself. It stays open, and may have
        balances below zero only if *may_be_negative* says so.

        Everywhere else its name is written with `@`.

        Raises:
            HouseAccountReserved: The name is external or receivable.
            HouseAccountAlreadyOpen: It is open.
        """
        return await self.do(
            OpenHouseAccount(key, name=name, may_be_negative=may_be_negative, not_after_ms=not_after_ms),
            dry_run=dry_run,
        )

    async def deposit(
        self,
        customer: str,
        coin: str,
        amount: Amount,
        *,
        key: str,
        account: str | None = None,
        reference: str | None = None,
        happened_ms: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
        """
        Book money that came in from outside, for a customer or a house account. What the customer owes is repaid first.

        Raises:
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        """
        return await self.do(
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

    async def freeze(
        self,
        customer: str,
        coin: str,
        amount: Amount,
        *,
        key: str,
        account: str | None = None,
        reference: str | None = None,
        expires_ms: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
        """
        Freeze what a customer or a house account has available, and open a hold for it. The answer has the hold's id.

        The hold expires at *expires_ms* if that is given.

        Raises:
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
        """
        return await self.do(
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

    async def unfreeze(
        self,
        hold: HoldName,
        amount: Amount | None = None,
        *,
        key: str,
        customer: str | None = None,
        coin: str | None = None,
        epoch: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
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
        return await self.do(
            Unfreeze(
                key, hold=hold, amount=amount, customer=customer, coin=coin, epoch=epoch, not_after_ms=not_after_ms
            ),
            dry_run=dry_run,
        )

    async def withdraw(
        self,
        amount: Amount,
        *,
        key: str,
        customer: str | None = None,
        coin: str | None = None,
        account: str | None = None,
        hold: HoldName | None = None,
        reference: str | None = None,
        happened_ms: int | None = None,
        epoch: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
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
        return await self.do(
            Withdraw(
                key,
                amount=amount,
                customer=customer,
                coin=coin,
                account=account,
                hold=hold,
                reference=reference,
                happened_ms=happened_ms,
                epoch=epoch,
                not_after_ms=not_after_ms,
            ),
            dry_run=dry_run,
        )

    async def transfer(
        self,
        from_customer: str,
        to_customer: str,
        coin: str,
        amount: Amount,
        *,
        key: str,
        from_account: str | None = None,
        to_account: str | None = None,
        reference: str | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
        """
        Move available money to another account. It may belong to the same customer, to another, or to the house.

        Raises:
            InvalidAmount: *amount* is not a whole number of units of the coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
        """
        return await self.do(
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

    async def post(
        self,
        legs: Sequence[Leg],
        *,
        key: str,
        reason: str | None = None,
        reference: str | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
        """
        Post 2 to 1,000 legs between customers and house accounts as one entry, such as an airdrop, interest or a
        correction. They sum to zero for each coin, and an account is judged by what all legs together do to it.

        Raises:
            InvalidAmount: An amount is not a whole number of units of its coin.
            LegsUnbalanced: The legs do not sum to zero for a coin.
            UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
            InsufficientAvailable: Kept with the key, except that of a house account.
        """
        return await self.do(
            Post(key, legs=legs, reason=reason, reference=reference, not_after_ms=not_after_ms), dry_run=dry_run
        )

    async def settle(
        self,
        base: str,
        quote: str,
        base_amount: Amount,
        quote_amount: Amount,
        buyer: SettleSide,
        seller: SettleSide,
        *,
        key: str,
        reference: str | None = None,
        happened_ms: int | None = None,
        fee_account: str | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
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
        return await self.do(
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

    async def reverse(
        self,
        seq: Position,
        reason: str,
        *,
        key: str,
        customer: str | None = None,
        coin: str | None = None,
        epoch: int | None = None,
        not_after_ms: int | None = None,
        dry_run: bool = False,
    ) -> Written:
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
        return await self.do(
            Reverse(key, seq=seq, reason=reason, customer=customer, coin=coin, epoch=epoch, not_after_ms=not_after_ms),
            dry_run=dry_run,
        )
