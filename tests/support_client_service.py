"""Start the real service in a process of its own, with a customer whose balances the client tests know."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spotledger.client import OperatorLedger

STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Service:
    """A service that answers, and the credentials of its customer alice."""

    public_url: str
    operator_url: str
    token: str
    accesskey: str
    secretkey: str
    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """What the examples and samples read from the environment."""
        return {
            "SPOTLEDGER_URL": self.public_url,
            "SPOTLEDGER_ACCESSKEY": self.accesskey,
            "SPOTLEDGER_SECRETKEY": self.secretkey,
        }

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Make one call of the operator API."""
        with OperatorLedger(self.operator_url, self.token, attempts=1) as ledger:
            return ledger.call(method, path, body, key).document


@contextmanager
def started_service(folder: Path, **settings: str) -> Iterator[Service]:
    """Serve from *folder* until the block ends; *settings* are named as in the reference."""
    variables = {f"SPOTLEDGER_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(folder)),
            *("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"),
        ],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        public_url, operator_url = _urls_said_by(process)
        token = (folder / "operator.token").read_text(encoding="ascii").strip()
        service = Service(public_url, operator_url, token, "", "", folder)
        accesskey, secretkey = _fill(service)
        yield Service(public_url, operator_url, token, accesskey, secretkey, folder)
    finally:
        process.terminate()
        process.communicate(timeout=STOP_TIMEOUT_S)


def _urls_said_by(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read what the service says at its start, until it has named both listeners."""
    assert process.stdout is not None
    urls: list[str] = []
    said = ""
    while len(urls) < 2:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the service ended at its start: {said} {process.communicate()[1]}")
        said += line
        urls += re.findall(r"http://127\.0\.0\.1:[0-9]+", line)
    return urls[0], urls[1]


def _fill(service: Service) -> tuple[str, str]:
    """List coins, register alice and give her the balances of the documents, by real movements."""
    for coin, scale in (("btc", 8), ("eth", 18), ("forth", 18), ("usdt", 8)):
        service.call("POST", "/v1/coins", {"coin": coin, "scale": scale}, f"list-{coin}")
    service.call("POST", "/v1/customers", {"customer": "alice"}, "alice")
    deposits = {"usdt": "6929.61087353", "forth": "12.5", "eth": "12345678901234567890.123456789012345678"}
    for coin, amount in deposits.items():
        service.call("POST", "/v1/deposits", {"customer": "alice", "coin": coin, "amount": amount}, f"deposit-{coin}")
    hold = {"customer": "alice", "coin": "usdt", "amount": "3062.17437341", "reference": "order-7"}
    service.call("POST", "/v1/holds", hold, "hold-usdt")
    made = service.call("POST", "/v1/keys", {"customer": "alice", "permissions": ["read"]}, "key-alice")
    return made["accesskey"], made["secretkey"]
