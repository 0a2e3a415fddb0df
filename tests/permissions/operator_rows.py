"""
The calls of the operator listener: what each needs, and a request that passes.

A new call needs a row here: ``test_every_call_of_the_operator_api_has_a_row`` collects the calls from the application.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from permissions.world import FILE, World
from spotledger import paths

#: What a call may need, besides a scope.
NO_TOKEN: Final = "no token"
READ: Final = "ledger:read"
WRITE: Final = "ledger:write"
CONTROL: Final = "ledger:control"
KEYS: Final = "keys:write"
METRICS: Final = "metrics:read"
ADMIN: Final = "admin"

#: A name of nothing, for each parameter of a path.
MISSING: Final = {
    "customer": "nobody",
    "hold": "999999",
    "seq": "999999",
    "audit": "0-0",
    "file": "missing.backup",
    "accesskey": "00000000-0000-4000-8000-000000000000",
    "name": "customer-nobody",
    "token_id": "00000000-0000-4000-8000-000000000000",
}

Make = Callable[[World], object]


@dataclass(frozen=True, slots=True)
class Row:
    """
    One call.

    Args:
        method: Its method; HEAD is tried with each GET.
        path: Its path.
        needs: The scope that lets a token in, besides ``admin``; or that it needs no token.
        names: What the parameters of its path name, made anew for each request.
        body: Its body, made anew for each request; None: it has none.
        query: Its query.
        keyed: Whether it needs an idempotency key.
        case: What is special about this request, if its method and path have several rows.
        headers: More headers.
        also: Scopes that it needs besides, because of what its body says.
        answers: The statuses of an answer to who is let in: that it was done, unless nobody can do it yet.
    """

    method: str
    path: str
    needs: str
    names: Mapping[str, Make] = field(default_factory=dict)
    body: Make | None = None
    query: str = ""
    keyed: bool = False
    case: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    answers: tuple[int, ...] = (200, 202)

    @property
    def scopes(self) -> set[str]:
        """The scopes that a token has to have, all of them, unless it has ``admin``."""
        return {self.needs, *self.also}

    def __str__(self) -> str:
        return f"{self.method} {self.path}" + (f" ({self.case})" if self.case else "")


def _get(path: str, needs: str, query: str = "", case: str = "", accept: str = "", **names: Make) -> Row:
    return Row("GET", path, needs, names, query=query, case=case, headers={"Accept": accept} if accept else {})


def _post(path: str, needs: str, body: Make, **names: Make) -> Row:
    return Row("POST", path, needs, names, body, keyed=True)


def _of_house(path: str, body: Make) -> Row:
    return Row("POST", path, WRITE, body=body, keyed=True, case="of a house account", also=(CONTROL,))


def _fill(world: World) -> object:
    return {
        "base": "btc",
        "quote": "usdt",
        "base_amount": "1",
        "quote_amount": "2",
        "buyer": {"hold": world.hold("alice", "usdt", "2")},
        "seller": {"hold": world.hold("bob", "btc", "1")},
    }


def _batch(world: World) -> object:
    operation = {"op": "deposit", "key": world.fresh("in-a-batch-"), "customer": "alice", "coin": "usdt", "amount": "1"}
    return {"operations": [operation]}


def _transfer(world: World) -> dict[str, object]:
    sides = {side: {"customer": "alice", "account": account} for side, account in (("from", "spot"), ("to", "wallet"))}
    return {**sides, "coin": "usdt", "amount": "1"}


def _money(world: World) -> dict[str, object]:
    return {"customer": "alice", "coin": "usdt", "amount": "1"}


def _legs(source: str, target: str) -> object:
    return {
        "legs": [{"customer": who, "coin": "usdt", "amount": units} for who, units in ((source, "-1"), (target, "1"))]
    }


def _same_master_key(world: World) -> object:
    """The master key that is in force already: nothing is sealed anew."""
    return {"fingerprint": world.api.get(paths.MASTER_KEY).json()["fingerprint"]}


def _alice(world: World) -> str:
    return "alice"


ROWS: Final = (
    # --- coins and customers ---
    _get(paths.COINS, READ),
    _post(paths.COINS, WRITE, lambda world: {"coin": world.fresh("coin"), "scale": 8}),
    _get(paths.CUSTOMERS, READ),
    _post(paths.CUSTOMERS, WRITE, lambda world: {"customer": world.fresh("customer")}),
    _get(paths.HOUSE_ACCOUNTS, READ),
    _post(paths.HOUSE_ACCOUNTS, CONTROL, lambda world: {"name": world.fresh("house")}),
    _get(paths.CUSTOMER_BALANCES, READ, customer=_alice),
    _get(paths.CUSTOMER_HOLDS, READ, customer=_alice),
    _get(paths.CUSTOMER_ENTRIES, READ, customer=_alice),
    _get(paths.CUSTOMER_STATEMENT, READ, customer=_alice),
    # --- money ---
    _post(paths.of_collection("deposits"), WRITE, _money),
    _post(paths.of_collection("withdrawals"), WRITE, _money),
    _post(paths.of_collection("transfers"), WRITE, _transfer),
    _of_house(paths.of_collection("withdrawals"), lambda world: _money(world) | {"customer": world.house()}),
    _of_house(paths.of_collection("transfers"), lambda world: _transfer(world) | {"from": {"customer": world.house()}}),
    _post(paths.of_collection("postings"), WRITE, lambda world: _legs("alice", world.house())),
    _of_house(paths.of_collection("postings"), lambda world: _legs(world.house(), "alice")),
    _post(paths.HOLDS, WRITE, _money),
    _of_house(paths.HOLDS, lambda world: _money(world) | {"customer": world.house()}),
    _get(paths.HOLDS, READ, "older_than_ms=0"),
    _get(paths.HOLD, READ, hold=World.hold),
    _post(paths.HOLD_RELEASE, WRITE, lambda world: {}, hold=World.hold),
    _post(paths.of_collection("releases"), WRITE, lambda world: {"hold": world.hold()}),
    _post(paths.of_collection("settlements"), WRITE, _fill),
    _post(paths.of_collection("reversals"), WRITE, lambda world: {"seq": world.deposit(), "reason": "sent twice"}),
    Row("POST", paths.BATCHES, WRITE, body=_batch),
    # --- the journal ---
    _get(paths.ENTRIES, READ),
    _get(paths.ENTRIES, READ, case="as a stream of events", accept="text/event-stream"),
    _get(paths.ENTRY, READ, seq=lambda world: "1"),
    _get(paths.TRIAL_BALANCE, READ),
    Row("POST", paths.AUDITS, ADMIN),
    _get(paths.AUDIT, READ, audit=lambda world: world.audit),
    # --- access keys and tokens ---
    _get(paths.ACCESS_KEYS, KEYS),
    _post(paths.ACCESS_KEYS, KEYS, lambda world: {"customer": "alice", "permissions": ["read"]}),
    Row("DELETE", paths.ACCESS_KEY, KEYS, {"accesskey": lambda world: world.access_key()["accesskey"]}),
    _post(paths.ACCESS_KEY_ROTATION, KEYS, lambda world: {}, accesskey=lambda world: world.access_key()["accesskey"]),
    _get(paths.TOKENS, ADMIN),
    _post(paths.TOKENS, ADMIN, lambda world: {"scopes": [READ]}),
    Row("DELETE", paths.TOKEN, ADMIN, {"token_id": lambda world: world.token(READ)["token_id"]}),
    # --- running it ---
    Row("POST", paths.BACKUPS, ADMIN, body=lambda world: {"file": world.fresh("made") + ".backup"}),
    _get(paths.BACKUP, ADMIN, file=lambda world: FILE),
    _get(paths.CLOCK, ADMIN),
    Row("POST", paths.CLOCK_TRUST, ADMIN),
    _get(paths.MASTER_KEY, ADMIN),
    Row("POST", paths.MASTER_KEY_ROTATION, ADMIN, body=_same_master_key),
    _get(paths.ACCESS_LOG, ADMIN),
    _get(paths.LOCKS, ADMIN),
    Row("DELETE", paths.LOCK, ADMIN, {"name": World.lock}),
    _get(paths.METRICS, METRICS),
    # --- open to all ---
    _get(paths.HEALTHZ, NO_TOKEN),
    _get(paths.READYZ, NO_TOKEN),
    _get(paths.OWNER, NO_TOKEN, "challenge=" + "0f" * 32),
    _get(paths.OPENAPI, NO_TOKEN),
    _get(paths.DOCS, NO_TOKEN),
)
