"""
The paths of every API: the one table that the servers, the clients and the documents share.

A part in braces is a parameter.
"""

from __future__ import annotations

from typing import Final

# --- the operator API -------------------------------------------------------------------------------

OPERATOR_PREFIX: Final = "/v1"


def of_collection(name: str) -> str:
    """Return the path of the collection that takes the operations of one kind, such as ``deposits``."""
    return f"{OPERATOR_PREFIX}/{name}"


COINS: Final = "/v1/coins"
CUSTOMERS: Final = "/v1/customers"
HOUSE_ACCOUNTS: Final = "/v1/house-accounts"
CUSTOMER_BALANCES: Final = "/v1/customers/{customer}/balances"
CUSTOMER_HOLDS: Final = "/v1/customers/{customer}/holds"
CUSTOMER_ENTRIES: Final = "/v1/customers/{customer}/entries"
CUSTOMER_STATEMENT: Final = "/v1/customers/{customer}/statement"

HOLDS: Final = "/v1/holds"
HOLD: Final = "/v1/holds/{hold}"
HOLD_RELEASE: Final = "/v1/holds/{hold}/release"
BATCHES: Final = "/v1/batches"

ENTRIES: Final = "/v1/entries"
ENTRY: Final = "/v1/entries/{seq}"
TRIAL_BALANCE: Final = "/v1/trial-balance"
AUDITS: Final = "/v1/audits"
AUDIT: Final = "/v1/audits/{audit}"
CLOCK: Final = "/v1/clock"
CLOCK_TRUST: Final = "/v1/clock/trust"
BACKUPS: Final = "/v1/backups"
BACKUP: Final = "/v1/backups/{file}"

ACCESS_KEYS: Final = "/v1/keys"
ACCESS_KEY: Final = "/v1/keys/{accesskey}"
ACCESS_KEY_ROTATION: Final = "/v1/keys/{accesskey}/rotate"
MASTER_KEY: Final = "/v1/master-key"
MASTER_KEY_ROTATION: Final = "/v1/master-key/rotate"
TOKENS: Final = "/v1/tokens"
TOKEN: Final = "/v1/tokens/{token_id}"  # noqa: S105 - a path
LOCKS: Final = "/v1/locks"
LOCK: Final = "/v1/locks/{name}"
ACCESS_LOG: Final = "/v1/access-log"

#: Answered without a token, to a command that asks whether the service owns the data folder.
OWNER: Final = "/v1/owner"
METRICS: Final = "/metrics"
DOCS: Final = "/docs"
OPENAPI: Final = "/openapi.json"

# --- both listeners ---------------------------------------------------------------------------------

HEALTHZ: Final = "/healthz"
READYZ: Final = "/readyz"

# --- the public API ---------------------------------------------------------------------------------

READYZ_READS: Final = "/readyz/reads"

TRADER_PREFIX: Final = "/trade/api/v1"
GET_BALANCE: Final = "/trade/api/v1/getBalance"
GET_FUNDS: Final = "/trade/api/v1/getFunds"
GET_ACCOUNTS: Final = "/trade/api/v1/getAccounts"
GET_SERVER_TIME: Final = "/trade/api/v1/getServerTime"

#: What the paths of the newer API begin with.
V4_PREFIXES: Final = ("/v4/", "/future/")
V4_BALANCES: Final = "/v4/balances"
V4_TIME: Final = "/v4/public/time"
V4_SYMBOLS: Final = "/v4/public/symbol"
V4_CURRENCIES: Final = "/v4/public/currencies"
V4_CHAINS: Final = "/v4/public/wallet/support/currency"
V4_CONTRACTS: Final = "/future/market/v1/public/symbol/list"
