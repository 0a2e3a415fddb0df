"""Rotation of the master key, in both stores: what is sealed with which key, what is refused, and what is left over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from click.testing import CliRunner

from spotledger.archive.backup import back_up
from spotledger.archive.copying import copy_ledger
from spotledger.archive.restore import MasterKeySource, restore
from spotledger.audit.embedded import audit_file
from spotledger.audit.report import CLEAN
from spotledger.cli.main import program
from spotledger.clock import now_ms
from spotledger.errors import LedgerCorrupt, MasterKeyRefused, RotationRefused, StoreUnavailable
from spotledger.ops.master_keys import offer_key
from spotledger.ops.runtime import Runtime
from spotledger.security.cipher import AccessKeyDamaged, Cipher, load_master_key
from spotledger.storage.credentials.master_key_files import NEXT_FILE, OFFERED_FILE, offer
from spotledger.storage.sqlite.file import KEYS, KEYS_FILE, Connection, open_reader
from support_master_key import found_in, key_file, node, sealed_secrets


class Place:
    """A data folder, with a database or without, and the file of the next master key."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.folder = folder
        self.database = database
        self.next_file = key_file(folder.with_name("next.key"))

    def node(self, name: str = "data", **flags: str) -> Any:
        """Open a service here; in a database each *name* is another node."""
        flags.setdefault("next_master_key_file", str(self.next_file))
        return node(self.folder.with_name(name), self.database, {}, **flags)

    @property
    def key(self) -> Cipher:
        """The key in the data folder."""
        return Cipher(load_master_key(self.folder / "master.key"))

    @property
    def next(self) -> Cipher:
        """The next key."""
        return Cipher(load_master_key(self.next_file))


