"""kill -9 and a full disk while the master key rotates: the folder starts at every instant, and no secret is lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from spotledger.errors import RotationRefused, StoreUnavailable
from spotledger.security.cipher import Cipher, load_master_key
from spotledger.storage.sqlite.file import KEYS_FILE
from support_full_disk import fill
from support_master_key import found_in, key_file, node, sealed_secrets

SCRIPT = Path(__file__).with_name("rotate_and_die.py")
#: How many deaths are spread over the lines of a rotation.
DEATHS = 40


def _rotate(folder: Path, at_line: int, *more: object) -> int | None:
    """Rotate in a process of its own that dies at this line; return how many were run, or None if it died."""
    command = [sys.executable, str(SCRIPT), str(at_line), str(folder), *map(str, more)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if ended.returncode == -signal.SIGKILL:
        return None
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def _check(folder: Path, accesskeys: list[str], old: list[bytes]) -> bool:
    """Start in *folder* after a death: every access key opens; return whether the new key is in force."""
    with node(folder, None, {}) as runtime:
        for accesskey in accesskeys:
            ready = runtime.key_ring.ready(accesskey)
            assert ready is not None
            assert not ready.revoked
        state = runtime.master_key.state()
        assert Cipher(load_master_key(folder / "master.key")).fingerprint == state.fingerprint
        assert not (folder / "master.key.next").exists()
        runtime.master_key.tend()
        assert runtime.master_key.state().is_swept
        is_new = bool(state.retired)
        assert is_new == (found_in(folder, old) == [])
        made, _ = runtime.key_ring.create("alice", ["read"])
        runtime.key_ring.forget()
        assert runtime.key_ring.ready(made) is not None
    return is_new


def test_death_at_any_line_of_a_rotation_leaves_a_folder_that_starts(tmp_path: Path) -> None:
    """
    Whatever the line at which the process dies, the next start opens every secret with the key that it finds.

    The rotation is done or not done; never is a part of the secrets sealed with one key and a part with the other.
    """
    start, accesskeys = tmp_path / "start", list[str]()
    with node(start, None, {}) as runtime:
        accesskeys = [runtime.key_ring.create("alice", ["read"])[0] for _ in range(5)]
        old = list(sealed_secrets(runtime).values())
    folder = tmp_path / "data"
    shutil.copytree(start, folder)
    lines = _rotate(folder, 0)
    assert lines is not None
    assert lines > 100
    assert _check(folder, accesskeys, old)
    outcomes = []
    for at_line in range(1, lines + 1, max(1, lines // DEATHS)):
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        assert _rotate(folder, at_line) is None, f"line {at_line} was not run"
        outcomes.append(_check(folder, accesskeys, old))
    assert outcomes == sorted(outcomes), "once it is done, it stays done"
    assert {True, False} == set(outcomes)


def test_death_after_death_ends_in_a_rotation_that_is_done(tmp_path: Path) -> None:
    """A rotation that is begun again after each death, a little further each time, is done in the end."""
    folder = tmp_path / "data"
    with node(folder, None, {}) as runtime:
        accesskeys = [runtime.key_ring.create("alice", ["read"])[0] for _ in range(5)]
        old = list(sealed_secrets(runtime).values())
    at_line, deaths = 10, 0
    while _rotate(folder, at_line) is None:
        at_line, deaths = at_line + 25, deaths + 1
    assert deaths > 3
    assert _check(folder, accesskeys, old)


def test_death_of_a_node_at_any_line_of_a_rotation_leaves_a_fleet_that_starts(
    tmp_path: Path, postgres_url: str
) -> None:
    """Each node dies while it rotates to a key of its own; the next start opens every secret, whatever was done."""
    folder, next_file = tmp_path / "data", tmp_path / "next.key"
    with node(folder, postgres_url, {}) as runtime:
        accesskeys = [runtime.key_ring.create("alice", ["read"])[0] for _ in range(5)]
    key_file(next_file)
    lines = _rotate(folder, 0, postgres_url, next_file)
    assert lines is not None
    done = 0
    for at_line in range(lines // 30, lines, lines // 15):
        with node(folder, postgres_url, {}) as runtime:
            retired = len(runtime.master_key.state().retired)
        key_file(next_file)
        with psycopg.connect(postgres_url) as connection:  # as if those who died had been silent for half a minute
            connection.execute("UPDATE master_key_holders SET announced = announced - interval '30 seconds'")
        _rotate(folder, at_line, postgres_url, next_file)  # the database may answer in fewer steps than the first time
        with node(folder, postgres_url, {}) as runtime:
            state = runtime.master_key.state()
            assert len(state.retired) - retired in (0, 1)
            done += len(state.retired) - retired
            assert Cipher(load_master_key(folder / "master.key")).fingerprint == state.fingerprint
            assert all(runtime.key_ring.ready(accesskey) is not None for accesskey in accesskeys)
            made, _ = runtime.key_ring.create("alice", ["read"])
            runtime.key_ring.forget()
            assert runtime.key_ring.ready(made) is not None
    assert 0 < done < 15


def test_full_disk_leaves_the_old_key_in_force(small_disk: Path) -> None:
    """A rotation that finds no room for the key, the transaction or the sweep is done later, and loses nothing."""
    folder = small_disk / "data"
    with node(folder, None, {}) as runtime:
        accesskeys = [runtime.key_ring.create("alice", ["read"], "l" * 100)[0] for _ in range(2_000)]
        old = list(sealed_secrets(runtime).values())
        before = Cipher(load_master_key(folder / "master.key")).fingerprint
        ballast = fill(small_disk)
        with pytest.raises((StoreUnavailable, RotationRefused), match="full"):
            runtime.master_key.rotate()
        assert runtime.master_key.state().fingerprint == before
        size = ballast.stat().st_size
        for room_kib in range(4, 4096, 256):
            with ballast.open("r+b") as file:
                file.truncate(max(0, size - room_kib * 1024))
            runtime.key_ring.forget()
            assert all(runtime.key_ring.ready(accesskey) is not None for accesskey in accesskeys[::100])
            try:
                state = runtime.master_key.rotate()
            except (StoreUnavailable, RotationRefused) as problem:
                assert "full" in str(problem)  # noqa: PT017 - either outcome is right, and each has its checks
                assert runtime.master_key.state().fingerprint == before
            else:
                break
        ballast.unlink()
        state = runtime.master_key.rotate(state.fingerprint)
        assert (state.is_swept, list(state.retired)) == (True, [before])
        runtime.key_ring.forget()
        assert all(runtime.key_ring.ready(accesskey) is not None for accesskey in accesskeys)
        assert found_in(folder, old) == []
    assert (folder / KEYS_FILE).exists()
