"""The typed clients of the operator API, over a real service: access keys, coins and customers, audits, backups."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from spotledger.client import AsyncOperatorLedger, OperatorLedger, SpotClient
from spotledger.client.operator import core as operator_core
from spotledger.client.operator.key_answers import MadeKey
from spotledger.client.operator.ledger_answers import Coin
from spotledger.client.operator.service_answers import Audit, Finding
from spotledger.errors import (
    AccessKeyRevoked,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    ProtocolError,
    ScopeMissing,
    StoreUnavailable,
    TransportError,
    UnknownCustomer,
)
from support_operator_ledger import LosesAnswers, streamed
from support_service import Service, start

AUDIT_SECONDS = 60
HOUR_MS = 3_600_000
MADE = {
    "accesskey": "11111111-2222-3333-4444-555555555555",
    "secretkey": "5e" * 32,
    "customer": "a",
    "permissions": ["read"],
    "label": "",
    "addresses": [],
    "created_ms": 1,
    "expires_ms": None,
    "revoked_ms": None,
    "last_used_ms": None,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with a coin; each test has a customer of its own."""
    running = start(tmp_path_factory.mktemp("keys") / "data")
    running.client()
    running.list_coins(usdt=8)
    yield running
    assert running.stop() == 0


@pytest.fixture
def ledger(service: Service) -> Iterator[OperatorLedger]:
    """A client with a token for everything."""
    with OperatorLedger(service.operator_url, service.token) as made:
        yield made


@pytest.fixture
def customer(ledger: OperatorLedger, request: pytest.FixtureRequest) -> str:
    """A customer of this test with 100 usdt."""
    name = request.node.name.partition("[")[0][5:60]
    ledger.register_customer(name, key=f"r:{name}"[:64])
    ledger.deposit(name, "usdt", "100", key=f"d:{name}"[:64])
    return str(name)


def usdt_of(service: Service, made: MadeKey) -> str:
    """Return the answer to a trader with this access key and its secret."""
    assert made.secretkey is not None
    with SpotClient(made.accesskey, made.secretkey, service.public_url) as client:
        return str(client.balances()["usdt"].available)


def test_access_key_that_is_made_opens_and_revoked_does_not(
    service: Service, ledger: OperatorLedger, customer: str
) -> None:
    """A made key signs, and is listed without its secret; revoked it signs no more, and again changes nothing."""
    expires_ms = time.time_ns() // 1_000_000 + HOUR_MS
    made = ledger.create_key(customer, ["trade", "read"], "bot", ["127.0.0.0/8"], expires_ms, key="made-1")
    assert (made.customer, made.permissions, made.label) == (customer, ("read", "trade"), "bot")
    assert (made.addresses, made.expires_ms, made.replaces) == (("127.0.0.0/8",), expires_ms, None)
    assert usdt_of(service, made) == "100.00"
    (listed,) = ledger.keys(customer).keys
    assert (listed.accesskey, listed.permissions, listed.created_ms) == (
        made.accesskey,
        made.permissions,
        made.created_ms,
    )
    assert listed.last_used_ms is not None
    assert not hasattr(listed, "secretkey")
    revoked = ledger.revoke_key(made.accesskey)
    assert revoked.revoked_ms is not None
    assert ledger.revoke_key(made.accesskey) == revoked
    with pytest.raises(AccessKeyRevoked):
        usdt_of(service, made)
    assert ledger.keys(customer).keys == (revoked,)


def test_one_text_in_place_of_a_list_is_told_what_would_pass(ledger: OperatorLedger) -> None:
    """A string would be sent as a list of its characters, and refused for something that the caller did not write."""
    asked: list[tuple[str, Callable[[], object]]] = [
        ("permissions", lambda: ledger.create_key("ann", "read", key="k")),
        ("addresses", lambda: ledger.create_key("ann", ["read"], addresses="10.0.0.0/8", key="k")),
        ("scopes", lambda: ledger.create_token("audit", key="k")),
    ]
    for field, ask in asked:
        with pytest.raises(InvalidRequest, match=f"^{field} is the text .*; a list of texts would pass$"):
            ask()


def test_access_key_that_is_rotated_is_replaced_by_one_like_it(
    service: Service, ledger: OperatorLedger, customer: str
) -> None:
    """The other has all that the first had but its secret, and says which it replaces; the first opens nothing."""
    first = ledger.create_key(customer, ["read"], "bot", key="rotated-1")
    other = ledger.rotate_key(first.accesskey, key="rotated-2")
    assert other.replaces == first.accesskey
    assert other.accesskey != first.accesskey
    assert other.secretkey not in (None, first.secretkey)
    assert (other.customer, other.permissions, other.label) == (customer, ("read",), "bot")
    assert usdt_of(service, other) == "100.00"
    with pytest.raises(AccessKeyRevoked):
        usdt_of(service, first)
    assert ledger.rotate_key(first.accesskey, key="rotated-2") == replace(other, secretkey=None)
    with pytest.raises(InvalidRequest) as twice:
        ledger.rotate_key(first.accesskey, key="rotated-3")
    assert twice.value.details["field"] == "accesskey"