@pytest.fixture(params=["embedded", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Give an empty place, in each store in turn."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    return Place(tmp_path / "data", url)


@pytest.fixture
def fleet(postgres_url: str, tmp_path: Path) -> Place:
    """Give an empty place in a database."""
    return Place(tmp_path / "data", postgres_url)


def test_every_secret_is_sealed_with_the_new_key_and_opens_as_before(place: Place) -> None:
    """The new key opens all that the old one opened, and the old one nothing; a start finds it."""
    with place.node() as runtime:
        before = place.key
        secrets = dict(runtime.key_ring.create("alice", ["read"]) for _ in range(3))
        state = runtime.master_key.rotate()
        assert (state.fingerprint, list(state.retired)) == (place.next.fingerprint, [before.fingerprint])
        for accesskey, sealed in sealed_secrets(runtime).items():
            assert place.next.open(accesskey, sealed) == secrets[accesskey]
            with pytest.raises(AccessKeyDamaged):
                before.open(accesskey, sealed)
        runtime.key_ring.forget()
        assert all(runtime.key_ring.ready(accesskey) is not None for accesskey in secrets)
    with place.node(next_master_key_file=str(place.folder / "master.key")) as runtime:
        assert place.key.fingerprint == place.next.fingerprint
        assert all(runtime.key_ring.ready(accesskey) is not None for accesskey in secrets)


def test_access_key_made_after_the_rotation_is_sealed_with_the_new_key(place: Place) -> None:
    """Whatever keys a process holds, it seals with the one in force."""
    with place.node() as runtime:
        runtime.master_key.rotate()
        accesskey, secret = runtime.key_ring.create("alice", ["read"])
        assert place.next.open(accesskey, sealed_secrets(runtime)[accesskey]) == secret


def test_secret_of_a_revoked_access_key_is_not_kept(place: Place) -> None:
    """Nobody can use it again, so a rotation seals an empty text in its place; the key stays revoked."""
    with place.node() as runtime:
        accesskey, _ = runtime.key_ring.create("alice", ["read"])
        runtime.key_ring.revoke(accesskey)
        runtime.master_key.rotate()
        assert place.next.open(accesskey, sealed_secrets(runtime)[accesskey]) == ""
        record = runtime.key_ring.get(accesskey)
        assert record is not None
        assert record.revoked_ms is not None


def test_key_that_was_in_force_before_is_refused(place: Place) -> None:
    """A key that may have leaked cannot come back into force; nothing changes."""
    with place.node() as runtime:
        old = place.folder.joinpath("master.key").read_text()
        runtime.master_key.rotate()
        key_file(place.next_file, old.strip())
        sealed = sealed_secrets(runtime)
        with pytest.raises(RotationRefused, match="was in force before"):
            runtime.master_key.rotate()
        assert sealed_secrets(runtime) == sealed


def test_secret_that_does_not_open_stops_the_rotation_until_its_key_is_revoked(place: Place) -> None:
    """The message names the access key by its first characters; nothing is sealed anew before it is out of the way."""
    with place.node() as runtime:
        fingerprint = place.key.fingerprint
        good, _ = runtime.key_ring.create("alice", ["read"])
        bad, _ = runtime.key_ring.create("bob", ["read"])
        runtime.ledger.key_tables.store_sealed({bad: Cipher(b"x" * 32).seal(bad, "secret")})
        sealed = sealed_secrets(runtime)
        with pytest.raises(RotationRefused, match=f"do not open: {bad[:8]}…") as refused:
            runtime.master_key.rotate()
        assert bad not in str(refused.value)
        assert sealed_secrets(runtime) == sealed
        assert runtime.master_key.state().fingerprint == fingerprint
        runtime.ledger.key_tables.revoke("access_keys", "accesskey", bad, 1)
        assert runtime.master_key.rotate().fingerprint == place.next.fingerprint
        assert runtime.key_ring.ready(good) is not None


def test_rotation_to_the_key_in_force_changes_nothing(place: Place) -> None:
    """A repeat, as after a lost answer, finds it done."""
    with place.node() as runtime:
        runtime.key_ring.create("alice", ["read"])
        first = runtime.master_key.rotate(place.next.fingerprint)
        sealed = sealed_secrets(runtime)
        again = runtime.master_key.rotate(place.next.fingerprint)
        assert (again.fingerprint, again.retired) == (first.fingerprint, first.retired)
        assert sealed_secrets(runtime) == sealed


def test_start_with_the_old_key_is_refused_and_says_that_it_was_rotated(place: Place, tmp_path: Path) -> None:
    """Whoever starts with the key before is told that another one is in force, and which."""
    with place.node() as runtime:
        old = key_file(tmp_path / "old.key", place.folder.joinpath("master.key").read_text().strip())
        runtime.master_key.rotate()
    with (
        pytest.raises(MasterKeyRefused, match=f"was rotated: .* sealed with {place.next.fingerprint}"),
        place.node(master_key_file=str(old), next_master_key_file=str(old)),
    ):
        raise AssertionError("it has started")


def test_reads_load_keys_without_a_refusal_while_the_master_key_rotates(place: Place) -> None:
    """However loads and rotations interleave, each access key opens: under the key of its row."""
    with place.node() as runtime:
        accesskeys = [runtime.key_ring.create("alice", ["read"])[0] for _ in range(20)]
        stop = threading.Event()
        loads = 0

        def load() -> None:
            nonlocal loads
            while not stop.is_set():
                runtime.key_ring.forget()
                for accesskey in accesskeys:
                    assert runtime.key_ring.ready(accesskey) is not None
                    loads += 1

        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(load)
            while loads < len(accesskeys) and not loading.done():
                pass
            for _ in range(5):
                runtime.master_key.rotate()
                key_file(place.next_file)
            before = loads
            while loads < before + 2 * len(accesskeys) and not loading.done():
                pass
            stop.set()
            loading.result()
        assert len(runtime.master_key.state().retired) == 5


def test_failed_transaction_leaves_the_old_key_in_force(place: Place) -> None:
    """If the transaction cannot be committed, everything is as before, and a later rotation passes."""
    with place.node() as runtime:
        fingerprint = place.key.fingerprint
        accesskey, _ = runtime.key_ring.create("alice", ["read"])
        tables: Any = runtime.ledger.key_tables
        if place.database is None:
            tables._write.execute("CREATE TEMP TRIGGER stop BEFORE INSERT ON main.retired_master_keys"
                                  " BEGIN SELECT RAISE(ABORT, 'stop'); END")  # fmt: skip
        else:
            _execute(place, "ALTER TABLE retired_master_keys ADD CONSTRAINT stop CHECK (false)")
        with pytest.raises((StoreUnavailable, LedgerCorrupt), match="could not be written"):
            runtime.master_key.rotate()
        assert runtime.master_key.state().fingerprint == fingerprint
        runtime.key_ring.forget()
        assert runtime.key_ring.ready(accesskey) is not None
        if place.database is None:
            tables._write.execute("DROP TRIGGER stop")
        else:
            _execute(place, "ALTER TABLE retired_master_keys DROP CONSTRAINT stop")
        assert runtime.master_key.rotate().fingerprint == place.next.fingerprint


def _execute(place: Place, statement: str) -> list[Any]:
    with psycopg.connect(str(place.database), autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


# --- what is left over --------------------------------------------------------------------------------


def test_nothing_that_was_sealed_with_the_old_key_is_in_the_folder(tmp_path: Path) -> None:
    """Neither the file of access keys nor its log has a byte of them, also where rows were rewritten and moved."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        kept = [runtime.key_ring.create("alice", ["read"], "l" * (n % 90))[0] for n in range(400)]
        for accesskey in kept[::3]:
            runtime.key_ring.revoke(accesskey)
        runtime.ledger.key_tables.access_keys.note_used(dict.fromkeys(kept[::2], 1_900_000_000_000))
        old = list(sealed_secrets(runtime).values())
        assert found_in(folder, old)
        state = runtime.master_key.rotate()
        assert (state.is_swept, state.sweep_problem) == (True, None)
        assert found_in(folder, old) == []
    assert found_in(folder, old) == []


def _reading(folder: Path) -> Connection:
    """Open the file of access keys as another process does, and hold a snapshot of it."""
    reader = open_reader(folder / KEYS_FILE, KEYS)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM access_keys").fetchall()
    return reader


def test_sweep_waits_for_a_reader_and_is_done_later(tmp_path: Path) -> None:
    """While another process reads the file of access keys its log cannot be cut; the answer says so; it is retried."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        runtime.key_ring.create("alice", ["read"])
        old = list(sealed_secrets(runtime).values())
        reader = _reading(folder)
        state = runtime.master_key.rotate()
        assert not state.is_swept
        assert any("another process is reading" in sentence for sentence in state.to_do)
        assert found_in(folder, old)
        reader.close()
        runtime.master_key.tend()
        assert runtime.master_key.state().is_swept
        assert found_in(folder, old) == []


def test_start_does_the_sweep_that_was_cut_off(tmp_path: Path) -> None:
    """A process that ended before the sweep leaves it to the next one, which does it by and by."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        runtime.key_ring.create("alice", ["read"])
        old = list(sealed_secrets(runtime).values())
        reader = _reading(folder)
        runtime.master_key.rotate()
        reader.close()
    with node(folder, None, {}) as runtime:
        assert not runtime.master_key.state().is_swept
        runtime.master_key.tend()
        assert runtime.master_key.state().is_swept
        assert found_in(folder, old) == []


def test_nothing_that_was_sealed_with_the_old_key_is_in_the_table_of_the_database(fleet: Place) -> None:
    """The file of the table has no dead rows with it after a rotation."""

    def bytes_of_table() -> bytes:
        _execute(fleet, "CHECKPOINT")
        [(found,)] = _execute(fleet, "SELECT pg_read_binary_file(pg_relation_filepath('access_keys'))")
        return bytes(found)

    with fleet.node() as runtime:
        for n in range(50):
            runtime.key_ring.create("alice", ["read"], "l" * n)
        old = list(sealed_secrets(runtime).values())
        assert all(blob in bytes_of_table() for blob in old)
        assert runtime.master_key.rotate().is_swept
        found = bytes_of_table()
        assert all(blob in found for blob in sealed_secrets(runtime).values())
        assert not any(blob[1:] in found for blob in old)


def test_sweep_of_the_database_waits_for_an_open_snapshot(fleet: Place) -> None:
    """Rows that somebody may still see are not removed; the answer says so, and it is tried again."""
    with fleet.node() as runtime:
        runtime.key_ring.create("alice", ["read"])
        with psycopg.connect(str(fleet.database)) as other:
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT 1").fetchall()
            state = runtime.master_key.rotate()
            assert state.fingerprint == fleet.next.fingerprint
            assert not state.is_swept
            assert any("still needs what rows were before" in sentence for sentence in state.to_do)
        runtime.master_key.tend()
        assert runtime.master_key.state().is_swept


# --- audits and backups -------------------------------------------------------------------------------


def test_audit_beside_rotations_finds_nothing(tmp_path: Path) -> None:
    """An audit never takes secrets for damaged because the master key is replaced while it reads them."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime, ThreadPoolExecutor(1) as pool:
        runtime.ledger.register_customer("alice", key="alice")
        for _ in range(50):
            runtime.key_ring.create("alice", ["read"])
        auditing = pool.submit(lambda: [audit_file(folder / "journal.db") for _ in range(15)])
        rotations = 0
        while not auditing.done():
            runtime.master_key.rotate()
            rotations += 1
        assert rotations > 1
        assert [(report.verdict, report.findings) for report in auditing.result()] == [(CLEAN, [])] * 15


def test_audit_names_the_secret_that_does_not_open_after_a_rotation(tmp_path: Path) -> None:
    """A secret that is sealed with another key than the one in force is damage, and named."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        runtime.ledger.register_customer("alice", key="alice")
        accesskey, secret = runtime.key_ring.create("alice", ["read"])
        old = Cipher(load_master_key(folder / "master.key"))
        runtime.master_key.rotate()
        assert audit_file(folder / "journal.db").verdict == CLEAN
        runtime.ledger.key_tables.store_sealed({accesskey: old.seal(accesskey, secret)})
        report = audit_file(folder / "journal.db")
    assert [(finding.code, finding.found) for finding in report.findings] == [("access_key_malformed", "sealed_secret")]
    assert accesskey[:8] in report.findings[0].where


class Backed(NamedTuple):
    """A folder that was rotated after its backup: the backup, the access key in it, and both master keys."""

    folder: Path
    backup: Path
    accesskey: str
    old: bytes
    new: bytes


@pytest.fixture
def backed(tmp_path: Path) -> Backed:
    """Make a backup, rotate, and take the journal away, as a lost disk does."""
    folder, backup = tmp_path / "data", tmp_path / "before.backup"
    with node(folder, None, {}) as runtime:
        runtime.ledger.register_customer("alice", key="alice")
        accesskey, _ = runtime.key_ring.create("alice", ["read"])
        back_up(runtime.ledger, backup, now_ms)
        old = load_master_key(folder / "master.key")
        runtime.master_key.rotate()
        new = load_master_key(folder / "master.key")
    for file in folder.glob("journal.db*"):
        file.unlink()
    return Backed(folder, backup, accesskey, old, new)


def test_backup_from_before_a_rotation_is_restored_with_the_key_that_was_kept(backed: Backed) -> None:
    """Into the folder that was rotated: it finds the old key, starts with it, and says that it was replaced."""
    restored = restore(backed.backup, backed.folder, MasterKeySource(None, {}))
    assert restored.has_retired_master_key
    assert load_master_key(backed.folder / "master.key") == backed.old
    with node(backed.folder, None, {}) as runtime:
        assert runtime.key_ring.ready(backed.accesskey) is not None
        assert runtime.master_key.rotate().is_swept
        runtime.key_ring.forget()
        assert runtime.key_ring.ready(backed.accesskey) is not None
    kept = {load_master_key(file) for file in backed.folder.glob("master.key.old-*")}
    assert kept == {backed.old, backed.new}


def test_restore_says_that_the_key_was_replaced_without_the_access_keys_too(backed: Backed) -> None:
    """Where keys.db is lost, the old key that is kept in the folder tells; a leaked key would be in force unnoticed."""
    (backed.folder / KEYS_FILE).unlink()
    (backed.folder / "noted-head").unlink()
    restored = restore(backed.backup, backed.folder, MasterKeySource(None, {}))
    assert restored.has_retired_master_key


def test_backup_from_before_a_rotation_needs_the_old_key(backed: Backed, tmp_path: Path) -> None:
    """Where the old key was not kept the message says why it is needed; named, it takes the place of the new one."""
    [kept] = backed.folder.glob("master.key.old-*")
    kept.rename(tmp_path / "old.key")
    before = sorted(file.name for file in backed.folder.iterdir())
    with pytest.raises(MasterKeyRefused, match=f"{Cipher(backed.old).fingerprint}.* after a rotation"):
        restore(backed.backup, backed.folder, MasterKeySource(None, {}))
    assert sorted(file.name for file in backed.folder.iterdir()) == before
    restore(backed.backup, backed.folder, MasterKeySource(tmp_path / "old.key", {}))
    with node(backed.folder, None, {}) as runtime:
        assert runtime.key_ring.ready(backed.accesskey) is not None


def test_books_restored_without_the_master_key_are_clean(backed: Backed, tmp_path: Path) -> None:
    """Secrets that nobody can open any more are of revoked access keys, and an audit does not miss them."""
    restore(backed.backup, tmp_path / "new", None)
    with node(tmp_path / "new", None, {}) as runtime:
        assert audit_file(tmp_path / "new" / "journal.db").verdict == CLEAN
        runtime.master_key.rotate()
        assert audit_file(tmp_path / "new" / "journal.db").verdict == CLEAN


def test_copy_in_a_database_takes_the_history_of_the_master_key_along(tmp_path: Path, postgres_url: str) -> None:
    """A key that was replaced in the folder cannot come into force in the database."""
    with node(tmp_path / "data", None, {}) as runtime:
        state = runtime.master_key.rotate()
    copy_ledger(tmp_path / "data", postgres_url)
    with node(tmp_path / "data", postgres_url, {}) as runtime:
        found = runtime.master_key.state()
        assert (found.fingerprint, found.retired) == (state.fingerprint, state.retired)


# --- where the key comes from -------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """Give the environment of a service whose master key is in it."""
    return {"SPOTLEDGER_MASTER_KEY": "5a" * 32}


def test_key_from_the_environment_is_rotated_to_one_that_is_handed_over(
    tmp_path: Path, outside: dict[str, str]
) -> None:
    """The operator is told to change the variable; the key does not stay in the folder; the old one starts nothing."""
    folder, following = tmp_path / "data", "a7" * 32
    with node(folder, None, outside) as runtime:
        accesskey, _ = runtime.key_ring.create("alice", ["read"])
        with pytest.raises(RotationRefused, match="--new-key-file"):
            runtime.master_key.rotate()
        offer(folder, bytes.fromhex(following))
        cipher = Cipher(bytes.fromhex(following))
        with pytest.raises(RotationRefused, match="--new-key-file"):
            runtime.master_key.rotate()
        state = runtime.master_key.rotate(cipher.fingerprint)
        assert any(f"{cipher.fingerprint} into SPOTLEDGER_MASTER_KEY" in sentence for sentence in state.to_do)
        assert [file.name for file in folder.glob("master.key*")] == []
    with pytest.raises(MasterKeyRefused, match="was rotated"), node(folder, None, outside):
        raise AssertionError("it has started")
    with node(folder, None, {"SPOTLEDGER_MASTER_KEY": following}) as runtime:
        assert runtime.key_ring.ready(accesskey) is not None
        assert not any("SPOTLEDGER_MASTER_KEY" in sentence for sentence in runtime.master_key.state().to_do)


def test_key_that_nobody_asked_for_is_not_taken_from_the_folder(tmp_path: Path) -> None:
    """A file that lies there comes into force only if the caller names its fingerprint; else a new key is made."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        offer(folder, b"p" * 32)
        state = runtime.master_key.rotate()
        assert state.fingerprint != Cipher(b"p" * 32).fingerprint
        with pytest.raises(RotationRefused, match="at hand"):
            runtime.master_key.rotate(Cipher(b"q" * 32).fingerprint)


@pytest.mark.parametrize("problem", ["link", "mode", "text"])
def test_next_key_that_others_may_use_is_refused(tmp_path: Path, problem: str) -> None:
    """What is planted at master.key.offered is not read, and the service goes on with the key that it has."""
    folder, elsewhere = tmp_path / "data", key_file(tmp_path / "elsewhere")
    with node(folder, None, {}) as runtime:
        before = (folder / "master.key").read_bytes()
        planted = folder / OFFERED_FILE
        if problem == "link":
            planted.symlink_to(elsewhere)
        else:
            key_file(planted, "no key" if problem == "text" else None)
            planted.chmod(0o644 if problem == "mode" else 0o600)
        with pytest.raises(RotationRefused, match=OFFERED_FILE if problem != "text" else "64 hex digits"):
            runtime.master_key.rotate(Cipher(load_master_key(elsewhere)).fingerprint)
        assert (folder / "master.key").read_bytes() == before
        assert elsewhere.exists()


def test_key_offered_during_a_rotation_leaves_the_one_that_comes_into_force(tmp_path: Path) -> None:
    """A command that offers a key while the service seals with a new one does not replace the only copy of that one."""
    folder, other = tmp_path / "data", key_file(tmp_path / "other.key")
    with node(folder, None, {}) as runtime:
        accesskey, _ = runtime.key_ring.create("alice", ["read"])
        before = runtime.master_key.state().fingerprint
        tables = runtime.ledger.key_tables
        with pytest.MonkeyPatch.context() as patch:

            def mark_rotated(fingerprint: str, mark: Callable[[str], None] = tables.mark_rotated) -> None:
                offer_key(folder, other, before)
                mark(fingerprint)

            patch.setattr(tables, "mark_rotated", mark_rotated)
            state = runtime.master_key.rotate()
        assert Cipher(load_master_key(folder / "master.key")).fingerprint == state.fingerprint
    with node(folder, None, {}) as runtime:
        assert runtime.key_ring.ready(accesskey) is not None
        assert sorted(file.name for file in folder.glob("master.key*")) == [
            "master.key",
            f"master.key.old-{before[:8]}",
        ]


def test_missing_master_key_names_a_variable_that_every_command_heeds(tmp_path: Path) -> None:
    """Only serve has --master-key-file; the message has to name what a command without a server can be given."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere.key"
    with node(folder, None, {}) as runtime:
        runtime.key_ring.create("alice", ["read"])
    (folder / "master.key").rename(elsewhere)
    arguments = ["master-key", "show", "--data", str(folder)]
    refused = CliRunner().invoke(program, arguments)
    assert (refused.exit_code, "or SPOTLEDGER_MASTER_KEY_FILE (--master" in refused.output) == (1, True)
    assert CliRunner().invoke(program, arguments, env={"SPOTLEDGER_MASTER_KEY_FILE": str(elsewhere)}).exit_code == 0


def test_old_key_is_kept_for_old_backups(tmp_path: Path) -> None:
    """The key before is beside the new one under the first digits of its fingerprint, readable by nobody else."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        before = load_master_key(folder / "master.key")
        runtime.master_key.rotate()
        [kept] = folder.glob("master.key.old-*")
        assert kept.name == f"master.key.old-{Cipher(before).fingerprint[:8]}"
        assert load_master_key(kept) == before
        assert not (folder / NEXT_FILE).exists()


# --- a fleet ------------------------------------------------------------------------------------------


def test_rotation_waits_until_each_node_holds_the_next_key(fleet: Place, tmp_path: Path) -> None:
    """A node that lacks it is named, and nothing changes; once it is started with it, the rotation passes."""
    with fleet.node() as first:
        key_file(tmp_path / "second" / "master.key", _folder_key(fleet, tmp_path / "second"))
        with fleet.node("second", next_master_key_file=str(fleet.folder / "master.key")):
            with pytest.raises(RotationRefused, match=r"do not hold .*/second worker 0") as refused:
                first.master_key.rotate()
            assert str(fleet.folder) not in str(refused.value)
            assert [node.place.split()[1] for node in first.master_key.state().holders] == [
                str(fleet.folder), str(tmp_path / "second"),
            ]  # fmt: skip
        with fleet.node("second") as second:
            accesskey, _ = second.key_ring.create("alice", ["read"])
            assert first.master_key.rotate().fingerprint == fleet.next.fingerprint
            second.key_ring.forget()
            assert second.key_ring.ready(accesskey) is not None
            made, secret = second.key_ring.create("bob", ["read"])
            assert fleet.next.open(made, sealed_secrets(first)[made]) == secret
            second.master_key.tend()
            assert Cipher(load_master_key(tmp_path / "second" / "master.key")).fingerprint == fleet.next.fingerprint


def _folder_key(place: Place, folder: Path) -> str:
    """Make *folder*, and return the key of *place*."""
    folder.mkdir(mode=0o700)
    return place.folder.joinpath("master.key").read_text().strip()


def test_node_without_the_key_in_force_says_so_and_damages_nothing(fleet: Place, tmp_path: Path) -> None:
    """A node that a rotation did not wait for, as a frozen one, uses the keys in its memory and makes or loads none."""
    with fleet.node() as first:
        accesskey, _ = first.key_ring.create("alice", ["read"])
        ready, _ = first.key_ring.create("alice", ["read"])
        key_file(tmp_path / "second" / "master.key", _folder_key(fleet, tmp_path / "second"))
        with fleet.node("second", next_master_key_file=str(fleet.folder / "master.key")) as second:
            assert second.key_ring.ready(ready) is not None
            _rotate_while_old(fleet, first)
            assert second.key_ring.ready(ready) is not None
            with pytest.raises(StoreUnavailable, match="does not have"):
                second.key_ring.ready(accesskey)
            sealed = sealed_secrets(first)
            with pytest.raises(StoreUnavailable, match="does not have"):
                second.key_ring.create("bob", ["read"])
            assert sealed_secrets(first) == sealed


def _rotate_while_old(fleet: Place, runtime: Runtime) -> None:
    """Rotate although the second node is alive: hold its announcements back, as those of a frozen node are."""
    _execute(
        fleet,
        "CREATE FUNCTION freeze_second() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.place LIKE '%/second %'"
        " THEN NEW.announced = now() - interval '1 hour'; END IF; RETURN NEW; END $$",
    )
    _execute(
        fleet,
        "CREATE TRIGGER hold_back BEFORE INSERT OR UPDATE ON master_key_holders FOR EACH ROW EXECUTE FUNCTION"
        " freeze_second()",
    )
    _execute(fleet, "UPDATE master_key_holders SET announced = announced")
    runtime.master_key.rotate()


def test_two_rotations_at_once_bring_one_key_into_force(fleet: Place, tmp_path: Path) -> None:
    """Two nodes that rotate to the same key at the same moment find it in force, and each secret is sealed once."""
    with fleet.node() as first:
        for _ in range(20):
            first.key_ring.create("alice", ["read"])
        key_file(tmp_path / "second" / "master.key", _folder_key(fleet, tmp_path / "second"))
        with fleet.node("second") as second, ThreadPoolExecutor(2) as pool:
            both = [pool.submit(each.master_key.rotate) for each in (first, second)]
            assert {each.result().fingerprint for each in both} == {fleet.next.fingerprint}
            assert len(first.master_key.state().retired) == 1
            for accesskey, sealed in sealed_secrets(first).items():
                fleet.next.open(accesskey, sealed)


def test_fleet_makes_no_key_of_its_own(fleet: Place) -> None:
    """Without a next key that is set, a rotation in a database is refused: other nodes could not open anything."""
    with node(fleet.folder, fleet.database, {}) as runtime, pytest.raises(RotationRefused, match="every node"):
        runtime.master_key.rotate()


@pytest.fixture
def weak_role(fleet: Place) -> Iterator[str]:
    """Give the URL of a role that may do what nodes do, and owns nothing."""
    with fleet.node():
        pass
    _execute(fleet, "CREATE ROLE weak LOGIN PASSWORD 'weak'")
    _execute(fleet, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO weak")
    with closing(psycopg.connect(str(fleet.database))) as connection:
        info = connection.info
        yield f"postgresql://weak:weak@/{info.dbname}?host={info.host}&port={info.port}"
    _execute(fleet, "DROP OWNED BY weak")
    _execute(fleet, "DROP ROLE weak")


def test_role_that_does_not_own_the_table_is_told_who_has_to_sweep(fleet: Place, weak_role: str) -> None:
    """The rotation is done; the statements for the owner are in the answer, and pass."""
    with node(fleet.folder, weak_role, {}, next_master_key_file=str(fleet.next_file)) as runtime:
        runtime.key_ring.create("alice", ["read"])
        state = runtime.master_key.rotate()
        assert (state.fingerprint, state.is_swept) == (fleet.next.fingerprint, False)
        assert any("VACUUM FULL access_keys" in sentence for sentence in state.to_do)
        _execute(fleet, "VACUUM FULL access_keys")
        _execute(fleet, "UPDATE master_key_mark SET is_swept = 1")
        runtime.master_key.tend()
        assert runtime.master_key.state().is_swept
