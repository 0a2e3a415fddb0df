"""The access log of a service with both listeners: each cause of a refusal has its own line, and nobody's secret."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotledger.http.h1.request import BadRequest, ClientDisconnected, Request
from spotledger.http.public.app import PublicApp, PublicSettings
from spotledger.security.access_log import SEVERAL
from spotledger.security.gate import Gate
from support_operator import Api, operator_api
from support_public import BALANCE, FUNDS, Headers, at_once, signed_query

PEER = "192.0.2.7:40000"
V6_PEER = "2001:db8:1:2:3:4:5:6:40000"


class Trading:
    """The listener of traders over the runtime of an operator API, as `serve` connects them."""

    def __init__(self, api: Api, **settings: Any) -> None:
        self.api = api
        runtime = api.runtime
        gate = Gate(runtime.key_ring, PublicSettings(**settings))
        self.app = PublicApp(
            runtime.ledger, runtime.key_ring, gate.settings, api.clock, gate=gate, access=runtime.access_log.counts
        )

    def key(self, **more: Any) -> tuple[str, str]:
        """Make an access key of alice, and return it with its secret."""
        made = self.api.must("/v1/keys", {"customer": "alice", "permissions": ["read"], "label": "bot", **more})
        return made["accesskey"], made["secretkey"]

    def get(self, query: str, path: str = BALANCE, peer: str = PEER, method: str = "GET", *headers: Any) -> int:
        """Send a request, and return the code of the answer."""
        answer = at_once(self.app.answer(method, path, query, Headers(*headers), peer, b""))
        return int(json.loads(answer.body).get("code", answer.status))

    def signed(self, accesskey: str, secret: str, **how: Any) -> str:
        """Return the query of a signed request."""
        nonce = how.pop("nonce", self.api.clock())
        return signed_query({"accesskey": accesskey, **how}, secret=secret, nonce=nonce)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with operator_api(tmp_path) as made:
        made.set_up()
        yield made


def lines_of(api: Api, **wanted: Any) -> list[dict[str, Any]]:
    """Return the lines of the log, but for those of reading it; a minute that ends in between makes no difference."""
    answer = api.get("/v1/access-log", **wanted)
    assert answer.status_code == 200, answer.text
    assert answer.json()["failure"] is None
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in answer.json()["lines"]:
        if line["call"] != "GET /v1/access-log":
            same = tuple(str(value) for name, value in line.items() if name not in ("time", "count"))
            found[same] = {**line, "count": line["count"] + found.get(same, {"count": 0})["count"]}
    return list(found.values())


def summary(lines: list[dict[str, Any]]) -> set[tuple[str, str, str | None, int]]:
    """Return actor (its kind, and the token's label), call, reason and count of *lines*."""
    return {(line["actor_label"] or line["actor"], line["call"], line["reason"], line["count"]) for line in lines}


def test_calls_of_one_minute_are_one_line_with_their_number(api: Api) -> None:
    """A matching engine's writes are summed; the line names the route, the token and its label, and that it passed."""
    for _ in range(20):
        api.must("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"})
    raw = [line for line in api.get("/v1/access-log").json()["lines"] if line["call"] == "POST /v1/deposits"]
    assert len(raw) <= 2, "in two minutes at most"
    assert sum(line["count"] for line in raw) == 1 + 20, "set_up makes one"
    for line in raw:
        assert line["actor"].startswith("token:")
        assert (line["actor_label"], line["outcome"], line["reason"]) == ("operator.token", "allowed", None)
        assert line["address"] == "local"
        assert 0 <= time.time() * 1000 - line["time"] < 180_000
        assert line["time"] % 60_000 == 0


