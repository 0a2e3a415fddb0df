"""A ledger in which everything exists that a call of the operator API can name, and fresh things to use up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx2

from spotledger.ops.kept_locks import KeptLock, _Place
from support_core import raw
from support_operator import Api

FILE = "there.backup"
#: Tables of ``keys.db`` that a refused call must not change, without when a credential was last used.
TABLES = ("access_keys", "operator_tokens", "kept_key_requests", "master_key_mark")
#: Headers that differ from answer to answer.
CHANGING_HEADERS = frozenset({"x-request-id"})


class Told(NamedTuple):
    """What a caller learns from an answer, without its request id."""

    status: int
    code: str
    headers: tuple[tuple[str, str], ...]
    body: str


class World:
    """One operator API with customers, money, holds, access keys, tokens, an audit and a backup."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._numbers = itertools.count(1)
        api.set_up()
        api.must("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1000000"})
        api.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "1000000"})
        self.audit = str(api.request("POST", "/v1/audits", headers=api.headers()).json()["audit"])
        made = api.request("POST", "/v1/backups", json={"file": FILE}, headers=api.headers())
        assert made.status_code == 200, made.text

    def fresh(self, prefix: str) -> str:
        """Return a name that was not used yet."""
        return f"{prefix}{next(self._numbers)}"

    def hold(self, customer: str = "alice", coin: str = "usdt", amount: str = "2") -> str:
        """Open a hold and return its id."""
        return str(self.api.must("/v1/holds", {"customer": customer, "coin": coin, "amount": amount})["hold"])

    def deposit(self) -> int:
        """Book a deposit and return its entry."""
        return int(self.api.must("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"})["seq"])

    def house(self) -> str:
        """Open a house account that has some money, and return its name."""
        name = self.fresh("paying")
        self.api.must("/v1/house-accounts", {"name": name})
        self.api.must("/v1/deposits", {"customer": f"@{name}", "coin": "usdt", "amount": "10"})
        return f"@{name}"

    def access_key(self, **fields: Any) -> dict[str, Any]:
        """Make an access key."""
        return self.api.must("/v1/keys", {"customer": "alice", "permissions": ["read"], **fields})

    def token(self, *scopes: str, **fields: Any) -> dict[str, Any]:
        """Make an operator token."""
        return self.api.must("/v1/tokens", {"scopes": list(scopes), **fields})

    def lock(self) -> str:
        """Have the traders' gate lock a customer, and return the name of the lock."""
        lock = KeptLock("customer", self.fresh("locked"), self.api.clock() + 60_000, "assets")
        self.api.runtime.locks._begun[_Place(lock.kind, lock.who)] = lock
        return lock.name

    def call(
        self, method: str, path: str, headers: Mapping[str, str], body: object = None, query: str = "", key: str = ""
    ) -> Told:
        """Make one call and return what it tells; of a stream of events only the beginning is awaited."""
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {**headers, "Idempotency-Key": key} if key else dict(headers)

        async def ask() -> Told:
            url = path + (f"?{query}" if query else "")
            async with self.api.http.stream(method, url, content=content, headers=named) as answer:
                streams = answer.headers.get("content-type", "").startswith("text/event-stream")
                return _told(answer, b"" if streams else await answer.aread())

        return self.api.run(ask())

    def state(self) -> dict[str, Any]:
        """Return all that a refused call could have changed: journal, credentials, backups, audits."""
        folder, ledger = self.api.runtime.settings.data, self.api.runtime.ledger
        with raw(folder, "keys.db") as keys:
            tables = {name: _rows(keys, name) for name in TABLES}
        return {
            "head": (ledger.head.seq, ledger.head.hash),
            "tables": tables,
            "backups": sorted(path.name for path in (folder / "backups").iterdir()),
            "audits": sorted(self.api.runtime.audits._audits),
        }


def _rows(keys: Any, table: str) -> list[dict[str, Any]]:
    names = [name for _, name, *_ in keys.execute(f"PRAGMA table_info({table})")]
    rows = [dict(zip(names, row, strict=True)) for row in keys.execute(f"SELECT * FROM {table}")]
    return [{name: value for name, value in row.items() if name != "last_used_ms"} for row in rows]


def _told(answer: httpx2.Response, body: bytes) -> Told:
    headers = tuple((name, value) for name, value in answer.headers.multi_items() if name not in CHANGING_HEADERS)
    code = ""
    if answer.headers.get("content-type") == "application/problem+json" and body:
        problem = json.loads(body)
        assert problem.pop("request_id") == answer.headers["x-request-id"]
        code, body = problem["code"], json.dumps(problem).encode()
    headers = tuple(pair for pair in headers if pair[0] != "content-length" or not code)
    return Told(answer.status_code, code, headers, body.decode())
