"""The typed clients of the operator API can make every call of it, with all that a call takes and says."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from spotledger.audit.findings import Finding
from spotledger.audit.report import Report
from spotledger.client import AsyncOperatorLedger, OperatorLedger
from spotledger.client.operator import key_answers, ledger_answers, operations as client, service_answers
from spotledger.client.operator.operations import CoinAmount, HoldKey, Leg, Operation, SettleSide
from spotledger.domain import fields as forms, operations as domain
from spotledger.domain.fields import Form, fields_of
from spotledger.errors import ProtocolError, TransportError
from spotledger.http.operator.openapi import document
from support_operator import operator_api

#: Routes that no method calls, and why.
APART = {
    ("GET", "/healthz"): "for who supervises the process",
    ("GET", "/metrics"): "for Prometheus, in its own form",
    ("POST", "/v1/holds/{hold}/release"): "POST /v1/releases does the same, and takes holds by their keys too",
}

SIDE = SettleSide(HoldKey("h"), CoinAmount("btc", "1"), "rest", CoinAmount("btc", "1"), "a", "btc", 1)
#: What each operation is given: a value in every field, as the description of its form has it, or as the client has it.
LEGS = [Leg("a", "usdt", "-1.5", "wallet"), Leg("b", "usdt", "1.5")]
VALUES: dict[Form, Any] = {forms.HOLD: HoldKey("h"), forms.SIDE: SIDE, forms.LEGS: LEGS}
GIVEN: dict[str, dict[str, Any]] = {
    kind.kind: {field.name: VALUES.get(field.form, field.form.example) for field in fields_of(kind)}
    for kind in domain.OPERATIONS
}
PAGE = {"after": "x", "limit": 1}
PERIOD = {"from_ms": 1, "to_ms": 2}
FOUND_BY = {**PERIOD, "coin": "usdt", "after_seq": 1, "limit": 1, "min_seq": 1}
OPERATIONS: list[Operation] = [
    getattr(client, kind.__name__)(**GIVEN[kind.kind]) for kind in domain.OPERATIONS if kind.in_batch
]
#: Each method of the clients, with all the arguments that it takes.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "do": ((OPERATIONS[0],), {"dry_run": True}),
    **{name: ((), {**given, "dry_run": True}) for name, given in GIVEN.items()},
    "execute": ((OPERATIONS,), {"chains": ["c"] * len(OPERATIONS), "atomic": True, "dry_run": True}),
    "coins": ((), {"min_seq": 1}),
    "customers": ((), {**PAGE, "min_seq": 1}),
    "house_accounts": ((), {"min_seq": 1}),
    "balances": (("a", "spot"), {"at_seq": 1, "at_ms": 1, "min_seq": 1}),
    "hold": (("1",), {"min_seq": 1}),
    "holds": (("a", "open"), {**PAGE, "older_than_ms": 1, "min_seq": 1}),
    "old_holds": ((1,), {**PAGE, "min_seq": 1}),
    "statement": (("a", "usdt", 1, 1), {"min_seq": 1}),
    "entry": ((1,), {"min_seq": 1}),
    "reversal_of": ((1,), {"min_seq": 1}),
    "entries": ((1, 1), {"actor": "ledger", "min_seq": 1}),
    "trial_balance": ((), {"at_seq": 1, "at_ms": 1, "min_seq": 1}),
    "find": ((), {**FOUND_BY, "key": "k", "reference": "r", "customer": "a", "kind": "deposit", "actor": "ledger"}),
    "account_statement": (("a",), {**FOUND_BY, "account": "spot"}),
    "statement_csv": (("a",), {**PERIOD, "coin": "usdt", "account": "spot", "bom": True}),
    "keys": (("a",), PAGE),
    "create_key": (("a", ["read"], "bot", ["192.0.2.0/24"], 1), {"key": "k"}),
    "rotate_key": (("x",), {"key": "k"}),
    "revoke_key": (("x",), {}),
    "tokens": ((), PAGE),
    "create_token": ((["admin"], "engine", ["192.0.2.0/24"], 1), {"key": "k"}),
    "revoke_token": (("x",), {}),
    "ready": ((), {}),
    "access_log": (("key:11111111", "192.0.2.7", 1, 2, "3", 4), {}),
    "clock": ((), {}),
    "trust_clock": ((), {}),
    "master_key": ((), {}),
    "rotate_master_key": (("f" * 32,), {}),
    "locks": ((), {}),
    "lift_lock": (("x",), {}),
    "start_audit": ((), {}),
    "audit": (("x",), {}),
    "make_backup": (("x",), {}),
    "backup": (("x",), {}),
    "call": (("POST", "/v1/deposits"), {"body": {}, "key": "k", "params": {}, "attempts": 1}),
    "feed": ((1,), {}),
}

#: The type that the clients give for each answer of the document, and what of the answer the caller has said himself.
TYPES: dict[str, tuple[type, set[str]]] = {
    "AccountStatementAnswer": (ledger_answers.AccountStatement, {"customer"}),
    "HouseAccountAnswer": (ledger_answers.HouseAccount, set()),
    "HouseAccountsAnswer": (ledger_answers.HouseAccounts, set()),
    "StatementBalanceAnswer": (ledger_answers.StatementBalance, set()),
    "StatementLineAnswer": (ledger_answers.StatementLine, set()),
    "AfterAnswer": (ledger_answers.BalanceAfter, set()),
    "AuditAnswer": (service_answers.Audit, set()),
    "BackupAnswer": (service_answers.Backup, set()),
    "BalanceAnswer": (ledger_answers.SideBalance, set()),
    "BalancesAnswer": (ledger_answers.LedgerBalances, {"customer", "account"}),
    "AccessLineAnswer": (service_answers.AccessLine, set()),
    "AccessLogAnswer": (service_answers.AccessPage, set()),
    "ClockAnswer": (service_answers.ClockState, set()),
    "CoinAnswer": (ledger_answers.Coin, set()),
    "CoinsAnswer": (ledger_answers.Coins, set()),
    "CustomersAnswer": (ledger_answers.CustomerPage, set()),
    "EntriesAnswer": (ledger_answers.EntryPage, set()),
    "EntryAnswer": (ledger_answers.Entry, set()),
    "HoldAnswer": (ledger_answers.Hold, set()),
    "HoldsAnswer": (ledger_answers.HoldPage, set()),
    "KeyAnswer": (key_answers.AccessKey, set()),
    "KeyMadeAnswer": (key_answers.MadeKey, set()),
    "KeysAnswer": (key_answers.KeyPage, set()),
    "MasterKeyAnswer": (service_answers.MasterKeyInForce, set()),
    "LockAnswer": (service_answers.GateLock, set()),
    "LocksAnswer": (service_answers.GateLocks, set()),
    "PostingAnswer": (ledger_answers.Posting, set()),
    "ReadyAnswer": (service_answers.Ready, {"status"}),
    "SealingAnswer": (service_answers.Sealing, set()),
    "StatementAnswer": (ledger_answers.Statement, {"customer"}),
    "TokenAnswer": (key_answers.OperatorToken, set()),
    "TokenMadeAnswer": (key_answers.MadeToken, set()),
    "TokensAnswer": (key_answers.TokenPage, set()),
    "TrialBalanceAnswer": (ledger_answers.TrialBalance, set()),
    "TrialCoinAnswer": (ledger_answers.TrialCoin, set()),
    "WriteAnswer": (ledger_answers.Written, set()),
}
#: Answers that no method gives: AliveAnswer is of a route apart, the others wrap what is in TYPES.
WRAPPERS = {"AliveAnswer", "BatchAnswer", "EntryReadAnswer", "HoldAfterAnswer", "HoldReadAnswer"}


class Sent(NamedTuple):
    """What a client asked for."""

    method: str
    path: str
    query: frozenset[str]
    body: frozenset[str]
    has_key: bool


class Recorder(httpx2.MockTransport):
    """Notes every request, and answers what no call can be content with."""

    def __init__(self) -> None:
        super().__init__(self._note)
        self.sent: list[Sent] = []

    def _note(self, request: httpx2.Request) -> httpx2.Response:
        body = names_in(json.loads(request.content)) if request.content else set()
        key = "idempotency-key" in request.headers
        query = frozenset(request.url.params.keys())
        self.sent.append(Sent(request.method, request.url.path, query, frozenset(body), key))
        return httpx2.Response(200, stream=_Pieces())


class _Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that both kinds of client can read."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"{}"

    async def __aiter__(self) -> Any:
        yield b"{}"


def names_in(said: Any) -> set[str]:
    """Return the names of all fields in a body, those of inner objects after the name of theirs and a dot."""
    if isinstance(said, list):
        return set().union(*map(names_in, said))
    if not isinstance(said, dict):
        return set()
    return set(said).union(*({f"{name}.{inner}" for inner in names_in(part)} for name, part in said.items()))


def names_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> set[str]:
    """Return the names of all fields that a body of this schema may have, in the same form."""
    if "$ref" in schema:
        return names_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    found = set().union(*(names_of(part, schemas) for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))))
    if "items" in schema:
        found |= names_of(schema["items"], schemas)
    for name, part in schema.get("properties", {}).items():
        found |= {name, *(f"{name}.{inner}" for inner in names_of(part, schemas))}
    return found


def names_of_struct(kind: type) -> set[str]:
    """Return the names that the fields of an answer have as JSON; each is an attribute of the answer, too."""
    names = {part.encode_name for part in msgspec.structs.fields(kind)}
    assert all(hasattr(kind, name) for name in names)
    return names


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The OpenAPI document."""
    with operator_api(tmp_path_factory.mktemp("calls") / "data") as api:
        return document(api.app.routes)


