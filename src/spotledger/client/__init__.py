"""Clients of spotledger: the signed v1 API for traders, the operator API for the exchange's own systems."""

from __future__ import annotations

from spotledger.client.answers import Balance, Balances
from spotledger.client.async_operator_ledger import AsyncOperatorLedger
from spotledger.client.operator import OperatorClient
from spotledger.client.operator_ledger import OperatorLedger
from spotledger.client.signed import SignedRequestAPI
from spotledger.client.spot import AsyncSpotClient, SpotClient

__all__ = [
    "AsyncOperatorLedger",
    "AsyncSpotClient",
    "Balance",
    "Balances",
    "OperatorClient",
    "OperatorLedger",
    "SignedRequestAPI",
    "SpotClient",
]
