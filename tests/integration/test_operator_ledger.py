"""The typed client of the operator API, over a real service: typed answers, errors of the tree, lost answers, feeds."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from spotledger.client import AsyncOperatorLedger, OperatorLedger
from spotledger.client.operator import core as operator_core
from spotledger.client.operator.ledger_answers import SideBalance, Written
from spotledger.client.operator.operations import CoinAmount, Deposit, Freeze, HoldKey, Settle, SettleSide, Unfreeze
from spotledger.errors import (
    ChainFailed,
    IdempotencyConflict,
    InsufficientAvailable,
    InvalidAmount,
    InvalidRequest,
    NotFound,
    ProtocolError,
    StoreUnavailable,
    TokenRefused,
    TooLate,
    TransportError,
    UnknownCoin,
)
from support_operator_ledger import LosesAnswers, streamed
from support_service import Service, start


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with coins; each test has customers of its own."""
    running = start(tmp_path_factory.mktemp("client") / "data")
    running.client()
    running.list_coins(usdt=8, btc=8)
    yield running
    assert running.stop() == 0


@pytest.fixture
def ledger(service: Service, request: pytest.FixtureRequest) -> Iterator[OperatorLedger]:
    """A client; the customers ``<test>.a`` and ``<test>.b`` have 100 usdt and 2 btc."""
    with OperatorLedger(service.operator_url, service.token) as made:
        yield made


