"""
The Python clients: the signed v1 API for traders, the operator API for the exchange's own systems.

Open ``trader/async_spot.py`` first, or ``operator/async_ledger.py``. ``transport.py`` sends what their cores decide.
"""

from __future__ import annotations

from spotledger.client.operator.async_ledger import AsyncOperatorLedger
from spotledger.client.operator.ledger import OperatorLedger
from spotledger.client.trader.answers import Balance, Balances
from spotledger.client.trader.async_spot import AsyncSpotClient
from spotledger.client.trader.signed import SignedRequestAPI
from spotledger.client.trader.spot import SpotClient

__all__ = [
    "AsyncOperatorLedger",
    "AsyncSpotClient",
    "Balance",
    "Balances",
    "OperatorLedger",
    "SignedRequestAPI",
    "SpotClient",
]