def test_access_key_made_again_under_the_same_key_has_no_secret(ledger: OperatorLedger, customer: str) -> None:
    """A repeat says what was made without its secret and makes none; other content under the key is a conflict."""
    made = ledger.create_key(customer, ["read"], key="again-1")
    assert ledger.create_key(customer, ["read"], key="again-1") == replace(made, secretkey=None)
    assert len(ledger.keys(customer).keys) == 1
    with pytest.raises(IdempotencyConflict) as conflict:
        ledger.create_key(customer, ["read", "trade"], key="again-1")
    assert conflict.value.details["field"] == "permissions"


def test_access_key_whose_answer_was_lost_can_be_rotated_for_a_secret(
    service: Service, customer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again: one key was made, its secret went with the answer, and rotating it gives another."""
    monkeypatch.setattr(operator_core, "FIRST_PAUSE_S", 0.001)
    losing = LosesAnswers(1)
    with OperatorLedger(service.operator_url, service.token, transport=losing) as ledger:
        made = ledger.create_key(customer, ["read"], key="lost-1")
        assert losing.sent == [("POST", "lost-1")] * 2
        assert made.secretkey is None
        assert [found.accesskey for found in ledger.keys(customer).keys] == [made.accesskey]
        assert usdt_of(service, ledger.rotate_key(made.accesskey, key="lost-2")) == "100.00"


def test_secrets_and_access_keys_are_shown_by_nothing(
    ledger: OperatorLedger, customer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a ``repr`` nor a line of a log has a secret or a whole access key in it."""
    with caplog.at_level(logging.DEBUG):
        first = ledger.create_key(customer, ["read"], "bot", key="shown-1")
        other = ledger.rotate_key(first.accesskey, key="shown-2")
        page = ledger.keys(customer, limit=1)
        revoked = ledger.revoke_key(other.accesskey)
    shown = f"{first!r} {other!r} {page!r} {revoked!r} {caplog.text}"
    assert "MadeKey(customer=" in shown
    assert page.next_after is not None
    for hidden in (first.accesskey, first.secretkey, other.accesskey, other.secretkey):
        assert str(hidden) not in shown


def test_access_keys_are_listed_a_page_at_a_time(ledger: OperatorLedger, customer: str) -> None:
    """Of one customer or of all; the page says where the next one begins, and the last that there is none."""
    made = {ledger.create_key(customer, ["read"], key=f"page-{number}").accesskey for number in range(3)}
    found, after = [], None
    while True:
        page = ledger.keys(customer, after, 2)
        found += [listed.accesskey for listed in page.keys]
        after = page.next_after
        if after is None:
            break
    assert found == sorted(made)
    assert made <= {listed.accesskey for listed in ledger.keys().keys}
    assert ledger.keys("nobody-at-all").keys == ()


def test_access_key_that_cannot_be_is_refused(service: Service, ledger: OperatorLedger, customer: str) -> None:
    """An unregistered customer gets no key, fields are named, an unknown key is not found, and the scope is needed."""
    with pytest.raises(UnknownCustomer):
        ledger.create_key("nobody-at-all", ["read"], key="never-1")
    for arguments, field in (
        (([], "", ()), "permissions"),
        ((["fly"], "", ()), "permissions"),
        (("read", "", ()), "permissions"),
        ((["read"], "a\nb", ()), "label"),
        ((["read"], "", ["10.1.2.3/8"]), "addresses"),
        ((["read"], "", (), 1), "expires_ms"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            ledger.create_key(customer, *arguments, key="never-2")
        assert refused.value.details["field"] == field
    for accesskey, error in (("nobody", NotFound), ("../tokens", NotFound), ("..", InvalidRequest)):
        with pytest.raises(error):
            ledger.revoke_key(accesskey)
        with pytest.raises(error):
            ledger.rotate_key(accesskey, key="never-3")
    token = ledger.create_token(["ledger:read", "ledger:write"], key=f"t:{customer}"[:64]).token
    with OperatorLedger(service.operator_url, str(token)) as other:
        for call in (
            lambda: other.keys(),
            lambda: other.create_key(customer, ["read"], key="never-4"),
            lambda: other.rotate_key("x", key="never-5"),
            lambda: other.revoke_key("x"),
        ):
            with pytest.raises(ScopeMissing):
                call()
    assert ledger.keys(customer).keys == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"accesskey": None},
        {"accesskey": 7},
        {"secretkey": 7},
        {"permissions": "read"},
        {"permissions": None},
        {"addresses": [7]},
        {"created_ms": "soon"},
    ],
)
def test_access_key_in_an_answer_of_another_form_is_refused(changed: dict[str, Any]) -> None:
    """What is not documented is not guessed at, and the error repeats nothing of it."""
    body = json.dumps({**MADE, **changed}).encode()
    transport = httpx2.MockTransport(lambda request: streamed(200, body))
    with OperatorLedger("http://x", "t", transport=transport) as ledger:
        with pytest.raises(ProtocolError) as refused:
            ledger.create_key("a", ["read"], key="k")
        with pytest.raises(ProtocolError):
            ledger.keys()
    assert refused.value.__context__ is None
    assert MADE["secretkey"] not in str(refused.value)


