"""One example of each body of the operator API, as the OpenAPI document and the page show it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from spotledger.http.operator.batches import BatchBody
from spotledger.http.operator.bodies import (
    CoinBody,
    CustomerBody,
    DepositBody,
    HoldBody,
    KeyBody,
    ReleaseBody,
    TokenBody,
    TransferBody,
    UnfreezeBody,
    WithdrawalBody,
)
from spotledger.http.operator.trades import ReversalBody, SettlementBody

_FILL: Final[dict[str, Any]] = {
    "base": "btc",
    "quote": "usdt",
    "base_amount": "0.5",
    "quote_amount": "32000",
    "buyer": {"hold": {"key": "order-7"}, "fee": {"coin": "btc", "amount": "0.0005"}, "release": "rest"},
    "seller": {"hold": {"key": "order-8"}, "fee": {"coin": "usdt", "amount": "32"}},
    "reference": "trade-1",
}

EXAMPLES: Final[dict[type[msgspec.Struct], dict[str, Any]]] = {
    CoinBody: {"coin": "btc", "scale": 8},
    CustomerBody: {"customer": "alice"},
    DepositBody: {"customer": "alice", "coin": "usdt", "amount": "40000", "reference": "incoming 0x5e…"},
    HoldBody: {"customer": "alice", "coin": "usdt", "amount": "33000", "reference": "order-7"},
    ReleaseBody: {"amount": "1000"},
    UnfreezeBody: {"hold": {"key": "order-7"}, "amount": "1000"},
    WithdrawalBody: {"customer": "alice", "coin": "usdt", "amount": "250.75"},
    TransferBody: {
        "from": {"customer": "alice", "account": "wallet"},
        "to": {"customer": "alice", "account": "spot"},
        "coin": "usdt",
        "amount": "100",
    },
    SettlementBody: _FILL,
    ReversalBody: {"seq": 12, "reason": "booked twice by the deposit watcher"},
    BatchBody: {
        "operations": [
            {
                "op": "freeze",
                "key": "order-7",
                "customer": "alice",
                "coin": "usdt",
                "amount": "33000",
                "chain": "trade-1",
            },
            {"op": "freeze", "key": "order-8", "customer": "bob", "coin": "btc", "amount": "0.5", "chain": "trade-1"},
            {"op": "settle", "key": "trade-1", "chain": "trade-1", **_FILL},
            {"op": "unfreeze", "key": "cancel-9", "hold": "4711"},
        ],
        "atomic": False,
    },
    KeyBody: {"customer": "alice", "permissions": ["read"], "label": "bot", "addresses": ["192.0.2.0/24"]},
    TokenBody: {"scopes": ["ledger:read", "ledger:write"], "label": "matching engine"},
}