@pytest.fixture(scope="module")
def sent() -> list[Sent]:
    """What the blocking client asks for when each of its methods is called."""
    recorder = Recorder()
    with OperatorLedger("http://x", "t", attempts=1, transport=recorder) as ledger:
        for name, (arguments, named) in CALLS.items():
            before = len(recorder.sent)
            with suppress(ProtocolError, TransportError):
                found = getattr(ledger, name)(*arguments, **named)
                list(found)  # the feed asks when it is read
            assert len(recorder.sent) == before + 1, name
    return recorder.sent


def by_route(described: dict[str, Any], sent: list[Sent]) -> dict[tuple[str, str], list[Sent]]:
    """Return what was sent by method and path of the document; each path is one of it."""
    found: dict[tuple[str, str], list[Sent]] = {
        (method.upper(), path): [] for path, calls in described["paths"].items() for method in calls
    }
    patterns = {path: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))) for path in described["paths"]}
    for one in sent:
        (path,) = (path for path, pattern in patterns.items() if pattern.fullmatch(one.path))
        found[one.method, path].append(one)
    return found


def test_every_method_of_the_client_is_looked_at_here() -> None:
    """A method that is added to the client is added to the table, with every argument that it takes."""
    methods = {
        name: method for name, method in inspect.getmembers(OperatorLedger, inspect.isfunction) if name[0] != "_"
    }
    assert methods.keys() - {"close"} == CALLS.keys()
    for name, (arguments, named) in CALLS.items():
        bound = inspect.signature(methods[name]).bind(None, *arguments, **named).arguments
        assert bound.keys() == inspect.signature(methods[name]).parameters.keys(), name


