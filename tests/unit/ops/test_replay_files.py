"""The memory of signed requests in the data folder: believed once, complete, and only if it is ours."""

from __future__ import annotations

import os
import stat
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spotledger.clock import Clock
from spotledger.errors import FileUnusable
from spotledger.ops import replay_files
from spotledger.ops.replay_files import (
    REPLAY_FILE,
    restore_replay_memory,
    save_empty_memory,
    save_replay_memory,
    take_replay_files,
)
from spotledger.security.access_keys import KeyRing
from spotledger.security.gate import Gate, GateSettings

NOW = 1_700_000_000_000
LEDGER = "8b6b1c9e-0000-4000-8000-000000000000"
SIGNATURE = bytes(range(32))
ACCESSKEY = "11111111-2222-4333-8444-555555555555"


class NoKeys(KeyRing):
    """A key ring that nobody asks."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}


def gate_of(settings: GateSettings = GateSettings()) -> Gate:  # noqa: B008 - it is frozen
    return Gate(NoKeys(), settings)


def used(address: str = "192.0.2.7", settings: GateSettings = GateSettings()) -> Gate:  # noqa: B008 - as above
    """Return a gate that saw one signature from *address*."""
    gate = gate_of(settings)
    assert gate.replay.passes(ACCESSKEY, SIGNATURE, address, NOW)
    return gate


def restored(
    folder: Path,
    ledger_id: str = LEDGER,
    epoch: int = 1,
    settings: GateSettings = GateSettings(),  # noqa: B008 - it is frozen
) -> tuple[Gate, bool]:
    """Return a gate that took what is in *folder*, and whether it remembers."""
    gate = gate_of(settings)
    kept = take_replay_files(folder)
    return gate, restore_replay_memory(gate, kept, ledger_id, epoch, Clock(lambda: NOW + 1_000))


def test_saved_memory_is_taken_once(tmp_path: Path) -> None:
    """The next start remembers; the one after that, without a stop in between, knows that it does not."""
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    file = tmp_path / REPLAY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    gate, remembers = restored(tmp_path)
    assert remembers
    assert gate.unremembered.until_ms == 0
    assert not gate.replay.passes(ACCESSKEY, SIGNATURE, "198.51.100.1", NOW + 1_000)
    assert gate.replay.passes(ACCESSKEY, SIGNATURE, "192.0.2.7", NOW + 1_000)
    assert list(tmp_path.iterdir()) == []
    gate, remembers = restored(tmp_path)
    assert not remembers
    assert gate.unremembered.until_ms == NOW + 1_000


def test_file_has_neither_access_keys_nor_signatures(tmp_path: Path) -> None:
    """Who reads the file learns nothing that a request could be made of."""
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    content = (tmp_path / REPLAY_FILE).read_bytes()
    for secret in (ACCESSKEY.encode(), SIGNATURE, SIGNATURE.hex().encode(), bytes.fromhex(ACCESSKEY.replace("-", ""))):
        assert secret not in content


def test_moment_that_was_forgotten_outlives_an_orderly_restart(tmp_path: Path) -> None:
    """Killed, started and stopped in order at once: the next start still refuses what the first one may have seen."""
    gate = used()
    gate.forget(NOW + 500, NOW + 900)
    save_replay_memory(tmp_path, gate, LEDGER, 1)
    gate, remembers = restored(tmp_path)
    assert remembers
    assert gate.unremembered == (NOW + 500, NOW + 900)


@pytest.mark.parametrize(("ledger_id", "epoch"), [(LEDGER[:-1] + "1", 1), (LEDGER, 2)])
def test_memory_of_another_ledger_or_epoch_is_absent(tmp_path: Path, ledger_id: str, epoch: int) -> None:
    """After a restore the file that is there belongs to another history."""
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    gate, remembers = restored(tmp_path, ledger_id, epoch)
    assert not remembers
    assert gate.unremembered.until_ms == NOW + 1_000


def test_workers_remember_together_or_not_at_all(tmp_path: Path) -> None:
    """Each worker saves its part; where one was killed, the rest is not the whole memory."""
    other = gate_of()
    assert other.replay.passes(ACCESSKEY, SIGNATURE[::-1], "192.0.2.9", NOW)
    for number, gate in enumerate((used(), other)):
        save_replay_memory(tmp_path, gate, LEDGER, 1, number, 2)
    gate, remembers = restored(tmp_path)
    assert remembers
    for signature in (SIGNATURE, SIGNATURE[::-1]):
        assert not gate.replay.passes(ACCESSKEY, signature, "198.51.100.1", NOW + 1_000)
    save_replay_memory(tmp_path, used(), LEDGER, 1, 1, 2)
    assert not restored(tmp_path)[1]
    assert list(tmp_path.iterdir()) == []


def test_new_ledger_has_nothing_to_remember(tmp_path: Path) -> None:
    """What a command notes when it makes a ledger says that nobody was admitted before; it replaces nothing."""
    save_empty_memory(tmp_path, LEDGER, 1)
    gate, remembers = restored(tmp_path)
    assert remembers
    assert gate.unremembered == (0, 0)
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    save_empty_memory(tmp_path, LEDGER, 1)
    assert len(restored(tmp_path)[0].replay) == 1


@pytest.mark.parametrize(
    ("before", "after", "forgotten_ms"),
    [
        (GateSettings(replay="off"), GateSettings(), NOW + 1_000),
        (GateSettings(replay="off"), GateSettings(replay="off"), 0),
        (GateSettings(), GateSettings(replay="strict"), 0),
        (GateSettings(nonce_past_ms=1_000), GateSettings(), NOW + 1_000),
        (GateSettings(), GateSettings(nonce_past_ms=1_000), 0),
        (GateSettings(nonce_future_ms=60_000), GateSettings(), NOW + 1_000 + 55_000),
        (GateSettings(nonce_past_ms=60_000), GateSettings(nonce_future_ms=6_000), 0),
    ],
)
def test_memory_of_weaker_settings_is_not_taken_for_the_whole(
    tmp_path: Path, before: GateSettings, after: GateSettings, forgotten_ms: int
) -> None:
    """With replay off nothing is kept, and of a narrower window too little: a start with more refuses as if killed."""
    save_replay_memory(tmp_path, gate_of(before), LEDGER, 1)
    gate, remembers = restored(tmp_path, settings=after)
    assert gate.unremembered.until_ms == forgotten_ms
    assert remembers == (not forgotten_ms)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_file_is_absent_and_removed(tmp_path: Path, data: st.DataObject) -> None:
    """A flipped bit, a cut, more at the end, or any other bytes: nothing is believed, and it is removed."""
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    file = tmp_path / REPLAY_FILE
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "more", "other", "empty"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "more":
            content += data.draw(st.binary(min_size=1, max_size=40))
        case "other":
            content[:] = data.draw(st.binary(max_size=200))
        case "empty":
            content.clear()
    file.write_bytes(content)
    gate, remembers = restored(tmp_path)
    assert not remembers
    assert gate.unremembered.until_ms == NOW + 1_000
    assert list(tmp_path.iterdir()) == []


def test_valid_checksum_around_another_form_is_damage(tmp_path: Path) -> None:
    """What a stranger packs with the right checksum is still not believed if it is not of our form."""
    for body in (b"", b"\xc0", b"\x93\x01\x02\x03", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        file = tmp_path / REPLAY_FILE
        file.touch(mode=0o600)
        content = replay_files._MAGIC + body
        file.write_bytes(content + blake2b(content, digest_size=32).digest())
        assert take_replay_files(tmp_path) == []


def test_huge_file_is_damage_and_not_read_whole(tmp_path: Path) -> None:
    """A file of a terabyte costs no more memory than the limit, and no start."""
    file = tmp_path / REPLAY_FILE
    file.touch(mode=0o600)
    os.truncate(file, replay_files.REPLAY_FILE_LIMIT_BYTES + 2)
    assert take_replay_files(tmp_path) == []
    assert not file.exists()


def test_link_or_open_file_in_its_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    """The file is checked like every file in the folder: a planted one stops the start, and its target stays."""
    target = tmp_path / "precious"
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    file = tmp_path / REPLAY_FILE
    file.rename(target)
    file.symlink_to(target)
    with pytest.raises(FileUnusable, match="symbolic link"):
        take_replay_files(tmp_path)
    assert target.exists()
    file.unlink()
    target.rename(file)
    file.chmod(0o644)
    with pytest.raises(FileUnusable, match="has mode 0644"):
        take_replay_files(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(FileUnusable, match="is a folder"):
        take_replay_files(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Nobody else can have the service forget, or remember what never was."""
    save_replay_memory(tmp_path, used(), LEDGER, 1)
    os.chown(tmp_path / REPLAY_FILE, 65534, 65534)
    with pytest.raises(FileUnusable, match="belongs to the user nobody"):
        take_replay_files(tmp_path)


def test_memory_that_cannot_be_saved_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A stop goes on; the next start finds no file, and refuses what it may have forgotten."""
    save_replay_memory(tmp_path / "missing", used(), LEDGER, 1)
    assert "was not saved" in caplog.text


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    """Only the names that a stop gives are taken."""
    names = {"journal.db", "replay-memory-", "replay-memory-0", "replay-memory-x", "my-replay-memory"}
    for name in names:
        (tmp_path / name).touch()
    assert take_replay_files(tmp_path) == []
    assert {file.name for file in tmp_path.iterdir()} == names
