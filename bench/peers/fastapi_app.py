"""
A signed getBalance as it is usually written with FastAPI: a dependency that checks the HMAC, pydantic models.

Balances and secrets are in memory, the limits, the replay memory and the ledger are left out, and the access log is
off: all of that is in favour of this version.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from pydantic import BaseModel


class CoinBalance(BaseModel):
    freeze: str
    available: str


class BalanceAnswer(BaseModel):
    code: int = 200
    data: dict[str, CoinBalance]
    info: str = "success"


STATE = json.loads(Path(os.environ["BENCH_STATE"]).read_text())
SECRETS: dict[str, str] = STATE["secrets"]
CUSTOMERS: dict[str, str] = STATE["customers"]
BALANCES: dict[str, dict[str, tuple[Decimal, Decimal]]] = {
    customer: {coin: (Decimal(each["freeze"]), Decimal(each["available"])) for coin, each in balances.items()}
    for customer, balances in STATE["balances"].items()
}

app = FastAPI()


async def calling_customer(
    request: Request,
    accesskey: Annotated[str, Query(min_length=1, max_length=64)],
    nonce: Annotated[int, Query(ge=10**12, lt=10**13)],
    signature: Annotated[str, Query(pattern="^[0-9a-fA-F]{64}$")],
) -> str:
    secret = SECRETS.get(accesskey)
    if secret is None:
        raise HTTPException(status_code=403, detail="unknown access key")
    pairs = sorted((name, value) for name, value in request.query_params.items() if name != "signature")
    text = "&".join(f"{name}={value}" for name, value in pairs)
    expected = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, signature.lower()):
        raise HTTPException(status_code=403, detail="wrong signature")
    now_ms = int(time.time() * 1000)
    if not now_ms - 30_000 <= nonce <= now_ms + 5_000:
        raise HTTPException(status_code=400, detail="nonce outside the window")
    return CUSTOMERS[accesskey]


@app.get("/trade/api/v1/getBalance")
async def get_balance(customer: Annotated[str, Depends(calling_customer)]) -> BalanceAnswer:
    return BalanceAnswer(
        data={
            coin: CoinBalance(freeze=f"{freeze:f}", available=f"{available:f}")
            for coin, (freeze, available) in BALANCES[customer].items()
        }
    )
