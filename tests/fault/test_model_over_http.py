"""
Many clients over real HTTP, mixed operations, repeats and lost answers, the service killed in between.

At the end a plain model of the rules is given every request in the order of the journal. Its outcomes, its balances,
the answers that the clients got and an independent reading of the file have to agree to the unit.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import httpx2

import support_service
from support_books import check_books
from support_model import SCALE, Model

LIVES = 4
CLIENTS = 10
CUSTOMERS = [f"c{number}" for number in range(6)]
COINS = ("btc", "usdt")
SEGMENT_ENTRIES = 256
PATHS = {
    "deposit": "/v1/deposits",
    "freeze": "/v1/holds",
    "withdraw": "/v1/withdrawals",
    "transfer": "/v1/transfers",
    "settle": "/v1/settlements",
    "reverse": "/v1/reversals",
}

Operation = dict[str, Any]
Request = tuple[Operation, ...]


class _Run:
    """What was asked, and what was answered: by key, the code (``ok`` for done) and the seq."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.count = 0
        self.asked: dict[str, Operation] = {}
        self.answered: dict[str, tuple[str, int | None]] = {}
        self.lost: list[Request] = []
        self.bids: list[str] = []
        self.asks: list[str] = []
        self.reversible: list[int] = []

    def request(self) -> Request:
        size = self.choose.choice((1, 1, 1, 2, 5))
        chain = f"chain-{self.count}" if size > 1 and self.choose.random() < 0.6 else None
        return tuple(self.operation(chain) for _ in range(size))

    def operation(self, chain: str | None) -> Operation:
        self.count += 1
        operation = {"key": f"k{self.count}", **self.content()}
        if chain is not None:
            operation["chain"] = chain
        if operation["op"] == "freeze":
            (self.asks if operation["coin"] == "btc" else self.bids).append(operation["key"])
        self.asked[operation["key"]] = operation
        return operation

    def content(self) -> Operation:
        customer, other = self.choose.sample(CUSTOMERS, 2)
        move = {"customer": customer, "coin": self.choose.choice(COINS), "amount": self.amount()}
        kind = self.choose.choices(
            ("deposit", "freeze", "settle", "unfreeze", "withdraw", "transfer", "reverse"), (25, 30, 20, 8, 8, 6, 3)
        )[0]
        if kind == "settle" and self.bids and self.asks:
            buyer = {"hold": {"key": self.choose.choice(self.bids)}, "release": "rest"}
            buyer["fee"] = {"coin": "btc", "amount": "0.00000007"}
            seller = {"hold": {"key": self.choose.choice(self.asks)}}
            amounts = {"base_amount": self.amount(3), "quote_amount": self.amount(9)}
            return {"op": "settle", "base": "btc", "quote": "usdt", **amounts, "buyer": buyer, "seller": seller}
        if kind == "unfreeze" and self.bids:
            part = {"amount": self.amount(60)} if self.choose.random() < 0.5 else {}
            return {"op": "unfreeze", "hold": {"key": self.choose.choice(self.bids)}, **part}
        if kind == "transfer":
            ends = {"from": {"customer": customer}, "to": {"customer": other}}
            return {"op": "transfer", **ends, "coin": move["coin"], "amount": move["amount"]}
        if kind == "reverse" and self.reversible:
            return {"op": "reverse", "seq": self.choose.choice(self.reversible), "reason": "a test"}
        return {"op": kind if kind in ("freeze", "withdraw") else "deposit", **move}

    def amount(self, most: int = 40) -> str:
        return f"{self.choose.randrange(1, most * 100) / 100:.2f}"

    def note(self, request: Request, *answers: list[dict[str, Any]]) -> None:
        """Take the *answers* to copies of *request*, sent at once. What has a seq is the answer from then on."""
        for operation, *results in zip(request, *answers, strict=True):
            outcomes = [(result.get("code", "ok"), result.get("seq")) for result in results]
            before = self.answered.get(operation["key"], ("", None))
            kept = {outcome for outcome in outcomes if outcome[1] is not None}
            is_one = len(kept) <= 1 if before[1] is None else {before} == set(outcomes)
            assert is_one, "one request was answered in two ways"
            code, seq = self.answered[operation["key"]] = kept.pop() if kept else outcomes[-1]
            if code == "ok" and operation["op"] in ("deposit", "withdraw", "transfer", "settle"):
                self.reversible.append(seq)