def test_every_route_has_a_method_of_the_client(described: dict[str, Any], sent: list[Sent]) -> None:
    """Whatever the OpenAPI document describes can be asked for, but for what is apart, which is there and not asked."""
    asked = by_route(described, sent)
    assert {route for route, found in asked.items() if not found} == APART.keys()


def test_every_parameter_and_field_of_a_route_can_be_sent(described: dict[str, Any], sent: list[Sent]) -> None:
    """A method sends each parameter of the query and each field of the body, and the key of what needs one."""
    schemas = described["components"]["schemas"]
    for (method, path), found in by_route(described, sent).items():
        if (method, path) in APART:
            continue
        said = described["paths"][path][method.lower()]
        place = f"{method} {path}"
        names = {part["name"] for part in said["parameters"] if part["in"] == "query"}
        assert set().union(*(one.query for one in found)) == names, place
        content = said.get("requestBody", {}).get("content", {"application/json": {"schema": {}}})
        names = names_of(content["application/json"]["schema"], schemas)
        assert set().union(*(one.body for one in found)) == names, place
        needs_key = any(part["name"] == "Idempotency-Key" for part in said["parameters"])
        assert {one.has_key for one in found} == {needs_key}, place


def test_every_field_of_an_answer_is_given(described: dict[str, Any]) -> None:
    """The types have the fields of the document's answers, under the same names."""
    schemas = described["components"]["schemas"]
    assert {name for name in schemas if name.endswith("Answer")} - WRAPPERS == TYPES.keys()
    for name, (kind, known) in TYPES.items():
        given = names_of_struct(kind)
        assert given | known == schemas[name]["properties"].keys(), name


def test_report_of_an_audit_is_given_whole() -> None:
    """What an audit says is no part of the document; the client's types have all that the report has."""
    assert names_of_struct(service_answers.AuditReport) == {part.name for part in fields(Report)}
    assert names_of_struct(service_answers.Finding) == set(Finding._fields)


def test_async_client_asks_for_the_same(sent: list[Sent]) -> None:
    """Method by method, both clients send the same."""
    recorder = Recorder()

    async def work() -> None:
        async with AsyncOperatorLedger("http://x", "t", attempts=1, transport=recorder) as ledger:
            for name, (arguments, named) in CALLS.items():
                with suppress(ProtocolError, TransportError):
                    found = getattr(ledger, name)(*arguments, **named)
                    if name in ("feed", "statement_csv"):
                        await anext(found)
                    else:
                        await found

    asyncio.run(work())
    assert recorder.sent == sent


def test_signatures_of_both_clients_are_the_same() -> None:
    """Whatever one method takes, the other takes, with the same defaults."""
    for name in CALLS:
        one, other = (inspect.signature(getattr(kind, name)) for kind in (OperatorLedger, AsyncOperatorLedger))
        assert one.parameters == other.parameters, name


def test_reference_page_names_every_method() -> None:
    """The page of the clients has a row for each method, and none for what is not there."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "operator-client.md"
    rows = re.findall(r"^\| `(\w+)\(", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(CALLS)