def test_coins_and_customers_are_read_as_typed_answers(ledger: OperatorLedger, customer: str) -> None:
    """Coins come by name with their scales, customers in the order of their ids, both with the seq they stand for."""
    coins = ledger.coins()
    assert coins["usdt"] == Coin("usdt", 8)
    written = ledger.list_coin("shib", 18, key="coin-add-shib")
    coins = ledger.coins(min_seq=written.seq)
    assert dict(coins.coins) == {"shib": Coin("shib", 18), "usdt": Coin("usdt", 8)}
    assert (coins.seq, coins.epoch) == (written.seq, 1)
    for letter in "ab":
        ledger.register_customer(f"{customer}.{letter}", key=f"{letter}:{customer}"[:64])
    page = ledger.customers(customer, 1)
    assert (page.customers, page.next_after) == ((f"{customer}.a",), f"{customer}.a")
    assert ledger.customers(page.next_after, 1).customers == (f"{customer}.b",)
    assert customer in ledger.customers().customers
    assert ledger.customers("~").next_after is None


def test_reversal_of_an_entry_is_named(ledger: OperatorLedger, customer: str) -> None:
    """None before it is reversed, then the entry that did; what is no entry is not found."""
    deposit = ledger.deposit(customer, "usdt", "1", key="undo-1")
    assert ledger.reversal_of(deposit.seq) is None
    undone = ledger.reverse(deposit.seq, "twice", key="undo-2")
    assert ledger.reversal_of(deposit.seq, min_seq=undone.seq) == undone.seq
    assert ledger.entry(undone.seq, min_seq=undone.seq).kind == "reverse"
    assert ledger.trial_balance(min_seq=undone.seq).seq >= undone.seq
    with pytest.raises(NotFound):
        ledger.reversal_of(10**9)


def done(ledger: OperatorLedger, audit: Audit) -> Audit:
    """Wait for the end of an audit."""
    deadline = time.monotonic() + AUDIT_SECONDS
    while audit.state != "done":
        assert time.monotonic() < deadline
        assert (audit.state, audit.report) == ("running", None)
        time.sleep(0.05)
        audit = ledger.audit(audit.audit)
    return audit


def test_audit_is_begun_and_its_report_read(ledger: OperatorLedger, customer: str) -> None:
    """The report says that all was looked at and is well, how far, and what there is of each."""
    began = ledger.start_audit()
    assert began.audit == ledger.audit(began.audit).audit
    report = done(ledger, began).report
    assert report is not None
    assert (report.verdict, report.findings, report.unexamined, report.counts) == ("clean", (), (), {})
    assert report.audited_to == report.head_seq == ledger.entries(limit=1).seq
    assert report.customers == len(ledger.customers().customers)
    with pytest.raises(NotFound):
        ledger.audit("nothing")


def test_audit_with_findings_gives_them_typed() -> None:
    """A finding says what, where, what was found and what was expected; what a newer service adds is passed over."""
    finding = {"code": "chain_broken", "seq": 2, "where": "hash", "found": "aa", "expected": "bb", "newer": 1}
    numbers = (
        *("epoch", "audited_to", "head_seq", "sealed_to", "entries", "postings", "refusals"),
        *("coins", "customers", "balances", "open_holds", "seconds", "newer"),
    )
    report: dict[str, Any] = {
        **dict.fromkeys(numbers, 1),
        "path": "journal.db",
        "ledger_id": "x",
        "hash": "cc",
        "verdict": "damaged",
        "counts": {"chain_broken": 3},
        "findings": [finding],
        "unexamined": ["keys"],
        "advice": ["Restore a backup."],
    }
    answer = {"audit": "x", "state": "done", "began_ms": 1, "seq": 7, "last_seq": 7, "report": report}

    def read(said: dict[str, Any]) -> Audit:
        transport = httpx2.MockTransport(lambda request: streamed(200, json.dumps(said).encode()))
        with OperatorLedger("http://x", "t", transport=transport) as ledger:
            return ledger.audit("x")

    found = read(answer).report
    assert found is not None
    assert found.findings == (Finding("chain_broken", 2, "hash", "aa", "bb"),)
    assert (found.verdict, found.counts, found.unexamined) == ("damaged", {"chain_broken": 3}, ("keys",))
    assert found.advice == ("Restore a backup.",)
    for wrong in ({**report, "findings": [{}]}, {**report, "counts": 7}, {"verdict": "clean"}, 7):
        with pytest.raises(ProtocolError):
            read({**answer, "report": wrong})


