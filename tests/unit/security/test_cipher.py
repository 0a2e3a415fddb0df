"""Secrets at rest, and the master key's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotledger.errors import MasterKeyRefused
from spotledger.security.cipher import AccessKeyDamaged, Cipher, load_master_key, parse_master_key

KEY = bytes(range(32))


def test_sealed_secret_opens_for_its_own_access_key_alone() -> None:
    """A sealed secret that is moved to another access key does not open."""
    cipher = Cipher(KEY)
    sealed = cipher.seal("a", "secret")
    assert cipher.open("a", sealed) == "secret"
    with pytest.raises(AccessKeyDamaged):
        cipher.open("b", sealed)


def test_sealing_twice_gives_different_bytes_without_the_secret() -> None:
    """Each sealing has a nonce of its own, and the text is not in it."""
    cipher = Cipher(KEY)
    sealed = {cipher.seal("a", "secret") for _ in range(100)}
    assert len(sealed) == 100
    assert not any(b"secret" in one for one in sealed)


def test_altered_or_foreign_bytes_do_not_open() -> None:
    """Every single altered byte is noticed, and so are another master key, other forms and cut-off bytes."""
    cipher = Cipher(KEY)
    sealed = cipher.seal("a", "secret")
    altered = [sealed[:n] + bytes([sealed[n] ^ 1]) + sealed[n + 1 :] for n in range(len(sealed))]
    for wrong in [*altered, b"", b"\1", sealed[:-1], sealed + b"\0", b"\1" + b"\0" * 12]:
        with pytest.raises(AccessKeyDamaged):
            cipher.open("a", wrong)
    with pytest.raises(AccessKeyDamaged):
        Cipher(bytes(32)).open("a", sealed)


def test_fingerprint_tells_master_keys_apart_and_gives_none_away() -> None:
    """The fingerprint is stable, differs from key to key, and holds no part of the key."""
    assert Cipher(KEY).fingerprint == Cipher(KEY).fingerprint != Cipher(bytes(32)).fingerprint
    assert KEY.hex()[:8] not in repr(Cipher(KEY))


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "0g" * 32, "٠" * 64, "0x" + "00" * 31, "00 " * 32])
def test_malformed_master_key_is_refused_and_not_repeated(text: str) -> None:
    """64 hex digits and nothing else; the message does not repeat what was found."""
    with pytest.raises(MasterKeyRefused) as refused:
        parse_master_key(text)
    assert not text or text not in refused.value.message
    with pytest.raises(MasterKeyRefused):
        Cipher(b"short")


def key_file(folder: Path) -> Path:
    """Write a master key into a file of its owner's own."""
    file = folder / "master.key"
    file.write_text(KEY.hex() + "\n")
    file.chmod(0o600)
    return file


def test_master_key_file_of_mode_0600_is_read(tmp_path: Path) -> None:
    """The 64 hex digits in the file, with a newline at their end, are the key."""
    assert load_master_key(key_file(tmp_path)) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o602, 0o700])
def test_master_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """A file that anybody else could read or write is refused, with the mode it has and the mode it needs."""
    file = key_file(tmp_path)
    file.chmod(mode)
    with pytest.raises(MasterKeyRefused, match="0600") as refused:
        load_master_key(file)
    assert f"{mode:04o}" in refused.value.message
    file.chmod(0o400)
    load_master_key(file)


def test_master_key_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a file with anything else in it are refused by name."""
    odd = tmp_path / "odd"
    odd.write_bytes(b"\xff" * 64)
    odd.chmod(0o600)
    for path in (tmp_path / "missing", tmp_path, odd):
        with pytest.raises(MasterKeyRefused):
            load_master_key(path)