async def _send(client: httpx2.AsyncClient, request: Request) -> list[dict[str, Any]]:
    operation = request[0]
    if len(request) > 1 or operation["op"] not in PATHS:
        answer = await client.post("/v1/batches", json={"operations": list(request)})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["results"])
    body = {name: value for name, value in operation.items() if name not in ("op", "key")}
    answer = await client.post(PATHS[operation["op"]], json=body, headers={"Idempotency-Key": operation["key"]})
    assert answer.status_code in (200, 422), answer.text
    return [answer.json()]


async def _client(http: httpx2.AsyncClient, run: _Run) -> None:
    """Send requests until the service is gone; one in four twice at once, one in ten again after its answer."""
    while True:
        request = run.request()
        run.lost.append(request)
        copies = 2 if run.choose.random() < 0.25 else 1
        run.note(request, *await asyncio.gather(*(_send(http, request) for _ in range(copies))))
        if run.choose.random() < 0.1:
            run.note(request, await _send(http, request))
        run.lost.remove(request)


def _http(service: support_service.Service) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx2.AsyncClient(base_url=service.operator_url, headers=headers, timeout=30)


async def _live(service: support_service.Service, run: _Run, seconds: float, kill: bool) -> None:
    async with _http(service) as http:
        for request in list(run.lost):
            run.note(request, await _send(http, request))
            run.lost.remove(request)
        if not kill:
            return
        clients = [asyncio.create_task(_client(http, run)) for _ in range(CLIENTS)]
        await asyncio.sleep(seconds)
        service.process.send_signal(signal.SIGKILL)
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            assert isinstance(ended, httpx2.TransportError), ended


def _journal(service: support_service.Service) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    client = service.client()
    while True:
        page = client.get("/v1/entries", params={"after_seq": len(entries), "limit": 1000}).json()["entries"]
        if not page:
            return entries
        entries += page


def _replay(run: _Run, entries: list[dict[str, Any]]) -> Model:
    """Give the model every request of the journal, in order, and compare what comes of each."""
    model = Model()
    position = 0
    asked = [(entry["seq"], run.asked[entry["key"]]) for entry in entries if entry["key"] in run.asked]
    while position < len(asked):
        seq, operation = asked[position]
        members = [operation]
        while operation.get("chain") and position + len(members) < len(asked):
            following = asked[position + len(members)][1]
            if following.get("chain") != operation["chain"]:
                break
            members.append(following)
        codes = model.chain(members, seq) if "chain" in operation else [model.do(operation, seq)]
        for number, code in enumerate(codes):
            key = members[number]["key"]
            found = run.answered.get(key)
            assert found == (code, seq + number), f"{members[number]}: answered {found}, the model says {code}"
        position += len(members)
    return model


def test_model_ledger_and_file_agree_after_kills_and_lost_answers(tmp_path: Path) -> None:
    """Requests repeated, lost and sent at once end as the plain rules say, each once, in the order of the journal."""
    run = _Run(11)
    folder = tmp_path / "data"
    for life in range(LIVES + 1):
        service = support_service.start(folder, segment_entries=SEGMENT_ENTRIES)
        try:
            if life == 0:
                service.list_coins(**dict.fromkeys(COINS, SCALE))
                for customer in CUSTOMERS:
                    service.write("/v1/customers", {"customer": customer}, f"register-{customer}")
            asyncio.run(_live(service, run, run.choose.uniform(0.6, 1.5), kill=life < LIVES))
            if life == LIVES:
                _compare(run, service)
        finally:
            service.stop()
    books = check_books(folder)
    assert books.head > 3 * SEGMENT_ENTRIES
    assert len(set(books.refusals.values())) >= 4, "too few kinds of refusals to mean much"


def _compare(run: _Run, service: support_service.Service) -> None:
    entries = _journal(service)
    kept = {key for key, (_, seq) in run.answered.items() if seq is not None}
    assert kept == {entry["key"] for entry in entries} & run.asked.keys()
    model = _replay(run, entries)
    client = service.client()
    for customer in CUSTOMERS:
        found = client.get(f"/v1/customers/{customer}/balances").json()["balances"]
        for coin in COINS:
            available, freeze = model.balance(customer, coin)
            shown = found.get(coin, {"available": "0", "freeze": "0"})
            assert (_units(shown["available"]), _units(shown["freeze"])) == (available, freeze)
        holds = client.get(f"/v1/customers/{customer}/holds", params={"state": "open", "limit": 1000}).json()["holds"]
        mine = {str(i): hold["left"] for i, hold in model.holds.items() if hold["owner"] == customer and hold["left"]}
        assert {hold["hold"]: _units(hold["remaining"]) for hold in holds} == mine


def _units(text: str) -> int:
    whole, _, decimals = text.partition(".")
    return int(whole + decimals.ljust(SCALE, "0"))