def test_causes_of_a_refused_token_are_told_apart(api: Api) -> None:
    """The answers are the same 401; the log says which token it was, if it is one, and what is wrong with it."""

    def made(label: str, **more: Any) -> str:
        body = {"scopes": ["ledger:read"], "label": label, **more}
        return str(api.must("/v1/tokens", body)["token"])

    def ask(token: str | None, path: str = "/v1/coins", method: str = "GET") -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return api.request(method, path, headers=headers).status_code

    expiring = made("expiring", expires_ms=api.clock() + 60_000)
    bound = made("bound", addresses=["203.0.113.0/24"])
    revoked = made("revoked")
    (token_id,) = [t["token_id"] for t in api.get("/v1/tokens").json()["tokens"] if t["label"] == "revoked"]
    assert api.delete(f"/v1/tokens/{token_id}").status_code == 200
    reader = made("reader")
    api.clock.ahead_ms += 61_000
    stranger = secrets.token_hex(32)
    assert [ask(token) for token in (None, stranger, expiring, revoked, bound)] == [401] * 5
    assert ask(reader) == 200
    assert ask(reader, "/v1/keys") == 403
    assert ask(reader, "/v1/nothing/here") == 404
    assert ask(reader, "/v1/coins", "PATCH") == 405
    assert ask(None, "/metrics") == 401
    found = summary([line for line in lines_of(api) if line["actor_label"] != "operator.token"])
    assert found == {
        ("", "GET /v1/coins", "token_missing", 1),
        ("", "GET /metrics", "token_missing", 1),
        ("", "GET /v1/coins", "token_unknown", 1),
        ("expiring", "GET /v1/coins", "token_expired", 1),
        ("revoked", "GET /v1/coins", "token_revoked", 1),
        ("bound", "GET /v1/coins", "token_address", 1),
        ("reader", "GET /v1/coins", None, 1),
        ("reader", "GET /v1/keys", "scope_missing", 1),
        ("reader", "GET other", "not_found", 1),
        ("reader", "PATCH /v1/coins", "method_not_allowed", 1),
    }


def test_refusal_by_the_ledger_is_a_line_with_its_code(api: Api) -> None:
    """What a known credential asked for and did not get is told with the code of the answer."""
    body = {"customer": "alice", "coin": "usdt", "amount": "1000000"}
    assert api.post("/v1/withdrawals", body).status_code == 422
    assert api.post("/v1/withdrawals", b"{").status_code == 400
    found = summary([line for line in lines_of(api) if line["outcome"] == "refused"])
    assert found == {
        ("operator.token", "POST /v1/withdrawals", "insufficient_available", 1),
        ("operator.token", "POST /v1/withdrawals", "malformed_request", 1),
    }


def test_causes_of_a_refused_trader_are_told_apart(api: Api) -> None:
    """The traders' listener says which access key was named if it is one; passing reads are summed."""
    trading = Trading(api, asset_limit_per_second=0, account_limit_per_second=1, lock_seconds=0)
    good, secret = trading.key()
    bound, bound_secret = trading.key(label="bound", addresses=["203.0.113.9"])
    short, short_secret = trading.key(label="short", expires_ms=api.clock() + 30_000)
    gone, gone_secret = trading.key(label="gone")
    trader, trader_secret = trading.key(label="trade only", permissions=["trade"])
    api.delete(f"/v1/keys/{gone}")
    api.clock.ahead_ms += 31_000
    old = trading.signed(good, secret, nonce=api.clock() - 5)
    for _ in range(3):
        assert trading.get(trading.signed(good, secret)) == 200
    assert trading.get(trading.signed(good, secret, account="1"), FUNDS) == 200
    codes = [
        trading.get(trading.signed(good, "0" * 64)),
        trading.get(trading.signed(good, secret, nonce=api.clock() - 600_000)),
        trading.get(old, peer="198.51.100.1:1"),
        trading.get(old, peer="198.51.100.2:1"),
        trading.get(trading.signed(bound, bound_secret)),
        trading.get(trading.signed(short, short_secret)),
        trading.get(trading.signed(gone, gone_secret)),
        trading.get(trading.signed(trader, trader_secret)),
        trading.get(trading.signed("11111111-2222-4333-8444-555555555555", secret)),
        trading.get("accesskey=" + secret),
        trading.get("", "/nothing/here"),
        trading.get("", BALANCE, PEER, "DELETE"),
    ]
    assert [code == 200 for code in codes] == [False] * 2 + [True] + [False] * 9
    accounts = [trading.get(trading.signed(good, secret), "/trade/api/v1/getAccounts/") for _ in range(2)]
    assert accounts[0] == 200 != accounts[1]
    lines = [line for line in lines_of(api) if not line["actor"].startswith("token:")]
    assert {line["actor"] for line in lines} - {""} == {f"key:{k[:8]}" for k in (good, bound, short, gone, trader)}
    assert summary(lines) == {
        ("bot", "getBalance", None, 3),
        ("bot", "getFunds", None, 1),
        ("bot", "getBalance", "signature_refused", 1),
        ("bot", "getBalance", "nonce_refused", 1),
        ("bot", "getBalance", None, 1),  # from the other address
        ("bot", "getBalance", "replay_refused", 1),
        ("bound", "getBalance", "address_not_allowed", 1),
        ("short", "getBalance", "access_key_expired", 1),
        ("gone", "getBalance", "access_key_revoked", 1),
        ("trade only", "getBalance", "permission_missing", 1),
        ("", "getBalance", "access_key_unknown", 1),
        ("", "getBalance", "malformed_request", 1),
        ("", "other", "not_found", 1),
        ("", "getBalance", "method_not_allowed", 1),
        ("bot", "getAccounts", None, 1),
        ("bot", "getAccounts", "limit_exceeded", 1),
    }


