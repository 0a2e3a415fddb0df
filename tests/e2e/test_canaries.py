"""Canaries: secrets of a running service are looked for wherever they must not be."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

import support_service
from support_service import Service

MASTER_KEY = secrets.token_hex(32)


def spellings(secret: str) -> list[bytes]:
    """Return how a secret may be written: as it is, as bytes if it is hex, in base64."""
    found = [secret.encode(), secret.upper().encode(), base64.b64encode(secret.encode()).rstrip(b"=")]
    try:
        raw = bytes.fromhex(secret)
    except ValueError:
        return found
    return [*found, raw, base64.b64encode(raw).rstrip(b"=")]


def places_of(secret: str, places: dict[str, bytes]) -> list[str]:
    """Return the names of the *places* that have *secret* in them."""
    return [name for name, content in places.items() if any(spelling in content for spelling in spellings(secret))]


def signed(key: support_service.Trader, nonce_ms: int, secret: str | None = None) -> tuple[dict[str, str], str]:
    """Return the parameters of a signed request, and their signature."""
    params = {"accesskey": key.accesskey, "nonce": str(nonce_ms)}
    text = "&".join(f"{name}={params[name]}" for name in sorted(params))
    signature = hmac.new((secret or key.secretkey).encode(), text.encode(), hashlib.sha256).hexdigest()
    return {**params, "signature": signature}, signature


def family(pid: int) -> Iterator[int]:
    """Yield the process *pid* and all that descend from it."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


