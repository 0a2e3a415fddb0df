"""Operator tokens on the command line, with and without a server: from the first one's leak to its end."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

import support_service
from servers.kept import until
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


def test_feed_finds_what_a_credential_wrote(data: Path, tmp_path: Path) -> None:
    """Commands and imports name the token that they used, without a server the library; one actor can be asked for."""
    told(data, "coin", "add", "usdt", "--scale", "8")
    told(data, "customer", "add", "alice")
    told(data, "deposit", "alice", "usdt", "5", "--key", "d1")
    file = tmp_path / "balances.csv"
    file.write_text("customer,coin,amount,key\nalice,usdt,7,i1\n")
    done = spotledger(data, "import", "balances", file)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in spotledger(data, "feed", "--json").stdout.splitlines()]
    assert [line["key"] for line in lines][-2:] == ["d1", "i1"]
    (actor,) = {line["actor"] for line in lines}
    if read_owner(data) is None:
        assert (actor, {line.get("actor_label") for line in lines}) == ("library", {None})
    else:
        ids = {found["token_id"] for found in told(data, "token", "list")["tokens"]}
        assert (actor, {line["actor_label"] for line in lines}) == (f"token:{ids.pop()}", {"operator.token"})
    assert spotledger(data, "feed", "--actor", actor).stdout == spotledger(data, "feed").stdout
    assert f" by {actor}" in spotledger(data, "feed").stdout
    nothing = spotledger(data, "feed", "--actor", "ledger")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    wrong = spotledger(data, "feed", "--actor", "alice")
    assert (wrong.returncode, "token:ID" in wrong.stderr) == (1, True)


def test_token_with_expiry_and_addresses_is_shown_with_its_state(data: Path, tmp_path: Path) -> None:
    """A list says whether a token is in use, expired or revoked, where it may be used from, and when it was."""
    made = {
        label: told(data, "token", "create", "--scope", "ledger:read", "--label", label, "--expires", expires, *more)
        for label, expires, *more in (
            ("long", "90d", "--address", "10.0.0.0/8", "--address", "::1"),
            ("short", "1s"),
            ("gone", "90d"),
        )
    }
    assert made["long"]["addresses"] == ["10.0.0.0/8", "::1/128"]
    assert made["long"]["expires_ms"] - made["long"]["created_ms"] > 89 * 86_400_000
    told(data, "token", "revoke", made["gone"]["token_id"])

    def states() -> dict[str, str]:
        rows = spotledger(data, "token", "list").stdout.splitlines()[1:]
        found = {label: row for label in made for row in rows if row.rstrip().endswith(label)}
        return {label: next(s for s in ("in use", "expired", "revoked") if s in row) for label, row in found.items()}

    until(lambda: states() == {"long": "in use", "short": "expired", "gone": "revoked"})
    table = spotledger(data, "token", "list").stdout
    assert "10.0.0.0/8, ::1/128" in table
    assert "never" in table
    wrong = spotledger(data, "token", "create", "--scope", "admin", "--address", "10.0.0.1/8", "--json")
    assert (wrong.returncode, json.loads(wrong.stderr)["field"]) == (1, "addresses")
