"""Gates of several nodes over one Redis, and the signed requests that tests let in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from spotledger.security.fleet_gate import FleetGate
from spotledger.security.gate import GateSettings, SignedRequest
from support_public import KEY, NONCE, PEER, SECRET, Service, raw_text, sign


@asynccontextmanager
async def gates(made: Service, url: str, number: int = 1, **more: Any) -> AsyncIterator[list[FleetGate]]:
    """Start as many gates as nodes, over one Redis."""
    fields = {name: more.pop(name) for name in list(more) if name in GateSettings.__dataclass_fields__}
    told = {"when_down": "local", "timeout_ms": 2_000, **more}
    opened = [FleetGate(made.key_ring, GateSettings(**fields), url, **told) for _ in range(number)]
    for gate in opened:
        await gate.start()
    try:
        yield opened
    finally:
        for gate in opened:
            await gate.stop()


def signed(number: int = 0, secret: str = SECRET) -> SignedRequest:
    """Return a signed request; each number makes another one."""
    text = raw_text({"accesskey": KEY, "nonce": str(NONCE - number)})
    return SignedRequest(KEY, NONCE - number, bytes.fromhex(sign(text, secret)), (text.encode(),))


async def admit(gate: FleetGate, number: int = 0, connection: str = PEER, **more: Any) -> int:
    """Let one signed request in; return how many more fit."""
    request = signed(number, more.pop("secret", SECRET))
    limit = more.pop("limit", gate.asset_limit)
    return (await gate.admit(request, gate.peer(connection, list), "read", limit, NONCE, **more))[1]