class Canaries:
    """
    A service that was used in every way that has to do with secrets, and what it left in the meantime.

    Args:
        service: The service, started with the master key in its environment.
        url: The database that it is on; None: it is on a data folder.
    """

    def __init__(self, service: support_service.Service, url: str | None = None) -> None:
        self.service = service
        self.url = url
        self.answers: list[str] = []
        self.metrics = b""
        self.children: dict[str, bytes] = {}
        service.list_coins(usdt=8)
        self.trader = service.trader("alice", {"usdt": ("10", "0")})
        self.revoked = service.trader("bob")
        made = service.write("/v1/tokens", {"scopes": ["ledger:read"], "label": "reader"}, "token")
        self.token = str(made["token"])
        rotated = service.trader("carol")
        self.rotated = service.write(f"/v1/keys/{rotated.accesskey}/rotate", {})
        self.secrets = {
            "secret": self.trader.secretkey,
            "secret of a revoked key": self.revoked.secretkey,
            "secret of a key that was rotated": rotated.secretkey,
            "secret of its successor": str(self.rotated["secretkey"]),
            "token": self.token,
            "first token": service.token,
            "master key": MASTER_KEY,
        }
        self.signatures: list[str] = []
        self._use()
        if url is None:
            self._keep(service.client().post("/v1/backups", json={"file": "canary.backup"}))
        else:
            self._damage_a_key(url)

    @property
    def hidden(self) -> dict[str, str]:
        """What must be nowhere."""
        return self.secrets | {f"signature {number}": text for number, text in enumerate(self.signatures)}

    @property
    def accesskeys(self) -> list[str]:
        """What must be in no output, whole."""
        return [self.trader.accesskey, self.revoked.accesskey, str(self.rotated["accesskey"])]

    def _use(self) -> None:
        client = self.service.client()
        reader = {"Authorization": f"Bearer {self.token}"}
        self._keep(client.delete(f"/v1/keys/{self.revoked.accesskey}"))
        self._keep(
            client.post(
                "/v1/tokens", json={"scopes": ["ledger:read"], "label": "reader"}, headers={"Idempotency-Key": "token"}
            )
        )
        for method, path, more in (
            ("GET", "/v1/keys", {}),
            ("GET", "/v1/tokens", {}),
            ("GET", "/v1/entries", {}),
            ("GET", "/metrics", {}),
            ("GET", "/v1/access-log", {}),
            ("GET", f"/v1/{self.token}", {}),
            ("GET", "/v1/coins", {"headers": reader}),
            ("GET", "/v1/keys", {"headers": reader}),
            ("POST", "/v1/deposits", {"content": b"{", "headers": reader}),
            ("GET", "/v1/coins", {"headers": {"Authorization": f"Bearer {self.token}x"}}),
            ("GET", "/v1/coins", {"headers": {"Authorization": f"Basic {self.token}"}}),
        ):
            self._keep(client.request(method, path, **more))
        now_ms = int(time.time() * 1000)
        for number, (key, secret) in enumerate(((self.trader, None), (self.revoked, None), (self.trader, "0" * 64))):
            params, signature = signed(key, now_ms + number, secret)
            self.signatures.append(signature)
            for path in ("getBalance", "getFunds", "nothing"):
                self._keep(httpx2.get(f"{self.service.public_url}/trade/api/v1/{path}", params=params))
                self._keep(
                    httpx2.get(f"{self.service.public_url}/trade/api/v1/{path}", params={**params, "nonce": "x"})
                )
        audit = client.post("/v1/audits").json()["audit"]
        while client.get(f"/v1/audits/{audit}").json()["state"] == "running":
            self._look_at_children()
        for number in range(20):  # so that segments are sealed
            service_write = {"customer": "alice", "coin": "usdt", "amount": "1"}
            self._keep(client.post("/v1/deposits", json=service_write, headers={"Idempotency-Key": f"d{number}"}))
            self._look_at_children()
        self.access_log = client.get("/v1/access-log").content
        self._keep(client.get("/v1/access-log"))
        self.metrics = client.get("/metrics").content + httpx2.get(f"{self.service.public_url}/readyz").content

    def _damage_a_key(self, url: str) -> None:
        """Have requests fail unexpectedly: the stored secret of an access key that was not used yet is altered."""
        victim = self.service.trader("dave")
        self.secrets["secret of a damaged key"] = victim.secretkey
        with psycopg.connect(url, autocommit=True) as connection:
            changed = connection.execute(
                "UPDATE access_keys SET sealed_secret = sealed_secret || '\\x00' WHERE accesskey = %s",
                [victim.accesskey],
            )
            assert changed.rowcount == 1
        params, signature = signed(victim, int(time.time() * 1000))
        self.signatures.append(signature)
        answer = httpx2.get(f"{self.service.public_url}/trade/api/v1/getBalance", params=params)
        self._keep(answer)
        assert answer.json()["code"] == 404, "the damage is noticed"

    def _look_at_children(self) -> None:
        """Keep the arguments and environments of the processes that the service started; some end soon."""
        for pid in list(family(self.service.process.pid))[1:]:
            with contextlib.suppress(OSError):
                self.children[f"arguments of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
                self.children[f"environment of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()

    def _keep(self, answer: Any) -> None:
        self.answers.append(f"{answer.status_code} {answer.headers} {answer.text}")

    def output(self) -> dict[str, bytes]:
        """Return what the service has said: its log at debug level, its answers, arguments and environments."""
        said = {"log": self.service.stderr.read_bytes(), "answers": "\n".join(self.answers).encode()}
        said["metrics"] = self.metrics
        said["arguments"] = Path(f"/proc/{self.service.process.pid}/cmdline").read_bytes()
        return said | self.children

    def files(self) -> dict[str, bytes]:
        """Return what is on the disk: databases, write-ahead logs, notes, backups; the first token's file excepted."""
        found = [path for path in self.service.folder.rglob("*") if path.is_file() and path.name != "operator.token"]
        return {str(path.relative_to(self.service.folder)): path.read_bytes() for path in found}


def tables_of(url: str) -> dict[str, bytes]:
    """Return what is in each table of a database, as bytes that are not written in digits."""
    found = {}
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            with connection.cursor().copy(f'COPY "{table}" TO STDOUT (FORMAT binary)') as copy:
                found[f"table {table}"] = b"".join(copy)
    return found


def files_of(url: str, before: str) -> dict[str, bytes]:
    """Return the files of a database on its server, and its write-ahead log since the position *before*."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        settings = "current_setting('data_directory'), current_setting('wal_segment_size')"
        row = connection.execute(
            f"SELECT {settings}, (SELECT oid FROM pg_database WHERE datname = current_database()),"
            " pg_walfile_name(%s::pg_lsn), pg_walfile_name(pg_current_wal_lsn())",
            [before],
        ).fetchone()
    assert row is not None
    data = Path(row[0])
    logs = [path for path in (data / "pg_wal").iterdir() if row[3] <= path.name <= row[4]]
    files = [path for path in (data / "base" / str(row[2])).iterdir() if path.is_file()]
    return {str(path.relative_to(data)): path.read_bytes() for path in [*files, *logs]}


def check(canaries: Canaries, output: dict[str, bytes], files: dict[str, bytes]) -> None:
    """Look for every secret everywhere; for whole access keys in all output but what lists them for the operator."""
    found = {what: places_of(secret, output | files) for what, secret in canaries.hidden.items()}
    assert {what: places for what, places in found.items() if places} == {}
    said = {name: content for name, content in output.items() if name not in ("answers", "output of a restore")}
    assert {"log", "metrics", "arguments"} < set(said)
    assert any(name.startswith("environment of") for name in said), "that of an audit at least"
    shown = {key[:8]: places_of(key, said) for key in canaries.accesskeys}
    assert {key: places for key, places in shown.items() if places} == {}


@pytest.fixture
def canaries(service: Callable[..., Service]) -> Canaries:
    return Canaries(service(env={"SPOTLEDGER_MASTER_KEY": MASTER_KEY}, log_level="debug", segment_entries=8))


def test_secrets_are_in_no_output_argument_environment_or_file(canaries: Canaries, tmp_path: Path) -> None:
    """Secret, signature, token, master key: nowhere. A whole access key: in no log, argument or environment."""
    output, files = canaries.output(), canaries.files()
    assert {"journal.db", "keys.db", "keys.db-wal", "backups/canary.backup"} <= set(files)
    backup, restored = canaries.service.folder / "backups" / "canary.backup", tmp_path / "restored"
    done = support_service.run(
        "restore", backup, "--data", restored, env=support_service.environment(SPOTLEDGER_MASTER_KEY=MASTER_KEY)
    )
    assert done.returncode == 0, done.stderr
    output |= {"output of a restore": (done.stdout + done.stderr).encode()}
    files |= {f"restored {path.name}": path.read_bytes() for path in restored.rglob("*") if path.is_file()}
    check(canaries, output, files)
    for place in ("backups/canary.backup", "restored keys.db"):
        assert place in places_of(canaries.trader.accesskey, files), "what is looked for would be found"


def test_secrets_are_nowhere_on_postgres_either(service: Callable[..., Service], postgres_url: str) -> None:
    """Tables, files and write-ahead log of the server, and all output; the password of the database, too."""
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert row is not None
    env = {"SPOTLEDGER_MASTER_KEY": MASTER_KEY, "SPOTLEDGER_DATABASE": postgres_url}
    canaries = Canaries(service(env=env, log_level="debug", segment_entries=8), postgres_url)
    files = tables_of(postgres_url) | files_of(postgres_url, row[0]) | canaries.files()
    output = canaries.output()
    check(canaries, output, files)
    # The process of an audit needs it, and has it where only the same user can look.
    elsewhere = {name: content for name, content in output.items() if not name.startswith("environment of")}
    assert places_of(str(urlsplit(postgres_url).password), elsewhere | files) == []
    found = places_of(canaries.trader.accesskey, files)
    assert "table access_keys" in found
    assert any(name.startswith("pg_wal/") for name in found)
    assert any(name.startswith("base/") for name in found), "what is looked for would be found"


def test_access_log_has_who_and_why_and_no_secret_or_whole_key(canaries: Canaries) -> None:
    """The log tells every cause that happened, and has of tokens the id, of access keys the first 8 characters."""
    service = canaries.service
    files = {name: content for name, content in canaries.files().items() if name.startswith("access-log.db")}
    places = {"answer": canaries.access_log, **files}
    assert {"access-log.db", "access-log.db-wal"} <= set(files)
    lines = json.loads(canaries.access_log)["lines"]
    reasons = {"token_unknown", "token_missing", "scope_missing", "signature_refused", "access_key_revoked", None}
    assert {line["reason"] for line in lines} >= reasons
    for key in (canaries.trader, canaries.revoked):
        assert f"key:{key.accesskey[:8]}" in {line["actor"] for line in lines}
        hidden = (key.accesskey, key.accesskey.replace("-", ""), key.accesskey[9:], key.secretkey)
        assert [places_of(secret, places) for secret in hidden] == [[]] * 4
    for secret in (service.token, canaries.token, MASTER_KEY, *canaries.signatures):
        for part in (secret, secret[:8], secret[:16], secret[-16:]):
            assert places_of(part, places) == []


def test_crash_of_a_serving_process_leaves_no_core_and_no_secret_in_its_traceback(
    service: Callable[..., Service],
) -> None:
    """A process that holds secrets in memory writes no core file, and its children do not either."""
    running = service(env={"SPOTLEDGER_MASTER_KEY": MASTER_KEY}, log_level="debug")
    running.list_coins(usdt=8)
    for pid in family(running.process.pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
    os.kill(running.process.pid, signal.SIGABRT)
    assert running.process.wait(20) == -signal.SIGABRT
    assert not list(running.folder.parent.glob("core*"))
    assert places_of(MASTER_KEY, {"log": running.stderr.read_bytes()}) == []
