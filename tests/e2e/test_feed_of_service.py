"""The feed of a real service: it ends whole when the service stops, and a reader goes on after a new start."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx2

from spotledger.client import OperatorLedger
from spotledger.client.operator.operations import Deposit
from support_service import start


def test_feed_ends_whole_when_the_service_is_stopped(tmp_path: Path) -> None:
    """A reader that keeps up gets the end of the stream and is not cut off; a stop waits for no reader."""
    service = start(tmp_path / "data")
    headers = {"Authorization": f"Bearer {service.token}", "Accept": "text/event-stream"}
    with httpx2.stream("GET", f"{service.operator_url}/v1/entries", headers=headers, timeout=20) as answer:
        pieces = answer.iter_bytes()
        assert b"event: start" in next(pieces)
        assert service.stop() == 0
        assert list(pieces) == []
    assert "cut off" not in service.stderr.read_text()


def test_feed_goes_on_after_a_restart_without_gap_or_repeat(tmp_path: Path) -> None:
    """The service is stopped and started on the same port while a reader reads and a writer writes on."""
    service = start(tmp_path / "data")
    service.client()
    service.list_coins(usdt=8)
    service.trader("alice", {"usdt": ("1", "0")})
    address = service.operator_url.removeprefix("http://")
    seqs: list[int] = []
    enough = threading.Event()

    def read() -> None:
        with OperatorLedger(service.operator_url, token, attempts=30) as ledger:
            for entry in ledger.feed():
                seqs.append(entry.seq)
                if entry.key == "last":
                    break
        enough.set()

    token = service.token
    reading = threading.Thread(target=read)
    reading.start()
    try:
        for round_ in range(3):
            with OperatorLedger(service.operator_url, token, attempts=30) as ledger:
                for batch in range(20):
                    ledger.execute(
                        [Deposit(f"{round_}:{batch}:{number}", "alice", "usdt", "1") for number in range(20)]
                    )
            assert service.stop() == 0
            service = start(tmp_path / "data", operator_listen=address)
        with OperatorLedger(service.operator_url, token) as ledger:
            last = ledger.deposit("alice", "usdt", "1", key="last").seq
        assert enough.wait(60)
        assert seqs == list(range(1, last + 1))
    finally:
        service.stop()
        reading.join(60)