def test_address_that_is_locked_out_names_no_key(api: Api) -> None:
    """The limit of an address is looked at before any key, so nobody can have a key of another in these lines."""
    trading = Trading(api, address_limit_per_minute=2, lock_seconds=60)
    accesskey, secret = trading.key()
    codes = [trading.get(trading.signed(accesskey, secret)) for _ in range(4)]
    assert codes[:2] == [200, 200] != codes[2:]
    lines = [line for line in lines_of(api) if line["reason"] == "limit_exceeded"]
    assert [(line["actor"], line["count"], line["address"]) for line in lines] == [("", 2, "192.0.2.7")]


def test_ipv6_addresses_of_one_customer_are_one_address(api: Api) -> None:
    """All of a /64 is one line, and any address of it finds the line."""
    trading = Trading(api)
    for number in range(5):
        trading.get("", peer=f"[2001:db8:1:2::{number:x}]:4000")
    (line,) = [line for line in lines_of(api) if line["call"] == "getBalance"]
    assert (line["address"], line["count"]) == ("2001:db8:1:2::/64", 5)
    for address in ("2001:db8:1:2::/64", "2001:db8:1:2:9::7", "2001:DB8:1:2::1"):
        assert lines_of(api, address=address) == [line]
    assert lines_of(api, address="2001:db8:1:3::1") == []


def test_operator_behind_a_proxy_is_at_the_forwarded_address_and_nobody_else_forges_one(tmp_path: Path) -> None:
    """The trusted proxy says where a call comes from; what another peer forwards is not believed."""
    with operator_api(tmp_path, trusted_proxies=("10.0.0.5",)) as made:
        for peer in ("10.0.0.5:1", "192.0.2.9:1"):
            for forwarded in (b"203.0.113.9", b"198.51.100.1, 203.0.113.9", b"2001:db8:7::1"):
                asked = Request("GET", "/v1/coins", "", [(b"x-forwarded-for", forwarded)])
                asked.peer = peer
                assert made.run(made.app.answer(asked)).status == 401
        made.app.refusal(BadRequest("no request"), "[2001:db8:9::1]:5")
        found = {(line["address"], line["call"], line["count"]) for line in lines_of(made)}
    assert found == {
        ("203.0.113.9", "GET /v1/coins", 2),
        ("2001:db8:7::/64", "GET /v1/coins", 1),
        ("192.0.2.9", "GET /v1/coins", 3),
        ("2001:db8:9::/64", "other", 1),
    }


def test_client_that_disconnects_in_the_middle_of_its_body_is_named(api: Api) -> None:
    """Nothing was done for it, and its credential was used: the line says both."""

    class Gone:
        async def read(self, limit: int) -> bytes:
            raise ClientDisconnected

    headers = [(name.lower().encode(), value.encode()) for name, value in api.headers("k").items()]
    with pytest.raises(ClientDisconnected):
        api.run(api.app.answer(Request("POST", "/v1/deposits", "", headers, Gone())))
    (line,) = [line for line in lines_of(api) if line["reason"]]
    assert (line["actor_label"], line["reason"]) == ("operator.token", "client_disconnected")


