"""Secrets at rest, and the master key's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spotledger.errors import MasterKeyRefused, StoreUnavailable
from spotledger.security.cipher import AccessKeyDamaged, Cipher, MasterKeys, load_master_key, parse_master_key

KEY = bytes(range(32))
FINGERPRINT = "69858e5ffc319cae78a6035a6d601900"
SEALED = "01799ac7b1962399f405d2e3b128c9ea2bb542c2b15b35f9ffc4166dfa748a18c6ab1cc313"


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
    assert repr(Cipher(KEY)) == f"Cipher(fingerprint='{Cipher(KEY).fingerprint}')"


def test_what_is_stored_stays_readable() -> None:
    """A fingerprint and a sealed secret as they are in ledgers that were made before."""
    assert Cipher(KEY).fingerprint == FINGERPRINT
    assert Cipher(KEY).open("11111111-2222-4333-8444-555555555555", bytes.fromhex(SEALED)) == "0123abcd"
    sealed = Cipher(KEY).seal("a", "secret")
    assert sealed[:1] == b"\x01"
    assert len(sealed) == 1 + 12 + len("secret") + 16


def test_damage_is_told_with_the_first_characters_of_the_access_key() -> None:
    """Enough to find it, and not all of it; the cause is told apart."""
    accesskey = "11111111-2222-4333-8444-555555555555"
    sealed = Cipher(KEY).seal(accesskey, "secret")
    for wrong, cause in ((b"\x02" + sealed[1:], "is sealed in an unknown format"), (sealed[:-1], "does not open")):
        with pytest.raises(AccessKeyDamaged) as damaged:
            Cipher(KEY).open(accesskey, wrong)
        assert str(damaged.value) == f"the secret of the access key 11111111… {cause}"


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "0g" * 32, "٠" * 64, "0x" + "00" * 31, "00 " * 32])
def test_malformed_master_key_is_refused_and_not_repeated(text: str) -> None:
    """64 hex digits and nothing else; the message does not repeat what was found."""
    with pytest.raises(MasterKeyRefused) as refused:
        parse_master_key(text)
    assert not text or text not in refused.value.message
    assert refused.value.message.startswith(f"The master key has {len(text.strip())} characters; 64 hex digits would")
    with pytest.raises(MasterKeyRefused, match="has 5 bytes; 32 would pass"):
        Cipher(b"short")


@pytest.mark.parametrize("text", [KEY.hex(), KEY.hex().upper(), f" \t{KEY.hex()}\r\n"])
def test_master_key_is_64_hex_digits(text: str) -> None:
    """In capitals, too, and with blanks around them."""
    assert parse_master_key(text) == KEY


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
    for path, cause in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "is not a regular file"),
        (odd, "has 64 characters"),
    ):
        with pytest.raises(MasterKeyRefused, match=cause) as refused:
            load_master_key(path)
        assert path == odd or str(path) in refused.value.message


def test_pipe_and_long_file_in_place_of_a_master_key_are_refused_at_once(tmp_path: Path) -> None:
    """Nobody waits for a writer of a pipe, and a file is not read beyond what a key could be."""
    pipe, long = tmp_path / "pipe", tmp_path / "long"
    os.mkfifo(pipe, 0o600)
    long.write_text(KEY.hex() + " " * 1_000 + "x")
    long.chmod(0o600)
    with pytest.raises(MasterKeyRefused, match="is not a regular file"):
        load_master_key(pipe)
    assert load_master_key(long) == KEY


def test_master_key_file_that_cannot_be_read_to_its_end_is_refused() -> None:
    """A fault of the disk, for which the memory of this process stands here: its first page cannot be read."""
    with pytest.raises(MasterKeyRefused, match=r"/proc/self/mem cannot be read: Input/output error\."):
        load_master_key(Path("/proc/self/mem"))


def test_descriptors_of_master_keys_are_closed(tmp_path: Path) -> None:
    """After a success and after each refusal."""
    file = key_file(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    load_master_key(file)
    file.chmod(0o644)
    for path in (file, tmp_path):
        with pytest.raises(MasterKeyRefused):
            load_master_key(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


ONE, TWO, THREE = (Cipher(bytes([number]) * 32) for number in (1, 2, 3))


def test_master_keys_are_tried_in_the_order_in_which_they_are_given() -> None:
    """One that is added comes first, and one that is there already moves there; a fingerprint finds its cipher."""
    keys = MasterKeys([ONE, TWO], lambda: None)
    assert keys.fingerprints == (ONE.fingerprint, TWO.fingerprint)
    keys.add(THREE)
    keys.add(Cipher(bytes([2]) * 32))
    assert keys.fingerprints == (TWO.fingerprint, THREE.fingerprint, ONE.fingerprint)
    assert keys.cipher(THREE.fingerprint) is THREE
    assert keys.cipher(Cipher(KEY).fingerprint) is None
    assert keys.cipher(None) is None


def test_master_keys_seal_with_the_one_in_force_at_each_time() -> None:
    """Or with the first one, as long as none is in force; all of them open, whichever sealed."""
    in_force: list[str | None] = [None]
    keys = MasterKeys([ONE, TWO], lambda: in_force[0])
    for fingerprint, cipher in ((None, ONE), (TWO.fingerprint, TWO), (ONE.fingerprint, ONE)):
        in_force[0] = fingerprint
        sealed = keys.seal("a", "secret")
        assert cipher.open("a", sealed) == "secret"
        for fingerprint_then in (None, ONE.fingerprint, TWO.fingerprint):
            in_force[0] = fingerprint_then
            assert keys.open("a", sealed) == "secret"


def test_node_without_the_master_key_in_force_says_which_it_lacks() -> None:
    """It seals nothing, and opens what it can; what it cannot open is not taken for damage then."""
    keys = MasterKeys([ONE], lambda: TWO.fingerprint)
    message = (
        f"The master key was rotated: the secrets are sealed with {TWO.fingerprint}, which this node does not have. Its"
        " operator has to give it that key and start it again; other nodes answer."
    )
    with pytest.raises(StoreUnavailable) as refused:
        keys.seal("a", "secret")
    assert refused.value.message == message
    with pytest.raises(StoreUnavailable) as refused:
        keys.open("a", TWO.seal("a", "secret"))
    assert refused.value.message == message
    assert keys.open("a", ONE.seal("a", "secret")) == "secret"


@pytest.mark.parametrize("in_force", [None, TWO.fingerprint])
def test_secret_that_no_master_key_opens_is_damaged(in_force: str | None) -> None:
    """Where the one in force is there, or none is yet."""
    keys = MasterKeys([ONE, TWO], lambda: in_force)
    with pytest.raises(AccessKeyDamaged, match=r"^the secret of the access key 11111111… does not open$"):
        keys.open("11111111-2222", THREE.seal("11111111-2222", "secret"))
