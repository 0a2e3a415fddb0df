"""
The operations of the demo. Their idempotency keys are fixed, so a second start books nothing again.

At the end alice has 3867.43650012 usdt available and 3062.17437341 in freeze.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from spotledger.client import AsyncOperatorLedger
from spotledger.client.operator.operations import (
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)

CUSTOMER: Final = "alice"
COINS: Final = {"btc": 8, "eth": 18, "forth": 8, "ltc": 8, "shib": 18, "usdt": 8}
CUSTOMERS: Final = ("alice", "bob", "carol")
#: The idempotency key of the first entry of every demo.
FIRST_KEY: Final = "demo-coin-btc"

STORY: Final[tuple[Operation, ...]] = (
    *(ListCoin(f"demo-coin-{coin}", coin, scale) for coin, scale in COINS.items()),
    *(RegisterCustomer(f"demo-customer-{customer}", customer) for customer in CUSTOMERS),
    Deposit("demo-1", "alice", "usdt", "7500"),
    Freeze("demo-2", "alice", "usdt", "3100", reference="order-1001"),
    Unfreeze("demo-3", HoldKey("demo-2"), "37.82562659"),
    Freeze("demo-4", "alice", "usdt", "500", reference="order-1002"),
    Unfreeze("demo-5", HoldKey("demo-4")),
    Freeze("demo-6", "alice", "usdt", "250.25", reference="withdrawal-77"),
    Withdraw("demo-7", "250.25", hold=HoldKey("demo-6")),
    Transfer("demo-8", "alice", "bob", "usdt", "320.13912647"),
    Deposit("demo-9", "alice", "forth", "120.5"),
    Freeze("demo-10", "alice", "forth", "20.25", reference="order-1003"),
    Deposit("demo-11", "alice", "btc", "0.75", "wallet"),
    Transfer("demo-12", "alice", "alice", "btc", "0.5", from_account="wallet"),
    Deposit("demo-13", "bob", "eth", "12.000000000000000001"),
    Freeze("demo-14", "bob", "eth", "1.5", reference="order-1004"),
    Deposit("demo-15", "carol", "shib", "589000000000000.123456789012345678"),
    Freeze("demo-16", "carol", "shib", "89000000000000.000000000000000001", reference="order-1005"),
    Transfer("demo-17", "carol", "alice", "shib", "1000000000000.5"),
)


async def tell(ledger: AsyncOperatorLedger) -> int:
    """Book the operations; return how many of them were new."""
    new = 0
    holds: dict[str, str] = {}
    for operation in STORY:
        if isinstance(operation, Unfreeze | Withdraw) and isinstance(operation.hold, HoldKey):
            # By its id, as in earlier versions: the hold's key would be other content under the same key.
            operation = replace(operation, hold=holds[operation.hold.key])
        written = await ledger.do(operation)
        holds[operation.key] = written.hold or ""
        new += not written.replayed
    return new
