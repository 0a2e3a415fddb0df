"""The commands backup, restore, export and import, with and without a server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import spotledger
import support_service
from spotledger.cli.main import program
from spotledger.domain.accounts import Account
from support_books import check_books
from support_service import Service


def run(data: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    """Run a command on the data folder *data* within this process."""
    kept = {name: None for name in os.environ if name.startswith("SPOTLEDGER_")}
    return CliRunner().invoke(
        program,
        list(map(str, arguments)),
        prog_name="spotledger",
        env={**kept, "SPOTLEDGER_DATA": str(data), **(env or {})},
        catch_exceptions=False,
    )


def told(data: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command that must succeed, and return its JSON document."""
    done = run(data, *arguments, "--json", env=env)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def prepared(data: Path) -> None:
    """Make a ledger with a customer, some money and an access key."""
    for command in (
        "coin add usdt --scale 8",
        "customer add alice",
        "deposit alice usdt 100.50 --key d1",
        "freeze alice usdt 30 --key f1",
        "key create --customer alice --permission read",
    ):
        done = run(data, *command.split())
        assert done.exit_code == 0, done.output


@pytest.fixture(params=["without a server", "with a server"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A data folder, once without a server and once owned by a running one."""
    folder = tmp_path / "data"
    prepared(folder)
    service: Service | None = support_service.start(folder) if request.param == "with a server" else None
    try:
        yield folder
    finally:
        if service is not None:
            assert service.stop() == 0


def test_backup_and_restore_by_command_carry_a_ledger_to_a_new_folder(data: Path, tmp_path: Path) -> None:
    """What is backed up is restored with its balances, keys and tokens, in epoch 2, and serves again."""
    file = tmp_path / "first.backup"
    made = told(data, "backup", file)
    assert (made["file"], made["epoch"]) == (str(file), 1)
    assert list((data / "backups").iterdir()) == []
    assert run(data, "backup", file).exit_code == 1
    assert run(data, "deposit", "alice", "usdt", "7", "--key", "late").exit_code == 0
    new = tmp_path / "new"
    refused = run(new, "restore", file, "--data", new)
    assert refused.exit_code == 1
    assert "--without-master-key" in refused.stderr
    found = told(new, "restore", file, "--data", new, "--master-key-file", data / "master.key")
    assert (found["seq"], found["hash"], found["ledger_id"]) == (made["seq"], made["hash"], made["ledger_id"])
    assert (found["epoch"], found["backup_epoch"], found["audit"]) == (2, 1, "clean")
    assert (found["access_keys"], found["operator_token"]) == (True, False)
    assert check_books(new).head == made["seq"] + 1
    key = {"SPOTLEDGER_MASTER_KEY": (data / "master.key").read_text()}
    balances = told(new, "balances", "alice", env=key)["balances"]
    assert balances["usdt"] == {"available": "70.50", "freeze": "30.00"}
    again = told(new, "deposit", "alice", "usdt", "7", "--key", "late", env=key)
    assert (again["replayed"], again["seq"], again["epoch"]) == (False, made["seq"] + 2, 2)
    assert told(new, "deposit", "alice", "usdt", "100.50", "--key", "d1", env=key)["replayed"]
    assert run(new, "restore", file, "--data", new).exit_code == 1


def test_restored_server_takes_the_old_tokens_and_access_keys(tmp_path: Path) -> None:
    """With the master key and the operator token back in place, a server on the restored folder answers as before."""
    data, new = tmp_path / "data", tmp_path / "new"
    prepared(data)
    told(data, "backup", tmp_path / "b")
    new.mkdir(mode=0o700)
    for name in ("master.key", "operator.token"):
        (new / name).write_bytes((data / name).read_bytes())
        (new / name).chmod(0o600)
    assert told(new, "restore", tmp_path / "b", "--data", new)["operator_token"]
    service = support_service.start(new)
    try:
        assert [key["revoked_ms"] for key in told(new, "key", "list")["keys"]] == [None]
        assert told(new, "customer", "list")["customers"] == ["alice"]
    finally:
        service.stop()


def test_restore_says_that_what_was_revoked_since_works_again(tmp_path: Path) -> None:
    """A revocation after the backup is not in it: restore tells so, and it can be made again before anybody calls."""
    data, new = tmp_path / "data", tmp_path / "new"
    prepared(data)
    token_id = told(data, "token", "create", "--scope", "ledger:read")["token_id"]
    told(data, "backup", tmp_path / "b")
    told(data, "token", "revoke", token_id)
    done = run(new, "restore", tmp_path / "b", "--data", new, "--master-key-file", data / "master.key")
    assert done.exit_code == 0, done.output
    assert "access keys and operator tokens that were revoked after the backup work again" in done.stdout
    assert f"token {token_id}" in done.stdout
    assert "of alice" in done.stdout
    (new / "master.key").write_bytes((data / "master.key").read_bytes())
    (new / "master.key").chmod(0o600)
    states = {found["token_id"]: found["revoked_ms"] for found in told(new, "token", "list")["tokens"]}
    assert states[token_id] is None
    assert told(new, "token", "revoke", token_id)["revoked_ms"] is not None


def test_restore_in_place_keeps_revoked_what_was_revoked(tmp_path: Path) -> None:
    """Where the folder has lost only its journal, what was revoked since the backup stays so, unless told otherwise."""
    data, file = tmp_path / "data", tmp_path / "b"
    prepared(data)
    token_id = told(data, "token", "create", "--scope", "ledger:read")["token_id"]
    told(data, "backup", file)
    told(data, "token", "revoke", token_id)
    (data / "journal.db").unlink()
    refused = run(data, "balances", "alice")
    assert refused.exit_code == 1
    assert "no ledger" in refused.stderr
    found = told(data, "restore", file, "--data", data)
    assert (found["epoch"], found["kept_revoked"], found["came_back"]) == (2, 1, None)
    assert {one["token_id"]: one["revoked_ms"] for one in told(data, "token", "list")["tokens"]}[token_id]
    (data / "journal.db").unlink()
    again = told(data, "restore", file, "--data", data, "--credentials-from-backup")
    assert (again["epoch"], again["kept_revoked"]) == (3, None)
    assert token_id in [token["token_id"] for token in again["came_back"]["tokens"]]
    assert [key["customer"] for key in again["came_back"]["access_keys"]] == ["alice"]
    assert told(data, "balances", "alice")["balances"]["usdt"] == {"available": "70.50", "freeze": "30.00"}


def test_restore_in_place_after_all_tokens_were_replaced_asks_for_a_new_one(tmp_path: Path) -> None:
    """Tokens since the backup are gone and the older ones stay revoked: restore says so, and a new one can be made."""
    data, file = tmp_path / "data", tmp_path / "b"
    prepared(data)
    [first] = told(data, "token", "list")["tokens"]
    told(data, "backup", file)
    told(data, "token", "create", "--scope", "admin")
    told(data, "token", "revoke", first["token_id"])
    (data / "journal.db").unlink()
    done = run(data, "restore", file, "--data", data)
    assert done.exit_code == 0, done.output
    assert "no operator token with the scope admin is left" in done.stdout
    assert told(data, "token", "create", "--scope", "admin")["token"]
    (data / "journal.db").unlink()
    assert told(data, "restore", file, "--data", data)["admin_token"] is False


def test_restored_ledger_without_its_master_key_serves_with_a_new_one(tmp_path: Path) -> None:
    """Where the master key is lost, the old access keys are revoked and new ones can be made."""
    data, new = tmp_path / "data", tmp_path / "new"
    prepared(data)
    told(data, "backup", tmp_path / "b")
    done = run(new, "restore", tmp_path / "b", "--data", new, "--without-master-key")
    assert done.exit_code == 0, done.output
    assert "all access keys are revoked" in done.stdout
    assert all(key["revoked_ms"] for key in told(new, "key", "list")["keys"])
    made = told(new, "key", "create", "--customer", "alice", "--permission", "read")
    assert made["secretkey"]


def test_restore_into_a_folder_that_is_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    """The folder of a running server, or one with a ledger, is named and left alone."""
    told(data, "backup", tmp_path / "b")
    refused = run(data, "restore", tmp_path / "b", "--data", data)
    assert refused.exit_code == 1
    assert "owned by process" in refused.stderr or "has a ledger already" in refused.stderr


def test_backup_from_afar_stays_with_the_server(tmp_path: Path) -> None:
    """With --operator-url the file is a name in the server's own folder."""
    prepared(tmp_path / "data")
    service = support_service.start(tmp_path / "data")
    try:
        afar = ("--operator-url", service.operator_url, "--token-file", tmp_path / "data" / "operator.token")
        assert told(tmp_path, "backup", "remote", *afar)["file"] == "remote"
        assert (tmp_path / "data" / "backups" / "remote").is_file()
        assert run(tmp_path, "backup", tmp_path / "x", *afar).exit_code == 1
    finally:
        service.stop()


def test_export_by_command_writes_both_formats(data: Path, tmp_path: Path) -> None:
    """The journal is written beside a server or without one; a second export goes on after the first."""
    lines = told(data, "export", "journal", tmp_path / "j.jsonl")
    assert lines["entries"] == lines["seq"] == len((tmp_path / "j.jsonl").read_bytes().splitlines())
    table = told(data, "export", "journal", tmp_path / "j.parquet", "--format", "parquet")
    assert (table["hash"], table["epoch"]) == (lines["hash"], 1)
    assert run(data, "deposit", "alice", "usdt", "1", "--key", "d9").exit_code == 0
    more = told(data, "export", "journal", tmp_path / "more", "--after-seq", str(lines["seq"]))
    assert more["entries"] == 1
    assert run(data, "export", "journal", tmp_path / "more").exit_code == 1
    assert run(data, "export", "journal", tmp_path / "n", "--format", "xml").exit_code == 2
    assert run(tmp_path / "nowhere", "export", "journal", tmp_path / "n").exit_code == 1


CSV = "customer,coin,amount,account,reference\r\nalice,usdt,10.5,,\r\nbob,usdt,3,wallet,old 7\r\ncarl,usdt,0.1,,\r\n"


def test_import_by_command_books_each_line_once(data: Path, tmp_path: Path) -> None:
    """The same file again books nothing; a line whose amount was changed is a conflict and not a second deposit."""
    file = tmp_path / "opening.csv"
    file.write_bytes(CSV.encode())
    refused = run(data, "import", "balances", file)
    assert refused.exit_code == 1
    assert "line 3: customer bob" in refused.stderr
    assert "line 4: customer carl" in refused.stderr
    assert told(data, "import", "balances", file, "--register", "--check") == {
        "file": str(file), "lines": 3, "to_register": 2, "zeros": 0,
    }  # fmt: skip
    assert told(data, "customer", "list")["customers"] == ["alice"]
    first = told(data, "import", "balances", file, "--register")
    assert (first["booked"], first["repeated"], first["registered"], first["refused"]) == (3, 0, 2, [])
    again = told(data, "import", "balances", file, "--register")
    assert (again["booked"], again["repeated"], again["registered"], again["refused"]) == (0, 3, 0, [])
    file.write_bytes(CSV.replace("10.5", "11").encode())
    changed = run(data, "import", "balances", file, "--json")
    assert changed.exit_code == 1
    found = json.loads(changed.stdout)
    assert [(line["line"], line["code"]) for line in found["refused"]] == [(2, "idempotency_conflict")]
    assert told(data, "balances", "bob", "--account", "wallet")["balances"]["usdt"]["available"] == "3.00"


def test_import_of_balances_of_house_accounts_needs_them_open(data: Path, tmp_path: Path) -> None:
    """They are booked like those of customers, and held too; what is the ledger's own has no opening balance."""
    file = tmp_path / "balances.csv"
    file.write_text("customer,coin,available,freeze,account\n@treasury,usdt,10,2.5,\n@fees,usdt,1,0,\n")
    refused = run(data, "import", "balances", file, "--register")
    assert refused.exit_code == 1
    assert "line 2: house account @treasury is not open; open it first" in refused.stderr
    told(data, "house-account", "open", "treasury")
    assert told(data, "import", "balances", file)["booked"] == 2
    assert told(data, "import", "balances", file)["repeated"] == 2
    balances = told(data, "balances", "@treasury")["balances"]["usdt"]
    assert (balances["available"], balances["freeze"]) == ("10.00", "2.50")
    for line, said in (
        ("@external,usdt,1,0,", "only the ledger itself moves money"),
        ("@fees,usdt,1,0,spot", "account is given for @fees, which has none"),
    ):
        file.write_text(f"customer,coin,available,freeze,account\n{line}\n")
        assert said in run(data, "import", "balances", file, "--register").stderr


def test_import_of_frozen_balances_opens_a_hold_for_each(data: Path, tmp_path: Path) -> None:
    """What is frozen is held with the reference of its line; a column that is added later books only what it adds."""
    file = tmp_path / "opening.csv"
    file.write_text("customer,coin,available\nalice,usdt,100\ndora,usdt,0\n")
    first = told(data, "import", "balances", file, "--register")
    assert (first["booked"], first["zeros"], first["registered"]) == (1, 1, 0)
    before = told(data, "balances", "alice")["balances"]["usdt"]
    file.write_text("customer,coin,available,freeze\nalice,usdt,100,25.5\nerin,usdt,0,1\n")
    assert told(data, "import", "balances", file, "--register")["booked"] == 2
    after = told(data, "balances", "alice")["balances"]["usdt"]
    assert after["available"] == before["available"]
    assert Decimal(after["freeze"]) - Decimal(before["freeze"]) == Decimal("25.5")
    [hold] = told(data, "holds", "erin")["holds"]
    assert (hold["remaining"], hold["state"]) == ("1.00", "open")
    assert told(data, "import", "balances", file)["repeated"] == 2
    file.write_text("customer,coin,available,freeze\nalice,usdt,100,26\n")
    changed = json.loads(run(data, "import", "balances", file, "--json").stdout)
    assert [(line["line"], line["code"]) for line in changed["refused"]] == [(2, "idempotency_conflict")]
    check_books(data)


def test_import_of_many_lines_ends_where_it_was_cut_off_and_is_done_again(tmp_path: Path) -> None:
    """More lines than one request holds are all booked, and those that were booked before are repeats."""
    data, file = tmp_path / "data", tmp_path / "many.csv"
    prepared(data)
    lines = [f"c{n},usdt,{n + 1}.00000001" for n in range(1200)]
    file.write_text("\n".join(["customer,coin,amount", *lines[:700]]))
    assert told(data, "import", "balances", file, "--register")["booked"] == 700
    file.write_text("\n".join(["customer,coin,amount", *lines]))
    done = told(data, "import", "balances", file, "--register")
    assert (done["booked"], done["repeated"], done["registered"]) == (500, 700, 500)
    check_books(data)
    with spotledger.open(data) as ledger:
        for number in (0, 699, 700, 1199):
            units = (number + 1) * 10**8 + 1
            assert ledger.balances(Account(f"c{number}", "spot"))["usdt"].available == units
