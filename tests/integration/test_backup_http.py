"""Backups over the operator API: names, states, scopes, and what happens at the same time."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from spotledger.http.operator import backups as operator_backups
from spotledger.storage.sqlite import copy as sqlite_copy
from support_archive import restored
from support_books import check_books
from support_core import past_triggers, raw
from support_operator import Api, operator_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """The operator API over a ledger with some money in it."""
    with operator_api(tmp_path / "data", segment_entries=64) as api:
        api.set_up()
        yield api


def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a backup of a small ledger take some time."""
    monkeypatch.setattr(sqlite_copy, "STEP_ENTRIES", 1)
    monkeypatch.setattr(sqlite_copy, "REST_SECONDS", 0.02)
    monkeypatch.setattr(operator_backups, "BACKUP_WAIT_SECONDS", 0.01)


def finished(api: Api, name: str) -> dict[str, object]:
    """Ask for the backup *name* until it is done."""

    async def ask() -> dict[str, object]:
        while True:
            answer = await api.http.get(f"/v1/backups/{name}", headers=api.headers())
            if answer.status_code != 202:
                assert answer.status_code == 200, answer.text
                return answer.json()
            assert answer.json()["state"] == "running"
            await asyncio.sleep(0.01)

    return api.run(ask())


def test_backup_call_makes_a_file_in_the_data_folder_and_says_what_it_holds(api: Api, tmp_path: Path) -> None:
    """The answer names the file, the head that is in it, the epoch and the mark of the master key."""
    answer = api.request("POST", "/v1/backups", json={"file": "monday.backup"}, headers=api.headers())
    assert answer.status_code == 200, answer.text
    told = answer.json()
    head = api.runtime.ledger.head
    assert (told["file"], told["state"]) == ("monday.backup", "done")
    assert (told["seq"], told["hash"], told["booked_ms"]) == (head.seq, head.hash.hex(), head.booked_ms)
    assert (told["ledger_id"], told["epoch"]) == (api.runtime.ledger.ledger_id, 1)
    assert told["master_key_fingerprint"] == api.runtime.ledger.key_tables.master_key_fingerprint
    file = tmp_path / "data" / "backups" / "monday.backup"
    assert told["bytes"] == file.stat().st_size
    assert b"5a" * 32 not in file.read_bytes()
    assert api.get("/v1/backups/monday.backup").json() == told
    restored(file, tmp_path / "new")
    assert check_books(tmp_path / "new").head == told["seq"] + 1


def test_backup_call_without_a_name_is_called_after_the_time(api: Api, tmp_path: Path) -> None:
    """No body, or an empty one, makes a file with the time in its name."""
    for content in (b"", b"{}"):
        answer = api.request("POST", "/v1/backups", content=content, headers=api.headers())
        assert answer.status_code == 200, answer.text
        assert (tmp_path / "data" / "backups" / answer.json()["file"]).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "../x", "/etc/passwd", "a/b", "..", ".", ".hidden", "", "a\0b", "a\nb", "a b", "é", "x" * 129, "a\\b", "-x",
        "%2e%2e%2fx",
    ],
)  # fmt: skip
def test_backup_call_with_a_name_that_is_a_path_is_refused(api: Api, tmp_path: Path, name: str) -> None:
    """Only a plain name passes, so nothing is written outside the folder of backups."""
    answer = api.request("POST", "/v1/backups", json={"file": name}, headers=api.headers())
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "file"
    found = api.request("GET", f"/v1/backups/{quote(name, safe='')}", headers=api.headers())
    assert found.status_code in (404, 405, 422)
    assert not (tmp_path / "data" / "backups").exists()


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"file":7}', b'{"path":"x"}', b'{"file":"a","file":"b"}'])
def test_backup_call_with_a_malformed_body_is_refused(api: Api, body: bytes) -> None:
    """What is not an object with a name is refused as problem details."""
    answer = api.request("POST", "/v1/backups", content=body, headers=api.headers())
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_backup_call_over_an_existing_file_is_refused(api: Api, tmp_path: Path) -> None:
    """A name is never taken twice; what is no backup is said to be none."""
    headers = api.headers()
    assert api.request("POST", "/v1/backups", json={"file": "x"}, headers=headers).status_code == 200
    again = api.request("POST", "/v1/backups", json={"file": "x"}, headers=headers)
    assert (again.status_code, again.json()["field"]) == (422, "file")
    (tmp_path / "data" / "backups" / "other").write_text("not a backup")
    assert api.get("/v1/backups/other").status_code == 422
    assert api.get("/v1/backups/absent").status_code == 404