def test_filters_and_pages_of_the_call(api: Api) -> None:
    """Actor, address and time choose lines; pages go on where the one before ended; wrong values are named."""
    trading = Trading(api, asset_limit_per_second=0)
    accesskey, secret = trading.key()
    for number in range(6):
        trading.get(trading.signed(accesskey, secret), peer=f"198.51.100.{number}:1")
    trading.get("", peer="198.51.100.3:1")
    mine = lines_of(api, actor=f"key:{accesskey[:8]}")
    assert len(mine) == 6
    assert lines_of(api, actor=f"key:{accesskey}") == mine, "a whole key is cut to what the log has"
    at_three = lines_of(api, address="198.51.100.3")
    assert {line["actor"] for line in at_three} == {"", f"key:{accesskey[:8]}"}
    assert [line["actor"] for line in lines_of(api, address="198.51.100.3", actor="")] == [""]
    now_ms = api.clock()
    assert len(lines_of(api, actor=f"key:{accesskey}", from_ms=now_ms - 60_000)) == 6
    assert lines_of(api, actor=f"key:{accesskey}", from_ms=now_ms + 60_000) == []
    assert lines_of(api, actor=f"key:{accesskey}", to_ms=mine[0]["time"]) == []
    found, after, pages = [], "0", 0
    while after is not None:
        page = api.get("/v1/access-log", actor=f"key:{accesskey}", after=after, limit=2).json()
        found += page["lines"]
        after, pages = page["next"], pages + 1
    assert found == mine
    assert pages == 4
    wrong = {"actor": "x=1", "address": "nowhere", "from_ms": "-1", "to_ms": "now", "after": "x", "limit": "0"}
    for name, value in [*wrong.items(), ("address", "2001:db8::/48"), ("customer", "alice"), ("to_ms", "1700000000")]:
        answer = api.get("/v1/access-log", **{name: value})
        assert (answer.status_code, answer.json()["field"]) == (422, name)


def test_actor_that_cannot_be_in_the_log_is_refused(api: Api) -> None:
    """A misspelt actor is refused and named, so that no line found does not read as nothing done."""
    for actor in ("libary", "token:", "TOKEN:1", "11111111"):
        answer = api.get("/v1/access-log", actor=actor)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(f"actor is '{actor}'; ")
    for actor in ("library", "*", "", "token:1", "key:11111111"):
        assert api.get("/v1/access-log", actor=actor).status_code == 200


def test_refusal_of_a_call_that_is_open_to_all_is_noted(api: Api) -> None:
    """What needs no credential is noted only if it was refused: another method, or no challenge."""
    for method, path in (("GET", "/healthz"), ("DELETE", "/healthz"), ("GET", "/v1/owner?challenge=none")):
        api.request(method, path)
    found = [(line["actor"], line["call"], line["reason"]) for line in lines_of(api) if line["reason"]]
    assert found == [("", "DELETE /healthz", "method_not_allowed"), ("", "GET /v1/owner", "invalid_request")]


def test_only_admin_reads_the_log(api: Api) -> None:
    """Who used what from where is for the admin; nobody can change or remove a line."""
    for scope in ("ledger:read", "ledger:write", "keys:write", "metrics:read"):
        token = api.must("/v1/tokens", {"scopes": [scope]})["token"]
        answer = api.request("GET", "/v1/access-log", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert api.request(method, "/v1/access-log", headers=api.headers("k")).status_code == 405


def test_secrets_that_strangers_send_in_odd_places_are_not_in_the_log(api: Api, tmp_path: Path) -> None:
    """A token in a path, a secret as the access key, a name in a method: nothing of it comes into a line."""
    canary = secrets.token_hex(32)
    trading = Trading(api)
    api.request("GET", f"/v1/{canary}")
    api.request("GET", f"/v1/keys/{canary}", headers={"Authorization": f"Bearer {canary}"})
    api.request(canary.upper(), "/v1/coins", headers={"Authorization": f"Basic {canary}"})
    api.request("GET", f"/v1/coins?token={canary}", headers=api.headers())
    api.request("DELETE", f"/v1/keys/{canary}", headers=api.headers())
    for query in (f"accesskey={canary}", f"accesskey={canary[:36]}&nonce=1&signature={canary}", canary):
        trading.get(query)
        trading.get(trading.signed(canary, canary))
        trading.get("", f"/{canary}")
        trading.get(query, BALANCE, PEER, canary.upper())
    text = api.get("/v1/access-log").text
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("access-log.db*"))
    for part in (canary, canary.upper(), canary[:36], canary[:8]):
        assert part not in text
        assert part.encode() not in stored
    assert b"DELETE /v1/keys/{accesskey}" in stored, "what is looked for would be found"