@pytest.fixture
def names(ledger: OperatorLedger, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two customers of this test: one with 100 usdt, one with 2 btc."""
    a, b = (f"{request.node.name[5:50]}.{letter}" for letter in "ab")
    for name, coin, amount in ((a, "usdt", "100"), (b, "btc", "2")):
        ledger.register_customer(name, key=f"r:{name}")
        ledger.deposit(name, coin, amount, key=f"d:{name}")
    return a, b


def test_client_does_every_operation_with_typed_answers(ledger: OperatorLedger, names: tuple[str, str]) -> None:
    """Operations have the library's names; amounts come back as exact decimals, ids as text."""
    a, b = names
    buy = ledger.freeze(a, "usdt", Decimal("60"), key=f"buy:{a}", reference="order-1")
    sell = ledger.freeze(b, "btc", "1", key=f"sell:{a}")
    assert buy.hold is not None
    assert buy.balances[0].available == Decimal("40")
    filled = ledger.settle(
        "btc",
        "usdt",
        "0.5",
        "50",
        SettleSide(HoldKey(f"buy:{a}"), CoinAmount("btc", Decimal("0.001")), release="rest"),
        SettleSide(str(sell.hold)),
        key=f"fill:{a}",
    )
    assert filled.entry.holds == {buy.hold: Decimal(0), str(sell.hold): Decimal("0.5")}
    assert ledger.balances(a)["btc"] == SideBalance(Decimal("0.499"), Decimal(0))
    ledger.unfreeze(str(sell.hold), "0.25", key=f"u:{a}")
    ledger.withdraw("0.25", hold=HoldKey(f"sell:{a}"), key=f"w:{a}")
    ledger.transfer(a, b, "usdt", "1.5", key=f"t:{a}", to_account="wallet")
    ledger.withdraw("1", customer=a, coin="usdt", key=f"w2:{a}")
    undone = ledger.reverse(filled.seq, "bad price", key=f"v:{a}")
    assert ledger.entry(filled.seq).seq == filled.seq
    assert undone.entry.request["reason"] == "bad price"
    at_fill = ledger.balances(a, at_seq=filled.seq)
    assert (at_fill.seq, at_fill["usdt"].available) == (filled.seq, Decimal("50"))
    assert ledger.balances(b, "wallet")["usdt"].available == Decimal("1.5")
    hold = ledger.hold(buy.hold)
    assert (hold.state, hold.reference, hold.key, hold.amount) == ("closed", "order-1", f"buy:{a}", Decimal(60))
    assert [found.hold for found in ledger.holds(a, "closed").holds] == [buy.hold]
    assert ledger.trial_balance().balanced
    statement = ledger.statement(a, "usdt")
    assert statement.opening[0].available == 0
    assert statement.closing[0].available == ledger.balances(a)["usdt"].available
    assert statement.next_after_seq == statement.entries[-1].seq


def test_client_raises_the_errors_of_the_tree(ledger: OperatorLedger, names: tuple[str, str]) -> None:
    """A refusal is the error that the library would raise, with its details, its seq and whether it is a repeat."""
    a, _ = names
    for replayed in (False, True):
        with pytest.raises(InsufficientAvailable) as caught:
            ledger.freeze(a, "usdt", "1000", key=f"much:{a}")
        assert (caught.value.details["available"], caught.value.replayed) == ("100.00", replayed)
        assert caught.value.seq is not None
    with pytest.raises(IdempotencyConflict) as conflict:
        ledger.deposit(a, "usdt", "7", key=f"d:{a}")
    assert conflict.value.details["field"] == "amount"
    with pytest.raises(NotFound):
        ledger.balances("nobody-at-all")
    with pytest.raises(InvalidRequest):
        ledger.balances(a, at_seq=10**9)
    for amount in (1.5, 1, True, None, Decimal("NaN"), Decimal("Infinity")):
        with pytest.raises(InvalidAmount):
            ledger.deposit(a, "usdt", amount, key="never sent")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_client_with_an_id_that_would_change_the_path_sends_nothing(name: str) -> None:
    """``..`` as a customer would be another path, with everybody's holds; no such id is sent."""
    transport = httpx2.MockTransport(lambda request: pytest.fail(f"{request.url} was asked for"))
    with OperatorLedger("http://x", "t", transport=transport) as ledger:
        for call in (ledger.holds, ledger.balances, ledger.statement, ledger.hold, ledger.revoke_token):
            with pytest.raises(InvalidRequest):
                call(name)


def test_client_without_a_good_token_is_denied(service: Service) -> None:
    """A token that is none is refused, and shown by nothing."""
    with OperatorLedger(service.operator_url, "0" * 64) as nobody:
        with pytest.raises(TokenRefused):
            nobody.trial_balance()
        with pytest.raises(TokenRefused):
            next(nobody.feed())
        assert "000" not in repr(nobody)


def test_client_batch_gives_one_outcome_an_operation(ledger: OperatorLedger, names: tuple[str, str]) -> None:
    """Outcomes come in order: what was written, or the refusal; chains and atomic batches are whole."""
    a, b = names
    operations = [
        Freeze(f"1:{a}", a, "usdt", "50"),
        Freeze(f"2:{a}", b, "btc", "1"),
        Settle(f"3:{a}", "btc", "usdt", "1", "50", SettleSide(HoldKey(f"1:{a}")), SettleSide(HoldKey(f"2:{a}"))),
        Unfreeze(f"4:{a}", HoldKey(f"1:{a}")),
    ]
    found = ledger.execute(operations)
    assert [type(outcome).__name__ for outcome in found] == ["Written", "Written", "Written", "HoldClosed"]
    again = ledger.execute(operations)
    assert all(outcome.replayed for outcome in again)
    assert [outcome.seq for outcome in again] == [outcome.seq for outcome in found]
    chained = [Deposit(f"5:{a}", a, "usdt", "1"), Freeze(f"6:{a}", a, "usdt", "9999")]
    failed = ledger.execute(chained, chains=["x", "x"])
    assert [type(outcome) for outcome in failed] == [ChainFailed, InsufficientAvailable]
    with pytest.raises(InvalidRequest) as malformed:
        ledger.execute([Deposit(f"7:{a}", a, "usdt", "1"), Deposit(f"8:{a}", a, "usdt", "-1")])
    assert (malformed.value.details["index"], malformed.value.details["field"]) == (1, "operations[1].amount")
    assert ledger.execute([]) == []


def test_client_sends_a_write_again_whose_answer_was_lost(
    service: Service, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key goes out again until an answer comes: the write is done once, and the answer says that it was."""
    monkeypatch.setattr(operator_core, "FIRST_PAUSE_S", 0.001)
    a, _ = names
    losing = LosesAnswers(3)
    with OperatorLedger(service.operator_url, service.token, transport=losing) as ledger:
        written = ledger.deposit(a, "usdt", "1", key=f"lost:{a}")
        assert written.replayed
        assert losing.sent == [("POST", f"lost:{a}")] * 4
        assert ledger.balances(a)["usdt"].available == Decimal("101")


def test_client_gives_up_after_so_many_attempts(
    service: Service, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer for long: a TransportError, which says that the outcome is unknown."""
    monkeypatch.setattr(operator_core, "FIRST_PAUSE_S", 0.001)
    a, _ = names
    losing = LosesAnswers(100)
    with (
        OperatorLedger(service.operator_url, service.token, attempts=2, transport=losing) as ledger,
        pytest.raises(TransportError),
    ):
        ledger.execute([Deposit(f"lost:{a}", a, "usdt", "1")])
    assert len(losing.sent) == 2


@pytest.mark.parametrize(("status", "retry_after", "calls"), [(503, "0", 4), (503, "60", 1), (422, "0", 1)])
def test_client_comes_again_only_when_it_is_asked_to_soon(
    status: int, retry_after: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unavailable is tried again unless that is far off; a refusal never is."""
    monkeypatch.setattr(operator_core, "FIRST_PAUSE_S", 0.001)
    seen = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        problem = {"code": "store_unavailable" if status == 503 else "unknown_coin", "detail": "no"}
        return streamed(status, json.dumps(problem).encode(), **{"Retry-After": retry_after})

    with OperatorLedger("http://x", "t", transport=httpx2.MockTransport(handle)) as ledger:
        with pytest.raises(StoreUnavailable if status == 503 else UnknownCoin):
            ledger.deposit("a", "usdt", "1", key="k")
        assert len(seen) == calls


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"seq": 1},
        {"seq": "x", "entry": {}, "balances": []},
        {"seq": 1, "entry": None, "balances": []},
        {"seq": 1, "entry": {"seq": 1, "kind": "d", "key": "k", "booked_ms": 1, "request": {}, "postings": [7]}},
        {"results": []},
        {"results": 7},
    ],
)
def test_client_refuses_an_answer_of_another_form(answer: dict[str, Any]) -> None:
    """What is not documented is not guessed at."""
    transport = httpx2.MockTransport(lambda request: streamed(200, json.dumps(answer).encode()))
    with OperatorLedger("http://x", "t", transport=transport) as ledger:
        with pytest.raises(ProtocolError):
            ledger.deposit("a", "usdt", "1", key="k")
        with pytest.raises(ProtocolError):
            ledger.balances("a")
        with pytest.raises(ProtocolError):
            ledger.execute([Deposit("k", "a", "usdt", "1")])


def test_client_feed_gives_each_entry_once_while_others_write(
    service: Service, ledger: OperatorLedger, names: tuple[str, str]
) -> None:
    """Entries that are there and those that come, in order, without a gap."""
    a, _ = names
    head = ledger.entries(0, 1).seq

    def write() -> None:
        with OperatorLedger(service.operator_url, service.token) as other:
            for number in range(40):
                other.execute([Deposit(f"{number}:{part}:{a}", a, "usdt", "1") for part in range(5)])

    writing = threading.Thread(target=write)
    writing.start()
    feed = ledger.feed()
    seqs = [next(feed).seq for _ in range(head + 200)]
    feed.close()
    writing.join()
    assert seqs == list(range(1, head + 201))


def events(*seqs: int) -> bytes:
    entry = '{"seq":%d,"epoch":1,"actor":"ledger","kind":"deposit","key":"k","booked_ms":1,"request":{},"postings":[]}'
    return b"".join(f"id: {seq}\ndata: {entry % seq}\n\n".encode() for seq in seqs)


def test_client_feed_goes_on_where_the_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a break, even within an event, it asks for what follows the last whole entry."""
    monkeypatch.setattr(operator_core, "FIRST_PAUSE_S", 0.001)
    asked: list[str] = []
    bodies = [
        b": hello\n\n" + events(1, 2) + events(3)[:9],
        b"",
        b"retry: 5\nevent: start\ndata: {}\n\n" + events(3),
        events(4, 5),
    ]

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.params["after_seq"])
        assert request.headers["accept"] == "text/event-stream"
        return streamed(200, bodies[len(asked) - 1])

    with OperatorLedger("http://x", "t", transport=httpx2.MockTransport(handle)) as ledger:
        feed = ledger.feed()
        assert [next(feed).seq for _ in range(5)] == [1, 2, 3, 4, 5]
    assert asked == ["0", "2", "2", "3"]


@pytest.mark.parametrize("body", [events(1, 3), events(2), events(1, 1), b"id: 1\ndata: {\n\n", b"id: 1\ndata: {}\n\n"])
def test_client_feed_with_a_gap_or_a_repeat_is_refused(body: bytes) -> None:
    """An entry that is missing, comes twice or cannot be read ends the feed with an error."""
    transport = httpx2.MockTransport(lambda request: streamed(200, body))
    with OperatorLedger("http://x", "t", transport=transport) as ledger, pytest.raises(ProtocolError):
        for _ in ledger.feed():
            pass


def test_client_makes_lists_and_revokes_tokens(service: Service, names: tuple[str, str]) -> None:
    """Tokens are typed answers, of which only the first has the token, and no ``repr`` shows it."""
    with OperatorLedger(service.operator_url, service.token) as ledger:
        made = ledger.create_token(["ledger:read"], "reader", key=f"k:{names[0]}")
        assert made.token is not None
        assert made.token not in repr(made)
        assert ledger.create_token(["ledger:read"], "reader", key=f"k:{names[0]}") == replace(made, token=None)
        assert made.token_id in {found.token_id for found in ledger.tokens().tokens}
        assert ledger.tokens(limit=1).next_after == ledger.tokens(limit=1).tokens[0].token_id
        with OperatorLedger(service.operator_url, made.token) as reader:
            assert reader.trial_balance().balanced
            revoked = ledger.revoke_token(made.token_id)
            assert revoked.revoked_ms is not None
            assert ledger.revoke_token(made.token_id) == revoked
            with pytest.raises(TokenRefused):
                reader.trial_balance()
        with pytest.raises(NotFound):
            ledger.revoke_token("nobody")

    async def work() -> None:
        async with AsyncOperatorLedger(service.operator_url, service.token) as ledger:
            other = await ledger.create_token(["admin"], key=f"l:{names[0]}")
            async with AsyncOperatorLedger(service.operator_url, str(other.token)) as itself:
                assert other.token_id in {found.token_id for found in (await itself.tokens()).tokens}
                assert (await itself.revoke_token(other.token_id)).scopes == ("admin",)
                with pytest.raises(TokenRefused):
                    await itself.tokens()

    asyncio.run(work())


def test_client_feed_of_nobody_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that cannot be reached is tried a bounded number of times."""
    monkeypatch.setattr(operator_core, "FIRST_PAUSE_S", 0.001)
    with OperatorLedger("http://127.0.0.1:9", "t") as ledger, pytest.raises(TransportError):
        next(ledger.feed())


def test_async_client_does_the_same(service: Service, names: tuple[str, str]) -> None:
    """The async client has the same methods, and many calls at once."""
    a, b = names

    async def work() -> None:
        async with AsyncOperatorLedger(service.operator_url, service.token) as ledger:
            made = await asyncio.gather(*(ledger.deposit(a, "usdt", "1", key=f"{n}:{a}") for n in range(30)))
            assert len({written.seq for written in made}) == 30
            outcome = (await ledger.execute([Freeze(f"f:{a}", a, "usdt", "130")], atomic=True))[0]
            assert isinstance(outcome, Written)
            assert (await ledger.hold(str(outcome.hold))).remaining == Decimal("130")
            with pytest.raises(InsufficientAvailable):
                await ledger.transfer(a, b, "usdt", "1", key=f"t:{a}")
            assert (await ledger.balances(a, min_seq=outcome.seq))["usdt"].freeze == Decimal("130")
            seqs = []
            async for entry in ledger.feed(outcome.seq - 20):
                seqs.append(entry.seq)
                if entry.seq == outcome.seq:
                    break
            assert seqs == list(range(outcome.seq - 19, outcome.seq + 1))

    asyncio.run(work())


def test_both_clients_have_the_same_methods() -> None:
    """Whatever one can do, the other can."""
    of_one = {name for name in vars(OperatorLedger) if not name.startswith("_")}
    of_other = {name for name in vars(AsyncOperatorLedger) if not name.startswith("_")}
    assert of_one - {"close"} == of_other - {"aclose"}


def test_client_tries_a_write_and_gives_a_latest_time(ledger: OperatorLedger, names: tuple[str, str]) -> None:
    """A dry run answers what the write would, marked, singly and in a batch; a write that is too late is TooLate."""
    a, _ = names
    tried = ledger.deposit(a, "usdt", "1", key=f"t:{a}", dry_run=True)
    assert (tried.dry_run, tried.replayed, tried.balances[-1].available) == (True, False, Decimal("101"))
    (outcome,) = ledger.execute([Deposit(f"t:{a}", a, "usdt", "1")], dry_run=True)
    assert isinstance(outcome, Written)
    assert outcome.dry_run
    done = ledger.deposit(a, "usdt", "1", key=f"t:{a}", not_after_ms=4_000_000_000_000)
    assert (done.dry_run, done.replayed) == (False, False)
    with pytest.raises(TooLate) as late:
        ledger.deposit(a, "usdt", "1", key=f"late:{a}", not_after_ms=1_600_000_000_000)
    assert (late.value.details["field"], late.value.seq) == ("not_after_ms", None)
    with pytest.raises(InsufficientAvailable) as short:
        ledger.freeze(a, "usdt", "1000", key=f"late:{a}", dry_run=True)
    assert short.value.details["dry_run"] is True
    assert not ledger.freeze(a, "usdt", "1", key=f"late:{a}").replayed