def test_backup_call_needs_the_scope_admin(api: Api) -> None:
    """A token for money alone neither makes nor sees backups."""
    token = api.must("/v1/tokens", {"scopes": ["ledger:read", "ledger:write", "keys:write"], "label": "engine"})[
        "token"
    ]
    headers = api.headers(token=token)
    assert api.request("POST", "/v1/backups", json={"file": "x"}, headers=headers).status_code == 403
    assert api.request("GET", "/v1/backups/x", headers=headers).status_code == 403
    assert api.request("POST", "/v1/backups", json={"file": "x"}).status_code == 401


def test_backup_call_for_a_long_backup_goes_on_and_can_be_joined(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one is answered 202; the same name joins it, another one is told to wait, and writes go on."""
    slow_steps(monkeypatch)
    headers = api.headers()
    first = api.request("POST", "/v1/backups", json={"file": "long"}, headers=headers)
    assert (first.status_code, first.json()["state"]) == (202, "running")
    assert api.request("POST", "/v1/backups", json={"file": "long"}, headers=headers).status_code == 202
    other = api.request("POST", "/v1/backups", json={"file": "other"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (503, "store_busy")
    assert not (tmp_path / "data" / "backups" / "long").exists()
    bodies = [{"customer": "alice", "coin": "usdt", "amount": "1"}] * 30
    assert {answer.status_code for answer in api.at_once("/v1/deposits", bodies, "meanwhile-")} == {200}
    told = finished(api, "long")
    assert told["seq"] == api.seq
    restored(tmp_path / "data" / "backups" / "long", tmp_path / "new")
    assert "meanwhile-29" in check_books(tmp_path / "new").keys


def test_backup_that_runs_while_the_service_stops_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopping service does not wait for a backup, and leaves nothing of it."""
    slow_steps(monkeypatch)
    with operator_api(tmp_path / "data") as api:
        api.set_up()
        answer = api.request("POST", "/v1/backups", json={"file": "long"}, headers=api.headers())
        assert answer.status_code == 202
    assert list((tmp_path / "data" / "backups").iterdir()) == []
    check_books(tmp_path / "data")


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond three pages: a backup fails with a real error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_backup_that_failed_says_why_and_can_be_made_again(api: Api, tmp_path: Path) -> None:
    """A failure is the answer of whoever waits and of whoever asks later, until the name is asked for anew."""
    headers = api.headers()
    with small_files():
        failed = api.request("POST", "/v1/backups", json={"file": "x"}, headers=headers)
        assert (failed.status_code, failed.json()["code"]) == (503, "store_unavailable")
        assert "its disk answered with an error" in failed.json()["detail"]
    assert api.get("/v1/backups/x").status_code == 503
    assert list((tmp_path / "data" / "backups").iterdir()) == []
    assert api.request("POST", "/v1/backups", json={"file": "x"}, headers=headers).status_code == 200
    assert api.get("/v1/backups/x").json()["state"] == "done"


def test_backup_of_a_damaged_journal_is_refused_and_names_the_entry(api: Api, tmp_path: Path) -> None:
    """An entry that does not fit the chain of hashes gives no backup; the answer says which one it is."""
    with raw(tmp_path / "data") as connection:
        past_triggers(connection, "UPDATE entry SET body = replace(body, 'booked_ms', 'booked_us') WHERE seq = 3")
    answer = api.request("POST", "/v1/backups", json={"file": "x"}, headers=api.headers())
    again = api.get("/v1/backups/x")
    for damaged in (answer, again, api.request("GET", "/readyz")):
        assert (damaged.status_code, damaged.json()["code"]) == (500, "ledger_damaged")
        assert "entry 3" in damaged.json()["detail"]
        assert "retry-after" not in damaged.headers
    assert list((tmp_path / "data" / "backups").iterdir()) == []
