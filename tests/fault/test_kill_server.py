"""kill -9 of the real service in the middle of concurrent writes over HTTP, again and again."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import httpx2

import support_service
from support_books import check_books

KILLS = 6
WRITERS = 12
CUSTOMERS = 8
SEGMENT_ENTRIES = 128

Write = tuple[str, str, dict[str, Any]]  # key, path, body


class _Stream:
    """What was sent and what came back, over all lives of the service."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.count = 0
        self.answered: dict[str, tuple[int, dict[str, Any]]] = {}
        self.unanswered: dict[str, Write] = {}
        self.holds: list[str] = []

    def next_write(self) -> Write:
        self.count += 1
        key = f"w{self.count}"
        customer = f"c{self.choose.randrange(CUSTOMERS)}"
        move = {"customer": customer, "coin": "usdt", "amount": f"{self.choose.randrange(1, 5000)}.25"}
        kind = self.choose.randrange(6)
        if kind < 2:
            return key, "/v1/deposits", move
        if kind == 2 and self.holds:
            return key, f"/v1/holds/{self.choose.choice(self.holds)}/release", {}
        if kind == 3:
            other = {"customer": f"c{self.choose.randrange(CUSTOMERS)}", "account": "wallet"}
            return key, "/v1/transfers", {"from": {"customer": customer}, "to": other, **_of(move)}
        if kind == 4:
            return key, "/v1/withdrawals", move
        return key, "/v1/holds", move


def _of(move: dict[str, Any]) -> dict[str, Any]:
    return {"coin": move["coin"], "amount": move["amount"]}


async def _write_on_and_on(client: httpx2.AsyncClient, stream: _Stream) -> None:
    """Send writes, every fifth of them twice at the same instant, until the service is gone."""
    while True:
        write = stream.next_write()
        stream.unanswered[write[0]] = write
        twice = stream.choose.randrange(5) == 0
        answers = await asyncio.gather(*(_send(client, write) for _ in range(2 if twice else 1)))
        if twice:
            bodies = [answer.json() for answer in answers]
            assert bodies[0].get("seq") == bodies[1].get("seq"), "one key led to two entries"
            assert [a.headers.get("Idempotency-Replayed") for a in answers].count("true") == 1
        _note(stream, write, answers[0])


def _note(stream: _Stream, write: Write, answer: httpx2.Response) -> None:
    stream.answered[write[0]] = (answer.status_code, answer.json())
    stream.unanswered.pop(write[0], None)
    if "hold" in answer.json():
        stream.holds.append(answer.json()["hold"])


async def _send(client: httpx2.AsyncClient, write: Write) -> httpx2.Response:
    key, path, body = write
    answer = await client.post(path, json=body, headers={"Idempotency-Key": key})
    assert answer.status_code in (200, 422), answer.text
    return answer


def _client(service: support_service.Service) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx2.AsyncClient(base_url=service.operator_url, headers=headers, timeout=30)


async def _until_killed(service: support_service.Service, stream: _Stream, seconds: float) -> None:
    async with _client(service) as client:
        writers = [asyncio.create_task(_write_on_and_on(client, stream)) for _ in range(WRITERS)]
        await asyncio.sleep(seconds)
        service.process.send_signal(signal.SIGKILL)
        for ended in await asyncio.gather(*writers, return_exceptions=True):
            assert isinstance(ended, httpx2.TransportError), ended


async def _send_again(service: support_service.Service, stream: _Stream) -> None:
    """Send what got no answer, and some of what did, once more under the same keys."""
    async with _client(service) as client:
        for write in list(stream.unanswered.values()):
            _note(stream, write, await _send(client, write))
        for key in stream.choose.sample(sorted(stream.answered), min(20, len(stream.answered))):
            status, before = stream.answered[key]
            again = await client.get("/v1/entries", params={"after_seq": before["seq"] - 1, "limit": 1})
            assert again.json()["entries"][0]["key"] == key
            assert (status == 422) == ("refusal" in again.json()["entries"][0])


def test_killed_server_keeps_each_acknowledged_write_once(tmp_path: Path) -> None:
    """Each acknowledged write is in the journal once with the answer it got; lost answers are got by asking again."""
    stream = _Stream(20)
    folder = tmp_path / "data"
    for life in range(KILLS):
        service = support_service.start(folder, segment_entries=SEGMENT_ENTRIES)
        try:
            if life == 0:
                service.list_coins(usdt=8)
                for number in range(CUSTOMERS):
                    service.write("/v1/customers", {"customer": f"c{number}"}, f"customer-{number}")
            asyncio.run(_send_again(service, stream))
            asyncio.run(_until_killed(service, stream, stream.choose.uniform(0.1, 0.8)))
        finally:
            service.stop()
        books = check_books(folder)
        for key, (_, answer) in stream.answered.items():
            assert books.keys.get(key) == answer["seq"], f"{key} was acknowledged and is lost after life {life}"
    assert len(stream.answered) > KILLS * WRITERS
    assert books.head > 2 * SEGMENT_ENTRIES, "too few writes to reach a sealing"
