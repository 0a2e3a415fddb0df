"""
What the demo's customers did: real operations under fixed idempotency keys, so a second start repeats nothing.

At its end alice has 3867.43650012 usdt available and 3062.17437341 in freeze.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from spotledger import paths
from spotledger.client.operator.api import OperatorClient
from spotledger.client.operator.operations import path_of

CUSTOMER: Final = "alice"
COINS: Final = {"btc": 8, "eth": 18, "forth": 8, "ltc": 8, "shib": 18, "usdt": 8}
CUSTOMERS: Final = ("alice", "bob", "carol")
#: The idempotency key of the first entry of every demo.
FIRST_KEY: Final = "demo-coin-btc"


class Step(NamedTuple):
    """One operation; *hold* names the step whose hold it uses."""

    key: str
    path: str
    body: dict[str, Any]
    hold: str | None = None


def _deposit(key: str, customer: str, coin: str, amount: str, account: str = "spot") -> Step:
    return Step(key, paths.DEPOSITS, {"customer": customer, "coin": coin, "amount": amount, "account": account})


def _freeze(key: str, customer: str, coin: str, amount: str, reference: str) -> Step:
    return Step(key, paths.HOLDS, {"customer": customer, "coin": coin, "amount": amount, "reference": reference})


def _unfreeze(key: str, hold: str, amount: str | None = None) -> Step:
    return Step(key, "release", {} if amount is None else {"amount": amount}, hold)


def _withdraw_hold(key: str, hold: str, amount: str) -> Step:
    return Step(key, paths.WITHDRAWALS, {"amount": amount}, hold)


def _transfer(key: str, source: tuple[str, str], target: tuple[str, str], coin: str, amount: str) -> Step:
    ends = {
        name: {"customer": customer, "account": account}
        for name, (customer, account) in (("from", source), ("to", target))
    }
    return Step(key, paths.TRANSFERS, {**ends, "coin": coin, "amount": amount})


STEPS: Final = (
    _deposit("demo-1", "alice", "usdt", "7500"),
    _freeze("demo-2", "alice", "usdt", "3100", "order-1001"),
    _unfreeze("demo-3", "demo-2", "37.82562659"),
    _freeze("demo-4", "alice", "usdt", "500", "order-1002"),
    _unfreeze("demo-5", "demo-4"),
    _freeze("demo-6", "alice", "usdt", "250.25", "withdrawal-77"),
    _withdraw_hold("demo-7", "demo-6", "250.25"),
    _transfer("demo-8", ("alice", "spot"), ("bob", "spot"), "usdt", "320.13912647"),
    _deposit("demo-9", "alice", "forth", "120.5"),
    _freeze("demo-10", "alice", "forth", "20.25", "order-1003"),
    _deposit("demo-11", "alice", "btc", "0.75", "wallet"),
    _transfer("demo-12", ("alice", "wallet"), ("alice", "spot"), "btc", "0.5"),
    _deposit("demo-13", "bob", "eth", "12.000000000000000001"),
    _freeze("demo-14", "bob", "eth", "1.5", "order-1004"),
    _deposit("demo-15", "carol", "shib", "589000000000000.123456789012345678"),
    _freeze("demo-16", "carol", "shib", "89000000000000.000000000000000001", "order-1005"),
    _transfer("demo-17", ("carol", "spot"), ("alice", "spot"), "shib", "1000000000000.5"),
)


async def tell(client: OperatorClient) -> int:
    """Book the story; return how many of its operations were new."""
    new = 0
    for coin, scale in COINS.items():
        new += await _once(client, paths.COINS, {"coin": coin, "scale": scale}, f"demo-coin-{coin}")
    for customer in CUSTOMERS:
        new += await _once(client, paths.CUSTOMERS, {"customer": customer}, f"demo-customer-{customer}")
    holds: dict[str, str] = {}
    for step in STEPS:
        path, body = step.path, dict(step.body)
        if step.hold is not None and path == "release":
            path = path_of(paths.HOLD_RELEASE, hold=holds[step.hold])
        elif step.hold is not None:
            body["hold"] = holds[step.hold]
        _, headers, answer = await client.call("POST", path, body, key=step.key)
        holds[step.key] = answer.get("hold", "")
        new += headers.get("idempotency-replayed") != "true"
    return new


async def _once(client: OperatorClient, path: str, body: dict[str, Any], key: str) -> int:
    _, headers, _ = await client.call("POST", path, body, key=key)
    return int(headers.get("idempotency-replayed") != "true")
