"""Load on a fleet, and the account of it: what was acknowledged, when, and what that must have come to."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2

from spotledger.client import SpotClient
from spotledger.errors import SpotledgerError
from support_books import Books

RETRY_SECONDS = 0.05
TIMEOUT_SECONDS = 10.0
#: How long, after the load was stopped, an operation whose outcome is unknown may go on asking.
FINISH_SECONDS = 60.0
BATCH = 5
#: Decimal places of the coin.
SCALE = 8


class Acknowledged(NamedTuple):
    """A write that was answered yes: its key, its entry, when, and whether it was a repeat."""

    key: str
    seq: int
    at: float
    repeated: bool


@dataclass
class Lane:
    """One caller: it sends one request after the other, each until it is answered, always with the same keys."""

    name: str
    url: str
    token: str
    stop: threading.Event
    #: Nobody wants to know any more what became of the last request.
    given_up: threading.Event
    acknowledged: list[Acknowledged] = field(default_factory=list)
    #: What the customer of this caller has in units, available and freeze.
    available: int = 0
    freeze: int = 0
    tries_in_vain: int = 0
    problems: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Send requests until told to stop; then finish the last one."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            for path, body, key in self._requests():
                if not self._until_answered(client, path, body, key):
                    return

    def _requests(self) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        choose = random.Random(self.name)
        number = 0
        while not self.stop.is_set():
            number += 1
            key = f"{self.name}-{number}"
            amount = {"customer": self.name, "coin": "usdt", "amount": f"0.{choose.randrange(1, 10**6):06d}"}
            kind = number % 4
            if kind == 0:
                made = [{"op": "deposit", "key": f"{key}-{part}", **amount} for part in range(BATCH)]
                yield "/v1/batches", {"operations": made}, None
            elif kind == 3:
                yield "/v1/holds", {**amount, "amount": "0.000001"}, key
            else:
                yield "/v1/deposits", amount, key

    def _until_answered(self, client: httpx2.Client, path: str, body: dict[str, Any], key: str | None) -> bool:
        deadline: float | None = None
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            try:
                answer = client.post(path, json=body, headers=headers)
                if answer.status_code == 200:
                    return self._keep(path, body, key, answer)
                if answer.status_code < 500 or answer.status_code not in (502, 503, 504):
                    self.problems.append(f"{key}: {answer.status_code} {answer.text}")
                    return False
            except httpx2.TransportError:
                pass  # the outcome is unknown: ask again with the same key
            self.tries_in_vain += 1
            if self.stop.is_set():
                deadline = deadline or time.monotonic() + FINISH_SECONDS
                if time.monotonic() > deadline:
                    self.problems.append(f"{key}: not answered within {FINISH_SECONDS:g} s")
                    return False
            if self.given_up.wait(RETRY_SECONDS):
                return False

    def _keep(self, path: str, body: dict[str, Any], key: str | None, answer: httpx2.Response) -> bool:
        now, told = time.monotonic(), answer.json()
        if key is None:
            for one, result in zip(body["operations"], told["results"], strict=True):
                if "seq" not in result or "code" in result:
                    self.problems.append(f"{one['key']}: {result}")
                    return False
                self._count(Acknowledged(one["key"], result["seq"], now, bool(result.get("replayed"))), one["amount"])
            return True
        repeated = answer.headers.get("idempotency-replayed") == "true"
        self._count(Acknowledged(key, told["seq"], now, repeated), body["amount"], holds=path == "/v1/holds")
        return True

    def _count(self, one: Acknowledged, amount: str, *, holds: bool = False) -> None:
        self.acknowledged.append(one)
        units = int(amount.removeprefix("0.").ljust(SCALE, "0"))
        self.available += -units if holds else units
        self.freeze += units if holds else 0


@dataclass
class Reader:
    """A trader who asks for their balance all the time."""

    url: str
    accesskey: str
    secretkey: str
    stop: threading.Event
    answered: list[float] = field(default_factory=list)
    failed: int = 0

    def run(self) -> None:
        """Ask until told to stop."""
        with SpotClient(self.accesskey, self.secretkey, self.url) as client:
            while not self.stop.is_set():
                try:
                    client.balances()
                    self.answered.append(time.monotonic())
                except SpotledgerError:
                    self.failed += 1
                time.sleep(0.01)


def longest_gap(times: list[float], since: float, until: float) -> float:
    """Return the longest time in seconds between two of *times* that reaches beyond *since*, up to *until*."""
    marks = sorted([*times, until])
    gaps = [(later - earlier) for earlier, later in itertools.pairwise(marks) if later >= since]
    return max(gaps, default=until - since)


class Load:
    """Several lanes and one reader."""

    def __init__(self, url: str, token: str, lanes: int) -> None:
        self.stop_told = threading.Event()
        self._given_up = threading.Event()
        self.lanes = [Lane(f"lane{number}", url, token, self.stop_told, self._given_up) for number in range(lanes)]
        self.reader: Reader | None = None
        self._threads: list[threading.Thread] = []

    def add_reader(self, url: str, accesskey: str, secretkey: str) -> None:
        """Have a trader read all the while."""
        self.reader = Reader(url, accesskey, secretkey, self.stop_told)

    def start(self) -> None:
        """Begin."""
        runners = [*self.lanes, *([self.reader] if self.reader else [])]
        self._threads = [threading.Thread(target=runner.run, daemon=True) for runner in runners]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, after every outcome is known."""
        self.stop_told.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def give_up(self) -> None:
        """Stop, and leave open what is not answered yet."""
        self._given_up.set()
        self.stop_told.set()

    @property
    def acknowledged(self) -> list[Acknowledged]:
        """All writes that were answered yes so far."""
        return [one for lane in self.lanes for one in list(lane.acknowledged)]

    def since(self, moment: float) -> int:
        """Return how many were acknowledged after *moment*."""
        return sum(one.at > moment for one in self.acknowledged)

    def check(self, books: Books) -> None:
        """Assert that *books*, read independently, hold everything that was acknowledged, once, and nothing else."""
        problems = [problem for lane in self.lanes for problem in lane.problems]
        assert problems == []
        lost = [one for one in self.acknowledged if books.keys.get(one.key) != one.seq]
        assert lost == [], f"{len(lost)} acknowledged writes are not in the journal as they were acknowledged"
        ours = {key for key in books.keys if key.startswith("lane")}
        assert ours == {one.key for one in self.acknowledged}
        balances: Mapping[tuple[str, str, str], Any] = books.balances
        found = {lane.name: list(balances[lane.name, "spot", "usdt"]) for lane in self.lanes}
        assert found == {lane.name: [lane.available, lane.freeze] for lane in self.lanes}
