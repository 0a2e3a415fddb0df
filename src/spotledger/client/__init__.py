"""Clients of spotledger: the signed v1 API for traders, the operator API for the exchange's own systems."""

from __future__ import annotations

from spotledger.client.answers import Balance, Balances
from spotledger.client.operator import OperatorClient
from spotledger.client.signed import SignedRequestAPI
from spotledger.client.spot import AsyncSpotClient, SpotClient

__all__ = ["AsyncSpotClient", "Balance", "Balances", "OperatorClient", "SignedRequestAPI", "SpotClient"]