def test_flood_of_refusals_is_capped_and_honest_lines_stay(api: Api) -> None:
    """Ten thousand different refusals leave twenty lines of their address and one sum; an honest read keeps its own."""
    trading = Trading(api, address_limit_per_minute=0)
    accesskey, secret = trading.key()
    paths = [BALANCE, FUNDS, "/v4/balances", "/nothing", "/trade/api/v1/getAccounts", "/v4/public/time"]
    for number in range(600):
        for path in paths:
            for method in ("GET", "PATCH"):
                trading.get(f"accesskey={number}", path, f"198.51.100.{number % 2}:1", method)
    trading.get(trading.signed(accesskey, secret))
    lines = [line for line in lines_of(api) if not line["actor"].startswith("token:")]
    assert [line["count"] for line in lines if line["actor"]] == [1]
    for address in ("198.51.100.0", "198.51.100.1"):
        assert 0 < len([line for line in lines if line["address"] == address]) <= 2 * 21  # in two minutes at most
    assert sum(line["count"] for line in lines if not line["actor"]) == 600 * 11, "the time is for everybody"


def test_many_addresses_are_capped_too(api: Api) -> None:
    """Addresses without end share one line once the lines of a minute are taken."""
    trading = Trading(api, address_limit_per_minute=0)
    for number in range(5_000):
        trading.get("", "/nothing", f"198.{number // 65536 + 18}.{number // 256 % 256}.{number % 256}:1")
    found = lines_of(api, address=SEVERAL)
    assert sum(line["count"] for line in found) >= 5_000 - 2 * 2_000
    assert {line["reason"] for line in found} == {"left_out"}


def test_metrics_show_lines_failures_and_drops(api: Api, tmp_path: Path) -> None:
    """An operator sees that the log is written, and is alarmed if it is not; calls go on meanwhile."""

    def metric(name: str) -> float:
        text = api.get("/metrics").text
        (value,) = [line.split()[1] for line in text.splitlines() if line.startswith(f"spotledger_{name} ")]
        return float(value)

    lines_of(api)
    assert metric("access_log_writable") == 1
    assert metric("access_log_lines_total") >= 4
    for file in tmp_path.glob("access-log.db*"):
        file.rename(tmp_path / f"away-{file.name}")
    (tmp_path / "access-log.db").mkdir()
    api.run(api.runtime.access_log.flush())
    assert (metric("access_log_writable"), metric("access_log_dropped_total")) == (0, 0)
    assert metric("access_log_failures_total") >= 1
    answer = api.get("/v1/access-log")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    api.must("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"})
    (tmp_path / "access-log.db").rmdir()
    assert "POST /v1/deposits" in {line["call"] for line in lines_of(api)}, "what happened meanwhile was kept"
    assert metric("access_log_writable") == 1


def test_reads_of_the_log_do_not_hold_up_the_event_loop(api: Api) -> None:
    """Writing and reading the log happen beside the loop, which goes on while another process has the file locked."""
    import apsw

    lines_of(api)
    connection = apsw.Connection(str(api.runtime.settings.data / "access-log.db"))
    connection.execute("BEGIN IMMEDIATE")

    async def both() -> int:
        turns = 0
        reading = asyncio.ensure_future(api.http.get("/v1/access-log", headers=api.headers()))
        while not reading.done():
            await asyncio.sleep(0.001)
            turns += 1
            if turns == 100:
                connection.execute("ROLLBACK")
        assert reading.result().status_code == 200
        return turns

    assert api.run(both()) >= 100
    connection.close()
