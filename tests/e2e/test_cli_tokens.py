"""Operator tokens on the command line, with and without a server: from the first one's leak to its end."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

import support_service
from spotledger.storage.folder import read_owner
from support_service import Service

Told = subprocess.CompletedProcess[str]


def spotledger(data: Path, *arguments: str | Path) -> Told:
    """Run a command on the data folder *data*."""
    return support_service.run(*arguments, "--data", data)


def told(data: Path, *arguments: str | Path) -> Any:
    """Run a command that must succeed, and return its JSON document."""
    done = spotledger(data, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["alone", "served"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give a data folder with a ledger, which a server owns or nobody does."""
    if request.param == "served":
        running: Service = request.getfixturevalue("service")(tmp_path / "data")
        return running.folder
    told(tmp_path / "data", "coin", "add", "usdt", "--scale", "8")
    return tmp_path / "data"


def test_token_from_creation_to_revocation(data: Path, tmp_path: Path) -> None:
    """What is made is listed and can be revoked, as a table and as JSON; a token is shown once and never listed."""
    made = told(data, "token", "create", "--scope", "ledger:read", "--label", "engine", "--key", "t1")
    assert told(data, "token", "create", "--scope", "ledger:read", "--label", "engine", "--key", "t1")["token"] is None
    again = spotledger(data, "token", "create", "--scope", "ledger:read", "--label", "engine", "--key", "t1")
    assert "was shown when it was made" in again.stdout
    listed = {found["token_id"]: found for found in told(data, "token", "list")["tokens"]}
    assert len(listed) == 2
    assert listed[made["token_id"]]["label"] == "engine"
    table = spotledger(data, "token", "list").stdout
    assert table.splitlines()[0].split() == [
        "token_id",
        "fingerprint",
        "scopes",
        "state",
        "made",
        "last",
        "used",
        "from",
        "label",
    ]
    assert listed[made["token_id"]]["fingerprint"] in table
    assert made["token"] not in table
    revoked = spotledger(data, "token", "revoke", made["token_id"])
    assert revoked.stdout == f"token {made['token_id']} is revoked\n"
    assert told(data, "token", "revoke", made["token_id"])["revoked_ms"] is not None
    assert spotledger(data, "token", "list").stdout.count("revoked") == 1
    for wrong, code in ((listed.keys() - {made["token_id"]}, "last_admin_token"), ({"nobody"}, "not_found")):
        refused = spotledger(data, "token", "revoke", wrong.pop(), "--json")
        assert refused.returncode == 1
        assert json.loads(refused.stderr)["code"] == code


def test_first_token_that_leaked_is_replaced_without_a_stop(data: Path, tmp_path: Path) -> None:
    """A new token is written to a file that only its owner reads, takes the old one's place, and ends it."""
    new, old_token = tmp_path / "new.token", (data / "operator.token").read_text().strip()
    shown = spotledger(data, "token", "create", "--scope", "admin", "--write", new)
    assert shown.returncode == 0, shown.stderr
    assert f"is in {new}" in shown.stdout
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert new.read_text().strip() not in shown.stdout
    taken = spotledger(data, "token", "create", "--scope", "admin", "--write", new)
    assert (taken.returncode, "is there already" in taken.stderr) == (1, True)
    nowhere = spotledger(data, "token", "create", "--scope", "admin", "--write", tmp_path / "none" / "x")
    assert (nowhere.returncode, "none does not exist; create it" in nowhere.stderr) == (3, True)
    first = next(found for found in told(data, "token", "list")["tokens"] if found["label"] == "operator.token")
    new.replace(data / "operator.token")
    assert told(data, "token", "revoke", first["token_id"])["revoked_ms"] is not None
    assert len(told(data, "token", "list")["tokens"]) == 2
    (data / "operator.token").write_text(old_token)
    listed = spotledger(data, "coin", "list")
    if read_owner(data) is not None:
        assert listed.returncode == 1
        assert f"The operator token in {data / 'operator.token'} is revoked" in listed.stderr
    else:
        assert listed.returncode == 0


def test_token_written_under_a_key_that_was_used_is_refused(data: Path, tmp_path: Path) -> None:
    """A repeat has no token to write; nothing is written, and what would pass is said."""
    file = tmp_path / "again"
    arguments = ("token", "create", "--scope", "ledger:read", "--key", "k", "--write", file)
    assert spotledger(data, *arguments).returncode == 0
    file.unlink()
    refused = spotledger(data, *arguments)
    assert refused.returncode == 1
    assert "use another --key" in refused.stderr
    assert not file.exists()