def test_backup_is_made_and_says_what_it_holds(service: Service, ledger: OperatorLedger, customer: str) -> None:
    """A named one and one after the time; a name that is taken is refused, and one that is not there is not found."""
    made = ledger.make_backup("monday.backup")
    assert (made.file, made.state, made.seq) == ("monday.backup", "done", ledger.entries(limit=1).seq)
    assert (made.epoch, made.pages_left) == (1, None)
    assert made.bytes == (service.folder / "backups" / "monday.backup").stat().st_size
    assert ledger.backup("monday.backup") == made
    unnamed = ledger.make_backup()
    assert unnamed.state == "done"
    assert (service.folder / "backups" / unnamed.file).is_file()
    with pytest.raises(InvalidRequest):
        ledger.make_backup("monday.backup")
    with pytest.raises(InvalidRequest):
        ledger.make_backup("../monday.backup")
    with pytest.raises(NotFound):
        ledger.backup("tuesday.backup")


def test_backup_whose_answer_was_lost_is_not_made_again(service: Service, customer: str) -> None:
    """It is asked for once; what became of it is learnt by its name."""
    losing = LosesAnswers(1)
    with OperatorLedger(service.operator_url, service.token, transport=losing) as ledger:
        with pytest.raises(TransportError):
            ledger.make_backup("lost.backup")
        assert losing.sent == [("POST", None)]
        assert ledger.backup("lost.backup").state == "done"


def test_backup_that_goes_on_says_how_far_it_is() -> None:
    """An answer that it is running is no failure; one that says neither what is left nor what it holds is refused."""
    told: dict[str, Any] = {"file": "x", "state": "running", "pages_left": 3, "pages": 7}
    transport = httpx2.MockTransport(lambda request: streamed(202, json.dumps(told).encode()))
    with OperatorLedger("http://x", "t", transport=transport) as ledger:
        backup = ledger.make_backup("x")
        assert (backup.state, backup.pages_left, backup.pages, backup.seq) == ("running", 3, 7, None)
        told["state"] = "done"
        with pytest.raises(ProtocolError):
            ledger.backup("x")


def test_ready_is_asked_once(ledger: OperatorLedger, customer: str) -> None:
    """A service that takes writes says its head; one that takes none is not asked again."""
    assert ledger.ready().seq == ledger.entries(limit=1).seq
    asked = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return streamed(503, b'{"code":"store_unavailable","detail":"no"}', **{"Retry-After": "0"})

    with (
        OperatorLedger("http://x", "t", transport=httpx2.MockTransport(handle)) as other,
        pytest.raises(StoreUnavailable),
    ):
        other.ready()
    assert asked == ["/readyz"]


def test_async_client_does_the_same_with_keys_audits_and_backups(service: Service, customer: str) -> None:
    """The async client makes, lists, rotates and revokes access keys, and reads what the other reads."""

    async def work() -> MadeKey:
        async with AsyncOperatorLedger(service.operator_url, service.token) as ledger:
            first = await ledger.create_key(customer, ["read"], key="async-1")
            assert (await ledger.create_key(customer, ["read"], key="async-1")) == replace(first, secretkey=None)
            other = await ledger.rotate_key(first.accesskey, key="async-2")
            assert {found.accesskey for found in (await ledger.keys(customer)).keys} == {
                first.accesskey,
                other.accesskey,
            }
            assert (await ledger.revoke_key(first.accesskey)).revoked_ms is not None
            assert (await ledger.coins())["usdt"].scale == 8
            assert customer in (await ledger.customers()).customers
            assert await ledger.reversal_of(1) is None
            began = await ledger.start_audit()
            assert (await ledger.audit(began.audit)).began_ms == began.began_ms
            made = await ledger.make_backup("async.backup")
            assert await ledger.backup("async.backup") == made
            assert (await ledger.ready()).seq == (await ledger.entries(limit=1)).seq
            return other

    assert usdt_of(service, asyncio.run(work())) == "100.00"


def test_example_of_the_reference_page_runs(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's example does what its comments say."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "operator-client.md"
    (example,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    exec(example, {"base_url": service.operator_url, "token": service.token})  # noqa: S102 - it is ours
    assert re.fullmatch(r"70\.50\n[0-9a-f-]{36} [0-9a-f]{64}\n", capsys.readouterr().out)
