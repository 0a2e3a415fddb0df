"""What docs/owasp-api-top-10.md says and no other test shows: both applications, attacked as the list describes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from permissions.operator_rows import ROWS, Row
from permissions.world import World
from spotledger import paths
from spotledger.http.operator.calls import PAGE_LIMIT
from support_listener import Listener
from support_operator import Api, operator_api
from support_public import ALICE, KEY, Listening, Service, document, service, signed_query

#: What a caller might send to be taken for another customer.
OTHERS = (
    "customer",
    "customerId",
    "customer_id",
    "user",
    "userId",
    "uid",
    "subAccount",
    "accountId",
    "owner",
    "account",
)
#: What only the service sets, and what a program that binds bodies to its objects would take.
SET_BY_THE_SERVICE = ("actor", "booked_ms", "hash", "token", "secretkey", "revoked_ms", "last_used_ms", "is_admin", "$")
#: Headers that say which software answers, or let pages of other origins read the answer.
TELLING = ("server", "via", "x-powered-by", "access-control-allow-origin", "access-control-allow-credentials")
BODIES = [row for row in ROWS if row.body is not None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A ledger with something of everything in it."""
    with operator_api(tmp_path_factory.mktemp("owasp") / "data") as api:
        yield World(api)


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Service]:
    """A public listener whose limits are not in the way."""
    limits = dict.fromkeys(("asset_limit_per_second", "account_limit_per_second", "address_limit_per_minute"), 0)
    with service(tmp_path / "data", **limits) as made:
        yield made


def send(world: World, row: Row, change: Callable[[Any], Any]) -> int:
    """Send the call of *row* as an admin with its body changed, and return the status; it must change nothing."""
    assert row.body is not None
    body = change(row.body(world))
    path = row.path.format(**{name: make(world) for name, make in row.names.items()})
    before = world.state()
    told = world.call(row.method, path, world.api.headers(), body, row.query, world.fresh("owasp-"))
    assert world.state() == before or told.status < 300
    return told.status


@pytest.mark.parametrize("name", OTHERS)
def test_access_key_reads_its_own_customer_whoever_else_is_named(public: Service, name: str) -> None:
    """API1: a signed request that names another customer is about the customer of its access key, or refused."""
    public.ledger.deposit("bob", "usdt", "31337", key="deposit-of-bob")
    for path, more in ((paths.GET_BALANCE, {}), (paths.GET_FUNDS, {"account": "2"})):
        answer = public.ask(signed_query({name: "bob", **({} if name == "account" else more)}), path)
        assert b"31337" not in answer.body
        assert document(answer)["code"] != 200 or document(answer)["data"] == ALICE


def test_two_access_keys_in_one_request_are_refused(public: Service) -> None:
    """API1: nobody has to guess which of two access keys counts."""
    other = "99999999-2222-4333-8444-555555555555"
    public.add_key(other, "f" * 64, customer="bob")
    for first, second in ((KEY, other), (other, KEY)):
        assert public.code(f"accesskey={first}&{signed_query({'accesskey': second})}") == 400


@pytest.mark.parametrize("row", BODIES, ids=str)
def test_write_with_a_field_that_the_service_sets_is_refused(world: World, row: Row) -> None:
    """API3: a body has the documented fields and no other, so nothing can be set by the way."""
    for name in SET_BY_THE_SERVICE:
        assert send(world, row, lambda body, name=name: {**body, name: "x"}) == 422, name


def test_lists_of_credentials_show_nothing_secret(world: World) -> None:
    """API3: what is listed about access keys and tokens has neither secrets nor the digests that are stored."""
    made = [world.access_key()["secretkey"], world.token("ledger:read")["token"]]
    for path in (paths.ACCESS_KEYS, paths.TOKENS):
        text = world.call("GET", path, world.api.headers()).body
        assert not [secret for secret in made if secret in text]
        (rows,) = (value for value in json.loads(text).values() if isinstance(value, list))
        assert rows
        assert not {"secretkey", "sealed_secret", "secret", "digest", "token"} & set(rows[0])


def test_page_of_more_rows_than_its_limit_is_cut(world: World) -> None:
    """API4: whatever limit is asked for, a page has at most 1,000 rows."""
    deposit = {"op": "deposit", "customer": "alice", "coin": "usdt", "amount": "1"}
    for start in range(0, PAGE_LIMIT + 1, 500):
        operations = [{**deposit, "key": f"page-{start + number}"} for number in range(500)]
        assert world.api.post(paths.BATCHES, {"operations": operations}).status_code == 200
    for path in (paths.ENTRIES, "/v1/customers/alice/entries"):
        answer = world.api.get(path, limit=999_999)
        assert len(answer.json()["entries"]) == PAGE_LIMIT
    assert world.api.get(paths.ENTRIES, limit=0).status_code == 422


