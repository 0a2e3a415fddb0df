"""The drill in which a node is frozen while another writes, and what is asked of it when it wakes."""

from __future__ import annotations

import bisect
import hashlib
import hmac
import itertools
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import httpx2

from fleet.books import read_books
from fleet.drills import AFTER_SECONDS, RECOVERY_SECONDS, Fleet, Report, drill, running
from fleet.load import SCALE
from fleet.nodes import Node, balance, try_to_write
from fleet.pair import LEDGER
from servers.kept import until
from support_books import Books

ENTRIES = 30_000
BATCH = 1000
AMOUNT = "1000"
COINS = ("usdt", "usdc")
SIDES = ("available", "freeze")
PAYER = ("payer", "spot")
READERS = 3
SPENDERS = 4
READ_PAUSE_SECONDS = 0.005
TIMEOUT_SECONDS = 60.0


class Read(NamedTuple):
    """An answer about the payer: when it was asked for, what it stands for, how old that may be, and what it says."""

    sent: float
    seq: int
    age_seconds: float
    units: tuple[int, ...]


@dataclass
class PayerReader:
    """Asks one node for the payer's balances all the time, as an operator or as the trader."""

    node: Node
    stop: threading.Event
    token: str = ""
    accesskey: str = ""
    secretkey: str = ""
    reads: list[Read] = field(default_factory=list)
    refused: int = 0
    _nonce: int = 0

    def run(self) -> None:
        """Ask until told to stop."""
        with httpx2.Client(timeout=TIMEOUT_SECONDS) as client:
            while not self.stop.is_set():
                sent = time.monotonic()
                answer = client.get(self._signed_url()) if self.accesskey else self._ask_as_operator(client)
                told = answer.json()
                if answer.status_code == httpx2.codes.OK and told.get("code", 200) == 200:
                    self.reads.append(_read(sent, answer, told))
                else:
                    self.refused += 1
                time.sleep(READ_PAUSE_SECONDS)

    def _ask_as_operator(self, client: httpx2.Client) -> httpx2.Response:
        url = f"http://{self.node.operator}/v1/customers/payer/balances"
        return client.get(url, headers={"Authorization": f"Bearer {self.token}"})

    def _signed_url(self) -> str:
        self._nonce = max(self._nonce + 1, time.time_ns() // 1_000_000)
        text = f"accesskey={self.accesskey}&nonce={self._nonce}"
        signature = hmac.new(self.secretkey.encode(), text.encode(), hashlib.sha256).hexdigest()
        return f"http://{self.node.public}/trade/api/v1/getBalance?{text}&signature={signature}"


def _read(sent: float, answer: httpx2.Response, told: dict[str, Any]) -> Read:
    balances = told["balances"] if "balances" in told else told["data"]
    seq = int(told["seq"] if "seq" in told else answer.headers["x-ledger-seq"])
    age_seconds = int(answer.headers["x-ledger-age-ms"]) / 1000
    return Read(sent, seq, age_seconds, tuple(_units(balances[coin][side]) for coin in COINS for side in SIDES))


def _units(amount: str) -> int:
    return int(Decimal(amount).scaleb(SCALE))


@drill
def node_frozen(entries: int = ENTRIES) -> Report:
    """Freeze a node while another writes 30,000 entries, then wake it: it says nothing mixed or old, and catches up."""
    with running() as (pair, fleet):
        frozen, stop = fleet.nodes[0], threading.Event()
        holds = _prepare(fleet)
        readers = _readers(fleet, frozen, stop)
        balance(frozen, fleet.token, "spender")  # in memory, to be out of date soon
        moment = time.monotonic()
        frozen.signal(signal.SIGSTOP)
        written = _write(fleet, entries, holds)
        took = time.monotonic() - moment
        with ThreadPoolExecutor(READERS * 2 + SPENDERS) as pool:
            reading = [pool.submit(reader.run) for reader in readers]
            spending = [pool.submit(_spend_again, fleet, frozen, number) for number in range(SPENDERS)]
            try:
                time.sleep(0.5)  # all of them wait for the node now
                woke = time.monotonic()
                frozen.signal(signal.SIGCONT)
                until(lambda: _has(frozen, fleet.token, written[-1].seq), RECOVERY_SECONDS, "it does not catch up")
                caught_up = time.monotonic() - woke
                until(frozen.is_ready, RECOVERY_SECONDS, "the node that was frozen cannot write")
                time.sleep(AFTER_SECONDS)
            finally:
                stop.set()
                frozen.signal(signal.SIGCONT)  # else they would wait for it
            for waited in (*reading, *spending):
                waited.result()
        written += [Written(one.at, one.seq) for one in fleet.load.acknowledged]
        reads = [read for reader in readers for read in reader.reads]
        details = {
            "entries_written_meanwhile": entries,
            "frozen_seconds": round(took, 2),
            "caught_up_after_seconds": round(caught_up, 2),
            "reads_that_were_compared": len(reads),
            "reads_refused_on_waking": sum(reader.refused for reader in readers),
        }
        report = fleet.report("node_frozen", moment, pair.primary.url(LEDGER), **details)
        _check_reads(reads, written, read_books(pair.primary.url(LEDGER)))
        return report


class Written(NamedTuple):
    """When an entry was acknowledged, and its number."""

    at: float
    seq: int


def _prepare(fleet: Fleet) -> tuple[str, str]:
    """Make the customers whose money moves; return the holds of the payer, in usdt, and of the payee, in usdc."""
    fleet.post("/v1/coins", {"coin": "usdc", "scale": SCALE}, "coin-usdc")
    holds = []
    for name, coin in (("payer", "usdt"), ("payee", "usdc"), ("spender", "usdt")):
        fleet.post("/v1/customers", {"customer": name}, f"customer-{name}")
        amount = {"customer": name, "coin": coin, "amount": AMOUNT}
        fleet.post("/v1/deposits", amount, f"{name}-has")
        if name != "spender":
            holds.append(str(fleet.post("/v1/holds", amount, f"{name}-holds")["hold"]))
    return holds[0], holds[1]


def _readers(fleet: Fleet, frozen: Node, stop: threading.Event) -> list[PayerReader]:
    """Make those who will ask *frozen* about the payer."""
    readers = [PayerReader(frozen, stop, token=fleet.token) for _ in range(READERS)]
    for number in range(READERS):
        made = fleet.post("/v1/keys", {"customer": "payer", "permissions": ["read"]}, f"key-payer-{number}")
        readers.append(PayerReader(frozen, stop, accesskey=made["accesskey"], secretkey=made["secretkey"]))
    return readers


def _write(fleet: Fleet, entries: int, holds: tuple[str, str]) -> list[Written]:
    """
    Write through the second node: the payer buys usdc for usdt, again and again, and the spender spends everything.

    Every purchase changes both coins of the payer and leaves their sum, so half of one would be seen.
    """
    node, written = fleet.nodes[1], []
    one = f"0.{1:0{SCALE}d}"
    purchase = {
        "op": "settle", "base": "usdc", "quote": "usdt", "base_amount": one, "quote_amount": one,
        "buyer": {"hold": holds[0]}, "seller": {"hold": holds[1]},
    }  # fmt: skip
    for first in range(0, entries, BATCH):
        numbers = range(first, min(first + BATCH, entries))
        operations = [{**purchase, "key": f"purchase-{number}"} for number in numbers]
        answer = try_to_write(node, fleet.token, "/v1/batches", {"operations": operations}, None)
        assert answer.status_code == httpx2.codes.OK, answer.text
        results = answer.json()["results"]
        assert all("seq" in result and "code" not in result for result in results), results
        written.append(Written(time.monotonic(), results[-1]["seq"]))
    spent = {"customer": "spender", "coin": "usdt", "amount": AMOUNT}
    written.append(Written(time.monotonic(), fleet.post("/v1/withdrawals", spent, "spent", node=1)["seq"]))
    return written


def _spend_again(fleet: Fleet, frozen: Node, number: int) -> None:
    """Ask the node that is frozen for money that was spent meanwhile; assert that it does not give it."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    body = {"customer": "spender", "coin": "usdt", "amount": "1"}
    while True:
        answer = try_to_write(frozen, fleet.token, "/v1/withdrawals", body, f"again-{number}", TIMEOUT_SECONDS)
        if answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
            break
        assert time.monotonic() < deadline, f"a withdrawal is not judged: {answer.text}"
        time.sleep(0.05)
    assert answer.json().get("code") == "insufficient_available", f"money was spent twice: {answer.text}"


def _has(node: Node, token: str, seq: int) -> bool:
    try:
        return node.metric("spotledger_head_seq", token) >= seq
    except (httpx2.TransportError, StopIteration):
        return False


def _check_reads(reads: Sequence[Read], written: Sequence[Written], books: Books) -> None:
    """Assert that each read says what the journal adds up to at its entry, and is no older than it says."""
    states: list[dict[str, tuple[int, int]]] = [{}]
    for seq in range(1, books.head + 1):
        lines = books.history.get(seq, ())
        changed = {line[2]: (line[3], line[4]) for line in lines if (line[0], line[1]) == PAYER}
        states.append({**states[-1], **changed} if changed else states[-1])
    in_time = sorted(written)
    newest = list(itertools.accumulate((one.seq for one in in_time), max))
    assert len(reads) > READERS, "nobody could read from the node that was frozen"
    for read in reads:
        assert read.seq <= books.head, f"a read stands for entry {read.seq}, and the last one is {books.head}"
        expected = tuple(units for coin in COINS for units in states[read.seq].get(coin, (0, 0)))
        assert read.units == expected, f"a read says {read.units} at entry {read.seq}, where it was {expected}"
        known = bisect.bisect_left(in_time, Written(read.sent - read.age_seconds, 0))
        least = newest[known - 1] if known else 0
        assert read.seq >= least, f"a read says it is {read.age_seconds} s old, and lacks entry {least}: {read.seq}"
