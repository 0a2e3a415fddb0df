"""An access key whose row was damaged before its sum was taken: the listener says so, and so does the audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import support_service
from spotledger.audit.embedded import audit_file
from spotledger.client import SpotClient
from spotledger.errors import LedgerDamaged
from spotledger.ops.runtime import claim_folder, open_runtime
from spotledger.ops.settings import Settings
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import AccessKeyDamaged
from spotledger.storage.sqlite.keys import store_sum
from support_core import raw

DAMAGES = {
    "a changed byte": "UPDATE access_keys SET sealed_secret = zeroblob(length(sealed_secret) - 1)",
    "another format": "UPDATE access_keys SET sealed_secret = CAST(X'02' || substr(sealed_secret, 2) AS BLOB)",
    "cut": "UPDATE access_keys SET sealed_secret = substr(sealed_secret, 1, 20)",
    "empty": "UPDATE access_keys SET sealed_secret = X'01'",
}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[str]]:
    """Make a ledger with two access keys; return its folder and the keys."""
    folder = tmp_path / "data"
    with claim_folder(folder) as lock, open_runtime(Settings(data=folder), {}, lock) as runtime:
        for name in ("alice", "bob"):
            runtime.ledger.register_customer(name, key=name)
        return folder, [runtime.key_ring.create(name, ["read"])[0] for name in ("alice", "bob")]


def _change(folder: Path, statement: str) -> None:
    """Change rows so that pages and the sum over the rows check, as where memory failed before they were written."""
    with raw(folder, "keys.db") as connection:
        connection.execute(statement)
        store_sum(connection)


def _ring(runtime: object) -> KeyRing:
    return runtime.key_ring  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("damage", DAMAGES)
def test_secret_that_does_not_open_is_damage_and_the_audit_names_it(damage: str, made: tuple[Path, list[str]]) -> None:
    """It is no outage: trying again does not help. The journal is not in doubt."""
    folder, keys = made
    _change(folder, DAMAGES[damage])
    with claim_folder(folder) as lock, open_runtime(Settings(data=folder), {}, lock) as runtime:
        with pytest.raises(AccessKeyDamaged, match=keys[0][:8]) as raised:
            _ring(runtime).ready(keys[0])
        assert not raised.value.stops_writes
        assert keys[0] not in str(raised.value)
    report = audit_file(folder / "journal.db")
    found = {(finding.code, finding.where, finding.found) for finding in report.findings}
    assert (report.verdict, found) == (
        "damaged",
        {("access_key_malformed", f"access_keys {key[:8]}…", "sealed_secret") for key in keys},
    )


@pytest.mark.parametrize(
    ("column", "value"), [("permissions", ["fly"]), ("addresses", ["somewhere"]), ("addresses", ["10.0.0.1/8"])]
)
def test_list_with_a_text_that_means_nothing_is_named_by_the_audit(
    column: str, value: list[str], made: tuple[Path, list[str]]
) -> None:
    """A row of the right form whose content cannot be."""
    folder, keys = made
    _change(folder, f"UPDATE access_keys SET {column} = '{json.dumps(value)}'")
    if column == "addresses":
        with (
            claim_folder(folder) as lock,
            open_runtime(Settings(data=folder), {}, lock) as runtime,
            pytest.raises(AccessKeyDamaged, match=keys[0][:8]),
        ):
            _ring(runtime).ready(keys[0])
    report = audit_file(folder / "journal.db")
    assert {(finding.code, finding.found) for finding in report.findings} == {("access_key_malformed", column)}


def test_audit_without_the_master_key_or_with_another_one_does_not_doubt_secrets(
    made: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be checked is no finding."""
    folder, _ = made
    monkeypatch.setenv("SPOTLEDGER_MASTER_KEY", "ab" * 32)
    assert audit_file(folder / "journal.db").verdict == "clean"
    monkeypatch.delenv("SPOTLEDGER_MASTER_KEY")
    (folder / "master.key").unlink()
    assert audit_file(folder / "journal.db").verdict == "clean"


def test_trader_whose_secret_is_damaged_is_told_so_and_others_are_served(tmp_path: Path) -> None:
    """The public listener answers as for damage, not as for an outage, and its log names the key; others go on."""
    running = support_service.start(tmp_path / "data")
    running.list_coins(usdt=8)
    alice, bob = (running.trader(name, {"usdt": ("10", "0")}) for name in ("alice", "bob"))
    running.stop()
    _change(running.folder, f"{DAMAGES['cut']} WHERE accesskey = '{alice.accesskey}'")
    running = support_service.start(running.folder)
    try:
        with SpotClient(alice.accesskey, alice.secretkey, running.public_url) as client, pytest.raises(LedgerDamaged):
            client.balances()
        with SpotClient(bob.accesskey, bob.secretkey, running.public_url) as client:
            assert client.balances()["usdt"].available == 10
        assert running.client().get("/readyz").status_code == 200
        running.write("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"})
    finally:
        running.stop()
    log = running.stderr.read_text()
    assert " CRITICAL " in log
    assert alice.accesskey[:8] in log
    assert alice.accesskey not in log