@pytest.mark.parametrize("row", BODIES, ids=str)
def test_no_call_reaches_out_to_an_address_that_it_is_given(world: World, row: Row) -> None:
    """API7: an address in every text of a body, in the query, the path and the headers: nobody connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.setblocking(False)
        host, port = bound.getsockname()
        url = f"http://{host}:{port}/reached"
        assert row.body is not None
        body = row.body(world)
        for path in (row.path.format(**{name: make(world) for name, make in row.names.items()}), f"/v1/{url}"):
            for content in (_with_texts(body, url), body):
                headers = world.api.headers() | {"Referer": url, "X-Forwarded-Host": f"{host}:{port}", "Callback": url}
                world.call(row.method, path, headers, content, f"url={url}&callback={url}", world.fresh("ssrf-"))
        with pytest.raises(BlockingIOError):
            bound.accept()


def _with_texts(body: Any, text: str) -> Any:
    """Return *body* with each of its texts replaced."""
    if isinstance(body, dict):
        return {name: _with_texts(value, text) for name, value in body.items()}
    if isinstance(body, list):
        return [_with_texts(value, text) for value in body]
    return text if isinstance(body, str) else body


def test_answers_of_the_operator_listener_tell_nothing_of_the_software(tmp_path: Path) -> None:
    """API8: successes and refusals over a socket: no store, no name of software, no other origin."""
    with operator_api(tmp_path / "data") as api, socket.create_server(("127.0.0.1", 0)) as bound:

        async def talk(listener: Listener) -> None:
            for row in ROWS:
                wire = await listener.connect()
                target = row.path.format(**dict.fromkeys(row.names, "x"))
                origin = ("Origin: https://elsewhere.example", "Content-Length: 0", "Connection: close")
                await wire.send(listener.head(row.method, target, *origin))
                _check_headers(await wire.head())
            wire = await listener.connect()
            await wire.send(b"nonsense\r\n\r\n")
            _check_headers(await wire.head())

        Listener(api, bound).run(talk)


def _check_headers(head: tuple[int, dict[str, str]]) -> None:
    status, headers = head
    named = {name.lower(): value for name, value in headers.items()}
    assert status >= 200
    assert not [name for name in TELLING if name in named]
    assert named["cache-control"] == "no-store"


def test_answers_of_the_public_listener_tell_nothing_of_the_software(public: Service) -> None:
    """API8: the same on the public listener."""
    with Listening(public) as listening:
        for path in [*public.app._calls, "/nothing"]:
            for method in ("GET", "OPTIONS", "TRACE"):
                status, headers, body = listening.get(path, "Origin: https://elsewhere.example\r\n", method)
                _check_headers((status, headers))
                assert b"elsewhere" not in body


def test_paths_take_the_documented_methods_and_no_other(world: World) -> None:
    """API9: nothing answers to a method that is not in the OpenAPI document and the permission table."""
    methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"}
    for route in world.api.app.routes:
        path = route.path.replace("{", "").replace("}", "")
        for method in methods - route.calls.keys():
            told = world.call(method, path, world.api.headers())
            assert (told.status, told.code) == (405, "" if method == "HEAD" else "method_not_allowed"), (method, path)


def test_listeners_do_not_answer_for_one_another(world: World, public: Service) -> None:
    """API9: no operator call is reachable on the public listener, and no signed call on the operator listener."""
    shared = {paths.HEALTHZ, paths.READYZ}
    token = [("Authorization", f"Bearer {world.api.token}")]
    for row in ROWS:
        if row.path not in shared:
            answer = public.ask("", row.path, headers=token, method="POST" if row.method == "DELETE" else row.method)
            assert document(answer)["info"].startswith("There is nothing at this path"), row.path
    for path in set(public.app._calls) - shared:
        assert world.call("GET", path, world.api.headers()).status == 404, path
    assert world.call("GET", paths.COINS, world.api.headers()).status == 200


def test_older_versions_of_paths_are_not_there(api_of_another: Api) -> None:
    """API9: there is one version of the operator API."""
    for version in ("", "/v0", "/v2", "/api/v1", "/internal", "/debug", "/admin"):
        answer = api_of_another.request("GET", f"{version}/coins", headers=api_of_another.headers())
        assert answer.status_code == 404


@pytest.fixture
def api_of_another(tmp_path: Path) -> Iterator[Api]:
    """An API over an empty ledger."""
    with operator_api(tmp_path / "data") as api:
        yield api
