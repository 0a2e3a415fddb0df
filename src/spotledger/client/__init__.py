"""Clients of spotledger: the signed v1 API for traders, the operator API for the exchange's own systems."""

from __future__ import annotations

from spotledger.client.operator import OperatorClient

__all__ = ["OperatorClient"]
